"""The lease: one run of a store at a time, by a counter in `runs/<run_id>/run.json`.

It saves work: two runs side by side would encode everything twice. Correctness never rests on
it; that is what the conditional put of the manifest is for.

A run is held while its counter moves, every 5 s. It is stale when the counter stood still for
20 s on the observer's own monotonic clock (no clock is compared with another machine's), and at
once if it ran on this host and boot and its process is gone. Those in doubt are watched together.

Of two that start together one goes on. Each writes itself as "starting" and looks again; whoever
sees a run that is "running", or one that is "starting" under a lesser id, gives way; whoever sees
one that is "starting" under a greater id waits to see what becomes of it. So nobody runs on
because it looked too early.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import orjson
import psutil

from pipeline.errors import ConflictError, EnvironmentFault, Interrupted
from pipeline.uris import Storage

log = logging.getLogger(__name__)

BEAT_S = 5.0
STALE_S = 20.0

_POLL_S = 1.0
_THREADS = 32

EndState = Literal["finished", "interrupted", "failed"]


def new_run_id() -> str:
    """A name for a run; later runs sort later."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}-{secrets.token_hex(4)}"


@dataclass(frozen=True)
class Process:
    """A process, named so that it cannot be taken for a later one with its pid."""

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    start: str
    """When it began, on the kernel's own clock where there is one."""

    @classmethod
    def current(cls) -> Process:
        """This process."""
        return cls(socket.gethostname(), _boot_id(), _pid_namespace(), os.getpid(), _process_start(os.getpid()) or "")

    def sees(self, other: Process) -> bool:
        """Whether pids of the other's process mean the same here."""
        here, there = ((p.host, p.boot_id, p.pid_namespace) for p in (self, other))
        return here == there

    def is_alive(self) -> bool:
        """Whether it still runs; only for one that this process `sees`."""
        return _process_start(self.pid) == self.start


@dataclass(frozen=True)
class RunState:
    """The content of run.json."""

    run_id: str
    state: str
    counter: int
    process: Process
    started_at: str
    progress: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_live(self) -> bool:
        """Whether it says so itself; a killed run says so for ever."""
        return self.state in ("starting", "running")


