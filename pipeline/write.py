"""Vectors to one embedding shard, its quarantine file and its record, in that order.

The shard is ordinary Parquet with one constraint that makes rerank cheap: `content_hash`,
`row_hash` and `vector` are required, PLAIN, uncompressed, without dictionary and one page each,
so that one vector is one range read: row i of N lies at `vector_begin + i * D * width`.
Counted from the chunk's end, because the length of a page header varies.

The record is put last: a record says that its files are there (see pipeline.snapshots.commit).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import MAX_SHARD_ROWS
from pipeline.errors import VecmillError
from pipeline.schema import QUARANTINE_SCHEMA
from pipeline.snapshots.records import (
    QuarantineFile,
    Record,
    ShardFile,
    checksum,
    new_attempt,
    put_attempt,
    quarantine_name,
    shard_name,
)
from pipeline.uris import Storage

_PLAIN_COLUMNS = ("content_hash", "row_hash", "vector")

MAX_PAGE_BYTES = 2**30
"""The largest page that pyarrow writes: all vectors of a shard must fit into one."""


def max_shard_rows(dim: int, dtype: str) -> int:
    """How many vectors of `dim` values a shard takes; `dtype` is "float16" or "float32"."""
    return min(MAX_SHARD_ROWS, MAX_PAGE_BYTES // (dim * {"float16": 2, "float32": 4}[dtype]))


# zstd level 3 on ids and kept columns: 4x smaller than snappy's 2x on doc ids, at no cost beside the forward pass.
_COMPRESSION = "zstd"


@dataclass(frozen=True)
class ShardBytes:
    """One embedding shard, ready to be put."""

    data: pa.Buffer
    num_rows: int
    vector_begin: int
    """Byte offset of the first vector (0 in a shard without rows)."""


@dataclass(frozen=True)
class Attempt:
    """The files of one attempt at a split, ready to be put, and what its record says of them."""

    shard: pa.Buffer
    quarantine: pa.Buffer | None
    fields: dict[str, Any]
    """Of the Record: attempt, shard, quarantine, reasons, num_truncated, num_tokens."""

    def put(self, store: Storage, record: Record) -> Record:
        """Put shard, quarantine file and, last, the record that was made with `fields`; the record again.

        Raises:
            EnvironmentFault: storage failed.
        """
        put_attempt(store, record, self.shard, self.quarantine)
        return record


def make_attempt(
    fingerprints: tuple[str, str],
    split_id: str,
    embeddings: pa.Table,
    schema: pa.Schema,
    quarantine: pa.Table,
    *,
    with_text: bool,
) -> Attempt:
    """A new attempt at a split.

    Args:
        fingerprints: of encoder and shard.
        split_id: of the split.
        embeddings: its N rows, `vector` float32 (N, D).
        schema: of the shard.
        quarantine: QUARANTINE_SCHEMA; without rows there is no file.
        with_text: whether the quarantine file has the text.

    Raises:
        VecmillError: the written shard is not addressable as promised, which is a bug.
    """
    ids = (*fingerprints, split_id, new_attempt())
    shard = shard_bytes(embeddings, schema)
    quarantined = quarantine_bytes(quarantine, with_text=with_text) if quarantine.num_rows else None
    num_documents = pc.sum(pc.equal(embeddings["chunk_index"], 0), min_count=0).as_py()
    is_chunked = num_documents < shard.num_rows
    fields = {
        "attempt": ids[3],
        "shard": ShardFile(
            shard_name(*ids),
            shard.data.size,
            checksum(shard.data),
            shard.num_rows,
            shard.vector_begin,
            num_documents if is_chunked else None,
        ),
        "quarantine": None
        if quarantined is None
        else QuarantineFile(quarantine_name(*ids), checksum(quarantined), quarantine.num_rows),
        "reasons": dict(Counter(quarantine["reason"].to_pylist())),
        "num_truncated": pc.sum(embeddings["truncated"], min_count=0).as_py(),
        "num_tokens": pc.sum(embeddings["num_tokens"], min_count=0).as_py(),
    }
    return Attempt(shard.data, quarantined, fields)


def shard_bytes(embeddings: pa.Table, schema: pa.Schema) -> ShardBytes:
    """An embedding shard of `embeddings` (N rows, `vector` float32 (N, D)), cast to `schema`.

    Raises:
        VecmillError: the written file is not addressable as promised, which is a bug.
    """
    table = _as_schema(embeddings, schema)
    if table["vector"].nbytes > MAX_PAGE_BYTES:
        raise VecmillError(f"a shard of {table.num_rows} rows does not fit one page of vectors. This is a bug.")
    sink = pa.BufferOutputStream()
    flat_names = [name for name in schema.names if name not in _PLAIN_COLUMNS]
    pq.write_table(
        table,
        sink,
        row_group_size=max(1, table.num_rows),
        compression={_leaf(schema, name): "NONE" if name in _PLAIN_COLUMNS else _COMPRESSION for name in schema.names},
        use_dictionary=[name for name in flat_names if _dictionary_pays(schema.field(name).type)],
        # One page a chunk: the largest sizes pyarrow takes, so that nothing but the row group ends a page.
        data_page_size=MAX_PAGE_BYTES,
        max_rows_per_page=2**30,
        write_batch_size=2**20,
        # Statistics on vectors and hashes prune nothing and cost a pass over the bytes.
        write_statistics=flat_names,
    )
    data = sink.getvalue()
    return ShardBytes(data, table.num_rows, _vector_begin(data, schema, table.num_rows))


def quarantine_bytes(rows: pa.Table, *, with_text: bool) -> pa.Buffer:
    """A quarantine file of `rows` (QUARANTINE_SCHEMA); without the text column unless it is wanted."""
    sink = pa.BufferOutputStream()
    typed = rows.cast(QUARANTINE_SCHEMA)
    pq.write_table(typed if with_text else typed.drop_columns("text"), sink, compression=_COMPRESSION)
    return sink.getvalue()


def _as_schema(embeddings: pa.Table, schema: pa.Schema) -> pa.Table:
    table = embeddings.select(schema.names).combine_chunks()
    columns = []
    for field in schema:
        column = table.column(field.name)
        array = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        if field.name == "vector":
            # Cast the flat values: a cast of fixed-size lists copies them once more.
            values = pc.cast(array.flatten(), field.type.value_type)
            columns.append(pa.FixedSizeListArray.from_arrays(values, type=field.type))
        else:
            columns.append(array.cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _vector_begin(data: pa.Buffer, schema: pa.Schema, num_rows: int) -> int:
    if num_rows == 0:
        return 0
    vector_type = schema.field("vector").type
    row_group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    chunk = row_group.column(_PLAIN_COLUMNS.index("vector"))
    num_bytes = num_rows * vector_type.list_size * (vector_type.value_type.bit_width // 8)
    begin = int(chunk.data_page_offset + chunk.total_compressed_size - num_bytes)
    if (
        chunk.dictionary_page_offset is not None
        or chunk.compression != "UNCOMPRESSED"
        or begin < chunk.data_page_offset
    ):
        raise VecmillError(
            f"the vector column of a shard of {num_rows} rows is not plain and uncompressed. This is a bug."
        )
    return begin


def _leaf(schema: pa.Schema, name: str) -> str:
    """The Parquet path of a column, as per-column options want it."""
    return "vector.list.element" if name == "vector" else name


def _dictionary_pays(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))
