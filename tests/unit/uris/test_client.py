"""How a thread waits for object storage."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from fsspec.asyn import get_loop

from pipeline.errors import Interrupted
from pipeline.signals import interruptible
from pipeline.uris import _client, _retry


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_between_attempts_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Else a put of an interrupted run could arrive after its lease was given back."""
    filesystem: Any = SimpleNamespace(loop=get_loop())
    cancelled, num_asked = threading.Event(), 0

    async def ask(_: Any) -> None:
        nonlocal num_asked
        num_asked += 1
        raise ClientError({"Error": {"Code": "SlowDown"}}, "Operation")

    async def sleep_for_ever(_: float) -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    monkeypatch.setattr(_retry, "_sleep", sleep_for_ever)
    with interruptible(), pytest.raises(Interrupted):
        _client.ask(filesystem, ask, "s3://b/x")
    assert cancelled.wait(60)
    assert num_asked == 1


def test_a_signal_before_the_first_request_lets_none_out() -> None:
    """It may come while the loop is being told; nothing is there to be cancelled then."""
    told: list[Callable[[], None]] = []
    num_asked = 0

    def interrupt(callback: Callable[[], None], *_: object) -> None:
        told.append(callback)
        if len(told) == 1:
            raise Interrupted(signal.SIGINT)

    async def ask(_: Any) -> None:
        nonlocal num_asked
        num_asked += 1

    async def tell() -> None:
        for callback in told:
            callback()
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    filesystem: Any = SimpleNamespace(loop=loop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "call_soon_threadsafe", interrupt)
        with pytest.raises(Interrupted):
            _client.ask(filesystem, ask, "s3://b/x")
    loop.run_until_complete(tell())
    loop.close()
    assert (len(told), num_asked) == (2, 0)
