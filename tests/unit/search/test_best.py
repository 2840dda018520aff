from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.search import best as best_module
from pipeline.search.best import Best


@given(
    seed=st.integers(0, 10**6),
    num=st.integers(1, 8),
    num_groups=st.integers(1, 12),
    lists_per_row=st.sampled_from([1, 2]),
    max_pending=st.integers(1, 60),
)
def test_the_best_are_those_of_sorting_all_whatever_comes_when(
    seed: int, num: int, num_groups: int, lists_per_row: int, max_pending: int
) -> None:
    """Few distinct scores, so that ties are everywhere; a row in two lists counts once."""
    random = np.random.default_rng(seed)
    score_of = random.integers(0, 6, size=(3, 30)).astype(np.float32)  # (Q, rows)
    seen: list[set[int]] = [set() for _ in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_module, "_MAX_PENDING", max_pending)
        found = Best(3, num, lists_per_row)
        stock = np.repeat(np.arange(30), lists_per_row)
        random.shuffle(stock)
        for number, some in enumerate(np.array_split(stock, num_groups)):
            rows = np.unique(some)  # a list holds a row once
            query = np.sort(random.choice(3, random.integers(1, 4), replace=False)).astype(np.int32)
            found.add(query, score_of[query][:, rows], rows + 1000, rows + (number << 32))
            for one in query.tolist():
                seen[one] |= set(rows.tolist())
        found.cut()
    bounds = found.bounds()
    for one in range(3):
        expected = sorted(seen[one], key=lambda row: (-score_of[one, row], row))[:num]
        mine = slice(bounds[one], bounds[one + 1])
        assert (found.address[mine] - 1000).tolist() == expected
        assert found.score[mine].tolist() == score_of[one, expected].tolist()
        assert (found.place[mine] & 0xFFFFFFFF).tolist() == expected


def test_other_scores_give_another_order() -> None:
    found = Best(2, 3)
    for query in (0, 1):
        found.add(np.array([query], np.int32), np.array([[3, 2, 1]], np.float32), np.arange(3), np.arange(3))
    found.cut()
    found.replace_scores(np.array([1, 2, 3, 5, 4, 4], np.float32))
    assert found.address.tolist() == [2, 1, 0, 0, 1, 2]
