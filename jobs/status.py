"""`vecmill status CONFIG|STORE`: what a store holds; `--files` for other engines."""

from __future__ import annotations

import json
from pathlib import Path

import click

from jobs.cli import run
from pipeline.config import load_config
from pipeline.snapshots.reader import Snapshot, open_snapshot


def open_target(target: str, overrides: tuple[str, ...]) -> Snapshot:
    """The current snapshot of a CONFIG's store, or of a store URI."""
    if is_config(target):
        store = load_config(target, overrides).store
        return open_snapshot(store.uri, store.storage_options)
    if not target:
        raise click.UsageError("CONFIG|STORE is empty")
    if overrides:
        raise click.UsageError(f"overrides go with a config file, {target} is a store: {' '.join(overrides)}")
    return open_snapshot(target)


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
    """Show the current snapshot of a store."""
    snapshot = open_target(target, overrides)
    if files:
        click.echo("\n".join(snapshot.files()))
        return
    manifest = snapshot.manifest
    figures = {
        "snapshot_id": manifest.snapshot_id,
        "kind": manifest.kind,
        "created_at": manifest.created_at,
        "run_id": manifest.run_id,
        "encoder_fp": manifest.encoder_fp,
        "shard_fp": manifest.shard_fp,
        "model": manifest.encoder["model"],
        "dim": snapshot.dim,
        "shards": snapshot.shards.num_rows,
        "splits": snapshot.splits.num_rows,
        **manifest.accounting.model_dump(),
    }
    if as_json:
        click.echo(json.dumps(figures, default=str))
        return
    width = max(map(len, figures))
    for name, value in figures.items():
        click.echo(f"{name:<{width}}  {value:,}" if isinstance(value, int) else f"{name:<{width}}  {value}")


if __name__ == "__main__":
    run(main)
