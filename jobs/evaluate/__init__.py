"""`vecmill evaluate`: is what comes out as good as the model's published scores?

    beir FOLDER   retrieval on data in BEIR layout (corpus.jsonl, queries.jsonl, qrels/<split>.tsv)
    sts FILE      similarity on sentence pairs with human scores (CSV: sentence1,sentence2,score; no header)

For developers. Retrieval goes the whole way that a user's corpus goes: `embed` into a store of its own, then
the query encoder and exact search over it; scores are ir-measures'. Similarity needs no store: the tokenizer
and encoder of the flow, and Spearman's rank correlation between the pairs' cosines and the human scores.
The model is all-MiniLM-L6-v2 unless an override names another.

Beside the right figure stand those of the same model used wrongly (for `beir` with `--compare`: it encodes the
corpus twice more): under another pooling, and without the mask. Each is a mistake of one line that raises nothing.

    data      labelled data as it is published
    vectors   texts -> vectors, rightly and wrongly
    scores    the published measures
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import yaml

from jobs.evaluate.data import Qrels, read_corpus, read_pairs, read_qrels, read_queries
from jobs.evaluate.scores import NUM_NEIGHBOURS, retrieval_scores, spearman
from jobs.evaluate.vectors import encode_texts, wrong_ways
from jobs.quickstart import find_model
from pipeline.config import Config, load_config, redact_uri

_BEIR_TEXT = "{title} {text}"  # as BEIR and MTEB join them


@click.group(name="evaluate")
def main() -> None:
    """Retrieval and similarity scores, to hold against the published ones."""


@main.command(name="beir")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option("--query-split", default="test", show_default=True, help="Which of qrels/<split>.tsv.")
@click.option(
    "--compare", is_flag=True, help="Also under the wrong pooling and without the mask: three times the work."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
def beir(folder: Path, overrides: tuple[str, ...], query_split: str, compare: bool, as_json: bool) -> None:
    """Retrieval on data in BEIR layout: nDCG@10, recall@10 and recall@100."""
    qrels = read_qrels(folder / "qrels" / f"{query_split}.tsv")
    queries = read_queries(folder / "queries.jsonl", qrels)
    with tempfile.TemporaryDirectory(prefix="vecmill-evaluate-") as temporary:
        # The one file, not its folder: queries.jsonl lies beside it.
        corpus = {"uri": str(folder.resolve() / "corpus.jsonl"), "id": "_id", "text": _BEIR_TEXT}
        config = developer_config(Path(temporary), corpus, overrides)
        found, figures = retrieve(config, queries)
    figures = {"data": folder.name, "query_split": query_split} | figures | retrieval_scores(qrels, found)
    if compare:
        figures |= compared(config, read_corpus(folder / "corpus.jsonl"), queries, qrels)
    show(figures, as_json=as_json)


@main.command(name="sts")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
def sts(file: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Similarity of sentence pairs: Spearman against the human scores."""
    firsts, seconds, scores = read_pairs(file)
    with tempfile.TemporaryDirectory(prefix="vecmill-evaluate-") as temporary:
        settings = developer_config(Path(temporary), {"uri": str(file)}, overrides).encoder
    texts = [*firsts, *seconds]
    vectors, compute = encode_texts(settings, texts)
    figures = {"data": file.name, "model": redact_uri(settings.model), "compute": compute, "pairs": len(firsts)}
    figures["spearman"] = spearman(_pairwise(vectors), scores)
    for name, encode in wrong_ways(settings).items():
        figures[f"spearman, {name}"] = spearman(_pairwise(encode(texts)), scores)
    show(figures, as_json=as_json)


def _pairwise(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Cosines of the first half with the second."""
    half = len(vectors) // 2
    cosines: npt.NDArray[np.float32] = np.einsum("nd,nd->n", vectors[:half], vectors[half:])
    return cosines


def developer_config(folder: Path, corpus: Mapping[str, Any], overrides: Sequence[str]) -> Config:
    """A config over `corpus` (an input section) with its store in `folder`, MiniLM unless overridden."""
    raw: dict[str, Any] = {"input": dict(corpus), "store": {"uri": str(folder / "store")}}
    if not any(override.startswith("encoder.model=") for override in overrides):
        raw["encoder"] = {"model": str(find_model())}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return load_config(path, overrides)


def retrieve(config: Config, queries: Mapping[str, str]) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Embed the corpus and search it; query id -> document id -> cosine, and the figures of the run."""
    from pipeline.embed import embed
    from pipeline.search import QueryEncoder, nearest_documents
    from pipeline.snapshots.reader import open_snapshot

    outcome = embed(config)
    snapshot = open_snapshot(config.store.uri, config.store.storage_options)
    encoder = QueryEncoder(snapshot.manifest, config.encoder, config.input.text, config.input.storage_options)
    ranked = nearest_documents(snapshot, encoder.encode(list(queries.values())), NUM_NEIGHBOURS)
    found = dict(zip(queries, ranked, strict=True))
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


def compared(config: Config, corpus: Mapping[str, str], queries: Mapping[str, str], qrels: Qrels) -> dict[str, float]:
    """The scores of the same model used wrongly, in this process: exact search over all of the corpus."""
    scores: dict[str, float] = {}
    doc_ids = list(corpus)
    for name, encode in wrong_ways(config.encoder).items():
        documents = encode([*corpus.values()])
        cosines = encode([*queries.values()]) @ documents.T  # (Q, N)
        nearest = np.argsort(-cosines, axis=1)[:, :NUM_NEIGHBOURS]
        found = {
            query_id: {doc_ids[index]: float(row[index]) for index in indices}
            for query_id, row, indices in zip(queries, cosines, nearest, strict=True)
        }
        scores |= {f"{measure}, {name}": value for measure, value in retrieval_scores(qrels, found).items()}
    return scores


def show(figures: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the figures: a line each, or one JSON line."""
    if as_json:
        click.echo(json.dumps(figures))
        return
    width = max(map(len, figures))
    for name, value in figures.items():
        shown = f"{value:.5f}" if name.startswith(("ndcg@", "recall@", "spearman")) else f"{value}"
        click.echo(f"{name:<{width}}  {shown}")
