"""On a CPU linear layers are packed and fused: the same vectors within bfloat16's own error, whatever the family."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from transformers.activations import GELUActivation

from pipeline.config import EncoderSettings
from pipeline.encoder import Compute, Encoder, encode
from pipeline.encoder.cpu import PackedLinear, PackedOutput, can_pack, pack_linears
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
