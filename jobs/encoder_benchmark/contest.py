"""Rounds: every contestant once over the same texts, one after the other, in processes of their own.

Each runtime has threads, global settings and memory of its own, and none should meet another's. All processes
stay, so that loading, converting and the search for the best batch are done once, before the rounds.
Only one is at work at any time.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import TypeVar

import click
import numpy as np
from transformers.utils import logging as transformers_logging

from jobs.benchmark_peers import end_with_parent, why
from jobs.encoder_benchmark.ceiling import CEILING, ceiling
from jobs.encoder_benchmark.ours import OURS, REFERENCE, ours, reference
from jobs.encoder_benchmark.peers import library, library_reduced, onnxruntime, openvino
from jobs.encoder_benchmark.task import Contestant, Pass, Task, Vectors
from pipeline.errors import VecmillError

Runtime = Callable[[Task], Iterable[Contestant]]
_Given = TypeVar("_Given")

# In the order in which they run. What is named like a contestant tells by that name why it could not take part.
_OURS: Mapping[str, Runtime] = {REFERENCE: reference, OURS: ours, CEILING: ceiling}
PEERS: Mapping[str, Mapping[str, Runtime]] = {
    "sentence-transformers": {
        "sentence-transformers": library,
        "sentence-transformers reduced": library_reduced,
    },
    "openvino": {"OpenVINO": openvino},
    "onnxruntime": {"onnxruntime": onnxruntime},
}


@dataclass
class Result:
    """What a contestant came to."""

    name: str
    settings: str = ""
    passes: list[Pass] = field(default_factory=list)
    """One a round, without vectors."""
    cosine_mean: float | None = None
    cosine_min: float | None = None
    """Over the texts, to ours in float32."""
    skipped: str | None = None
    """Why it did not take part, or not to the end."""


def compete(task: Task, peers: Sequence[str], num_rounds: int) -> list[Result]:
    """Start ours, the ceiling and these of `PEERS`, and let them run in turn.

    Raises:
        VecmillError: ours fails. A peer that fails is skipped.
    """
    runtimes = {**_OURS, **{name: runtime for peer in peers for name, runtime in PEERS[peer].items()}}
    results: list[Result] = []
    hosts: dict[str, Executor] = {}
    with ExitStack() as stack:
        for runtime in runtimes:
            click.echo(f"{runtime}: starting", err=True)
            host = stack.enter_context(new_host())
            started, problem = _asked(host, _start, runtimes[runtime], task)
            results += [Result(name, settings) for name, settings in started or []]
            hosts |= {name: host for name, _ in started or []}
            if problem:
                _skip(results, runtime, problem)
        to: Vectors | None = None
        for number in range(num_rounds):
            for result in [result for result in results if not result.skipped]:
                done, problem = _asked(hosts[result.name], _run, result.name, number == 0)
                if done is None:
                    _skip(results, result.name, problem)
                    continue
                if done.vectors is not None:
                    to = done.vectors if to is None else to  # the first to run is the reference
                    _compare(result, done.vectors, to)
                result.passes.append(replace(done, vectors=None))
                rate = int(task.lengths.sum()) / done.seconds
                click.echo(f"round {number + 1}: {result.name}: {rate:,.0f} tokens/s", err=True)
    return results


def new_host() -> Executor:
    """A process for one runtime."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_set_up)


def _compare(result: Result, vectors: Vectors, to: Vectors) -> None:
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(to, axis=1)
    cosines = np.einsum("nd,nd->n", vectors, to) / np.maximum(norms, 1e-12)
    result.cosine_mean, result.cosine_min = float(cosines.mean()), float(cosines.min())


def _skip(results: list[Result], name: str, problem: str) -> None:
    if name in (OURS, REFERENCE):
        raise VecmillError(f"{name}: {problem}")
    click.echo(f"{name}: skipped: {problem}", err=True)
    found = next((result for result in results if result.name == name), None)
    if found is None:
        results.append(Result(name, skipped=problem))
    else:
        found.skipped = problem


def _asked(host: Executor, call: Callable[..., tuple[_Given, str]], *arguments: object) -> tuple[_Given | None, str]:
    """What the process gave, and what was wrong, if anything."""
    try:
        return host.submit(call, *arguments).result()
    except BrokenProcessPool:
        return None, "its process ended, perhaps for want of memory"


# What follows runs in a runtime's own process.

_contestants: dict[str, Contestant] = {}


def _set_up() -> None:
    end_with_parent()
    _quiet()


def _quiet() -> None:
    """What libraries print and warn of is no part of the answer."""
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def _start(runtime: Runtime, task: Task) -> tuple[list[tuple[str, str]], str]:
    """Names and settings of those that are ready, and why there are no more."""
    ready = []
    try:
        for contestant in runtime(task):
            _contestants[contestant.name] = contestant
            ready.append((contestant.name, contestant.settings))
    except VecmillError:
        raise
    except Exception as error:
        return ready, why(error)
    return ready, ""


def _run(name: str, with_vectors: bool) -> tuple[Pass | None, str]:
    try:
        done = _contestants[name].run()
    except VecmillError:
        raise
    except Exception as error:
        return None, why(error)
    return done if with_vectors else replace(done, vectors=None), ""
