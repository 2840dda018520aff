"""The scores are those of the data that was named, from the real encoder; data that is not in shape gets a sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from jobs import evaluate
from jobs.evaluate.data import read_corpus, read_pairs, read_qrels, read_queries
from jobs.evaluate.scores import retrieval_scores, spearman
from jobs.evaluate.vectors import encode_texts, wrong_ways
from pipeline.config import Config, EncoderSettings, parse_config
from pipeline.errors import InputError
from tests.models import make_model


def beir_folder(path: Path) -> Path:
    (path / "qrels").mkdir(parents=True)
    (path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n1\tb\t0\n2\tb\t2\n")
    queries = [{"_id": "2", "text": "two"}, {"_id": "1", "text": "one"}, {"_id": "3", "text": "not judged"}]
    (path / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    (path / "corpus.jsonl").write_text('{"_id": "a", "title": "A", "text": "a"}\n')
    return path


def test_judged_queries_alone_are_asked(tmp_path: Path) -> None:
    folder = beir_folder(tmp_path)
    qrels = read_qrels(folder / "qrels" / "test.tsv")
    assert qrels == {"1": {"a": 1, "b": 0}, "2": {"b": 2}}
    assert read_queries(folder / "queries.jsonl", qrels) == {"1": "one", "2": "two"}


@pytest.mark.parametrize("line", ["1\ta", "1\ta\thigh", "1 a 1"])
def test_a_line_that_is_no_relevance_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "test.tsv"
    path.write_text(f"query-id\tcorpus-id\tscore\n{line}\n")
    with pytest.raises(InputError, match=r"test.tsv:2 is no relevance"):
        read_qrels(path)


@pytest.mark.parametrize("content", [None, "", "query-id\tcorpus-id\tscore\n"])
def test_without_relevances_there_is_no_score(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "test.tsv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="test.tsv"):
        read_qrels(path)


def test_a_judged_query_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = beir_folder(tmp_path)
    with pytest.raises(InputError, match=r"1 queries are judged and not in .*queries.jsonl, the first: 9"):
        read_queries(folder / "queries.jsonl", {"1": {"a": 1}, "9": {"a": 1}})


def test_scores_are_those_of_the_definition() -> None:
    """One relevant document at rank 2 (ndcg 1 / log2 3), one not found: the mean is over both queries."""
    found = {"1": {"x": 0.9, "a": 0.8}, "2": {"x": 0.9}}
    scores = retrieval_scores({"1": {"a": 1}, "2": {"b": 1}}, found)
    assert scores == {"ndcg@10": pytest.approx(1 / math.log2(3) / 2), "recall@10": 0.5, "recall@100": 0.5}


def test_the_corpus_is_one_file_and_overrides_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """queries.jsonl lies beside corpus.jsonl: the folder as the input would embed the queries as well."""
    asked: list[tuple[Config, Mapping[str, str]]] = []

    def retrieve(config: Config, queries: Mapping[str, str]) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
        asked.append((config, queries))
        return {"1": {"a": 0.9}, "2": {"b": 0.9}}, {"documents": 1}

    monkeypatch.setattr(evaluate, "retrieve", retrieve)
    folder = beir_folder(tmp_path / "mini")
    arguments = ["beir", str(folder), "--json", "encoder.compute=float32", "encoder.model=some/model"]
    result = CliRunner().invoke(evaluate.main, arguments, catch_exceptions=False)
    [(config, queries)] = asked
    assert config.input.uri == str(folder / "corpus.jsonl")
    assert (config.input.id, config.input.text) == ("_id", "{title} {text}")
    assert (config.encoder.compute, config.encoder.model) == ("float32", "some/model")
    assert list(queries) == ["1", "2"]
    assert json.loads(result.stdout) == {
        "data": "mini",
        "query_split": "test",
        "documents": 1,
        "ndcg@10": 1.0,
        "recall@10": 1.0,
        "recall@100": 1.0,
    }


def test_similarity_is_scored_from_the_file_with_the_real_encoder(tmp_path: Path) -> None:
    """The same sentence twice is nearest; commas in quotes are part of a sentence."""
    model = make_model(tmp_path / "model")
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(
        '"it was, in time",they said so,1.0\nno more of it,no more of it,5.0\nwho will be by,if they can,0.5\n'
    )
    firsts, seconds, scores = read_pairs(pairs)
    assert (firsts[0], scores) == ("it was, in time", [1.0, 5.0, 0.5])
    vectors, compute = encode_texts(EncoderSettings(model=str(model), compute="float32"), [*firsts, *seconds])
    assert compute == "float32"
    cosines = np.einsum("nd,nd->n", vectors[:3], vectors[3:])
    assert cosines[1] == pytest.approx(1.0, abs=1e-6)
    arguments = ["sts", str(pairs), "--json", "encoder.compute=float32", f"encoder.model={model}"]
    result = CliRunner().invoke(evaluate.main, arguments, catch_exceptions=False)
    assert json.loads(result.stdout)["spearman"] == pytest.approx(spearman(cosines, scores))


def test_spearman_is_over_ranks_with_ties() -> None:
    assert spearman([0.1, 0.2, 0.9], [0.0, 4.9, 5.0]) == pytest.approx(1.0)
    assert spearman([0.1, 0.2, 0.3, 0.4], [1.0, 1.0, 0.0, 0.0]) == pytest.approx(-math.sqrt(0.8))


@pytest.mark.parametrize("content", ["a,b\nc,d,1\n", "a,b,high\nc,d,1\n"])
def test_a_row_that_is_no_pair_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=r"pairs.csv:1 is no pair"):
        read_pairs(path)


def test_a_sentence_without_a_vector_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A score over fewer pairs than the file has would be another score."""
    from pipeline.encoder import EncodedSplit, Encoder

    zeros = EncodedSplit(np.zeros((2, 32), np.float32), 0, [1], {})
    monkeypatch.setattr(Encoder, "encode", lambda self, ids: zeros)
    model = make_model(tmp_path / "model")
    with pytest.raises(InputError, match="1 of 2 sentences have no vector"):
        encode_texts(EncoderSettings(model=str(model)), ["of it", "in time"])


