"""A small store of clustered vectors with an index, for tests of search, and what its answers are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.index.build import build
from pipeline.index.files import file_ref, table_bytes
from pipeline.index.layout import index_folder
from pipeline.search import SearchableSnapshot
from pipeline.snapshots.manifest import manifest_name
from pipeline.snapshots.store import open_store
from pipeline.uris import Storage
from tests.snapshots import index_settings, make_snapshot, with_index
from tests.vectors import clustered

Vectors = npt.NDArray[np.float32]

NUM, NLIST = 1500, 20
VECTORS = clustered(NUM, 16)
QUERIES = clustered(40, 16, seed=7)


def make_indexed(
    storage: Storage | Path,
    codec: str = "sq8",
    vectors: Vectors = VECTORS,
    *,
    lists_per_row: int = 1,
    nlist: Any = NLIST,
    recall_target: float = 0.95,
    **options: Any,
) -> SearchableSnapshot:
    """A published store of the vectors in two shards, and its index; kept columns are lang and year.

    Args:
        storage: an empty place.
        codec: of the index.
        vectors: (N, D), rows d0, d1, ...
        lists_per_row: of the index.
        nlist: of the index.
        recall_target: of the index.
        options: of `make_snapshot`.
    """
    if isinstance(storage, Path):
        storage = Storage(str(storage))
    open_store(storage, "/corpus", create=True)
    half = 2 * len(vectors) // 3
    snapshot = make_snapshot(storage, [vectors[:half], vectors[half:]], **options)
    settings = index_settings(codec=codec, nlist=nlist, recall_target=recall_target)
    built = build(snapshot, settings, lists_per_row=lists_per_row)
    found = with_index(snapshot, built.file)
    storage.put(manifest_name(1), found.manifest.to_json())
    return SearchableSnapshot(found.storage, found.manifest)


def stored(vectors: Vectors = VECTORS) -> Vectors:
    """As unit vectors of what a float16 store holds of them."""
    rows = vectors.astype(np.float16).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def brute_force(queries: Vectors, k: int, rows: npt.NDArray[np.int64] | None = None) -> list[list[str]]:
    """Doc ids of the exact nearest among some rows of VECTORS."""
    rows = np.arange(NUM) if rows is None else rows
    order = np.argsort(-(queries @ stored()[rows].T), axis=1, kind="stable")[:, :k]
    return [[f"d{rows[row]}" for row in some] for some in order]


def recall(found: list[list[str]], expected: list[list[str]]) -> float:
    """Share of the expected that were found."""
    pairs = zip(found, expected, strict=True)
    return float(np.mean([len(set(some) & set(others)) / len(others) for some, others in pairs]))


def rewritten(snapshot: SearchableSnapshot, *, deleted: pa.Table | None = None, **changes: Any) -> SearchableSnapshot:
    """The snapshot with another index.json beside the one that is there, and maybe another deleted.parquet."""
    description, storage = snapshot.index.description, snapshot.storage
    folder = index_folder(description.index_id)
    if deleted is not None:
        data = table_bytes(deleted)
        storage.put(f"{folder}/deleted-2.parquet", data)
        changes["deleted"] = file_ref(f"{folder}/deleted-2.parquet", data)
    data = description.model_copy(update=changes).to_json()
    storage.put(f"{folder}/index-2.json", data)
    found = with_index(snapshot, file_ref(f"{folder}/index-2.json", data))
    return SearchableSnapshot(found.storage, found.manifest)
