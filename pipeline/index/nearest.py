"""The panel's exact nearest rows, found while the shards stream past.

The scores that count are few: a row is of interest to a query only if it beats the query's floor, the score of
its 400th nearest in the sample, which is also of the corpus and so a bound on what the 400th nearest of the
corpus scores. What passes is kept by columns and cut to the best 400 a query whenever it grows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.index.codecs import Floats
from pipeline.index.shards import Rows

NUM_KEPT = 400
"""Exact neighbours kept of each query: deletions leave 100 of them for a long time."""

# Scores of a row in two products differ by so little; a floor gives way by it.
_ROUNDING = np.float32(1e-5)

_BLOCK_ROWS = 4096

NEAR_SCHEMA = pa.schema(
    [
        pa.field("query_id", pa.int32(), nullable=False),
        pa.field("row_address", pa.int64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("is_left_out", pa.bool_(), nullable=False),  # of the query's own document
    ]
)


def floors(queries: Floats, sample: Floats, num_left_out: npt.NDArray[np.int64]) -> Floats:
    """A score (Q,) that the NUM_KEPT nearest rows of each query (Q, D) reach; -inf where the sample is too small.

    Args:
        queries: unit vectors.
        sample: rows (N, D) of the corpus, each at most once.
        num_left_out: (Q,) how many rows of the corpus are left out of the query's answer at most.
    """
    found = np.full(len(queries), -np.inf, np.float32)
    step = max(1, 16 * 2**20 // max(1, len(sample)))
    for begin in range(0, len(queries), step):
        scores = queries[begin : begin + step] @ sample.T
        ranks = NUM_KEPT + num_left_out[begin : begin + step]
        for row, rank in enumerate(ranks.tolist()):
            if rank <= len(sample):
                found[begin + row] = np.partition(scores[row], -rank)[-rank]
    return found - _ROUNDING


class Nearest:
    """Collects the NUM_KEPT nearest rows of each query over any number of blocks of rows.

    Args:
        queries: unit vectors (Q, D).
        floors: (Q,), see `floors`.
    """

    def __init__(self, queries: Floats, floors: Floats) -> None:
        self._queries = queries
        # The least number stands for none: rows that are left out score -inf, and never pass.
        self._floors = np.maximum(floors, np.finfo(np.float32).min)
        self._found = Pairs.empty()
        self._left_out: list[Pairs] = []

    def add(self, vectors: Floats, addresses: Rows, left_out: tuple[Rows, Rows]) -> None:
        """Unit vectors (N, D) of rows with these addresses; `left_out`: pairs (query, row of these) of one document."""
        queries, rows = left_out
        if len(rows):
            self._left_out.append(Pairs(queries, addresses[rows], np.zeros(len(rows), np.float32)))
        for begin in range(0, len(vectors), _BLOCK_ROWS):
            end = min(begin + _BLOCK_ROWS, len(vectors))
            scores = self._queries @ vectors[begin:end].T
            mine = (rows >= begin) & (rows < end)
            scores[queries[mine], rows[mine] - begin] = -np.inf
            self._collect(scores, addresses[begin:end])

    def _collect(self, scores: Floats, addresses: Rows) -> None:
        query, row = np.nonzero(scores >= self._floors[:, None])
        self._found = self._found.joined(Pairs(query, addresses[row], scores[query, row]))
        if len(self._found.query) > 2 * NUM_KEPT * len(self._queries):
            self._found = self._found.best(NUM_KEPT)
            # With so many at hand their least is a better floor.
            full = np.bincount(self._found.query, minlength=len(self._queries)) == NUM_KEPT
            least = np.full(len(self._queries), np.inf, np.float32)
            np.minimum.at(least, self._found.query, self._found.score)
            self._floors[full] = np.maximum(self._floors[full], least[full])

    def table(self) -> pa.Table:
        """What was found (NEAR_SCHEMA)."""
        return to_table(self._found.best(NUM_KEPT), joined(self._left_out))


class Pairs:
    """(query, row address, score) by column."""

    def __init__(self, query: npt.NDArray[np.integer], address: Rows, score: Floats) -> None:
        self.query = query.astype(np.int64, copy=False)
        self.address = address
        self.score = score

    @classmethod
    def empty(cls) -> Pairs:
        """None."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))

    def joined(self, other: Pairs) -> Pairs:
        """Both."""
        return joined([self, other])

    def best(self, num: int) -> Pairs:
        """The `num` best of each query, best first, by query; ties by address, so that a search repeats itself."""
        order = np.lexsort((self.address, -self.score, self.query))
        query = self.query[order]
        first = np.searchsorted(query, query, side="left")
        order = order[np.arange(len(order)) - first < num]
        return Pairs(self.query[order], self.address[order], self.score[order])


def joined(pairs: Sequence[Pairs]) -> Pairs:
    """All of them."""
    if not pairs:
        return Pairs.empty()
    return Pairs(*(np.concatenate([getattr(one, name) for one in pairs]) for name in ("query", "address", "score")))


def to_table(nearest: Pairs, left_out: Pairs) -> pa.Table:
    """As NEAR_SCHEMA."""
    both = nearest.joined(left_out)
    is_left_out = np.arange(len(both.query)) >= len(nearest.query)
    columns = [both.query.astype(np.int32), both.address, both.score, is_left_out]
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=NEAR_SCHEMA)


def from_table(table: pa.Table) -> tuple[Pairs, Pairs]:
    """The nearest and the left out of NEAR_SCHEMA."""
    names = ("query_id", "row_address", "score", "is_left_out")
    query, address, score, is_left_out = (table[name].to_numpy() for name in names)
    split = [Pairs(query[some], address[some], score[some]) for some in (~is_left_out, is_left_out)]
    return split[0], split[1]
