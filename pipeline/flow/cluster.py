"""Where a flow runs: connect to a cluster or start Ray in place, and fit the actor pool into it.

The pool's CPUs and one task of each other operator must fit at the same time. Where they do not,
Ray Data schedules by object-store budget and deadlocks once rows are big; tiny data hides it.
So this is checked, with a sentence, before anything starts.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

from pipeline.config import Cluster, PoolSize
from pipeline.errors import ClusterError, ClusterGone, EnvironmentFault
from pipeline.parallel import num_cores
from pipeline.signals import handlers_kept
from pipeline.uris import Storage

log = logging.getLogger(__name__)

READ_CPUS = 0.5  # reading waits for storage half of its time
WRITE_CPUS = 0.25  # writing is compression of ids and one upload
_CONNECT_TIMEOUT_S = 10.0
_NODE_TIMEOUT_S = 30.0
_MAX_TOLD_BLOCKS = 20
_lost_blocks = itertools.count()
_OTHERS_CPUS = READ_CPUS + WRITE_CPUS

# More threads than this in one forward pass of a small encoder cost more in waiting than they bring.
_MAX_THREADS_PER_ENCODER = 8


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """The actor pool of encoders: how many, and what each one holds."""

    min_size: int
    max_size: int
    num_cpus: float
    num_gpus: float

    @property
    def num_threads(self) -> int | None:
        """CPU threads of one encoder; None on a GPU, where the host's threads hardly matter."""
        return None if self.num_gpus else int(self.num_cpus)


@contextmanager
def connected(cluster: Cluster, *, quiet: bool = True) -> Iterator[None]:
    """Connect to Ray for the time of a run's flows.

    An already initialized Ray is used and left running. Without an address Ray starts in place.

    Raises:
        EnvironmentFault: the cluster cannot be reached, or Ray cannot start here.
    """
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if not address:
        # Only where Ray starts in place: a cluster's own setting stands. Token authentication is on by default
        # and needs a writable HOME.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray  # after the environment: Ray reads it when it is imported
    import ray.data

    if quiet:
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("ray.data._internal.execution.streaming_executor_state").addFilter(_in_one_line)

    if ray.is_initialized():
        yield
        return
    if address:
        _check_answers(address)
    with _stdout_kept(quiet):
        yield from _started(ray, address, quiet)


def _started(ray: Any, address: str | None, quiet: bool) -> Iterator[None]:
    logged: dict[str, Any] = {"log_to_driver": not quiet, "logging_level": logging.ERROR if quiet else logging.INFO}
    try:
        with _silent_stderr(quiet), handlers_kept():
            if address:
                ray.init(address=address, **logged)
            else:
                # "local": never a cluster that happens to run on this machine. CPUs are logical: with two of them
                # readers would starve beside an encoder.
                ray.init(address="local", include_dashboard=False, num_cpus=max(4, num_cores()), **logged)
    except Exception as error:  # of a node that does not come up in time Ray raises no narrower one
        where = f"no Ray cluster answers at {address}" if address else "Ray cannot start here"
        said = " ".join(str(error).split())[:300].rstrip(".")
        raise EnvironmentFault(f"{where}: {said}; put it right, then run the same command again") from None
    try:
        yield
    except ClusterGone:
        raise  # without a shutdown, which would wait for what is gone
    except BaseException:
        ray.shutdown()
        raise
    else:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Fail within seconds where nothing listens: Ray itself goes on trying for minutes.

    Raises:
        EnvironmentFault: there is no connection to be had.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")  # [::1]:6379 is an address too
    if not colon or not port.isdigit():
        return  # "auto": Ray's own files say where
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise EnvironmentFault(
            f"no Ray cluster answers at {address}: {error}; start it, or mend cluster.address"
        ) from None


def _in_one_line(record: logging.LogRecord) -> bool:
    """Ray Data logs a block that is lost with a traceback of its own inside; here its split is driven again."""
    if record.exc_info is None or record.exc_info[1] is None:
        return True
    number = next(_lost_blocks)
    if number >= _MAX_TOLD_BLOCKS:  # a node that lacks a library loses every block; the driver tells how many
        return False
    error = record.exc_info[1]
    lines = str(error).strip().splitlines()
    # Of what a task raised the last line says what, of what Ray found out the first.
    told = lines[-1 if hasattr(error, "cause") else 0] if lines else ""
    log.warning("lost with its process: %s: %s", type(error).__name__, told[:300])
    return False


@contextmanager
def _stdout_kept(quiet: bool) -> Iterator[None]:
    """Keep Ray off stdout, which carries the answer: whatever it is told, it prints there of lost tasks."""
    if not quiet:
        with redirect_stdout(sys.stderr):
            yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


