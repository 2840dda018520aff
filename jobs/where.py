"""`vecmill where CONFIG|STORE ID`: all that is known of one document."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from jobs.cli import log_format_option, run
from jobs.status import open_storage
from pipeline.where import Whereabouts, find_document


@click.command(name="where")
@click.argument("target", metavar="CONFIG|STORE")
@click.argument("doc_id", metavar="ID")
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@log_format_option
def main(target: str, doc_id: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Tell where a document came from, what became of it, and which snapshots hold it."""
    found = find_document(open_storage(target, overrides), doc_id)
    click.echo(json.dumps(dataclasses.asdict(found), ensure_ascii=False) if as_json else _text(found))


def _text(found: Whereabouts) -> str:
    lines = [found.doc_id]
    for place in found.places:
        lines.append("")
        lines += [f"  {name:<16}  {_shown(value)}" for name, value in place.items()]
    lines.append("")
    lines += [
        f"  snapshot {snapshot['snapshot_id']} ({snapshot['kind']}, {snapshot['created_at']}): {snapshot['state']}"
        for snapshot in found.snapshots
    ]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "not known: the shard keeps no input rows"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    run(main)
