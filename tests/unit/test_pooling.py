"""Pooling and norm, against the library's own modules."""

from typing import cast

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling

from pipeline.model import PoolingMode
from pipeline.pooling import normalize, pool


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 7, 16, generator=generator) - 1.0  # mostly negative: a max over padding would show
    lengths = torch.tensor([7, 1, 3, 5, 2])
    return hidden, torch.arange(7) < lengths[:, None]


@pytest.mark.parametrize("mode", ["cls", "mean", "max"])
def test_each_mode_is_the_librarys(batch: tuple[torch.Tensor, torch.Tensor], mode: str) -> None:
    hidden, mask = batch
    expected = Pooling(16, mode)({"token_embeddings": hidden, "attention_mask": mask.long()})["sentence_embedding"]
    assert torch.allclose(pool(hidden, mask, cast(PoolingMode, mode)), expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["cls", "mean", "max"])
def test_padding_never_shapes_a_vector(batch: tuple[torch.Tensor, torch.Tensor], mode: str) -> None:
    hidden, mask = batch
    poisoned = torch.where(mask.unsqueeze(-1), hidden, torch.tensor(1e6))
    mode = cast(PoolingMode, mode)
    assert torch.allclose(pool(poisoned, mask, mode), pool(hidden, mask, mode), atol=1e-5)


def test_reduced_precision_ends_at_pooling(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    hidden, mask = batch
    pooled = pool(hidden.bfloat16(), mask, "mean")
    assert pooled.dtype == torch.float32
    assert torch.allclose(normalize(pooled).norm(dim=-1), torch.ones(5), atol=1e-6)


def test_a_zero_vector_stays_zero_to_be_found() -> None:
    assert normalize(torch.zeros(1, 4)).abs().sum() == 0
