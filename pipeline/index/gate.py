"""From the recall of queries to what is published: a table with intervals, the settings of a search, the gate.

Settings are chosen by one half of the panel, the figures come from the other. Chosen is the cheapest
setting that the choosing half puts at the target with 95 % confidence, or failing that on average,
and that the published half confirms. What reads more than a tenth of the codes does not count, unless the
corpus is so small that all of it is read in a moment.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.errors import LimitError
from pipeline.index.choose import Choice
from pipeline.index.description import Measured, Recall, Settings
from pipeline.index.panel import Panel
from pipeline.index.recall import Hits

MAX_READ_RATIO = 0.1

# Bytes of codes that take as long as fetching one vector for the rerank.
_RERANK_ROW_BYTES = 32 * 2**10

_NUM_RESAMPLES = 2000


def tabulate(panel: Panel, hits: Hits, settings: Sequence[Sequence[int]], read_ratios: Sequence[float]) -> Measured:
    """The recall table.

    Args:
        panel: the queries.
        hits: recall of each query at each setting.
        settings: numbers of probes, and depths of the rerank.
        read_ratios: codes read per row of the snapshot, for each number of probes.
    """
    levels, depths = settings
    answered, recalls = hits.is_answered, (hits.at_10, hits.at_100)
    if not answered.any():
        # All rows are of the queries' own documents: only what reads everything is known to find what there is.
        answered = np.ones(len(panel), bool)
        whole = np.asarray(read_ratios)[None, :, None] >= 1
        recalls = (np.where(whole, recalls[0], 0), np.where(whole, recalls[1], 0))
    published, choosing = panel.is_published & answered, ~panel.is_published & answered
    if not published.any() or not choosing.any():
        published = choosing = answered
    random = np.random.default_rng(0)
    num = int(published.sum())
    weights = random.multinomial(num, np.full(num, 1 / num), _NUM_RESAMPLES) / num  # bootstrap over queries
    rows = []
    for one, nprobe in enumerate(levels):
        for place, depth in enumerate(depths):
            at_10, at_100 = (recall[:, one, place].astype(np.float64) for recall in recalls)
            low, high = np.quantile(weights @ at_10[published], [0.025, 0.975])
            rows.append(
                Recall(
                    nprobe=nprobe,
                    rerank=depth,
                    read_ratio=round(read_ratios[one], 6),
                    recall_at_10=round(float(at_10[published].mean()), 5),
                    recall_at_100=round(float(at_100[published].mean()), 5),
                    interval_at_10=(round(float(low), 5), round(float(high), 5)),
                    chosen_by=round(float(at_10[choosing].mean()), 5),
                    chosen_by_low=round(float(_low(at_10[choosing])), 5),
                )
            )
    return Measured(source=panel.source, num_queries=num, num_choosing=int(choosing.sum()), table=tuple(rows))


def _low(recalls: npt.NDArray[np.float64]) -> float:
    """What the mean is above with 95 % confidence."""
    deviation = float(recalls.std(ddof=1)) if len(recalls) > 1 else 0.0
    return float(recalls.mean() - 1.645 * deviation / np.sqrt(len(recalls)))


def choose_settings(measured: Measured, choice: Choice, num_rows: int, code_bytes: int, target: float) -> Settings:
    """The cheapest setting that meets the target.

    Args:
        measured: the table.
        choice: what the index was built with.
        num_rows: of the snapshot.
        code_bytes: of one code.
        target: `index.recall_target`.

    Raises:
        LimitError: none meets it.
    """
    counted = [row for row in measured.table if row.read_ratio <= MAX_READ_RATIO or choice.is_small]
    found = cheapest(counted, num_rows * code_bytes, target)
    if found is not None:
        return Settings(nprobe=found.nprobe, rerank=found.rerank)
    raise LimitError(_refusal(measured, counted, choice, target))


def cheapest(rows: Sequence[Recall], num_bytes: int, target: float) -> Recall | None:
    """The cheapest of these settings that meets the target, of an index with `num_bytes` of codes; None if none."""

    def cost(row: Recall) -> float:
        return row.read_ratio * num_bytes + row.rerank * _RERANK_ROW_BYTES

    confirmed = sorted((row for row in rows if row.recall_at_10 >= target), key=cost)
    for figure in ("chosen_by_low", "chosen_by"):
        for row in confirmed:
            if getattr(row, figure) >= target:
                return row
    return None


def _refusal(measured: Measured, counted: Sequence[Recall], choice: Choice, target: float) -> str:
    start = f"recall@10 of the index does not reach index.recall_target {target}, so it is not published: "
    if not counted:
        ratio = min(row.read_ratio for row in measured.table)
        return (
            f"{start}probing one of {choice.nlist} lists reads {ratio:.0%} of the codes, more than "
            f"{MAX_READ_RATIO:.0%}; raise index.nlist, to {4 * choice.nlist} say"
        )
    best = max(counted, key=lambda row: min(row.recall_at_10, row.chosen_by))
    found = min(best.recall_at_10, best.chosen_by)
    lower = int(found * 100) / 100
    way = (
        f"leave index.codec at auto, which searches so few rows exactly, or set index.recall_target={lower}"
        if choice.is_small
        else f"set index.nlist={2 * choice.nlist} (smaller lists), or index.recall_target={lower}"
    )
    return (
        f"{start}{found:.3f} is the best of what reads at most {MAX_READ_RATIO:.0%} of the codes (nprobe "
        f"{best.nprobe} of {choice.nlist}, rerank {best.rerank}; queries: {measured.source}); {way}"
    )
