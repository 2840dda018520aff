"""A model that takes its batch as one row of tokens, instead of (B, L); what it makes of it is its device's matter.

All but attention is by token in an encoder layer, so only attention has to know where sequences begin. Positions
are given, so this is for models that add learnt ones: BERT, RoBERTa and their kin. On a GPU nothing is
padded (pipeline.encoder.gpu), on a CPU all batches have the same few numbers of tokens (pipeline.encoder.cpu).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from pipeline.encoder.faults import first_line

log = logging.getLogger(__name__)

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# Between vectors of passes over rows and over batches, in 16 bits.
_LEAST_COSINE = 0.999

# By model_type: whether the first position is behind the one of padding.
_POSITIONS_BEHIND_PADDING = {
    "bert": False,
    "electra": False,
    "roberta": True,
    "xlm-roberta": True,
    "xlm-roberta-xl": True,
    "camembert": True,
}


def is_known(model: nn.Module) -> bool:
    """Whether positions are learnt, given, and counted as here."""
    config: Any = model.config
    return (
        config.model_type in _POSITIONS_BEHIND_PADDING
        and not getattr(config, "is_decoder", False)
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
    )


class FlatModel:
    """A model with its attention set to another, which knows of batches that lie in one row; until `restore`.

    Args:
        model: one that `is_known`.
        name: of the attention.
        attend: as transformers' attention functions.
    """

    def __init__(self, model: Any, name: str, attend: Callable[..., tuple[Tensor, None]]) -> None:
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, _no_mask)
        self.model, config = model, model.config
        self._padding: int | None = config.pad_token_id if _POSITIONS_BEHIND_PADDING[config.model_type] else None
        self._before = config._attn_implementation
        self.model.set_attn_implementation(name)

    def restore(self) -> None:
        """Batches as they are again."""
        self.model.set_attn_implementation(self._before)

    def __call__(self, ids: Ids, mask: Mask, device: torch.device) -> Tensor:
        """(B, L) ids and mask of real tokens, padded on the right -> last hidden states (B, L, H)."""
        raise NotImplementedError

    def positions(self, ids: Ids) -> Ids:
        """(B, L), as the model counts them itself: RoBERTa from behind the token of padding, which has no place."""
        if self._padding is None:
            return np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        is_counted = ids != self._padding
        positions: Ids = np.cumsum(is_counted, axis=1) * is_counted + self._padding
        return positions


def _no_mask(*_: object, **__: object) -> None:
    """The attention is told otherwise."""


def flattened(
    model: nn.Module,
    make: Callable[[nn.Module], FlatModel],
    forward: Callable[[FlatModel | None, Ids, Mask], Tensor],
) -> FlatModel | None:
    """The flat model, if it gives the same vectors on this device; else None, and the model is as before.

    Args:
        model: one that `is_known`.
        make: the flat model of it.
        forward: (B, D) of ids and mask, (B, L) both, through the flat model or, with None, as a batch.
    """
    config: Any = model.config
    ids = np.full((3, 24), config.pad_token_id or 0)
    mask = np.arange(24) < np.array([[24], [5], [17]])
    ids[mask] = np.random.default_rng(0).integers(0, config.vocab_size, int(mask.sum()))
    expected = forward(None, ids, mask)
    flat = make(model)
    try:
        least = float((forward(flat, ids, mask) * expected).sum(dim=1).min())
        problem = "" if least >= _LEAST_COSINE else f"cosine {least:.4f}"
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
        problem = first_line(error)
    if not problem:
        return flat
    log.info("batches are not put in one row, which does not work here: %s", problem)
    flat.restore()
    return None
