"""`vecmill status CONFIG|STORE`: what a store holds, what it left out and why, and what its last run does.

`--files` for other engines.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pyarrow.compute as pc

from jobs.cli import run
from pipeline.config import load_config
from pipeline.errors import StoreError
from pipeline.index.description import read_description
from pipeline.snapshots.manifest import manifest_numbers
from pipeline.snapshots.overview import Quarantined, last_run, quarantine_by_reason
from pipeline.snapshots.reader import Snapshot, snapshot_of
from pipeline.snapshots.store import open_store
from pipeline.uris import Storage


def open_target(target: str, overrides: tuple[str, ...]) -> Snapshot:
    """The current snapshot of a CONFIG's store, or of a store URI."""
    return snapshot_of(open_storage(target, overrides))


def open_storage(target: str, overrides: tuple[str, ...]) -> Storage:
    """The store of a CONFIG, or at a store URI.

    Raises:
        StoreError: there is none.
    """
    storage = Storage(*_store_of(target, overrides))
    open_store(storage, None, create=False)
    return storage


def _store_of(target: str, overrides: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """URI and storage options."""
    if is_config(target):
        store = load_config(target, overrides).store
        return store.uri, store.storage_options
    if not target:
        raise click.UsageError("CONFIG|STORE is empty")
    if overrides:
        raise click.UsageError(f"overrides go with a config file, {target} is a store: {' '.join(overrides)}")
    return target, {}


def is_config(target: str) -> bool:
    """Whether a CONFIG|STORE argument names a config file: a store is a folder or a prefix."""
    return Path(target).suffix in (".yaml", ".yml") or Path(target).is_file()


@click.command(name="status")
@click.argument("target", metavar="CONFIG|STORE")
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option(
    "--files", is_flag=True, help="Only the current embedding shards, one URI a line: for DuckDB, Polars or Spark."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
def main(target: str, overrides: tuple[str, ...], files: bool, as_json: bool) -> None:
    """Show the current snapshot of a store, its index, its quarantine by reason, and its last run."""
    storage = open_storage(target, overrides)
    if not files and not manifest_numbers(storage):
        _show_unpublished(storage, as_json=as_json)
        return
    snapshot = snapshot_of(storage)
    if files:
        click.echo("\n".join(snapshot.files()))
        return
    figures, quarantine, last = _figures(snapshot), quarantine_by_reason(snapshot), _last_run(snapshot.storage)
    index = _index_figures(snapshot)
    if as_json:
        by_reason = {reason: vars(found) for reason, found in quarantine.items()}
        click.echo(json.dumps(figures | {"index": index, "quarantine": by_reason, "last_run": last}, default=str))
        return
    _show(figures)
    if index is not None:
        click.echo("\nindex")
        _show({f"  {name}": value for name, value in index.items()})
    if quarantine:
        click.echo("\nquarantine")
        _show({f"  {reason}": _in_words(found) for reason, found in quarantine.items()})
    if last is not None:
        _show_run(last)


def _show_unpublished(storage: Storage, *, as_json: bool) -> None:
    """Of a store whose first run goes on, was refused, or was killed."""
    last = _last_run(storage)
    if as_json:
        click.echo(json.dumps({"snapshot_id": None, "last_run": last}, default=str))
        return
    click.echo(f"no snapshot yet in {storage.uri}; `vecmill embed CONFIG` publishes one")
    if last is not None:
        _show_run(last)


def _show_run(last: dict[str, Any]) -> None:
    where = f"on {last['host']}, pid {last['pid']}, since {last['started_at']}"
    click.echo(f"\nlast run {last['run_id']}: {last['state']} {where}")
    if last["progress"] and last["state"] != "finished":
        click.echo("  " + ", ".join(f"{name} {_number(value)}" for name, value in last["progress"].items()))


def _figures(snapshot: Snapshot) -> dict[str, Any]:
    manifest = snapshot.manifest
    return {
        "snapshot_id": manifest.snapshot_id,
        "kind": manifest.kind,
        "created_at": manifest.created_at,
        "run_id": manifest.run_id,
        "encoder_fp": manifest.encoder_fp,
        "shard_fp": manifest.shard_fp,
        "model": manifest.encoder["model"],
        "dim": snapshot.dim,
        "shards": snapshot.shards.num_rows,
        "splits": pc.count_distinct(snapshot.splits["split_id"]).as_py(),
        **manifest.accounting.model_dump(),
    }


def _index_figures(snapshot: Snapshot) -> dict[str, Any] | None:
    ref = snapshot.manifest.index
    if ref is None:
        return None
    try:
        found = read_description(snapshot.storage, ref.file, ref.checksum)
    except StoreError as error:
        return {"serves_snapshot": ref.snapshot_id, "error": str(error)}
    is_current = found.shards == snapshot.manifest.shards
    return {"serves_snapshot": found.snapshot_id, "is_current": is_current, **found.figures()}


def _last_run(storage: Storage) -> dict[str, Any] | None:
    found = last_run(storage)
    if found is None:
        return None
    state, process = found[1], found[0].process
    return {
        "run_id": found[0].run_id,
        "state": state,
        "host": process.host,
        "pid": process.pid,
        "started_at": found[0].started_at,
        "progress": dict(found[0].progress),
    }


def _show(figures: dict[str, Any]) -> None:
    width = max(map(len, figures))
    for name, value in figures.items():
        click.echo(f"{name:<{width}}  {_number(value)}")


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _in_words(found: Quarantined) -> str:
    files = f"{found.files:,} file{'s' * (found.files != 1)}"
    return f"{found.documents:,} document{'s' * (found.documents != 1)} in {files}" if found.documents else files


if __name__ == "__main__":
    run(main)
