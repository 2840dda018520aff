from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.index.assign import read_near
from pipeline.index.build import assign_all, measure, merge_all
from pipeline.index.merge import Merged
from pipeline.index.panel import Truth, merge_nearest
from pipeline.index.prepare import Aim, Plan, prepare
from pipeline.index.recall import (
    Candidates,
    count_hits,
    gather,
    measure_part,
    probe_levels,
    read_groups,
    score_floors,
    tied_rows,
)
from pipeline.uris import Storage
from tests.snapshots import index_settings, make_snapshot
from tests.vectors import clustered

VECTORS = clustered(1500, 16, spread=0.9)
NO_ROWS = np.zeros(0, np.int64)


@pytest.fixture(autouse=True)
def _small_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.index.prepare.NUM_QUERIES", 40)
    monkeypatch.setattr("pipeline.index.recall._MAX_SCORES", 500)  # queries of a list go in steps


def built(
    folder: Path, codec: str = "sq8", lists_per_row: int = 1, first_ordinal: int = 3
) -> tuple[Plan, list[Merged], Truth]:
    storage = Storage(str(folder))
    snapshot = make_snapshot(storage, [VECTORS[:600], VECTORS[600:]], num_chunks=2, first_ordinal=first_ordinal)
    plan = prepare(Aim.of(snapshot, index_settings(codec=codec, nlist=25), lists_per_row=lists_per_row))
    records = assign_all(plan)
    parts = merge_all(plan, records)
    return plan, parts, merge_nearest(plan.work.panel, [read_near(plan.storage, record) for record in records])


