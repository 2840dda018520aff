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
from pipeline.config import Config, EncoderSettings
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
    qrels = evaluate.read_qrels(folder / "qrels" / "test.tsv")
    assert qrels == {"1": {"a": 1, "b": 0}, "2": {"b": 2}}
    assert evaluate.read_queries(folder / "queries.jsonl", qrels) == {"1": "one", "2": "two"}


@pytest.mark.parametrize("line", ["1\ta", "1\ta\thigh", "1 a 1"])
def test_a_line_that_is_no_relevance_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "test.tsv"
    path.write_text(f"query-id\tcorpus-id\tscore\n{line}\n")
    with pytest.raises(InputError, match=r"test.tsv:2 is no relevance"):
        evaluate.read_qrels(path)


@pytest.mark.parametrize("content", [None, "", "query-id\tcorpus-id\tscore\n"])
def test_without_relevances_there_is_no_score(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "test.tsv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="test.tsv"):
        evaluate.read_qrels(path)


def test_a_judged_query_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = beir_folder(tmp_path)
    with pytest.raises(InputError, match=r"1 queries are judged and not in .*queries.jsonl, the first: 9"):
        evaluate.read_queries(folder / "queries.jsonl", {"1": {"a": 1}, "9": {"a": 1}})


def test_scores_are_those_of_the_definition() -> None:
    """One relevant document at rank 2 (ndcg 1 / log2 3), one not found: the mean is over both queries."""
    found = {"1": {"x": 0.9, "a": 0.8}, "2": {"x": 0.9}}
    scores = evaluate.retrieval_scores({"1": {"a": 1}, "2": {"b": 1}}, found)
    assert scores == {"ndcg@10": pytest.approx(1 / math.log2(3) / 2), "recall@100": 0.5}


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
        "recall@100": 1.0,
    }


def test_similarity_is_scored_from_the_file_with_the_real_encoder(tmp_path: Path) -> None:
    """The same sentence twice is nearest; commas in quotes are part of a sentence."""
    model = make_model(tmp_path / "model")
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(
        '"it was, in time",they said so,1.0\nno more of it,no more of it,5.0\nwho will be by,if they can,0.5\n'
    )
    firsts, seconds, scores = evaluate.read_pairs(pairs)
    assert (firsts[0], scores) == ("it was, in time", [1.0, 5.0, 0.5])
    vectors, compute = evaluate.encode_sentences(
        EncoderSettings(model=str(model), compute="float32"), [*firsts, *seconds]
    )
    assert compute == "float32"
    cosines = np.einsum("nd,nd->n", vectors[:3], vectors[3:])
    assert cosines[1] == pytest.approx(1.0, abs=1e-6)
    arguments = ["sts", str(pairs), "--json", "encoder.compute=float32", f"encoder.model={model}"]
    result = CliRunner().invoke(evaluate.main, arguments, catch_exceptions=False)
    assert json.loads(result.stdout)["spearman"] == pytest.approx(evaluate.spearman(cosines, scores))


def test_spearman_is_over_ranks_with_ties() -> None:
    assert evaluate.spearman([0.1, 0.2, 0.9], [0.0, 4.9, 5.0]) == pytest.approx(1.0)
    assert evaluate.spearman([0.1, 0.2, 0.3, 0.4], [1.0, 1.0, 0.0, 0.0]) == pytest.approx(-math.sqrt(0.8))


@pytest.mark.parametrize("content", ["a,b\nc,d,1\n", "a,b,high\nc,d,1\n"])
def test_a_row_that_is_no_pair_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=r"pairs.csv:1 is no pair"):
        evaluate.read_pairs(path)


def test_a_sentence_without_a_vector_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A score over fewer pairs than the file has would be another score."""
    from pipeline.encoder import EncodedSplit, Encoder

    zeros = EncodedSplit(np.zeros((2, 32), np.float32), 0, [1], {})
    monkeypatch.setattr(Encoder, "encode", lambda self, ids: zeros)
    model = make_model(tmp_path / "model")
    with pytest.raises(InputError, match="1 of 2 sentences have no vector"):
        evaluate.encode_sentences(EncoderSettings(model=str(model)), ["of it", "in time"])
