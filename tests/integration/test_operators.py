"""Read, encode and write stay three operators: an accelerator must not wait for a download or an upload."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import EncoderSettings, parse_config
from pipeline.flow.cluster import PoolPlan
from pipeline.flow.context import FlowContext
from pipeline.flow.embed import embed_dataset
from pipeline.flow.rows import Work
from pipeline.model import describe_model
from pipeline.splits import list_input, plan_files
from tests.corpus import Job, make_rows, put_files

pytestmark = pytest.mark.usefixtures("ray_in_process")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Job:
    job = Job.local(tmp_path_factory.mktemp("operators"), tiny_model)
    put_files(job.corpus, {"a.parquet": make_rows(4), "b.jsonl": make_rows(4, begin=4)})
    return job


@pytest.mark.parametrize(
    "pool",
    [PoolPlan(2, 2, 1, 0), PoolPlan(1, 4, 2, 0), PoolPlan(2, 2, 0, 1), PoolPlan(1, 4, 0, 0.5)],
    ids=["cpu", "cpu, growing", "gpu", "gpu, growing"],
)
def test_the_plan_has_three_operators(pool: PoolPlan, job: Job, tiny_model: Path) -> None:
    """As Ray would run it, after fusion; no GPU is needed to plan for one."""
    from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
    from ray.data._internal.execution.operators.map_operator import MapOperator
    from ray.data._internal.execution.operators.task_pool_map_operator import TaskPoolMapOperator
    from ray.data._internal.logical.optimizers import get_execution_plan

    config = parse_config(job.config)
    files = list_input(job.corpus, None, None)
    splits, keep = plan_files(job.corpus, files, config.input, config.splits)
    context = FlowContext(
        config=config,
        run_id="run",
        model=describe_model(tiny_model, EncoderSettings(model=str(tiny_model))),
        encoder_fp="e" * 16,
        shard_fp="5" * 16,
        keep=keep,
        input_storage=job.corpus,
        store_storage=job.store,
    )
    dataset = embed_dataset(context, [Work(split) for split in splits], pool)
    plan, _ = get_execution_plan(dataset._logical_plan)
    operators = []
    operator = plan.dag
    while isinstance(operator, MapOperator):
        operators.append((type(operator), operator.name))
        [operator] = operator.input_dependencies
    assert operators[::-1] == [
        (TaskPoolMapOperator, "MapBatches(ReadStage)"),
        (ActorPoolMapOperator, "MapBatches(EncodeStage)"),
        (TaskPoolMapOperator, "MapBatches(WriteStage)"),
    ]
