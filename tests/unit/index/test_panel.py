from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.index.prepare
from pipeline.errors import UsageError
from pipeline.index.nearest import Pairs, to_table
from pipeline.index.panel import draw_texts, merge_nearest, panel_of_texts, panel_table, parse_panel, words_of
from pipeline.index.prepare import Aim, Queries, prepare
from pipeline.uris import Storage
from tests.snapshots import index_settings, make_snapshot
from tests.vectors import clustered


def encode(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    return clustered(len(texts), 8, seed=len(texts[0])) * 3  # not of unit norm: callers may be careless


def test_given_queries_come_before_words_and_words_before_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.index.prepare, "NUM_QUERIES", 50)
    vectors = [clustered(300, 8)]
    told = Queries(("what is it", "who is it", "what is it", " "), encode)
    for number, (texts, queries, source, num) in enumerate(
        [
            (True, told, "queries", 2),
            (True, Queries(None, encode), "words", 50),
            (False, Queries(None, encode), "documents", 50),
            (True, Queries(), "documents", 50),
        ]
    ):
        snapshot = make_snapshot(Storage(str(tmp_path / str(number))), vectors, texts=texts)
        panel = prepare(Aim.of(snapshot, index_settings(), queries)).work.panel
        assert (panel.source, len(panel)) == (source, num)
        np.testing.assert_allclose(np.linalg.norm(panel.vectors, axis=1), 1, atol=1e-6)
        assert panel.is_published.sum() == num // 2, "the other half chooses"
        assert bool(panel.doc_ids) == (source == "documents")


def test_a_handful_of_texts_with_words_is_no_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = make_snapshot(Storage(str(tmp_path)), [clustered(300, 8)], texts=True)
    for num, source in ((20, "documents"), (150, "words")):
        monkeypatch.setattr(
            pipeline.index.prepare, "words_of", lambda texts, *_, num=num: [f"w{n}" for n in range(num)]
        )
        aim = Aim.of(snapshot, index_settings(nlist=num), Queries(None, encode))
        assert prepare(aim).work.panel.source == source


def test_no_document_is_many_queries(tmp_path: Path) -> None:
    """Pairs of a query and a row that is left out of it are held: as many as queries of a document times its rows."""
    snapshot = make_snapshot(Storage(str(tmp_path)), [clustered(600, 8)], num_chunks=200)
    panel = prepare(Aim.of(snapshot, index_settings())).work.panel
    assert {doc_id: panel.doc_ids.count(doc_id) for doc_id in panel.doc_ids} == dict.fromkeys(("d0", "d1", "d2"), 32)
    alone = prepare(Aim.of(make_snapshot(Storage(str(tmp_path / "alone")), [clustered(600, 8)]), index_settings()))
    assert len(alone.work.panel) == 600


def test_words_are_six_of_a_text_in_their_order() -> None:
    texts = ["a b c", "one two three four five six seven eight", "x " * 20]
    (words, _) = words_of(texts, 5, seed=0)
    assert len(words.split()) == 6
    places = [texts[1].split().index(word) for word in words.split()]
    assert places == sorted(places)
    assert len(words_of(texts * 9, 4, seed=0)) == 4


def test_no_query_and_queries_of_another_dim_are_refused_with_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"index\.queries: there is no query in it"):
        panel_of_texts("queries", draw_texts(["", "  "], 5, seed=0), encode, 8)
    with pytest.raises(UsageError, match=r"queries have shape \(1, 8\), the snapshot holds vectors of dim 9"):
        panel_of_texts("queries", ["a"], encode, 9)


def test_of_many_given_queries_some_are_drawn_each_once() -> None:
    texts = [f"q{number}" for number in range(500)]
    some = draw_texts([*texts, *texts, " "], 100, seed=1)
    assert len(set(some)) == 100
    assert some == sorted(some, key=texts.index)
    assert max(map(texts.index, some)) > 400, "not the first ones"
    assert draw_texts(texts[:5], 100, seed=1) == texts[:5]


def test_what_shards_found_is_merged_by_query() -> None:
    panel = panel_of_texts("queries", ["a", "b", "c"], encode, 8)

    def found(*pairs: tuple[int, int, float], left_out: Sequence[tuple[int, int]] = ()) -> pa.Table:
        query, address, score = (np.array(column) for column in zip(*pairs, strict=True))
        own = np.array(left_out, np.int64).reshape(-1, 2)
        pairs_left_out = Pairs(own[:, 0], own[:, 1], np.zeros(len(own), np.float32))
        return to_table(Pairs(query, address, score.astype(np.float32)), pairs_left_out)

    truth = merge_nearest(
        panel,
        [
            found((0, 7, 0.5), (2, 9, 0.25), left_out=[(2, 30), (0, 31)]),
            found((0, 8, 1.0000001), (2, 4, 0.5), (0, 5, 0.5), left_out=[(2, 3)]),
        ],
    )
    assert [some.tolist() for some in truth.addresses] == [[8, 5, 7], [], [4, 9]]
    assert [some.tolist() for some in truth.scores] == [[1, 0.5, 0.5], [], [0.5, 0.25]]
    assert [some.tolist() for some in truth.left_out] == [[31], [], [3, 30]]


def test_panel_parquet_comes_back_and_is_a_table_to_others(tmp_path: Path) -> None:
    panel = panel_of_texts("words", ["a b", "c d"], encode, 8)
    table = to_table(Pairs(np.array([0, 1]), np.array([5, 6]), np.array([0.5, 0.75], np.float32)), Pairs.empty())
    truth = merge_nearest(panel, [table])
    pq.write_table(panel_table(panel, truth), tmp_path / "panel.parquet")
    again, found = parse_panel(pq.read_table(tmp_path / "panel.parquet"))
    assert (again.source, again.texts, again.fingerprint) == ("words", ("a b", "c d"), panel.fingerprint)
    assert (again.is_published == panel.is_published).all()
    assert [some.tolist() for some in found.addresses] == [[5], [6]]
    assert [some.tolist() for some in found.scores] == [[0.5], [0.75]]
    row = (
        duckdb.connect()
        .execute(f"SELECT text, neighbours[1], scores[1] FROM '{tmp_path}/panel.parquet' LIMIT 1")
        .fetchone()
    )
    assert row == ("a b", 5, 0.5)


def test_a_panel_is_kept_for_a_run_that_goes_on(tmp_path: Path) -> None:
    """An encoder may give other last bits; what was assigned with the first panel is still of use."""
    snapshot = make_snapshot(Storage(str(tmp_path)), [clustered(300, 8)])
    calls: list[int] = []

    def shaky(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        calls.append(len(texts))
        return clustered(len(texts), 8, seed=len(calls))

    first, second = (prepare(Aim.of(snapshot, index_settings(), Queries(("a", "b"), shaky))) for _ in range(2))
    assert first.work.panel.fingerprint == second.work.panel.fingerprint
    assert (first.work.panel.floors == second.work.panel.floors).all()
    assert first.work.quantizer.fingerprint == second.work.quantizer.fingerprint
    assert calls == [2]
    other = prepare(Aim.of(snapshot, index_settings(), Queries(("a", "c"), shaky)))
    assert other.work.index_id != first.work.index_id, "other queries, another index"
