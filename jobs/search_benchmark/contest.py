"""Every index open in a process of its own; settings that reach a recall, then rounds of one query after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
import numpy.typing as npt

from jobs.benchmark_peers import why
from jobs.index_benchmark.contest import set_up
from jobs.index_benchmark.task import Contestant, Searcher, Setting, Task
from jobs.search_benchmark.queries import Questions
from pipeline.errors import VecmillError

_Given = TypeVar("_Given")

# By which the fastest of the settings that reach a recall is chosen.
_NUM_TRIED = 64


@dataclass
class Chosen:
    """The cheapest setting of an index that reaches a recall, and what it then took."""

    setting: Setting
    told: str
    recall: float
    rounds_ms: list[float] = field(default_factory=list)
    """Median of one query, by round."""
    high_ms: list[float] = field(default_factory=list)
    """95th percentile, by round."""


@dataclass
class Result:
    """What a contestant came to: by target, None where it does not reach it."""

    name: str
    host: Host | None = None
    chosen: dict[float, Chosen | None] = field(default_factory=dict)
    best_recall: float = 0.0
    skipped: str | None = None


class Failed(Exception):
    """Why an index cannot be searched."""


class Host:
    """An index in a process of its own.

    Raises:
        Failed: it cannot be opened, or later on, not searched.
    """

    def __init__(self, contestant: Contestant, task: Task, folder: Path, questions: Questions) -> None:
        self._pool: Executor = ProcessPoolExecutor(
            1, get_context("spawn"), initializer=set_up, initargs=(contestant.name,)
        )
        self._questions = questions
        self._recalls: dict[Setting, float] = {}
        self.efforts, self.reranks, self.names = self.ask(_open, contestant, task, folder, questions)

    def ask(self, call: Callable[..., tuple[_Given | None, str]], *arguments: object) -> _Given:
        """What the process gave."""
        try:
            found, problem = self._pool.submit(call, *arguments).result()
        except BrokenProcessPool:
            raise Failed("its process ended, perhaps for want of memory") from None
        if found is None:
            raise Failed(problem)
        return found

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()

    def recall(self, setting: Setting) -> float:
        """recall@10 of a setting."""
        if setting not in self._recalls:
            self._recalls[setting] = self._questions.recall(self.ask(_answers, setting))
        return self._recalls[setting]

    def best_recall(self) -> float:
        """Of those tried."""
        return max(self._recalls.values(), default=0.0)

    def choose(self, target: float) -> Chosen | None:
        """The fastest setting that reaches the recall, of those with the least effort for a depth of rerank."""
        candidates = [
            setting
            for rerank in self.reranks
            if (setting := least(self.efforts, rerank, lambda one: self.recall(one) >= target))
        ]
        timed = {setting: float(np.median(self.ask(_time, setting, _NUM_TRIED))) for setting in candidates}
        if not timed:
            return None
        setting = min(timed, key=lambda one: timed[one])
        return Chosen(setting, self.told(setting), self.recall(setting))

    def told(self, setting: Setting) -> str:
        """A setting in words of its library."""
        told = f"{self.names[0]} {setting.effort}"
        return f"{told}, {self.names[1]} {setting.rerank}" if self.names[1] else told

    def time(self, setting: Setting) -> npt.NDArray[np.float64]:
        """Seconds of each query."""
        return self.ask(_time, setting, None)


def least(efforts: Sequence[int], rerank: int, reaches: Callable[[Setting], bool]) -> Setting | None:
    """The least effort that reaches it; more of it never finds less."""
    if not reaches(Setting(efforts[-1], rerank)):
        return None
    low, high = 0, len(efforts) - 1
    while low < high:
        middle = (low + high) // 2
        if reaches(Setting(efforts[middle], rerank)):
            high = middle
        else:
            low = middle + 1
    return Setting(efforts[low], rerank)


def choose_all(results: Sequence[Result], targets: Sequence[float]) -> None:
    """Of each the settings for each target."""
    for result in results:
        if result.host is None:
            continue
        for target in targets:
            try:
                result.chosen[target] = found = result.host.choose(target)
            except Failed as failed:
                skip(result, str(failed))
                break
            result.best_recall = result.host.best_recall()
            told = f"{found.told}: {found.recall:.4f}" if found else f"not reached, {result.best_recall:.4f}"
            click.echo(f"{result.name}: recall {target}: {told}", err=True)


def run_rounds(results: Sequence[Result], targets: Sequence[float], num_rounds: int) -> None:
    """All queries one by one, each contestant in turn, for each target."""
    for number in range(num_rounds):
        for target in targets:
            for result in results:
                chosen = result.chosen.get(target)
                if result.host is None or chosen is None:
                    continue
                try:
                    took = result.host.time(chosen.setting) * 1e3
                except Failed as failed:
                    skip(result, str(failed))
                    continue
                chosen.rounds_ms.append(float(np.median(took)))
                chosen.high_ms.append(float(np.percentile(took, 95)))
                click.echo(f"round {number + 1}: {target}: {result.name}: {chosen.rounds_ms[-1]:.2f} ms", err=True)


def skip(result: Result, problem: str) -> None:
    """Leave it out from now on.

    Raises:
        VecmillError: it is ours.
    """
    if result.name == "ours":
        raise VecmillError(f"ours: {problem}")
    click.echo(f"{result.name}: skipped: {problem}", err=True)
    result.skipped = problem
    if result.host is not None:
        result.host.close()
        result.host = None


# What follows runs in a contestant's own process.

_searcher: Searcher
_questions: Questions


def _open(
    contestant: Contestant, task: Task, folder: Path, questions: Questions
) -> tuple[tuple[Sequence[int], Sequence[int], tuple[str, str]] | None, str]:
    global _searcher, _questions
    try:
        _searcher, _questions = contestant.open(task, folder), questions
    except VecmillError:
        raise
    except Exception as error:
        return None, why(error)
    return (_searcher.efforts, _searcher.reranks, _searcher.names), ""


def _answers(setting: Setting) -> tuple[npt.NDArray[np.int64] | None, str]:
    try:
        return _searcher.search(_questions.vectors, _questions.num_asked, setting), ""
    except VecmillError:
        raise
    except Exception as error:
        return None, why(error)


def _time(setting: Setting, num: int | None) -> tuple[npt.NDArray[np.float64] | None, str]:
    """Seconds of each of the first `num` queries, one by one; the first is asked once before."""
    queries = _questions.vectors[:num]
    seconds = np.empty(len(queries))
    try:
        _searcher.search(queries[:1], _questions.num_asked, setting)
        for place in range(len(queries)):
            started = time.perf_counter()
            _searcher.search(queries[place : place + 1], _questions.num_asked, setting)
            seconds[place] = time.perf_counter() - started
    except VecmillError:
        raise
    except Exception as error:
        return None, why(error)
    return seconds, ""
