"""gc: deletes what nobody needs, so that whatever runs beside it loses nothing.

    1  finish    the victims of the current manifest are deleted (again): a gc may have been killed
    2  find      what is garbage now (see pipeline.snapshots.garbage)
    3  commit    up to 10,000 names, the victims, as the next manifest; it changes no row
    4  delete    their records, then files, then indexes, then tables, then what runs left; on with 3

The lease keeps embeds away, to spare them the work; the victims keep them safe. A run that plans on
a manifest ignores its victims. One that planned before finds the number taken when it publishes, and
every manifest from its parent on is looked at: if one dooms a file of its, it ends (exit 4). So
nothing is deleted before every later publisher is sure to hear of it. If the number is lost to
another, all is found again on top of that.

What a kill leaves after each step:

    commit     victims that lie there: nobody takes them, and the next gc deletes them
    records    files that no record names: the same
    files      nothing, or more garbage of later rounds: found again

Victims of a manifest are deleted before the next list is committed, so that lists do not grow from
gc to gc; and in rounds, so that a million names make a hundred manifests of a megabyte.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Any

from pipeline.errors import StoreError, UsageError
from pipeline.snapshots.commit import try_number
from pipeline.snapshots.garbage import Garbage, find_garbage
from pipeline.snapshots.index_garbage import in_steps
from pipeline.snapshots.lease import Lease, Timing, new_run_id, read_runs
from pipeline.snapshots.manifest import Manifest, latest
from pipeline.uris import Storage

log = logging.getLogger(__name__)

MAX_VICTIMS = 10_000
"""Names in one manifest; whoever reads the snapshot reads them with it."""

_ORDER = ("records", "embeddings", "quarantine", "indexes", "snapshots", "runs")
_WRITTEN_BY_RUNS = ("records", "embeddings", "quarantine", "indexes", "snapshots")


def gc(
    storage: Storage, *, keep: int = 3, everything: bool = False, delete: bool = False, timing: Timing | None = None
) -> dict[str, Any]:
    """Delete, or only count, what no kept snapshot and no run needs.

    Args:
        storage: rooted at the store.
        keep: how many snapshots stay readable, the current one included.
        everything: also finished work that no snapshot ever listed, which an interrupted run would go on from.
        delete: whether to; without it nothing is written, not even a lease.
        timing: of the lease; for tests.

    Returns:
        snapshot_id (the current one, afterwards), deleted, counts by kind, bytes, unpublished, kept_snapshots.

    Raises:
        ConflictError: a run holds the store.
        StoreError: nothing was published yet, or what lies there cannot be judged.
        StorageFault: storage failed; the same command goes on.
    """
    if keep < 1:
        raise UsageError(f"--keep must be at least 1, the current snapshot: {keep}")
    if not delete:
        # As after a lease: a run that looks live may be writing what looks like garbage.
        ended = {run.run_id for run in read_runs(storage) if not run.is_live}
        current = _current(storage)
        found = find_garbage(storage, current, keep=keep, everything=everything, ended_runs=ended)
        return _figures(current, found, storage.leftovers(), deleted=False)
    run_id = new_run_id()
    before = {run.run_id for run in read_runs(storage)}
    with Lease(storage, run_id, timing=timing):
        # Whoever was there before has ended or is gone, else the lease would not be had.
        return collect(storage, run_id, keep=keep, everything=everything, ended_runs=before)


def collect(
    storage: Storage, run_id: str, *, keep: int, everything: bool, ended_runs: Collection[str]
) -> dict[str, Any]:
    """Find, commit and delete; safe whatever runs beside it (see above). Arguments and result as of `gc`."""
    leftovers = [name for name in storage.leftovers() if name.split("/")[0] in _WRITTEN_BY_RUNS]
    storage.delete(leftovers)
    deleted: list[str] = []
    while True:
        current = _current(storage)
        _delete(storage, current.victims or ())
        garbage = find_garbage(storage, current, keep=keep, everything=everything, ended_runs=ended_runs)
        lost = False
        for victims in _rounds(garbage.names):
            draft = current.successor("gc", run_id, victims=tuple(victims))
            winner = try_number(storage, draft)
            if winner is not None:
                log.info("snapshot %d (%s) came first; looking again", winner.snapshot_id, winner.kind)
                lost = True
                break
            current = draft
            _delete(storage, victims)
            deleted += victims
            log.info("deleted %d of %d objects", len(deleted), len(garbage.names))
        if not lost:
            return _figures(current, garbage, leftovers, deleted=True)


def finish_indexes(storage: Storage, current: Manifest) -> None:
    """Delete what a gc that may have been killed has doomed of indexes: nobody is to go on with it, or publish it."""
    _delete(storage, [name for name in current.victims or () if name.startswith("indexes/")])


def _current(storage: Storage) -> Manifest:
    manifest = latest(storage)
    if manifest is None:
        raise StoreError(f"no snapshot yet in {storage.uri}, so nothing is known to be garbage")
    return manifest


def _rounds(names: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(names)
    while victims := list(islice(remaining, MAX_VICTIMS)):
        yield victims


def _delete(storage: Storage, names: Iterable[str]) -> None:
    """Delete in the order that leaves no record without its files."""
    by_folder: dict[str, list[str]] = {folder: [] for folder in _ORDER}
    for name in names:
        by_folder[name.split("/")[0]].append(name)
    for folder in _ORDER:
        for some in in_steps(by_folder[folder]):
            storage.delete(some)


def _figures(current: Manifest, garbage: Garbage, leftovers: Collection[str], *, deleted: bool) -> dict[str, Any]:
    counts = Counter(name.split("/")[0] for name in garbage.names)
    return {
        "snapshot_id": current.snapshot_id,
        "deleted": deleted,
        "records": counts["records"],
        "shards": counts["embeddings"],
        "quarantine_files": counts["quarantine"],
        "tables": counts["snapshots"],
        "index_files": counts["indexes"],
        "run_files": counts["runs"],
        "temporary_files": len(leftovers),
        "bytes": garbage.num_bytes,
        "unpublished": garbage.num_unpublished,
        "kept_snapshots": garbage.kept_snapshots,
    }