@contextmanager
def _silent_stderr(silent: bool) -> Iterator[None]:
    """Keep what C++ code writes to stderr off it; what goes wrong comes as an exception."""
    if not silent:
        yield
        return
    # Without it each flow prints an error line about restarts that is not true of Ray Data, which holds what it
    # speaks of (ray#53727). With it Ray prints, once, that it was set: hence the detour of file descriptor 2.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def alive_nodes() -> list[Mapping[str, float]]:
    """The resources (`{"CPU": ..., "GPU": ...}`) of each node that is alive."""
    return [node["Resources"] for node in _nodes()]


def _nodes() -> list[Mapping[str, Any]]:
    import ray

    nodes: list[Mapping[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def node_answers(node_id: str) -> bool:
    """Whether a node runs a task now: what the cluster says of it may be half a minute old."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if node_id not in (node["NodeID"] for node in _nodes()):
        return False
    task = ray.remote(num_cpus=0, max_retries=0)(_nothing)
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    try:
        ray.get(task.options(scheduling_strategy=there).remote(), timeout=_NODE_TIMEOUT_S)
    except ray.exceptions.RayError:
        return False
    return True


def _nothing() -> None:
    pass


def is_answering() -> bool:
    """Whether the head of the cluster, and this machine's part of it, still listen.

    Ray itself notices within 15 to 60 s, and then ends this process without a word.
    """
    import ray

    context = ray.get_runtime_context()
    addresses = [context.gcs_address]
    addresses += [
        f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}" for node in _own_node(context.get_node_id())
    ]
    return all(_listens(address) for address in addresses)


@functools.cache
def _own_node(node_id: str) -> list[Mapping[str, Any]]:
    return [node for node in _nodes() if node["NodeID"] == node_id]


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True  # a network that hiccups is Ray's to judge
    return True


def check_shared(store: Storage, nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse a store that the nodes cannot share.

    Raises:
        ClusterError: it is local, and there are several.
    """
    if len(nodes) > 1 and store.is_local:
        raise ClusterError(
            f"a local store on a cluster of {len(nodes)} nodes: {store.uri}; give a store.uri on object storage"
        )


def plan_pool(cluster: Cluster, nodes: Sequence[Mapping[str, float]]) -> PoolPlan:
    """The actor pool for these nodes' resources (`{"CPU": ..., "GPU": ...}` each).

    Raises:
        ClusterError: the pool does not fit beside one reader and one writer.
    """
    gpus = [node.get("GPU", 0.0) for node in nodes]
    cpus = [node.get("CPU", 0.0) for node in nodes]
    if sum(gpus) > 0:
        return _gpu_pool(cluster, gpus, cpus)
    return _cpu_pool(cluster, cpus)


def _gpu_pool(cluster: Cluster, gpus: Sequence[float], cpus: Sequence[float]) -> PoolPlan:
    per_encoder = cluster.gpus_per_encoder
    room = sum(math.floor(gpu / per_encoder + 1e-9) for gpu in gpus)
    low, high = _asked(cluster, room)
    if high > room or room == 0:
        raise ClusterError(
            f"{max(high, 1)} encoders of {per_encoder:g} GPU do not fit: the cluster has {sum(gpus):g} GPUs on "
            f"{len(gpus)} nodes, room for {room}; lower cluster.encoders or cluster.gpus_per_encoder, or add nodes"
        )
    if sum(cpus) < _OTHERS_CPUS:
        raise ClusterError(
            f"a reader and a writer need {_OTHERS_CPUS} CPUs beside the encoders, the cluster has {sum(cpus):g}; "
            "add CPUs"
        )
    # num_cpus=0: a GPU actor otherwise reserves a CPU as well, and the last GPUs stay idle without a word.
    return PoolPlan(low, high, 0, per_encoder)


def _cpu_pool(cluster: Cluster, cpus: Sequence[float]) -> PoolPlan:
    for threads in range(_MAX_THREADS_PER_ENCODER, 0, -1):
        # One node lends its share to the reader and the writer; which one does not matter for the count.
        room = sum(math.floor(cpu / threads) for cpu in cpus)
        if room and sum(cpus) - room * threads < _OTHERS_CPUS:
            room -= 1
        low, high = _asked(cluster, room)
        if 0 < high <= room:
            return PoolPlan(low, high, threads, 0)
    low, high = _asked(cluster, 1)
    raise ClusterError(
        f"{high} encoders of 1 CPU, a reader and a writer ({_OTHERS_CPUS} CPUs) do not fit: the cluster has "
        f"{sum(cpus):g} CPUs on {len(cpus)} nodes; lower cluster.encoders, or add CPUs"
    )


def _asked(cluster: Cluster, room: int) -> tuple[int, int]:
    match cluster.encoders:
        case "auto":
            return room, room
        case PoolSize(min=low, max=high):
            return low, high
        case int(size):
            return size, size
