"""Recall of the finished parts, by how many lists are probed and how many of the best are compared by vector.

Every part is read back from storage as a search would, and checked, so that what is measured is what lies
there. One pass gives all settings: a candidate is kept with the number of probes from which it is seen, and
only while it is among the best DEPTH seen with as many probes. Of interest is only what could stand before one of
the true nearest: whatever scores less than all of them, by code, changes the rank of none (`score_floors`).

No vector is read for a rerank: of any candidates that are compared by vector, those among the true nearest
come out on top, so that recall after a rerank of d is how many of the true ones are among the d best.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import StoreError
from pipeline.index.assign import Work
from pipeline.index.codecs import Codes, Floats
from pipeline.index.layout import REBUILD
from pipeline.index.merge import Merged
from pipeline.index.panel import Truth
from pipeline.index.parts import group_checksum
from pipeline.index.sample import read_rows
from pipeline.index.shards import Rows, Shard
from pipeline.uris import Storage

RERANK_DEPTHS = (0, 20, 40, 100, 200)
DEPTH = max(RERANK_DEPTHS)

# Measured so far, so that a search can be asked for 0.99: a third of all lists.
_MAX_PROBED_RATIO = 0.35

# Scores of equal vectors, in two products, differ by less.
TIE = np.float32(1e-6)

# Bytes of a part that are read at once.
_WINDOW_BYTES = 32 * 2**20

_MAX_PENDING = 2**20

# Scores held at once, of one row group and some of its queries.
_MAX_SCORES = 4 * 2**20

# Queries from whose products the codec's error is told: rabitq has that of a vector with itself exactly.
_MIN_ERRORS = 10

# Of the codec's error, in its root mean squares: a true neighbour whose code is worse than that is not found.
_ERROR_MARGIN = 8

CANDIDATES_SCHEMA = pa.schema(
    [("query_id", pa.int32()), ("level", pa.int32()), ("row_address", pa.int64()), ("score", pa.float32())]
)


def probe_levels(nlist: int, *, only_all: bool, up_to_all: bool) -> tuple[int, ...]:
    """The numbers of probes that are measured: 1 to 8, then four to each doubling: 10, 12, 14, 16, 20, ...

    Args:
        nlist: number of lists.
        only_all: every search reads every list.
        up_to_all: the corpus is small: up to all lists.
    """
    if only_all:
        return (nlist,)
    most = nlist if up_to_all else max(1, int(nlist * _MAX_PROBED_RATIO))
    steps = (quarters * 2**power for power in range(most.bit_length()) for quarters in (4, 5, 6, 7))
    return tuple(sorted({most, *(n for n in (1, 2, 3, *steps) if n < most)}))


class Candidates:
    """(query, level, address, score) by column: what some setting would answer with, or rerank.

    `level` is the first of the levels at which the row's list is probed.
    """

    def __init__(self, num_queries: int, num_levels: int, floors: Floats | None = None) -> None:
        self._shape = (num_queries, num_levels)
        self.floors = np.full(self._shape, -np.inf, np.float32)
        """(Q, levels): what a row has to beat."""
        if floors is not None:
            self.floors[:] = floors[:, None]
        self.query = np.zeros(0, np.int32)
        self.level = np.zeros(0, np.int32)
        self.address = np.zeros(0, np.int64)
        self.score = np.zeros(0, np.float32)
        self._pending: list[tuple[npt.NDArray[Any], ...]] = []
        self._num_pending = 0

    def add(self, query: npt.NDArray[np.int32], level: npt.NDArray[np.int32], address: Rows, score: Floats) -> None:
        """More of them."""
        self._pending.append((query, level, address, score))
        self._num_pending += len(query)
        if self._num_pending > _MAX_PENDING:
            self.cut()

    def cut(self) -> None:
        """Keep what is among the DEPTH best of those seen with as many probes; by query, best first."""
        kept_before = (self.query, self.level, self.address, self.score)
        self.query, self.level, self.address, self.score = map(
            np.concatenate, zip(kept_before, *self._pending, strict=True)
        )
        self._pending, self._num_pending = [], 0
        order = np.lexsort((self.address, -self.score, self.query))
        query, level, score = self.query[order], self.level[order], self.score[order]
        kept = np.zeros(len(order), bool)
        bounds = np.searchsorted(query, np.arange(self._shape[0] + 1))
        for one in range(self._shape[0]):
            mine = slice(bounds[one], bounds[one + 1])
            ranks = (level[mine, None] <= np.arange(self._shape[1])).cumsum(0, dtype=np.int32)  # (n, levels), from 1
            if len(ranks):
                kept[mine] = np.take_along_axis(ranks, level[mine, None], 1)[:, 0] <= DEPTH
                full = np.flatnonzero(ranks[-1] >= DEPTH)
                last = (ranks[:, full] < DEPTH).sum(0)
                self.floors[one, full] = np.maximum(self.floors[one, full], score[mine][last])
        order = order[kept]
        self.query, self.level, self.address, self.score = query[kept], level[kept], self.address[order], score[kept]

    def table(self) -> pa.Table:
        """As CANDIDATES_SCHEMA."""
        self.cut()
        return pa.table([self.query, self.level, self.address, self.score], schema=CANDIDATES_SCHEMA)


def score_floors(work: Work, truth: Truth) -> Floats:
    """Scores (Q,) by code that no row of interest falls short of.

    That of the 100th of the exact nearest, less what codes err by. How much they err is found on the panel's own
    vectors, as the codec has them: those are of the same encoder as the rows.
    """
    vectors, quantizer = work.panel.vectors, work.quantizer
    lists = quantizer.nearest_lists(vectors, 1)[:, 0]
    codes = quantizer.encode(vectors, lists)
    squares = np.zeros(len(vectors), np.float64)
    for list_id in np.unique(lists).tolist():
        mine = np.flatnonzero(lists == list_id)
        errors = quantizer.score(vectors, codes[mine], list_id) - vectors @ vectors[mine].T
        squares[mine] = np.square(errors).mean(0)
    if len(vectors) < _MIN_ERRORS:
        return np.full(len(vectors), -np.inf, np.float32)
    margin = np.float32(_ERROR_MARGIN * np.sqrt(squares.mean())) + TIE
    last = [scores[99] if len(scores) >= 100 else -np.inf for scores in truth.scores]
    return np.asarray(last, np.float32) - margin


def measure_part(
    storage: Storage,
    work: Work,
    levels: Sequence[int],
    left_out: tuple[Rows, Rows],
    floors: Floats | None,
    merged: Merged,
) -> pa.Table:
    """The candidates (CANDIDATES_SCHEMA) that the panel's queries find in one part.

    Args:
        storage: of the store.
        work: of the build.
        levels: numbers of probes, ascending.
        left_out: pairs (query, row address) that are no answers, sorted by address.
        floors: (Q,) scores below which rows are of no interest; None: all are.
        merged: the part.

    Raises:
        StoreError: the part is missing or damaged.
    """
    queries = work.panel.vectors
    probes = work.quantizer.nearest_lists(queries, levels[-1])
    level_of_rank = np.searchsorted(levels, np.arange(probes.shape[1]), side="right").astype(np.int32)
    by_list = np.argsort(probes, axis=None, kind="stable")
    bounds = np.searchsorted(probes.reshape(-1)[by_list], np.arange(work.quantizer.nlist + 1))
    found = Candidates(len(queries), len(levels), floors)
    for list_id, codes, addresses in read_groups(storage, merged, work.quantizer.codec.num_bytes):
        query, rank = np.divmod(by_list[bounds[list_id] : bounds[list_id + 1]], probes.shape[1])
        own = np.flatnonzero(np.isin(addresses, left_out[1]))
        of_own = [np.searchsorted(left_out[1], addresses[own], side).tolist() for side in ("left", "right")]
        step = max(1, _MAX_SCORES // len(codes))
        for begin in range(0, len(query), step):
            some, level = query[begin : begin + step], level_of_rank[rank[begin : begin + step]]
            scores = work.quantizer.score(queries[some], codes, list_id).T  # rows first, as they lie in memory
            for place, first, last in zip(own.tolist(), *of_own, strict=True):
                scores[place, np.isin(some, left_out[0][first:last])] = -np.inf
            row, which = np.nonzero(scores > found.floors[some, level])
            found.add(some[which].astype(np.int32), level[which], addresses[row], scores[row, which])
    return found.table()


def read_groups(storage: Storage, merged: Merged, num_bytes: int) -> Iterator[tuple[int, Codes, Rows]]:
    """(list_id, codes (N, B), row addresses (N,)) of each row group of a part, read in windows and checked.

    Raises:
        StoreError: the part is missing or damaged.
    """
    ref, rows = merged.ref, merged.directory.to_pylist()
    try:
        addresses = memoryview(storage.read(ref.addresses.file))
        window, begin = memoryview(b""), 0
        for number, row in enumerate(rows):
            if row["group_end"] > begin + len(window):
                begin = row["group_begin"]
                end = max(
                    one["group_end"]
                    for one in rows[number:]
                    if one["group_end"] <= begin + max(_WINDOW_BYTES, row["group_end"] - begin)
                )
                window = memoryview(storage.read_range(ref.codes.file, begin, end))
            at = row["code_begin"] - begin
            codes = window[at : at + row["num_rows"] * num_bytes]
            own = addresses[row["address_begin"] : row["address_begin"] + 8 * row["num_rows"]]
            if group_checksum(codes, own) != row["checksum"]:
                raise StoreError(
                    f"damaged: {ref.codes.file}, or {ref.addresses.file} beside it, is not "
                    f"what the directory says (list {row['list_id']}); {REBUILD}"
                )
            yield (
                row["list_id"],
                np.frombuffer(codes, np.uint8).reshape(-1, num_bytes),
                np.frombuffer(own, "<i8").astype(np.int64, copy=False),
            )
    except FileNotFoundError as error:
        raise StoreError(f"missing from the store: {error}; run the same command again") from None


@dataclass(frozen=True, eq=False)
class Hits:
    """Recall of each query, (Q, levels, depths) for k = 10 and 100."""

    at_10: Floats
    at_100: Floats
    is_answered: npt.NDArray[np.bool_]
    """(Q,) whether there is any row to be found: not where all rows are of the query's own document."""


