"""What the encoder does on a GPU, as far as it shows without one: the kernel and the card's memory are stand-ins."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import varlen

from pipeline.config import EncoderSettings
from pipeline.encoder import Encoder
from pipeline.encoder.flat import flattened, is_known
from pipeline.encoder.gpu import VarlenModel, fitting_budget
from pipeline.model import describe_model
from pipeline.tokens import load_tokenizer
from tests.families import make_family, make_texts

CPU = torch.device("cpu")
CUDA = torch.device("cuda:0")


def attend(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, *_: object, scale: float | None = None) -> Tensor:
    """What variable-length attention is by definition, (T, heads, D): sequence by sequence."""
    parts = []
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        q, k, v = (part[begin:end].transpose(0, 1) for part in (query, key, value))
        parts.append(functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(0, 1))
    return torch.cat(parts)


def made(folder: Path) -> Encoder:
    description = describe_model(folder, EncoderSettings(model=str(folder)))
    return Encoder(folder, description, compute="float32", token_budget=300, device="cpu", num_threads=1)


@pytest.mark.parametrize("family", ["BERT", "RoBERTa", "XLM-R"])
def test_without_padding_the_vectors_are_the_same(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", attend)
    encoder = made(make_family(tmp_path / "model", family))
    model = describe_model(tmp_path / "model", EncoderSettings(model=str(tmp_path / "model")))
    ids = load_tokenizer(tmp_path / "model", model).query_ids(make_texts())
    padded = encoder.encode(ids).vectors
    assert is_known(encoder._model)
    encoder._flat = flattened(encoder._model, VarlenModel, encoder._try_flat)
    assert encoder._flat is not None
    assert np.abs(encoder.encode(ids).vectors - padded).max() < 1e-5


def test_a_kernel_that_answers_otherwise_is_not_used(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ignores the bounds mixes the documents of a batch."""

    def mixing(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, *rest: object, **more: Any) -> Tensor:
        return attend(query, key, value, bounds[[0, -1]], *rest, **more)

    monkeypatch.setattr(varlen, "varlen_attn", mixing)
    encoder = made(tiny)
    expected = encoder.encode([[5, 6, 7], [8, 9]]).vectors
    assert flattened(encoder._model, VarlenModel, encoder._try_flat) is None
    encoder._flat = None
    assert np.abs(encoder.encode([[5, 6, 7], [8, 9]]).vectors - expected).max() < 1e-6


def test_where_there_is_no_such_kernel_batches_are_padded(tiny: Path) -> None:
    """As on this CPU."""
    encoder = made(tiny)
    assert flattened(encoder._model, VarlenModel, encoder._try_flat) is None
    assert encoder._model.config._attn_implementation != "varlen"


def test_relative_positions_are_not_flattened(tmp_path: Path) -> None:
    assert not is_known(made(make_family(tmp_path / "model", "MPNet"))._model)


class Card:
    """Memory of a GPU as torch tells it: `a_token` bytes of activations for each token of a pass."""

    def __init__(self, a_token: int, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.a_token, self.free, self.peak, self.passes = a_token, free, 1_000, list[tuple[int, ...]]()
        for name, value in {
            "memory_allocated": lambda device: 1_000,
            "memory_reserved": lambda device: 1_000,
            "max_memory_allocated": lambda device: self.peak,
            "mem_get_info": lambda device: (self.free, 10 * self.free),
            "reset_peak_memory_stats": lambda device: None,
            "empty_cache": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def forward(self, ids: Any, mask: Any) -> Tensor:
        self.passes.append(ids.shape)
        needed = ids.size * self.a_token
        if needed > self.free:
            raise torch.OutOfMemoryError("out of memory")
        self.peak = 1_000 + needed
        return torch.zeros(len(ids), 4)


def test_the_token_budget_is_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(a_token=100, free=1_000_000, monkeypatch=monkeypatch)
    assert fitting_budget(card.forward, CUDA, 512, 65_536) == 8_000
    assert card.passes == [(16, 512)]


def test_a_card_with_room_has_the_usual_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(a_token=100, free=10**9, monkeypatch=monkeypatch)
    assert fitting_budget(card.forward, CUDA, 512, 65_536) == 65_536


def test_a_card_on_which_not_even_the_trial_fits_begins_with_half_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(a_token=1_000, free=1_000_000, monkeypatch=monkeypatch)
    assert fitting_budget(card.forward, CUDA, 512, 65_536) == 4_096


def test_a_fault_that_is_not_memory_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Card(a_token=1, free=1, monkeypatch=monkeypatch)

    def broken(ids: Any, mask: Any) -> Tensor:
        raise RuntimeError("no kernel image is available")

    with pytest.raises(RuntimeError, match="no kernel"):
        fitting_budget(broken, CUDA, 512, 65_536)
