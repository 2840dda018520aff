"""What is done and what is left: the files of the corpus against the parent snapshot and the records.

A file that the parent snapshot lists whole is *carried*: it is not opened, nor are its records
read. Of the others, one is done when records tile it, under whatever cut, and so is a planned range
of the rest. What is recorded of a range that is left goes along, so that it is not embedded again.

A pack of small files is carried, or done, while all of its files are there as they were: it is their
shard. One that lost or changed a file is given up, and its other files are packed anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Config, SplitBounds
from pipeline.errors import InputError, NotSupportedError, UsageError
from pipeline.flow.rows import Work
from pipeline.known import KnownPack, KnownRecords, Mask
from pipeline.snapshots.draft import filtered
from pipeline.snapshots.journal import load_records
from pipeline.snapshots.manifest import SHARDS_SCHEMA, SPLITS_SCHEMA, Manifest, read_table
from pipeline.snapshots.reader import Snapshot
from pipeline.snapshots.table import Indices, RecordTable, file_keys, from_hex
from pipeline.splits import (
    InputFile,
    Split,
    check_columns,
    limit_splits,
    pack_of,
    pack_small_files,
    plan_files,
)
from pipeline.uris import Storage


def carried_files(
    parent_splits: pa.Table, files: Sequence[InputFile], reopened: Collection[str] = ()
) -> frozenset[str]:
    """The file ids that the parent lists whole and that are still in the input as they were, with all of their packs.

    A published file is tiled; one of which a `--limit` took only a part has no split that is last.

    Args:
        reopened: ids of files that are not carried.
    """
    whole = set(parent_splits["file_id"].filter(parent_splits["last"]).to_pylist())
    kept = frozenset(file.file_id for file in files if file.file_id in whole).difference(reopened)
    is_kept = pc.is_in(parent_splits["file_id"], value_set=pa.array(sorted(kept), pa.string()))
    broken = parent_splits["ordinal"].filter(pc.invert(is_kept)).combine_chunks()
    is_broken = pc.is_in(parent_splits["ordinal"], value_set=broken)
    return kept.difference(parent_splits["file_id"].filter(is_broken).to_pylist())


def packed(
    planned: Sequence[Split], packs: Sequence[KnownPack], known: KnownRecords, bounds: SplitBounds
) -> list[Split]:
    """Planned splits of open files with small files in packs.

    Packs whose record does not count are made again as they were, so that what takes their place is a
    record of the same split.

    Args:
        packs: all that `known` has of open files; the files of those that are done are not planned.
    """
    whole = {split.file.file_id: split for split in planned if split.begin == 0 and split.last is not False}
    again = [pack.file_ids for pack in packs if not pack.is_done and whole.keys() >= set(pack.file_ids)]
    taken = {file_id for file_ids in again for file_id in file_ids}
    rest = [split for split in planned if split.file.file_id not in taken]
    alone = {split.file.file_id for split in rest if known.is_known(split.file.file_id)}
    ends = [pack.last_uri for pack in packs]
    made = [pack_of([whole[file_id] for file_id in file_ids]) for file_ids in again]
    return made + pack_small_files(rest, bounds, ends=ends, alone=alone)


def left_to_do(planned: Iterable[Split], known: KnownRecords) -> list[Work]:
    """The work that is left of planned splits."""
    return [
        Work(split, known.cuts(split), known.next_generation(split))
        for split in planned
        if known.covering(split) is None
    ]


def without(files: Sequence[InputFile], carried: Collection[str]) -> list[InputFile]:
    """The files that are not carried."""
    return [file for file in files if file.file_id not in carried]


@dataclass(frozen=True)
class Plan:
    """What a run found: every file is carried, recorded, or has work left."""

    files: list[InputFile]
    keep: pa.Schema
    shard_fp: str
    carried: frozenset[str]
    """File ids that the parent snapshot lists whole."""
    recorded: RecordTable
    """Tilings of the files that are done and not carried; see also `Planner.carried_splits` and `carried_shards`."""
    work: list[Work]
    num_repacked: int = 0
    """Documents of files that did not change and are to be embedded again, as their pack did."""

    @property
    def file_ids(self) -> frozenset[str]:
        """The ids of all files that the snapshot will speak of."""
        return frozenset(file.file_id for file in self.files)


@dataclass(frozen=True)
class Planner:
    """Plans the runs that build on one parent snapshot; writes nothing."""

    config: Config
    limit: int | None
    source: Storage
    encoder_fp: str
    store: Storage
    parent: Manifest | None
    retry: str | None = None
    """The run that tries quarantined documents again: what others recorded of them does not count as done."""

    def plan(self, files: list[InputFile], *, reopened: Collection[str] = (), redo: Collection[str] = ()) -> Plan:
        """What is carried, what is recorded, what is left; a file that is carried is not opened.

        Args:
            files: of the corpus, as listed.
            reopened: ids of files that are not carried although the parent lists them: their records are looked at.
            redo: attempts whose records do not count as done (16 hex digits each), of files that are not carried.

        Raises:
            UsageError: the config does not go with the files, or with the snapshot that is there.
        """
        self._check_parent()
        config, source, reopened = self.config, self.source, self._reopened(reopened)
        parent_keep = self._parent_keep()
        carried: frozenset[str] = frozenset()
        planned: list[Split] | None = None
        if self.limit is not None:
            planned = limit_splits(source, files, config.splits, self.limit, config.input)
            limited = {split.file.file_id for split in planned}
            files = [file for file in files if file.file_id in limited]
            keep = check_columns(source, files, config.input, parent_keep)
        elif parent_keep is not None:
            carried, keep = carried_files(self.parent_splits, files, reopened), parent_keep
        elif config.input.keep:
            # The types of kept columns are part of the shard fingerprint: without them no record can be looked up.
            planned, keep = plan_files(source, files, config.input, config.splits)
        else:
            keep = pa.schema([])
        shard_fp = config.shard_fingerprint(type_names(keep))
        open_files = without(files, carried)
        known = self._known(shard_fp, carried, frozenset(redo)) if open_files else KnownRecords()
        if self.limit is not None:
            work = left_to_do(planned or (), known)
            covering = [rows for split in planned or () if (rows := known.covering(split)) is not None]
            return Plan(files, keep, shard_fp, carried, _take(known, covering), work)
        done = {file.file_id: rows for file in open_files if (rows := known.tiling(file.file_id)) is not None}
        packs = known.packs({file.file_id for file in open_files if file.file_id not in done})
        kept = [pack for pack in packs if pack.is_done]
        settled = done.keys() | {file_id for pack in kept for file_id in pack.file_ids}
        if planned is None:
            # A corpus that was read before is not judged anew by what the first of its new files lacks.
            known_keep = keep if parent_keep is not None or settled else None
            planned, found = plan_files(source, without(open_files, settled), config.input, config.splits, known_keep)
            _refuse_other_types(keep, found)
        left = [split for split in planned if split.file.file_id not in settled]
        work = left_to_do(packed(left, packs, known, config.splits), known)
        recorded = _take(known, [*done.values(), np.array([pack.row for pack in kept], np.int64)])
        again = self._num_repacked(work, reopened) if parent_keep is not None else 0
        return Plan(files, keep, shard_fp, carried, recorded, work, again)

    def _num_repacked(self, work: Sequence[Work], reopened: Collection[str]) -> int:
        again = {file.file_id for item in work for file in item.split.files}.difference(reopened)
        return int(pc.sum(self._splits_of(again)["num_documents"], min_count=0).as_py())

    def _check_parent(self) -> None:
        if self.parent is None:
            return
        if self.parent.encoder_fp != self.encoder_fp:
            raise NotSupportedError(
                f"another encoder for a store that has a snapshot: {self.parent.encoder_fp} "
                f"({self.parent.encoder.get('model')}) before, {self.encoder_fp} ({self.config.encoder.model}) now; "
                "give another store.uri, or the encoder and input.text as they were"
            )
        if self.limit is not None and self.parent.limit is None:
            raise UsageError(
                f"--limit {self.limit} would replace the full snapshot {self.parent.snapshot_id} of {self.store.uri} "
                "by a part of it; give another store.uri"
            )

    def _parent_keep(self) -> pa.Schema | None:
        """The kept columns of the parent, if its rows have the shape that this config gives; else None."""
        parent = self.parent
        if parent is None or tuple(parent.keep) != self.config.input.keep:
            return None
        if parent.shard_fp != self.config.shard_fingerprint(parent.keep):
            return None
        if not parent.keep:
            return pa.schema([])
        if parent.limit is not None:
            return None  # types found in a part of the corpus do not bind the whole
        schema = Snapshot(self.store, parent).schema
        return pa.schema([schema.field(name) for name in parent.keep])

    @cached_property
    def parent_splits(self) -> pa.Table:
        """The parent's splits table (SPLITS_SCHEMA), read once."""
        if self.parent is None:
            return SPLITS_SCHEMA.empty_table()
        return read_table(self.store, self.parent.splits, SPLITS_SCHEMA)

    @property
    def parent_shards(self) -> pa.Table:
        """The parent's shards table (SHARDS_SCHEMA); read at each use: it is large, and seldom used twice."""
        if self.parent is None:
            return SHARDS_SCHEMA.empty_table()
        return read_table(self.store, self.parent.shards, SHARDS_SCHEMA)

    def _reopened(self, reopened: Collection[str]) -> frozenset[str]:
        if self.retry is None:
            return frozenset(reopened)
        is_quarantined = pc.is_valid(self.parent_splits["quarantine_file"])
        return frozenset(reopened).union(self.parent_splits["file_id"].filter(is_quarantined).to_pylist())

    def _known(self, shard_fp: str, carried: Collection[str], redo: frozenset[str]) -> KnownRecords:
        """The records of the files that are not carried; of others no more than attempts that came to nothing."""
        shards = self.parent_shards
        listed, carried_attempts = file_keys(shards["file"]), file_keys(self._of(shards, carried)["file"])
        del shards
        records = load_records(self.store, self.encoder_fp, shard_fp, self._victims(), carried_attempts)
        return KnownRecords(records, listed, partial(self._is_done, redo=redo))

    def _is_done(self, records: RecordTable, redo: frozenset[str]) -> Mask:
        is_redone = pc.is_in(records.column("attempt"), value_set=from_hex(sorted(redo), 8))
        is_done: Mask = ~is_redone.to_numpy(zero_copy_only=False)
        if self.retry is not None:
            is_own = np.isin(records.numbers("run_id"), _codes(records, "run_id", lambda run_id: run_id == self.retry))
            is_fine = records.column("quarantine_checksum").is_null().to_numpy(zero_copy_only=False)
            is_settled = np.isin(records.numbers("reasons"), _codes(records, "reasons", _no_use_retrying))
            is_done &= is_own | is_fine | is_settled
        return is_done

    def _victims(self) -> frozenset[str]:
        return frozenset((self.parent.victims if self.parent else None) or ())

    def is_current(self, plan: Plan, parent: Manifest) -> bool:
        """Whether publishing would give the parent again."""
        if self.limit is not None or parent.limit is not None:
            return self.limit == parent.limit and parent.shard_fp == plan.shard_fp and self._lists(parent, plan)
        listed = set(pc.unique(self.parent_splits["file_id"]).to_pylist())
        return parent.shard_fp == plan.shard_fp and listed == plan.carried and not plan.recorded

    def _lists(self, parent: Manifest, plan: Plan) -> bool:
        listed, recorded = file_keys(self.parent_shards["file"]), plan.recorded.keys()
        return len(listed) == len(recorded) and bool(pc.all(pc.is_in(listed, value_set=recorded)).as_py() is not False)

    def carried_splits(self, plan: Plan) -> pa.Table:
        """The rows of `parent_splits` that the plan carries over."""
        return self._splits_of(plan.carried)

    def carried_shards(self, plan: Plan) -> pa.Table:
        """The rows of `parent_shards` that the plan carries over."""
        return self._of(self.parent_shards, plan.carried)

    def _splits_of(self, file_ids: Collection[str]) -> pa.Table:
        splits = self.parent_splits
        return filtered(splits, pc.is_in(splits["file_id"], value_set=pa.array(sorted(file_ids), pa.string())))

    def _of(self, shards: pa.Table, file_ids: Collection[str]) -> pa.Table:
        ordinals = self._splits_of(file_ids)["ordinal"].combine_chunks()
        return filtered(shards, pc.is_in(shards["ordinal"], value_set=ordinals))


def _take(known: KnownRecords, found: list[Indices]) -> RecordTable:
    return known.records.take(np.concatenate([np.empty(0, np.int64), *found]))


def _codes(records: RecordTable, name: str, is_wanted: Callable[[str], bool]) -> list[int]:
    return [code for code, value in enumerate(records.values(name)) if is_wanted(value)]


def _no_use_retrying(reasons: str) -> bool:
    """Ids are judged at each publish: encoding again changes nothing about them."""
    return set(orjson.loads(reasons)) == {"duplicate_id"}


def type_names(keep: pa.Schema) -> dict[str, str]:
    """Kept columns and their types as words, for fingerprints and manifests."""
    return {field.name: str(field.type) for field in keep}


def _refuse_other_types(keep: pa.Schema, found: pa.Schema) -> None:
    for field in keep:
        other = found.field(field.name).type
        if other != field.type:
            raise InputError(
                f"the kept column {field.name} is {field.type} in the current snapshot and {other} in new files; "
                "cast it in the input, or give another store.uri"
            )
