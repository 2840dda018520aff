"""Hidden states of tokens -> one vector a sequence, and unit norm. Always in float32.

The three ways are those of sentence-transformers: `cls` takes the first token, `mean` averages
over real tokens, `max` takes the largest of each dimension over real tokens. Reduced precision
ends here: sums over hundreds of tokens, and norms, lose too much in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.model import PoolingMode


def pool(hidden: Tensor, mask: Tensor, mode: PoolingMode) -> Tensor:
    """Pool over tokens.

    Args:
        hidden: last hidden states, (B, L, H), any floating dtype.
        mask: True at real tokens, (B, L); padding stands on the right, and each row has a real token.
        mode: "cls", "mean" or "max".

    Returns:
        float32, (B, H).
    """
    assert hidden.shape[:2] == mask.shape, f"hidden {tuple(hidden.shape)} and mask {tuple(mask.shape)} differ"
    if mode == "cls":
        return hidden[:, 0].float()
    tokens, real = hidden.float(), mask.unsqueeze(-1)  # (B, L, H), (B, L, 1)
    if mode == "max":
        return tokens.masked_fill(~real, float("-inf")).amax(dim=1)
    return (tokens * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


def normalize(vectors: Tensor) -> Tensor:
    """Unit norm along the last dimension, (B, D) -> (B, D); a zero vector stays zero."""
    return torch.nn.functional.normalize(vectors.float(), p=2.0, dim=-1)
