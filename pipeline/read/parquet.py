"""A split of a Parquet file -> documents. Only the columns and row groups it needs are fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
from pipeline.splits import Split
from pipeline.splits.streams import REQUEST_BYTES, Source, UndecodableError, decoding, open_source
from pipeline.uris import Storage

# Rows made into documents at once, and decoded at once of a row group that is cut.
_BATCH_ROWS = 1024

_Group = tuple[int, int, int, int]  # index, its rows [begin, end) that the split holds, its rows in all


def read_parquet(storage: Storage, split: Split, target: Target) -> ReadSplit:
    """The documents of rows [begin, end).

    Raises:
        EnvironmentFault: storage failed, or the file is another by now.
        InputError: a column is missing.
    """
    begin, end = split.begin, split.end
    assert end is not None
    if split.unreadable is not None:
        empty = target.schema.empty_table()
        return ReadSplit(split, empty, quarantined_file(target.file_uri, split.unreadable), 0, None)
    with open_source(storage, split.file) as source:
        made, quarantine = [target.schema.empty_table()], [QUARANTINE_SCHEMA.empty_table()]
        for first, last, table, message in _decode(source, begin, end, _columns(target)):
            if table is None:
                quarantine.append(undecodable_rows(target, first, last, message))
                continue
            for documents, bad in _documents(table, first, target):
                made.append(documents)
                quarantine.append(bad)
    documents, bad = pa.concat_tables(made), pa.concat_tables(quarantine)
    return ReadSplit(split, documents, bad, documents.num_rows + bad.num_rows, end - begin)


def _columns(target: Target) -> list[str]:
    named = [*target.input.text_columns, *([target.input.id] if target.input.id else []), *target.keep.names]
    return list(dict.fromkeys(named))


def _decode(
    source: Source, begin: int, end: int, columns: Sequence[str]
) -> Iterator[tuple[int, int, pa.Table | None, str]]:
    """(begin, end, the rows' table, why there is none), together covering [begin, end)."""
    try:
        with decoding(source):
            metadata = pq.read_metadata(pa.PythonFile(source, mode="r"))
            present = metadata.schema.to_arrow_schema().names
    except UndecodableError as error:  # planning read this footer: it is decodable or another reader's
        yield begin, end, None, str(error)
        return
    missing = [name for name in columns if name not in present]
    if missing:
        raise InputError(f"no column {missing[0]} in {source.uri}; there are: {', '.join(present)}")
    groups = list(_groups(metadata, begin, end))
    if all(high - low == rows for _, low, high, rows in groups):
        try:
            with decoding(source):
                table = _whole(source, metadata, [group[0] for group in groups], columns, end - begin)
        except UndecodableError:
            pass  # one of them: each by itself tells which
        else:
            yield begin, end, table, ""
            return
    first = begin
    for group in groups:
        last = first + group[2] - group[1]
        try:
            with decoding(source):
                table = _part(source, metadata, group, columns)
        except UndecodableError as error:
            yield first, last, None, str(error)
        else:
            yield first, last, table, ""
        first = last


def _groups(metadata: pq.FileMetaData, begin: int, end: int) -> Iterator[_Group]:
    first = 0
    for index in range(metadata.num_row_groups):
        rows = metadata.row_group(index).num_rows
        low, high = max(begin - first, 0), min(end - first, rows)
        if low < high:
            yield index, low, high, rows
        first += rows


def _whole(
    source: Source, metadata: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str], num_rows: int
) -> pa.Table:
    # pre_buffer: all the column chunks in few, large requests; the split's bound is what holds them in memory
    parquet = pq.ParquetFile(pa.PythonFile(source, mode="r"), metadata=metadata, pre_buffer=True)
    return _complete(parquet.read_row_groups(list(groups), columns=list(columns), use_threads=False), num_rows)


def _part(source: Source, metadata: pq.FileMetaData, group: _Group, columns: Sequence[str]) -> pa.Table:
    index, low, high, rows = group
    if high - low == rows:
        return _whole(source, metadata, [index], columns, rows)
    # A group may be far larger than a split: its column chunks pass through a buffer, not memory.
    parquet = pq.ParquetFile(
        pa.PythonFile(source, mode="r"), metadata=metadata, pre_buffer=False, buffer_size=REQUEST_BYTES
    )
    batch_rows = min(_BATCH_ROWS, high - low)
    kept, first = [], 0
    batches = parquet.iter_batches(batch_rows, row_groups=[index], columns=list(columns), use_threads=False)
    for batch in batches:
        last = first + batch.num_rows
        if last > low:
            kept.append(batch.slice(max(low - first, 0), min(high, last) - max(low, first)))
        first = last
        if first >= high:
            break
    return _complete(pa.Table.from_batches(kept), high - low)


def _complete(table: pa.Table, num_rows: int) -> pa.Table:
    if table.num_rows != num_rows:
        raise UndecodableError(f"the footer says {num_rows} rows, there are {table.num_rows}")
    return table


def _documents(table: pa.Table, begin: int, target: Target) -> Iterator[tuple[pa.Table, pa.Table]]:
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        yield make_documents(_rows(batch, begin, target), target)
        begin += batch.num_rows


def _rows(batch: pa.RecordBatch, begin: int, target: Target) -> Rows:
    rows = Rows(np.arange(begin, begin + batch.num_rows), {}, None, [], {})
    for name in target.input.text_columns:
        rows.text[name] = text_of_arrow(batch.column(name), name, rows.faults)
    if target.input.id is not None:
        rows.ids = ids_of_arrow(batch.column(target.input.id), target.input.id, rows.faults)
    for field in target.keep:
        rows.keep.append(kept_of_arrow(batch.column(field.name), field, rows.faults))
    return rows
