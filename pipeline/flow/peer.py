"""What the embed flow is measured against (`vecmill benchmark`): a plain script, and the flow without its forward.

The plain script is what one writes who has Ray Data and sentence-transformers and an hour: no
store, no resume, no quarantine; a list of documents in, Parquet out.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from pipeline.flow.cluster import PoolPlan
from pipeline.flow.context import FlowContext
from pipeline.flow.embed import run_flow
from pipeline.flow.rows import SplitReport, Work, Written
from pipeline.flow.stages import EncodeStage

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


def time_instant_flow(context: FlowContext, work: Sequence[Work], pool: PoolPlan) -> list[tuple[float, SplitReport]]:
    """Run the embed flow with an encoder that takes no time; when each split was done (monotonic), and its report."""
    return [(time.monotonic(), written.report) for written in instant_flow(context, work, pool)]


def instant_flow(context: FlowContext, work: Sequence[Work], pool: PoolPlan) -> Iterator[Written]:
    """The embed flow with an encoder that takes no time; what each split came to, as it is done."""
    with DataContext.current(DataContext()):
        # Else the readers run ahead while the actors start, and what is timed after is not their pace.
        DataContext.get_current().wait_for_min_actors_s = _POOL_START_S
        yield from run_flow(context, work, pool, InstantEncodeStage)


class InstantEncodeStage(EncodeStage):
    """The encode stage with an encoder that takes no time: what is left of the flow is its overhead."""

    def __init__(self, context: FlowContext, num_threads: int | None) -> None:
        self._context = context
        self._encoder = cast("Encoder", InstantEncoder(context.model.dim))


class InstantEncoder:
    """Gives every sequence the first unit vector."""

    compute = "none"

    def __init__(self, dim: int) -> None:
        self._dim = dim

    def encode(self, input_ids: pa.ChunkedArray, **_: object) -> EncodedSplit:
        """As `Encoder.encode`, at once; nothing is padded."""
        from pipeline.encoder import EncodedSplit

        vectors = np.zeros((len(input_ids), self._dim), np.float32)
        vectors[:, 0] = 1.0
        return EncodedSplit(vectors, 0, [], {})
