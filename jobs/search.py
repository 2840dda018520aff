"""`vecmill search CONFIG|STORE --query TEXT`: the documents nearest to a query."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypedDict, Unpack

import click

from jobs.cli import run
from jobs.status import is_config, open_target
from pipeline.config import Config, load_config
from pipeline.query_file import read_queries
from pipeline.search import MAX_EXACT_ROWS, QueryEncoder, SearchableSnapshot
from pipeline.snapshots.manifest import Manifest
from pipeline.snapshots.reader import Snapshot


class Options(TypedDict):
    """As `SearchableSnapshot.search` takes them."""

    k: int
    nprobe: int | None
    recall: float | None
    exact: bool
    where: str | None


@click.command(name="search")
@click.argument("target", metavar="CONFIG|STORE")
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option("--query", "texts", multiple=True, metavar="TEXT", help="A query; may be given several times.")
@click.option("--queries", "file", metavar="FILE", help="JSONL of {id, text}; a path or a URI.")
@click.option("-k", default=10, show_default=True, help="Neighbours of each query.")
@click.option("--nprobe", type=int, help="Lists of the index to read for each query.")
@click.option("--recall", type=float, help="Recall@10 to reach, as measured when the index was built.")
@click.option("--exact", is_flag=True, help=f"Compare with every vector, also above {MAX_EXACT_ROWS:,} of them.")
@click.option(
    "--filter", "where", metavar="EXPR", help='SQL over kept columns that all neighbours meet: "year > 2020".'
)
@click.option("--json", "as_json", is_flag=True, help="One JSON line a neighbour.")
def main(
    target: str,
    overrides: tuple[str, ...],
    texts: tuple[str, ...],
    file: str | None,
    as_json: bool,
    **options: Unpack[Options],
) -> None:
    """Show the documents of the current snapshot that are nearest to each query; score is the cosine."""
    if texts and file:
        raise click.UsageError("give --query or --queries, not both")
    config = load_config(target, overrides) if is_config(target) else None
    options_of_file = None if config is None else config.input.storage_options
    queries = read_queries(file, options_of_file) if file else {str(number): text for number, text in enumerate(texts)}
    if not queries:
        raise click.UsageError("no query; give --query TEXT or --queries FILE")
    if options["k"] < 1:
        raise click.UsageError(f"-k must be at least 1: {options['k']}")
    found = open_target(target, overrides)
    snapshot = SearchableSnapshot(found.storage, found.manifest, _encoder_of(config))
    click.echo(_told(snapshot, options), err=True)
    for answer in _answers(snapshot, queries, options):
        if as_json:
            click.echo(json.dumps(answer, ensure_ascii=False, default=str))
            continue
        if answer["rank"] == 0:
            click.echo(f"\n{answer['query']}")
        place = f"  [{answer['char_begin']}:{answer['char_end']}]" if "char_begin" in answer else ""
        kept = "".join(f"  {name}={value}" for name, value in answer.get("kept", {}).items())
        click.echo(f"  {answer['score']:.4f}  {answer['doc_id']}{place}{kept}")


def _encoder_of(config: Config | None) -> Callable[[Manifest], QueryEncoder]:
    """Makes the snapshot's encoder, as a config tells or, without one, as the manifest does."""
    if config is None:
        return QueryEncoder
    return partial(
        QueryEncoder,
        settings=config.encoder,
        template=config.input.text,
        storage_options=config.input.storage_options,
    )


def _told(snapshot: SearchableSnapshot, options: Options) -> str:
    """What answers, and how good it is."""
    manifest = snapshot.manifest
    if manifest.index is None or options["exact"]:
        return f"exact: all {manifest.accounting.chunks:,} vectors of snapshot {manifest.snapshot_id}"
    index = snapshot.index.description
    probing = snapshot.index.probing(options["nprobe"], options["recall"])
    told = f"index of snapshot {index.snapshot_id}: nprobe {probing.nprobe} of {index.nlist}"
    if probing.rerank:
        told += f", rerank {probing.rerank}"
    told += f", some {probing.query_bytes:,} bytes a query"
    if probing.measured is not None:
        low, high = probing.measured.interval_at_10
        told += (
            f"; recall@10 {probing.measured.recall_at_10:.3f} [{low:.3f}, {high:.3f}] measured on "
            f"{index.measured.num_queries} {_QUERIES[index.measured.source]}"
        )
        if probing.measured.nprobe < probing.nprobe:
            told += f" at nprobe {probing.measured.nprobe}"
    if not snapshot.is_index_current:
        told += (
            f"\nsnapshot {manifest.snapshot_id} has other rows: answers are of snapshot {index.snapshot_id} until "
            "`vecmill index CONFIG` has run; --exact compares with the current ones"
        )
    return told


_QUERIES = {
    "queries": "given queries",
    "words": "queries made of words of documents",
    "documents": "documents, on which recall is higher than on questions",
}


def _answers(snapshot: SearchableSnapshot, queries: dict[str, str], options: Options) -> Iterator[dict[str, Any]]:
    """The neighbours of each query, nearest first: query_id, query, rank (from 0), doc_id, chunk_index, score, kept.

    Of a document in several chunks each may be one, with its place: char_begin, char_end.
    """
    neighbours = snapshot.search(list(queries.values()), **options)
    doc_ids, chunks, kept = neighbours.doc_ids, neighbours.chunks, neighbours.kept
    for index, (query_id, query) in enumerate(queries.items()):
        found = zip(doc_ids[index], chunks[index], kept[index], neighbours.scores[index].tolist(), strict=True)
        for rank, (doc_id, chunk, columns, score) in enumerate(found):
            place = {"char_begin": chunk.char_begin, "char_end": chunk.char_end} if chunk.num_chunks > 1 else {}
            yield {
                "query_id": query_id,
                "query": query,
                "rank": rank,
                "doc_id": doc_id,
                "chunk_index": chunk.chunk_index,
                "score": round(score, 6),
                **place,
                **({"kept": columns} if columns else {}),
            }


def answer_texts(snapshot: Snapshot, config: Config | None, texts: Sequence[str], k: int) -> Iterator[dict[str, Any]]:
    """The k neighbours of each text, as `vecmill search --json` prints them; queries are numbered."""
    opened = SearchableSnapshot(snapshot.storage, snapshot.manifest, _encoder_of(config))
    options = Options(k=k, nprobe=None, recall=None, exact=False, where=None)
    return _answers(opened, {str(number): text for number, text in enumerate(texts)}, options)


if __name__ == "__main__":
    run(main)
