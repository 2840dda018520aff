from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import LimitError
from pipeline.index.choose import choose
from pipeline.index.description import Measured, Recall, Settings
from pipeline.index.gate import choose_settings, tabulate
from pipeline.index.panel import panel_of_texts
from pipeline.index.recall import Hits
from tests.vectors import clustered

CHOICE = choose(10**6, 384)


def row(
    nprobe: int, rerank: int, read_ratio: float, recall: float, chosen_by: float | None = None, low: float = 0
) -> Recall:
    return Recall(
        nprobe=nprobe,
        rerank=rerank,
        read_ratio=read_ratio,
        recall_at_10=recall,
        recall_at_100=recall,
        interval_at_10=(recall - 0.01, recall + 0.01),
        chosen_by=recall if chosen_by is None else chosen_by,
        chosen_by_low=low or recall - 0.01,
    )


def chosen(*rows: Recall, target: float = 0.95) -> Settings:
    measured = Measured(source="words", num_queries=500, num_choosing=500, table=rows)
    return choose_settings(measured, CHOICE, 10**6, 384, target)


def test_the_cheapest_setting_that_meets_the_target_is_chosen() -> None:
    rows = [row(16, 0, 0.01, 0.9), row(32, 40, 0.02, 0.97), row(32, 0, 0.02, 0.96), row(64, 0, 0.05, 0.98)]
    assert chosen(*rows) == Settings(nprobe=32, rerank=0)
    assert chosen(*rows, target=0.965) == Settings(nprobe=64, rerank=0), "0.97 is not at it with 95 % confidence"
    assert chosen(*rows[:3], target=0.965) == Settings(nprobe=32, rerank=40), "failing that, on average"


def test_the_half_that_chose_and_the_one_that_is_published_have_to_agree() -> None:
    assert chosen(row(16, 0, 0.01, 0.949, 0.99, 0.98), row(32, 0, 0.02, 0.97)) == Settings(nprobe=32, rerank=0)
    assert chosen(row(16, 0, 0.01, 0.99, 0.949, 0.94), row(32, 0, 0.02, 0.97)) == Settings(nprobe=32, rerank=0)


def test_below_the_target_it_ends_with_3_and_says_what_to_change() -> None:
    with pytest.raises(LimitError, match=r"0\.930 is the best of what reads at most 10% of the codes") as refused:
        chosen(row(100, 0, 0.099, 0.93), row(200, 0, 0.101, 0.99))
    assert refused.value.exit_code == 3
    message = str(refused.value)
    assert "index.recall_target 0.95" in message
    assert "queries: words" in message
    assert f"set index.nlist={2 * CHOICE.nlist} (smaller lists), or index.recall_target=0.93" in message
    with pytest.raises(
        LimitError, match=r"probing one of 2048 lists reads 20% of the codes.* raise index\.nlist, to 8192"
    ):
        chosen(row(1, 0, 0.2, 0.99))


def test_a_small_corpus_may_be_read_whole() -> None:
    measured = Measured(source="words", num_queries=5, num_choosing=5, table=(row(3, 0, 1.0, 1.0),))
    assert choose_settings(measured, choose(1000, 384), 1000, 768, 0.95) == Settings(nprobe=3, rerank=0)
    with pytest.raises(LimitError):
        choose_settings(measured, replace(CHOICE, is_small=False), 1000, 768, 0.95)


def test_figures_come_from_one_half_and_the_choice_from_the_other() -> None:
    panel = panel_of_texts(
        "queries", [f"q{number}" for number in range(200)], lambda texts: clustered(len(texts), 4), 4
    )
    at_10 = np.where(panel.is_published, 0.8, 1.0).astype(np.float32)
    at_10[np.flatnonzero(panel.is_published)[:50]] = 0.9
    hits = Hits(at_10[:, None, None], (at_10[:, None, None] / 2).astype(np.float32), np.ones(200, bool))
    (one,) = tabulate(panel, hits, ([4], [0]), [0.25]).table
    assert (one.recall_at_10, one.recall_at_100, one.chosen_by, one.chosen_by_low) == (0.85, 0.425, 1.0, 1.0)
    # Of 100 figures with a deviation of 0.05: 0.85 +- 1.96 * 0.005.
    assert one.interval_at_10 == pytest.approx((0.8402, 0.8598), abs=0.001)
    assert tabulate(panel, hits, ([4], [0]), [0.25]).table == (one,), "the same twice"


def test_queries_to_which_nothing_is_an_answer_say_nothing() -> None:
    panel = panel_of_texts("queries", [f"q{number}" for number in range(8)], lambda texts: clustered(len(texts), 4), 4)
    recall = np.full((8, 2, 1), 0.5, np.float32)
    is_answered = np.ones(8, bool)
    for half in (panel.is_published, ~panel.is_published):
        is_answered[np.flatnonzero(half)[0]] = False
    recall[~is_answered] = 1
    measured = tabulate(panel, Hits(recall, recall, is_answered), ([1, 9], [0]), [0.1, 1.0])
    assert (measured.num_queries, measured.num_choosing) == (3, 3)
    assert [(row.recall_at_10, row.recall_at_100, row.chosen_by) for row in measured.table] == [(0.5, 0.5, 0.5)] * 2
    none = tabulate(
        panel, Hits(np.ones_like(recall), np.ones_like(recall), np.zeros(8, bool)), ([1, 9], [0]), [0.1, 1.0]
    )
    assert [row.recall_at_10 for row in none.table] == [0, 1], "what reads all of it finds what there is"
