"""Queries against the lists they probe, list by list: each list is read and scored once for all its queries."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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
        order = np.argsort(probes, axis=None, kind="stable")
        if wanted is not None:
            order = order[wanted.reshape(-1)[order]]
        which, rank = np.divmod(order, probes.shape[1])
        list_ids, starts = np.unique(probes.reshape(-1)[order], return_index=True)
        of_list = dict(zip(list_ids.tolist(), np.split(query[which], starts[1:]), strict=True))
        # The nearest first: what they hold leaves little of the others to be kept.
        nearest_first = np.argsort(np.minimum.reduceat(rank, starts), kind="stable")
        for window in self._windows(list_ids[nearest_first]):
            numbers = self._lists.directory.groups_of(window)
            groups, masks = self._read(numbers)
            for number in numbers:
                list_id = int(self._lists.directory.list_id[number])
                self._add(number, groups[number], list_id, of_list[list_id], masks.get(number), best)

    def _windows(self, list_ids: ListIds) -> Iterator[list[int]]:
        window: list[int] = []
        num_bytes = 0
        for list_id, own in zip(list_ids.tolist(), self._lists.directory.num_bytes_of(list_ids).tolist(), strict=True):
            if window and num_bytes + own > _WINDOW_BYTES:
                yield window
                window, num_bytes = [], 0
            window.append(list_id)
            num_bytes += own
        if window:
            yield window

    def _read(self, numbers: list[int]) -> tuple[dict[int, Group], dict[int, npt.NDArray[np.bool_]]]:
        """Row groups, and under a filter which of their rows pass it."""
        if self._filter is None or not numbers:
            return self._lists.groups(numbers), {}
        with ThreadPoolExecutor(1) as pool:  # both in one round trip
            reading = pool.submit(self._lists.answers, numbers)
            groups = self._lists.groups(numbers)
            answers = reading.result()
        found = self._filter.masks([answers[number] for number in numbers])
        return groups, {number: mask[groups[number].rows] for number, mask in zip(numbers, found, strict=True)}

    def _add(
        self,
        number: int,
        group: Group,
        list_id: int,
        query: npt.NDArray[np.int32],
        mask: npt.NDArray[np.bool_] | None,
        best: Best,
    ) -> None:
        codes, addresses, rows = group.codes, group.addresses, group.rows
        if mask is not None:
            codes, addresses, rows = codes[mask], addresses[mask], rows[mask]
        if not len(codes):
            return
        places = rows + (number << 32)
        step = max(1, _MAX_SCORES // len(codes))
        for begin in range(0, len(query), step):
            some = query[begin : begin + step]
            best.add(some, self._scores(some, codes, list_id), addresses, places)

    def _scores(self, query: npt.NDArray[np.int32], codes: npt.NDArray[np.uint8], list_id: int) -> Floats:
        scores = self._quantizer.codec.score(Prepared(self._weights[query].T, self._offset[query]), codes)
        if self._quantizer.codec.is_residual:
            scores = scores + (self._queries[query] @ self._quantizer.centroids[list_id])[:, None]
        return scores
