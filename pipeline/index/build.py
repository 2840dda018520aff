"""The index of a snapshot: train once, assign every shard, merge every range of lists, measure, describe.

    prepare   choose, draw the sample, train, make the panel
    assign    a task for each group of shards
    merge     a task for each range of lists
    measure   a task for each part
    finish    the gate; then lists.parquet, deleted.parquet, panel.parquet and, last, index.json

How tasks are run is the caller's: one after the other here (`in_process`), across a cluster in pipeline.flow.
What they find is the same, for each is a function of its arguments and of storage.

An index is named by what it is made of: snapshot, codec, lists, queries. A run that was killed, or
refused by the gate, is gone on with under the same name, and what it finished is taken over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.sections import Index
from pipeline.errors import StoreError
from pipeline.index.assign import Intermediate, assign, finished, group_shards, read_near
from pipeline.index.description import FileRef, IndexDescription, Measured, PartRef, parse_description
from pipeline.index.files import file_ref, first_lost, put_once, table_bytes, undamaged
from pipeline.index.finished import Built, description_names, find
from pipeline.index.gate import choose_settings, tabulate
from pipeline.index.layout import DELETED_SCHEMA, DIRECTORY_SCHEMA, index_folder
from pipeline.index.merge import Merged, finished_merges, merge, plan_merges
from pipeline.index.panel import Truth, merge_nearest, panel_table
from pipeline.index.prepare import Aim, Plan, Queries, Run, in_process, prepare
from pipeline.index.quantizer import METRIC
from pipeline.index.recall import count_hits, gather, measure_part, score_floors, tied_rows
from pipeline.parallel import map_ahead
from pipeline.snapshots.manifest import utc_now
from pipeline.snapshots.reader import Snapshot

log = logging.getLogger(__name__)

_PARTS_KEY = b"vecmill.parts"

# Small files read at once: hides the round trips of object storage.
_READ_AHEAD = 8


def build(
    snapshot: Snapshot,
    index: Index,
    queries: Queries | None = None,
    *,
    lists_per_row: int = 1,
    run: Run = in_process,
) -> Built:
    """Build the index of a snapshot, or go on where an earlier run ended; publishing it is the caller's.

    Args:
        snapshot: what is indexed.
        index: the config's section.
        queries: what recall is measured with.
        lists_per_row: 2: every row also stands in its second nearest list.
        run: how tasks are run.

    Raises:
        InputError: the snapshot has no rows.
        ConfigError: more lists than rows.
        LimitError: recall is below the target; all work is kept.
        StoreError: a shard is missing or damaged.
        EnvironmentFault: storage failed.
    """
    target = index.recall_target
    aim, found = find(Aim.of(snapshot, index, queries, lists_per_row), target)
    if found is not None:
        return found
    with _told("prepare"):
        plan = prepare(aim, run)
    with _told("assign"):
        records = assign_all(plan, run)
    with _told("merge"):
        merged = merge_all(plan, records, run)
    with _told("measure"):
        truth = find_truth(plan, records)
        measured = measure(plan, merged, truth, run)
    with _told("finish"):
        return finish(plan, merged, truth, measured, target)


@contextmanager
def _told(stage: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    log.info("%s: %.1f s", stage, time.monotonic() - started)


def assign_all(plan: Plan, run: Run = in_process) -> list[Intermediate]:
    """An intermediate for each group of shards, in order; those that are there already are taken over."""
    groups = group_shards(plan.shards)
    done = finished(plan.storage, plan.work, groups)
    left = [index for index in range(len(groups)) if index not in done]
    made = run("assign", partial(assign, plan.storage, plan.work), [groups[index] for index in left])
    done |= dict(zip(left, made, strict=True))
    return [done[index] for index in range(len(groups))]


def merge_all(plan: Plan, records: Sequence[Intermediate], run: Run = in_process) -> list[Merged]:
    """A part for each range of lists, in order; those that are there already are taken over.

    Raises:
        StoreError: an intermediate of another build; or rows in and out differ.
    """
    ranges = plan_merges(plan.work, records)
    done = finished_merges(plan.storage, plan.work, records, ranges)
    left = [planned for planned in ranges if planned.part not in done]
    made = run("merge", partial(merge, plan.storage, plan.work, tuple(records)), left)
    done |= {planned.part: part for planned, part in zip(left, made, strict=True)}
    parts = [done[planned.part] for planned in ranges]
    num_in = sum(shard.num_rows for shard in plan.shards) * min(plan.work.lists_per_row, plan.work.quantizer.nlist)
    num_out = sum(part.ref.num_rows for part in parts)
    if num_in != num_out:
        raise StoreError(
            f"{num_in} rows of the snapshot, {num_out} in the parts of index {plan.work.index_id}: its work files were "
            f"changed; delete {plan.storage.full_uri(plan.work.folder)}, then run the same command again"
        )
    return parts


def find_truth(plan: Plan, records: Sequence[Intermediate]) -> Truth:
    """The panel's exact nearest over the whole corpus, from what each assign found."""
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        tables = map_ahead(pool, partial(read_near, plan.storage), records, _READ_AHEAD)
        return merge_nearest(plan.work.panel, tables)


