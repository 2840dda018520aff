"""Embedding shards as the index build reads them: vectors by range, other columns through Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.index.codecs import Floats
from pipeline.snapshots.reader import Snapshot
from pipeline.uris import Storage

Rows = npt.NDArray[np.int64]

RESTORE = "put it back, or embed again into another store"
"""The way out of an embedding shard that is damaged or missing."""


@dataclass(frozen=True, slots=True)
class Shard:
    """An embedding shard that has rows, and how its vectors lie in it."""

    ordinal: int
    file: str
    size: int  # of the file, bytes
    num_rows: int
    vector_begin: int
    dim: int
    dtype: Literal["float16", "float32"]

    @property
    def row_bytes(self) -> int:
        """Of one vector."""
        return self.dim * np.dtype(self.dtype).itemsize


def shards_of(snapshot: Snapshot) -> list[Shard]:
    """The shards of a snapshot that have rows, in its order."""
    return [shard for shard in shards_in(snapshot.shards, snapshot.dim, snapshot.dtype) if shard.num_rows]


def shards_in(table: pa.Table, dim: int, dtype: Literal["float16", "float32"]) -> list[Shard]:
    """All that a snapshot's table (SHARDS_SCHEMA) lists, in its order."""
    rows = table.select(["ordinal", "file", "size", "num_rows", "vector_begin"]).to_pylist()
    return [Shard(**row, dim=dim, dtype=dtype) for row in rows]


def row_addresses(shard: Shard, rows: Rows) -> Rows:
    """ordinal << 32 | row."""
    return rows + (shard.ordinal << 32)


def read_vectors(storage: Storage, shard: Shard, begin: int, end: int) -> Floats:
    """As `read_stored`, as float32."""
    return read_stored(storage, shard, begin, end).astype(np.float32)


def read_stored(storage: Storage, shard: Shard, begin: int, end: int) -> npt.NDArray[np.float16] | Floats:
    """Vectors (N, D) of rows [begin, end) as they are stored. One range read.

    Raises:
        StoreError: the shard is missing or ends early.
    """
    first = shard.vector_begin + begin * shard.row_bytes
    num_bytes = (end - begin) * shard.row_bytes
    with present(storage, shard):
        data = storage.read_range(shard.file, first, first + num_bytes)
    if len(data) != num_bytes:
        raise StoreError(
            f"embedding shard {storage.full_uri(shard.file)} ends early: {len(data)} of {num_bytes} bytes of vectors; "
            f"it was damaged; {RESTORE}"
        )
    return np.frombuffer(data, np.dtype(shard.dtype).newbyteorder("<")).reshape(-1, shard.dim)


def read_columns(storage: Storage, shard: Shard, names: Sequence[str]) -> pa.Table:
    """Other columns of all its rows, in the order of `names`.

    Raises:
        StoreError: the shard is missing or damaged.
    """
    try:
        with present(storage, shard), storage.open(shard.file) as source:
            return pq.ParquetFile(source, pre_buffer=True).read(columns=list(names)).select(list(names))
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:100]
        raise StoreError(f"embedding shard {storage.full_uri(shard.file)} was damaged ({reason}); {RESTORE}") from None


def plain(field: pa.Field) -> pa.Field:
    """A dictionary-encoded column as what it stands for: each shard, and each batch, has a dictionary of its own."""
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field


def unit(vectors: Floats) -> Floats:
    """(N, D) at unit norm: float16 keeps it only within 1e-3."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return np.asarray(vectors / np.maximum(norms, np.float32(1e-12))[:, None], np.float32)


@contextmanager
def present(storage: Storage, shard: Shard) -> Iterator[None]:
    """A missing shard as a StoreError."""
    try:
        yield
    except FileNotFoundError:
        raise StoreError(
            f"embedding shard {storage.full_uri(shard.file)} is missing from the store, though the snapshot holds it; "
            f"{RESTORE}"
        ) from None
