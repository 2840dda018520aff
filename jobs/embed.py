"""`vecmill embed CONFIG [key.path=value ...]`: publish a snapshot of the corpus's embeddings.

First run, resume, nightly and backfill are this one command.
"""

from __future__ import annotations

import click

from jobs.cli import log_format_option, run, show_outcome
from pipeline.config import load_config
from pipeline.embed import embed
from pipeline.report import summary


@click.command(name="embed")
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option(
    "--limit", type=click.IntRange(min=1), help="Only the first N documents: a smoke run into a store of its own."
)
@click.option("--retry-quarantined", is_flag=True, help="Try quarantined documents again, after a fix.")
@log_format_option
@click.option("--verbose", is_flag=True, help="Show Ray's own log as well.")
def main(config: str, overrides: tuple[str, ...], limit: int | None, retry_quarantined: bool, verbose: bool) -> None:
    """Publish a snapshot of the corpus that CONFIG describes; run again, it goes on where it was."""
    outcome = embed(load_config(config, overrides), limit=limit, retry_quarantined=retry_quarantined, quiet=not verbose)
    show_outcome(outcome, summary(outcome))


if __name__ == "__main__":
    run(main)
