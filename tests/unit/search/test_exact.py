from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.search.exact
from pipeline.errors import StoreError, UsageError
from pipeline.search import exact_search
from pipeline.snapshots.reader import Snapshot
from pipeline.uris import Storage
from tests.snapshots import make_snapshot

DIM = 8


def unit(num: int, seed: int) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(num, DIM)).astype(np.float32)
    return cast("npt.NDArray[np.float32]", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def snapshot_in(folder: Path, shards: list[npt.NDArray[np.float32]], dtype: str = "float32") -> Snapshot:
    return make_snapshot(Storage(str(folder)), shards, dtype=dtype)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6), k=st.integers(1, 40), max_scores=st.integers(1, 60))
def test_the_nearest_are_those_of_brute_force_whatever_the_blocks(
    sizes: list[int], k: int, max_scores: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shards = [unit(size, seed) for seed, size in enumerate(sizes)]
    everything, queries = np.concatenate(shards), unit(3, 99)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.search.exact, "_MAX_SCORES", max_scores)
        found = exact_search(snapshot_in(tmp_path_factory.mktemp("s"), shards), queries, k)
    scores = queries @ everything.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert found.doc_ids == [[f"d{index}" for index in row] for row in order]
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, order, 1), atol=1e-5)


def test_scores_of_float16_are_cosines(tmp_path: Path) -> None:
    vectors = unit(50, 1)
    found = exact_search(snapshot_in(tmp_path, [vectors], "float16"), vectors[:5], 1)
    assert found.doc_ids == [[f"d{row}"] for row in range(5)]
    assert np.all(found.scores <= 1)
    np.testing.assert_allclose(found.scores, 1, atol=1e-6)


def test_kept_columns_with_dictionaries_of_their_own_are_answered_plain(tmp_path: Path) -> None:
    shards = [unit(20, 1), unit(20, 2)]
    lang = pa.dictionary(pa.int32(), pa.string())
    snapshot = make_snapshot(Storage(str(tmp_path)), shards, lang=lang)
    found = exact_search(snapshot, unit(3, 3), 40, "lang = 'de'")
    assert found.rows.schema.field("lang").type == pa.string()
    assert {columns["lang"] for row in found.kept for columns in row} == {"de"}


def test_a_damaged_shard_is_named_never_answered_from(tmp_path: Path) -> None:
    snapshot = snapshot_in(tmp_path, [unit(20, 1)])
    path = tmp_path / snapshot.shards["file"][0].as_py()
    assert snapshot.dim == DIM
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(StoreError, match="00.parquet ends early"):
        exact_search(snapshot, unit(1, 2), 3)


def test_a_missing_shard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = snapshot_in(tmp_path, [unit(20, 1), unit(20, 2)])
    path = tmp_path / snapshot.shards["file"][1].as_py()
    path.rename(tmp_path / "away")
    with pytest.raises(StoreError, match=f"{tmp_path}/.*01.parquet is missing from the store"):
        exact_search(snapshot, unit(1, 2), 3)

    def then_gone(storage: Storage, name: str) -> None:  # between the vectors and the ids
        raise FileNotFoundError(f"not found: {name}")

    (tmp_path / "away").rename(path)
    monkeypatch.setattr(Storage, "open", then_gone)
    with pytest.raises(StoreError, match="parquet is missing"):
        exact_search(snapshot, unit(1, 2), 3)


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [(unit(1, 2), 0, "k must"), (np.ones((1, 3), np.float32), 1, "dim 8"), (2 * unit(1, 2), 1, "norm 2")],
)
def test_what_cannot_be_searched_is_refused(
    queries: npt.NDArray[np.float32], k: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        exact_search(snapshot_in(tmp_path, [unit(20, 1)]), queries, k)
