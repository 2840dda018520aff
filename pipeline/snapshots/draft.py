"""The tables of a snapshot to be, by column: from records, and from what is carried of the parent's.

In memory, columns that thousands of splits share are dictionary-encoded (`in_memory`); `put_table`
writes all as the schemas of pipeline.snapshots.manifest say.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.snapshots.manifest import SHARDS_SCHEMA, SPLITS_SCHEMA, in_memory
from pipeline.snapshots.table import Indices, RecordTable, file_keys, to_hex

_SHARDS, _SPLITS = in_memory(SHARDS_SCHEMA), in_memory(SPLITS_SCHEMA)


def draft_tables(
    parent_shards: pa.Table, carried_splits: pa.Table, records: RecordTable, next_ordinal: int
) -> tuple[pa.Table, pa.Table, int]:
    """Shards by ordinal, splits by input file and begin, and the next free ordinal.

    A physical file keeps the ordinal it has in the parent, also under a record that lists it anew.
    """
    order = _by_place(*(records.column(name) for name in ("file_uri", "begin", "end")))
    if (np.diff(order) < 0).any():  # else it is spared a copy
        records = records.take(order)
    ordinals, next_ordinal = _ordinals(parent_shards, records, next_ordinal)
    is_carried = pc.is_in(parent_shards["ordinal"], value_set=carried_splits["ordinal"].combine_chunks())
    shards = _joined(filtered(parent_shards, is_carried), _new_shards(records, ordinals), _SHARDS)
    splits = _joined(carried_splits, _new_splits(records, ordinals), _SPLITS)
    if carried_splits.num_rows or splits.num_rows > len(records):  # files of a pack lie among those of others
        splits = splits.take(
            pa.array(_by_place(*(splits[name].combine_chunks() for name in ("file_uri", "begin", "end"))))
        )
    if (np.diff(shards["ordinal"].to_numpy()) < 0).any():
        shards = shards.sort_by("ordinal")
    return shards, splits, next_ordinal


def filtered(table: pa.Table, is_kept: pa.ChunkedArray) -> pa.Table:
    """The rows that are kept; mostly all are, and then there is no copy."""
    return table if pc.all(is_kept, min_count=0).as_py() else table.filter(is_kept)


def _by_place(file_uri: pa.DictionaryArray, begin: pa.Array, end: pa.Array) -> Indices:
    order = np.argsort(np.array(file_uri.dictionary.to_pylist(), object), kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return np.lexsort([end.to_numpy(), begin.to_numpy(), rank[file_uri.indices.to_numpy()]])


def _ordinals(parent_shards: pa.Table, records: RecordTable, next_ordinal: int) -> tuple[npt.NDArray[np.int64], int]:
    before = pc.index_in(records.keys(), value_set=file_keys(parent_shards["file"]))
    is_new = before.is_null().to_numpy(zero_copy_only=False)
    ordinals = next_ordinal + np.cumsum(is_new) - 1
    known = parent_shards["ordinal"].take(before.drop_null()).to_numpy()
    ordinals[~is_new] = known
    return ordinals, next_ordinal + int(is_new.sum())


def _joined(carried: pa.Table, new: pa.Table, schema: pa.Schema) -> pa.Table:
    """Both in one, of several chunks: put together they would be a copy."""
    if not carried.num_rows:
        return new
    typed = [carried[field.name].cast(field.type) for field in schema]
    both = pa.concat_tables([pa.Table.from_arrays(typed, schema=schema), new])
    return both.unify_dictionaries()


def _new_shards(records: RecordTable, ordinals: npt.NDArray[np.int64]) -> pa.Table:
    columns = {
        "ordinal": pa.array(ordinals, pa.int32()),
        "file": records.shard_names(),
        "size": records.column("shard_size"),
        "checksum": to_hex(records.column("shard_checksum")),
        "num_rows": records.column("num_rows"),
        "vector_begin": records.column("vector_begin"),
        "num_documents": records.column("shard_num_documents"),
        "compute": records.column("compute"),
        "deletes": pa.nulls(len(records), pa.string()),
    }
    return pa.table(columns, _SHARDS)


def _new_splits(records: RecordTable, ordinals: npt.NDArray[np.int64]) -> pa.Table:
    by_file = records.by_file()
    record = by_file["record"].to_numpy()
    of_records = {
        "split_id": to_hex(records.column("split_id")),
        "ordinal": pa.array(ordinals, pa.int32()),
        "quarantine_file": records.quarantine_names(),
        "quarantine_checksum": to_hex(records.column("quarantine_checksum")),
    }
    if len(record) > len(records):
        of_records = {name: column.take(pa.array(record)) for name, column in of_records.items()}
    same = {name: by_file[name] for name in by_file.schema.names if name != "record"}
    return pa.table(same | of_records).select(_SPLITS.names).cast(_SPLITS)
