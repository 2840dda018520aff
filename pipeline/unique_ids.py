"""Ids of a coming snapshot judged, and what follows from it for the plan (see pipeline.duplicates).

Rows that lose are taken out of their shards, which makes records of a higher generation; splits in
whose quarantine a row has become the first of its id go through the flow once more. Either way a
file that was carried over whole is looked at again, record by record.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.duplicates import Duplicates, coming_splits, find_duplicates, without_rows
from pipeline.planning import Plan, Planner
from pipeline.snapshots.records import Record

log = logging.getLogger(__name__)

# A shard is up to a page of vectors of 1 GiB; a few at a time.
_THREADS = 4


@dataclass(frozen=True)
class Changes:
    """What a plan is to see otherwise than the parent snapshot and the records tell."""

    reopened: frozenset[str] = frozenset()
    """File ids that are not carried over."""
    redo: frozenset[str] = frozenset()
    """Attempts whose records do not count as done."""


def judge_ids(planner: Planner, plan: Plan) -> Duplicates:
    """Which rows of the coming snapshot have an id that an earlier one has; nothing where ids are derived.

    Raises:
        StoreError: a shard is missing or damaged.
        EnvironmentFault: storage failed.
    """
    if planner.config.input.id is None:
        return Duplicates()
    carried = planner.carried_splits(plan)
    coming = coming_splits(plan.recorded, carried, planner.parent_shards)
    return find_duplicates(planner.store, coming, has_vanished=carried.num_rows < planner.parent_splits.num_rows)


def apply_judgement(planner: Planner, plan: Plan, found: Duplicates, changes: Changes, run_id: str) -> Changes:
    """Take rows that lose out of shards that are recorded; what is left to do is for the next plan.

    Raises:
        StoreError: a file of a record is missing or damaged.
        EnvironmentFault: storage failed; what was written until then counts.
    """
    concerned = {*found.rows, *found.revived}
    records = {record.split_id: record for record in plan.recorded if record.split_id in concerned}
    carried = planner.carried_splits(plan)
    elsewhere = pc.is_in(carried["split_id"], value_set=pa.array(sorted(concerned), pa.string()))
    reopened = changes.reopened.union(carried.filter(elsewhere)["file_id"].to_pylist())
    redo = changes.redo.union(records[split_id].attempt for split_id in found.revived if split_id in records)
    losing = [records[split_id] for split_id in found.rows if split_id in records and split_id not in found.revived]
    if losing:
        log.warning("%d documents have the id of an earlier one; they go to quarantine", found.num)
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda record: _rewrite(planner, record, found, run_id), losing))
    return Changes(reopened, redo)


def _rewrite(planner: Planner, record: Record, found: Duplicates, run_id: str) -> Record:
    rows = found.rows[record.split_id]
    return without_rows(planner.store, record, rows, run_id=run_id, with_text=planner.config.store.quarantine_text)
