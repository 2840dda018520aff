"""A range of a Parquet file -> splits of it, and their documents. Only columns and row groups it needs are fetched.

Row groups that lie in a split whole are read at once, in few, large requests. A row group that is
cut streams through a buffer, once for all splits of the range: memory is a split's documents, and
bytes are fetched once however large the group is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import SplitBounds
from pipeline.read.batches import BATCH_ROWS, halved
from pipeline.read.documents import (
    ReadSplit,
    Target,
    make_documents,
    quarantined_file,
    undecodable_rows,
)
from pipeline.read.fields import check_names, rows_of_arrow
from pipeline.schema import QUARANTINE_SCHEMA
from pipeline.splits import Cut, Split
from pipeline.splits.footers import Footer, footer_of
from pipeline.splits.names import find_path
from pipeline.splits.plan import cut_rows, rows_within
from pipeline.splits.streams import REQUEST_BYTES, Source, UndecodableError, decoding, open_source
from pipeline.uris import Storage

_Part = tuple[int, int, pa.Table | None, str]  # rows [begin, end), their table, why there is none


def read_parquet(
    storage: Storage, split: Split, target: Target, bounds: SplitBounds, done: Collection[Cut]
) -> Iterator[ReadSplit]:
    """The splits of rows [begin, end), in order; at least one.

    Args:
        done: splits of which no documents are wanted; what needs them alone is not decoded.

    Raises:
        EnvironmentFault: storage failed, or the file is another by now.
        InputError: a column is missing.
    """
    if split.unreadable is not None:
        empty = target.schema.empty_table()
        unread = replace(split, row_begin=split.begin, row_end=split.end)
        yield ReadSplit(unread, empty, quarantined_file(target.file_uri, split.unreadable), 0, None)
        return
    assert split.end is not None
    with open_source(storage, split.file) as source:
        rows = _RowReader(source, target, bounds)
        *before, final = rows.cut(split.begin, split.end)
        for begin, end in before:
            yield _read(rows, replace(split, begin=begin, end=end, last=False), target, done)
        made = _read(rows, replace(split, begin=final[0], end=final[1]), target, done)
    yield made  # only now: on leaving, the file was seen to be unchanged


def _read(rows: _RowReader, split: Split, target: Target, done: Collection[Cut]) -> ReadSplit:
    begin, end = split.begin, split.end
    assert end is not None
    split = replace(split, row_begin=begin, row_end=end)
    if (begin, end, split.last) in done:
        return ReadSplit(split, None, QUARANTINE_SCHEMA.empty_table(), end - begin, end - begin)
    made, quarantine = [target.schema.empty_table()], [QUARANTINE_SCHEMA.empty_table()]
    for first, last, table, message in rows.parts(begin, end):
        if table is None:
            quarantine.append(undecodable_rows(target, first, last, message))
            continue
        for documents, bad in _documents(table, first, target):
            made.append(documents)
            quarantine.append(bad)
    documents, bad = pa.concat_tables(made), pa.concat_tables(quarantine)
    return ReadSplit(split, documents, bad, documents.num_rows + bad.num_rows, end - begin)


class _RowReader:
    """Decodes rows of one file; asked for in order, it reads each row group once."""

    def __init__(self, source: Source, target: Target, bounds: SplitBounds) -> None:
        self._source, self._bounds = source, bounds
        self._columns: list[str] = []
        try:
            with decoding(source):
                self._metadata = pq.read_metadata(pa.PythonFile(source, mode="r"))
                self._footer = footer_of(self._metadata, target.input.columns)
                schema = self._metadata.schema.to_arrow_schema()
        except UndecodableError as error:  # planning read this footer: it is decodable or another reader's
            self._footer = Footer(error=str(error))
            return
        check_names(target, schema, source.uri)
        paths = [find_path(schema, name) for name in target.input.columns]
        # Without any column a batch would have no rows.
        self._columns = [".".join(path) for path in paths if path is not None] or schema.names[:1]
        self._edges = [0, *accumulate(self._footer.group_rows)]
        self._stream: _GroupStream | None = None

    def cut(self, begin: int, end: int) -> list[tuple[int, int]]:
        """The splits of a range, see `cut_rows`."""
        return cut_rows(self._footer, self._bounds, begin, end)

    def parts(self, begin: int, end: int) -> Iterator[_Part]:
        """Parts that together cover [begin, end), in order."""
        if self._footer.error is not None:
            yield begin, end, None, self._footer.error
            return
        spans = ((max(low, begin), min(high, end)) for low, high in pairwise(self._edges))
        groups = [(group, low, high) for group, (low, high) in enumerate(spans) if low < high]
        are_whole = [self._edges[group : group + 2] == [low, high] for group, low, high in groups]
        if all(are_whole):
            try:
                yield begin, end, self._whole([group for group, _, _ in groups], end - begin), ""
                return
            except UndecodableError:
                pass  # one of them: each by itself tells which
        for (group, low, high), is_whole in zip(groups, are_whole, strict=True):
            if not is_whole:
                yield from self._streamed(group, low, high)
                continue
            try:
                yield low, high, self._whole([group], high - low), ""
            except UndecodableError as error:
                yield low, high, None, str(error)

    def _whole(self, groups: Sequence[int], num_rows: int) -> pa.Table:
        # pre_buffer: all the column chunks in few, large requests; the split's bound is what holds them in memory
        with decoding(self._source):
            parquet = pq.ParquetFile(pa.PythonFile(self._source, mode="r"), metadata=self._metadata, pre_buffer=True)
            table = parquet.read_row_groups(list(groups), columns=list(self._columns), use_threads=False)
        if table.num_rows != num_rows:
            raise UndecodableError(f"the footer says {num_rows} rows, there are {table.num_rows}")
        return table

    def _streamed(self, group: int, begin: int, end: int) -> Iterator[_Part]:
        if self._stream is None or self._stream.group != group:
            self._stream = _GroupStream(self._source, group, self._edges[group], self._batches(group))
        stream = self._stream
        try:
            for _ in stream.rows(begin):
                pass  # done already, and before others that are not
            for batch in stream.rows(end):
                yield stream.position - batch.num_rows, stream.position, pa.Table.from_batches([batch]), ""
        except UndecodableError as error:
            yield max(begin, stream.position), end, None, str(error)

    def _batches(self, group: int) -> Iterator[pa.RecordBatch]:
        footer = self._footer
        batch_rows = min(BATCH_ROWS, rows_within(footer.group_rows[group], footer.group_bytes[group], self._bounds))
        # A group may be far larger than a split: its column chunks pass through a buffer, not memory.
        parquet = pq.ParquetFile(
            pa.PythonFile(self._source, mode="r"),
            metadata=self._metadata,
            pre_buffer=False,
            buffer_size=REQUEST_BYTES,
        )
        yield from parquet.iter_batches(batch_rows, row_groups=[group], columns=list(self._columns), use_threads=False)


class _GroupStream:
    """The rows of one row group, decoded once, from the first on.

    Attributes:
        position: the row of the file that comes next.
    """

    def __init__(self, source: Source, group: int, begin: int, batches: Iterator[pa.RecordBatch]) -> None:
        self.group = group
        self.position = begin
        self._source = source
        self._batches = batches
        self._left: pa.RecordBatch | None = None
        self._fault = ""

    def rows(self, end: int) -> Iterator[pa.RecordBatch]:
        """The rows from `position` up to `end`; raises UndecodableError at the first that cannot be decoded."""
        while self.position < end:
            batch = self._left if self._left is not None and self._left.num_rows else self._decoded()
            self._left = batch.slice(end - self.position)
            batch = batch.slice(0, end - self.position)
            self.position += batch.num_rows
            yield batch

    def _decoded(self) -> pa.RecordBatch:
        try:
            if self._fault:
                raise UndecodableError(self._fault)
            with decoding(self._source):
                for batch in self._batches:
                    return batch
            raise UndecodableError(f"the row group ends before row {self.position}, which its footer counts")
        except UndecodableError as error:
            self._fault = str(error)
            raise


def _documents(table: pa.Table, begin: int, target: Target) -> Iterator[tuple[pa.Table, pa.Table]]:
    for large in table.to_batches():
        for batch in halved(large):
            numbers = np.arange(begin, begin + batch.num_rows)
            yield make_documents(rows_of_arrow(batch, numbers, target, {}), target)
            begin += batch.num_rows
