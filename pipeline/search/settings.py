"""How an index is searched: from what was asked, and from the recall it was measured at."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import UsageError
from pipeline.index.description import IndexDescription, Recall
from pipeline.index.gate import cheapest
from pipeline.index.layout import ADDRESS_BYTES


@dataclass(frozen=True)
class Probing:
    """What a search does.

    Attributes:
        nprobe: lists read for each query; more only while fewer than k rows are found.
        rerank: how many of the best by code are compared by their vectors; 0: none.
        measured: the recall at this setting, or at the nearest cheaper one; None: cheaper than all measured.
        query_bytes: read for a query on average, of lists and for the rerank; ids and kept columns of what is found,
            and what lies between ranges that are read together, come on top.
    """

    nprobe: int
    rerank: int
    measured: Recall | None
    query_bytes: int


def choose_probing(description: IndexDescription, nprobe: int | None, recall: float | None) -> Probing:
    """The index's own settings; or the number of lists asked for; or the cheapest that reach a recall@10.

    Raises:
        UsageError: both are given, out of range, or more than was measured.
    """
    if nprobe is not None and recall is not None:
        raise UsageError("give nprobe or recall, not both")
    if nprobe is not None and not 1 <= nprobe <= description.nlist:
        raise UsageError(f"nprobe must be from 1 to the number of lists, {description.nlist}: {nprobe}")
    if recall is not None:
        if not 0 < recall <= 1:
            raise UsageError(f"recall must be above 0, and at most 1: {recall}")
        found = _cheapest(description, recall)
        return _probing(description, found.nprobe, found.rerank, found)
    rerank = description.search.rerank
    nprobe = nprobe or description.search.nprobe
    below = [row for row in description.measured.table if row.rerank == rerank and row.nprobe <= nprobe]
    return _probing(description, nprobe, rerank, max(below, key=lambda row: row.nprobe, default=None))


def _probing(description: IndexDescription, nprobe: int, rerank: int, measured: Recall | None) -> Probing:
    # Of so many probes that were not measured: as many times what was, or as if lists were equal.
    ratio = nprobe / description.nlist if measured is None else measured.read_ratio * nprobe / measured.nprobe
    num_rows = description.num_rows * min(ratio, description.lists_per_row)
    vector_bytes = description.dim * (2 if description.vector_dtype == "float16" else 4)
    num_bytes = num_rows * (description.num_code_bytes + ADDRESS_BYTES) + rerank * vector_bytes
    return Probing(nprobe, rerank, measured, round(num_bytes))


def _cheapest(description: IndexDescription, recall: float) -> Recall:
    table = description.measured.table
    num_bytes = description.num_rows * description.num_code_bytes
    found = cheapest(table, num_bytes, recall)
    if found is None:
        best = max(table, key=lambda row: min(row.recall_at_10, row.chosen_by))
        reached = min(best.recall_at_10, best.chosen_by)
        raise UsageError(
            f"recall {recall} is above what the index was measured to reach, {reached:.4f} (nprobe {best.nprobe}, "
            f"rerank {best.rerank}); ask for at most {int(reached * 1000) / 1000}, or search with --exact"
        )
    return found
