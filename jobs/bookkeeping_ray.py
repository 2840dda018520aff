"""`vecmill benchmark bookkeeping --ray`: what many splits cost the driver of a flow, in memory and time.

The flow as it is, but for an encoder that takes no time, over splits of one document of 1 kB each: reader,
tokenizer, writer, records and journal are real.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from jobs.bookkeeping_benchmark import in_own_process, peak_memory
from jobs.evaluate import developer_config
from jobs.flow_benchmark import ms_a_split
from pipeline.errors import VecmillError
from pipeline.flow.context import FlowContext
from pipeline.model import describe_model, fetch_model
from pipeline.planning import Planner
from pipeline.snapshots.journal import Journal
from pipeline.snapshots.lease import new_run_id
from pipeline.splits import list_input
from pipeline.uris import Storage

_LINES_A_FILE = 100
# What the planner takes for a line, so that a range of one row is one line.
_LINE_BYTES = 1_024


def measure_flow(num_splits: int, overrides: Sequence[str]) -> str:
    """Seconds and the driver's memory for so many splits of one document, in words."""
    with TemporaryDirectory(prefix="vecmill-benchmark-") as folder:
        write_lines(Path(folder) / "corpus", num_splits)
        return in_own_process(_measure, folder, num_splits, tuple(overrides))


def write_lines(folder: Path, num_lines: int) -> None:
    """JSONL files in which each document has as many bytes as one range of one row is planned with."""
    folder.mkdir()
    for begin in range(0, num_lines, _LINES_A_FILE):
        with (folder / f"{begin // _LINES_A_FILE:06}.jsonl").open("w") as file:
            for number in range(begin, min(num_lines, begin + _LINES_A_FILE)):
                line = f'{{"text": "document {number} {"word " * 60}'
                file.write(f'{line:x<{_LINE_BYTES - 3}}"}}\n')


def _measure(folder: str, num_splits: int, overrides: tuple[str, ...]) -> str:
    from pipeline.flow.cluster import alive_nodes, connected, plan_pool
    from pipeline.flow.peer import stub_flow

    corpus = {"uri": f"{folder}/corpus", "text": "{text}"}
    config = developer_config(Path(folder), corpus, (*overrides, "splits.max_rows=1"))
    source, store = Storage(config.input.uris[0]), Storage(config.store.uri)
    model = describe_model(fetch_model(config.encoder, None), config.encoder)
    planner = Planner(config, None, source, model.fingerprint(config.input.text), store, None)
    with connected(config.cluster), peak_memory() as peak:
        plan = planner.plan(list_input(source, None, None))
        planned_bytes = peak()
        context = FlowContext(
            config=config,
            run_id=new_run_id(),
            model=model,
            encoder_fp=planner.encoder_fp,
            shard_fp=plan.shard_fp,
            keep=plan.keep,
            input_storage=source,
            store_storage=store,
        )
        journal, done = Journal(store, context.run_id), []
        for written in stub_flow(context, plan.work, plan_pool(config.cluster, alive_nodes())):
            if written.record is None:
                raise VecmillError(f"a split came to nothing: {written.report.error}")
            journal.add(written.record)
            done.append(time.monotonic())
        journal.close()
        driven_bytes = peak()
    with peak_memory() as peak:
        started = time.monotonic()
        left = planner.plan(plan.files).work
        again_s = time.monotonic() - started
    if len(done) != num_splits or left:
        raise VecmillError(f"{num_splits} splits planned, {len(done)} done, {len(left)} left. This is a bug.")
    return (
        f"{num_splits:,} splits through Ray: {ms_a_split(done)} ms a split from the first done to the last\n"
        f"driver, bytes a split: planned {planned_bytes / num_splits:,.0f}, at the peak of the flow "
        f"{driven_bytes / num_splits:,.0f}\n"
        f"planned again, all recorded: {again_s:.1f} s, {peak() / num_splits:,.0f} bytes a split"
    )
