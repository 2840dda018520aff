"""What lies in a store and is needed by nobody: found by names, with hardly a request besides listings.

Kept are the newest N snapshots that differ (an index or a gc changes no row, and counts with its
parent), and with each its tables, embedding shards, quarantine files and records; and those of the
snapshot that its index serves, where that is an older one: answers come from its vectors. Of the rest:

    published     an attempt that only snapshots list that are not kept                garbage
    beaten        another attempt of the same cut is listed or chosen before it        garbage
    orphan        a file without a record: its writer was killed                       garbage
    broken        a record whose shard is gone                                         garbage
    unpublished   a finished attempt that no snapshot ever listed: what an             kept, for it has
                  interrupted or a refused run will go on from                         been paid for
    indexes       see pipeline.snapshots.index_garbage
    tables        of snapshots that are not kept, or that no manifest names            garbage
    run folders   of runs that have ended; a journal once none of its records is left  garbage

Unpublished work becomes garbage only when asked for (`everything`): names do not tell whether its
file was rewritten since, or its config given up for good. Manifests stay: they are the log that
gives each number to one writer, for ever, and are small.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from pipeline.errors import StoreError
from pipeline.snapshots.index_garbage import find_index_garbage
from pipeline.snapshots.journal import journalled_names
from pipeline.snapshots.manifest import (
    SHARDS_SCHEMA,
    IndexRef,
    Manifest,
    manifest_numbers,
    read_manifest,
    read_table,
)
from pipeline.snapshots.records import Record, choose, parse_record_name
from pipeline.uris import Storage

_FILE_NAME = re.compile(
    r"(?:embeddings|quarantine)/(?P<place>[0-9a-f]{16}/[0-9a-f]{16}/[0-9a-f]{2}/[0-9a-f]{32}-[0-9a-f]{16})\.parquet"
)
_RECORD_NAME = re.compile(r"records/(?P<folder>[0-9a-f]{16}/[0-9a-f]{16}/[0-9a-f]{2})/[^/]+")
_TABLE_NAME = re.compile(r"snapshots/(?P<number>[0-9]{20})-[^/]+\.(?:shards|splits)\.parquet")


@dataclass
class Garbage:
    """What may be deleted, and what was seen beside it."""

    attempts: list[str] = field(default_factory=list)
    """Records and files; of each attempt the record comes first."""
    indexes: list[str] = field(default_factory=list)
    """What lies in `indexes/`."""
    tables: list[str] = field(default_factory=list)
    """To be deleted after the attempts: they tell which of those were published."""
    runs: list[str] = field(default_factory=list)
    """What lies in the folders of runs that have ended."""
    num_bytes: int = 0
    """Of all of those."""
    num_unpublished: int = 0
    """Finished attempts that are kept although no snapshot lists them."""
    kept_snapshots: list[int] = field(default_factory=list)
    """Numbers of the manifests whose files are kept, highest first."""

    @property
    def names(self) -> list[str]:
        """All that may be deleted, in the order in which it has to be."""
        return [*self.attempts, *self.indexes, *self.tables, *self.runs]


def find_garbage(
    storage: Storage, current: Manifest, *, keep: int, everything: bool, ended_runs: Collection[str]
) -> Garbage:
    """What nobody needs; nothing is written.

    Args:
        storage: rooted at the store.
        current: the manifest of the highest number.
        keep: how many snapshots that differ are kept, the current one included.
        everything: whether finished work that was never published is garbage too.
        ended_runs: ids of runs that have ended.

    Raises:
        StoreError: a manifest, a table or a record is damaged, or a table of a kept snapshot is missing.
    """
    # Files before records: writers put them in that order, so that no file whose record comes late is taken for
    # an orphan, unless the run that writes it is not known of.
    sizes = {info.name: info.size for folder in ("embeddings", "quarantine") for info in storage.scan(folder)}
    files: dict[str, list[str]] = {}
    for name in sorted(sizes):
        if match := _FILE_NAME.fullmatch(name):
            files.setdefault(match["place"], []).append(name)
    records, places = {}, {}
    for info in storage.scan("records"):
        if place := _place(info.name):
            records[info.name], places[info.name] = info.size, place
    tables = {info.name: info.size for info in storage.scan("snapshots") if _TABLE_NAME.fullmatch(info.name)}
    indexes = {info.name: info.size for info in storage.scan("indexes")}
    history = _read_history(storage, current, keep, tables)
    judge = _Judge(storage, history, frozenset(name for names in files.values() for name in names), places, everything)
    garbage = Garbage(tables=history.garbage_tables, kept_snapshots=history.kept_snapshots)
    doomed = judge.doomed()
    garbage.num_unpublished = judge.num_unpublished
    recorded = frozenset(places.values())
    doomed |= {place: [] for place in files if place not in recorded and place not in history.kept}
    for place in sorted(doomed):
        garbage.attempts += [*doomed[place], *files.get(place, ())]
    runs = {info.name: info.size for info in storage.scan("runs") if info.name.split("/")[1] in ended_runs}
    garbage.indexes = find_index_garbage(storage, indexes, history.indexes, history.kept_rows, everything=everything)
    left = records.keys() - frozenset(garbage.attempts)
    for name in sorted(runs):
        if not name.endswith(".parquet") or left.isdisjoint(_journalled(storage, name)):
            garbage.runs.append(name)
    all_sizes = {**sizes, **records, **indexes, **tables, **runs}
    garbage.num_bytes = sum(all_sizes[name] for name in garbage.names)
    return garbage


def _journalled(storage: Storage, name: str) -> Iterable[str]:
    try:
        return list(journalled_names(storage, name))
    except (StoreError, FileNotFoundError):
        return ()  # no journal: the records themselves are what counts


def _place(record_name: str) -> str:
    """What names an attempt in all of its names: both fingerprints, split and attempt; "" for another object."""
    match, key = _RECORD_NAME.fullmatch(record_name), parse_record_name(record_name)
    return f"{match['folder']}/{key.split_id}-{key.attempt}" if match and key else ""


@dataclass(frozen=True)
class _History:
    kept_snapshots: list[int]
    kept: frozenset[str]
    """Places of the attempts that kept snapshots list."""
    published: frozenset[str]
    """Of those that only other snapshots list."""
    garbage_tables: list[str]
    indexes: list[IndexRef]
    """That kept snapshots name."""
    kept_rows: frozenset[str]
    """The `rows_fp` of kept snapshots."""


def _read_history(storage: Storage, current: Manifest, keep: int, tables: Mapping[str, int]) -> _History:
    """What the log of manifests tells, read from the highest number down, as far as there are tables."""
    kept_manifests: list[Manifest] = []
    wanted_tables: set[str] = set()  # of the snapshots that are kept for themselves
    indexes: list[IndexRef] = []  # of those
    served: set[int] = set()  # the snapshots that these are of
    kept_tables: set[str] = set()
    kept: set[str] = set()
    published: set[str] = set()
    garbage_tables, unseen = set(tables), set(tables)
    for number in sorted(manifest_numbers(storage), reverse=True):
        # A manifest's number is never below that of its tables; it is above where others came first.
        has_more = any(int(_number(name)) <= number for name in unseen) or min(served, default=number + 1) <= number
        if len(wanted_tables) >= keep and not has_more:
            break
        manifest = current if number == current.snapshot_id else read_manifest(storage, number)
        own = {manifest.shards.file, manifest.splits.file}
        is_wanted = manifest.shards.file in wanted_tables
        if not is_wanted and len(wanted_tables) < keep:
            # Of one that was dropped before, the manifest alone is left. The current one must be whole.
            is_wanted = number == current.snapshot_id or own <= tables.keys()
        is_kept = is_wanted or manifest.shards.file in kept_tables or (number in served and own <= tables.keys())
        into = kept if is_kept else published
        if manifest.shards.file not in kept_tables and (is_kept or manifest.shards.file in unseen):
            shards = read_table(storage, manifest.shards, SHARDS_SCHEMA)
            into.update(_FILE_NAME.sub(r"\g<place>", name) for name in shards["file"].to_pylist())
        if is_kept:
            kept_tables.add(manifest.shards.file)
            garbage_tables -= own
        if is_wanted:
            is_newest = manifest.shards.file not in wanted_tables
            wanted_tables.add(manifest.shards.file)
            kept_manifests.append(manifest)
            # One of older rows was carried along only until these rows had their own.
            if manifest.index and (is_newest or manifest.index.file.startswith(f"indexes/{manifest.rows_fp}-")):
                indexes.append(manifest.index)
                served.add(manifest.index.snapshot_id)
        unseen -= own
    return _History(
        [manifest.snapshot_id for manifest in kept_manifests],
        frozenset(kept),
        frozenset(published - kept),
        sorted(garbage_tables),
        indexes,
        frozenset(manifest.rows_fp for manifest in kept_manifests),
    )


def _number(table_name: str) -> str:
    match = _TABLE_NAME.fullmatch(table_name)
    return match["number"] if match else "0"


@dataclass
class _Judge:
    """Tells which records are garbage."""

    storage: Storage
    history: _History
    files: frozenset[str]
    places: Mapping[str, str]
    """Of all records, by name."""
    everything: bool
    num_unpublished: int = 0

    def doomed(self) -> dict[str, list[str]]:
        """Place -> record names of the attempts that are garbage."""
        doomed: dict[str, list[str]] = {}
        for _, group in groupby(sorted(self.places), key=lambda name: self.places[name].rpartition("-")[0]):
            rivals = list(group)
            loose = [name for name in rivals if self.places[name] not in self.history.kept]
            beaten = self._beaten(rivals) if len(rivals) > 1 and loose else frozenset()
            for name in loose:
                place = self.places[name]
                if place in self.history.published or name in beaten or self.everything or self._is_broken(place):
                    doomed.setdefault(place, []).append(name)
                else:
                    self.num_unpublished += 1
        return doomed

    def _is_broken(self, place: str) -> bool:
        name = f"embeddings/{place}.parquet"
        return name not in self.files and not self.storage.exists(name)  # it may have come since it was listed

    def _beaten(self, names: Sequence[str]) -> frozenset[str]:
        """Of the records of one split, those that a planner would not choose beside the others.

        They are read: one range may be recorded as its file's last and as not, and is then two cuts.
        """
        cuts: dict[tuple[int, int, bool], dict[str, Record]] = {}
        for name in names:
            try:
                record = Record.from_json(self.storage.read(name), self.storage.full_uri(name))
            except FileNotFoundError:
                continue
            cuts.setdefault((record.begin, record.end, record.last), {})[name] = record
        beaten: set[str] = set()
        for found in cuts.values():
            listed = [record.attempt for name, record in found.items() if self._is_listed(name)]
            chosen = choose(found.values(), listed[0] if listed else None)
            beaten.update(name for name, record in found.items() if record is not chosen)
        return frozenset(beaten)

    def _is_listed(self, name: str) -> bool:
        return self.places[name] in self.history.kept or self.places[name] in self.history.published
