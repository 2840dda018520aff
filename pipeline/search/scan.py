"""Queries against the lists they probe: each list is read and scored once for all its queries."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from pipeline.index.codecs import Floats, Prepared
from pipeline.index.quantizer import Lists as ListIds
from pipeline.index.quantizer import Quantizer
from pipeline.search.best import Best
from pipeline.search.filters import Filter
from pipeline.search.lists import Group, Lists

# Bytes of codes that are read in one round and at hand together.
_WINDOW_BYTES = 64 * 2**20

# Scores held at once, of one row group and its queries.
_MAX_SCORES = 4 * 2**20


class Scan:
    """Scores rows of one index for some queries.

    Args:
        lists: of the index.
        quantizer: of the index.
        queries: unit vectors (Q, D).
        row_filter: which rows count; None: all.
    """

    def __init__(self, lists: Lists, quantizer: Quantizer, queries: Floats, row_filter: Filter | None) -> None:
        self._lists, self._quantizer, self._queries, self._filter = lists, quantizer, queries, row_filter
        prepared = quantizer.codec.prepare(queries)
        # By rows, so that those of some queries are taken in one go.
        self._weights, self._offset = np.ascontiguousarray(prepared.weights.T), prepared.offset

    def run(
        self, query: npt.NDArray[np.int32], probes: ListIds, best: Best, wanted: npt.NDArray[np.bool_] | None = None
    ) -> None:
        """Add the rows of the lists (Q', P) that each of these queries (Q',) probes to the best.

        Args:
            query: numbers of queries.
            probes: their lists, nearest first.
            best: of all queries.
            wanted: (Q', P) which of the lists; None: all.

        Raises:
            StoreError: a part is missing or damaged.
        """
        if len(query) == 1:
            for window in self._windows(probes[0] if wanted is None else probes[0][wanted[0]]):
                # One product over the codes of all of them: one for each list takes 1.3 times as long.
                self._add(self._read(window), query, best)
            return
        order = np.argsort(probes, axis=None, kind="stable")
        if wanted is not None:
            order = order[wanted.reshape(-1)[order]]
        which, rank = np.divmod(order, probes.shape[1])
        list_ids, starts = np.unique(probes.reshape(-1)[order], return_index=True)
        of_list = dict(zip(list_ids.tolist(), np.split(query[which], starts[1:]), strict=True))
        # The nearest first: what they hold leaves little of the others to be kept.
        nearest_first = np.argsort(np.minimum.reduceat(rank, starts), kind="stable")
        for window in self._windows(list_ids[nearest_first]):
            for list_id, groups in groupby(self._read(window), itemgetter(0)):
                self._add(list(groups), of_list[list_id], best)

    def _windows(self, list_ids: ListIds) -> list[ListIds]:
        """Lists whose codes are read together, in their order."""
        ends: list[int] = []
        num_bytes = 0
        for place, own in enumerate(self._lists.directory.num_bytes_of(list_ids).tolist()):
            if num_bytes and num_bytes + own > _WINDOW_BYTES:
                ends.append(place)
                num_bytes = 0
            num_bytes += own
        return np.split(list_ids, ends)

    def _read(self, list_ids: ListIds) -> list[tuple[int, Group]]:
        """The row groups of lists, each with its list; under a filter, those of their rows that pass it."""
        numbers = self._lists.directory.groups_of(list_ids)
        if self._filter is None or not numbers:
            groups = self._lists.groups(numbers)
        else:
            with ThreadPoolExecutor(1) as pool:  # both in one round trip
                reading = pool.submit(self._lists.answers, numbers)
                groups = self._lists.groups(numbers)
                answers = reading.result()
            masks = self._filter.masks([answers[number] for number in numbers])
            groups = {number: groups[number].where(mask) for number, mask in zip(numbers, masks, strict=True)}
        of_group = self._lists.directory.list_id[numbers].tolist()
        return [(list_id, groups[number]) for list_id, number in zip(of_group, numbers, strict=True)]

    def _add(self, groups: list[tuple[int, Group]], query: npt.NDArray[np.int32], best: Best) -> None:
        """The rows of row groups, each with its list, that all of these queries (Q',) probe."""
        list_ids, counts = [list_id for list_id, _ in groups], [len(group.codes) for _, group in groups]
        if not sum(counts):
            return
        columns = zip(*(group for _, group in groups), strict=True)
        codes, (addresses, places) = next(columns), map(np.concatenate, columns)
        step = max(1, _MAX_SCORES // len(places))
        for begin in range(0, len(query), step):
            some = query[begin : begin + step]
            scores = self._quantizer.codec.score(Prepared(self._weights[some].T, self._offset[some]), codes)
            if self._quantizer.codec.is_residual:
                with_centroids = self._queries[some] @ self._quantizer.centroids[list_ids].T
                scores = scores + np.repeat(with_centroids, counts, axis=1)
            best.add(some, scores, addresses, places)
