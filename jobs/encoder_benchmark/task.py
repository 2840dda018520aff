"""What all contestants are given, and what they give back: the same texts, the same token ids, one pass over them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.benchmark_corpus import open_corpus
from jobs.evaluate.vectors import tokenize_texts
from pipeline.config import EncoderSettings
from pipeline.errors import ConfigError, InputError
from pipeline.model import ModelDescription, describe_model, fetch_model
from pipeline.tokens import load_tokenizer

Vectors = npt.NDArray[np.float32]
Batches = Sequence[npt.NDArray[np.int64]]
_Candidate = TypeVar("_Candidate")

# Enough to tell batch sizes apart, little beside a round.
_TRIAL_TOKENS = 8_192


@dataclass(frozen=True)
class Task:
    """N texts for one model, tokenized and truncated as it does it."""

    path: Path
    """The model's folder."""
    model: ModelDescription
    settings: EncoderSettings
    texts: Sequence[str]
    input_ids: pa.ListArray
    """Of each text, with special tokens and prompt."""

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text, (N,)."""
        lengths: npt.NDArray[np.int64] = np.diff(self.input_ids.offsets.to_numpy()).astype(np.int64)
        return lengths


@dataclass(frozen=True)
class Contestant:
    """One that makes vectors of the task's texts, ready to start."""

    name: str
    settings: str
    """What was chosen for it, to be shown."""
    run: Callable[[], Pass]


@dataclass(frozen=True)
class Pass:
    """What once over all texts took and gave."""

    seconds: float
    vectors: Vectors | None
    """(N, D) in the order of the texts; the ceiling makes none."""
    num_padded_tokens: int | None = None
    """Where the contestant tells."""
    flops: int | None = None
    """Of the model over these texts, without padding; told by the ceiling."""


def make_task(corpus: Path, num_documents: int, settings: EncoderSettings) -> Task:
    """Sample the corpus and tokenize it.

    Raises:
        ConfigError: documents are to be cut into chunks, which no peer does.
        InputError: the corpus is not there, or holds no text.
        ModelError: the model cannot be had.
    """
    if settings.overlong != "truncate":
        raise ConfigError("the peers truncate, so encoder.overlong must be truncate here, not chunk")
    texts = sample_texts(corpus, num_documents)
    path = fetch_model(settings, None)
    model = describe_model(path, settings)
    input_ids = tokenize_texts(texts, load_tokenizer(path, model))
    return Task(path, model, settings, texts, pa.concat_arrays(input_ids.chunks))


def sample_texts(corpus: Path, num_documents: int) -> list[str]:
    """So many of the corpus' texts, evenly spread; all if it holds fewer. Equal texts count once: nobody gains by them.

    Raises:
        InputError: there are no Parquet files with a column `text`, or no text is in them.
    """
    column = pc.unique(open_corpus(corpus, ["text"]).to_table(columns=["text"])["text"]).drop_null()
    column = column.filter(pc.not_equal(pc.utf8_trim_whitespace(column), ""))
    if not len(column):
        raise InputError(f"no text in {corpus}")
    num = min(num_documents, len(column))
    texts: list[str] = column.take(np.arange(num) * len(column) // num).to_pylist()
    return texts


def sorted_batches(lengths: npt.NDArray[np.int64], size: int) -> Batches:
    """Indices of the texts, longest first, so many a batch."""
    order = np.argsort(-lengths, kind="stable")
    return [order[begin : begin + size] for begin in range(0, len(order), size)]


def trial_batches(lengths: npt.NDArray[np.int64], size: int) -> Batches:
    """Whole ones of `sorted_batches`, evenly spread over the lengths: padded as in a full pass, in a fraction of it."""
    batches = sorted_batches(lengths, size)
    num = min(len(batches), math.ceil(_TRIAL_TOKENS * len(batches) / int(lengths.sum())))
    return [batches[(2 * index + 1) * len(batches) // (2 * num)] for index in range(num)]


def fastest(
    candidates: Sequence[_Candidate],
    lengths: npt.NDArray[np.int64],
    size_of: Callable[[_Candidate], int],
    encode: Callable[[_Candidate, Batches], object],
) -> _Candidate:
    """The candidate with the most real tokens a second in the better of two trials; the first pays for memory."""
    rates = []
    for candidate in candidates:
        batches = trial_batches(lengths, size_of(candidate))
        num_tokens = sum(int(lengths[batch].sum()) for batch in batches)
        seconds = [timed(lambda: encode(candidate, batches))[0] for _ in range(2)]  # noqa: B023  # called at once
        rates.append(num_tokens / min(seconds))
    return candidates[int(np.argmax(rates))]


_Given = TypeVar("_Given")


def timed(call: Callable[[], _Given]) -> tuple[float, _Given]:
    """Seconds that it took, and what it gave."""
    started = time.perf_counter()
    given = call()
    return time.perf_counter() - started, given
