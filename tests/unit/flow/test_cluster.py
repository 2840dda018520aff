from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from pipeline.config import Cluster
from pipeline.errors import ClusterError, EnvironmentFault
from pipeline.flow.cluster import (
    READ_CPUS,
    WRITE_CPUS,
    PoolPlan,
    _check_answers,
    _in_one_line,
    _stdout_kept,
    connected,
    plan_pool,
)

Nodes = Sequence[Mapping[str, float]]


@pytest.mark.parametrize(
    ("encoders", "nodes", "expected"),
    [
        ("auto", [{"CPU": 2}], PoolPlan(1, 1, 1, 0)),
        ("auto", [{"CPU": 4}], PoolPlan(1, 1, 3, 0)),
        ("auto", [{"CPU": 64}], PoolPlan(7, 7, 8, 0)),
        ("auto", [{"CPU": 16}] * 4, PoolPlan(7, 7, 8, 0)),
        (2, [{"CPU": 4}], PoolPlan(2, 2, 1, 0)),
        ("auto", [{"CPU": 4, "GPU": 2}], PoolPlan(2, 2, 0, 1)),
        ("auto", [{"CPU": 8, "GPU": 8}] * 2 + [{"CPU": 4}], PoolPlan(16, 16, 0, 1)),
        ({"min": 1, "max": 2}, [{"CPU": 4, "GPU": 2}], PoolPlan(1, 2, 0, 1)),
    ],
)
def test_the_pool_fills_the_cluster_beside_a_reader_and_a_writer(
    encoders: Any, nodes: Nodes, expected: PoolPlan
) -> None:
    plan = plan_pool(Cluster.model_validate({"encoders": encoders}), nodes)
    assert plan == expected
    assert plan.max_size * plan.num_cpus + READ_CPUS + WRITE_CPUS <= sum(node["CPU"] for node in nodes)


@pytest.mark.parametrize(
    ("encoders", "nodes", "message"),
    [
        ("auto", [{"CPU": 1}], "the cluster has 1 CPUs"),
        (8, [{"CPU": 4}], "8 encoders of 1 CPU"),
        (8, [{"CPU": 64, "GPU": 2}], "room for 2; lower cluster.encoders"),
        ("auto", [{"CPU": 0.5, "GPU": 2}], "add CPUs"),
        ({"min": 1, "max": 3}, [{"CPU": 4, "GPU": 2}], "3 encoders of 1 GPU"),
    ],
)
def test_a_cluster_too_small_is_refused_with_a_sentence(encoders: Any, nodes: Nodes, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        plan_pool(Cluster.model_validate({"encoders": encoders}), nodes)


def test_a_gpu_is_not_split_over_nodes() -> None:
    """Two half-free GPUs on two nodes are no whole one."""
    with pytest.raises(ClusterError, match="room for 0"):
        plan_pool(Cluster(), [{"CPU": 4, "GPU": 0.5}] * 2)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1"])
def test_where_nothing_listens_is_told_at_once(address: str) -> None:
    """Ray goes on trying for minutes."""
    with pytest.raises(EnvironmentFault, match=r"no Ray cluster answers at .*mend cluster.address"):
        _check_answers(address)


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_ray_that_does_not_come_up_is_told_in_a_sentence(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that is overloaded Ray gives up after half a minute, with a bare Exception."""

    def give_up(**options: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", give_up)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # tests of the whole job share one in this process
    told = pytest.raises(EnvironmentFault, match=r"Ray.* timed out during startup; .*run the same command again")
    with told, connected(Cluster(address=address)):
        pytest.fail("there is nothing to connect to")


def test_an_address_that_names_no_port_is_rays_to_resolve() -> None:
    _check_answers("auto")


@pytest.mark.parametrize("quiet", [True, False])
def test_what_ray_prints_never_reaches_stdout(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """stdout is one JSON line that scripts parse."""
    with _stdout_kept(quiet):
        print("(raylet) a task failed")
    print("the answer")
    shown = capsys.readouterr()
    assert shown.out == "the answer\n"
    assert ("raylet" in shown.err) is not quiet


def test_blocks_that_are_lost_are_told_in_a_line_each_and_not_for_ever(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instead of Ray Data's tracebacks; a node that lacks a library would lose every block."""
    monkeypatch.setattr("pipeline.flow.cluster._lost_blocks", itertools.count())
    for number in range(50):
        error = RuntimeError(f"the worker of {number} died\nand a traceback of many lines")
        record = logging.LogRecord("ray.data", logging.ERROR, "x.py", 1, "An exception", (), (None, error, None))  # type: ignore[arg-type]
        assert not _in_one_line(record)
    assert len(caplog.records) == 20
    assert caplog.records[0].getMessage() == "lost with its process: RuntimeError: the worker of 0 died"
    other = logging.LogRecord("ray.data", logging.ERROR, "x.py", 1, "something else", (), None)
    assert _in_one_line(other)
