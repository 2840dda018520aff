"""The journal: no request for a record that it holds, and never more than the records themselves."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import StoreError
from pipeline.snapshots.journal import Journal, load_records, read_journals, write_journal
from pipeline.snapshots.records import record_name
from pipeline.snapshots.table import RecordTable
from pipeline.uris import Storage
from tests.stores import ENCODER_FP, SHARD_FP, FaultyStorage, make_member, make_pack, make_record


@pytest.fixture
def storage(tmp_path: Path) -> FaultyStorage:
    return FaultyStorage(Storage(str(tmp_path)))


def _key(record: object) -> str:
    return repr(record)


def test_a_resume_asks_for_no_record_that_the_journal_holds(storage: FaultyStorage) -> None:
    records = [make_record(f"{number}.parquet") for number in range(10)]
    for record in records:
        storage.put(record_name(record), record.to_json())
    write_journal(storage, "run-1", 0, records[:4])
    write_journal(storage, "run-2", 0, records[3:8])
    loaded = load_records(storage, ENCODER_FP, SHARD_FP)
    assert sorted(loaded, key=_key) == sorted(records, key=_key)
    asked = [name for name in storage.reads if name.startswith("records/")]
    assert sorted(asked) == sorted(map(record_name, records[8:]))


def test_a_journal_from_before_there_were_packs_is_read(storage: FaultyStorage) -> None:
    records = [make_record("a"), make_record("b")]
    for record in records:
        storage.put(record_name(record), record.to_json())
    sink = pa.BufferOutputStream()
    pq.write_table(RecordTable.of(records).table.drop_columns("members"), sink)
    storage.put("runs/run-1/records-000000.parquet", sink.getvalue())
    assert sorted(load_records(storage, ENCODER_FP, SHARD_FP), key=_key) == sorted(records, key=_key)
    assert [name for name in storage.reads if name.startswith("records/")] == []


def test_packs_are_journalled(storage: FaultyStorage) -> None:
    pack = make_pack(make_member("a"), make_member("b", 0, num_counted=None))
    storage.put(record_name(pack), pack.to_json())
    write_journal(storage, "run-1", 0, [pack, make_record("c")])
    assert list(load_records(storage, ENCODER_FP, SHARD_FP)) == [pack]
    assert [name for name in storage.reads if name.startswith("records/")] == []


def test_records_of_other_fingerprints_are_left_alone(storage: FaultyStorage) -> None:
    mine, theirs = make_record(), make_record(shard_fp="a" * 16)
    for record in (mine, theirs):
        storage.put(record_name(record), record.to_json())
    write_journal(storage, "run", 0, [mine, theirs])
    assert list(load_records(storage, ENCODER_FP, SHARD_FP)) == [mine]
    assert [record for table in read_journals(storage, ENCODER_FP, "a" * 16) for record in table] == [theirs]


def test_records_that_nobody_asks_for_cost_no_request(storage: FaultyStorage) -> None:
    """Else each night would read again what the last one published."""
    records = [make_record(f"{number}.parquet", generation=number) for number in range(4)]
    for record in records:
        storage.put(record_name(record), record.to_json())
    write_journal(storage, "run", 0, records[:2])
    but = RecordTable.of(records[1:3]).keys()
    assert list(load_records(storage, ENCODER_FP, SHARD_FP, but=but)) == [records[0], records[3]]
    assert [name for name in storage.reads if name.startswith("records/")] == [record_name(records[3])]


def test_keys_that_end_in_zeros_are_told_apart(storage: FaultyStorage) -> None:
    ids = [f"{number}{'0' * 31}" for number in range(3)]
    records = [make_record(split_id=split_id, attempt=f"{ids.index(split_id)}{'0' * 15}") for split_id in ids]
    for record in records:
        storage.put(record_name(record), record.to_json())
    write_journal(storage, "run", 0, records[:1])
    assert sorted(load_records(storage, ENCODER_FP, SHARD_FP), key=_key) == sorted(records, key=_key)


def test_a_swept_record_is_gone_whatever_a_journal_says(storage: FaultyStorage) -> None:
    swept, doomed, stays = (make_record(f"{number}.parquet") for number in range(3))
    for record in (doomed, stays):
        storage.put(record_name(record), record.to_json())
    write_journal(storage, "run", 0, [swept, doomed, stays])
    assert list(load_records(storage, ENCODER_FP, SHARD_FP, {record_name(doomed)})) == [stays]


def test_a_record_swept_between_listing_and_reading_is_gone(
    storage: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_record()
    storage.put(record_name(record), record.to_json())
    listing = storage.list()
    storage.delete([record_name(record)])
    monkeypatch.setattr(storage, "scan", lambda prefix: listing if prefix.startswith("records") else [])
    assert len(load_records(storage, ENCODER_FP, SHARD_FP)) == 0


def test_a_record_under_anothers_name_is_refused(storage: FaultyStorage) -> None:
    one, other = make_record("1"), make_record("2")
    storage.put(record_name(one), other.to_json())
    with pytest.raises(StoreError, match="record of another split"):
        load_records(storage, ENCODER_FP, SHARD_FP)


def _foreign() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"split_id": [b"0" * 16]}), sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("data", [b"", b"no parquet", _foreign(), _foreign()[:-20]])
def test_a_file_that_is_no_journal_is_named(storage: FaultyStorage, data: bytes) -> None:
    record = make_record()
    storage.put(record_name(record), record.to_json())
    storage.put("runs/run/records-000000.parquet", data)
    with pytest.raises(StoreError, match=r"runs/run/records-000000.parquet is no journal"):
        load_records(storage, ENCODER_FP, SHARD_FP)


def test_it_is_written_when_due_and_at_the_end(storage: FaultyStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.snapshots.journal.MAX_JOURNAL_SPLITS", 3)
    now = 0.0
    journal = Journal(storage, "run", clock=lambda: now)
    records = [make_record(f"{number}") for number in range(6)]

    def num_files() -> int:
        return len(storage.list("runs/run"))

    for record in records[:3]:
        journal.add(record)
    assert num_files() == 1
    journal.add(records[3])
    now = 59.0
    journal.add(records[4])
    assert num_files() == 1
    now = 60.0
    journal.add(records[5])
    assert num_files() == 2
    journal.close()
    assert num_files() == 2
    assert sum(map(len, read_journals(storage, ENCODER_FP, SHARD_FP))) == 6
