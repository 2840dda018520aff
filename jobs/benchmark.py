"""`vecmill benchmark`: how fast, against what one would write instead, in one run.

    encoder CORPUS the encoder alone against its peers, and their ceiling
    job CORPUS     the embed job against a plain Ray Data script, alternating, from one started Ray
    split CORPUS   what a split costs beyond its forward, by the size of splits
    bookkeeping    planning, resume and publish of many splits

For developers. CORPUS is a folder of Parquet files with columns `id` and `text`. Machines are noisy: only
ratios within a run count. What was tried and found is in jobs/benchmark.md.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from jobs.bookkeeping_benchmark import bookkeeping
from jobs.cli import run
from jobs.encoder_benchmark import encoder
from jobs.evaluate import developer_config
from jobs.machine import describe_machine
from pipeline.config import Config
from pipeline.errors import InputError, VecmillError
from pipeline.flow.context import FlowContext
from pipeline.flow.rows import SplitReport, Work
from pipeline.model import describe_model, fetch_model
from pipeline.parallel import num_cores
from pipeline.snapshots.lease import new_run_id
from pipeline.snapshots.reader import open_snapshot
from pipeline.splits import list_input, plan_files
from pipeline.uris import Storage

_SHARD_ROWS = 10_000

# With fewer splits, the first and the last of them would be too large a part of the whole.
_MIN_SPLITS = 12


@click.group(name="benchmark")
def main() -> None:
    """Speed against peers, in one run."""


main.add_command(bookkeeping)
main.add_command(encoder)


@main.command(name="job")
@click.argument("corpus", type=click.Path(path_type=Path, file_okay=False))
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option("--documents", default=20_000, show_default=True, help="The first so many of CORPUS.")
@click.option("--rounds", default=3, show_default=True, help="Of each, alternating.")
def job(corpus: Path, overrides: tuple[str, ...], documents: int, rounds: int) -> None:
    """The embed job against a plain Ray Data script.

    Ray is started once, before; the clock runs from there to the last file written, with what each needs to
    begin: actors, loading the model, and for `embed` also planning and publishing. The script's actor gets
    a thread for each core, which is more than Ray would give it by default (one).
    """
    click.echo(describe_machine())
    with tempfile.TemporaryDirectory(prefix="vecmill-benchmark-") as temporary:
        folder = Path(temporary)
        write_first(corpus, folder / "corpus", documents, _SHARD_ROWS)
        config = _config(folder, overrides)
        with _connected(config):
            compared = [_round(config, folder / str(number), number) for number in range(rounds)]
    click.echo(describe_rounds(compared, documents))


@main.command(name="split")
@click.argument("corpus", type=click.Path(path_type=Path, file_okay=False))
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option(
    "--documents", default=50_000, show_default=True, help=f"At least; never fewer than {_MIN_SPLITS} splits."
)
@click.option("--sizes", default="100,1000,10000", show_default=True, help="Documents a split.")
@click.option("--rounds", default=3, show_default=True, help="Of each size.")
def split(corpus: Path, overrides: tuple[str, ...], documents: int, sizes: str, rounds: int) -> None:
    """What a split costs beyond its forward, in ms.

    The embed flow as it is, read, tokenize, encode, write and record, but with an encoder that takes no time.
    All actors are up before the first split is read; from the first split that is done to the last, seconds
    over splits are what one more split costs, and what starting costs is not in it. On a machine with few
    cores this is an upper bound: beside a GPU most of it happens while the forward runs. Files have a row
    group a split. Planning and publishing are not in it.
    """
    asked = parse_sizes(sizes)
    click.echo(describe_machine())
    costs: dict[int, SplitCost] = {}
    with (
        tempfile.TemporaryDirectory(prefix="vecmill-benchmark-") as temporary,
        _connected(_config(Path(temporary), overrides)),
    ):
        for size in asked:
            folder = Path(temporary) / str(size)
            num_splits = max(_MIN_SPLITS, documents // size)
            write_first(corpus, folder / "corpus", num_splits * size, size)
            costs[size] = _split_cost(_config(folder, (*overrides, f"splits.max_rows={size}")), rounds)
            click.echo(f"{size} documents a split, {num_splits} splits: {costs[size].rounds_ms} ms", err=True)
    click.echo(describe_costs(costs))


@dataclass(frozen=True, slots=True)
class Round:
    """One time each."""

    embed_s: float
    plain_s: float
    padding_ratio: float
    busy_ratio: float
    cosines: npt.NDArray[np.float32]
    """(N,), of the two's vectors of the same document."""


