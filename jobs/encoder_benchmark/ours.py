"""Ours, through the door that the flow uses: token ids in, vectors out."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from jobs.encoder_benchmark.task import Contestant, Pass, Task, timed, trial_batches
from jobs.evaluate.vectors import tokenize_texts
from pipeline.encoder import EncodedSplit, Encoder
from pipeline.errors import InputError
from pipeline.parallel import num_cores
from pipeline.tokens import load_tokenizer

OURS = "ours"
REFERENCE = "ours float32"

_WARM_UP_ROWS = 32


def ours(task: Task) -> Iterator[Contestant]:
    """As configured; and the same with tokenizing before it, one after the other on the same cores."""
    encoder = _load(task, task.settings.compute)
    told = f"{encoder.compute}, token budget {encoder.token_budget}"
    yield Contestant(OURS, told, lambda: _encoded(*timed(lambda: encoder.encode(task.input_ids))))
    tokenizer = load_tokenizer(task.path, task.model)

    def with_tokenizing() -> EncodedSplit:
        return encoder.encode(tokenize_texts(task.texts, tokenizer))

    yield Contestant("ours with tokenizing", told, lambda: _encoded(*timed(with_tokenizing)))


def reference(task: Task) -> Iterator[Contestant]:
    """In float32, whatever is configured: what every cosine is to."""
    encoder = _load(task, "float32")
    told = f"token budget {encoder.token_budget}"
    yield Contestant(REFERENCE, told, lambda: _encoded(*timed(lambda: encoder.encode(task.input_ids))))


def _load(task: Task, compute: str) -> Encoder:
    settings = task.settings.model_copy(update={"compute": compute})
    encoder = Encoder(
        task.path,
        task.model,
        compute=settings.compute,
        token_budget=settings.token_budget,
        num_threads=num_cores(),
    )
    for batch in trial_batches(task.lengths, _WARM_UP_ROWS):
        encoder.encode(task.input_ids.take(pa.array(batch)))
    return encoder


def _encoded(seconds: float, encoded: EncodedSplit) -> Pass:
    num_bad = len(encoded.invalid) + len(encoded.failed)
    if num_bad:
        raise InputError(f"{num_bad} of {len(encoded.vectors)} texts have no vector; take them out")
    return Pass(seconds, encoded.vectors, encoded.num_padded_tokens)
