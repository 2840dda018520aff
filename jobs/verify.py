"""`vecmill verify CONFIG|STORE`: prove a snapshot again from storage alone; exit 3 and a list if anything is off."""

from __future__ import annotations

import dataclasses
import json

import click

from jobs.cli import log_format_option, run
from jobs.status import is_config, open_storage
from pipeline.config import load_config
from pipeline.errors import LimitError
from pipeline.snapshots.reader import open_snapshot
from pipeline.verify import Again, Audit, encode_again, verify


@click.command(name="verify")
@click.argument("target", metavar="CONFIG|STORE")
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option("--deep", is_flag=True, help="Also encode a sample again and compare; needs a CONFIG.")
@click.option("--snapshot", "number", type=click.IntRange(min=1), help="Another than the current one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@log_format_option
def main(target: str, overrides: tuple[str, ...], deep: bool, number: int | None, as_json: bool) -> None:
    """Prove that a snapshot is what its manifest says: files, rows, vectors, ids, fingerprints, books, index."""
    if deep and not is_config(target):
        raise click.UsageError(f"--deep reads the input again: give the CONFIG that embedded it, {target} is a store")
    audit, again = verify(open_storage(target, overrides), number), None
    if deep and not audit.findings:
        config = load_config(target, overrides)
        snapshot = open_snapshot(config.store.uri, config.store.storage_options, number=audit.snapshot_id)
        again = encode_again(snapshot, config)
    findings = audit.findings + (again.findings if again else [])
    click.echo(_json(audit, again, findings) if as_json else _text(audit, again, findings))
    if findings:
        raise LimitError(
            f"snapshot {audit.snapshot_id} of {target} is not what its manifest says: {len(findings)} findings; put "
            "the files back, or delete their records and run embed again; files of an index: delete them and run index "
            "again"
        )


def _json(audit: Audit, again: Again | None, findings: list[str]) -> str:
    value = dataclasses.asdict(audit) | {"ok": not findings, "findings": findings}
    return json.dumps(value | ({"again": dataclasses.asdict(again)} if again else {}))


def _text(audit: Audit, again: Again | None, findings: list[str]) -> str:
    lines = [
        *findings,
        f"snapshot {audit.snapshot_id}: {audit.splits:,} splits, {audit.rows:,} rows, {audit.quarantined:,} documents "
        f"in quarantine, {audit.bytes:,} bytes read in {audit.seconds:.1f} s; {audit.other_files:,} files of other "
        "snapshots or of nobody beside them",
    ]
    if audit.index_rows:
        lines.append(f"index: {audit.index_rows:,} rows in its lists")
    if again is not None:
        lines += again.unchecked
        lines.append(f"{again.rows:,} rows encoded again, least cosine {again.min_cosine:.5f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
