"""The probe sees the batches of a split, spread over all lengths, and tells what a sequence takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from pipeline.batching import padding_ratio, token_batches
from pipeline.encoder import Encoder
from pipeline.estimate.probe import _spread, probe_encoder

BUDGET = 256


class _Fake:
    """Takes a second for 100 padded tokens; the first pass is slow."""

    token_budget = BUDGET
    min_tokens = None

    def __init__(self) -> None:
        self.now = 0.0
        self.shapes: list[tuple[int, int]] = []

    def encode(self, sequences: Sequence[Any]) -> None:
        shape = len(sequences), max(map(len, sequences))
        self.now += shape[0] * shape[1] / 100 + (60 if not self.shapes else 0)
        self.shapes.append(shape)


def _ids(lengths: Sequence[int]) -> pa.ListArray:
    return pa.array([[7] * length for length in lengths], pa.list_(pa.int32()))


def _probe(lengths: Sequence[int], window: int) -> tuple[Any, _Fake]:
    fake = _Fake()
    return probe_encoder(cast(Encoder, fake), _ids(lengths), window, clock=lambda: fake.now), fake


def test_the_first_pass_is_not_counted_and_the_rest_is_exact() -> None:
    """A sequence takes its share of the padded tokens of a split that is sorted by length."""
    lengths = np.random.default_rng(4).integers(3, 60, 500)
    found, fake = _probe(lengths.tolist(), 500)
    padding = padding_ratio(lengths, token_batches(lengths, BUDGET))
    assert found.padding_ratio == pytest.approx(padding)
    assert found.seconds_per_sequence.value == pytest.approx(lengths.mean() * padding / 100)
    assert found.tokens_per_s == pytest.approx(100 / padding)
    assert all(rows * longest <= BUDGET for rows, longest in fake.shapes)


def test_it_ends_after_ten_seconds_having_seen_long_and_short() -> None:
    lengths = np.random.default_rng(5).integers(3, 120, 5000)
    found, fake = _probe(lengths.tolist(), 5000)
    assert 10 <= found.measured_s <= 10 + 2 * BUDGET / 100
    longest = [shape[1] for shape in fake.shapes]
    assert max(longest) > 90
    assert min(longest) < 70


def test_the_window_is_that_of_a_split_not_of_the_sample() -> None:
    """A sample of 100 stands for a split of 10,000, whose batches are hardly padded."""
    lengths = np.random.default_rng(6).integers(3, 60, 100).tolist()
    assert _probe(lengths, 10_000)[0].padding_ratio < 1.03 < _probe(lengths, 20)[0].padding_ratio


@pytest.mark.parametrize("num", [1, 2, 3, 7, 64, 100])
def test_every_batch_comes_once_and_early_ones_are_far_apart(num: int) -> None:
    order = list(_spread(num))
    assert sorted(order) == list(range(num))
    if num >= 64:
        assert min(abs(a - b) for i, a in enumerate(order[:3]) for b in order[:i]) >= num // 4
