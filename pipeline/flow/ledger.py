"""The attempt ledger: which document kills its process, found in few deaths and at no cost to others.

A segfault or an out-of-memory kill leaves no exception to look at. Ray drops what was in work on
that process, innocents queued behind it included; the driver finds those splits left and drives
them again. From its second attempt on a split leaves marks in the store: before a unit of it is
tried, the attempt writes which rows that unit has. What is still marked once the process is gone
was in hand at its death:

    attempt 1   no marks; all of the split is in doubt
    attempt 2   a mark a token batch; its rows are in doubt from then on
    attempt 3   all others first, then each row in doubt alone; a death then counts against one row
    attempt 4   the same; at its second death alone a row is guilty: quarantined as "killed_process"

Attempts go on while marks tell something new, so several such documents in a split are found one
after the other. A death counts only if its node answers afterwards: a node that was lost took
everybody with it. A reader that dies before it has documents to mark marks where it reads; that
place, fatal twice, ends the range there, and the rest of it is quarantined as one row. Of a pack the
places are its members: those that are fatal are left out, each quarantined as a file.

    runs/<run_id>/attempts/<split_id>-<n>.json         of the encoder, split as it was cut
    runs/<run_id>/attempts/<split_id>-<n>-read.json    of the reader, split as it was planned
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson

from pipeline.schema import Stage
from pipeline.splits import Split
from pipeline.splits.plan import split_id
from pipeline.uris import Storage

KILLED = "its process was killed twice while nothing but it was in work"

# What one alone must kill before it is taken for guilty: the first may have been bad luck.
_DEATHS_TO_CONVICT = 2

_NAME = re.compile(r"runs/[^/]+/attempts/[0-9a-f]{32}-([0-9]+)(?:-read)?\.json")


@dataclass(frozen=True)
class Trial:
    """How the next attempt of a planned split is made; travels with its rows.

    `alone` and `guilty` are rows (as in DOCUMENT_FIELDS) by stage.
    """

    work_id: str = ""
    number: int = 1
    alone: dict[str, list[int]] = field(default_factory=dict)
    guilty: dict[str, list[int]] = field(default_factory=dict)
    fatal: list[int] = field(default_factory=list)
    """Where reading killed two processes: places of a range, or members of a pack."""

    @property
    def fatal_at(self) -> int | None:
        """Where the reading of a range ends."""
        return min(self.fatal, default=None)

    @property
    def is_marked(self) -> bool:
        """Whether the attempt leaves marks."""
        return self.number > 1


FIRST_TRIAL = Trial()
"""Of any split: the driver holds them by the million, and a first attempt has no need of a name."""


def work_id(split: Split) -> str:
    """A name for a planned split, whose end may not be known yet."""
    return split_id(split.file.file_id, split.begin, split.begin if split.end is None else split.end)


class Marks:
    """What an attempt writes of itself; nothing in a first one.

    Args:
        storage: rooted at the store.
        run_id: of the run.
        trial: of the attempt.
        node_id: where it runs.
        split: that is encoded; None: the planned one, by its reader.
    """

    def __init__(self, storage: Storage, run_id: str, trial: Trial, node_id: str, split: Split | None = None) -> None:
        stem = f"{trial.work_id}-{trial.number}-read" if split is None else f"{split.split_id}-{trial.number}"
        self._name = f"runs/{run_id}/attempts/{stem}.json"
        self._storage = storage
        self._trial = trial
        self._node_id = node_id
        self._last: bytes | None = None

    def before(self, stage: Stage, rows: np.ndarray | None = None, begin: int | None = None) -> None:
        """This unit is tried next: rows of documents, or whatever is read from `begin` on."""
        self._put(stage, rows, begin)

    def finish(self) -> None:
        """Nothing is in hand."""
        self._put(None, None, None)

    def _put(self, stage: Stage | None, rows: np.ndarray | None, begin: int | None) -> None:
        if not self._trial.is_marked:
            return
        unit = {
            "work_id": self._trial.work_id,
            "attempt": self._trial.number,
            "node_id": self._node_id,
            "pid": os.getpid(),
            "stage": stage,
            "rows": [] if rows is None else np.unique(rows).tolist(),
            "begin": begin,
            "finished": stage is None,
        }
        mark = orjson.dumps(unit)
        if mark != self._last:  # as of one chunk after another of a document alone
            self._storage.put(self._name, mark)
            self._last = mark


@dataclass
class _Case:
    """What is known of one planned split that was lost."""

    trial: Trial
    in_doubt: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    deaths_alone: Counter[tuple[str, int]] = field(default_factory=Counter)
    deaths_reading: Counter[int] = field(default_factory=Counter)

    def add(self, stage: str, rows: Sequence[int], begin: int | None) -> None:
        """A death with this unit in hand."""
        if begin is not None:
            self.deaths_reading[begin] += 1
        elif len(rows) == 1:
            self.deaths_alone[stage, rows[0]] += 1
        self.in_doubt[stage].update(rows)

    def next_trial(self) -> Trial:
        guilty: defaultdict[str, list[int]] = defaultdict(list)
        for (stage, row), deaths in sorted(self.deaths_alone.items()):
            if deaths >= _DEATHS_TO_CONVICT:
                guilty[stage].append(row)
        fatal = [begin for begin, deaths in self.deaths_reading.items() if deaths >= _DEATHS_TO_CONVICT]
        return replace(
            self.trial,
            number=self.trial.number + 1,
            alone={stage: sorted(rows.difference(guilty[stage])) for stage, rows in self.in_doubt.items()},
            guilty=dict(guilty),
            fatal=sorted(fatal),
        )


class Ledger:
    """The driver's side: learns from the marks of what was lost, and says how it is tried next."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        self._storage = storage
        self._prefix = f"runs/{run_id}/attempts"
        self._cases: dict[str, _Case] = {}

    def trial(self, split: Split) -> Trial:
        """Of a planned split's next attempt."""
        if not self._cases:
            return FIRST_TRIAL
        case = self._cases.get(work_id(split))
        return case.trial if case else FIRST_TRIAL

    def learn(self, lost: Iterable[Split], is_node_alive: Callable[[str], bool]) -> bool:
        """Take account of planned splits that a flow has left undone; whether their marks told something new.

        Raises:
            EnvironmentFault: storage failed.
        """
        cases = {key: self._cases.setdefault(key, _Case(Trial(key))) for key in map(work_id, lost)}
        learned = any(case.trial.number == 1 for case in cases.values())
        marked = {key: case for key, case in cases.items() if case.trial.is_marked}
        for unit in self._open_units(marked) if marked else ():
            if is_node_alive(unit["node_id"]):
                marked[unit["work_id"]].add(unit["stage"], unit["rows"], unit["begin"])
                learned = True
        for case in cases.values():
            case.trial = case.next_trial()
        return learned

    def _open_units(self, cases: dict[str, _Case]) -> Iterable[dict[str, Any]]:
        """Marks that the last attempts of these left standing."""
        numbers = {case.trial.number for case in cases.values()}
        for info in self._storage.list(self._prefix):
            match = _NAME.fullmatch(info.name)
            if match and int(match[1]) in numbers:
                unit = orjson.loads(self._storage.read(info.name))
                case = cases.get(unit["work_id"])
                if case is not None and unit["attempt"] == case.trial.number and not unit["finished"]:
                    yield unit
