"""The watch over a run that waits for the cluster: ends it where nothing moves any more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pipeline.errors import ClusterGone, EnvironmentFault
from pipeline.flow.cluster import is_answering
from pipeline.flow.pulse import Watchdog

# Long enough for a cluster to bring up nodes, short beside what idle GPUs cost until somebody looks.
STALL_S = 900.0


class Watch:
    """A watchdog over what waits in the main thread; elsewhere nobody watches.

    Args:
        beat: what changes while anything moves.
        stall_s: how long nothing may move.
    """

    def __init__(self, beat: Callable[[], object], stall_s: float) -> None:
        self._stall_s = stall_s
        self._dog = Watchdog(beat, is_answering, stall_s)
        is_main = threading.current_thread() is threading.main_thread()
        self._guard: AbstractContextManager[object] = self._dog if is_main else nullcontext()

    def __enter__(self) -> None:
        self._guard.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._guard.__exit__(*error)

    @property
    def verdict(self) -> EnvironmentFault | None:
        """What the watchdog ended the wait for; None: it did not."""
        match self._dog.bite:
            case "stalled":
                return EnvironmentFault(
                    f"nothing moved for {self._stall_s:.0f} s: nothing was done and no worker said that it works; what "
                    "is done is kept, run the same command again"
                )
            case "gone":
                return ClusterGone("the Ray cluster is gone; what is done is kept, run the same command again")
        return None
