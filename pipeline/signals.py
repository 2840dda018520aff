"""Ctrl-C and SIGTERM as exceptions, so that a run ends by its `finally` blocks."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted in the main thread on the first SIGINT or SIGTERM; a second one ends the process at once.

    Enter it after `ray.init`, which installs a SIGTERM handler of its own; a job started in the background
    inherits an ignored SIGINT, which this undoes. Outside the main thread it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal arrived
        if arrived:
            # The first is still cleaning up. Nothing is lost: cleaning up only saves the next run some requests.
            os._exit(128 + number)
        arrived = True
        raise Interrupted(number)

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Give back the handlers that a library replaces within. Ray's of SIGTERM ends the process by `sys.exit`.

    Raises:
        Interrupted: that is what happened.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        raise Interrupted(signal.SIGTERM) from None
    finally:
        for number, handler in before.items():
            if handler is not None:  # one that C code installed cannot be given back
                signal.signal(number, handler)
