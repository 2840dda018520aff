"""Pooling and norm, against the library's own modules."""

from typing import get_args

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling

from pipeline.config import PoolingMode
from pipeline.pooling import normalize, pool

MODES = get_args(PoolingMode)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 7, 16, generator=generator) - 1.0  # mostly negative: a max over padding would show
    lengths = torch.tensor([7, 1, 3, 5, 2])
    return hidden, torch.arange(7) < lengths[:, None]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_skipped", [0, 1])
def test_each_mode_is_the_librarys(
    batch: tuple[torch.Tensor, torch.Tensor], mode: PoolingMode, num_skipped: int
) -> None:
    """With the prompt's tokens, and without (a row of a single token aside: it would have none)."""
    hidden, mask = batch[0][[0, 2, 3, 4]], batch[1][[0, 2, 3, 4]]
    features = {"token_embeddings": hidden, "attention_mask": mask.long(), "prompt_length": num_skipped}
    expected = Pooling(16, mode, include_prompt=False)(features)["sentence_embedding"]
    assert torch.allclose(pool(hidden, mask, mode, num_skipped=num_skipped), expected, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", [1e6, float("nan")])
def test_padding_never_shapes_a_vector(
    batch: tuple[torch.Tensor, torch.Tensor], mode: PoolingMode, padding: float
) -> None:
    """Not even where a model makes no number of it."""
    hidden, mask = batch
    poisoned = torch.where(mask.unsqueeze(-1), hidden, torch.tensor(padding))
    assert torch.allclose(pool(poisoned, mask, mode), pool(hidden, mask, mode), atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_where_nothing_is_left_to_pool_there_is_no_sound_vector(mode: PoolingMode) -> None:
    """It is found as invalid by its norm."""
    vector = normalize(pool(torch.ones(1, 3, 4), torch.ones(1, 3, dtype=torch.bool), mode, num_skipped=3))
    assert not torch.isclose(vector.norm(), torch.tensor(1.0))


def test_reduced_precision_ends_at_pooling(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    hidden, mask = batch
    pooled = pool(hidden.bfloat16(), mask, "mean")
    assert pooled.dtype == torch.float32
    assert torch.allclose(normalize(pooled).norm(dim=-1), torch.ones(5), atol=1e-6)


def test_a_zero_vector_stays_zero_to_be_found() -> None:
    assert normalize(torch.zeros(1, 4)).abs().sum() == 0
