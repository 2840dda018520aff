"""`vecmill benchmark split` and `feed`: the embed flow around a stub for its encoder.

split: what a split costs beyond its forward; the stub takes no time.
feed: whether accelerators wait; the stub sleeps as long as one of so many tokens a second would be at work.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import numpy.typing as npt

from jobs.benchmark_corpus import SHARD_ROWS, connected_to, corpus_config, parse_numbers, planned, write_first
from jobs.machine import describe_machine, show_figures
from pipeline.config import Config
from pipeline.errors import VecmillError
from pipeline.flow.context import FlowContext
from pipeline.flow.rows import SplitReport, Work, Written

if TYPE_CHECKING:
    from pipeline.flow.stages import EncodeStage

# With fewer splits, the first and the last of them would be too large a part of the whole.
_MIN_SPLITS = 12

# Of a slow accelerator so many splits are enough.
_FEW_SPLITS = 6
_NUM_GPUS = 2


@click.command(name="split")
@click.argument("corpus", type=click.Path(path_type=Path, file_okay=False))
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option(
    "--documents", default=50_000, show_default=True, help=f"At least; never fewer than {_MIN_SPLITS} splits."
)
@click.option("--sizes", default="100,1000,10000", show_default=True, help="Documents a split.")
@click.option("--rounds", default=3, show_default=True, help="Of each size.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def split(corpus: Path, overrides: tuple[str, ...], documents: int, sizes: str, rounds: int, as_json: bool) -> None:
    """What a split costs beyond its forward, in ms.

    The embed flow as it is, read, tokenize, encode, write and record, but with an encoder that takes no time.
    All actors are up before the first split is read; from the first split that is done to the last, seconds
    over splits are what one more split costs, and what starting costs is not in it. On a machine with few
    cores this is an upper bound: beside a GPU most of it happens while the forward runs. Files have a row
    group a split. Planning and publishing are not in it.
    """
    asked, machine = parse_numbers(sizes), describe_machine()
    costs: dict[int, SplitCost] = {}
    with (
        tempfile.TemporaryDirectory(prefix="vecmill-benchmark-") as temporary,
        connected_to(corpus_config(Path(temporary), overrides)),
    ):
        for size in asked:
            folder = Path(temporary) / str(size)
            num_splits = max(_MIN_SPLITS, documents // size)
            write_first(corpus, folder / "corpus", num_splits * size, size)
            costs[size] = _split_cost(corpus_config(folder, (*overrides, f"splits.max_rows={size}")), rounds)
            click.echo(f"{size} documents a split, {num_splits} splits: {costs[size].rounds_ms} ms", err=True)
    rows = {str(size): asdict(cost) for size, cost in costs.items()}
    show_figures(machine, {"rows": rows}, describe_costs(costs), as_json=as_json)


@dataclass(frozen=True, slots=True)
class SplitCost:
    """Of one more split, in ms; `read_ms` and `write_ms` are the stages' own, which overlap."""

    rounds_ms: list[float]
    read_ms: float
    write_ms: float


def _split_cost(config: Config, rounds: int) -> SplitCost:
    context, work = planned(config)
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
    with connected_to(context.config):
        done = _run_stubs(context, work, None)
    return [(when, written.report) for when, written in done]


def _run_stubs(
    context: FlowContext, work: Sequence[Work], stage: type[EncodeStage] | None
) -> list[tuple[float, Written]]:
    """When each split was done, and what came of it; all are, or it raises."""
    from pipeline.flow.cluster import alive_nodes, plan_pool
    from pipeline.flow.peer import time_stub_flow

    done = time_stub_flow(context, work, plan_pool(context.config.cluster, alive_nodes()), stage)
    failed = [written.report.error for _, written in done if written.report.status != "ok"]
    if failed or len(done) != len(work):
        raise VecmillError(f"{len(work)} splits went in, {len(done)} came out, {len(failed)} failed: {failed[:1]}")
    return done


