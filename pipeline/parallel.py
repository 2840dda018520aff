"""What is done at once on one machine: how much it can, and reads ahead of what uses them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_ahead(pool: Executor, call: Callable[[Item], Found], items: Iterable[Item], num: int) -> Iterator[Found]:
    """As `pool.map`, but items are taken, and results wait, only `num` at a time."""
    running: deque[Future[Found]] = deque()
    for item in items:
        running.append(pool.submit(call, item))
        if len(running) >= num:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
