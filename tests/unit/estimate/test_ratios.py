"""Estimates are unbiased, their bounds hold about 95 times in a hundred, and what was counted has none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.estimate.ratios import Estimate, every_kth, ratio, sorted_mean

_ROUNDS = 1000


def test_blocks_tell_documents_per_byte_whatever_their_sizes() -> None:
    """Heavy tails, as lines have: the mean over many samples is the truth, and its bounds hold."""
    rng = np.random.default_rng(1)
    documents = rng.lognormal(3, 0.7, 2000).round()
    num_bytes = documents * rng.lognormal(5, 0.3, 2000)
    truth = documents.sum() / num_bytes.sum()
    found = [
        ratio(documents[chosen], num_bytes[chosen], 64 / 2000)
        for chosen in (rng.choice(2000, 64, replace=False) for _ in range(_ROUNDS))
    ]
    assert np.mean([each.value for each in found]) == pytest.approx(truth, rel=0.01)
    covered = np.mean([abs(each.value - truth) <= each.plus_minus for each in found])
    assert 0.90 <= covered <= 0.99


def test_a_list_sorted_by_length_tells_its_mean_closely() -> None:
    """Tokens are nearly a function of length: a hundred of ten thousand are enough for one percent."""
    rng = np.random.default_rng(2)
    errors, bounds = [], []
    for _ in range(_ROUNDS):
        lengths = np.sort(rng.lognormal(6, 1.5, 3000))
        tokens = np.minimum(256, lengths / 4 * rng.normal(1, 0.1, 3000))
        found = sorted_mean(tokens[every_kth(np.ones(3000), 100, 0.5)], 100 / 3000)
        errors.append(found.value / tokens.mean() - 1)
        bounds.append(found.relative)
    assert abs(np.mean(errors)) < 0.001
    assert np.mean(np.abs(errors) <= bounds) >= 0.93
    assert np.median(bounds) < 0.03


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 1000)), min_size=1, max_size=20))
def test_all_of_it_is_exact(clusters: list[tuple[int, int]]) -> None:
    ys, xs = zip(*clusters, strict=True)
    assert ratio(ys, xs, 1.0) == Estimate(sum(ys) / sum(xs))
    mean = sorted_mean(sorted(ys), 1.0)
    assert mean.plus_minus == 0
    assert mean.value == pytest.approx(float(np.mean(ys)))


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=40), st.integers(1, 20))
def test_each_is_drawn_in_proportion_to_its_weight(weights: list[float], num: int) -> None:
    """Over all offsets, as often as its weight says."""
    if num >= len(weights):
        assert every_kth(weights, num, 0.5).tolist() == list(range(len(weights)))
        return
    offsets = (np.arange(400) + 0.5) / 400
    drawn = np.bincount(np.concatenate([every_kth(weights, num, each) for each in offsets]), minlength=len(weights))
    expected = np.asarray(weights) / np.sum(weights) * num * 400
    assert np.abs(drawn - expected).max() <= num + 2  # an offset more or less at each edge


def test_errors_add_up_as_those_of_independent_things() -> None:
    total = Estimate(100, 3) + Estimate(50, 4)
    assert (total.value, total.plus_minus) == (150, 5)
    product = Estimate(100, 3) * Estimate(10, 0.4)
    assert product.value == 1000
    assert product.relative == pytest.approx(0.05)
    assert Estimate(100, 3) * 2 == Estimate(200, 6)


def test_of_nothing_there_is_nothing() -> None:
    assert ratio([], [], 0.5) == Estimate(0.0)
    assert sorted_mean([], 0.5) == Estimate(0.0)
    assert ratio([5], [2], 0.5) == Estimate(2.5, 2.5)  # one block tells nothing of how they differ
