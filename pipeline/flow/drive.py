"""The driver's side of flows: connect, fit the pool, and take in what each split came to.

One session serves all flows of a run: the first does nearly everything; another follows where
splits were lost with their process, or files were rewritten under it.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import EnvironmentFault, Interrupted, UsageError, VecmillError
from pipeline.flow.cluster import PoolPlan, alive_nodes, check_shared, connected, node_answers, plan_pool
from pipeline.flow.context import FlowContext
from pipeline.flow.embed import run_flow
from pipeline.flow.ledger import work_id
from pipeline.flow.pulse import read_beat
from pipeline.flow.rows import SplitReport, Work, Written
from pipeline.flow.watch import STALL_S, Watch
from pipeline.logs import log_split
from pipeline.report import Progress
from pipeline.signals import interruptible
from pipeline.snapshots.journal import Journal
from pipeline.snapshots.records import Record

log = logging.getLogger(__name__)

# Splits that may fail before the run stops: one is bad luck, this many is storage that is gone.
_MAX_FAILED_SPLITS = 8


@dataclass
class Drive:
    """What a flow came to."""

    changed_uris: set[str] = field(default_factory=set)
    """Files that were rewritten while they were read: to be planned again."""
    stale_uris: set[str] = field(default_factory=set)
    """Those, and the others of their packs."""
    failed: list[SplitReport] = field(default_factory=list)
    num_recorded: int = 0


@contextmanager
def flow_session(context: FlowContext, *, quiet: bool) -> Iterator[FlowSession]:
    """A connection to Ray for the flows of one run; `quiet` keeps Ray's own log off stderr.

    Raises:
        EnvironmentFault: there is no cluster to be had.
    """
    with connected(context.config.cluster, quiet=quiet), interruptible(), Progress() as progress:
        yield FlowSession(progress, Journal(context.store_storage, context.run_id))


class FlowSession:
    """Runs flows; made by `flow_session`."""

    def __init__(self, progress: Progress, journal: Journal) -> None:
        self._progress = progress
        self._journal = journal
        self._pool: PoolPlan | None = None

    def run(
        self,
        context: FlowContext,
        work: Sequence[Work],
        judge: Callable[[Record], None],
        tell: Callable[[Mapping[str, Any]], None],
    ) -> Drive:
        """Run the work on Ray to its end; each split that is done is in the store, and in the run's journal.

        Args:
            context: what the stages share.
            work: at least one planned split.
            judge: called with each record until a file proves to be rewritten, since what is recorded of that will
                not count; what it raises ends the flow.
            tell: called with the progress after each split.

        Raises:
            ClusterError: the pool does not fit into the cluster, or its nodes cannot share the store.
            EnvironmentFault: splits failed for storage or cluster, or nothing moved; what is done is kept.
        """
        # An encoder that died and was restarted lives on, with its CPUs or GPU, until the handle to it is collected; it
        # is in a cycle of Ray Data's. Without this the next flow waits for minutes.
        gc.collect()
        self._pool = self._fit(context)
        drive, progress = Drive(), self._progress
        progress.expect(len(work), sum(item.split.num_bytes for item in work), self._pool.max_size)
        watchdog = Watch(lambda: (read_beat(context.run_id), progress.num_done), STALL_S)
        try:
            with watchdog:
                for written in run_flow(context, work, self._pool):
                    self._take(written, drive)
                    if written.record is not None and not drive.changed_uris:
                        judge(written.record)
                    tell(progress.figures())
                    if len(drive.failed) >= _MAX_FAILED_SPLITS:
                        break
        except Interrupted:
            if (verdict := watchdog.verdict) is None:
                raise
            raise verdict from None
        finally:
            self._close_journal()
        if drive.failed:
            raise _failure(drive.failed)
        return drive

    def _close_journal(self) -> None:
        # Also on the way out of a signal: it spares the next plan a request a record. No more than that, so a fault
        # here does not replace what ends the run.
        try:
            self._journal.close()
        except EnvironmentFault as error:
            log.warning("the journal of the run could not be written: %s", error)

    def answers(self, node_id: str) -> bool:
        """Whether a node of the cluster still runs tasks."""
        return node_answers(node_id)

    @property
    def figures(self) -> dict[str, Any]:
        """Counts and rates over all flows so far."""
        encoders = {"encoders": self._pool.max_size} if self._pool else {}
        return self._progress.figures() | encoders

    def _fit(self, context: FlowContext) -> PoolPlan:
        nodes = alive_nodes()
        check_shared(context.store_storage, nodes)
        if self._pool is not None and self._pool.num_gpus and not any(node.get("GPU") for node in nodes):
            # A smaller pool is fine, but GPUs are not to be replaced by the CPUs that are left.
            raise EnvironmentFault("all nodes with a GPU are gone; run the same command again when there are some")
        pool = plan_pool(context.config.cluster, nodes)
        if not pool.num_gpus:
            log.info("no GPU in the cluster: encoding on CPUs")
        return pool

    def _take(self, written: Written, drive: Drive) -> None:
        report, record, progress = written.report, written.record, self._progress
        if record is not None:
            drive.num_recorded += 1
            self._journal.add(record)
            progress.add(
                num_bytes=written.split.num_bytes,
                documents=record.num_documents,
                tokens=record.num_tokens,
                padded_tokens=record.num_padded_tokens,
                encode_s=report.encode_s,
                encoder_peak_bytes=report.encoder_peak_bytes,
            )
        elif report.changed:
            drive.changed_uris.add(report.changed_uri or written.split.file.uri)
            drive.stale_uris.update(file.uri for file in written.split.files)
        elif report.status == "failed":
            log_split(work_id(written.split))
            log.warning("a split failed: %s", report.error)
            log_split()
            drive.failed.append(report)
        else:
            progress.add(num_bytes=written.split.num_bytes)


def _failure(failed: Sequence[SplitReport]) -> VecmillError:
    """What a run ends with whose splits failed: the kind of the first, which is likely to be the cause of all."""
    first = failed[0]
    kind = {75: EnvironmentFault, 2: UsageError}.get(first.exit_code, VecmillError)
    return kind(
        f"{len(failed)} splits failed and nothing was published; the first: {first.error} "
        "(what is done is kept: the same command goes on)"
    )
