"""The transformers module of the task's model, for what is exported or measured of it; and its FLOPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from jobs.encoder_benchmark.task import Task
from pipeline.model import ENCODER_CLASSES

# What the products within attention are dispatched to; those with weights are mm and addmm.
_ATTENTION_OPS = ("bmm", "baddbmm")


def load_module(task: Task, dtype: torch.dtype) -> torch.nn.Module:
    """With its weights, on the CPU."""
    config, auto = _config(task)
    module: torch.nn.Module = auto.from_pretrained(
        task.path / task.model.transformer, config=config, dtype=dtype, use_safetensors=True, local_files_only=True
    )
    return module.eval()


def shape_module(task: Task) -> torch.nn.Module:
    """Without weights: its shapes, and a forward that counts and computes nothing."""
    config, auto = _config(task)
    # Eager: fused attention would be counted by another formula on every device.
    config._attn_implementation = "eager"
    with torch.device("meta"):
        module: torch.nn.Module = (auto.from_config if auto is transformers.AutoModel else auto)(config)
    return module.eval()


def _config(task: Task) -> tuple[Any, Any]:
    config: Any = transformers.AutoConfig.from_pretrained(
        task.path / task.model.transformer, local_files_only=True, trust_remote_code=False
    )
    config.use_cache = False
    name = ENCODER_CLASSES.get(config.model_type)
    return config, transformers.AutoModel if name is None else getattr(transformers, name)


@dataclass(frozen=True)
class Flops:
    """Of a model over texts, without padding; a multiplication and an addition count as two."""

    linear: int
    """Of the products with weights."""
    attention: int
    """Of the products of attention: queries with keys, and with values."""


def count_flops(module: torch.nn.Module, lengths: npt.NDArray[np.int64]) -> Flops:
    """Count one text of mean length with `torch.utils.flop_counter`, and carry it over to all.

    Products with weights grow with the length, those of attention with its square. The pooler, which
    some modules have and no embedding needs, is left out.

    Args:
        module: on the meta device, with eager attention (`shape_module`).
        lengths: tokens of each text.
    """
    length = max(1, round(float(lengths.mean())))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module(input_ids=torch.ones((1, length), dtype=torch.long, device="meta"))
    counts: dict[str, dict[Any, int]] = counter.get_flop_counts()
    total, attention = sum(counts["Global"].values()), _attention(counts["Global"])
    poolers = sum(sum(ops.values()) for name, ops in counts.items() if name.split(".")[-1] == "pooler")
    squares = int((lengths.astype(np.int64) ** 2).sum())
    return Flops(
        linear=(total - attention - poolers) * int(lengths.sum()) // length,
        attention=attention * squares // length**2,
    )


def _attention(ops: dict[Any, int]) -> int:
    return sum(flops for op, flops in ops.items() if str(op).rpartition(".")[2] in _ATTENTION_OPS)
