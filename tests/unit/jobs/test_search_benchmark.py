"""`vecmill benchmark search`: what is right, the cheapest setting that reaches a recall, what a query reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from jobs import benchmark
from jobs.index_benchmark.ours import Ours, OurSearcher
from jobs.index_benchmark.task import Setting, Task, padded
from jobs.index_benchmark.vectors import blocks
from jobs.search_benchmark import make_questions, make_task
from jobs.search_benchmark.contest import Chosen, Failed, Host, Result, choose_all, least, run_rounds, skip
from jobs.search_benchmark.figures import figures_of, table_of
from jobs.search_benchmark.queries import K, Questions, documents
from jobs.search_benchmark.reads import codes_read_ratio, costs_of
from pipeline.config import load_config
from pipeline.errors import StoreError, VecmillError
from pipeline.search import SearchableSnapshot
from tests.indexed import NLIST, NUM, VECTORS, make_indexed, stored


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> SearchableSnapshot:
    """1,500 rows, 20 lists; rows 0 and 1 are of the same document, and so on."""
    return make_indexed(tmp_path_factory.mktemp("store"), num_chunks=2)


@pytest.fixture(scope="module")
def questions(snapshot: SearchableSnapshot) -> Questions:
    return documents(snapshot, 40)


@pytest.fixture(scope="module")
def task(snapshot: SearchableSnapshot, tmp_path_factory: pytest.TempPathFactory) -> Task:
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(yaml.safe_dump({"input": {"uri": "in"}, "store": {"uri": snapshot.storage.uri}}))
    return make_task(load_config(path), snapshot)


@pytest.fixture(scope="module")
def host(task: Task, questions: Questions) -> Iterator[Host]:
    host = Host(Ours(), task, Path(task.config.store.uri), questions)
    yield host
    host.close()


def test_right_are_the_exact_nearest_without_the_document_itself(
    snapshot: SearchableSnapshot, questions: Questions
) -> None:
    real = stored(VECTORS)
    addresses = np.concatenate([addresses for addresses, _ in blocks(snapshot)])
    for vector, right, left_out in zip(questions.vectors, questions.right, questions.left_out, strict=True):
        cosines = real @ vector
        own = int(cosines.argmax()) // 2 * 2
        assert left_out.tolist() == addresses[[own, own + 1]].tolist()
        cosines[[own, own + 1]] = -9
        assert set(right.tolist()) == set(addresses[np.argsort(-cosines)[:K]].tolist())
    assert questions.num_asked == 12
    assert questions.source == "documents"


def test_recall_counts_ties_and_leaves_out_the_document() -> None:
    right = (np.arange(12), np.arange(100, 103))  # two more tie with the tenth; a corpus of three rows
    left_out = (np.array([77]), np.array([], np.int64))
    questions = Questions("documents", np.zeros((2, 4), np.float32), right, left_out)
    found = padded([np.array([77, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2]), np.array([100, 55])], 11)
    assert questions.recall(found) == pytest.approx((1 + 1 / 3) / 2)
    assert questions.recall(found[:1]) == 1.0
    # What comes after the tenth that counts is no answer.
    late = padded([np.array([77, *range(20, 29), 5, 6])], 12)
    assert questions.recall(late) == pytest.approx(1 / 10)


def test_the_least_effort_that_reaches_it() -> None:
    asked = []

    def reaches(setting: Setting) -> bool:
        asked.append(setting.effort)
        return setting.effort >= 12

    efforts = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24)
    assert least(efforts, 40, reaches) == Setting(12, 40)
    assert len(asked) <= 5
    assert least(efforts, 0, lambda setting: True) == Setting(1, 0)
    assert least(efforts, 0, lambda setting: False) is None


def test_the_setting_chosen_reaches_the_recall_and_a_cheaper_one_does_not(host: Host, questions: Questions) -> None:
    chosen = host.choose(0.9)
    assert chosen is not None
    assert chosen.recall >= 0.9
    below = [effort for effort in host.efforts if effort < chosen.setting.effort]
    assert not below or host.recall(Setting(below[-1], chosen.setting.rerank)) < 0.9
    assert host.choose(1.1) is None
    assert len(host.time(chosen.setting)) == len(questions.vectors)


def test_rounds_are_of_all_queries_and_a_target_out_of_reach_is_told(host: Host) -> None:
    result = Result("ours", host)
    choose_all([result], [0.9, 1.1])
    run_rounds([result], [0.9, 1.1], 2)
    chosen = result.chosen[0.9]
    assert chosen is not None
    assert len(chosen.rounds_ms) == len(chosen.high_ms) == 2
    figures = figures_of([result], [0.9, 1.1])
    assert figures["1.1"][0]["skipped"] == f"reaches {result.best_recall:.4f}"


def test_an_index_that_cannot_be_opened_says_why_and_ours_ends_it(
    task: Task, tmp_path: Path, questions: Questions
) -> None:
    from jobs.index_benchmark.peers import Faiss

    with pytest.raises(Failed, match="RuntimeError"):
        Host(Faiss("faiss"), task, tmp_path, questions)
    with pytest.raises(VecmillError, match="ours: gone"):
        skip(Result("ours"), "gone")
    peer = Result("faiss")
    skip(peer, "gone")
    assert peer.skipped == "gone"


def test_what_a_query_reads_is_counted_with_nothing_cached(
    snapshot: SearchableSnapshot, task: Task, questions: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.search_benchmark.reads._NUM_BATCH", 80)
    cost = costs_of(Path(task.config.store.uri), questions, Setting(NLIST, 0))
    assert cost["codes_read_ratio"] == 1.0
    assert cost["bytes_per_query"] >= NUM * (16 + 8)  # all codes and addresses
    few = costs_of(Path(task.config.store.uri), questions, Setting(2, 0))
    assert few["bytes_per_query"] < cost["bytes_per_query"] / 2
    assert few["batch_queries"] == 80
    assert few["batch_speedup"] > 0
    searcher = OurSearcher(snapshot.index)
    assert 0 < codes_read_ratio(searcher, questions.vectors, Setting(2)) == few["codes_read_ratio"] < 0.5


def test_ours_searches_with_the_setting_it_is_given(snapshot: SearchableSnapshot) -> None:
    searcher = OurSearcher(snapshot.index)
    one, every = (searcher.search(stored(VECTORS)[:40], K, Setting(nprobe)) for nprobe in (1, NLIST))
    plain = snapshot.index.search(stored(VECTORS)[:40], K, nprobe=NLIST)
    assert every.tolist() == plain.addresses.tolist()
    assert one.tolist() != every.tolist()


def test_an_index_of_another_snapshot_is_no_comparison(
    snapshot: SearchableSnapshot, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SearchableSnapshot, "is_index_current", False)
    with pytest.raises(StoreError, match="no comparison; run `vecmill index CONFIG` first"):
        make_task(task.config, snapshot)


def test_peers_have_as_many_lists_as_the_index(task: Task) -> None:
    assert task.nlist == NLIST


def test_documents_are_asked_without_a_model(snapshot: SearchableSnapshot, task: Task) -> None:
    assert len(make_questions(task.config, snapshot, 7, None).vectors) == 7


def test_an_unknown_peer_is_named() -> None:
    result = CliRunner().invoke(benchmark.main, ["search", "config.yaml", "--peers", "pinecone"])
    assert result.exit_code == 2
    assert "no such peer: pinecone" in result.stderr


def test_ratios_are_of_the_same_round_and_their_median() -> None:
    ours = Result("ours", chosen={0.95: Chosen(Setting(8), "nprobe 8", 0.951, [1.0, 6.0, 2.0], [2.0, 9.0, 3.0])})
    lance = Result("LanceDB", chosen={0.95: Chosen(Setting(9), "nprobes 9", 0.952, [4.0, 3.0, 2.0], [3.0, 4.0, 5.0])})
    graph = Result("hnswlib", skipped="it is too slow")
    figures = figures_of([ours, lance, graph], [0.95])
    assert figures["0.95"][1]["ours"]["median"] == pytest.approx(1.0)  # 0.25, 2, 1: not 2 over 3
    assert figures["0.95"][1]["p95_ms"] == 4.0
    cost = {"bytes_per_query": 2**20, "reads_per_query": 3.0, "codes_read_ratio": 0.08}
    cost |= {"batch_queries": 10_000, "batch_s": 2.0, "one_by_one_s": 16.0, "batch_speedup": 8.0}
    table = table_of(figures, {"0.95": cost})
    assert "hnswlib      skipped: it is too slow" in table
    assert "ours, nothing cached: 1.00 MiB in 3.0 reads a query, 8.0% of the codes" in table
    assert "8.0 times as fast" in table
    assert table.splitlines()[4].split()[:3] == ["LanceDB", "0.9520", "3.00"]
    json.dumps(figures)