def _round(config: Config, folder: Path, number: int) -> Round:
    from pipeline.embed import embed
    from pipeline.flow.peer import plain_embed

    config = config.model_copy(update={"store": config.store.model_copy(update={"uri": str(folder / "store")})})
    started = time.monotonic()
    outcome = embed(config)
    embedded = time.monotonic()
    plain_embed(config.input.uris[0], str(folder / "plain"), config.encoder.model, num_cpus=num_cores())
    plain = time.monotonic()
    ours = open_snapshot(config.store.uri).dataset().to_table(columns=["doc_id", "vector"])
    cosines = compare(ours, pq.read_table(folder / "plain"))
    found = Round(embedded - started, plain - embedded, outcome["padding_ratio"], outcome["busy_ratio"], cosines)
    click.echo(f"round {number + 1}: embed {found.embed_s:.1f} s, plain script {found.plain_s:.1f} s", err=True)
    return found


def compare(ours: pa.Table, plain: pa.Table) -> npt.NDArray[np.float32]:
    """Cosines of the same documents' vectors, (N,): `doc_id, vector` against `id, embedding`.

    Raises:
        VecmillError: they are not of the same documents.
    """
    ours, plain = ours.sort_by("doc_id"), plain.sort_by("id")
    if ours["doc_id"].to_pylist() != plain["id"].to_pylist():
        raise VecmillError(f"the two did not embed the same documents: {len(ours)} and {len(plain)} rows")
    a, b = _matrix(ours["vector"]), _matrix(plain["embedding"])
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: npt.NDArray[np.float32] = np.einsum("nd,nd->n", a, b) / norms
    return cosines


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    values = array.storage.flatten() if isinstance(array, pa.ExtensionArray) else array.flatten()
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float32).reshape(len(array), -1)


def describe_rounds(rounds: Sequence[Round], num_documents: int) -> str:
    """The rounds as a table, with medians and what else came of them."""
    embed_s = statistics.median(found.embed_s for found in rounds)
    plain_s = statistics.median(found.plain_s for found in rounds)
    lines = [f"{'':>8} {'embed s':>8} {'plain s':>8} {'ratio':>6}"]
    for number, found in enumerate(rounds, 1):
        lines.append(f"{number:>8} {found.embed_s:>8.1f} {found.plain_s:>8.1f} {found.plain_s / found.embed_s:>6.2f}")
    ratio = statistics.median(found.plain_s / found.embed_s for found in rounds)
    lines.append(f"{'median':>8} {embed_s:>8.1f} {plain_s:>8.1f} {ratio:>6.2f}")
    cosines = np.concatenate([found.cosines for found in rounds])
    return "\n".join(
        [
            *lines,
            f"documents/s: embed {num_documents / embed_s:,.0f}, plain {num_documents / plain_s:,.0f}",
            f"padding ratio {rounds[-1].padding_ratio:.4f}, encoders busy {rounds[-1].busy_ratio:.2f}",
            f"cosine to the plain script: mean {cosines.mean():.6f}, min {cosines.min():.6f}",
        ]
    )


@dataclass(frozen=True, slots=True)
class SplitCost:
    """Of one more split, in ms; `read_ms` and `write_ms` are the stages' own, which overlap."""

    rounds_ms: list[float]
    read_ms: float
    write_ms: float


def _split_cost(config: Config, rounds: int) -> SplitCost:
    context, work = _planned(config)
    _time_flow(context, work[:_MIN_SPLITS])  # worker processes start and import once, then are used again
    rounds_ms, reports = [], []
    for _ in range(rounds):
        done = _time_flow(context, work)
        rounds_ms.append(ms_a_split([when for when, _ in done]))
        reports += [report for _, report in done]
    read_ms = statistics.median(report.read_s for report in reports) * 1e3
    write_ms = statistics.median(report.write_s for report in reports) * 1e3
    return SplitCost(rounds_ms, read_ms, write_ms)


