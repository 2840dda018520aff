"""`vecmill status` of a store whose first run has not published."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from jobs.status import main
from pipeline.snapshots.lease import Lease, new_run_id
from pipeline.snapshots.store import open_store
from pipeline.uris import Storage


def test_the_first_run_is_shown_while_it_goes_on_and_after_it(tmp_path: Path) -> None:
    """Nothing is published yet, and somebody wants to know how far it is."""
    storage = Storage(str(tmp_path / "store"))
    open_store(storage, str(tmp_path / "in"), create=True)
    run_id = new_run_id()
    lease = Lease(storage, run_id)
    lease.acquire()
    lease.update({"splits_done": 3, "stage": "assign"})
    shown = CliRunner().invoke(main, [storage.uri])
    assert shown.exit_code == 0, shown.output
    assert "no snapshot yet" in shown.output
    assert f"last run {run_id}: running on" in shown.output
    lease.finish("failed")
    shown = CliRunner().invoke(main, [storage.uri])
    assert "splits_done 3, stage assign" in shown.output
    found = json.loads(CliRunner().invoke(main, [storage.uri, "--json"]).output)
    assert (found["snapshot_id"], found["last_run"]["state"]) == (None, "failed")
