"""What makes a forward pass fast on a CPU, beside sorted batches.

Of a bfloat16 product torch packs the weights anew at each call, and writes the bias over the whole
result before it adds the product to it; GELU and the residual are passes over memory of their own.
oneDNN packs weights once, and does the three while a result is in registers: these are the operators
that torch's own compiler (inductor, with freezing) puts in place of linear layers, here without the
compiler. Vectors move by no more than bfloat16's own error: what is added, is added in float32.

torch's attention takes keys 16 at once, and what is left over one by one, each at the cost of several:
31 keys take twice the time of 32. Keys and values are padded there to a multiple of 16, masked.

For each number of rows oneDNN makes code anew, some 15 ms and 4 MB a linear layer: more than a tenth of a
pass, and gigabytes over a corpus, where each batch has another number. So batches lie in one row of tokens
(pipeline.encoder.flat), whose end is filled up to a multiple of 256.

Activations of tens of MB come and go with each layer. Left alone, the C library gives their pages
back and fetches them anew: a fifth of the time. Told to keep them it keeps more and more, in pieces that
the next aligned block does not fit into: so every 64 passes all that is free goes back, for 1 % of the time.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.activations import GELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pipeline.encoder.flat import FlatModel, Ids, Mask

# Packed weights suit any number of rows; this one is what oneDNN is told when it chooses their layout.
_PACKED_FOR_ROWS = 4096

# Their forward is known: dense, then the activation; dense, then dropout, then LayerNorm of the sum with the input.
_FAMILIES = ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "MPNet")
_INTERMEDIATE = {f"{family}Intermediate" for family in _FAMILIES}
_OUTPUT = {f"{family}{part}" for family in _FAMILIES for part in ("SelfOutput", "Output")}

# Keys that torch's attention takes at once; padding to them pays from so many left over on (jobs/benchmark.md).
_KEYS_AT_ONCE, _MANY_LEFT = 16, 8
_ATTENTION = "sdpa_in_whole_steps"

# Rows are filled up to a multiple of so many tokens: few lengths, little filling.
_ROW_STEP = 256

# mallopt(3): M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, and the most that glibc takes for the latter.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST_KEPT_BYTES, _MOST_HEAP_BYTES = 2**31 - 1, 32 * 2**20


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies in `dtype` itself, and this torch has oneDNN's operators for it."""
    operators = torch.ops.mkldnn
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return (
        dtype == torch.bfloat16
        and has_onednn
        and all(hasattr(operators, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
        and bool(operators._is_mkldnn_bf16_supported())
    )


def pack_linears(model: nn.Module) -> None:
    """Put packed layers in place of a bfloat16 model's linear ones, with what follows them fused in where it is known.

    The model is for inference alone from then on, on the CPU.
    """
    parent: Any  # what a module has is told by its name
    child: Any
    for parent in list(model.modules()):
        if type(parent).__name__ in _INTERMEDIATE and _is_gelu(parent.intermediate_act_fn):
            parent.dense = PackedLinear(parent.dense, activation="gelu")
            parent.intermediate_act_fn = nn.Identity()
        for name, child in parent.named_children():
            if type(child).__name__ in _OUTPUT and type(child.dense) is nn.Linear:
                setattr(parent, name, PackedOutput(child.dense, child.LayerNorm))
            elif type(child) is nn.Linear:  # not one that does more
                setattr(parent, name, PackedLinear(child))


def step_attention(model: nn.Module) -> None:
    """Let the model's attention, where it is torch's own, take all keys in whole steps."""
    found: Any = model
    if getattr(found.config, "_attn_implementation", None) != "sdpa":
        return
    AttentionInterface.register(_ATTENTION, attend_in_steps)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    found.set_attn_implementation(_ATTENTION)


class RowsModel(FlatModel):
    """A model whose batches, padded as they are, lie in one row of a few lengths.

    Args:
        model: one that `is_known`, with torch's attention.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model, "rows", attend_by_rows)

    def __call__(self, ids: Ids, mask: Mask, device: torch.device) -> Tensor:
        """As FlatModel's."""
        size, length = ids.shape
        num = ids.size
        rows = np.zeros((2, row_length(num)), np.int64)
        rows[0, :num], rows[1, :num] = ids.reshape(-1), self.positions(ids).reshape(-1)
        real = None if mask.all() else torch.from_numpy(mask)[:, None, None].expand(size, 1, length, length)
        hidden: Tensor = self.model(
            input_ids=torch.from_numpy(rows[:1]),
            position_ids=torch.from_numpy(rows[1:]),
            batch_shape=(size, length),
            batch_mask=real,
        ).last_hidden_state
        return hidden[0, :num].view(size, length, -1)


def row_length(num: int) -> int:
    """How long the row of so many tokens is: a multiple of 256, or a power of two."""
    return -(-num // _ROW_STEP) * _ROW_STEP if num > _ROW_STEP else max(16, 1 << (num - 1).bit_length())


def attend_by_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    batch_shape: tuple[int, int],
    batch_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """(1, heads, T, D) each, of which the first B x L tokens are a batch -> (1, T, heads, D)."""
    num = batch_shape[0] * batch_shape[1]
    query, key, value = (
        part[0, :, :num].transpose(0, 1).reshape(*batch_shape, *part.shape[1::2]).transpose(1, 2)
        for part in (query, key, value)
    )
    kwargs["is_causal"] = False
    found, _ = attend_in_steps(module, query, key, value, batch_mask, **kwargs)  # (B, L, heads, D)
    row = found.flatten(0, 1)
    return functional.pad(row, (0, 0, 0, 0, 0, row_length(num) - num))[None], None


def attend_in_steps(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """As transformers' own over torch's attention: (B, heads, L, D) each -> (B, L, heads, D)."""
    length = key.shape[2]
    num_left = length % _KEYS_AT_ONCE
    is_causal = attention_mask is None and kwargs.get("is_causal", getattr(module, "is_causal", True)) is not False
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = _added(attention_mask, query.dtype)  # once for all queries: torch would do it for each
    if num_left >= _MANY_LEFT and not is_causal and kwargs.get("position_bias") is None:
        missing = _KEYS_AT_ONCE - num_left
        key, value = (functional.pad(part, (0, 0, 0, missing)) for part in (key, value))
        if attention_mask is None:
            attention_mask = query.new_zeros(1, 1, 1, length).expand(len(query), 1, query.shape[2], length)
        attention_mask = _padded(attention_mask, missing)
    out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return out, None


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores: 0 where the mask is true."""
    once = _once(mask)
    return torch.zeros_like(once, dtype=dtype).masked_fill_(~once, -torch.inf).expand(mask.shape)


def _padded(mask: Tensor, missing: int) -> Tensor:
    return functional.pad(_once(mask), (0, missing), value=-torch.inf).expand(*mask.shape[:3], -1)


def _once(mask: Tensor) -> Tensor:
    """The mask of one query where, as a rule, it is the same for each."""
    return mask[:, :, :1] if mask.stride(2) == 0 else mask


def is_stateless(model: nn.Module) -> bool:
    """Whether passes may run at once: none changes the model, as those do whose rotary frequencies follow lengths."""
    kinds = [getattr(module, "rope_type", "default") for module in model.modules()]
    found = {name for kind in kinds for name in (kind.values() if isinstance(kind, dict) else [kind])}
    return not found & {"dynamic", "longrope"}


def _is_gelu(activation: object) -> bool:
    return isinstance(activation, GELUActivation) and activation.act is nn.functional.gelu


class PackedLinear(nn.Module):
    """A linear layer, (..., in) -> (..., out), and the activation after it: "none" or "gelu"."""

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self._packed, self._bias, self._activation = _packed(linear), linear.bias, activation
        self.weight = linear.weight.new_empty(0)  # some models ask for its dtype

    def forward(self, x: Tensor) -> Tensor:
        """Of rank 2 or more."""
        done: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, self._activation, [], "none")
        return done


class PackedOutput(nn.Module):
    """What ends each half of a layer: linear, the residual added, LayerNorm."""

    def __init__(self, linear: nn.Linear, norm: nn.Module) -> None:
        super().__init__()
        self._packed, self._bias = _packed(linear), linear.bias
        self.LayerNorm = norm

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """(..., in) and (..., out) -> (..., out)."""
        added = torch.ops.mkldnn._linear_pointwise.binary(hidden_states, input_tensor, self._packed, self._bias, "add")
        normed: Tensor = self.LayerNorm(added)
        return normed


def _packed(linear: nn.Linear) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _PACKED_FOR_ROWS)
    return packed


def keep_little_code() -> None:
    """Let oneDNN keep the code of some 30 numbers of rows, not of hundreds; before it makes the first."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


def keep_freed_memory() -> None:
    """Let this process keep the memory that activations leave, for those of the next batch, until `trim_memory`."""
    if (mallopt := _of_glibc("mallopt")) is not None:
        mallopt(_MMAP_THRESHOLD, _MOST_HEAP_BYTES)
        mallopt(_TRIM_THRESHOLD, _MOST_KEPT_BYTES)


def trim_memory() -> None:
    """Give the system back what is free: some 100 ms, and what is in use next is fetched anew."""
    if (malloc_trim := _of_glibc("malloc_trim")) is not None:
        malloc_trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """None where the C library is another: then freed memory goes back to the system at once."""
    try:
        return cast("Callable[..., int]", getattr(ctypes.CDLL(None), name))
    except (AttributeError, OSError, TypeError):
        return None


def cpu_peak_bytes() -> int:
    """The most that was resident of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
