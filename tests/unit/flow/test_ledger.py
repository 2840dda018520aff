"""The attempt ledger: killers are found in few deaths each, and nobody else is charged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.flow.ledger import Ledger, Marks, Trial, work_id
from pipeline.splits import InputFile, Split
from pipeline.uris import Storage
from tests.stores import Killed

SPLIT = Split(InputFile("a.jsonl", 10, "v1", "etag"), "jsonl", None, 0, None, None)
NODE = "n" * 56


def alive(node_id: str) -> bool:
    return True


def attempt(storage: Storage, trial: Trial, rows: Sequence[int], killers: Callable[[Sequence[int]], bool]) -> list[int]:
    """An encoder in miniature: batches of four, those in doubt alone and last. The rows it quarantines."""
    split = Split(SPLIT.file, "jsonl", None, 0, 10, True)
    marks = Marks(storage, "run", trial, NODE, split)
    guilty, alone = trial.guilty.get("encode", []), trial.alone.get("encode", [])
    rest = [row for row in rows if row not in guilty and row not in alone]
    units = [rest[begin : begin + 4] for begin in range(0, len(rest), 4)] + [[row] for row in alone]
    for unit in units:
        marks.before("encode", np.array(unit))
        if killers(unit):
            raise Killed
    marks.finish()
    return guilty


def to_end(
    storage: Storage, rows: Sequence[int], killers: Callable[[Sequence[int]], bool], node: Callable[[str], bool] = alive
) -> tuple[list[int], int]:
    """What is quarantined in the end, and after how many deaths."""
    ledger = Ledger(storage, "run")
    for deaths in range(200):
        try:
            return attempt(storage, ledger.trial(SPLIT), rows, killers), deaths
        except Killed:
            ledger.learn([SPLIT], node)
    raise AssertionError("it went on killing")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), max_size=4))))
def test_killers_are_found_and_nobody_else(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[int, set[int]]
) -> None:
    """At most three deaths a killer besides the two that convict it."""
    num_rows, killers = case
    storage = Storage(str(tmp_path_factory.mktemp("store")))
    found, deaths = to_end(storage, range(num_rows), lambda unit: not killers.isdisjoint(unit))
    assert set(found) == killers
    assert deaths <= 5 * len(killers)


def test_one_killer_takes_four_deaths(tmp_path: Path) -> None:
    """The split, its batch, and twice alone."""
    assert to_end(Storage(str(tmp_path)), range(20), lambda unit: 7 in unit) == ([7], 4)


def test_a_batch_that_kills_only_together_convicts_nobody(tmp_path: Path) -> None:
    """Too much memory at once: alone each of them is fine."""
    found, deaths = to_end(Storage(str(tmp_path)), range(20), lambda unit: 5 in unit and len(unit) > 1)
    assert (found, deaths) == ([], 2)


def test_bad_luck_once_convicts_nobody(tmp_path: Path) -> None:
    """Alone in a process that something else killed, once."""
    deaths: Counter[str] = Counter()

    def killers(unit: Sequence[int]) -> bool:
        deaths["all"] += 7 in unit
        return 7 in unit and deaths["all"] <= 3

    assert to_end(Storage(str(tmp_path)), range(20), killers) == ([], 3)


def test_a_lost_node_counts_against_nobody(tmp_path: Path) -> None:
    """However often the node goes away with a document alone in work."""
    storage = Storage(str(tmp_path))
    ledger = Ledger(storage, "run")
    for number in range(10):
        with pytest.raises(Killed):
            attempt(storage, ledger.trial(SPLIT), [3], lambda unit: True)
        assert ledger.learn([SPLIT], lambda node_id: node_id != NODE) == (number == 0)
    assert (ledger.trial(SPLIT).guilty, ledger.trial(SPLIT).alone) == ({}, {})


def test_a_first_attempt_writes_nothing(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    attempt(storage, Ledger(storage, "run").trial(SPLIT), range(100), lambda unit: False)
    assert storage.list("runs") == []


def test_marks_of_what_was_finished_teach_nothing(tmp_path: Path) -> None:
    """The attempt came to its end, and what it made was lost later: with a writer, or with a node's objects."""
    storage = Storage(str(tmp_path))
    ledger = Ledger(storage, "run")
    ledger.learn([SPLIT], alive)
    assert attempt(storage, ledger.trial(SPLIT), range(10), lambda unit: False) == []
    assert not ledger.learn([SPLIT], alive)
    assert ledger.trial(SPLIT).alone == {}


def test_a_place_where_reading_kills_twice_ends_the_range(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    ledger = Ledger(storage, "run")
    ledger.learn([SPLIT], alive)
    for fatal_at in (None, None):
        trial = ledger.trial(SPLIT)
        assert trial.fatal_at == fatal_at
        Marks(storage, "run", trial, NODE).before("read", begin=40)
        assert ledger.learn([SPLIT], alive)
    assert ledger.trial(SPLIT).fatal_at == 40


def test_the_ledger_lies_where_the_design_says(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    split = Split(SPLIT.file, "jsonl", None, 0, 10, True)
    trial = Trial(work_id(split), number=2)
    Marks(storage, "run", trial, NODE, split).before("encode", np.array([1, 2]))
    assert [info.name for info in storage.list("runs")] == [f"runs/run/attempts/{split.split_id}-2.json"]
