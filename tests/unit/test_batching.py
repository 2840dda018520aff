"""Token batches: every sequence once, the budget kept, little padding."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batching import padded_tokens, padding_ratio, token_batches

LENGTHS = st.lists(st.integers(0, 300), max_size=200).map(lambda values: np.array(values, np.int32))


@given(LENGTHS, st.integers(1, 5000))
def test_every_sequence_is_in_one_batch(lengths: np.ndarray, budget: int) -> None:
    batches = token_batches(lengths, budget)
    assert sorted(np.concatenate([np.zeros(0, np.int64), *batches]).tolist()) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 5000))
def test_a_batch_is_within_the_budget_or_one_sequence(lengths: np.ndarray, budget: int) -> None:
    for batch in token_batches(lengths, budget):
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget


@given(LENGTHS, st.integers(1, 5000))
def test_the_longest_come_first_so_what_does_not_fit_shows_at_once(lengths: np.ndarray, budget: int) -> None:
    order = np.concatenate([np.zeros(0, np.int64), *token_batches(lengths, budget)]).astype(np.int64)
    assert (np.diff(lengths[order]) <= 0).all()


def test_ties_keep_their_order_and_share_batches() -> None:
    """Equal lengths fill the budget: batches are not tiny."""
    batches = token_batches(np.full(100, 10), 250)
    assert [batch.tolist() for batch in batches] == [list(range(i, i + 25)) for i in range(0, 100, 25)]


def test_padding_nearly_vanishes_over_a_split_of_short_texts() -> None:
    """Lengths as of dictionary glosses (mean 15, long tail): at most 1.05 at the CPU's budget."""
    lengths = np.random.default_rng(0).gamma(4.0, 4.0, 10_000).astype(np.int64) + 3
    batches = token_batches(lengths, 4096)
    assert 1.0 <= padding_ratio(lengths, batches) <= 1.05
    assert padded_tokens(lengths, batches) / len(batches) > 3000


@given(LENGTHS, st.integers(1, 5000), st.integers(1, 2000))
def test_a_batch_that_is_large_enough_pads_by_a_fiftieth_at_most(
    lengths: np.ndarray, budget: int, min_tokens: int
) -> None:
    batches = token_batches(lengths, budget, min_tokens=min_tokens)
    assert sorted(np.concatenate([np.zeros(0, np.int64), *batches]).tolist()) == list(range(len(lengths)))
    for batch in batches:
        longest = max(1, int(lengths[batch].max()))
        assert len(batch) == 1 or len(batch) * longest <= budget
        if len(batch) > 1 and len(batch) * longest > min_tokens:  # fewer would have been enough
            assert len(batch) * longest <= 1.02 * lengths[batch].sum()


def test_a_few_texts_of_many_lengths_hardly_pad() -> None:
    """1,000 glosses, as in a small split: 1.1 at the CPU's budget, were each batch filled."""
    lengths = np.random.default_rng(0).gamma(1.5, 35.0, 1000).astype(np.int64).clip(4, 256)
    assert padding_ratio(lengths, token_batches(lengths, 4096)) > 1.08
    batches = token_batches(lengths, 4096, min_tokens=512)
    assert padding_ratio(lengths, batches) <= 1.03
    assert np.mean([len(batch) * lengths[batch].max() for batch in batches]) >= 500, "batches are not tiny"


def test_batches_that_end_early_do_so_near_few_numbers_of_tokens() -> None:
    """Each other number is another shape to the device, which costs once more."""
    lengths = np.random.default_rng(0).gamma(1.5, 35.0, 3000).astype(np.int64).clip(4, 256)
    tokens = [len(batch) * lengths[batch].max() for batch in token_batches(lengths, 4096, min_tokens=2048)]
    assert {-(-num // 256) * 256 for num in tokens[:-1]} <= {2048, 3072, 4096}


def test_equal_lengths_fill_the_budget_all_the_same() -> None:
    batches = token_batches(np.full(100, 10), 250, min_tokens=50)
    assert {len(batch) for batch in batches} == {25}


def test_no_sequences_is_no_batch() -> None:
    assert token_batches(np.zeros(0, np.int32), 100) == []
    assert padding_ratio(np.zeros(0, np.int32), []) == 1.0
