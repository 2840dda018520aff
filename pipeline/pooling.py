"""Hidden states of tokens -> one vector a sequence, and unit norm. Always in float32.

The ways are those of sentence-transformers (6.2, `sentence_transformer/modules/pooling.py`): `cls`
and `lasttoken` take the first and the last token, `mean` averages, `mean_sqrt_len_tokens` divides
the sum by the root of the count, `weightedmean` weighs each token by its position (1, 2, ...),
`max` takes the largest of each dimension. Reduced precision ends here: sums over hundreds of
tokens, and norms, lose too much in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.config import PoolingMode


def pool(hidden: Tensor, mask: Tensor, mode: PoolingMode, *, num_skipped: int = 0) -> Tensor:
    """Pool over tokens.

    Args:
        hidden: last hidden states, (B, L, H), any floating dtype.
        mask: True at real tokens, (B, L); padding stands on the right, and each row has a real token.
        mode: how.
        num_skipped: tokens at the beginning of each row that take no part (a prompt's); the weights of
            `weightedmean` count them all the same. Of a row without others there is no sound vector.

    Returns:
        float32, (B, H).
    """
    assert hidden.shape[:2] == mask.shape, f"hidden {tuple(hidden.shape)} and mask {tuple(mask.shape)} differ"
    steps = torch.arange(mask.shape[1], device=mask.device)  # (L,)
    kept = mask & (steps >= num_skipped)  # (B, L)
    if mode in ("cls", "lasttoken"):
        places = kept.int().argmax(dim=1) if mode == "cls" else mask.sum(dim=1) - 1  # (B,)
        rows = torch.arange(len(hidden), device=hidden.device)
        return hidden[rows, places].float() * kept[rows, places].unsqueeze(-1)
    tokens, counted = hidden.float(), kept.unsqueeze(-1)  # (B, L, H), (B, L, 1)
    if mode == "max":
        return tokens.masked_fill(~counted, float("-inf")).amax(dim=1)
    # Masked, not multiplied: what a model makes of padding may be no number.
    tokens = tokens.masked_fill(~counted, 0.0)
    if mode == "weightedmean":
        weights = (counted * (steps + 1).unsqueeze(-1)).float()  # (B, L, 1)
        return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    num_tokens = counted.sum(dim=1).clamp(min=1)  # (B, 1)
    return tokens.sum(dim=1) / (num_tokens if mode == "mean" else num_tokens.sqrt())


def normalize(vectors: Tensor) -> Tensor:
    """Unit norm along the last dimension, (B, D) -> (B, D); a zero vector stays zero."""
    return torch.nn.functional.normalize(vectors.float(), p=2.0, dim=-1)
