from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.index.merge
from pipeline.errors import StoreError
from pipeline.index.assign import Intermediate, Work, assign
from pipeline.index.merge import Merged, finished_merges, merge, plan_merges
from pipeline.index.prepare import Aim, Plan, prepare
from pipeline.index.quantizer import train
from pipeline.uris import Storage
from tests.snapshots import index_settings, make_snapshot
from tests.vectors import clustered

VECTORS = clustered(1200, 16)


def plan_of(
    folder: Path, codec: str = "sq8", vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]] = VECTORS
) -> Plan:
    snapshot = make_snapshot(Storage(str(folder)), [vectors[:300], vectors[300:700], vectors[700:]])
    return prepare(Aim.of(snapshot, index_settings(codec=codec, nlist=20)))


def assigned(plan: Plan) -> list[Intermediate]:
    return [assign(plan.storage, plan.work, [shard]) for shard in plan.shards]


def addresses_of(plan: Plan, parts: list[Merged]) -> list[int]:
    names = [part.ref.addresses.file for part in parts]
    return [
        address for name in names for address in pq.read_table(plan.storage.full_uri(name))["row_address"].to_pylist()
    ]


def expected_addresses(plan: Plan) -> list[int]:
    return [(shard.ordinal << 32) + row for shard in plan.shards for row in range(shard.num_rows)]


@pytest.mark.parametrize("part_bytes", [1, 20_000, 2**30])
def test_all_rows_come_out_once_whatever_the_size_of_parts(
    part_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.index.merge, "_MIN_PART_BYTES", part_bytes)
    monkeypatch.setattr(pipeline.index.merge, "_MAX_PART_BYTES", part_bytes)
    plan = plan_of(tmp_path)
    records = assigned(plan)
    ranges = plan_merges(plan.work, records)
    num_ranges = {1: (50, 60), 20_000: (3, 30), 2**30: (1, 1)}[part_bytes]  # 1: a bucket of an intermediate each
    assert num_ranges[0] <= len(ranges) <= num_ranges[1]
    assert [one.part for one in ranges] == list(range(len(ranges)))
    parts = [merge(plan.storage, plan.work, records, one) for one in ranges]
    assert sorted(addresses_of(plan, parts)) == expected_addresses(plan)
    tables = [pq.read_table(plan.storage.full_uri(part.ref.codes.file)) for part in parts]
    rows = pa.concat_tables(tables)
    doc_ids = dict(zip(rows["doc_id"].to_pylist(), rows["list_id"].to_pylist(), strict=True))
    assert len(doc_ids) == 1200
    lists = plan.work.quantizer.nearest_lists(VECTORS, 1)[:, 0]
    assert np.mean([doc_ids[f"d{row}"] == lists[row] for row in range(1200)]) > 0.99
    for part, table in zip(parts, tables, strict=True):
        assert part.ref.num_rows == table.num_rows == sum(part.directory["num_rows"].to_pylist())
        data = plan.storage.read(part.ref.codes.file)
        assert part.ref.footer_begin < len(data) - 8
        assert pq.read_metadata(pa.BufferReader(b"PAR1" + data[part.ref.footer_begin :])).num_rows == table.num_rows


def test_a_bucket_larger_than_a_part_is_shared_out_and_a_list_lies_in_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.index.merge, "_MIN_PART_BYTES", 40_000)
    monkeypatch.setattr(pipeline.index.merge, "_MAX_PART_BYTES", 40_000)
    same = np.repeat(clustered(1, 16), 1200, 0)
    plan = plan_of(tmp_path, vectors=same)
    records = assigned(plan)
    parts = [merge(plan.storage, plan.work, records, one) for one in plan_merges(plan.work, records)]
    assert len(parts) == 3
    assert len({part.directory["list_id"][0].as_py() for part in parts}) == 1
    assert sorted(addresses_of(plan, parts)) == expected_addresses(plan)


def test_a_stranger_is_refused_by_name(tmp_path: Path) -> None:
    """The same centroids and another training of the codec: files of the same shape, and codes that mean nothing."""
    plan = plan_of(tmp_path, "rabitq")
    quantizer = plan.work.quantizer
    other = train(clustered(400), 2, "rabitq", quantizer.encoder_fp, seed=77)
    stranger = replace(plan.work, quantizer=replace(quantizer, codec=other.codec))
    assert (stranger.quantizer.centroids == quantizer.centroids).all()
    records = [*assigned(plan)[:2], assign(plan.storage, stranger, plan.shards[2:])]
    with pytest.raises(
        StoreError, match=rf"{records[2].file} was made with the quantizer {stranger.quantizer.fingerprint}"
    ):
        plan_merges(plan.work, records)
    ranges = plan_merges(plan.work, assigned(plan))
    with pytest.raises(StoreError, match=rf"this index has {quantizer.fingerprint}: other codes"):
        merge(plan.storage, plan.work, records, ranges[0])


def test_other_buckets_are_refused(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    records = assigned(plan)
    cut = records[1].model_copy(update={"buckets": records[1].buckets[:-1]})
    with pytest.raises(StoreError, match=r"has 19 buckets and rows in 1 lists, this index 20 and 1"):
        plan_merges(plan.work, [records[0], cut])


@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_a_damaged_intermediate_is_named(damage: str, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    records = assigned(plan)
    path = tmp_path / records[1].file
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        data[-9] ^= 1
        path.write_bytes(data)
    with pytest.raises(StoreError, match=rf"{records[1].file} is not what its record says"):
        merge(plan.storage, plan.work, records, plan_merges(plan.work, records)[0])


def test_what_was_merged_is_taken_over_only_for_the_same_intermediates(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    records = assigned(plan)
    ranges = plan_merges(plan.work, records)
    assert finished_merges(plan.storage, plan.work, records, ranges) == {}
    made = [merge(plan.storage, plan.work, records, ranges[0]) for _ in range(2)]
    assert made[0].ref.codes.file != made[1].ref.codes.file
    found = finished_merges(plan.storage, plan.work, records, ranges)[0]
    least = min(made, key=lambda one: one.ref.codes.file)
    assert found.ref == least.ref
    assert found.directory.equals(least.directory)
    again = assigned(plan)
    assert finished_merges(plan.storage, plan.work, again, ranges) == {}


def test_a_range_has_its_bytes_of_each_intermediate_read_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.index.merge, "_MIN_PART_BYTES", 30_000)
    monkeypatch.setattr(pipeline.index.merge, "_MAX_PART_BYTES", 30_000)
    plan = plan_of(tmp_path)
    records = assigned(plan)
    ranges = plan_merges(plan.work, records)
    assert len(ranges) > 2
    read: list[int] = []
    real = Storage.read_range

    def spy(self: Storage, name: str, begin: int, end: int) -> bytes:
        read.append(end - begin)
        return real(self, name, begin, end)

    monkeypatch.setattr(Storage, "read_range", spy)
    merge(plan.storage, plan.work, records, ranges[1])
    one = ranges[1]
    assert read == [record.buckets[one.end - 1].end - record.buckets[one.begin].begin for record in records]
    assert sum(read) <= 30_000


def test_work_of_two_lists_a_row_is_not_mixed_with_that_of_one(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    twice = Work(plan.work.index_id, plan.work.quantizer, plan.work.panel, plan.work.keep, 2)
    records = [assign(plan.storage, twice, plan.shards)]
    with pytest.raises(StoreError, match=r"rows in 2 lists, this index 20 and 1"):
        plan_merges(plan.work, records)
