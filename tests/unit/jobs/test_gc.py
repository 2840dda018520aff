"""`vecmill gc`: dry unless told, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.cli import exit_code, vecmill
from pipeline.snapshots.commit import publish
from pipeline.snapshots.lease import Lease
from pipeline.snapshots.store import open_store
from pipeline.uris import Storage
from tests.stores import make_record, publication, put


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(str(tmp_path / "store"))
    open_store(storage, "/corpus", create=True)
    one = publish(storage, publication(None, [put(storage, make_record("a"))]))
    publish(storage, publication(one, [put(storage, make_record("a", identity="v2"))]))
    put(storage, make_record("new"))
    return storage


def test_dry_then_for_good(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(vecmill, ["gc", storage.uri, "--keep", "1"]) == 0
    told = capsys.readouterr().out
    assert "would delete 1 records, 1 shards, 0 quarantine files, 2 tables" in told
    assert "kept 1 finished splits that were never published; --all" in told
    assert "nothing was deleted; --delete does it" in told
    assert exit_code(vecmill, ["gc", storage.uri, "--keep", "1", "--delete", "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["deleted"], outcome["shards"], outcome["snapshot_id"]) == (True, 1, 3)
    assert exit_code(vecmill, ["gc", storage.uri, "--all"]) == 0
    assert "would delete 1 records, 1 shards" in capsys.readouterr().out


def test_what_is_refused(storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(vecmill, ["gc", str(tmp_path / "nothing")]) == 2
    assert exit_code(vecmill, ["gc", storage.uri, "--keep", "0"]) == 2
    with Lease(storage, "running"):
        assert exit_code(vecmill, ["gc", storage.uri, "--delete"]) == 4
    assert "holds the store" in capsys.readouterr().err