def count_hits(
    candidates: Candidates, levels: Sequence[int], depths: Sequence[int], truth: Truth, extra: Truth | None = None
) -> Hits:
    """Recall of each query at each setting. A row whose exact score ties with the k-th counts as found.

    Args:
        candidates: of all parts, cut.
        levels: numbers of probes.
        depths: of the rerank; 0: the answer is by code.
        truth: the exact nearest.
        extra: further rows with exact scores, for queries whose ties end outside the truth (`tied_rows`).
    """
    num = len(truth.addresses)
    bounds = np.searchsorted(candidates.query, np.arange(num + 1))
    hits = {k: np.ones((num, len(levels), len(depths)), np.float32) for k in (10, 100)}
    for query in range(num):
        mine = slice(bounds[query], bounds[query + 1])
        address = candidates.address[mine]
        seen = candidates.level[mine, None] <= np.arange(len(levels))  # (n, levels), best first
        # A row that stands in two lists is one answer: at levels that see both, the better of them.
        by_address = np.argsort(address, kind="stable")
        again = np.flatnonzero(np.diff(address[by_address]) == 0)
        seen[by_address[again + 1]] &= ~seen[by_address[again]]
        ranks = seen.cumsum(0, dtype=np.int32)
        known, scores = truth.addresses[query], truth.scores[query]
        if extra is not None:
            known = np.concatenate([known, extra.addresses[query]])
            scores = np.concatenate([scores, extra.scores[query]])
        for k, found in hits.items():
            count = min(k, len(truth.scores[query]))
            if count:
                right = np.isin(address, known[scores >= truth.scores[query][count - 1] - TIE])
                for place, depth in enumerate(depths):
                    among = (ranks[right] <= max(depth, k)) & seen[right]
                    found[query, :, place] = np.minimum(count, among.sum(0)) / count
    return Hits(hits[10], hits[100], np.array([len(scores) > 0 for scores in truth.scores], bool))


