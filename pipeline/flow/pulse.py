"""A pulse of the workers: the driver tells a flow in which nothing moves from one whose splits are merely long.

A worker that does something (reads a piece, tries a token batch) says so, at most every few
seconds, by a put of one small key into the cluster's own key-value store, which costs no process
and no file. What it holds does not matter; that it changes does.

Ray's own guard counts blocks, and would end a healthy job whose splits take longer than it waits.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Literal

_BEAT_S = 5.0
_last_beat = 0.0


def beat(run_id: str) -> None:
    """Say that this worker does something; nothing outside Ray."""
    global _last_beat
    now = time.monotonic()
    ray = sys.modules.get("ray")
    if now - _last_beat < _BEAT_S or ray is None or not ray.is_initialized():
        return
    _last_beat = now
    from ray.experimental.internal_kv import _internal_kv_put

    # A cluster that does not take it has other troubles, which show themselves; the work goes on.
    with suppress(ray.exceptions.RayError):
        _internal_kv_put(_key(run_id), f"{os.getpid()} {now}".encode(), overwrite=True)


@contextmanager
def beating(run_id: str) -> Iterator[None]:
    """Beat from a thread: while a model is fetched and loaded, which has timeouts of its own."""
    done = threading.Event()

    def go_on() -> None:
        while not done.wait(_BEAT_S):
            beat(run_id)

    thread = threading.Thread(target=go_on, name="vecmill-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def read_beat(run_id: str) -> bytes:
    """What the last worker to move has put; empty if the cluster does not say."""
    from ray.exceptions import RayError
    from ray.experimental.internal_kv import _internal_kv_get

    with suppress(RayError):
        return _internal_kv_get(_key(run_id)) or b""
    return b""


def _key(run_id: str) -> bytes:
    return f"vecmill/{run_id}/pulse".encode()


class Watchdog:
    """Ends a wait of the main thread in which nothing moves, as Ctrl-C would.

    Args:
        beat: what changes while anything moves.
        is_answering: whether there still is a cluster to wait for.
        stall_s: how long nothing may move.
        poll_s: how often to look.
    """

    def __init__(
        self, beat: Callable[[], object], is_answering: Callable[[], bool], stall_s: float, poll_s: float = 2.0
    ) -> None:
        self._beat = beat
        self._is_answering = is_answering
        self._stall_s = stall_s
        self._poll_s = poll_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="vecmill-watchdog", daemon=True)
        self.bite: Literal["stalled", "gone"] | None = None
        """Why it ended the wait, if it did."""

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not joined: it may itself wait for a cluster that does not answer.
        self._stop.set()

    def _watch(self) -> None:
        last: object = None
        moved_at = time.monotonic()
        while not self._stop.wait(self._poll_s):
            if not self._is_answering():
                self._end("gone")
                return
            found = self._beat()
            if found != last:
                last, moved_at = found, time.monotonic()
            elif time.monotonic() - moved_at >= self._stall_s:
                self._end("stalled")
                return

    def _end(self, why: Literal["stalled", "gone"]) -> None:
        if not self._stop.is_set():
            self.bite = why
            # To that thread itself: it waits in C, which only a signal of its own ends.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
