"""`vecmill embed CONFIG [key.path=value ...]`: publish a snapshot of the corpus's embeddings.

First run, resume, nightly and backfill are this one command.
"""

from __future__ import annotations

import json
import sys

import click

from jobs.cli import run
from pipeline.config import load_config
from pipeline.embed import embed
from pipeline.report import summary


@click.command(name="embed")
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option(
    "--limit", type=click.IntRange(min=1), help="Only the first N documents: a smoke run into a store of its own."
)
@click.option("--verbose", is_flag=True, help="Show Ray's own log as well.")
def main(config: str, overrides: tuple[str, ...], limit: int | None, verbose: bool) -> None:
    """Publish a snapshot of the corpus that CONFIG describes; run again, it goes on where it was."""
    outcome = embed(load_config(config, overrides), limit=limit, quiet=not verbose)
    print(summary(outcome), file=sys.stderr)
    print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    run(main)
