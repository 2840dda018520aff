"""`vecmill evaluate`: is what comes out as good as the model's published scores?

    beir FOLDER   retrieval on data in BEIR layout (corpus.jsonl, queries.jsonl, qrels/<split>.tsv)
    sts FILE      similarity on sentence pairs with human scores (CSV: sentence1,sentence2,score; no header)

For developers. Retrieval goes the whole way that a user's corpus goes: `embed` into a store of its own, then
the query encoder and exact search over it; scores are ir-measures'. Similarity needs no store: the tokenizer
and encoder of the flow, and Spearman's rank correlation between the pairs' cosines and the human scores.
The model is all-MiniLM-L6-v2 unless an override names another.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml

from jobs.cli import run
from jobs.quickstart import find_model
from pipeline.config import Config, EncoderSettings, load_config, redact_uri
from pipeline.errors import InputError, UsageError, VecmillError
from pipeline.schema import DOCUMENT_FIELDS

Qrels = dict[str, dict[str, int]]
"""Query id -> document id -> relevance."""

NUM_NEIGHBOURS = 100  # recall@100 needs as many

_BEIR_TEXT = "{title} {text}"  # as BEIR and MTEB join them


@click.group(name="evaluate")
def main() -> None:
    """Retrieval and similarity scores, to hold against the published ones."""


@main.command(name="beir")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option("--query-split", default="test", show_default=True, help="Which of qrels/<split>.tsv.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
def beir(folder: Path, overrides: tuple[str, ...], query_split: str, as_json: bool) -> None:
    """Retrieval on data in BEIR layout: nDCG@10 and recall@100."""
    qrels = read_qrels(folder / "qrels" / f"{query_split}.tsv")
    queries = read_queries(folder / "queries.jsonl", qrels)
    with tempfile.TemporaryDirectory(prefix="vecmill-evaluate-") as temporary:
        # The one file, not its folder: queries.jsonl lies beside it.
        corpus = {"uri": str(folder.resolve() / "corpus.jsonl"), "id": "_id", "text": _BEIR_TEXT}
        config = developer_config(Path(temporary), corpus, overrides)
        found, figures = retrieve(config, queries)
    figures = {"data": folder.name, "query_split": query_split} | figures
    show(figures | retrieval_scores(qrels, found), as_json=as_json)


@main.command(name="sts")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
def sts(file: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Similarity of sentence pairs: Spearman against the human scores."""
    firsts, seconds, scores = read_pairs(file)
    with tempfile.TemporaryDirectory(prefix="vecmill-evaluate-") as temporary:
        settings = developer_config(Path(temporary), {"uri": str(file)}, overrides).encoder
    vectors, compute = encode_sentences(settings, [*firsts, *seconds])
    cosines = np.einsum("nd,nd->n", vectors[: len(firsts)], vectors[len(firsts) :])
    figures = {"data": file.name, "model": redact_uri(settings.model), "compute": compute, "pairs": len(firsts)}
    show(figures | {"spearman": spearman(cosines, scores)}, as_json=as_json)


def developer_config(folder: Path, corpus: Mapping[str, Any], overrides: Sequence[str]) -> Config:
    """A config over `corpus` (an input section) with its store in `folder`, MiniLM unless overridden."""
    raw: dict[str, Any] = {"input": dict(corpus), "store": {"uri": str(folder / "store")}}
    if not any(override.startswith("encoder.model=") for override in overrides):
        raw["encoder"] = {"model": str(find_model())}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return load_config(path, overrides)


def read_qrels(path: Path) -> Qrels:
    """The relevances in a BEIR file: query-id, corpus-id, score, by tabs, with a header.

    Raises:
        InputError: the file is not there, or a line is not of that shape.
    """
    qrels: Qrels = {}
    for number, line in enumerate(_lines(path), 1):
        fields = line.split("\t")
        if number == 1 and fields[-1] == "score":
            continue
        try:
            query_id, doc_id, relevance = fields
            qrels.setdefault(query_id, {})[doc_id] = int(relevance)
        except ValueError:
            raise InputError(
                f"{path}:{number} is no relevance; a line is query-id, corpus-id, score, by tabs"
            ) from None
    if not qrels:
        raise InputError(f"no relevances in {path}")
    return qrels


