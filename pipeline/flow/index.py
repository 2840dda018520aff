"""The index flow: each stage of pipeline.index.build as plain Ray tasks, one for each of its items.

    driver: items of a stage, in order -> tasks, so many at a time -> what each found, in the same order

What a task finds is small (records, samples, candidates); what is large goes through storage, under a name
of the attempt, so that a task that is lost with its process is run again, by Ray, without a second thought.
Tasks of Ray and not of Ray Data: nothing streams from one stage to the next, each needs all of the one before.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import ray
from threadpoolctl import threadpool_limits

from pipeline.config import Cluster
from pipeline.errors import EnvironmentFault, Interrupted, VecmillError
from pipeline.flow.cluster import alive_nodes, check_shared, connected
from pipeline.flow.context import DriverEnvironment
from pipeline.flow.pulse import beating, read_beat
from pipeline.flow.watch import STALL_S, Watch
from pipeline.logs import LogSettings
from pipeline.report import StageProgress
from pipeline.signals import interruptible
from pipeline.uris import Storage

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Found = TypeVar("Found")

# What every stage promises to stay below, each bounded by its range.
_TASK_MEMORY_BYTES = 2**30

# More of them in one product of matrices wait for each other.
_MAX_THREADS = 8

# Of a task whose process was killed, or whose node went away.
_MAX_RETRIES = 3

# Tasks handed to Ray for each that can run: the next is there when one ends.
_AHEAD = 2


@dataclass(frozen=True)
class TaskPlan:
    """What one task of a stage holds, and how many there are at a time."""

    num_cpus: int
    memory_bytes: int
    max_running: int


@dataclass(frozen=True)
class Setting:
    """What a worker has to know of the driver; pickled to each of them."""

    run_id: str
    environment: DriverEnvironment
    log_settings: LogSettings


def plan_tasks(nodes: Sequence[Mapping[str, float]], num_items: int) -> TaskPlan:
    """What each of so many tasks gets of these nodes' resources (`{"CPU": ..., "memory": ...}` each).

    A thread each, unless there are fewer tasks than CPUs. No node that has the CPUs is left out for its memory:
    a task that fits nowhere would wait for ever.
    """
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    num_cpus = max(1, min(sum(cpus) // max(1, num_items), max(cpus, default=1), _MAX_THREADS))
    memory = max((int(node.get("memory", 0)) for node in nodes if node.get("CPU", 0) >= num_cpus), default=0)
    return TaskPlan(num_cpus, min(memory, _TASK_MEMORY_BYTES), max(1, sum(cpu // num_cpus for cpu in cpus)))


@contextmanager
def index_session(cluster: Cluster, store: Storage, setting: Setting, *, quiet: bool) -> Iterator[IndexSession]:
    """A connection to Ray for the stages of one build; `quiet` keeps Ray's own log off stderr.

    Raises:
        EnvironmentFault: there is no cluster to be had; or nothing moved any more.
        ClusterError: its nodes cannot share the store.
    """
    with connected(cluster, quiet=quiet), interruptible(), StageProgress() as progress:
        check_shared(store, alive_nodes())
        session = IndexSession(setting, progress)
        watch = Watch(session.beat, STALL_S)
        try:
            with watch:
                yield session
        except BaseException as error:
            verdict = watch.verdict if isinstance(error, Interrupted) else None
            if verdict is not None:
                raise verdict from None
            session.cancel()
            raise


class IndexSession:
    """Runs stages; made by `index_session`."""

    def __init__(self, setting: Setting, progress: StageProgress) -> None:
        self._setting = setting
        self._progress = progress
        self._running: deque[tuple[Any, Future[Any]]] = deque()
        self._num_looks = self._num_done = 0

    def run(
        self,
        stage: str,
        call: Callable[[Item], Found],
        items: Sequence[Item],
        tell: Callable[[Mapping[str, Any]], None],
    ) -> Iterator[Found]:
        """What `call` gives for each item, in their order.

        Args:
            stage: for the eye.
            call: bounded in memory; run again where its process was lost.
            items: at least one.
            tell: called with the progress after each.

        Raises:
            VecmillError: what a task raised; or EnvironmentFault: Ray lost one again and again.
        """
        plan = plan_tasks(alive_nodes(), len(items))
        self._progress.expect(stage, len(items))
        shared = ray.put((self._setting, call))  # once, not with each task: quantizer and panel are in it
        task = ray.remote(_run_task).options(
            num_cpus=plan.num_cpus, memory=plan.memory_bytes or None, max_retries=_MAX_RETRIES, name=stage
        )
        waiting = iter(items)
        # As futures: a signal ends the wait for one, while what Ray waits for in C++ swallows what a handler raises.
        submitted = ((ref, ref.future()) for ref in (task.remote(shared, plan.num_cpus, item) for item in waiting))
        self._running.extend(islice(submitted, _AHEAD * plan.max_running))
        while self._running:
            found = self._wait(stage)
            self._running.extend(islice(submitted, 1))
            self._num_done += 1
            self._progress.add()
            tell(self._progress.figures())
            yield found

    def _wait(self, stage: str) -> Any:
        future = self._running[0][1]
        try:
            found = future.result()
        except ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, VecmillError):
                raise cause from None
            raise
        except ray.exceptions.RayError as error:
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise EnvironmentFault(
                f"a task of the index build ({stage}) was lost {1 + _MAX_RETRIES} times: {first_line[:300]}; what is "
                "done is kept, run the same command again to go on"
            ) from None
        self._running.popleft()
        return found

    def beat(self) -> object:
        """Changes while workers say that they work, or the driver itself does."""
        self._num_looks += not self._running
        return read_beat(self._setting.run_id), self._num_done, self._num_looks

    def cancel(self) -> None:
        """End what still runs: for a Ray that lives on after the run."""
        while self._running and ray.is_initialized():
            ref, _ = self._running.popleft()
            try:
                ray.cancel(ref, force=True)
            except (ray.exceptions.RayError, ValueError) as error:
                log.debug("not cancelled: %s", error)


def _run_task(shared: tuple[Setting, Callable[[Any], Any]], num_threads: int, item: Any) -> Any:
    setting, call = shared
    setting.environment.apply()
    setting.log_settings.apply()
    # faiss and numpy's BLAS each take all cores of the machine otherwise, in every task.
    with threadpool_limits(num_threads), beating(setting.run_id):
        return call(item)
