"""Unit tests start no Ray and do not sleep; both are refused here rather than trusted."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept between runs of a person is neither used nor changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model; not to be written into."""
    from tests.models import make_model

    return make_model(tmp_path_factory.mktemp("models") / "tiny")


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