@dataclass(frozen=True)
class Timing:
    """The clock of a lease; tests give their own."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    beat_s: float = BEAT_S
    stale_s: float = STALE_S


class Lease:
    """Holds the store for one run, from `acquire` to `finish`; as a context manager it does both.

    Args:
        storage: rooted at the store.
        run_id: from `new_run_id`.
        process: who runs; this process.
        timing: clock, sleep and intervals.
    """

    def __init__(
        self, storage: Storage, run_id: str, *, process: Process | None = None, timing: Timing | None = None
    ) -> None:
        self._storage = storage
        self._run_id = run_id
        self._process = process or Process.current()
        self._timing = timing or Timing()
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        self._counter = 0
        self._progress: Mapping[str, Any] = {}
        self._lock = threading.Lock()
        self._state = "starting"
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._ended: set[str] = set()
        self._stale: dict[str, int] = {}  # run id -> the counter that stood still

    def acquire(self) -> None:
        """Take the lease.

        Raises:
            ConflictError: another run holds it.
        """
        self._wait_for(self._live())
        self._write()
        self._thread = threading.Thread(target=self._beat, name="vecmill-lease", daemon=True)
        self._thread.start()
        try:
            later = []
            for other in self._live():
                if other.state == "starting" and other.run_id > self._run_id:
                    later.append(other)
                elif not self._is_gone(other):
                    raise _held(other)
            self._wait_for(later)
            self._state = "running"
            self._write()
        except BaseException:
            self.finish("interrupted")
            raise

    def update(self, progress: Mapping[str, Any]) -> None:
        """What the next beat tells of the run's progress (JSON values)."""
        self._progress = dict(progress)

    def finish(self, state: EndState) -> None:
        """Give the lease back; a second call does nothing."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        self._state = state
        self._write_or_log()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish("finished")
        else:
            self.finish("interrupted" if issubclass(kind, KeyboardInterrupt | Interrupted) else "failed")

    def _beat(self) -> None:
        while not self._stop.wait(self._timing.beat_s):
            self._write_or_log()

    def _write_or_log(self) -> None:
        try:
            self._write()
        except (EnvironmentFault, FileNotFoundError) as error:
            # The work goes on: at worst another run starts beside it, and one of the two publishes.
            log.warning("the lease of run %s could not be written: %s", self._run_id, error)

    def _write(self) -> None:
        with self._lock:
            self._counter += 1
            run = RunState(self._run_id, self._state, self._counter, self._process, self._started_at, self._progress)
            self._storage.put(_name(self._run_id), orjson.dumps(run, option=orjson.OPT_SERIALIZE_DATACLASS))

    def _live(self) -> Iterator[RunState]:
        """Other runs that say they are live, without those found stale that have not moved since."""
        for run in read_runs(self._storage, skip=self._ended | {self._run_id}):
            if not run.is_live:
                self._ended.add(run.run_id)
            elif self._stale.get(run.run_id) != run.counter:
                yield run

    def _is_gone(self, run: RunState) -> bool:
        """Whether it is known, without waiting, that the process of a run has ended."""
        if self._process.sees(run.process) and not run.process.is_alive():
            self._stale[run.run_id] = run.counter
            return True
        return False

    def _wait_for(self, runs: Iterable[RunState]) -> None:
        """Return when each of the runs has ended or is stale; raise as soon as one is known to hold the lease.

        All are watched at once: killed runs stay in the store, and must not cost a wait each.
        """
        watched: dict[str, tuple[RunState, float]] = {}  # and when it is stale
        for run in runs:
            if self._is_gone(run):
                continue
            if self._process.sees(run.process) and run.state == "running":
                raise _held(run)
            log.info("waiting to see whether run %s on %s is alive", run.run_id, run.process.host)
            watched[run.run_id] = (run, self._timing.clock() + self._timing.stale_s)
        with ThreadPoolExecutor(_THREADS) as pool:
            while watched:
                self._timing.sleep(_POLL_S)
                now = self._timing.clock()  # before the reads, which take a while: a counter stood still until then
                found = pool.map(lambda run_id: read_run(self._storage, run_id), watched)
                for (run, stale_at), state in zip(list(watched.values()), found, strict=True):
                    if state is None or not state.is_live or self._is_gone(state):
                        del watched[run.run_id]
                    elif state.state == "running" and (state.counter != run.counter or self._process.sees(run.process)):
                        raise _held(state)
                    elif state.counter != run.counter:  # it goes on waiting for others
                        watched[run.run_id] = (state, now + self._timing.stale_s)
                    elif now >= stale_at:
                        self._stale[run.run_id] = run.counter
                        del watched[run.run_id]


def read_runs(storage: Storage, skip: Collection[str] = ()) -> list[RunState]:
    """The runs of a store, oldest first, without those whose ids are in `skip`."""
    run_ids = [info.name.split("/")[1] for info in storage.list("runs") if info.name.endswith("/run.json")]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda run_id: read_run(storage, run_id), [r for r in run_ids if r not in skip])
        return sorted(filter(None, found), key=lambda run: run.run_id)


def read_run(storage: Storage, run_id: str) -> RunState | None:
    """What run.json of a run says; None if there is none, or it is of another kind."""
    try:
        value = orjson.loads(storage.read(_name(run_id)))
        process = Process(**{item.name: value["process"][item.name] for item in fields(Process)})
        return RunState(**{item.name: value[item.name] for item in fields(RunState)} | {"process": process})
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, TypeError, KeyError):
        log.warning("ignored, no state of a run: %s", storage.full_uri(_name(run_id)))
        return None


def _name(run_id: str) -> str:
    return f"runs/{run_id}/run.json"


def _held(run: RunState) -> ConflictError:
    process = run.process
    return ConflictError(
        f"run {run.run_id} holds the store: host {process.host}, pid {process.pid}, since {run.started_at}; "
        "wait for it, or end it"
    )


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _process_start(pid: int) -> str | None:
    """When a process began; None if there is none, or it has ended and only waits to be collected."""
    try:
        # Ticks since boot: psutil's create_time moves when the wall clock is set. The name before them may hold
        # anything, so count from the last parenthesis.
        state, *rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]
    except (OSError, ValueError, IndexError):
        pass
    try:
        return None if not psutil.pid_exists(pid) else str(psutil.Process(pid).create_time())
    except psutil.Error:
        return None
