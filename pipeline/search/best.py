"""The best rows of each query while lists are scored, whatever their order.

What may still be among the best is kept by columns and cut when it grows; a row that scores less than a
query's floor, of which enough rows are known that score as much, is not kept at all.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.index.codecs import Floats
from pipeline.search.directory import Ints

_MAX_PENDING = 2**20


class Best:
    """The `num` best rows of each of Q queries; ties by address, so that a search repeats itself.

    Args:
        num_queries: Q.
        num: of each.
        lists_per_row: in how many lists a row may stand; it is kept once.

    Attributes:
        query, score, address, place: columns, after `cut` by query and best first. A place is
            row group << 32 | row of it.
    """

    def __init__(self, num_queries: int, num: int, lists_per_row: int = 1) -> None:
        self.num = num
        self.num_queries = num_queries
        self.query = np.zeros(0, np.int32)
        self.score = np.zeros(0, np.float32)
        self.address = np.zeros(0, np.int64)
        self.place = np.zeros(0, np.int64)
        self._lists_per_row = lists_per_row
        self._floors = np.full(num_queries, -np.inf, np.float32)
        self._pending: list[tuple[npt.NDArray[np.int32], Floats, Ints, Ints]] = []
        self._num_pending = 0

    def add(self, query: npt.NDArray[np.int32], scores: Floats, addresses: Ints, places: Ints) -> None:
        """Rows of some row groups: their scores (Q', N) with some queries (Q',), addresses and places (N,)."""
        floors = self._floors[query]
        passed = scores >= floors[:, None]
        if not passed.any():  # nearly always, once the nearest lists were seen
            return
        num_passed = np.count_nonzero(passed, axis=1)
        enough = self.num * self._lists_per_row  # among so many are `num` different rows
        crowded = np.flatnonzero(num_passed > enough)
        if len(crowded):
            some = scores[crowded]
            floors = np.partition(some, some.shape[1] - enough, axis=1)[:, some.shape[1] - enough]
            passed[crowded] = some >= floors[:, None]
            self._floors[query[crowded]] = floors
        which, row = np.nonzero(passed)
        self._pending.append((query[which], scores[which, row], addresses[row], places[row]))
        self._num_pending += len(row)
        if self._num_pending > _MAX_PENDING:
            self.cut()

    def cut(self) -> None:
        """Keep the best alone."""
        if not self._pending:
            return
        columns = zip((self.query, self.score, self.address, self.place), *self._pending, strict=True)
        query, score, address, place = (np.concatenate(column) for column in columns)
        order = np.lexsort((address, -score, query))
        if self._lists_per_row > 1:
            order = order[_firsts(query[order], address[order])]
        sorted_query = query[order]
        rank = np.arange(len(order)) - np.searchsorted(sorted_query, sorted_query, side="left")
        order = order[rank < self.num]
        self.query, self.score, self.address, self.place = query[order], score[order], address[order], place[order]
        bounds = self.bounds()
        full = np.flatnonzero(np.diff(bounds) == self.num)
        self._floors[full] = np.maximum(self._floors[full], self.score[bounds[full + 1] - 1])
        self._pending, self._num_pending = [], 0

    def bounds(self) -> Ints:
        """Rows [bounds[q], bounds[q + 1]) are of query q, after `cut`."""
        return np.searchsorted(self.query, np.arange(self.num_queries + 1)).astype(np.int64)

    def replace_scores(self, scores: Floats) -> None:
        """Other scores (M,) for the rows kept, and their order by these."""
        order = np.lexsort((self.address, -scores, self.query))
        self.query, self.score = self.query[order], scores[order]
        self.address, self.place = self.address[order], self.place[order]


def _firsts(query: npt.NDArray[np.int32], address: Ints) -> Ints:
    """Where each (query, address) stands first, ascending."""
    order = np.lexsort((address, query))  # stable
    is_first = np.ones(len(order), bool)
    is_first[1:] = (np.diff(query[order]) != 0) | (np.diff(address[order]) != 0)
    return np.sort(order[is_first])
