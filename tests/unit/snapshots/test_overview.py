"""What `status` tells of quarantine and runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import orjson
import pyarrow as pa
import pytest

from pipeline.errors import StoreError
from pipeline.schema import QUARANTINE_SCHEMA
from pipeline.snapshots.commit import publish
from pipeline.snapshots.lease import Process, RunState
from pipeline.snapshots.overview import Quarantined, last_run, quarantine_by_reason
from pipeline.snapshots.reader import Snapshot, open_snapshot
from pipeline.snapshots.store import open_store
from pipeline.uris import Storage
from pipeline.write import quarantine_bytes
from tests.corpus import run_command
from tests.stores import make_record, publication, put


def snapshot_of(store: Storage, files: dict[str, Sequence[tuple[str | None, int | None, str]]]) -> Snapshot:
    """A snapshot of files of ten rows, with these rows of (doc_id, row, reason) in quarantine."""
    open_store(store, "/corpus", create=True)
    records = []
    for uri, rows in files.items():
        num = sum(doc_id is not None or row is not None for doc_id, row, _ in rows)
        is_torn = num < len(rows)
        record = put(store, make_record(uri, 0, 10, num_quarantined=num, num_counted=None if is_torn else 10))
        if record.quarantine is not None:
            values = [
                {"doc_id": doc_id, "row": row, "reason": reason, "input_file": uri, "stage": "read", "message": "m"}
                for doc_id, row, reason in rows
            ]
            table = pa.Table.from_pylist(values, QUARANTINE_SCHEMA)
            store.put(record.quarantine.file, quarantine_bytes(table, with_text=False))
        records.append(record)
    publish(store, publication(None, records))
    return open_snapshot(store.uri)


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "store"))


FILES: dict[str, Sequence[tuple[str | None, int | None, str]]] = {
    "a": [("x", 1, "empty_text"), (None, 2, "invalid_json"), ("y", 3, "empty_text")],
    "b": [("z", None, "duplicate_id"), ("w", 7, "empty_text")],
    "c": [],
    "d": [(None, 0, "invalid_json"), (None, None, "unreadable_file")],
}


def test_quarantine_by_reason_counts_documents_and_files(store: Storage) -> None:
    """A row that names neither a document nor a row is a file's; all others add up to the manifest's count."""
    snapshot = snapshot_of(store, FILES)
    found = quarantine_by_reason(snapshot)
    assert found == {
        "empty_text": Quarantined(3, 2),
        "invalid_json": Quarantined(2, 2),
        "duplicate_id": Quarantined(1, 1),
        "unreadable_file": Quarantined(0, 1),
    }
    assert next(iter(found)) == "empty_text", "most documents first"
    accounting = snapshot.manifest.accounting
    assert sum(reason.documents for reason in found.values()) == accounting.quarantined
    assert found["unreadable_file"].files == accounting.files_quarantined


def test_of_many_files_none_is_left_out(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.snapshots.overview._THREADS", 2)
    snapshot = snapshot_of(store, {f"{n}": [("x", 1, "empty_text")] for n in range(21)})
    assert quarantine_by_reason(snapshot) == {"empty_text": Quarantined(21, 21)}


def test_a_missing_and_a_damaged_quarantine_file_are_told(store: Storage) -> None:
    snapshot = snapshot_of(store, FILES)
    name = snapshot.splits["quarantine_file"][0].as_py()
    store.put(name, b"not Parquet at all")
    with pytest.raises(StoreError, match=r"damaged: .*/quarantine/"):
        quarantine_by_reason(snapshot)
    store.delete([name])
    with pytest.raises(StoreError, match=r"missing from the store: .*/quarantine/"):
        quarantine_by_reason(snapshot)


def put_run(store: Storage, run_id: str, state: str, process: Process | None = None) -> None:
    run = RunState(run_id, state, 3, process or Process.current(), "2026-01-01T00:00:00Z", {"splits_done": 2})
    store.put(f"runs/{run_id}/run.json", orjson.dumps(run, option=orjson.OPT_SERIALIZE_DATACLASS))


def test_the_run_that_goes_on_is_told_before_those_it_refused(store: Storage) -> None:
    assert last_run(store) is None
    put_run(store, "1", "finished")
    put_run(store, "2", "running")
    put_run(store, "3", "interrupted")
    found = last_run(store)
    assert found is not None
    assert (found[0].run_id, found[1]) == ("2", "running")


def test_a_killed_run_is_told_as_such(store: Storage) -> None:
    put_run(store, "1", "finished")
    put_run(store, "2", "running", replace(Process.current(), pid=2**22 + 1))
    found = last_run(store)
    assert found is not None
    assert (found[0].run_id, found[1]) == ("2", "killed")
    elsewhere = replace(Process.current(), host="other", boot_id="other")
    put_run(store, "2", "running", elsewhere)
    found = last_run(store)
    assert found is not None
    assert found[1] == "running", "of another machine nobody can tell"


def test_status_shows_both(store: Storage) -> None:
    snapshot_of(store, FILES)
    put_run(store, "7", "running")
    ran = run_command("status", store.uri)
    assert ran.code == 0, ran.err
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert {"quarantined 6", "empty_text 3 documents in 2 files", "unreadable_file 1 file"} <= set(lines)
    assert "duplicate_id 1 document in 1 file" in lines
    assert any(line.startswith("last run 7: running on ") for line in lines)
    assert "splits_done 2" in lines
    told = json.loads(run_command("status", store.uri, "--json").out)
    assert told["quarantine"]["empty_text"] == {"documents": 3, "files": 2}
    assert (told["last_run"]["state"], told["last_run"]["progress"]) == ("running", {"splits_done": 2})


def test_status_without_quarantine_and_runs(store: Storage) -> None:
    snapshot_of(store, {"c": []})
    out = run_command("status", store.uri).out
    assert "last run" not in out
    assert "\nquarantine\n" not in out
    told = json.loads(run_command("status", store.uri, "--json").out)
    assert (told["quarantine"], told["last_run"], told["documents_in"]) == ({}, None, 10)
