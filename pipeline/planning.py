"""What is done and what is left: the files of the corpus against the parent snapshot and the records.

A file that the parent snapshot lists whole is *carried*: it is not opened, nor are its records
read. Of the others, one is done when records tile it, under whatever cut, and so is a planned range
of the rest. What is recorded of a range that is left goes along, so that it is not embedded again.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Config
from pipeline.errors import InputError, NotSupportedError, UsageError
from pipeline.flow.rows import Work
from pipeline.snapshots.journal import load_records
from pipeline.snapshots.manifest import SPLITS_SCHEMA, Manifest, read_table
from pipeline.snapshots.reader import Snapshot
from pipeline.snapshots.records import Record, tile
from pipeline.splits import Cut, InputFile, Split, check_columns, columns_read, limit_splits, plan_files
from pipeline.uris import Storage


class KnownRecords:
    """The records of one encoder and shard fingerprint, by file; an attempt that the parent lists wins."""

    def __init__(self, records: Iterable[Record] = (), parent_attempts: Mapping[str, str] | None = None) -> None:
        self._parent_attempts = parent_attempts or {}
        by_file: defaultdict[str, list[Record]] = defaultdict(list)
        for record in records:
            by_file[record.file_id].append(record)
        # By offset, so that a split looks at its own records only: a large file has 10^4 of both.
        self._by_file = {file_id: sorted(found, key=_begin) for file_id, found in by_file.items()}

    def tiling(self, file: InputFile) -> list[Record] | None:
        """Records that cover the file as it is now, without gap or overlap; None if there are none such."""
        return tile(self._by_file.get(file.file_id, []), self._parent_attempts)

    def covering(self, split: Split) -> list[Record] | None:
        """Records that cover exactly the range of a planned split, under whatever cut; None if there are none such."""
        # The file's last range is covered only by records up to one that says so.
        return tile(
            self._within(split), self._parent_attempts, begin=split.begin, end=None if split.last else split.end
        )

    def cuts(self, split: Split) -> frozenset[Cut]:
        """What is recorded of the range of a planned split."""
        return frozenset((record.begin, record.end, record.last) for record in self._within(split))

    def _within(self, split: Split) -> list[Record]:
        found, end = self._by_file.get(split.file.file_id, []), split.end
        first = bisect_left(found, split.begin, key=_begin)
        if end is None:
            return found[first:]
        return [record for record in found[first : bisect_right(found, end, key=_begin)] if record.end <= end]


def _begin(record: Record) -> int:
    return record.begin


def carried_files(parent_splits: pa.Table, files: Sequence[InputFile]) -> frozenset[str]:
    """The file ids that the parent lists whole and that are still in the input as they were.

    A published file is tiled; one of which a `--limit` took only a part has no split that is last.
    """
    whole = set(parent_splits.filter(pc.field("last"))["file_id"].to_pylist())
    return frozenset(file.file_id for file in files if file.file_id in whole)


def left_to_do(planned: Iterable[Split], known: KnownRecords) -> list[Work]:
    """The work that is left of planned splits."""
    return [Work(split, known.cuts(split)) for split in planned if known.covering(split) is None]


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
    recorded: list[Record]
    """Tilings of the files that are done and not carried."""
    work: list[Work]

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

    def plan(self, files: list[InputFile]) -> Plan:
        """What is carried, what is recorded, what is left; a file that is carried is not opened.

        Raises:
            UsageError: the config does not go with the files, or with the snapshot that is there.
        """
        self._check_parent()
        config, source = self.config, self.source
        parent_keep = self._parent_keep()
        carried: frozenset[str] = frozenset()
        planned: list[Split] | None = None
        if self.limit is not None:
            planned = limit_splits(
                source, files, config.splits, self.limit, config.input.format, columns_read(config.input)
            )
            limited = {split.file.file_id for split in planned}
            files = [file for file in files if file.file_id in limited]
            keep = check_columns(source, files, config.input, parent_keep)
        elif parent_keep is not None:
            carried, keep = carried_files(self.parent_splits, files), parent_keep
        elif config.input.keep:
            # The types of kept columns are part of the shard fingerprint: without them no record can be looked up.
            planned, keep = plan_files(source, files, config.input, config.splits)
        else:
            keep = pa.schema([])
        shard_fp = config.shard_fingerprint(type_names(keep))
        open_files = without(files, carried)
        known = self._known(shard_fp) if open_files else KnownRecords()
        if self.limit is not None:
            work = left_to_do(planned or (), known)
            recorded = [record for split in planned or () for record in known.covering(split) or ()]
            return Plan(files, keep, shard_fp, carried, recorded, work)
        done = {file.file_id: tiling for file in open_files if (tiling := known.tiling(file))}
        untiled = without(open_files, done)
        if planned is None:
            # A corpus that was read before is not judged anew by what the first of its new files lacks.
            known_keep = keep if parent_keep is not None or done else None
            planned, found = plan_files(source, untiled, config.input, config.splits, known_keep)
            _refuse_other_types(keep, found)
        work = left_to_do((split for split in planned if split.file.file_id not in done), known)
        return Plan(files, keep, shard_fp, carried, [record for tiling in done.values() for record in tiling], work)

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

    def _known(self, shard_fp: str) -> KnownRecords:
        records = load_records(self.store, self.encoder_fp, shard_fp, self._victims())
        attempts = {} if self.parent is None else Snapshot(self.store, self.parent).attempts()
        return KnownRecords(records, attempts)

    def _victims(self) -> frozenset[str]:
        return frozenset((self.parent.victims if self.parent else None) or ())

    def is_current(self, plan: Plan, parent: Manifest) -> bool:
        """Whether publishing would give the parent again."""
        if self.limit is not None or parent.limit is not None:
            return self.limit == parent.limit and parent.shard_fp == plan.shard_fp and self._lists(parent, plan)
        listed = set(self.parent_splits["file_id"].to_pylist())
        return parent.shard_fp == plan.shard_fp and listed == plan.carried and not plan.recorded

    def _lists(self, parent: Manifest, plan: Plan) -> bool:
        return sorted(self.parent_splits["split_id"].to_pylist()) == sorted(record.split_id for record in plan.recorded)

    def carried_splits(self, plan: Plan) -> pa.Table:
        """The rows of `parent_splits` that the plan carries over."""
        splits = self.parent_splits
        return splits.filter(pc.is_in(splits["file_id"], pa.array(sorted(plan.carried), pa.string())))


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
