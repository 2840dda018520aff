"""Sequences -> token batches: length buckets under a token budget.

A forward pass costs B x L, padding included. Sequences are sorted by length over the whole
split, longest first, and cut greedily: each batch takes as many as fit the budget at the length
of its first, or ends before padding passes 2 %, once it is large enough for its size not to matter.
Neighbours in that order differ little, so padding nearly vanishes, and the largest batch comes
first: what does not fit into memory shows at once. The price is the split in memory, which it is
anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_MOST_PADDING = 1.02

# A batch that ends early does so near one of few numbers of tokens, since each is another shape to a device.
_STEPS = 2


def token_batches(
    lengths: npt.NDArray[np.integer], token_budget: int, *, min_tokens: int | None = None
) -> list[npt.NDArray[np.int64]]:
    """Indices into `lengths`, batch by batch; every index once.

    Args:
        lengths: tokens of each sequence, [N]. None is padded to less than one token.
        token_budget: most padded tokens (B x L) of a batch; a sequence above it goes alone.
        min_tokens: padded tokens from which on a batch is as fast, a token, as a larger one; it may end there, and half
            as many tokens further each. None: at the budget alone.

    Returns:
        Batches of int64 indices, longest first; ties keep their order.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    ends = np.concatenate([[0], np.cumsum(lengths[order], dtype=np.int64)])  # real tokens before each
    batches = []
    begin = 0
    while begin < len(order):
        longest = max(1, int(lengths[order[begin]]))
        end = min(len(order), begin + max(1, token_budget // longest))
        if min_tokens is not None:
            # The mean length falls with each sequence: padding is a matter of how many are taken.
            step = max(1, min_tokens // _STEPS)
            for budget in range(min_tokens, token_budget, step):
                larger = min(end, begin + max(1, (budget + step) // longest))
                if (larger - begin) * longest > _MOST_PADDING * (ends[larger] - ends[begin]):
                    end = min(end, begin + max(1, budget // longest))
                    break
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
