"""Fixtures of the tests of the store."""

from pathlib import Path

import pytest

from pipeline.snapshots.store import open_store
from pipeline.uris import Storage


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """For those that make thousands of stores: processes are killed here, not machines."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A store with nothing in it."""
    storage = Storage(str(tmp_path / "store"))
    open_store(storage, "/corpus", create=True)
    return storage
