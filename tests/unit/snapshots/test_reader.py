"""Reading: exactly the rows of one snapshot, old or new, and a sentence where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.snapshots.commit import publish
from pipeline.snapshots.reader import open_snapshot
from pipeline.uris import Storage
from tests.stores import file_id, make_record, publication, put


def test_a_snapshot_as_files_and_as_a_dataset(storage: Storage) -> None:
    records = [
        put(storage, make_record("a", 0, 2, last=False)),
        put(storage, make_record("a", 2, 5, num_quarantined=1)),
        put(storage, make_record("b", 0, 0)),
    ]
    publish(storage, publication(None, records))
    snapshot = open_snapshot(storage.uri)
    assert snapshot.files() == [f"{storage.uri}/{record.shard.file}" for record in records]
    assert records[1].quarantine is not None
    assert snapshot.quarantine_files() == [f"{storage.uri}/{records[1].quarantine.file}"]
    assert snapshot.dataset().to_table()["doc_id"].to_pylist() == ["a#0", "a#1", "a#2", "a#3"]
    assert snapshot.dataset().count_rows() == 4
    assert (snapshot.dim, snapshot.dtype) == (2, "float32")
    assert snapshot.splits["file_uri"].to_pylist() == ["a", "a", "b"]


def test_a_reader_keeps_its_snapshot_while_another_is_published(storage: Storage) -> None:
    one = publish(storage, publication(None, [put(storage, make_record("a"))]))
    old = open_snapshot(storage.uri)
    publish(storage, publication(one, [put(storage, make_record("b"))], carried=[file_id("a")]))
    assert old.dataset().count_rows() == 3
    assert open_snapshot(storage.uri).dataset().count_rows() == 6
    assert open_snapshot(storage.uri, number=1).dataset().count_rows() == 3


def test_a_snapshot_without_rows_is_an_empty_dataset(storage: Storage) -> None:
    publish(storage, publication(None, [put(storage, make_record("a", 0, 0))]))
    table = open_snapshot(storage.uri).dataset().to_table()
    assert table.num_rows == 0
    assert "vector" in table.column_names


def test_there_is_nothing_to_read(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no snapshot yet in .*vecmill embed"):
        open_snapshot(storage.uri)
    with pytest.raises(StoreError, match="no snapshot 3"):
        open_snapshot(storage.uri, number=3)
    with pytest.raises(StoreError, match="no store at"):
        open_snapshot(str(tmp_path / "nothing"))