def measure(plan: Plan, parts: Sequence[Merged], truth: Truth, run: Run = in_process) -> Measured:
    """The recall table of the parts as they lie on storage."""
    work, levels = plan.work, plan.levels
    own = np.concatenate([np.zeros(0, np.int64), *truth.left_out])
    of_query = np.repeat(np.arange(len(work.panel)), [len(rows) for rows in truth.left_out])
    by_address = np.argsort(own, kind="stable")
    left_out = (of_query[by_address], own[by_address])
    floors = score_floors(work, truth)
    tables = run("measure", partial(measure_part, plan.storage, work, levels, left_out, floors), parts)
    candidates = gather(tables, len(work.panel), len(levels))
    extra = tied_rows(plan.storage, plan.shards, work.panel.vectors, truth, candidates)
    hits = count_hits(candidates, levels, plan.depths, truth, extra)
    return tabulate(work.panel, hits, (levels, plan.depths), _read_ratios(plan, parts))


def _read_ratios(plan: Plan, parts: Sequence[Merged]) -> list[float]:
    """Codes that a query reads on average, per row of the snapshot, for each number of probes.

    Per row and not per code: that a row stands in two lists makes nothing that is read cheaper.
    """
    quantizer, levels = plan.work.quantizer, plan.levels
    num_rows = sum(shard.num_rows for shard in plan.shards)
    sizes = np.zeros(quantizer.nlist, np.int64)
    for part in parts:
        np.add.at(sizes, part.directory["list_id"].to_numpy(), part.directory["num_rows"].to_numpy())
    read = sizes[quantizer.nearest_lists(plan.work.panel.vectors, levels[-1])].cumsum(1).mean(0) / num_rows
    return [float(read[nprobe - 1]) for nprobe in levels]


def finish(plan: Plan, parts: Sequence[Merged], truth: Truth, measured: Measured, target: float) -> Built:
    """Put what readers open, index.json last, if recall meets the target.

    Raises:
        LimitError: it does not.
    """
    storage, work, quantizer = plan.storage, plan.work, plan.work.quantizer
    num_rows = sum(shard.num_rows for shard in plan.shards)
    settings = choose_settings(measured, plan.choice, num_rows, quantizer.codec.num_bytes, target)
    folder = index_folder(work.index_id)

    def put(name: str, table: pa.Table) -> tuple[FileRef, pa.Table]:
        data = put_once(storage, f"{folder}/{name}", table_bytes(table))
        with undamaged(storage.full_uri(f"{folder}/{name}")):  # it may be of a build that was killed
            return file_ref(f"{folder}/{name}", data), pq.read_table(pa.BufferReader(data))

    directory = pa.concat_tables([DIRECTORY_SCHEMA.empty_table(), *(part.directory for part in parts)])
    directory = directory.sort_by([("list_id", "ascending"), ("part", "ascending"), ("row_group", "ascending")])
    refs = [part.ref.model_dump(mode="json") for part in parts]
    # The directory and its parts belong together: who comes second to put it takes both.
    lists, found = put("lists.parquet", directory.replace_schema_metadata({_PARTS_KEY: orjson.dumps(refs)}))
    taken = tuple(PartRef.model_validate(ref) for ref in orjson.loads(found.schema.metadata[_PARTS_KEY]))
    sizes = {info.name: info.size for info in storage.scan(folder)}
    lost = first_lost(sizes, (file for ref in taken for file in (ref.codes, ref.addresses)))
    if lost:  # of a build that was killed, and lost since
        raise StoreError(
            f"missing or cut: {storage.full_uri(lost)}, which {lists.file} names; delete that, then run the same "
            "command again"
        )
    description = IndexDescription(
        index_id=work.index_id,
        snapshot_id=plan.snapshot.manifest.snapshot_id,
        shards=plan.snapshot.manifest.shards,
        vector_dtype=plan.shards[0].dtype,
        encoder_fp=quantizer.encoder_fp,
        quantizer_fp=quantizer.fingerprint,
        metric=METRIC,
        dim=quantizer.dim,
        nlist=quantizer.nlist,
        num_rows=num_rows,
        lists_per_row=work.lists_per_row,
        codec=quantizer.codec.name,
        num_code_bytes=quantizer.codec.num_bytes,
        parameters=quantizer.codec.parameters(),
        golden=quantizer.golden(),
        keep={field.name: str(field.type) for field in work.keep},
        centroids=plan.centroids,
        lists=lists,
        deleted=put("deleted.parquet", DELETED_SCHEMA.empty_table())[0],
        panel=put("panel.parquet", panel_table(work.panel, truth))[0],
        parts=taken,
        is_exact=plan.choice.is_exact,
        measured=measured,
        recall_target=target,
        search=settings,
        created_at=utc_now(),
        versions={name: version(name) for name in ("faiss-cpu", "numpy", "pyarrow")},
    )
    return _put_description(plan, description)


def _put_description(plan: Plan, description: IndexDescription) -> Built:
    for name in description_names(plan.work.index_id, description.recall_target):
        data = put_once(plan.storage, name, description.to_json())
        found = Built(file_ref(name, data), parse_description(data, plan.storage.full_uri(name)))
        if found.description.recall_target == description.recall_target:
            return found
    raise StoreError(f"{plan.storage.full_uri(name)} was changed; delete it, then run the same command again")
