"""`vecmill benchmark search`: searching our index beside what one would search instead, in one run.

queries  what is asked, and the exact nearest
contest  each index open in a process of its own; settings that reach a recall, rounds
reads    what only ours is asked: bytes a query, many at once
figures  the rounds as table and JSON

Peers are those of `vecmill benchmark index`.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.benchmark_peers import parse_peers, peer_versions
from jobs.index_benchmark import PEER_NAMES, VERSIONED
from jobs.machine import describe_machine, show_figures
from pipeline.config import Config, load_config
from pipeline.errors import StoreError
from pipeline.parallel import num_cores

if TYPE_CHECKING:
    from jobs.index_benchmark.task import Task
    from jobs.search_benchmark.contest import Result
    from jobs.search_benchmark.queries import Questions
    from pipeline.search import SearchableSnapshot

_TARGETS = (0.95, 0.99)


@click.command(name="search")
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option("--queries", default=500, show_default=True, type=click.IntRange(min=1), help="Documents, drawn evenly.")
@click.option("--texts", metavar="FILE", help="These questions instead: JSONL of {id, text}.")
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="Each contestant once in every one."
)
@click.option("--peers", default=",".join(PEER_NAMES), show_default=True, help="Those of interest; none: ''.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def search(
    config: str, overrides: tuple[str, ...], queries: int, texts: str | None, rounds: int, peers: str, as_json: bool
) -> None:
    """The published index of CONFIG's store against its peers, at equal recall.

    Peers index the same vectors in as many lists; each is then searched with the cheapest of its own settings that
    reaches recall@10 of 0.95, and of 0.99, against the exact nearest over all vectors: one query, one client, warm, as
    many threads as cores. Queries are documents, left out of their own answers, or the texts of a file. faiss and
    hnswlib answer from memory, LanceDB from its files and caches, ours from its files and a bounded cache; ours
    answers with doc ids and kept columns, the others with row numbers.
    """
    asked = parse_peers(peers, PEER_NAMES)
    loaded = load_config(config, overrides)
    from jobs.search_benchmark import contest
    from jobs.search_benchmark.figures import figures_of, table_of
    from pipeline.search.opened import open_searchable

    machine = f"{describe_machine()}\n{peer_versions(VERSIONED)}"
    snapshot = open_searchable(loaded.store.uri, loaded.store.storage_options)
    task = make_task(loaded, snapshot)
    questions = make_questions(loaded, snapshot, queries, texts)
    description = snapshot.index.description
    told: dict[str, Any] = {
        "rows": description.num_rows,
        "dim": description.dim,
        "codec": description.codec,
        "nlist": description.nlist,
        "queries": len(questions.vectors),
        "of": questions.source,
        "rounds": rounds,
    }
    head = ", ".join(f"{name} {value}" for name, value in told.items())
    click.echo(head, err=True)
    with tempfile.TemporaryDirectory(prefix="vecmill-benchmark-") as folder, ExitStack() as stack:
        results = _open_all(task, asked, questions, Path(folder))
        for result in results:
            if result.host is not None:
                stack.callback(result.host.close)
        contest.choose_all(results, _TARGETS)
        contest.run_rounds(results, _TARGETS, rounds)
    figures = figures_of(results, _TARGETS)
    costs = _costs(task, questions, results[0])
    table = f"{head}\n{table_of(figures, costs)}"
    show_figures(machine, told | {"targets": figures, "ours": costs}, table, as_json=as_json)


def make_task(config: Config, snapshot: SearchableSnapshot) -> Task:
    """What peers are given: the vectors that the index serves, and its number of lists.

    Raises:
        StoreError: there is no index, or it is of another snapshot.
        UsageError: the store is not local.
    """
    from jobs.index_benchmark.ours import with_store
    from jobs.index_benchmark.task import Task
    from jobs.index_benchmark.vectors import local_folder

    config = with_store(config, local_folder(snapshot))
    if not snapshot.is_index_current:
        raise StoreError(
            f"the index of {snapshot.storage.uri} serves snapshot {snapshot.index.description.snapshot_id}, the "
            f"vectors are of {snapshot.manifest.snapshot_id}: no comparison; run `vecmill index CONFIG` first"
        )
    return Task(config, snapshot.index.description.nlist, 0, num_cores())


def make_questions(config: Config, snapshot: SearchableSnapshot, num: int, file: str | None) -> Questions:
    """The queries and their exact nearest."""
    from jobs.search_benchmark.queries import documents, texts
    from pipeline.query_file import read_queries
    from pipeline.search import QueryEncoder

    if file is None:
        return documents(snapshot, num)
    encoder = QueryEncoder(snapshot.manifest, config.encoder, config.input.text, config.input.storage_options)
    return texts(snapshot, list(read_queries(file).values()), encoder.encode)


def _open_all(task: Task, peers: list[str], questions: Questions, folder: Path) -> list[Result]:
    """Ours as it is published, and the peers built; each open in its process."""
    from jobs.index_benchmark.contest import build_alone
    from jobs.index_benchmark.ours import Ours
    from jobs.index_benchmark.peers import PEERS
    from jobs.search_benchmark.contest import Failed, Host, Result, skip

    ours = Ours()
    results = [Result(ours.name, Host(ours, task, Path(task.config.store.uri), questions))]
    for contestant in (PEERS[peer][0] for peer in peers):
        result = Result(contestant.name)
        results.append(result)
        click.echo(f"{contestant.name}: building", err=True)
        built = build_alone(contestant, task, folder / contestant.name)
        if isinstance(built, str):
            skip(result, built)
            continue
        try:
            result.host = Host(contestant, task, folder / contestant.name, questions)
        except Failed as failed:
            skip(result, str(failed))
    return results


def _costs(task: Task, questions: Questions, ours: Result) -> dict[str, Any]:
    from jobs.search_benchmark.reads import costs_of

    store = Path(task.config.store.uri)
    return {
        str(target): costs_of(store, questions, chosen.setting)
        for target, chosen in ours.chosen.items()
        if chosen is not None
    }
