"""`vecmill gc CONFIG|STORE`: delete what no snapshot that is kept lists; only counts it without --delete."""

from __future__ import annotations

import json
from typing import Any

import click

from jobs.cli import log_format_option, run
from jobs.status import open_storage
from pipeline.snapshots.gc import gc


@click.command(name="gc")
@click.argument("target", metavar="CONFIG|STORE")
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option("--delete", is_flag=True, help="Delete; without it nothing is written.")
@click.option("--keep", default=3, show_default=True, help="Snapshots that stay readable, the current one included.")
@click.option("--all", "everything", is_flag=True, help="Also finished work that was never published.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@log_format_option
def main(target: str, overrides: tuple[str, ...], delete: bool, keep: int, everything: bool, as_json: bool) -> None:
    """Clean a store: snapshots beyond the newest, attempts that lost, files of killed runs."""
    figures = gc(open_storage(target, overrides), keep=keep, everything=everything, delete=delete)
    click.echo(json.dumps(figures) if as_json else _text(figures))


def _text(figures: dict[str, Any]) -> str:
    kinds = ("records", "shards", "quarantine_files", "tables", "index_files", "run_files", "temporary_files")
    counts = ", ".join(f"{figures[kind]:,} {kind.replace('_', ' ')}" for kind in kinds)
    verb = "deleted" if figures["deleted"] else "would delete"
    lines = [f"{verb} {counts}: {figures['bytes']:,} bytes"]
    if figures["unpublished"]:
        lines.append(f"kept {figures['unpublished']:,} finished splits that were never published; --all takes them too")
    if not figures["deleted"]:
        lines.append("nothing was deleted; --delete does it")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
