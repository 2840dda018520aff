"""Snapshots of given vectors, for tests of the index and of search: real shards, tables and manifest, no encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config import Index
from pipeline.index.description import FileRef
from pipeline.schema import embedding_schema
from pipeline.snapshots.manifest import SHARDS_SCHEMA, Accounting, IndexRef, Manifest, put_table
from pipeline.snapshots.reader import Snapshot
from pipeline.snapshots.records import checksum
from pipeline.uris import Storage
from pipeline.write import shard_bytes
from tests.stores import ENCODER_FP, SHARD_FP

KEEP = {"lang": "string", "year": "int32"}

Vectors = npt.NDArray[np.float32]


def make_snapshot(
    storage: Storage,
    shards: Sequence[Vectors],
    *,
    dtype: str = "float16",
    num_chunks: int = 1,
    texts: bool = False,
    first_ordinal: int = 3,
    lang: pa.DataType | None = None,
) -> Snapshot:
    """A snapshot of the documents `d0`, `d1`, ... in order, each of `num_chunks` rows, with the kept columns KEEP.

    Ordinals begin at `first_ordinal`, and skip one between shards: they are no positions.
    """
    dim, begin, rows = shards[0].shape[1], 0, []
    keep = pa.schema([("lang", lang or pa.string()), ("year", pa.int32())])
    schema = embedding_schema(dim, dtype, keep, keep_text=texts)
    for index, vectors in enumerate(shards):
        shard = shard_bytes(_rows(vectors, begin, num_chunks, schema), schema)
        name = f"embeddings/{ENCODER_FP}/{SHARD_FP}/{index:02d}.parquet"
        storage.put(name, shard.data)
        rows.append(
            {
                "ordinal": first_ordinal + 2 * index,
                "file": name,
                "size": shard.data.size,
                "checksum": checksum(shard.data),
                "num_rows": shard.num_rows,
                "vector_begin": shard.vector_begin,
                "compute": "float32",
                "num_documents": None if num_chunks == 1 else len(vectors) // num_chunks,
            }
        )
        begin += len(vectors)
    table = put_table(storage, "snapshots/1.shards.parquet", pa.Table.from_pylist(rows, SHARDS_SCHEMA))
    counts = dict.fromkeys(Accounting.model_fields, 0) | {"documents_in": begin, "embedded": begin, "chunks": begin}
    manifest = Manifest(
        snapshot_id=1,
        parent_id=None,
        kind="embed",
        commit_id="c",
        run_id="r",
        created_at="2026-11-23T00:00:00Z",
        encoder={"model": "tiny"},
        encoder_fp=ENCODER_FP,
        shard_fp=SHARD_FP,
        keep=KEEP,
        limit=None,
        next_ordinal=first_ordinal + 2 * len(shards),
        shards=table,
        splits=table,
        index=None,
        victims=None,
        accounting=Accounting(**counts),
        versions={},
        config={},
    )
    return Snapshot(storage, manifest)


def with_index(snapshot: Snapshot, file: FileRef) -> Snapshot:
    """The snapshot with an index, as its manifest would name it."""
    ref = IndexRef(file=file.file, checksum=file.checksum, snapshot_id=snapshot.manifest.snapshot_id)
    return Snapshot(snapshot.storage, snapshot.manifest.model_copy(update={"index": ref}))


def index_settings(**changes: Any) -> Index:
    """The config's section."""
    return Index.model_validate(changes)


def _rows(vectors: Vectors, begin: int, num_chunks: int, schema: pa.Schema) -> pa.Table:
    num, dim = vectors.shape
    numbers = range(begin, begin + num)
    hashes = [hashlib.blake2b(b"%d" % row, digest_size=16).digest() for row in numbers]
    item = pa.list_(pa.field("element", pa.float32(), nullable=False), dim)
    columns: dict[str, Any] = {
        "content_hash": hashes,
        "row_hash": hashes,
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=item),
        "doc_id": [f"d{row // num_chunks}" for row in numbers],
        "chunk_index": [row % num_chunks for row in numbers],
        "num_chunks": [num_chunks] * num,
        "char_begin": [0] * num,
        "char_end": [1] * num,
        "num_tokens": [1] * num,
        "truncated": [False] * num,
        "lang": [("de", "en", None)[row % 3] for row in numbers],
        "year": [2000 + row % 20 for row in numbers],
        "text": [" ".join(f"word{row}-{place}" for place in range(9)) for row in numbers],
    }
    arrays = {
        name: columns[name] if name == "vector" else pa.array(columns[name], schema.field(name).type)
        for name in schema.names
    }
    return pa.table(arrays)
