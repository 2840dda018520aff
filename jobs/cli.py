"""The command line: finds the job's module, and turns every ending into its sentence and exit code.

stdout carries the answer, stderr log and progress. Exit codes: see pipeline.errors.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import click

from pipeline.errors import ClusterGone, Interrupted, NotSupportedError, VecmillError
from pipeline.logs import log_format, set_up_logging

log = logging.getLogger("vecmill")

_Command = TypeVar("_Command", bound=Callable[..., Any])

JOBS = {
    "embed": "publish a snapshot: first run, resume, nightly and backfill",
    "plan": "files, documents, tokens, time and cost before a run",
    "index": "build the ANN index of the current snapshot",
    "search": "answer queries from the current snapshot",
    "status": "look at a store; --files lists the shards for other engines",
    "verify": "audit a snapshot from storage alone",
    "where": "all that is known of one document",
    "gc": "clean what no snapshot lists",
    "quickstart": "make a small real corpus, embed it, ask it questions",
    "benchmark": "measure speed against peers, in one run",
    "evaluate": "retrieval and similarity scores",
}

LATER_JOBS = {
    "rollback": "step back to an earlier snapshot",
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
        _tell(f"{error}; run the same command again to go on")
        return error.exit_code
    except ClusterGone as error:
        _tell(str(error))
        sys.stderr.flush()
        # At once: Ray's own way out of this process takes up to a minute, and ends in another exit code.
        os._exit(error.exit_code)
    except VecmillError as error:
        if error.exit_code == 1:
            log.exception("this is a bug")
        _tell(str(error))
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
    _tell(f"{what}; run the same command again to go on")
    return 130


def log_format_option(command: _Command) -> _Command:
    """Give a command `--log-format`."""
    return click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        is_eager=True,
        expose_value=False,
        callback=lambda ctx, param, value: set_up_logging(value),
        help="Log lines on stderr as text, or one JSON object each.",
    )(command)


def show_outcome(outcome: Mapping[str, Any], summary: str) -> None:
    """The end of a run: for a person on stderr, for a program as one JSON line on stdout."""
    if log_format() == "json":
        log.info("%s", summary, extra={"outcome": outcome})
    else:
        print(summary, file=sys.stderr)
    print(json.dumps(outcome), flush=True)


def _tell(sentence: str) -> None:
    """The last word on stderr."""
    if log_format() == "json":
        log.error("%s", sentence)
    else:
        print(f"vecmill: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    main()
