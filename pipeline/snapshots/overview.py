"""What `vecmill status` tells beyond a manifest: quarantine by reason, and what the last run is doing."""

from __future__ import annotations

from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.snapshots.lease import Process, RunState, read_run
from pipeline.snapshots.reader import Snapshot
from pipeline.uris import Storage

_THREADS = 32
# Runs that were refused the lease lie behind the one that holds it.
_RECENT_RUNS = 16


@dataclass(frozen=True)
class Quarantined:
    """What a reason keeps out of a snapshot."""

    documents: int
    files: int
    """Input files that have such documents, or are themselves unreadable."""


def quarantine_by_reason(snapshot: Snapshot) -> dict[str, Quarantined]:
    """The quarantine of a snapshot, most documents first; reads four columns of each quarantine file.

    Raises:
        StoreError: a quarantine file is missing or damaged.
    """
    listed = pc.unique(snapshot.splits["quarantine_file"].drop_null()).to_pylist()
    documents: Counter[str] = Counter()
    files: defaultdict[str, set[str]] = defaultdict(set)
    with ThreadPoolExecutor(_THREADS) as pool:
        for begin in range(0, len(listed), _THREADS * 4):  # in slices, so that few results wait
            names = listed[begin : begin + _THREADS * 4]
            for counts in pool.map(lambda name: _count(snapshot.storage, name), names):
                for (reason, uri), num in counts.items():
                    documents[reason] += num
                    files[reason].add(uri)
    return {reason: Quarantined(num, len(files[reason])) for reason, num in documents.most_common()}


def last_run(storage: Storage) -> tuple[RunState, str] | None:
    """The run that says it goes on, else the last there was, and its state.

    "killed" where it can be seen from here that its process has ended without a word; from another
    machine such a run looks as if it went on.
    """
    listed = (info.name.split("/") for info in storage.list("runs") if info.name.endswith("/run.json"))
    run_ids = sorted((parts[1] for parts in listed), reverse=True)[:_RECENT_RUNS]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = [(run, _state(run)) for run in pool.map(lambda run_id: read_run(storage, run_id), run_ids) if run]
    live = [item for item in found if item[1] in ("starting", "running")]
    return next(iter(live or found), None)


def _state(run: RunState) -> str:
    is_killed = run.is_live and Process.current().sees(run.process) and not run.process.is_alive()
    return "killed" if is_killed else run.state


def _count(storage: Storage, name: str) -> Counter[tuple[str, str]]:
    """Documents by reason and input file; a row without doc_id and row speaks of the file and is none."""
    try:
        with storage.open(name) as source:
            table = pq.ParquetFile(source).read(columns=["doc_id", "row", "reason", "input_file"])
    except FileNotFoundError:
        raise StoreError(
            f"missing from the store: {storage.full_uri(name)}, a quarantine file of the snapshot"
        ) from None
    except (pa.ArrowException, OSError) as error:  # storage's own faults are neither
        raise StoreError(f"damaged: {storage.full_uri(name)} is no quarantine file ({error})") from None
    is_document = pc.or_(pc.is_valid(table["doc_id"]), pc.is_valid(table["row"]))
    counts: Counter[tuple[str, str]] = Counter()
    named = zip(table["reason"].to_pylist(), table["input_file"].to_pylist(), is_document.to_pylist(), strict=True)
    for reason, uri, is_one in named:
        counts[reason, uri] += is_one
    return counts
