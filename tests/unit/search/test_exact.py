from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.search.exact
from pipeline.errors import StoreError, UsageError
from pipeline.schema import embedding_schema
from pipeline.search import exact_search
from pipeline.snapshots.reader import Snapshot
from pipeline.uris import Storage
from pipeline.write import shard_bytes

DIM = 8


def unit(num: int, seed: int) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(num, DIM)).astype(np.float32)
    return cast("npt.NDArray[np.float32]", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def make_snapshot(folder: Path, shards: list[npt.NDArray[np.float32]], dtype: str = "float32") -> Snapshot:
    """What a search needs of a snapshot, over real shards."""
    storage, rows, number = Storage(str(folder)), [], 0
    schema = embedding_schema(DIM, dtype, pa.schema([]), keep_text=False)
    for index, vectors in enumerate(shards):
        num = len(vectors)
        columns: dict[str, Any] = {name: [b"0" * 16] * num for name in ("content_hash", "row_hash")}
        item = pa.list_(pa.field("element", pa.float32(), nullable=False), DIM)
        columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=item)
        columns["doc_id"] = pa.array([f"d{number + row}" for row in range(num)], pa.string())
        columns |= {name: pa.array([0] * num, pa.int32()) for name in ("chunk_index", "num_chunks", "num_tokens")}
        columns |= {name: pa.array([0] * num, pa.int64()) for name in ("char_begin", "char_end")}
        columns["truncated"] = pa.array([False] * num, pa.bool_())
        typed = {
            name: pa.array(columns[name], schema.field(name).type) if name.endswith("hash") else columns[name]
            for name in schema.names
        }
        shard = shard_bytes(pa.table(typed), schema)
        storage.put(f"s{index}", shard.data)
        rows.append({"file": f"s{index}", "num_rows": num, "vector_begin": shard.vector_begin})
        number += num
    table = pa.Table.from_pylist(rows)
    return cast(Snapshot, SimpleNamespace(storage=storage, shards=table, dim=DIM, dtype=dtype))


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6), k=st.integers(1, 40), max_scores=st.integers(1, 60))
def test_the_nearest_are_those_of_brute_force_whatever_the_blocks(
    sizes: list[int], k: int, max_scores: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shards = [unit(size, seed) for seed, size in enumerate(sizes)]
    everything, queries = np.concatenate(shards), unit(3, 99)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.search.exact, "_MAX_SCORES", max_scores)
        found = exact_search(make_snapshot(tmp_path_factory.mktemp("s"), shards), queries, k)
    scores = queries @ everything.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert found.doc_ids == [[f"d{index}" for index in row] for row in order]
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, order, 1), atol=1e-5)


def test_scores_of_float16_are_cosines(tmp_path: Path) -> None:
    vectors = unit(50, 1)
    found = exact_search(make_snapshot(tmp_path, [vectors], "float16"), vectors[:5], 1)
    assert found.doc_ids == [[f"d{row}"] for row in range(5)]
    assert np.all(found.scores <= 1)
    np.testing.assert_allclose(found.scores, 1, atol=1e-6)


def test_a_damaged_shard_is_named_never_answered_from(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path, [unit(20, 1)])
    (tmp_path / "s0").write_bytes((tmp_path / "s0").read_bytes()[:200])
    with pytest.raises(StoreError, match="s0 ends early"):
        exact_search(snapshot, unit(1, 2), 3)


def test_a_missing_shard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = make_snapshot(tmp_path, [unit(20, 1), unit(20, 2)])
    (tmp_path / "s1").rename(tmp_path / "away")
    with pytest.raises(StoreError, match=f"shard s1 is missing from the store {tmp_path}"):
        exact_search(snapshot, unit(1, 2), 3)

    def then_gone(storage: Storage, name: str) -> None:  # between the vectors and the ids
        raise FileNotFoundError(f"not found: {name}")

    (tmp_path / "away").rename(tmp_path / "s1")
    monkeypatch.setattr(Storage, "open", then_gone)
    with pytest.raises(StoreError, match="shard s. is missing"):
        exact_search(snapshot, unit(1, 2), 3)


@pytest.mark.parametrize(
    ("queries", "k", "message"), [(unit(1, 2), 0, "k must"), (np.ones((1, 3), np.float32), 1, "dim 8")]
)
def test_what_cannot_be_searched_is_refused(
    queries: npt.NDArray[np.float32], k: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        exact_search(make_snapshot(tmp_path, [unit(20, 1)]), queries, k)
