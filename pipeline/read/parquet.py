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
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from pipeline.config import SplitBounds
from pipeline.errors import InputError
from pipeline.read.columns import ids_of_arrow, kept_of_arrow, text_of_arrow
from pipeline.read.documents import (
    ReadSplit,
    Rows,
    Target,
    make_documents,
    quarantined_file,
    undecodable_rows,
)
from pipeline.schema import QUARANTINE_SCHEMA
from pipeline.splits import Cut, Split, columns_read
from pipeline.splits.footers import Footer, footer_of
from pipeline.splits.plan import cut_rows, rows_within
from pipeline.splits.streams import REQUEST_BYTES, Source, UndecodableError, decoding, open_source
from pipeline.uris import Storage

# Rows made into documents at once, and decoded at once of a row group that is cut.
_BATCH_ROWS = 1024
# Unless one row is more: what is small in the file may be large in memory, and an Arrow string array ends at 2 GiB.
_BATCH_BYTES = 64 * 2**20

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
        rows = _RowReader(source, columns_read(target.input), bounds)
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

    def __init__(self, source: Source, columns: Sequence[str], bounds: SplitBounds) -> None:
        self._source, self._columns, self._bounds = source, columns, bounds
        try:
            with decoding(source):
                self._metadata = pq.read_metadata(pa.PythonFile(source, mode="r"))
                self._footer = footer_of(self._metadata, columns)
        except UndecodableError as error:  # planning read this footer: it is decodable or another reader's
            self._footer = Footer(error=str(error))
            return
        missing = [name for name in columns if name not in self._footer.names]
        if missing:
            raise InputError(f"no column {missing[0]} in {source.uri}; there are: {', '.join(self._footer.names)}")
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
        batch_rows = min(_BATCH_ROWS, rows_within(footer.group_rows[group], footer.group_bytes[group], self._bounds))
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
    for large in table.to_batches(max_chunksize=_BATCH_ROWS):
        for batch in _halved(large):
            yield make_documents(_rows(batch, begin, target), target)
            begin += batch.num_rows


def _halved(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in parts that take up to `_BATCH_BYTES` once they are decoded, or are one row."""
    if batch.num_rows > 1 and sum(_num_bytes(column) for column in batch.columns) > _BATCH_BYTES:
        half = batch.num_rows // 2
        yield from _halved(batch.slice(0, half))
        yield from _halved(batch.slice(half))
    else:
        yield batch


def _num_bytes(column: pa.Array) -> int:
    if not types.is_dictionary(column.type):
        return int(column.nbytes)
    # A string that the file holds once may be that of every row. Parquet has dictionaries of strings and binary only.
    return int(pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0)


def _rows(batch: pa.RecordBatch, begin: int, target: Target) -> Rows:
    rows = Rows(np.arange(begin, begin + batch.num_rows), {}, None, [], {})
    for name in target.input.text_columns:
        rows.text[name] = text_of_arrow(batch.column(name), name, rows.faults)
    if target.input.id is not None:
        rows.ids = ids_of_arrow(batch.column(target.input.id), target.input.id, rows.faults)
    for field in target.keep:
        rows.keep.append(kept_of_arrow(batch.column(field.name), field, rows.faults))
    return rows
