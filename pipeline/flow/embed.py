"""The embed flow: three operators over rows that are splits.

    planned splits, biggest first -> ReadStage (tasks) -> EncodeStage (actor pool) -> WriteStage (tasks) -> driver

The same three operators with and without GPUs: what keeps Ray from fusing them is that the
encoder's remote arguments differ from the reader's (`max_task_retries`), not its `num_gpus`.
Settings are Ray 2.60's; each that is not the default has its reason beside it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from pipeline.errors import EnvironmentFault
from pipeline.flow.cluster import READ_CPUS, WRITE_CPUS, PoolPlan
from pipeline.flow.context import FlowContext
from pipeline.flow.rows import Work, Written
from pipeline.flow.stages import EncodeStage, ReadStage, WriteStage

log = logging.getLogger(__name__)

# A block costs the driver about 45 ms and 6 kB; above this many, small splits share a read task.
_MAX_READ_TASKS = 2_000

# A split a task, so that a split is a block and no batch is copied. Groups of small splits get 1 MB: one a block
# would cost 45 ms each where many a block cost 2 ms.
_ONE_SPLIT_BLOCK_BYTES = 1
_GROUPED_BLOCK_BYTES = 2**20


def embed_dataset(
    context: FlowContext, work: Sequence[Work], pool: PoolPlan, encode_stage: type[EncodeStage] = EncodeStage
) -> Dataset:
    """The lazy dataset of the flow; its rows are those of `Written`. Another `encode_stage` is for measurements."""
    data_context = DataContext.get_current()
    grouped = len(work) > _MAX_READ_TASKS
    data_context.target_max_block_size = _GROUPED_BLOCK_BYTES if grouped else _ONE_SPLIT_BLOCK_BYTES
    # A split longer than this kills a healthy job; nothing moving is the driver's to judge.
    data_context.execution_no_progress_timeout_s = -1
    # Exceptions are rows: an errored block is one that was lost with its process or node. It is dropped here, and the
    # driver, who knows what was planned and what is recorded, drives its split again (pipeline.flow.ledger).
    data_context.max_errored_blocks = -1
    # One model load that fails (a node going away) else ends the job.
    data_context.max_consecutive_actor_init_deaths = 4
    # Ours is the progress line.
    data_context.enable_progress_bars = False
    data_context.print_on_execution_start = False

    biggest_first = sorted(work, key=lambda item: item.split.num_bytes, reverse=True)
    is_fixed = pool.min_size == pool.max_size
    with warnings.catch_warnings():
        # max_restarts, max_task_retries and max_retries have no named parameter in 2.60; the way they are passed
        # is deprecated and gone in 2.64, hence the pin of ray.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        source = ray.data.from_arrow(list(_blocks(biggest_first)))
        sequences = source.map_batches(
            ReadStage(context),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=READ_CPUS,
            max_retries=0,  # by default a split that kills its process is tried for ever; here the ledger decides
        )
        embeddings = sequences.map_batches(
            encode_stage,
            fn_constructor_args=(context, pool.num_threads),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                size=pool.max_size if is_fixed else None,
                min_size=None if is_fixed else pool.min_size,  # a pool that may grow starts at its minimum
                max_size=None if is_fixed else pool.max_size,
                # Two splits in flight keep an encoder fed while its last rows leave; the calls stay serial.
                max_concurrent_calls_per_actor=2,
            ),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus or None,
            max_restarts=-1,  # with finite restarts a pool of one stalls once they are used up
            max_task_retries=0,  # as the reader's; and what is set here keeps Ray from fusing the two
        )
        return embeddings.map_batches(
            WriteStage(context),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=WRITE_CPUS,
            max_retries=4,
        )


def _blocks(work: Sequence[Work]) -> Iterator[pa.Table]:
    """The source, a block for each read task: built one by one, since a split as a dict takes a kilobyte."""
    num_blocks = min(len(work), _MAX_READ_TASKS)
    for number in range(num_blocks):
        part = work[number * len(work) // num_blocks : (number + 1) * len(work) // num_blocks]
        yield pa.Table.from_pylist([item.to_item() for item in part])


def run_flow(
    context: FlowContext, work: Sequence[Work], pool: PoolPlan, encode_stage: type[EncodeStage] = EncodeStage
) -> Iterator[Written]:
    """Run the flow; yields what happened to each split as it is written, in any order.

    Raises:
        EnvironmentFault: Ray ended the flow. What was recorded until then stays.
    """
    dataset = embed_dataset(context, work, pool, encode_stage)
    # Of pools that are larger than what is left for them, which is the rule where splits are driven again.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            assert isinstance(batch, pa.Table)
            for row in batch.to_pylist():
                yield Written.unpack(row)
    except ray.exceptions.RayError as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EnvironmentFault(
            f"Ray ended the flow: {first_line[:300]}; what was written is kept, run the same command again to go on"
        ) from error