def gather(tables: Iterable[pa.Table], num_queries: int, num_levels: int) -> Candidates:
    """The candidates of all parts as one, cut."""
    found = Candidates(num_queries, num_levels)
    for table in tables:
        query, level, address, score = (table[name].to_numpy() for name in CANDIDATES_SCHEMA.names)
        found.add(query, level, address, score)
    found.cut()
    return found


def tied_rows(
    storage: Storage, shards: Sequence[Shard], queries: Floats, truth: Truth, found: Candidates
) -> Truth | None:
    """Exact scores of candidates that the truth does not hold, of queries where more rows tie than it has room for.

    None where there is no such query: nearly always.
    """
    num = len(queries)
    extra: dict[int, tuple[Rows, Floats]] = {}
    bounds = np.searchsorted(found.query, np.arange(num + 1))
    for query in range(num):
        scores = truth.scores[query]
        for k in (10, 100):
            if len(scores) > k and scores[-1] >= scores[k - 1] - TIE:
                mine = np.unique(found.address[bounds[query] : bounds[query + 1]])
                extra[query] = (np.setdiff1d(mine, truth.addresses[query]), np.zeros(0, np.float32))
    if not extra:
        return None
    wanted = np.unique(np.concatenate([addresses for addresses, _ in extra.values()]))
    vectors = read_rows(storage, shards, wanted)
    empty = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for query, (addresses, _) in extra.items():
        extra[query] = addresses, vectors[np.searchsorted(wanted, addresses)] @ queries[query]
    both = [extra.get(query, empty) for query in range(num)]
    return Truth([addresses for addresses, _ in both], [scores for _, scores in both], truth.left_out)
