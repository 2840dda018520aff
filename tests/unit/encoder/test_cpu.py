"""On a CPU linear layers are packed and fused: the same vectors within bfloat16's own error, whatever the family."""

import ctypes
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.activations import GELUActivation

from pipeline.config import EncoderSettings
from pipeline.encoder import Compute, Encoder, encode
from pipeline.encoder.cpu import (
    PackedLinear,
    PackedOutput,
    attend_in_steps,
    can_pack,
    keep_freed_memory,
    pack_linears,
    row_length,
    trim_memory,
)
from pipeline.model import describe_model
from tests import against_library
from tests.families import FAMILIES, make_family, make_texts
from tests.models import minilm_path

needs_bfloat16 = pytest.mark.skipif(not can_pack(torch.bfloat16), reason="this CPU has no products in bfloat16")

Floats = npt.NDArray[np.float32]


def made(compute: Compute) -> Encoder:
    settings = EncoderSettings(model=str(minilm_path()))
    return Encoder(minilm_path(), describe_model(minilm_path(), settings), compute=compute, device="cpu")


def cosines(left: Floats, right: Floats) -> Floats:
    found: Floats = (left * right).sum(axis=1)
    return found


def vectors(folder: Path, compute: Compute, monkeypatch: pytest.MonkeyPatch, *, is_packed: bool = True) -> Floats:
    with monkeypatch.context() as patch:
        if not is_packed:
            patch.setattr(encode, "can_pack", lambda dtype: False)
        found: Floats = against_library.encode(folder, make_texts(), compute=compute)
    return found


@needs_bfloat16
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_layers_are_as_near_to_float32_as_plain_ones(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_family(tmp_path / "model", family)
    exact = vectors(folder, "float32", monkeypatch)
    plain = cosines(exact, vectors(folder, "bfloat16", monkeypatch, is_packed=False))
    packed = cosines(exact, vectors(folder, "bfloat16", monkeypatch))
    assert 1 - packed.mean() <= 1.5 * (1 - plain.mean()) + 1e-5
    assert 1 - packed.min() <= 2 * (1 - plain.min()) + 1e-4


@needs_bfloat16
def test_the_encoder_packs_each_linear_layer_and_fuses_what_it_knows() -> None:
    model = made("bfloat16")._model
    kinds = [type(module) for module in model.modules()]
    assert nn.Linear not in kinds
    layers = model.config.num_hidden_layers
    assert kinds.count(PackedOutput) == 2 * layers
    assert kinds.count(PackedLinear) == 4 * layers + 1  # and the pooler, whose output nobody takes
    assert not any(issubclass(kind, GELUActivation) for kind in kinds)


def test_float32_is_not_packed() -> None:
    """It is what every other type is held against."""
    assert not can_pack(torch.float32)
    model = made("float32")._model
    assert PackedLinear not in map(type, model.modules())


class BertIntermediate(nn.Module):
    """One by that name, with another activation."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 8, dtype=torch.bfloat16)
        self.intermediate_act_fn = nn.ReLU()


@needs_bfloat16
def test_another_activation_is_left_to_the_model() -> None:
    model = nn.Sequential(BertIntermediate())
    pack_linears(model)
    assert isinstance(model[0].intermediate_act_fn, nn.ReLU)
    dense = model[0].dense
    assert isinstance(dense, PackedLinear)
    assert (dense(torch.randn(3, 8, dtype=torch.bfloat16)) < 0).any()


@pytest.mark.parametrize("length", [8, 16, 20, 31, 33, 40])
@pytest.mark.parametrize("kind", ["none", "the same for all queries", "of each query", "added"])
def test_attention_in_whole_steps_is_attention(length: int, kind: str) -> None:
    torch.manual_seed(length)
    query, key, value = torch.randn(3, 2, 4, length, 16).unbind(0)
    real = torch.arange(length) < torch.tensor([length, length - 3])[:, None]
    mask = real[:, None, None, :].expand(2, 1, length, length)
    if kind == "of each query":
        mask = mask & torch.ones(length, length, dtype=torch.bool).tril()
    if kind == "added":
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    given = None if kind == "none" else mask
    module = nn.Module()
    found, _ = attend_in_steps(module, query, key, value, given, is_causal=False)
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=given).transpose(1, 2)
    assert (found - expected).abs().max() < 1e-5


def test_causal_attention_stays_causal() -> None:
    query, key, value = torch.randn(3, 2, 4, 31, 16).unbind(0)
    found, _ = attend_in_steps(nn.Module(), query, key, value, None)  # which transformers takes for causal
    expected = functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    assert (found - expected).abs().max() < 1e-5


@needs_bfloat16
def test_keys_left_over_are_padded_to_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """31 of them cost twice what 32 do."""
    encoder, lengths = made("bfloat16"), set[int]()
    attend = functional.scaled_dot_product_attention

    def spied(query: torch.Tensor, key: torch.Tensor, *rest: torch.Tensor, **options: object) -> torch.Tensor:
        lengths.add(key.shape[2])
        found: torch.Tensor = attend(query, key, *rest, **options)  # type: ignore[arg-type]
        return found

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spied)
    for length in (31, 40, 32, 35):
        encoder.encode([np.arange(length) + 1000])
    assert lengths == {32, 48, 35}


@needs_bfloat16
@pytest.mark.parametrize("family", ["BERT", "RoBERTa", "XLM-R"])
def test_batches_in_one_row_give_the_same_vectors(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_family(tmp_path / "model", family)
    in_rows = vectors(folder, "bfloat16", monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(encode, "is_known", lambda model: False)
        in_batches = vectors(folder, "bfloat16", monkeypatch)
    assert cosines(in_rows, in_batches).min() > 0.9999


@needs_bfloat16
def test_linear_layers_see_few_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each number oneDNN makes code anew, which takes longer than a small batch, and keeps it."""
    encoder, rows = made("bfloat16"), set[int]()
    forward = PackedLinear.forward

    def spied(layer: PackedLinear, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 3:  # not the pooler
            rows.add(x.shape[0] * x.shape[1])
        return forward(layer, x)

    monkeypatch.setattr(PackedLinear, "forward", spied)
    encoder.min_tokens = None
    encoder.encode([np.arange(5 + number % 90) + 1000 for number in range(500)], in_turn=True)
    assert len(rows) <= 4
    assert all(num % 256 == 0 for num in rows)


@pytest.mark.parametrize(("num", "expected"), [(1, 16), (17, 32), (200, 256), (256, 256), (257, 512), (4090, 4096)])
def test_the_length_of_a_row(num: int, expected: int) -> None:
    assert row_length(num) == expected


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    """In blocks as activations are, each held in its place by a small one behind it."""
    keep_freed_memory()
    blocks = [(torch.ones(2**20), torch.ones(2)) for _ in range(50)]  # 4 MiB each: 200
    pins = [pin for _, pin in blocks]
    before = psutil.Process().memory_info().rss
    blocks.clear()
    kept = psutil.Process().memory_info().rss
    trim_memory()
    assert before - kept < 50 * 2**20
    assert kept - psutil.Process().memory_info().rss > 100 * 2**20
    assert len(pins) == 50
