from __future__ import annotations

import pytest

from pipeline.flow.index import TaskPlan, plan_tasks

GIB = 2**30


@pytest.mark.parametrize(
    ("nodes", "num_items", "expected"),
    [
        ([{"CPU": 4, "memory": 8 * GIB}], 100, TaskPlan(1, GIB, 4)),
        # Fewer tasks than CPUs: each takes more, so that none stands idle.
        ([{"CPU": 4, "memory": 8 * GIB}], 2, TaskPlan(2, GIB, 2)),
        ([{"CPU": 64, "memory": 8 * GIB}], 1, TaskPlan(8, GIB, 8)),
        # A task runs on one node.
        ([{"CPU": 4, "memory": 8 * GIB}, {"CPU": 4, "memory": 8 * GIB}], 1, TaskPlan(4, GIB, 2)),
        ([{"CPU": 2, "memory": GIB // 2}], 10, TaskPlan(1, GIB // 2, 2)),
        ([{"CPU": 0, "memory": 8 * GIB}, {"CPU": 2, "memory": GIB // 4}], 10, TaskPlan(1, GIB // 4, 2)),
    ],
)
def test_a_task_fits_a_node_and_leaves_no_cpu_idle(
    nodes: list[dict[str, float]], num_items: int, expected: TaskPlan
) -> None:
    assert plan_tasks(nodes, num_items) == expected
