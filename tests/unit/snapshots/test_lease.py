"""The lease: a live run is never taken for a dead one, a dead one soon is, and of two one goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline.errors import ConflictError, Interrupted, StorageFault
from pipeline.snapshots.lease import Lease, Process, RunState, Timing, new_run_id, read_run, read_runs
from pipeline.uris import Storage
from tests.stores import FaultyStorage

HERE = Process.current()
ELSEWHERE = replace(HERE, host="elsewhere", pid=7)


class Time:
    """A clock that moves when somebody sleeps; `then` happens at each tick."""

    def __init__(self, then: Callable[[float], None] = lambda now: None) -> None:
        self.now = 0.0
        self.then = then

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.then(self.now)

    @property
    def timing(self) -> Timing:
        # The lease's own beat never comes within a test.
        return Timing(clock=lambda: self.now, sleep=self.sleep, beat_s=3600)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def put_run(
    storage: Storage, run_id: str, process: Process = ELSEWHERE, state: str = "running", counter: int = 1
) -> None:
    run = RunState(run_id, state, counter, process, "2026-01-01T00:00:00Z")
    storage.put(f"runs/{run_id}/run.json", orjson.dumps(run))


def state_of(storage: Storage, run_id: str) -> str | None:
    run = read_run(storage, run_id)
    return run.state if run else None


def test_a_lease_is_held_and_given_back(storage: Storage) -> None:
    time = Time()
    with Lease(storage, "b", timing=time.timing) as lease:
        assert state_of(storage, "b") == "running"
        lease.update({"splits_done": 3})
        with pytest.raises(ConflictError, match=rf"run b holds the store: host .*, pid {os.getpid()}, since 2"):
            Lease(storage, "c", timing=time.timing).acquire()
    run = read_run(storage, "b")
    assert run is not None
    assert (run.state, run.progress) == ("finished", {"splits_done": 3})
    with Lease(storage, "c", timing=time.timing):
        pass
    assert time.now == 0, "nobody had to be waited for"


@pytest.mark.parametrize(
    ("error", "state"),
    [(Interrupted(15), "interrupted"), (KeyboardInterrupt(), "interrupted"), (ValueError(), "failed")],
)
def test_how_a_run_ended_is_kept(storage: Storage, error: BaseException, state: str) -> None:
    with pytest.raises(type(error)), Lease(storage, "a", timing=Time().timing):
        raise error
    assert state_of(storage, "a") == state


def test_a_beat_moves_the_counter(storage: Storage) -> None:
    lease = Lease(storage, "a", timing=Timing(beat_s=0.001))
    with lease:
        first = read_run(storage, "a")
        assert first is not None
        while (now := read_run(storage, "a")) is None or now.counter <= first.counter + 2:
            pass


def test_another_host_is_stale_after_20_s_without_a_beat(storage: Storage) -> None:
    time = Time()
    put_run(storage, "a")
    with Lease(storage, "b", timing=time.timing):
        assert 20 <= time.now < 22


def test_killed_runs_of_other_hosts_are_watched_at_once(storage: Storage) -> None:
    """They stay in the store: one after the other, each would cost every later run 20 s."""
    for run_id in ("a", "b", "c"):
        put_run(storage, run_id)
    put_run(storage, "d", state="starting")
    time = Time()
    with Lease(storage, "e", timing=time.timing):
        assert 20 <= time.now < 22


def test_a_live_run_among_killed_ones_is_seen_at_its_first_beat(storage: Storage) -> None:
    for run_id in ("a", "b", "c"):
        put_run(storage, run_id)
    time = Time(lambda now: put_run(storage, "b", counter=2) if now == 5 else None)
    with pytest.raises(ConflictError, match="run b holds"):
        Lease(storage, "d", timing=time.timing).acquire()
    assert time.now == 5


def test_one_that_goes_on_waiting_is_watched_for_20_s_more(storage: Storage) -> None:
    put_run(storage, "a")
    put_run(storage, "b", state="starting")
    time = Time(lambda now: put_run(storage, "b", state="starting", counter=2) if now == 15 else None)
    with Lease(storage, "c", timing=time.timing):
        assert 35 <= time.now < 37


def test_another_host_that_beats_holds_the_lease(storage: Storage) -> None:
    def beat(now: float) -> None:
        if now == 5:
            put_run(storage, "a", counter=2)

    put_run(storage, "a")
    time = Time(beat)
    with pytest.raises(ConflictError, match="run a holds the store: host elsewhere, pid 7, since 2026-01-01"):
        Lease(storage, "b", timing=time.timing).acquire()
    assert time.now == 5
    assert state_of(storage, "b") is None, "one that gives way before it began leaves nothing"


def test_the_clock_of_another_host_does_not_matter(storage: Storage) -> None:
    """Staleness is on the observer's monotonic clock, however old the file says it is."""
    put_run(storage, "a")
    time = Time(lambda now: put_run(storage, "a", counter=int(now) + 1))
    with pytest.raises(ConflictError):
        Lease(storage, "b", timing=time.timing).acquire()


def test_one_that_ends_while_it_is_watched_frees_the_store(storage: Storage) -> None:
    def end(now: float) -> None:
        if now == 3:
            put_run(storage, "a", state="finished", counter=2)

    put_run(storage, "a")
    time = Time(end)
    with Lease(storage, "b", timing=time.timing):
        assert time.now == 3


