"""What a tree of processes costs while it works: CPU-seconds of all, and the most memory that one has to itself.

Private memory (USS) is what would come free if the process ended; what processes share, as Ray's object
store, is in none of them. It is sampled, so a peak between two samples is missed. A process that ends between two
samples takes its last CPU time with it uncounted.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import psutil

_EVERY_S = 0.2

# Of the time that sampling takes, so that it is at most a tenth of a core beside what is measured.
_REST = 9


@dataclass
class Usage:
    """What was used."""

    cpu_s: float = 0.0
    cpu_s_by_process: dict[str, float] = field(default_factory=dict)
    """By name; all of Ray's workers are one."""
    peak_bytes: int = 0
    """USS of the process that had the most."""
    peak_process: str = ""
    """Which that was."""
    peak_total_bytes: int = 0
    """USS of all at once."""


@dataclass
class _Seen:
    name: str
    first_s: float
    last_s: float


@dataclass
class UsageWatch:
    """Watches a process and all below it, from another one: `with UsageWatch(pid) as watch: ...; watch.usage`."""

    pid: int
    usage: Usage = field(default_factory=Usage)
    _seen: dict[tuple[int, float], _Seen] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._sample(is_first=True)
        self._thread = threading.Thread(target=self._watch, name="usage", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()
        used = Counter[str]()
        for seen in self._seen.values():
            used[seen.name] += seen.last_s - seen.first_s  # type: ignore[assignment]
        self.usage.cpu_s = sum(used.values())
        self.usage.cpu_s_by_process = {name: round(seconds, 2) for name, seconds in used.most_common() if seconds}

    def _watch(self) -> None:
        pause = _EVERY_S
        while not self._stop.wait(pause):
            started = time.monotonic()
            self._sample()
            pause = max(_EVERY_S, _REST * (time.monotonic() - started))

    def _sample(self, *, is_first: bool = False) -> None:
        try:
            top = psutil.Process(self.pid)
            processes = [top, *top.children(recursive=True)]
        except psutil.Error:
            return
        total = 0
        for process in processes:
            try:
                total += self._sample_one(process, is_first=is_first)
            except psutil.Error:
                continue  # it has just ended
        self.usage.peak_total_bytes = max(self.usage.peak_total_bytes, total)

    def _sample_one(self, process: psutil.Process, *, is_first: bool) -> int:
        times = process.cpu_times()
        used_s, key = times.user + times.system, (process.pid, process.create_time())
        if key not in self._seen:
            name = "driver" if process.pid == self.pid else _name(process)
            is_worker = name.startswith(("ray::", "default_worker"))
            self._seen[key] = _Seen("workers" if is_worker else name, used_s if is_first else 0.0, used_s)
        self._seen[key].last_s = used_s
        num_bytes = int(process.memory_full_info().uss)
        if num_bytes > self.usage.peak_bytes:
            self.usage.peak_bytes = num_bytes
            self.usage.peak_process = "driver" if process.pid == self.pid else _name(process)
        return num_bytes


def _name(process: psutil.Process) -> str:
    """What it is: Ray's workers rename themselves after the task that they run; of Python's the script."""
    words = " ".join(process.cmdline()).split() or [process.name()]
    titles = [word.rpartition("/")[2] for word in words]
    return next((title for title in titles if title.endswith(".py")), titles[0])