def test_the_wrong_ways_stand_beside_the_right_one(tmp_path: Path) -> None:
    """What cls pooling and a forgotten mask cost is seen only beside the right figure."""
    model = make_model(tmp_path / "model")
    pairs = tmp_path / "pairs.csv"
    rows = [f"it was{' no more' * (i % 7)} {i},they said{' in time' * (i % 5)} {i * 3},{i % 6}" for i in range(20)]
    pairs.write_text("\n".join(rows))
    arguments = ["sts", str(pairs), "--json", "encoder.compute=float32", f"encoder.model={model}"]
    figures = json.loads(CliRunner().invoke(evaluate.main, arguments, catch_exceptions=False).stdout)
    wrong = {name: figures[name] for name in figures if name.startswith("spearman, ")}
    assert list(wrong) == ["spearman, cls for mean pooling", "spearman, without the mask"]
    assert len({figures["spearman"], *wrong.values()}) == 3
    settings = EncoderSettings(model=str(model), compute="float32", pooling="cls")
    assert list(wrong_ways(settings)) == ["mean for cls pooling", "without the mask"]


def test_without_the_mask_a_vector_depends_on_its_neighbours(tmp_path: Path) -> None:
    """That is the mistake: the padding a longer neighbour asks for is attended to, and averaged in."""
    settings = EncoderSettings(model=str(make_model(tmp_path / "model")), compute="float32")
    texts = ["in time", "they said no more of it than she would"]
    right, _ = encode_texts(settings, texts)
    unmasked, _ = encode_texts(settings, texts, masked=False)
    alone, _ = encode_texts(settings, texts[:1], masked=False)
    assert np.allclose(alone[0], right[0], atol=1e-6)
    assert np.allclose(unmasked[1], right[1], atol=1e-6)
    assert float(unmasked[0] @ right[0]) < 0.999


def test_retrieval_under_the_wrong_ways_is_scored_alike(tmp_path: Path) -> None:
    folder = beir_folder(tmp_path / "mini")
    lines = [{"_id": name, "title": name.upper(), "text": f"of the time {name}"} for name in "abcd"]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"model": str(make_model(tmp_path / "model")), "compute": "float32"}
    config = parse_config({"input": {"uri": "in"}, "store": {"uri": "out"}, "encoder": settings})
    qrels = read_qrels(folder / "qrels" / "test.tsv")
    corpus = read_corpus(folder / "corpus.jsonl")
    assert corpus["a"] == "A of the time a"
    scores = evaluate.compared(config, corpus, read_queries(folder / "queries.jsonl", qrels), qrels)
    measures = ("ndcg@10", "recall@10", "recall@100")
    ways = ("cls for mean pooling", "without the mask")
    assert list(scores) == [f"{measure}, {way}" for way in ways for measure in measures]
    assert scores["recall@100, without the mask"] == 1.0


def test_a_line_that_is_no_document_is_named(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": "a", "title": "A", "text": "a"}\n{"_id": "b"}\n')
    with pytest.raises(InputError, match=r"corpus.jsonl:2 is no document"):
        read_corpus(path)
