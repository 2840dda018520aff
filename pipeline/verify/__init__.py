"""verify: proves a snapshot again, from what lies on storage alone.

    books    the manifest and its two tables, against each other: fingerprints, tilings, equations
    files    of each split its shard, quarantine file and record, against the tables; all bytes are read
    index    what the manifest names as its index, against itself and the shards it is of
    again    for `--deep`: a sample of rows, encoded again from the input

That no id is there twice is found as at publish: pipeline.duplicates, in bounded memory. Nothing
ends at the first fault: each finding is a sentence that names its file. Storage that does not
answer is no finding (exit 75). Splits stream through a few threads, a few shards at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import orjson
import pyarrow as pa

from pipeline.duplicates import SEGMENTS_SCHEMA, find_duplicates, in_order
from pipeline.errors import StoreError
from pipeline.snapshots.manifest import (
    FORMAT_VERSION,
    SHARDS_SCHEMA,
    SPLITS_SCHEMA,
    Manifest,
    TableRef,
    manifest_name,
    manifest_numbers,
    read_manifest,
    read_table,
)
from pipeline.snapshots.records import parse_record_name, records_prefix
from pipeline.snapshots.store import open_store
from pipeline.uris import Storage
from pipeline.verify.again import Again, encode_again
from pipeline.verify.books import check_books
from pipeline.verify.files import Row, SplitChecker
from pipeline.verify.index import check_index

__all__ = ["Again", "Audit", "encode_again", "verify"]

# Shards in memory at once.
_THREADS = 4
# Rows of the splits table, or the files of one pack.
_SLICE = 256

_PLACE = ("file_uri", "begin", "end")


@dataclass
class Audit:
    """What came of it."""

    snapshot_id: int
    findings: list[str] = field(default_factory=list)
    """A sentence each; none: the snapshot is what its manifest says."""
    splits: int = 0
    rows: int = 0
    bytes: int = 0
    quarantined: int = 0
    other_files: int = 0
    """Files beside the snapshot's, under its fingerprints: of other snapshots, or orphans. No fault."""
    index_rows: int = 0
    """Rows in the lists of its index; 0: it has none."""
    seconds: float = 0.0


def verify(storage: Storage, number: int | None = None) -> Audit:
    """Hold a snapshot against what lies in the store.

    Args:
        storage: rooted at the store.
        number: of the snapshot; None: the current one.

    Raises:
        StoreError: there is no store or no such snapshot, or it is newer than this reader.
        EnvironmentFault: storage failed.
    """
    started = time.monotonic()
    open_store(storage, None, create=False)
    numbers = manifest_numbers(storage)
    if not numbers:
        raise StoreError(f"no snapshot yet in {storage.uri}; `vecmill embed CONFIG` publishes one")
    audit = Audit(numbers[-1] if number is None else number)
    if audit.snapshot_id not in numbers:
        raise StoreError(f"no snapshot {audit.snapshot_id} in {storage.uri}")
    _audit(storage, audit)
    audit.seconds = round(time.monotonic() - started, 1)
    return audit


def _audit(storage: Storage, audit: Audit) -> None:
    manifest = _manifest(storage, audit)
    if manifest is None:
        return
    shards = _table(storage, manifest.shards, SHARDS_SCHEMA, audit)
    splits = _table(storage, manifest.splits, SPLITS_SCHEMA, audit)
    if shards is None or splits is None:
        return
    audit.findings += check_books(manifest, shards, splits)
    sound = _check_files(storage, manifest, shards, splits, audit)
    audit.findings += _duplicates(storage, sound)
    index = check_index(storage, manifest)
    audit.findings += index.findings
    audit.index_rows = index.num_rows
    audit.bytes += index.num_bytes


def _manifest(storage: Storage, audit: Audit) -> Manifest | None:
    try:
        return read_manifest(storage, audit.snapshot_id)
    except StoreError as error:
        if _is_newer(storage.read(manifest_name(audit.snapshot_id))):
            raise
        audit.findings.append(str(error))
        return None


def _is_newer(data: bytes) -> bool:
    try:
        return bool(orjson.loads(data)["format_version"] > FORMAT_VERSION)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False


