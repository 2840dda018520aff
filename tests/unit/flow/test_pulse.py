"""The watchdog: ends a wait in which nothing moves, and no other."""

from __future__ import annotations

import itertools
import threading

import pytest

from pipeline.errors import Interrupted
from pipeline.flow.pulse import Watchdog, beat, beating
from pipeline.signals import interruptible

LONG_S = 30.0


def test_a_wait_in_which_nothing_moves_ends() -> None:
    dog = Watchdog(lambda: "same", lambda: True, stall_s=0.05, poll_s=0.01)
    with interruptible(), dog, pytest.raises(Interrupted):
        threading.Event().wait(LONG_S)
    assert dog.bite == "stalled"


def test_a_wait_for_a_cluster_that_is_gone_ends_at_once() -> None:
    dog = Watchdog(lambda: "same", lambda: False, stall_s=LONG_S, poll_s=0.01)
    with interruptible(), dog, pytest.raises(Interrupted):
        threading.Event().wait(LONG_S)
    assert dog.bite == "gone"


def test_a_wait_in_which_something_moves_now_and_then_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty looks, one a second by its own clock; something moves every other second, and four would be a stall."""
    looks, enough = itertools.count(), threading.Event()
    now = itertools.count()
    monkeypatch.setattr("pipeline.flow.pulse.time.monotonic", lambda: float(next(now)))

    def moving() -> int:
        number = next(looks)
        if number == 60:
            enough.set()
        return number // 2

    with interruptible(), Watchdog(moving, lambda: True, stall_s=4.0, poll_s=0.001) as dog:
        assert enough.wait(LONG_S)
    assert dog.bite is None


def test_a_flow_that_has_ended_is_left_alone() -> None:
    looked = threading.Event()
    go_on = threading.Event()

    def late() -> bool:
        looked.set()
        go_on.wait(LONG_S)
        return False

    with interruptible():
        with Watchdog(lambda: "same", late, stall_s=LONG_S, poll_s=0.001) as dog:
            assert looked.wait(LONG_S)
        go_on.set()
        dog._thread.join(LONG_S)
    assert dog.bite is None


def test_outside_ray_a_beat_is_nothing() -> None:
    with beating("run"):
        beat("run")
