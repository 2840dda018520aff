"""The splits of a coming snapshot, in the order that decides which row of one id is the first."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.snapshots.records import Record, quarantine_name, shard_name
from pipeline.snapshots.table import RecordTable, to_hex

_SLICE = 10_000

_FILE = pa.struct(
    [
        pa.field("file_uri", pa.string(), nullable=False),
        pa.field("rank", pa.int64(), nullable=False),
        pa.field("num_embedded", pa.int64(), nullable=False),
    ]
)

COMING_SCHEMA = pa.schema(
    [
        pa.field("split_id", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),  # its embedding shard
        pa.field("num_rows", pa.int64(), nullable=False),  # of the shard
        pa.field("quarantine_file", pa.string()),  # null where it holds no duplicate for sure
        pa.field("is_new", pa.bool_(), nullable=False),  # not in the parent snapshot
        pa.field("rank", pa.int64()),  # in the order that decides which row is the first; null: the row of this table
        pa.field("files", pa.list_(pa.field("element", _FILE, nullable=False))),  # of a pack; else null
    ]
)
"""The splits of a coming snapshot by file_uri, begin, end: the order that decides which row is the first.

Files of a pack may have others between them: each has a rank of its own.
"""

SEGMENTS_SCHEMA = pa.schema(
    [
        *(COMING_SCHEMA.field(name) for name in ("split_id", "file", "num_rows", "quarantine_file", "is_new")),
        pa.field("file_uri", pa.string(), nullable=False),
        pa.field("begin", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("num_embedded", pa.int64(), nullable=False),  # documents
    ]
)
"""As COMING_SCHEMA, with a row for each input file of each split."""


def coming_splits(records: Iterable[Record], carried_splits: pa.Table, parent_shards: pa.Table) -> pa.Table:
    """The table that `find_duplicates` takes (COMING_SCHEMA).

    Args:
        records: of the files that are not carried.
        carried_splits: SPLITS_SCHEMA, of the files that are.
        parent_shards: SHARDS_SCHEMA; what `carried_splits` name by ordinal.
    """
    shards = parent_shards.select(["ordinal", "file", "num_rows"])
    carried = carried_splits.join(shards, "ordinal", join_type="inner")
    embedded = pc.subtract(carried["num_documents"], carried["num_quarantined"])
    carried = carried.append_column("num_embedded", embedded)
    carried = carried.append_column("is_new", pa.repeat(False, carried.num_rows))
    new = RecordTable.of(records)
    slices = [_segments(new[begin : begin + _SLICE]) for begin in range(0, len(new), _SLICE)]
    return in_order(pa.concat_tables([carried.select(SEGMENTS_SCHEMA.names).cast(SEGMENTS_SCHEMA), *slices]))


def in_order(segments: pa.Table) -> pa.Table:
    """The splits (COMING_SCHEMA) of which these are the input files (SEGMENTS_SCHEMA)."""
    segments = segments.sort_by([(name, "ascending") for name in ("file_uri", "begin", "end")])
    codes = pc.dictionary_encode(segments["file"].combine_chunks()).indices.to_numpy()
    num = len(codes)
    _, first = np.unique(codes, return_index=True)  # codes are given by first appearance: so is their order
    coming = segments.take(pa.array(first)).select(COMING_SCHEMA.names[:5]).append_column("rank", pa.array(first))
    if len(first) == num:
        return coming.append_column(COMING_SCHEMA.field("files"), pa.nulls(num, COMING_SCHEMA.field("files").type))
    ranks = np.argsort(codes, kind="stable")
    by_split = segments.take(pa.array(ranks))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(codes))])
    is_range = np.diff(offsets) == 1
    files = pa.StructArray.from_arrays(
        [by_split["file_uri"].combine_chunks(), pa.array(ranks), by_split["num_embedded"].combine_chunks()],
        fields=list(_FILE),
    )
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), files, COMING_SCHEMA.field("files").type)
    return coming.append_column(COMING_SCHEMA.field("files"), pc.if_else(pa.array(is_range), None, lists))


def _segments(records: RecordTable) -> pa.Table:
    by_file = records.by_file()
    record = by_file["record"].to_numpy()
    keys = [records.column(name).to_pylist() for name in ("encoder_fp", "shard_fp")]
    ids = [to_hex(records.column(name)).to_pylist() for name in ("split_id", "attempt")]
    names = list(zip(*keys, *ids, strict=True))
    has_duplicates = ["duplicate_id" in orjson.loads(reasons) for reasons in records.values("reasons")]
    codes = records.numbers("reasons").tolist()
    of_records = {
        "split_id": ids[0],
        "file": [shard_name(*name) for name in names],
        "num_rows": records.column("num_rows"),
        "quarantine_file": [
            quarantine_name(*name) if has_duplicates[code] else None for name, code in zip(names, codes, strict=True)
        ],
    }
    columns = {name: pa.array(values).take(pa.array(record)) for name, values in of_records.items()}
    same = {name: by_file[name] for name in ("file_uri", "begin", "end")}
    embedded = pc.subtract(by_file["num_documents"], by_file["num_quarantined"])
    return (
        pa.table(columns | same | {"num_embedded": embedded, "is_new": pa.repeat(True, len(record))})
        .select(SEGMENTS_SCHEMA.names)
        .cast(SEGMENTS_SCHEMA)
    )
