"""Many records by column: the same records, and a small part of the memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import StoreError
from pipeline.snapshots.records import record_name
from pipeline.snapshots.table import RecordTable, file_keys, parse_file_name
from tests.stores import file_id, make_member, make_pack, make_record


def test_records_come_back_as_they_were() -> None:
    records = [
        make_record("a", 0, 3, last=False),
        make_record("a", 3, 7, num_quarantined=2, generation=4, attempt="0" * 16),
        make_record("b", 0, 0, num_counted=None, num_documents=0, row_begin=None, row_end=None, identity="v2"),
    ]
    table = RecordTable.of(records)
    assert list(table) == records
    assert [table[index] for index in (0, 1, -1)] == records
    assert list(table[1:]) == records[1:]
    assert records[1] in table
    assert list(RecordTable.of(iter([]))) == []
    assert table.shard_names().to_pylist() == [record.shard.file for record in records]
    quarantined = [record.quarantine.file if record.quarantine else None for record in records]
    assert table.quarantine_names().to_pylist() == quarantined
    with pytest.raises(IndexError):
        table[3]


def test_an_attempt_has_one_key_whatever_names_it() -> None:
    records = [make_record(str(number), num_quarantined=1) for number in range(3)]
    keys = RecordTable.of(records).keys()
    names = [record.shard.file for record in records]
    assert file_keys(pa.chunked_array([names[:1], names[1:]])).equals(keys)
    assert [parse_file_name(name) for name in names] == keys.to_pylist()
    assert [parse_file_name(record.quarantine.file) for record in records if record.quarantine] == keys.to_pylist()
    assert parse_file_name(record_name(records[0])) is None
    folder, _, stem = names[0].rpartition("/")
    assert parse_file_name(f"{folder[:-2]}zz/{stem}") is None
    with pytest.raises(ValueError, match="hex"):
        file_keys(pa.array(["embeddings/x.parquet"]))


def test_a_record_of_anothers_files_is_refused() -> None:
    one, other = make_record("a", num_quarantined=1), make_record("b", num_quarantined=1)
    for wrong in (replace(one, shard=other.shard), replace(one, quarantine=other.quarantine)):
        with pytest.raises(StoreError, match=f"split {one.split_id}.*lists files of another"):
            RecordTable.of([wrong])


def test_a_record_among_many_takes_a_quarter_of_a_kilobyte() -> None:
    records = [make_record(f"part/{number // 100}.parquet", number, number + 1) for number in range(2_000)]
    assert RecordTable.of(records).table.nbytes / len(records) < 256


def test_packs_come_back_as_they_were_and_are_laid_out_by_file() -> None:
    pack = make_pack(make_member("a", 3, num_quarantined=1), make_member("c", 0, num_counted=None))
    records = [make_record("b", 0, 3, last=False), pack, make_record("b", 3, 7)]
    table = RecordTable.of(records)
    assert list(table) == records
    assert list(table.take(np.array([1, 0]))) == [pack, records[0]]
    rows = table.by_file().to_pylist()
    assert sorted((row["file_uri"], row["record"], row["begin"], row["end"], row["last"]) for row in rows) == [
        ("a", 1, 0, 3, True), ("b", 0, 0, 3, False), ("b", 2, 3, 7, True), ("c", 1, 0, 0, True),
    ]  # fmt: skip
    assert {row["file_uri"]: (row["num_counted"], row["num_quarantined"], row["file_id"]) for row in rows} == {
        "a": (3, 1, file_id("a")), "b": (4, 0, file_id("b")), "c": (None, 0, file_id("c")),
    }  # fmt: skip
    alone = RecordTable.of([records[0]])
    assert alone.by_file()["file_uri"].to_pylist() == ["b"]