def read_queries(path: Path, qrels: Qrels) -> dict[str, str]:
    """The texts of the queries that `qrels` judges, by id.

    Raises:
        InputError: the file is not there, a line is no query, or one that is judged is missing.
    """
    queries: dict[str, str] = {}
    for number, line in enumerate(_lines(path), 1):
        try:
            value = json.loads(line)
            queries[str(value["_id"])] = value["text"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise InputError(f'{path}:{number} is no query; a line is {{"_id": ..., "text": ...}}') from None
    missing = sorted(qrels.keys() - queries.keys())
    if missing:
        raise InputError(f"{len(missing)} queries are judged and not in {path}, the first: {missing[0]}")
    return {query_id: queries[query_id] for query_id in qrels}


def read_pairs(path: Path) -> tuple[list[str], list[str], list[float]]:
    """Sentences, sentences and scores of a CSV file without header.

    Raises:
        InputError: the file is not there, or a row is not of that shape.
    """
    firsts, seconds, scores = [], [], []
    for number, row in enumerate(csv.reader(_lines(path)), 1):
        try:
            first, second, score = row
            scores.append(float(score))
        except ValueError:
            raise InputError(f"{path}:{number} is no pair; a row is sentence1,sentence2,score") from None
        firsts.append(first)
        seconds.append(second)
    if len(scores) < 2:
        raise InputError(f"a rank correlation needs two pairs, {path} has {len(scores)}")
    return firsts, seconds, scores


def _lines(path: Path) -> list[str]:
    try:
        # Not splitlines(): a sentence may hold U+2028, which is a line's end for Python alone.
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {path}: {error}") from None


def retrieve(config: Config, queries: Mapping[str, str]) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Embed the corpus and search it; query id -> document id -> cosine, and the figures of the run."""
    from pipeline.embed import embed
    from pipeline.search import QueryEncoder, exact_search
    from pipeline.snapshots.reader import open_snapshot

    outcome = embed(config)
    snapshot = open_snapshot(config.store.uri, config.store.storage_options)
    encoder = QueryEncoder(snapshot.manifest, config.encoder, config.input.text, config.input.storage_options)
    neighbours = exact_search(snapshot, encoder.encode(list(queries.values())), NUM_NEIGHBOURS)
    found = {
        query_id: dict(zip(neighbours.doc_ids[index], map(float, neighbours.scores[index]), strict=True))
        for index, query_id in enumerate(queries)
    }
    figures = {
        "model": redact_uri(config.encoder.model),
        "compute": ", ".join(sorted(set(snapshot.shards["compute"].to_pylist()))),
        "dtype": snapshot.dtype,
        "documents": outcome["embedded"],
        "truncated": outcome["truncated"],
        "queries": len(queries),
        "seconds": outcome["seconds"],
    }
    return found, figures


def retrieval_scores(qrels: Qrels, found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """nDCG@10 and recall@100, means over the judged queries."""
    try:
        import ir_measures
    except ModuleNotFoundError:
        raise _needs_dev("ir-measures") from None
    measures = {"ndcg@10": ir_measures.nDCG @ 10, "recall@100": ir_measures.R @ NUM_NEIGHBOURS}
    scores = ir_measures.calc_aggregate(list(measures.values()), qrels, found)
    return {name: float(scores[measure]) for name, measure in measures.items()}


def encode_sentences(settings: EncoderSettings, texts: Sequence[str]) -> tuple[npt.NDArray[np.float32], str]:
    """Unit vectors (N, D) of the texts as documents, and the compute type they were made with.

    Raises:
        InputError: a text has no vector.
    """
    from pipeline.encoder import Encoder
    from pipeline.model import describe_model, fetch_model
    from pipeline.tokens import load_tokenizer, tokenize

    path = fetch_model(settings, None)
    model = describe_model(path, settings)
    numbers = range(len(texts))
    # Ids and hashes are those of nothing: no store will see them.
    columns = [[str(number) for number in numbers], list(numbers), [bytes(16)] * len(texts), list(texts)]
    documents = pa.table(columns, schema=pa.schema(DOCUMENT_FIELDS))
    tokenized = tokenize(documents, load_tokenizer(path, model), input_file="")
    encoder = Encoder(path, model, compute=settings.compute, token_budget=settings.token_budget)
    encoded = encoder.encode(tokenized.sequences["input_ids"])
    num_bad = tokenized.quarantine.num_rows + len(encoded.invalid) + len(encoded.failed)
    if num_bad:
        raise InputError(f"{num_bad} of {len(texts)} sentences have no vector; take them out")
    return encoded.vectors, encoder.compute


def spearman(cosines: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Spearman's rank correlation, ties at their mean rank."""
    try:
        from scipy.stats import spearmanr
    except ModuleNotFoundError:
        raise _needs_dev("scipy") from None
    return float(spearmanr(cosines, scores).statistic)


def _needs_dev(package: str) -> VecmillError:
    return UsageError(f"evaluate scores with {package}, which is not installed: pip install 'vecmill[dev]'")


def show(figures: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the figures: a line each, or one JSON line."""
    if as_json:
        click.echo(json.dumps(figures))
        return
    width = max(map(len, figures))
    for name, value in figures.items():
        shown = f"{value:.5f}" if name in ("ndcg@10", "recall@100", "spearman") else f"{value}"
        click.echo(f"{name:<{width}}  {shown}")


if __name__ == "__main__":
    run(main)
