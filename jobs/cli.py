"""The command line: finds the job's module, and turns every ending into its sentence and exit code.

stdout carries the answer, stderr log and progress. Exit codes: see pipeline.errors.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from pipeline.errors import Interrupted, NotSupportedError, VecmillError

log = logging.getLogger("vecmill")

JOBS = {
    "embed": "publish a snapshot: first run, resume, nightly and backfill",
    "search": "answer queries from the current snapshot",
    "status": "look at a store; --files lists the shards for other engines",
    "quickstart": "make a small real corpus, embed it, ask it questions",
    "benchmark": "measure speed against peers, in one run",
    "evaluate": "retrieval and similarity scores",
}

LATER_JOBS = {
    "index": "build the ANN index",
    "plan": "files, documents, time and cost before a run",
    "verify": "audit a snapshot from storage alone",
    "where": "all that is known of one document",
    "rollback": "step back to an earlier snapshot",
    "gc": "clean what no snapshot lists",
}


class _Jobs(click.Group):
    """Loads a job's module only when it is called: `vecmill search --help` should not wait for Ray."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(JOBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in LATER_JOBS:
            raise NotSupportedError(f"vecmill {cmd_name} ({LATER_JOBS[cmd_name]})")
        if cmd_name not in JOBS:
            return None
        command = importlib.import_module(f"jobs.{cmd_name}").main
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Jobs"):
            formatter.write_dl(list(JOBS.items()))


@click.command(cls=_Jobs)
@click.version_option(package_name="vecmill")
def vecmill() -> None:
    """A sharded text corpus in, normalized embeddings in Parquet out."""


def main() -> NoReturn:
    """The `vecmill` command."""
    run(vecmill)


def run(command: click.Command, args: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its code; a sentence for the user's faults, a traceback for ours."""
    sys.exit(exit_code(command, args))


def exit_code(command: click.Command, args: Sequence[str] | None = None) -> int:
    """Run a command; what it ended with, as an exit code."""
    set_up_logging()
    try:
        # None unless --help, --version or an eager option ended it.
        code = command.main(args=list(args) if args is not None else None, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Abort:
        return _interrupted("interrupted")
    except click.ClickException as error:
        error.show()
        return 2
    except Interrupted as error:
        print(f"vecmill: {error}; run the same command again to go on", file=sys.stderr)
        return error.exit_code
    except VecmillError as error:
        if error.exit_code == 1:
            log.exception("this is a bug")
        print(f"vecmill: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _interrupted("interrupted by SIGINT")
    except BrokenPipeError:
        # The reader of stdout went away (`| head`): not an error of ours, and nothing more to say to it.
        sys.stderr.close()
        return 141
    except Exception:
        log.exception("vecmill failed; this is a bug")
        return 1


def _interrupted(what: str) -> int:
    print(f"vecmill: {what}; run the same command again to go on", file=sys.stderr)
    return 130


def set_up_logging() -> None:
    """Log lines of vecmill's own on stderr; libraries only from warnings up."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for name in ("pipeline", "jobs", "vecmill"):
        logging.getLogger(name).setLevel(logging.INFO)


if __name__ == "__main__":
    main()