def _table(storage: Storage, ref: TableRef, schema: pa.Schema, audit: Audit) -> pa.Table | None:
    try:
        table = read_table(storage, ref, schema).cast(schema)
    except StoreError as error:
        audit.findings.append(str(error))
        return None
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        audit.findings.append(f"{ref.file} is no table of a snapshot: {' '.join(str(error).split())[:200]}")
        return None
    if table.num_rows != ref.num:
        audit.findings.append(f"{ref.file} has {table.num_rows} rows, its manifest says {ref.num}")
    return table


def _check_files(storage: Storage, manifest: Manifest, shards: pa.Table, splits: pa.Table, audit: Audit) -> pa.Table:
    """Check the files of each split; COMING_SCHEMA of those whose shard is sound."""
    checker = SplitChecker(storage, manifest, _record_names(storage, manifest))
    sound: list[pa.Table] = [SEGMENTS_SCHEMA.empty_table()]
    with ThreadPoolExecutor(_THREADS) as pool:
        for some, shard_rows in _joined(splits, shards):
            coming = []
            for files, checked in zip(some, pool.map(checker.check, some, shard_rows), strict=True):
                audit.findings += checked.findings
                audit.splits += 1
                audit.rows += checked.num_rows
                audit.bytes += checked.num_bytes
                audit.quarantined += sum(file["num_quarantined"] for file in files)
                if checked.is_sound:
                    coming += [checked.coming | _segment(file) for file in files]
            sound.append(pa.Table.from_pylist(coming, SEGMENTS_SCHEMA))
    folders = [f"{kind}/{manifest.encoder_fp}/{manifest.shard_fp}" for kind in ("embeddings", "quarantine")]
    listed = set(shards["file"].to_pylist()) | set(splits["quarantine_file"].drop_null().to_pylist())
    audit.other_files = sum(info.name not in listed for folder in folders for info in storage.scan(folder))
    return in_order(pa.concat_tables(sound))


def _segment(file: Row) -> Row:
    num_embedded = file["num_documents"] - file["num_quarantined"]
    return {name: file[name] for name in _PLACE} | {"num_embedded": num_embedded}


def _record_names(storage: Storage, manifest: Manifest) -> dict[tuple[str, str], str]:
    """(split id, attempt) -> name of its record."""
    found = {}
    for info in storage.scan(records_prefix(manifest.encoder_fp, manifest.shard_fp)):
        key = parse_record_name(info.name)
        if key is not None:
            found[key.split_id, key.attempt] = info.name
    return found


def _joined(splits: pa.Table, shards: pa.Table) -> Iterator[tuple[list[list[Row]], list[Row]]]:
    """Slices of the splits, each its files by URI, and the shard of each; splits without one are left to the books."""
    by_ordinal = shards.sort_by("ordinal")
    known = by_ordinal["ordinal"].to_numpy()
    splits = splits.sort_by([(name, "ascending") for name in ("ordinal", *_PLACE)])
    wanted = splits["ordinal"].to_numpy()
    ordinals, begins = np.unique(wanted, return_index=True)
    ends = [*begins[1:].tolist(), len(wanted)]
    some: list[list[Row]] = []
    matching: list[Row] = []
    for ordinal, begin, end in zip(ordinals.tolist(), begins.tolist(), ends, strict=True):
        place = int(np.searchsorted(known, ordinal))
        if place == len(known) or known[place] != ordinal:
            continue
        some.append(splits.slice(begin, end - begin).to_pylist())
        matching.append(by_ordinal.slice(place, 1).to_pylist()[0])
        if sum(map(len, some)) >= _SLICE:
            yield some, matching
            some, matching = [], []
    yield some, matching


def _duplicates(storage: Storage, sound: pa.Table) -> list[str]:
    files = dict(zip(sound["split_id"].to_pylist(), sound["file"].to_pylist(), strict=True))
    found = find_duplicates(storage, sound, has_vanished=True)
    doubled = [
        f"{files[split_id]}: {len(rows)} documents have an id that an earlier row has, the first in row {rows[0]}"
        for split_id, rows in found.rows.items()
    ]
    return doubled + [
        f"{files[split_id]}: a document is in quarantine as duplicate_id, and no earlier row has its id"
        for split_id in sorted(found.revived)
    ]