@pytest.mark.parametrize(("codec", "lists_per_row"), [("sq8", 1), ("rabitq", 1), ("rabitq", 2)])
def test_recall_is_that_of_a_search_done_the_plain_way(codec: str, lists_per_row: int, tmp_path: Path) -> None:
    plan, parts, truth = built(tmp_path, codec, lists_per_row)
    measured = {(row.nprobe, row.rerank): row for row in measure(plan, parts, truth).table}
    quantizer, panel = plan.work.quantizer, plan.work.panel
    groups = [group for part in parts for group in read_groups(plan.storage, part, quantizer.codec.num_bytes)]
    starts = {shard.ordinal: begin for shard, begin in zip(plan.shards, (0, 600), strict=True)}
    stored = VECTORS.astype(np.float16).astype(np.float32)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    probes = quantizer.nearest_lists(panel.vectors, 25)

    def recall(query: int, nprobe: int, depth: int, k: int) -> float:
        vector = panel.vectors[query]
        best: dict[int, float] = {}
        for list_id, codes, addresses in groups:
            if list_id in probes[query, :nprobe]:
                scores = quantizer.score(vector[None], codes, list_id)[0]
                for address, score in zip(addresses.tolist(), scores.tolist(), strict=True):
                    best[address] = max(best.get(address, -9), score)
        exact = stored @ vector
        rows = {address: starts[address >> 32] + (address & 0xFFFFFFFF) for address in best}
        own = int(panel.doc_ids[query][1:])
        ranked = [address for address in sorted(best, key=lambda address: -best[address]) if rows[address] // 2 != own]
        if depth:
            ranked = sorted(ranked[: max(depth, k)], key=lambda address: -exact[rows[address]])
        exact[[2 * own, 2 * own + 1]] = -9
        true = set(np.argsort(-exact)[:k].tolist())
        return len({rows[address] for address in ranked[:k]} & true) / k

    published = np.flatnonzero(panel.is_published)
    for nprobe, depth in ((1, 0), (2, 20), (3, 0), (4, 100), (6, 40), (25, 0), (25, 20)):
        row = measured[nprobe, depth]
        for k, figure in ((10, row.recall_at_10), (100, row.recall_at_100)):
            expected = np.mean([recall(query, nprobe, depth, k) for query in published.tolist()])
            assert abs(figure - expected) < 0.003, (nprobe, depth, k)
    sizes = np.bincount([list_id for list_id, codes, _ in groups for _ in codes], minlength=25)
    expected_ratio = sizes[probes[:, :3]].sum(1).mean() / len(VECTORS)  # a row in two lists counts twice
    assert abs(measured[3, 0].read_ratio - expected_ratio) < 1e-5


@pytest.mark.parametrize("codec", ["float16", "sq8", "rabitq"])
def test_floors_spare_the_true_nearest_and_few_others(codec: str, tmp_path: Path) -> None:
    plan, parts, truth = built(tmp_path, codec)
    quantizer, queries = plan.work.quantizer, plan.work.panel.vectors
    floors = score_floors(plan.work, truth)
    num_true = num_above = 0
    for part in parts:
        for list_id, codes, addresses in read_groups(plan.storage, part, quantizer.codec.num_bytes):
            above = quantizer.score(queries, codes, list_id) > floors[:, None]
            num_above += int(above.sum())
            for query, true in enumerate(truth.addresses):
                found = np.isin(addresses, true[:100])
                assert above[query, found].all()
                num_true += int(found.sum())
    assert num_true == 100 * len(queries)
    assert num_above < (1.2 if codec != "rabitq" else 5) * num_true


def test_without_a_hundred_neighbours_there_is_no_floor(tmp_path: Path) -> None:
    plan, _, truth = built(tmp_path)
    few = Truth([rows[:99] for rows in truth.addresses], [scores[:99] for scores in truth.scores], truth.left_out)
    assert (score_floors(plan.work, few) == -np.inf).all()


def test_a_few_queries_do_not_tell_what_codes_err_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one product of rabitq that is exact is that of a vector with its own code."""
    monkeypatch.setattr("pipeline.index.prepare.NUM_QUERIES", 1)
    plan, _, truth = built(tmp_path, "rabitq")
    assert len(truth.scores[0]) >= 100
    assert (score_floors(plan.work, truth) == -np.inf).all()


def test_only_what_some_setting_would_use_is_kept() -> None:
    random = np.random.default_rng(0)
    num = 5000
    query, level = random.integers(3, size=num).astype(np.int32), random.integers(4, size=num).astype(np.int32)
    score = random.normal(size=num).astype(np.float32)
    found = Candidates(3, 4)
    for begin in range(0, num, 500):
        some = slice(begin, begin + 500)
        found.add(query[some], level[some], np.arange(num)[some], score[some])
        found.cut()
    assert len(found.query) < 3 * 4 * 200
    for one in range(3):
        for at in range(4):
            expected = np.flatnonzero((query == one) & (level <= at))
            expected = expected[np.argsort(-score[expected])][:200]
            mine = found.address[(found.query == one) & (found.level <= at)][:200]
            assert mine.tolist() == expected.tolist()
            assert found.floors[one, at] == score[expected[-1]]


def truth_of(addresses: list[int], scores: list[float]) -> Truth:
    return Truth([np.array(addresses)], [np.array(scores, np.float32)], [NO_ROWS])


def candidates_of(addresses: list[int]) -> Candidates:
    found = Candidates(1, 1)
    num = len(addresses)
    zeros = np.zeros(num, np.int32)
    found.add(zeros, zeros, np.array(addresses), -np.arange(num, dtype=np.float32))
    found.cut()
    return found


def test_a_row_that_ties_with_the_tenth_counts_as_found() -> None:
    truth = truth_of(list(range(20)), [0.9] * 8 + [0.5, 0.5, 0.5, 0.5 - 5e-7] + [0.4] * 8)
    hits = count_hits(candidates_of([0, 1, 2, 3, 4, 5, 6, 7, 11, 10]), [1], [0], truth)
    assert hits.at_10.tolist() == [[[1.0]]]
    hits = count_hits(candidates_of([0, 1, 2, 3, 4, 5, 6, 7, 12, 10]), [1], [0], truth)
    np.testing.assert_allclose(hits.at_10, 0.9)


def test_a_row_in_two_lists_is_one_answer() -> None:
    truth = truth_of(list(range(20)), np.linspace(0.9, 0.1, 20).tolist())
    doubled = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, *range(50, 60)]
    assert count_hits(candidates_of(doubled), [1], [0], truth).at_10.tolist() == [[[0.5]]]


def test_with_fewer_rows_than_k_all_of_them_are_recall_one() -> None:
    assert count_hits(candidates_of([4, 3]), [1], [0], truth_of([3, 4], [0.9, 0.8])).at_10.tolist() == [[[1.0]]]
    assert count_hits(candidates_of([]), [1], [0], truth_of([], [])).at_10.tolist() == [[[1.0]]]


def test_ties_that_end_outside_the_truth_are_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = np.repeat(clustered(1, 16), 1000, 0)
    snapshot = make_snapshot(Storage(str(tmp_path)), [np.concatenate([same, clustered(50, 16)])])
    (shard,) = prepare(Aim.of(snapshot, index_settings())).shards
    start = shard.ordinal << 32
    truth = Truth([start + np.arange(400)], [np.ones(400, np.float32)], [NO_ROWS])
    found = candidates_of([start + row for row in (900, 901, 5, 1010)])
    extra = tied_rows(snapshot.storage, [shard], same[:1], truth, found)
    assert extra is not None
    np.testing.assert_allclose(count_hits(found, [1], [0], truth, extra).at_10, 0.3)
    no_ties = Truth([start + np.arange(400)], [np.linspace(1, 0, 400).astype(np.float32)], [NO_ROWS])
    assert tied_rows(snapshot.storage, [shard], same[:1], no_ties, found) is None


@pytest.mark.parametrize("which", ["codes", "addresses"])
@pytest.mark.parametrize("damage", ["gone", "cut", "changed", "foreign"])
def test_a_damaged_part_is_named_and_never_measured(which: str, damage: str, tmp_path: Path) -> None:
    plan, parts, _ = built(tmp_path)
    name = getattr(parts[0].ref, which).file
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "cut":
        path.write_bytes(data[:300])
    elif damage == "changed":
        row = parts[0].directory.to_pylist()[3]
        data[row["code_begin" if which == "codes" else "address_begin"] + 5] ^= 1
        path.write_bytes(data)
    elif damage == "foreign":
        _, others, _ = built(tmp_path / "other", "rabitq", first_ordinal=4)
        path.write_bytes((tmp_path / "other" / getattr(others[0].ref, which).file).read_bytes())
    with pytest.raises(StoreError, match=name):
        measure_part(plan.storage, plan.work, plan.levels, (NO_ROWS, NO_ROWS), None, parts[0])


def test_a_part_is_read_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, parts, _ = built(tmp_path)
    num_bytes = plan.work.quantizer.codec.num_bytes
    whole = [
        (list_id, codes.tobytes(), rows.tolist())
        for list_id, codes, rows in read_groups(plan.storage, parts[0], num_bytes)
    ]
    monkeypatch.setattr("pipeline.index.recall._WINDOW_BYTES", 5000)
    read: list[int] = []
    real = Storage.read_range

    def spy(self: Storage, name: str, begin: int, end: int) -> bytes:
        read.append(end - begin)
        return real(self, name, begin, end)

    monkeypatch.setattr(Storage, "read_range", spy)
    again = [
        (list_id, codes.tobytes(), rows.tolist())
        for list_id, codes, rows in read_groups(plan.storage, parts[0], num_bytes)
    ]
    assert again == whole
    assert len(read) > 5
    assert max(read) < 2**17


def test_numbers_of_probes_are_dense_and_end_at_a_third() -> None:
    assert probe_levels(200, only_all=False, up_to_all=False) == (
        *(1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64),
        70,
    )
    assert probe_levels(30, only_all=False, up_to_all=True) == (*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 30)
    assert probe_levels(30, only_all=True, up_to_all=True) == (30,)
    assert probe_levels(1, only_all=False, up_to_all=False) == (1,)
    assert probe_levels(2, only_all=False, up_to_all=True) == (1, 2)


def test_candidates_of_several_parts_are_those_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, parts, truth = built(tmp_path / "one")
    one = measure(plan, parts, truth)
    monkeypatch.setattr("pipeline.index.merge._MIN_PART_BYTES", 20_000)
    monkeypatch.setattr("pipeline.index.merge._MAX_PART_BYTES", 20_000)
    plan, parts, truth = built(tmp_path / "many")
    assert len(parts) > 2
    assert measure(plan, parts, truth) == one
    tables = [measure_part(plan.storage, plan.work, plan.levels, (NO_ROWS, NO_ROWS), None, part) for part in parts]
    assert len(gather(tables, 40, len(plan.levels)).query) <= sum(table.num_rows for table in tables)
