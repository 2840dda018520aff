"""`vecmill benchmark index`: our index build beside what one would build instead, from the same vectors, in one run.

vectors  the snapshot's rows, or as many as asked for made of them, in a scratch store
task     what all are given, and what a contestant is
ours     `vecmill index` from a started Ray
peers    faiss, LanceDB, hnswlib, autofaiss
usage    CPU and memory of a tree of processes
contest  rounds, each build in a process of its own
figures  the rounds as table and JSON
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.benchmark_peers import parse_peers, peer_versions
from jobs.machine import describe_machine, show_figures
from pipeline.config import Config, load_config
from pipeline.parallel import num_cores

if TYPE_CHECKING:
    from jobs.index_benchmark.task import Task

PEER_NAMES = ("faiss", "lancedb", "hnswlib", "autofaiss")
# Of made rows.
_ANY_RECALL = 1e-6

VERSIONED = ("faiss-cpu", "lancedb", "hnswlib", "autofaiss")


@click.command(name="index")
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option("--rows", type=click.IntRange(min=1), help="So many, drawn or made; default: the snapshot as it is.")
@click.option(
    "--rounds", default=3, show_default=True, type=click.IntRange(min=1), help="Each contestant once in every one."
)
@click.option("--peers", default=",".join(PEER_NAMES), show_default=True, help="Those of interest; none: ''.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def index(config: str, overrides: tuple[str, ...], rows: int | None, rounds: int, peers: str, as_json: bool) -> None:
    """The index build of CONFIG's current snapshot against its peers: seconds, CPU, memory, bytes.

    The store is only read: every build has a scratch store (in TMPDIR, whose shards are hard links) or folder of
    its own. Ours is `vecmill index` as it is, with its measuring of recall, from a started Ray; CPU and memory are
    those of its driver, of Ray itself and of all workers together. Peers have as many lists as ours, a thread for each
    core, and one process; each is there as it comes, and trained on as many rows and for as many iterations as ours.
    Peers' packages: pip install 'vecmill[bench]'; what is absent is skipped.

    With --rows beyond what the snapshot holds rows are made of the real ones by noise: their recall says nothing.
    """
    asked = parse_peers(peers, PEER_NAMES)
    loaded = load_config(config, overrides)
    from jobs.index_benchmark.contest import compete
    from jobs.index_benchmark.figures import figures_of, table_of
    from jobs.index_benchmark.ours import Ours
    from jobs.index_benchmark.peers import PEERS
    from pipeline.snapshots.reader import open_snapshot

    machine = f"{describe_machine()}\n{peer_versions(VERSIONED)}"
    snapshot = open_snapshot(loaded.store.uri, loaded.store.storage_options)
    num_real = snapshot.manifest.accounting.chunks
    with tempfile.TemporaryDirectory(prefix="vecmill-benchmark-") as folder:
        task = make_task(loaded, rows, Path(folder))
        num_rows = task.snapshot().manifest.accounting.chunks
        told: dict[str, Any] = {
            "rows": num_rows,
            "made_rows": max(0, num_rows - num_real),
            "dim": snapshot.dim,
            "nlist": task.nlist,
            "rounds": rounds,
        }
        click.echo(", ".join(f"{name} {value:,}" for name, value in told.items()), err=True)
        contestants = [Ours(), *(contestant for peer in asked for contestant in PEERS[peer])]
        figures = figures_of(compete(task, contestants, rounds), num_rows)
    head = ", ".join(f"{name} {value:,}" for name, value in told.items())
    table = f"{head}\n{table_of(figures, is_made=told['made_rows'] > 0)}"
    show_figures(machine, told | {"contestants": figures}, table, as_json=as_json)


def make_task(config: Config, num_rows: int | None, folder: Path) -> Task:
    """The task over the current snapshot, or over so many rows made of it, which are put below `folder`."""
    from jobs.index_benchmark.ours import with_store
    from jobs.index_benchmark.task import Task
    from jobs.index_benchmark.vectors import local_folder, make_rows
    from pipeline.index.choose import choose
    from pipeline.snapshots.reader import open_snapshot

    snapshot = open_snapshot(config.store.uri, config.store.storage_options)
    local_folder(snapshot)
    if num_rows is not None:
        is_made = num_rows > snapshot.manifest.accounting.chunks
        snapshot = make_rows(snapshot, folder / "made", num_rows)
        # Documents are the queries, so that no model is needed; and made rows are no reason to publish nothing.
        changes = {"queries": None} | ({"recall_target": _ANY_RECALL} if is_made else {})
        config = config.model_copy(update={"index": config.index.model_copy(update=changes)})
    config = with_store(config, local_folder(snapshot))
    chosen = choose(snapshot.manifest.accounting.chunks, snapshot.dim, config.index.codec, config.index.nlist)
    return Task(config, chosen.nlist, chosen.num_sample, num_cores())
