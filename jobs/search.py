"""`vecmill search CONFIG|STORE --query TEXT`: the documents nearest to a query."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from jobs.cli import run
from jobs.status import is_config, open_target
from pipeline.config import Config, load_config
from pipeline.errors import UsageError
from pipeline.search import MAX_EXACT_ROWS, QueryEncoder, exact_search
from pipeline.snapshots.reader import Snapshot


@click.command(name="search")
@click.argument("target", metavar="CONFIG|STORE")
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option("--query", "texts", multiple=True, metavar="TEXT", help="A query; may be given several times.")
@click.option("--queries", "file", type=click.Path(dir_okay=False, path_type=Path), help="JSONL of {id, text}.")
@click.option("-k", default=10, show_default=True, help="Neighbours of each query.")
@click.option("--exact", is_flag=True, help=f"Compare with every vector, also above {MAX_EXACT_ROWS:,} of them.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line a neighbour.")
def main(
    target: str,
    overrides: tuple[str, ...],
    texts: tuple[str, ...],
    file: Path | None,
    k: int,
    exact: bool,
    as_json: bool,
) -> None:
    """Show the documents of the current snapshot that are nearest to each query; score is the cosine."""
    if texts and file:
        raise click.UsageError("give --query or --queries, not both")
    queries = _read_queries(file) if file else {str(number): text for number, text in enumerate(texts)}
    if not queries:
        raise click.UsageError("no query; give --query TEXT or --queries FILE")
    if k < 1:
        raise click.UsageError(f"-k must be at least 1: {k}")
    snapshot = open_target(target, overrides)
    num_rows = snapshot.manifest.accounting.chunks
    if num_rows > MAX_EXACT_ROWS and not exact:
        raise UsageError(f"exact search over {num_rows:,} vectors takes minutes; ask for it with --exact")
    config = load_config(target, overrides) if is_config(target) else None
    for answer in answer_queries(snapshot, config, queries, k):
        if as_json:
            click.echo(json.dumps(answer, ensure_ascii=False))
            continue
        if answer["rank"] == 0:
            click.echo(f"\n{answer['query']}")
        place = f"  [{answer['char_begin']}:{answer['char_end']}]" if "char_begin" in answer else ""
        click.echo(f"  {answer['score']:.4f}  {answer['doc_id']}{place}")


def answer_queries(
    snapshot: Snapshot, config: Config | None, queries: dict[str, str], k: int
) -> Iterator[dict[str, Any]]:
    """The neighbours of each query, nearest first: query_id, query, rank (from 0), doc_id, chunk_index, score.

    Of a document in several chunks each may be one, with its place: char_begin, char_end.
    """
    if config is None:
        encoder = QueryEncoder(snapshot.manifest)
    else:
        encoder = QueryEncoder(snapshot.manifest, config.encoder, config.input.text, config.input.storage_options)
    neighbours = exact_search(snapshot, encoder.encode(list(queries.values())), k)
    for index, (query_id, query) in enumerate(queries.items()):
        found = zip(neighbours.doc_ids[index], neighbours.chunks[index], neighbours.scores[index], strict=True)
        for rank, (doc_id, chunk, score) in enumerate(found):
            place = {"char_begin": chunk.char_begin, "char_end": chunk.char_end} if chunk.num_chunks > 1 else {}
            yield {
                "query_id": query_id,
                "query": query,
                "rank": rank,
                "doc_id": doc_id,
                "chunk_index": chunk.chunk_index,
                "score": round(float(score), 6),
                **place,
            }


def answer_texts(snapshot: Snapshot, config: Config | None, texts: Sequence[str], k: int) -> Iterator[dict[str, Any]]:
    """As `answer_queries`, the queries numbered."""
    return answer_queries(snapshot, config, {str(number): text for number, text in enumerate(texts)}, k)


def _read_queries(path: Path) -> dict[str, str]:
    queries: dict[str, str] = {}
    try:
        # By "\n" alone: JSON may hold other line separators, such as U+2028, as they are.
        lines = path.read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"queries cannot be read: {path}: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            query_id, text = str(value["id"]), value["text"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise UsageError(f'{path}:{number} is no query; a line is {{"id": ..., "text": ...}}') from None
        if not isinstance(text, str):
            raise UsageError(f"{path}:{number}: text is {type(text).__name__}, not a string")
        if query_id in queries:
            raise UsageError(f"{path}:{number}: the query id {query_id} is there twice")
        queries[query_id] = text
    return queries


if __name__ == "__main__":
    run(main)
