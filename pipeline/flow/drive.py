"""The driver's side of a flow: connect, fit the pool, and take in what each split came to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import ClusterError, EnvironmentFault, UsageError, VecmillError
from pipeline.flow.cluster import connected, plan_pool
from pipeline.flow.embed import run_flow
from pipeline.flow.rows import SplitReport, Work, Written
from pipeline.flow.stages import FlowContext
from pipeline.report import Progress
from pipeline.signals import interruptible
from pipeline.snapshots.journal import Journal

log = logging.getLogger(__name__)

# Splits that may fail before the run stops: one is bad luck, this many is storage that is gone.
_MAX_FAILED_SPLITS = 8


@dataclass
class Drive:
    """What a flow came to."""

    changed_uris: set[str] = field(default_factory=set)
    """Files that were rewritten while they were read: to be planned again."""
    failed: list[SplitReport] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


def drive_flow(
    context: FlowContext, work: Sequence[Work], tell: Callable[[Mapping[str, Any]], None], *, quiet: bool
) -> Drive:
    """Run the work on Ray to its end; each split that is done is in the store, and in the run's journal.

    Args:
        context: what the stages share.
        work: at least one planned split.
        tell: called with the progress after each split.
        quiet: keep Ray's own log off stderr.

    Raises:
        ClusterError: the pool does not fit into the cluster, or its nodes cannot share the store.
        EnvironmentFault: splits failed for storage or cluster; what is done is kept.
    """
    store = context.store_storage
    drive = Drive()
    journal = Journal(store, context.run_id)
    cluster = context.config.cluster
    with connected(cluster, quiet=quiet) as nodes, interruptible():
        if len(nodes) > 1 and store.is_local:
            raise ClusterError(
                f"a local store on a cluster of {len(nodes)} nodes: {store.uri}; give a store.uri on object storage"
            )
        pool = plan_pool(cluster, nodes)
        with Progress(len(work), sum(item.split.num_bytes for item in work), pool.max_size) as progress:
            try:
                for written in run_flow(context, work, pool):
                    _take(written, drive, journal, progress)
                    tell(progress.figures())
                    if len(drive.failed) >= _MAX_FAILED_SPLITS:
                        break
            finally:
                # Also on the way out of a signal: it spares the next run a request a record. No more than that, so
                # a fault here does not replace what ends the run.
                try:
                    journal.close()
                except EnvironmentFault as error:
                    log.warning("the journal of run %s could not be written: %s", context.run_id, error)
    if drive.failed:
        raise _failure(drive.failed)
    drive.figures = progress.figures() | {"encoders": pool.max_size}
    return drive


def _take(written: Written, drive: Drive, journal: Journal, progress: Progress) -> None:
    report, record = written.report, written.record
    if record is not None:
        journal.add(record)
        progress.add(
            num_bytes=written.split.num_bytes,
            documents=record.num_documents,
            tokens=record.num_tokens,
            padded_tokens=record.num_padded_tokens,
            encode_s=report.encode_s,
        )
    elif report.changed:
        drive.changed_uris.add(written.split.file.uri)
    elif report.status == "failed":
        log.warning("a split failed: %s", report.error)
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