def ms_a_split(done: Sequence[float]) -> float:
    """What one more split costs, of the seconds at which splits were done."""
    return round((max(done) - min(done)) / (len(done) - 1) * 1e3, 1)


def describe_costs(costs: Mapping[int, SplitCost]) -> str:
    """The cost of a split by its size in documents, as a table."""
    lines = [f"{'documents':>10} {'ms a split':>11} {'read':>8} {'write':>8} {'ms a document':>14}"]
    for size, cost in costs.items():
        median_ms = statistics.median(cost.rounds_ms)
        lines.append(
            f"{size:>10,} {median_ms:>11.1f} {cost.read_ms:>8.1f} {cost.write_ms:>8.1f} {median_ms / size:>14.3f}"
        )
    return "\n".join(lines)


def _time_flow(context: FlowContext, work: Sequence[Work]) -> list[tuple[float, SplitReport]]:
    """When each split was done, and its report."""
    from pipeline.flow.cluster import alive_nodes, plan_pool
    from pipeline.flow.peer import time_instant_flow

    with _connected(context.config):
        done = time_instant_flow(context, work, plan_pool(context.config.cluster, alive_nodes()))
    failed = [report.error for _, report in done if report.status != "ok"]
    if failed or len(done) != len(work):
        raise VecmillError(f"{len(work)} splits went in, {len(done)} came out, {len(failed)} failed: {failed[:1]}")
    return done


def _planned(config: Config) -> tuple[FlowContext, list[Work]]:
    """What `embed` would hand to its flow for an empty store."""
    source = Storage(config.input.uris[0])
    model = describe_model(fetch_model(config.encoder, None), config.encoder)
    splits, keep = plan_files(source, list_input(source, None, config.input.format), config.input, config.splits)
    context = FlowContext(
        config=config,
        run_id=new_run_id(),
        model=model,
        encoder_fp=model.fingerprint(config.input.text),
        shard_fp=config.shard_fingerprint({}),
        keep=keep,
        input_storage=source,
        store_storage=Storage(config.store.uri),
    )
    return context, [Work(split) for split in splits]


def _config(folder: Path, overrides: Sequence[str]) -> Config:
    return developer_config(folder, {"uri": str(folder / "corpus"), "id": "id", "text": "{text}"}, overrides)


def _connected(config: Config) -> AbstractContextManager[None]:
    from pipeline.flow.cluster import connected

    return connected(config.cluster)


def write_first(corpus: Path, folder: Path, num_documents: int, num_rows: int) -> None:
    """Copy the first documents of a corpus (columns id, text) into files of about 10,000, in row groups of `num_rows`.

    Raises:
        InputError: the corpus is not there, lacks a column, or holds fewer documents.
    """
    try:
        source = ds.dataset(sorted(str(path) for path in corpus.glob("*.parquet")), format="parquet")
        found = source.head(num_documents, columns=["id", "text"])
    except (OSError, ValueError, TypeError, pa.ArrowInvalid) as error:
        raise InputError(f"no Parquet files with columns id and text in {corpus}: {error}") from None
    if len(found) < num_documents:
        raise InputError(
            f"{corpus} holds {len(found)} documents, {num_documents} are needed; give a larger corpus or fewer"
        )
    folder.mkdir(parents=True)
    file_rows = num_rows * max(1, _SHARD_ROWS // num_rows)
    for index, begin in enumerate(range(0, num_documents, file_rows)):
        pq.write_table(found.slice(begin, file_rows), folder / f"{index:05}.parquet", row_group_size=num_rows)


def parse_sizes(text: str) -> list[int]:
    """The numbers of `--sizes`."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise click.BadParameter(f"sizes are numbers of documents, such as 100,1000: {text}")
    return sizes


if __name__ == "__main__":
    run(main)