@click.command(name="feed")
@click.argument("corpus", type=click.Path(path_type=Path, file_okay=False))
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option("--documents", default=140_000, show_default=True, help="The first so many of CORPUS.")
@click.option("--copies", default=4, show_default=True, help="Of these documents: more splits than are read at once.")
@click.option(
    "--rates", default="10000,30000,100000,300000,1000000", show_default=True, help="Tokens a second of each GPU."
)
@click.option("--seconds", default=60, show_default=True, help="Of a slow rate so many, but a few splits at least.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def feed(
    corpus: Path,
    overrides: tuple[str, ...],
    documents: int,
    copies: int,
    rates: str,
    seconds: int,
    as_json: bool,
) -> None:
    """Whether accelerators wait for their input: the flow with two stubs on two logical GPUs.

    There is no GPU in this. A stub sleeps tokens / rate for each split and uses no CPU, as a process does whose
    accelerator is at work. Idle is what a stub waits between the splits that it gets, from its first to its last;
    starting and the end, when there is nothing left, are not in it. How fast readers are is measured by stubs that
    take no time: above that rate accelerators have to wait.
    """
    asked, machine = parse_numbers(rates), describe_machine()
    from pipeline.flow.peer import logical_gpus

    with tempfile.TemporaryDirectory(prefix="vecmill-benchmark-") as temporary, logical_gpus(_NUM_GPUS):
        folder = Path(temporary)
        for number in range(copies):
            write_first(corpus, folder / "corpus" / str(number), documents, SHARD_ROWS)
        context, work = planned(corpus_config(folder, overrides))
        _fed(context, work[:_FEW_SPLITS], float("inf"), folder / "first")  # processes start and import once
        readers = _fed(context, work, float("inf"), folder / "readers")
        fed = {}
        for rate in sorted(asked):
            num_splits = round(seconds * rate * _NUM_GPUS / readers.num_tokens * len(work))
            some = work[: max(_FEW_SPLITS, min(len(work), num_splits))]
            fed[rate] = _fed(context, some, rate, folder / str(rate))
            click.echo(f"{rate} tokens/s a GPU: idle {fed[rate].idle_ratio:.1%}", err=True)
    rows = {"readers": asdict(readers)} | {str(rate): asdict(found) for rate, found in fed.items()}
    show_figures(machine, {"rows": rows}, describe_feeding(readers, fed), as_json=as_json)


@dataclass(frozen=True, slots=True)
class Feeding:
    """How stubs were kept at work."""

    num_splits: int
    num_tokens: int
    tokens_a_second: float
    """Over the second and third quarter of the splits, in the order in which they were done."""
    idle_ratio: float
    """Waits between splits, of the time from a stub's first to its last."""
    wait_ms: float
    """Between two splits, median."""


def _fed(context: FlowContext, work: Sequence[Work], rate: float, times: Path) -> Feeding:
    from pipeline.flow.peer import read_times, stub_encode_stage

    times.mkdir()
    done = _run_stubs(context, work, stub_encode_stage(rate, times))
    tokens = [written.record.num_tokens for _, written in done if written.record is not None]
    begin, end = len(done) // 4, 3 * len(done) // 4
    pace = sum(tokens[begin + 1 : end + 1]) / (done[end][0] - done[begin][0])
    return Feeding(len(work), sum(tokens), pace, *waits_of(read_times(times)))


def waits_of(times: Sequence[npt.NDArray[np.float64]]) -> tuple[float, float]:
    """Idle share and median wait in ms, of when each process was at work: [begin, end) of each split, (N, 2)."""
    waits = [stub[1:, 0] - stub[:-1, 1] for stub in times]
    spans = sum(float(stub[-1, 1] - stub[0, 0]) for stub in times)
    return sum(float(wait.sum()) for wait in waits) / spans, float(np.median(np.concatenate(waits))) * 1e3


def describe_feeding(readers: Feeding, fed: Mapping[int, Feeding]) -> str:
    """The rates as a table."""
    lines = [
        f"{_NUM_GPUS} logical GPUs, stubs; readers alone: {readers.tokens_a_second:,.0f} tokens/s",
        f"{'tokens/s a GPU':>14} {'of readers':>11} {'splits':>7} {'tokens/s':>10} {'idle':>7} {'wait ms':>8}",
    ]
    for rate, found in fed.items():
        lines.append(
            f"{rate:>14,} {rate * _NUM_GPUS / readers.tokens_a_second:>11.0%} {found.num_splits:>7} "
            f"{found.tokens_a_second:>10,.0f} {found.idle_ratio:>7.1%} {found.wait_ms:>8.1f}"
        )
    return "\n".join(lines)
