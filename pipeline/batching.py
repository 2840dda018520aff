"""Sequences -> token batches: length buckets under a token budget.

A forward pass costs B x L, padding included. Sequences are sorted by length over the whole
split, longest first, and cut greedily: each batch takes as many as fit the budget at the length
of its first. Neighbours in that order differ little, so padding nearly vanishes, and the largest
batch comes first: what does not fit into memory shows at once. The price is the split in memory,
which it is anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def token_batches(lengths: npt.NDArray[np.integer], token_budget: int) -> list[npt.NDArray[np.int64]]:
    """Indices into `lengths`, batch by batch; every index once.

    Args:
        lengths: tokens of each sequence, [N]. None is padded to less than one token.
        token_budget: most padded tokens (B x L) of a batch; a sequence above it goes alone.

    Returns:
        Batches of int64 indices, longest first; ties keep their order.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    batches = []
    begin = 0
    while begin < len(order):
        longest = max(1, int(lengths[order[begin]]))
        end = begin + max(1, token_budget // longest)
        batches.append(order[begin:end])
        begin = end
    return batches


def padded_tokens(lengths: npt.NDArray[np.integer], batches: Sequence[npt.NDArray[np.int64]]) -> int:
    """Tokens that the batches compute over, padding included: the sum of B x L."""
    return sum(len(batch) * int(lengths[batch].max()) for batch in batches)


def padding_ratio(lengths: npt.NDArray[np.integer], batches: Sequence[npt.NDArray[np.int64]]) -> float:
    """Padded tokens / real tokens, at least 1; 1 for no tokens."""
    num_tokens = int(lengths.sum())
    return padded_tokens(lengths, batches) / num_tokens if num_tokens else 1.0
