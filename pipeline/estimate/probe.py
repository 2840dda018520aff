"""Ten seconds of the real encoder: what the batches of this corpus take, on the device that this process has.

Batches are those that the encoder would make of a split: the sampled sequences, repeated to its number
of rows, sorted by length and cut under the token budget. They are tried in an order that at any time is
spread evenly over all lengths, so that what was reached when the time is up stands for the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.batching import padded_tokens, token_batches
from pipeline.encoder import Encoder
from pipeline.estimate.ratios import Estimate, ratio

PROBE_S = 10.0

_FEWEST_BATCHES = 3


@dataclass(frozen=True)
class Probe:
    """How fast the encoder goes through sequences like the sampled ones.

    Attributes:
        seconds_per_sequence: of one encoder.
        padding_ratio: padded tokens / real tokens.
        tokens_per_s: real ones.
        num_batches: tried.
        measured_s: what they took.
    """

    seconds_per_sequence: Estimate
    padding_ratio: float
    tokens_per_s: float
    num_batches: int
    measured_s: float


def probe_encoder(
    encoder: Encoder, input_ids: pa.ListArray, window: int, clock: Callable[[], float] = time.monotonic
) -> Probe:
    """Encode batches of the sample for ten seconds.

    Args:
        encoder: loaded as the flow loads it.
        input_ids: of the sampled sequences; at least one.
        window: sequences that are sorted together: those of a split.
        clock: for tests.
    """
    ids = list(input_ids.to_numpy(zero_copy_only=False))
    sampled = np.fromiter(map(len, ids), np.int64, len(ids))
    # Every sampled sequence about equally often, whatever the window.
    members = np.argsort(sampled, kind="stable")[np.arange(window) * len(ids) // window]
    lengths = sampled[members]
    batches = token_batches(lengths, encoder.token_budget, min_tokens=encoder.min_tokens)
    times, padded = [], []
    # The first pass pays for memory, kernels and threads; the longest batch also shows whether it fits.
    encoder.encode([ids[member] for member in members[batches[0]]])
    started = clock()
    for index in _spread(len(batches)):
        batch = batches[index]
        sequences = [ids[member] for member in members[batch]]
        begun = clock()
        encoder.encode(sequences)
        times.append(clock() - begun)
        padded.append(padded_tokens(lengths, [batch]))
        if len(times) >= _FEWEST_BATCHES and clock() - started > PROBE_S:
            break
    per_padded = ratio(times, padded, len(times) / (len(batches) + 1))
    per_sequence = per_padded * (padded_tokens(lengths, batches) / window)
    num_tokens = float(lengths.mean())
    return Probe(
        seconds_per_sequence=per_sequence,
        padding_ratio=padded_tokens(lengths, batches) / max(1, int(lengths.sum())),
        tokens_per_s=num_tokens / per_sequence.value if per_sequence.value else 0.0,
        num_batches=len(times),
        measured_s=float(np.sum(times)),
    )


def _spread(num: int) -> Iterator[int]:
    """0 ... num-1 in an order whose beginnings are spread evenly (van der Corput, base 2), the extreme 0 last."""
    seen: npt.NDArray[np.bool_] = np.zeros(num, bool)
    bits = max(1, (num - 1).bit_length())
    for step in [*range(1, 2**bits), 0]:
        place = int(f"{step:0{bits}b}"[::-1], 2) * num >> bits
        if not seen[place]:
            seen[place] = True
            yield place
