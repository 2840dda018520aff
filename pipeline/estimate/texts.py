"""What a sample of documents costs in tokens: how many each has, how many the encoder sees, which are thrown away.

Of the documents that were read every k-th in the order of their length is tokenized. Tokens are nearly
a function of length, so that few documents tell the mean of all well.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.estimate.ratios import Estimate, every_kth, ratio, sorted_mean
from pipeline.estimate.sample import Sample
from pipeline.tokens import SequenceTokenizer, tokenize

_FEWEST = 1000
_SHARE = 0.01
# A second or two of a tokenizer.
_MOST_BYTES = 8 * 2**20
_FEWEST_LONG = 200
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Texts:
    """Of the documents that were tokenized, in the order of their length.

    Attributes:
        input_ids: the sequences, as the encoder gets them.
        lengths: tokens of each.
        num_tokens: of a document, as the encoder sees it: what a mean one has.
        num_sequences: of a document.
        document_tokens: of each document, before anything of it was thrown away.
        truncated_ratio: documents that were truncated, of all.
        thrown_ratio: tokens thrown away, of all that there were.
        tokenize_s: what a document took.
    """

    num_documents: int
    input_ids: pa.ListArray
    lengths: npt.NDArray[np.int64]
    num_tokens: Estimate
    num_sequences: Estimate
    document_tokens: npt.NDArray[np.float64]
    truncated_ratio: float
    thrown_ratio: float
    tokenize_s: float


def measure_texts(sample: Sample, tokenizer: SequenceTokenizer, max_tokens: int) -> Texts:
    """Tokenize a part of the sample, and tell of it what holds for all."""
    num_bytes = pc.binary_length(sample.documents["text"]).to_numpy().astype(np.int64)
    chosen, share = _choose(sample, num_bytes, tokenizer.first_chars)
    documents = sample.documents.take(chosen)
    # Sequences tell by their row which document they are of.
    position = documents.schema.get_field_index("row")
    documents = documents.set_column(position, documents.schema.field("row"), pa.array(np.arange(len(chosen))))
    started = time.monotonic()
    sequences = tokenize(documents, tokenizer, input_file="").sequences
    took_s = time.monotonic() - started
    rows = sequences["row"].to_numpy()
    lengths = sequences["num_tokens"].to_numpy().astype(np.int64)
    seen = np.bincount(rows, lengths, len(chosen))
    truncated = sequences["truncated"].to_numpy()
    full = np.bincount(rows, lengths / _kept_share(documents, sequences), len(chosen)).astype(np.float64)
    # Between the blocks that were read and those that were not, lengths differ too.
    most_bytes = np.inf if tokenizer.chunker is not None else max_tokens * _BYTES_PER_TOKEN
    between = _between_blocks(sample, np.minimum(num_bytes, most_bytes))
    return Texts(
        num_documents=len(chosen),
        input_ids=sequences["input_ids"].combine_chunks(),
        lengths=lengths,
        num_tokens=sorted_mean(seen, share) * between,
        num_sequences=sorted_mean(np.bincount(rows, minlength=len(chosen)), share) * between,
        document_tokens=full,
        truncated_ratio=float(len(np.unique(rows[truncated])) / max(1, len(chosen))),
        thrown_ratio=float(1 - seen.sum() / full.sum()) if full.sum() else 0.0,
        tokenize_s=took_s / max(1, len(chosen)),
    )


def _choose(
    sample: Sample, num_bytes: npt.NDArray[np.int64], first_chars: int | None
) -> tuple[npt.NDArray[np.int64], float]:
    """Which documents to tokenize, by length, and what share of those that were read they are."""
    order = np.argsort(num_bytes, kind="stable")
    wanted = max(_FEWEST, round(_SHARE * float(sample.weights.sum())))
    mean_bytes = float(np.minimum(num_bytes, first_chars or np.inf).mean()) if len(num_bytes) else 0.0
    affordable = max(_FEWEST_LONG, int(_MOST_BYTES / max(1.0, mean_bytes)))
    picked = every_kth(sample.weights[order], min(wanted, affordable), 0.5)
    return order[picked], min(1.0, len(picked) / max(1, len(order)))


def _kept_share(documents: pa.Table, sequences: pa.Table) -> npt.NDArray[np.float64]:
    """Of the characters of each truncated sequence's document, the share that was kept; 1 for others."""
    num_chars = pc.utf8_length(documents["text"]).to_numpy()[sequences["row"].to_numpy()]
    kept = sequences["char_end"].to_numpy() - sequences["char_begin"].to_numpy()
    return np.where(sequences["truncated"].to_numpy(), np.maximum(kept, 1) / np.maximum(num_chars, 1), 1.0)


def _between_blocks(sample: Sample, num_bytes: npt.NDArray[np.int64]) -> Estimate:
    num_blocks = int(sample.blocks.max()) + 1 if len(sample.blocks) else 0
    bytes_of = np.bincount(sample.blocks, num_bytes, num_blocks)
    per_document = ratio(bytes_of, np.bincount(sample.blocks, minlength=num_blocks), sample.block_share)
    return Estimate(1.0, per_document.relative)
