"""Rounds: every contestant once in each, alone, in a process of its own that is new every time.

A library's threads, caches and memory are then its own and of this build. Ray is started in our process before the
clock, and so is what a peer imports.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import click

from jobs.benchmark_peers import end_with_parent, why
from jobs.index_benchmark.ours import OURS
from jobs.index_benchmark.task import Built, Contestant, Task
from jobs.index_benchmark.usage import Usage, UsageWatch
from pipeline.errors import VecmillError


@dataclass
class Result:
    """What a contestant came to."""

    name: str
    builds: list[tuple[Built, Usage]] = field(default_factory=list)
    """One a round."""
    skipped: str | None = None
    """Why it did not take part, or not to the end."""


def compete(task: Task, contestants: Sequence[Contestant], num_rounds: int) -> list[Result]:
    """Let all build in turn.

    Raises:
        VecmillError: ours fails. A peer that fails is skipped.
    """
    results = [Result(contestant.name) for contestant in contestants]
    for number in range(num_rounds):
        for contestant, result in zip(contestants, results, strict=True):
            if result.skipped:
                continue
            with tempfile.TemporaryDirectory(prefix="vecmill-benchmark-") as folder:
                found = build_alone(contestant, task, Path(folder) / "built")
            if isinstance(found, str):
                skip(result, found)
                continue
            result.builds.append(found)
            built, usage = found
            click.echo(
                f"round {number + 1}: {result.name}: {built.seconds:.1f} s, {usage.cpu_s:.1f} CPU-s, "
                f"{usage.peak_bytes / 2**20:,.0f} MiB",
                err=True,
            )
    return results


def skip(result: Result, why: str) -> None:
    """Leave a peer out from now on.

    Raises:
        VecmillError: it is ours.
    """
    if result.name == OURS:
        raise VecmillError(f"ours: {why}")
    click.echo(f"{result.name}: skipped: {why}", err=True)
    result.skipped = why


def build_alone(contestant: Contestant, task: Task, folder: Path) -> tuple[Built, Usage] | str:
    """What a build came to, or why there is none; it is left in `folder`."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_build, args=(theirs, contestant, task, folder))
    process.start()
    theirs.close()
    try:
        said = ours.recv()
        if isinstance(said, str):
            return said
        with UsageWatch(process.pid or 0) as watch:
            ours.send(None)
            said = ours.recv()
        ours.send(None)
    except EOFError:
        return "its process ended, perhaps for want of memory"
    finally:
        process.join()
    if isinstance(said, VecmillError):
        raise said
    return said if isinstance(said, str) else (said, watch.usage)


def _build(connection: Connection, contestant: Contestant, task: Task, folder: Path) -> None:
    """Say that it is ready; build when told to; say what came of it; end when told to."""
    set_up(contestant.name)
    try:
        with contestant.ready(task, folder) as build:
            connection.send(None)
            connection.recv()
            connection.send(build())
            connection.recv()
    except VecmillError as error:
        connection.send(error)
    except Exception as error:
        connection.send(why(error))


def set_up(name: str) -> None:
    """Of a contestant's process. What libraries print and warn of is no part of the answer; why one failed is told."""
    end_with_parent()
    os.dup2(2 if name == OURS else os.open(os.devnull, os.O_WRONLY), 1)
    if name != OURS:
        os.dup2(1, 2)
    warnings.simplefilter("ignore")
