from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import StorageFault
from pipeline.index.assign import Work, assign, bucket_bounds, finished, group_shards, read_near
from pipeline.index.nearest import from_table
from pipeline.index.prepare import Aim, Plan, prepare
from pipeline.index.shards import Shard
from pipeline.uris import Storage
from tests.snapshots import index_settings, make_snapshot
from tests.vectors import clustered

VECTORS = clustered(900, 16)


def plan_of(
    folder: Path, codec: str = "sq8", *, num_chunks: int = 1, lists_per_row: int = 1, dtype: str = "float16"
) -> Plan:
    snapshot = make_snapshot(Storage(str(folder)), [VECTORS[:400], VECTORS[400:]], num_chunks=num_chunks, dtype=dtype)
    return prepare(Aim.of(snapshot, index_settings(codec=codec, nlist=12), lists_per_row=lists_per_row))


def rows_of(plan: Plan, work: Work, name: str, record_buckets: list[tuple[int, int]]) -> pa.Table:
    data = plan.storage.read(name)
    batches = [
        pa.ipc.read_record_batch(pa.py_buffer(data[begin:end]), work.rows_schema)
        for begin, end in record_buckets
        if end > begin
    ]
    return pa.Table.from_batches(batches)


@pytest.mark.parametrize("codec", ["float16", "sq8", "rabitq"])
def test_rows_lie_by_list_with_their_code_address_and_columns(codec: str, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, codec)
    work = plan.work
    record = assign(plan.storage, work, plan.shards)
    bounds = bucket_bounds(work.quantizer.nlist)
    assert len(record.buckets) == len(bounds) - 1
    rows = rows_of(plan, work, record.file, [(one.begin, one.end) for one in record.buckets])
    assert rows.num_rows == record.num_rows == 900
    lists = rows["list_id"].to_numpy()
    assert (np.diff(lists) >= 0).all()
    for bucket, one in enumerate(record.buckets):
        assert one.num_rows == ((lists >= bounds[bucket]) & (lists < bounds[bucket + 1])).sum()
    starts = {shard.ordinal: begin for shard, begin in zip(plan.shards, (0, 400), strict=True)}
    addresses = rows["row_address"].to_pylist()
    numbers = [starts[address >> 32] + (address & 0xFFFFFFFF) for address in addresses]
    assert sorted(numbers) == list(range(900))
    assert rows["doc_id"].to_pylist() == [f"d{row}" for row in numbers]
    assert rows["year"].to_pylist() == [2000 + row % 20 for row in numbers]
    assert (lists == work.quantizer.nearest_lists(VECTORS[numbers], 1)[:, 0]).mean() > 0.99
    codes = np.frombuffer(b"".join(rows["code"].to_pylist()), np.uint8).reshape(900, -1)
    decoded = work.quantizer.decode(codes, lists)
    assert (np.einsum("nd,nd->n", decoded, VECTORS[numbers]) > 0.97).all()
    if codec == "float16":
        assert (codes.view("<f2") == VECTORS[numbers].astype(np.float16)).all(), "to the bit as stored"


def test_the_panel_finds_its_nearest_without_its_own_document(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, num_chunks=3, dtype="float32")
    panel = plan.work.panel
    nearest, own = from_table(read_near(plan.storage, assign(plan.storage, plan.work, plan.shards)))
    starts = {shard.ordinal: begin for shard, begin in zip(plan.shards, (0, 400), strict=True)}

    def numbers(addresses: list[int]) -> list[int]:
        return [starts[address >> 32] + (address & 0xFFFFFFFF) for address in addresses]

    for query in range(0, len(panel), 97):
        document = int(panel.doc_ids[query][1:])
        siblings = [3 * document, 3 * document + 1, 3 * document + 2]
        assert sorted(numbers(own.address[own.query == query].tolist())) == siblings
        exact = VECTORS @ panel.vectors[query]
        exact[siblings] = -np.inf
        mine = numbers(nearest.address[nearest.query == query].tolist())
        assert len(mine) == 400
        np.testing.assert_allclose(exact[mine], np.sort(exact)[::-1][:400], atol=1e-5)


def test_a_row_can_stand_in_its_two_nearest_lists(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "rabitq", lists_per_row=2)
    record = assign(plan.storage, plan.work, plan.shards)
    rows = rows_of(plan, plan.work, record.file, [(one.begin, one.end) for one in record.buckets])
    assert (rows.num_rows, record.num_rows, record.lists_per_row) == (1800, 900, 2)
    pairs = set(zip(rows["row_address"].to_pylist(), rows["list_id"].to_pylist(), strict=True))
    assert len(pairs) == 1800


def test_a_record_is_put_after_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path)
    real = Storage.put

    def fail(self: Storage, name: str, data: bytes) -> None:
        if name.endswith("-near.parquet"):
            raise StorageFault("disk full")
        real(self, name, data)

    monkeypatch.setattr(Storage, "put", fail)
    with pytest.raises(StorageFault):
        assign(plan.storage, plan.work, plan.shards)
    groups = group_shards(plan.shards)
    assert finished(plan.storage, plan.work, groups) == {}
    monkeypatch.undo()
    one, other = (assign(plan.storage, plan.work, plan.shards) for _ in range(2))
    assert one.file != other.file, "attempts have names of their own"
    chosen = finished(plan.storage, plan.work, groups)
    assert chosen == {0: min(one, other, key=lambda record: record.attempt)}


def test_what_another_quantizer_made_is_not_taken_over(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assign(plan.storage, plan.work, plan.shards)
    other = plan_of(tmp_path / "other", "rabitq").work
    mixed = Work(plan.work.index_id, other.quantizer, plan.work.panel, plan.work.keep)
    assert finished(plan.storage, mixed, group_shards(plan.shards)) == {}


def test_shards_are_grouped_by_bytes_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.index.assign.GROUP_BYTES", 100 * 16)
    sizes = enumerate([60, 30, 50, 200, 10])
    shards = [Shard(number, f"s{number}", 16 * size, size, 0, 8, "float16") for number, size in sizes]
    groups = [[shard.ordinal for shard in group] for group in group_shards(shards[::-1])]
    assert groups == [[0, 1], [2], [3], [4]]


def test_buckets_are_all_lists_and_never_too_many_in_one() -> None:
    for nlist in (1, 5, 128, 1000, 300_000):
        bounds = bucket_bounds(nlist)
        assert (bounds[0], bounds[-1]) == (0, nlist)
        assert 1 <= np.diff(bounds).min() <= np.diff(bounds).max() <= 512
