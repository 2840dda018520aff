"""What the embed flow is measured against (`vecmill benchmark`): a plain script, and the flow around a stub.

The plain script is what one writes who has Ray Data and sentence-transformers and an hour: no
store, no resume, no quarantine; a list of documents in, Parquet out.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext

from pipeline.flow.cluster import PoolPlan
from pipeline.flow.context import FlowContext
from pipeline.flow.embed import run_flow
from pipeline.flow.rows import Work, Written
from pipeline.flow.stages import EncodeStage
from pipeline.parallel import num_cores

if TYPE_CHECKING:
    from pipeline.encoder import EncodedSplit, Encoder

# A sensible guess of a careful user: large enough that `encode` can sort by length, small enough to stream.
_BATCH_ROWS = 1_000

_POOL_START_S = 600


class PlainEncoder:
    """`SentenceTransformer.encode` over batches of rows (`id`, `text`), with the library's defaults."""

    def __init__(self, model: str) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(model)

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """`id` and `embedding` (N, D), unit norm."""
        vectors = self._model.encode(list(batch["text"]), normalize_embeddings=True, show_progress_bar=False)
        return {"id": batch["id"], "embedding": vectors}


def plain_embed(corpus: str, out: str, model: str, *, num_cpus: int) -> None:
    """The plain script: read_parquet -> map_batches in one actor -> write_parquet.

    Args:
        corpus: a folder of Parquet files with columns `id` and `text`.
        out: the folder to write `id` and `embedding` to.
        model: a folder that sentence-transformers loads.
        num_cpus: of the actor; Ray gives torch in it as many threads, which by default would be one.
    """
    # A context of its own: the embed flow sets the driver's, and what is good for rows that are splits would slow
    # down rows that are documents.
    with DataContext.current(DataContext()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        documents = ray.data.read_parquet(corpus, columns=["id", "text"])
        embedded = documents.map_batches(
            PlainEncoder,
            fn_constructor_args=(model,),
            batch_size=_BATCH_ROWS,
            compute=ActorPoolStrategy(size=1),
            num_cpus=num_cpus,
        )
        embedded.write_parquet(out)


@contextmanager
def logical_gpus(num_gpus: int) -> Iterator[None]:
    """A Ray of this machine that counts so many GPUs, though there are none: for stubs, and said so wherever shown."""
    ray.init(
        address="local",
        num_cpus=max(4, num_cores()),
        num_gpus=num_gpus,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


def time_stub_flow(
    context: FlowContext, work: Sequence[Work], pool: PoolPlan, stage: type[EncodeStage] | None = None
) -> list[tuple[float, Written]]:
    """Run the embed flow with a stub for an encoder; when each split was done (monotonic), and what came of it."""
    return [(time.monotonic(), written) for written in stub_flow(context, work, pool, stage)]


def stub_flow(
    context: FlowContext, work: Sequence[Work], pool: PoolPlan, stage: type[EncodeStage] | None = None
) -> Iterator[Written]:
    """The embed flow with a stub for an encoder, by default one that takes no time; each split as it is done."""
    with DataContext.current(DataContext()):
        # Else the readers run ahead while the actors start, and what is timed after is not their pace.
        DataContext.get_current().wait_for_min_actors_s = _POOL_START_S
        yield from run_flow(context, work, pool, stage or stub_encode_stage())


def stub_encode_stage(tokens_a_second: float = math.inf, times: Path | None = None) -> type[EncodeStage]:
    """The encode stage with a stub for its encoder: what is left of the flow is its overhead.

    Args:
        tokens_a_second: so fast it is; meanwhile it sleeps, as a process does whose accelerator is at work.
        times: a folder where each process writes when it was at work, as `read_times` reads it.
    """

    class StubEncodeStage(EncodeStage):
        def __init__(self, context: FlowContext, num_threads: int | None) -> None:
            self._context = context
            self._encoder = cast("Encoder", StubEncoder(context.model.dim, tokens_a_second, times))

    return StubEncodeStage


class StubEncoder:
    """Gives every sequence the first unit vector, at so many tokens a second."""

    compute = "none"
    peak_bytes = 0

    def __init__(self, dim: int, tokens_a_second: float = math.inf, times: Path | None = None) -> None:
        self._dim, self._tokens_a_second = dim, tokens_a_second
        self._times = times / f"{uuid.uuid4().hex}.txt" if times else None

    def encode(self, input_ids: pa.ChunkedArray, **_: object) -> EncodedSplit:
        """As `Encoder.encode`; nothing is padded."""
        from pipeline.encoder import EncodedSplit

        begin = time.monotonic()
        time.sleep(pc.sum(pc.list_value_length(input_ids)).as_py() / self._tokens_a_second)
        if self._times:
            with self._times.open("a") as file:
                file.write(f"{begin} {time.monotonic()}\n")
        vectors = np.zeros((len(input_ids), self._dim), np.float32)
        vectors[:, 0] = 1.0
        return EncodedSplit(vectors, 0, [], {})


def read_times(folder: Path) -> list[npt.NDArray[np.float64]]:
    """Of each process with two splits or more, when it was at work: [begin, end) of each, (N, 2), monotonic seconds."""
    found = (np.loadtxt(path, ndmin=2) for path in sorted(folder.iterdir()))
    return [times for times in found if len(times) > 1]
