"""Search of an index by range reads.

A query probes the lists of its nearest centroids, found exactly: their codes and row addresses are read, checked
and scored. The best by code, if the index's settings say so, are compared by their vectors from the embedding
shards; what is left is answered with the columns that lie beside the codes. From object storage these are two
dependent requests: codes with addresses; then vectors with the other columns. While fewer than k rows are found
twice as many lists are probed.

Queries that come together share what they probe: a list is read and scored once for all of them. In memory
are centroids, directory, a bounded cache, and a window of lists.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.index.codecs import Floats
from pipeline.index.description import IndexDescription
from pipeline.index.quantizer import Lists as ListIds
from pipeline.index.quantizer import Quantizer
from pipeline.index.shards import Shard
from pipeline.search.best import Best
from pipeline.search.directory import Directory
from pipeline.search.filters import Filter
from pipeline.search.lists import Lists
from pipeline.search.neighbours import Chunk, Neighbours
from pipeline.search.queries import check_queries
from pipeline.search.ranges import RangeReader
from pipeline.search.rerank import exact_scores
from pipeline.search.scan import Scan
from pipeline.search.settings import Probing, choose_probing
from pipeline.uris import Storage

if TYPE_CHECKING:
    import faiss

# Candidates of all queries of a block: some 24 bytes each.
_MAX_CANDIDATES = 2**20

# Lists probed by all queries of a block: some 50 bytes each.
_MAX_PROBES = 4 * 2**20


class IndexReader:
    """An index that is open for search; `pipeline.search.open_index` makes one. Threads may share it.

    Attributes:
        description: index.json.
        quantizer: centroids and codec.
        directory: where lists lie.
    """

    def __init__(
        self,
        storage: Storage,
        description: IndexDescription,
        quantizer: Quantizer,
        directory: Directory,
        shards: dict[int, Shard],
        cache_bytes: int,
    ) -> None:
        self.description = description
        self.quantizer = quantizer
        self.directory = directory
        self._ranges = RangeReader(storage)
        self._shards = {ordinal: shard for ordinal, shard in shards.items() if shard.num_rows}
        kept = list(description.keep)
        chunked = [name for name in Chunk._fields[1:] if name in kept]
        self.filter_columns = ["doc_id", "chunk_index", *(name for name in kept if name not in chunked)]
        """What a filter may name."""
        self.lists = Lists(self._ranges, directory, [*self.filter_columns, *chunked], cache_bytes)

    def probing(self, nprobe: int | None = None, recall: float | None = None) -> Probing:
        """What a search with these arguments does, and what recall it was measured at.

        Raises:
            UsageError: both are given, out of range, or more than was measured.
        """
        return choose_probing(self.description, nprobe, recall)

    def search(
        self,
        queries: Floats,
        k: int,
        *,
        nprobe: int | None = None,
        recall: float | None = None,
        where: str | None = None,
    ) -> Neighbours:
        """The nearest rows, as the index finds them, for each of `queries` (Q, D), unit norm.

        Args:
            queries: as the snapshot's encoder makes them.
            k: neighbours of each.
            nprobe: lists to probe; None: as the index's settings say.
            recall: recall@10 to reach, as measured when the index was built.
            where: an expression of SQL over kept columns, doc_id and chunk_index, which all neighbours meet.

        Raises:
            UsageError: an argument that cannot be used.
            StoreError: a file is missing, or not what the index says.
            EnvironmentFault: storage failed.
        """
        queries = check_queries(queries, k, self.description.dim, "the index")
        k = min(k, self.description.num_rows)
        probing = self.probing(nprobe, recall)
        row_filter = None if where is None else Filter(where, self.filter_columns)
        step = max(1, _MAX_CANDIDATES // (self.description.lists_per_row * max(k, probing.rerank)))
        # Under a filter each query may come to probe every list.
        most = probing.nprobe if row_filter is None else self.quantizer.nlist
        step = max(1, min(step, _MAX_PROBES // most))
        blocks = [
            self._search_block(queries[begin : begin + step], k, probing, row_filter)
            for begin in range(0, max(1, len(queries)), step)
        ]
        scores, addresses, places = (np.concatenate(column) for column in zip(*blocks, strict=True))
        return Neighbours(np.clip(scores, -1, 1), addresses, self.lists.take(places.reshape(-1)))

    def _search_block(
        self, queries: Floats, k: int, probing: Probing, row_filter: Filter | None
    ) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Scores, addresses and places (Q, K) of some queries."""
        best = Best(len(queries), max(k, probing.rerank), self.description.lists_per_row)
        scan = Scan(self.lists, self.quantizer, queries, row_filter)
        active, nprobe, nlist = np.arange(len(queries), dtype=np.int32), probing.nprobe, self.quantizer.nlist
        probed = np.zeros((len(queries), 0), np.int32)
        while len(active):
            probes = self.quantizer.nearest_lists(queries[active], nprobe)
            # By what was probed, not by rank: another number of queries rounds otherwise, and lists may change places.
            scan.run(active, probes, best, ~_stand_in(probes, probed, nlist) if probed.size else None)
            best.cut()
            if nprobe == nlist:
                break
            few = np.diff(best.bounds())[active] < k
            active, probed = active[few], np.concatenate([probed[few], probes[few]], axis=1)
            nprobe = min(nlist, 2 * nprobe)
        if probing.rerank:
            self._rerank(queries, best)
        bounds = best.bounds()
        num = min(k, int(np.diff(bounds).min(initial=k)))  # the same for all queries, or at least k
        chosen = bounds[:-1, None] + np.arange(num)
        return best.score[chosen], best.address[chosen], best.place[chosen]

    def _rerank(self, queries: Floats, best: Best) -> None:
        with ExitStack() as stack:
            if not self._ranges.storage.is_local and len(queries) == 1:
                # The other columns of all that may win, while the vectors are under way: one round trip, not two.
                # What fails there is asked for again, and told, below.
                pool = stack.enter_context(ThreadPoolExecutor(1))
                pool.submit(self.lists.answers, np.unique(best.place >> 32).tolist())
            best.replace_scores(exact_scores(self._ranges, self._shards, queries, best.query, best.address))

    def to_faiss(self) -> faiss.Index:
        """The index as faiss' own, in memory: same centroids and codes, ids are row addresses.

        Inner products with unit vectors are the scores of `search` without rerank; of a row that stands in two lists
        it may answer with both. Of codec rabitq it is behind a rotation: a `faiss.SearchParametersPreTransform` sets
        nprobe.

        Raises:
            StoreError: a part is missing or damaged.
        """
        from pipeline.search.faiss_export import to_faiss

        return to_faiss(self.quantizer, self.lists)


def _stand_in(probes: ListIds, probed: ListIds, nlist: int) -> npt.NDArray[np.bool_]:
    """Which of the lists (Q, P) are among those (Q, P') of the same query."""
    first = np.arange(len(probes), dtype=np.int64)[:, None] * nlist
    return np.isin(first + probes, first + probed)
