"""What makes passes fast on a GPU: no padding, a token budget that fits, copies that nobody waits for.

Without padding: the sequences of a batch one after the other in one row, each attending to itself.
torch's variable-length attention (`torch.nn.attention.varlen`, its FlashAttention) takes them as they lie; the
mask that a padded batch needs would keep it from that kernel. All else in a layer is by token. Positions are
given, so this is for models that add learnt ones: BERT, RoBERTa and their kin. Others, and a GPU that
cannot do it, have padded batches sorted by length.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import varlen
from transformers import AttentionInterface, AttentionMaskInterface

from pipeline.encoder.faults import first_line, is_out_of_memory

log = logging.getLogger(__name__)

_ATTENTION = "varlen"

# Between vectors of passes with and without padding, in 16 bits.
_LEAST_COSINE = 0.999

# Of the free memory activations may take so much; how much they take is tried with so many tokens.
_USED_MEMORY = 0.8
_TRIAL_TOKENS = 8192

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# By model_type: whether the first position is behind the one of padding.
_POSITIONS_BEHIND_PADDING = {
    "bert": False,
    "electra": False,
    "roberta": True,
    "xlm-roberta": True,
    "xlm-roberta-xl": True,
    "camembert": True,
}


def can_flatten(model: nn.Module, device: torch.device) -> bool:
    """Whether the model has what it takes; that the device does is for a trial to show."""
    config: Any = model.config
    return (
        device.type == "cuda"
        and next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
        and is_known(model)
        and config._attn_implementation == "sdpa"
    )


def is_known(model: nn.Module) -> bool:
    """Whether positions are learnt, given, and counted as here."""
    config: Any = model.config
    return (
        config.model_type in _POSITIONS_BEHIND_PADDING
        and not getattr(config, "is_decoder", False)
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
    )


class FlatModel:
    """A model with its attention set to take sequences as they lie, until `restore`.

    Args:
        model: one that `is_known`.
    """

    def __init__(self, model: Any) -> None:
        AttentionInterface.register(_ATTENTION, attend_to_own)
        AttentionMaskInterface.register(_ATTENTION, _no_mask)
        self._model, config = model, model.config
        self._padding: int | None = config.pad_token_id if _POSITIONS_BEHIND_PADDING[config.model_type] else None
        self._before = config._attn_implementation
        self._model.set_attn_implementation(_ATTENTION)

    def restore(self) -> None:
        """Padded batches again."""
        self._model.set_attn_implementation(self._before)

    def __call__(self, ids: Ids, mask: Mask, device: torch.device) -> Tensor:
        """(B, L) ids and mask of real tokens, padded on the right -> last hidden states (B, L, H), 0 at padding."""
        places = np.flatnonzero(mask)
        lengths = mask.sum(axis=1)
        # One copy to the device for all three.
        told = np.stack([ids.reshape(-1)[places], self._positions(ids).reshape(-1)[places], places])
        real_ids, positions, at = to_device(told, device)
        bounds = to_device(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), device)
        longest = int(lengths.max())
        hidden = self._model(
            input_ids=real_ids[None],
            position_ids=positions[None],
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=longest,
            max_length_k=longest,
        ).last_hidden_state[0]  # (T, H)
        padded: Tensor = hidden.new_zeros(mask.size, hidden.shape[1]).index_copy_(0, at, hidden)
        return padded.view(*mask.shape, -1)

    def _positions(self, ids: Ids) -> Ids:
        """(B, L), as the model counts them itself: RoBERTa from behind the token of padding, which has no place."""
        if self._padding is None:
            return np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        is_counted = ids != self._padding
        positions: Ids = np.cumsum(is_counted, axis=1) * is_counted + self._padding
        return positions


def flattened(model: nn.Module, forward: Callable[[FlatModel | None, Ids, Mask], Tensor]) -> FlatModel | None:
    """The model for passes without padding, if this device does them and they give the same vectors; else None.

    Args:
        model: one that `is_known`.
        forward: (B, D) of ids and mask, (B, L) both, through the flat model or, with None, in a padded batch.
    """
    config: Any = model.config
    ids = np.full((3, 24), config.pad_token_id or 0)
    mask = np.arange(24) < np.array([[24], [5], [17]])
    ids[mask] = np.random.default_rng(0).integers(0, config.vocab_size, int(mask.sum()))
    expected = forward(None, ids, mask)
    flat = FlatModel(model)
    try:
        least = float((forward(flat, ids, mask) * expected).sum(dim=1).min())
        problem = "" if least >= _LEAST_COSINE else f"cosine {least:.4f} to padded batches"
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        problem = first_line(error)
    if not problem:
        return flat
    log.info("batches are padded: passes without padding do not work here: %s", problem)
    flat.restore()
    return None


def fitting_budget(forward: Callable[[Ids, Mask], Tensor], device: torch.device, max_tokens: int, most: int) -> int:
    """The largest token budget up to `most` whose activations fit into what memory of the GPU is free; measured."""
    length = min(max_tokens, _TRIAL_TOKENS)
    num = max(1, _TRIAL_TOKENS // length)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        forward(np.zeros((num, length), np.int64), np.ones((num, length), bool))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        torch.cuda.empty_cache()
        return num * length // 2
    a_token = (torch.cuda.max_memory_allocated(device) - before) / (num * length)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - before
    return max(length, min(most, int(_USED_MEMORY * free / a_token)))


def attend_to_own(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """(1, heads, T, D) each -> (1, T, heads, D); tokens [bounds[i], bounds[i + 1]) see one another."""
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    found: Any = varlen.varlen_attn(
        query, key, value, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling
    )
    return found[None], None


def _no_mask(*_: object, **__: object) -> None:
    """Bounds say it."""


def to_device(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A copy that a GPU fetches while the host goes on."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def gpu_peak_bytes(device: torch.device) -> int:
    """The most that torch held of the GPU so far."""
    return torch.cuda.max_memory_reserved(device)