def test_a_dead_process_of_this_host_is_stale_at_once(storage: Storage) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stat = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    process = replace(HERE, pid=child.pid, start=stat[19])
    put_run(storage, "a", process)
    time = Time()
    with pytest.raises(ConflictError, match=f"pid {child.pid}"):
        Lease(storage, "b", timing=time.timing).acquire()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now, and gone to all effect
    with Lease(storage, "b", timing=time.timing):
        pass
    child.communicate()
    with Lease(storage, "c", timing=time.timing):
        pass
    assert time.now == 0


def test_a_pid_that_another_process_has_now_is_stale_at_once(storage: Storage) -> None:
    put_run(storage, "a", replace(HERE, start="1"))
    time = Time()
    with Lease(storage, "b", timing=time.timing):
        assert time.now == 0


@pytest.mark.parametrize("change", [{"host": "x"}, {"boot_id": "x"}, {"pid_namespace": "x"}])
def test_a_pid_means_nothing_on_another_boot_or_in_another_container(storage: Storage, change: Any) -> None:
    """There, only the counter tells."""
    put_run(storage, "a", replace(HERE, start="1", **change))
    time = Time()
    with Lease(storage, "b", timing=time.timing):
        assert time.now >= 20


class _Together(Storage):
    """Does something once, just before or after this lease shows itself."""

    def __init__(self, storage: Storage, **hooks: Callable[[], None]) -> None:
        super().__init__(*storage.__reduce__()[1])
        self.hooks = hooks

    def put(self, name: str, data: Any) -> None:
        if before := self.hooks.pop("before", None):
            before()
        super().put(name, data)
        if after := self.hooks.pop("after", None):
            after()


def test_of_two_that_start_together_the_greater_id_gives_way(storage: Storage) -> None:
    time = Time()
    rival = _Together(storage, before=lambda: put_run(storage, "a", state="starting"))
    with pytest.raises(ConflictError, match="run a holds"):
        Lease(rival, "b", timing=time.timing).acquire()
    assert state_of(storage, "b") == "interrupted"


def test_of_two_that_start_together_the_lesser_id_waits_until_the_other_gave_way(storage: Storage) -> None:
    time = Time(lambda now: put_run(storage, "b", state="interrupted", counter=2))
    rival = _Together(storage, before=lambda: put_run(storage, "b", state="starting"))
    with Lease(rival, "a", timing=time.timing):
        assert time.now == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_one_that_looked_before_us_and_runs_keeps_the_lease_whatever_its_id(storage: Storage, when: str) -> None:
    """It saw nobody; that its id is greater than ours must not let both go on."""
    rival = _Together(storage, **{when: lambda: put_run(storage, "b")})
    with pytest.raises(ConflictError, match="run b holds"):
        Lease(rival, "a", timing=Time().timing).acquire()
    assert state_of(storage, "a") == "interrupted"


def test_the_lesser_id_gives_way_when_the_other_comes_to_run(storage: Storage) -> None:
    time = Time(lambda now: put_run(storage, "b", state="running", counter=2))
    rival = _Together(storage, before=lambda: put_run(storage, "b", state="starting"))
    with pytest.raises(ConflictError, match="run b holds"):
        Lease(rival, "a", timing=time.timing).acquire()


def test_one_found_stale_that_wakes_up_is_seen(storage: Storage) -> None:
    put_run(storage, "a")
    rival = _Together(storage, before=lambda: put_run(storage, "a", counter=2))
    with pytest.raises(ConflictError, match="run a holds"):
        Lease(rival, "b", timing=Time().timing).acquire()


def _start(root: Storage, run_id: str, barrier: threading.Barrier, done: threading.Event, held: list[str]) -> bool:
    def sleep(seconds: float) -> None:
        done.wait(seconds / 1000)  # a second of theirs is a millisecond of ours

    timing = Timing(sleep=sleep, beat_s=0.002, stale_s=0.5)
    lease = Lease(root, run_id, process=replace(HERE, host=f"host-{run_id}"), timing=timing)
    barrier.wait()
    try:
        lease.acquire()
    except ConflictError:
        return False
    held.append(run_id)
    done.wait()
    lease.finish("finished")
    return True


def test_of_three_that_race_exactly_one_goes_on(storage: Storage) -> None:
    """On three hosts, so that each knows the others by their counters alone."""
    for round_ in range(5):
        root = Storage(f"{storage.uri}/{round_}")
        barrier, done = threading.Barrier(3), threading.Event()
        held: list[str] = []
        with ThreadPoolExecutor(3) as pool:
            starts = [pool.submit(_start, root, run_id, barrier, done, held) for run_id in "abc"]
            ended = as_completed(starts, timeout=30)
            try:
                assert not next(ended).result()
                assert not next(ended).result()
            finally:
                done.set()
        assert len(held) == 1


def test_a_beat_that_fails_does_not_end_the_run(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    broken = False

    def fail(_: str) -> None:
        if broken:
            raise StorageFault("storage is away")

    with Lease(FaultyStorage(storage, fail), "a", timing=Timing(beat_s=0.001)):
        broken = True
        while "storage is away" not in caplog.text:
            pass


def test_what_is_no_run_is_ignored(storage: Storage) -> None:
    storage.put("runs/a/run.json", b"{")
    storage.put("runs/b/run.json", b"{}")
    storage.put("runs/c/records-000000.parquet", b"")
    assert read_runs(storage) == []
    with Lease(storage, "d", timing=Time().timing):
        pass


def test_run_ids_sort_by_time_and_differ() -> None:
    ids = [new_run_id() for _ in range(50)]
    assert len(set(ids)) == 50
    assert [run_id[:22] for run_id in ids] == sorted(run_id[:22] for run_id in ids)
