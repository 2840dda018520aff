from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.index.sample import join_samples, plan_sample, read_rows, read_sample
from pipeline.index.shards import Shard, shards_of
from pipeline.uris import Storage
from tests.snapshots import make_snapshot
from tests.vectors import clustered


def shards_like(*sizes: int) -> list[Shard]:
    return [Shard(5 + index, f"s{index}", 16 * size, size, 100, 8, "float16") for index, size in enumerate(sizes)]


def test_rows_come_from_all_shards_by_their_size_and_each_once() -> None:
    shards = shards_like(10_000, 1_000, 30_000, 3)
    drawn = {shard.ordinal: rows for shard, rows in plan_sample(shards, 4_000, seed=1)}
    assert 4_000 - 16 < sum(map(len, drawn.values())) < 4_000 + 16
    for shard in shards[:3]:
        rows = drawn[shard.ordinal]
        assert (np.diff(rows) > 0).all()
        assert rows[0] >= 0
        assert rows[-1] < shard.num_rows
        assert abs(len(rows) / 4_000 - shard.num_rows / 41_003) < 0.03
        assert abs(rows.mean() / shard.num_rows - 0.5) < 0.1, "not the first ones"


def test_the_same_seed_draws_the_same_rows_and_another_others() -> None:
    def rows(seed: int) -> list[list[int]]:
        return [found.tolist() for _, found in plan_sample(shards_like(5_000, 7_000), 1_000, seed)]

    assert rows(1) == rows(1) != rows(2)


def test_a_small_corpus_is_drawn_whole() -> None:
    drawn = plan_sample(shards_like(5, 0, 40), 16_384, seed=0)
    assert [(shard.file, rows.tolist()) for shard, rows in drawn] == [("s0", list(range(5))), ("s2", list(range(40)))]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_vectors_are_those_of_the_rows_at_unit_norm(dtype: str, tmp_path: Path) -> None:
    vectors = clustered(900, 8)
    snapshot = make_snapshot(Storage(str(tmp_path)), [vectors[:500], vectors[500:]], dtype=dtype)
    shards = shards_of(snapshot)
    drawn = plan_sample(shards, 200, seed=0)
    num = sum(len(rows) for _, rows in drawn)
    sample = join_samples((read_sample(snapshot.storage, *one) for one in drawn), num, 8)
    starts = {shards[0].ordinal: 0, shards[1].ordinal: 500}
    rows = [starts[address >> 32] + (address & 0xFFFFFFFF) for address in sample.addresses.tolist()]
    np.testing.assert_allclose(sample.vectors, vectors[rows], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(sample.vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(read_rows(snapshot.storage, shards, sample.addresses), sample.vectors)


def test_only_the_runs_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.index.sample._MAX_GAP_BYTES", 16 * 8 * 2)
    storage = Storage(str(tmp_path))
    (shard,) = shards_of(make_snapshot(storage, [clustered(4_000, 8)]))
    read: list[int] = []
    real = Storage.read_range

    def spy(self: Storage, name: str, begin: int, end: int) -> bytes:
        read.append(end - begin)
        return real(self, name, begin, end)

    monkeypatch.setattr(Storage, "read_range", spy)
    ((_, rows),) = plan_sample([shard], 160, seed=3)
    read_sample(storage, shard, rows)
    assert len(read) > 3
    assert sum(read) <= 2 * 160 * shard.row_bytes, "gaps are read only where a request would cost more"


def test_a_shard_that_is_gone_or_cut_is_named(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    (shard,) = shards_of(make_snapshot(storage, [clustered(50, 8)]))
    path = tmp_path / shard.file
    path.write_bytes(path.read_bytes()[: shard.vector_begin + 20])
    with pytest.raises(StoreError, match=rf"{shard.file} ends early: 20 of 800 bytes"):
        read_sample(storage, shard, np.arange(50))
    path.unlink()
    with pytest.raises(StoreError, match=rf"{shard.file} is missing from the store"):
        read_sample(storage, shard, np.arange(50))
