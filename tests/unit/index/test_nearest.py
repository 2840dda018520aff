from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.index.nearest
from pipeline.index.nearest import Nearest, floors, from_table
from tests.vectors import clustered


def brute_force(
    queries: npt.NDArray[np.float32], rows: npt.NDArray[np.float32], num: int, left_out: set[tuple[int, int]]
) -> list[list[int]]:
    scores = queries @ rows.T
    for query, row in left_out:
        scores[query, row] = -np.inf
    return [
        [row for row in np.lexsort((np.arange(len(rows)), -one))[:num].tolist() if one[row] > -np.inf] for one in scores
    ]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    num=st.integers(1, 20),
    block=st.integers(1, 50),
    seed=st.integers(0, 100),
)
def test_the_nearest_are_those_of_brute_force_whatever_the_blocks(
    sizes: list[int], num: int, block: int, seed: int
) -> None:
    total = sum(sizes)
    rows, queries = (
        clustered(total, 6, seed=seed) if total else np.zeros((0, 6), np.float32),
        clustered(7, 6, seed=seed + 1),
    )
    left_out = {(query, row) for query in range(7) for row in range(query, total, 11)}
    most = max((sum(one == query for one, _ in left_out) for query in range(7)), default=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.index.nearest, "NUM_KEPT", num)
        patch.setattr(pipeline.index.nearest, "_BLOCK_ROWS", block)
        found = Nearest(queries, floors(queries, rows[::2], np.full(7, most)))
        begin = 0
        for size in sizes:
            here = [(query, row - begin) for query, row in sorted(left_out) if begin <= row < begin + size]
            pairs = np.array(here, np.int64).reshape(-1, 2).T
            found.add(rows[begin : begin + size], np.arange(begin, begin + size), (pairs[0], pairs[1]))
            begin += size
        nearest, own = from_table(found.table())
    expected = brute_force(queries, rows, num, left_out)
    for query in range(7):
        mine = nearest.address[nearest.query == query]
        exact = (rows @ queries[query])[mine]
        # Equal scores may come in another order where products round otherwise.
        np.testing.assert_allclose(exact, (rows @ queries[query])[expected[query]], atol=1e-5)
        assert not {(query, row) for row in mine.tolist()} & left_out
    assert set(zip(own.query.tolist(), own.address.tolist(), strict=True)) == left_out


def test_a_floor_is_reached_by_as_many_rows_as_are_kept() -> None:
    rows, queries = clustered(5000, 8), clustered(20, 8, seed=1)
    bound = floors(queries, rows[:1500], np.full(20, 5))
    assert (bound > -1).all()
    assert ((queries @ rows.T >= bound[:, None]).sum(1) >= 400 + 5).all()
    assert (floors(queries, rows[:404], np.full(20, 5)) == -np.inf).all(), "too small a sample bounds nothing"


def test_where_all_rows_are_equal_what_is_held_stays_small() -> None:
    queries = clustered(10, 4)
    found = Nearest(queries, np.full(10, -np.inf, np.float32))
    same = np.repeat(queries[:1], 9000, 0)
    empty = np.zeros(0, np.int64)
    for begin in range(0, 9000, 3000):
        found.add(same[begin : begin + 3000], np.arange(begin, begin + 3000), (empty, empty))
        assert len(found._found.query) <= 10 * (2 * 400 + 4096)
    nearest, _ = from_table(found.table())
    assert nearest.address.tolist() == list(range(400)) * 10, "ties by address"
