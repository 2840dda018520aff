"""`vecmill index CONFIG [key.path=value ...]`: build the index of the current snapshot, measure it, publish it.

First build, resume and bringing up to date are this one command.
"""

from __future__ import annotations

import click

from jobs.cli import log_format_option, run, show_outcome
from pipeline.config import load_config
from pipeline.indexing import index
from pipeline.report import index_summary


@click.command(name="index")
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@log_format_option
@click.option("--verbose", is_flag=True, help="Show Ray's own log as well.")
def main(config: str, overrides: tuple[str, ...], verbose: bool) -> None:
    """Build the ANN index of the current snapshot of CONFIG's store; run again, it goes on where it was."""
    outcome = index(load_config(config, overrides), quiet=not verbose)
    show_outcome(outcome, index_summary(outcome))


if __name__ == "__main__":
    run(main)
