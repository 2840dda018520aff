"""The published measures, by the libraries that others score with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy.typing as npt

from jobs.evaluate.data import Qrels
from pipeline.errors import UsageError, VecmillError

NUM_NEIGHBOURS = 100  # recall@100 needs as many


def retrieval_scores(qrels: Qrels, found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """nDCG@10, recall@10 and recall@100, means over the judged queries."""
    try:
        import ir_measures
    except ModuleNotFoundError:
        raise _needs_dev("ir-measures") from None
    recall = ir_measures.R
    measures = {"ndcg@10": ir_measures.nDCG @ 10, "recall@10": recall @ 10, "recall@100": recall @ NUM_NEIGHBOURS}
    scores = ir_measures.calc_aggregate(list(measures.values()), qrels, found)
    return {name: float(scores[measure]) for name, measure in measures.items()}


def spearman(cosines: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Spearman's rank correlation, ties at their mean rank."""
    try:
        from scipy.stats import spearmanr
    except ModuleNotFoundError:
        raise _needs_dev("scipy") from None
    return float(spearmanr(cosines, scores).statistic)


def _needs_dev(package: str) -> VecmillError:
    return UsageError(f"evaluate scores with {package}, which is not installed: pip install 'vecmill[dev]'")
