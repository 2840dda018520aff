"""What makes passes fast on a GPU: no padding, a token budget that fits, copies that nobody waits for.

Without padding: the sequences of a batch one after the other in one row, each attending to itself.
torch's variable-length attention (`torch.nn.attention.varlen`, its FlashAttention) takes them as they lie; the
mask that a padded batch needs would keep it from that kernel. Models that are not `flat.is_known`, and a GPU
that cannot do it, have padded batches sorted by length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import varlen

from pipeline.encoder.faults import is_out_of_memory
from pipeline.encoder.flat import FlatModel, Ids, Mask, is_known

# Of the free memory activations may take so much; how much they take is tried with so many tokens.
_USED_MEMORY = 0.8
_TRIAL_TOKENS = 8192


def can_flatten(model: nn.Module, device: torch.device) -> bool:
    """Whether the model has what it takes; that the device does is for a trial to show."""
    config: Any = model.config
    return (
        device.type == "cuda"
        and next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
        and is_known(model)
        and config._attn_implementation == "sdpa"
    )


class VarlenModel(FlatModel):
    """A model whose sequences lie one after the other, nothing between them.

    Args:
        model: one that `can_flatten`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model, "varlen", attend_to_own)

    def __call__(self, ids: Ids, mask: Mask, device: torch.device) -> Tensor:
        """(B, L) ids and mask of real tokens, padded on the right -> last hidden states (B, L, H), 0 at padding."""
        places = np.flatnonzero(mask)
        lengths = mask.sum(axis=1)
        # One copy to the device for all three.
        told = np.stack([ids.reshape(-1)[places], self.positions(ids).reshape(-1)[places], places])
        real_ids, positions, at = to_device(told, device)
        bounds = to_device(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), device)
        longest = int(lengths.max())
        hidden = self.model(
            input_ids=real_ids[None],
            position_ids=positions[None],
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=longest,
            max_length_k=longest,
        ).last_hidden_state[0]  # (T, H)
        padded: Tensor = hidden.new_zeros(mask.size, hidden.shape[1]).index_copy_(0, at, hidden)
        return padded.view(*mask.shape, -1)


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


def to_device(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A copy that a GPU fetches while the host goes on."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def gpu_peak_bytes(device: torch.device) -> int:
    """The most that torch held of the GPU so far."""
    return torch.cuda.max_memory_reserved(device)
