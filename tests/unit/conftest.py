"""Unit tests start no Ray and do not sleep; both are refused here rather than trusted."""

from __future__ import annotations

import sys
import time

import pytest


@pytest.fixture(autouse=True)
def _no_ray_no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    real_sleep = time.sleep

    def refuse(seconds: float) -> None:
        # Libraries poll in milliseconds (file locks); what waits for something to happen is no unit test.
        if seconds > 0.1:
            raise AssertionError(f"a unit test may not sleep: {seconds} s")
        real_sleep(seconds)

    monkeypatch.setattr(time, "sleep", refuse)
    if "ray" in sys.modules:  # else there is nothing to start it with

        def refuse_ray(*args: object, **kwargs: object) -> None:
            raise AssertionError("a unit test may not start Ray")

        monkeypatch.setattr("ray.init", refuse_ray)
