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


@dataclass(frozen=True, slots=True)
class Shard:
    """An embedding shard that has rows, and how its vectors lie in it."""

    ordinal: int
    file: str
    num_rows: int
    vector_begin: int
    dim: int
    dtype: Literal["float16", "float32"]

    @property
    def vector_bytes(self) -> int:
        """Of all its vectors."""
        return self.num_rows * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Of one vector."""
        return self.dim * np.dtype(self.dtype).itemsize


def shards_of(snapshot: Snapshot) -> list[Shard]:
    """The shards of a snapshot that have rows, in its order."""
    table = snapshot.shards.select(["ordinal", "file", "num_rows", "vector_begin"])
    filled = [row for row in table.to_pylist() if row["num_rows"]]
    return [Shard(**row, dim=snapshot.dim, dtype=snapshot.dtype) for row in filled]


def row_addresses(shard: Shard, rows: Rows) -> Rows:
    """ordinal << 32 | row."""
    return rows + (shard.ordinal << 32)


def read_vectors(storage: Storage, shard: Shard, begin: int, end: int) -> Floats:
    """Vectors of rows [begin, end) as they are stored, as float32 (N, D). One range read.

    Raises:
        StoreError: the shard is missing or ends early.
    """
    first = shard.vector_begin + begin * shard.row_bytes
    num_bytes = (end - begin) * shard.row_bytes
    with present(shard):
        data = storage.read_range(shard.file, first, first + num_bytes)
    if len(data) != num_bytes:
        raise StoreError(
            f"embedding shard {shard.file} ends early: {len(data)} of {num_bytes} bytes of vectors; it was damaged"
        )
    return np.frombuffer(data, np.dtype(shard.dtype).newbyteorder("<")).reshape(-1, shard.dim).astype(np.float32)


def read_columns(storage: Storage, shard: Shard, names: Sequence[str]) -> pa.Table:
    """Other columns of all its rows.

    Raises:
        StoreError: the shard is missing or damaged.
    """
    try:
        with present(shard), storage.open(shard.file) as source:
            return pq.ParquetFile(source, pre_buffer=True).read(columns=list(names))
    except pa.ArrowInvalid as error:
        raise StoreError(f"embedding shard {shard.file} was damaged ({' '.join(str(error).split())[:100]})") from None


def unit(vectors: Floats) -> Floats:
    """(N, D) at unit norm: float16 keeps it only within 1e-3."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return np.asarray(vectors / np.maximum(norms, np.float32(1e-12))[:, None], np.float32)


@contextmanager
def present(shard: Shard) -> Iterator[None]:
    """A missing shard as a StoreError."""
    try:
        yield
    except FileNotFoundError:
        raise StoreError(
            f"embedding shard {shard.file} is missing from the store, though the snapshot holds it; put it back, or "
            "embed again into another store"
        ) from None
