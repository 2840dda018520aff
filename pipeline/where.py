"""where: all that is known of one document, from what lies on storage.

Nothing maps ids to rows, so the doc_id column is what is searched: of all shards that any snapshot
still there lists, each file once, in threads. The statistics of a footer spare the column where
ids are sorted; a derived id, `<file>#<row>`, names its file and narrows the search to the splits
that hold the row.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StoreError, UsageError
from pipeline.snapshots.manifest import SPLITS_SCHEMA, manifest_numbers, read_manifest
from pipeline.snapshots.reader import Snapshot
from pipeline.uris import Storage

_THREADS = 16
_SLICE = 1000

_FACTS = ["doc_id", "chunk_index", "num_chunks", "char_begin", "char_end", "num_tokens", "truncated", "content_hash"]

Row = dict[str, Any]


@dataclass
class Whereabouts:
    """What is known of a document."""

    doc_id: str
    snapshots: list[Row] = field(default_factory=list)
    """snapshot_id, kind, created_at, state (embedded or quarantined), of each that holds it, newest first."""
    places: list[Row] = field(default_factory=list)
    """Its places in the newest of those: one, unless ids are there twice, or a quarantined row shares the id."""


def find_document(storage: Storage, doc_id: str) -> Whereabouts:
    """Look a document up in all snapshots of a store.

    Raises:
        UsageError: no snapshot holds it.
        StoreError: a file of a snapshot is missing or damaged.
    """
    found, search, looked_in = Whereabouts(doc_id), _Search(storage, doc_id), []
    for snapshot in _readable(storage):
        manifest, held = snapshot.manifest, search.places_in(snapshot)
        looked_in.append(str(manifest.snapshot_id))
        if held:
            states = {place["state"] for place in held}
            found.snapshots.append(
                {
                    "snapshot_id": manifest.snapshot_id,
                    "kind": manifest.kind,
                    "created_at": manifest.created_at,
                    "state": "embedded" if "embedded" in states else "quarantined",
                }
            )
            found.places = found.places or held
    if not found.snapshots:
        raise UsageError(
            f"not found: {doc_id!r} is in no shard and no quarantine file of snapshots {', '.join(looked_in)}"
        )
    return found


def _readable(storage: Storage) -> Iterator[Snapshot]:
    """All snapshots whose tables are still there, newest first."""
    there = {info.name for info in storage.scan("snapshots")}
    for number in reversed(manifest_numbers(storage)):
        manifest = read_manifest(storage, number)
        if manifest.shards.file in there and manifest.splits.file in there:
            yield Snapshot(storage, manifest)


def _derived(doc_id: str) -> tuple[str, int] | None:
    """File and row that a derived id names."""
    uri, _, row = doc_id.rpartition("#")
    return (uri, int(row)) if uri and row.isascii() and row.isdigit() and len(row) < 19 else None


def _candidates(snapshot: Snapshot, doc_id: str) -> pa.Table:
    """The splits that may hold the document, each with the name and the rows of its shard; of packs all files."""
    splits = snapshot.splits.cast(SPLITS_SCHEMA)
    # Where documents have ids of their own, one may look derived and lie anywhere.
    is_derived = snapshot.manifest.config["input"]["id"] is None
    derived = _derived(doc_id) if is_derived else None
    if derived is not None:
        uri, row = derived
        held = splits.filter((pc.field("file_uri") == uri) & (pc.field("begin") <= row) & (pc.field("end") > row))
        splits = splits.filter(pc.is_in(splits["ordinal"], value_set=held["ordinal"].combine_chunks()))
    shards = snapshot.shards.select(["ordinal", "file", "num_rows"])
    joined = splits.join(shards, "ordinal", join_type="inner")
    joined = joined.append_column("is_derived", pa.repeat(is_derived, joined.num_rows))
    return joined.sort_by([(name, "ascending") for name in ("ordinal", "file_uri", "begin", "end")])


def _by_shard(candidates: pa.Table) -> Iterator[list[list[Row]]]:
    """Slices of the candidates, those of one shard together."""
    ordinals = candidates["ordinal"].to_numpy()
    edges = np.flatnonzero(np.concatenate([[True], ordinals[1:] != ordinals[:-1]])) if len(ordinals) else ordinals
    some: list[list[Row]] = []
    for begin, end in pairwise([*edges.tolist(), len(ordinals)]):
        some.append(candidates.slice(begin, end - begin).to_pylist())
        if sum(map(len, some)) >= _SLICE:
            yield some
            some = []
    yield some


class _Search:
    """Searches snapshots one after another; a file that several list is read once, and has one split in all."""

    def __init__(self, storage: Storage, doc_id: str) -> None:
        self._storage, self._doc_id = storage, doc_id
        self._searched: set[str] = set()
        self._found: dict[str, list[Row]] = {}  # by shard; of few
        self._by_table: dict[str, list[Row]] = {}

    def places_in(self, snapshot: Snapshot) -> list[Row]:
        """The places of the document in a snapshot."""
        table = snapshot.manifest.shards.file  # an index or a gc has its parent's
        if table not in self._by_table:
            self._by_table[table] = self._look_up(_candidates(snapshot, self._doc_id))
        return self._by_table[table]

    def _look_up(self, candidates: pa.Table) -> list[Row]:
        held: list[Row] = []
        with ThreadPoolExecutor(_THREADS) as pool:
            for shards in _by_shard(candidates):
                new = [files for files in shards if files[0]["file"] not in self._searched]
                for files, places in zip(new, pool.map(self._places, new), strict=True):
                    self._searched.add(files[0]["file"])
                    if places:
                        self._found[files[0]["file"]] = places
                held += (place for files in shards for place in self._found.get(files[0]["file"], ()))
        return sorted(held, key=lambda place: (place["input_file"], place["begin"], place["end"]))

    def _places(self, files: list[Row]) -> list[Row]:
        return _places(self._storage, files, self._doc_id)


def _places(storage: Storage, files: list[Row], doc_id: str) -> list[Row]:
    """Where one split holds the document: its shard, and its quarantine file; `files` are its input files."""
    quarantine, split = None, files[0]
    if split["quarantine_file"] is not None:
        quarantine = _read(storage, split["quarantine_file"], None)
    places = []
    if split["num_rows"] and _may_hold(storage, split["file"], doc_id):
        table = _read(storage, split["file"], ["doc_id"])
        rows = np.flatnonzero(pc.equal(table["doc_id"], doc_id).to_numpy())
        if len(rows):
            places.append(_embedded(storage, files, rows.tolist(), quarantine))
    if quarantine is not None:
        by_uri = {file["file_uri"]: file for file in files}
        is_meant = pc.fill_null(pc.equal(quarantine["doc_id"], doc_id), False)
        derived = _derived(doc_id)
        if derived is not None and derived[0] in by_uri:  # of a row without an id of its own
            nameless = pc.and_(pc.is_null(quarantine["doc_id"]), pc.equal(quarantine["row"], derived[1]))
            nameless = pc.and_(nameless, pc.equal(quarantine["input_file"], derived[0]))
            is_meant = pc.or_(is_meant, pc.fill_null(nameless, False))
        for row in quarantine.filter(is_meant).to_pylist():
            places.append(_quarantined(by_uri.get(row["input_file"], split), row))
    return places


def _may_hold(storage: Storage, name: str, doc_id: str) -> bool:
    with _present(storage, name) as source:
        metadata = pq.ParquetFile(source).metadata
        for group in range(metadata.num_row_groups):
            columns = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
            found = next((column.statistics for column in columns if column.path_in_schema == "doc_id"), None)
            if found is None or not found.has_min_max or str(found.min) <= doc_id <= str(found.max):
                return True
    return False


def _embedded(storage: Storage, files: list[Row], rows: list[int], quarantine: pa.Table | None) -> Row:
    table = _read(storage, files[0]["file"], _FACTS)
    facts = table.take(pa.array(rows)).to_pylist()
    # How many documents of the split come before this one in the shard.
    position = int(np.count_nonzero(table["chunk_index"].to_numpy()[: rows[0] + 1] == 0)) - 1
    ends = np.cumsum([file["num_documents"] - file["num_quarantined"] for file in files])
    index = min(int(np.searchsorted(ends, position, side="right")), len(files) - 1)
    split, place = files[index], position - (int(ends[index - 1]) if index else 0)
    return _of_split(split) | {
        "state": "embedded",
        "row": _input_row(split, facts[0]["doc_id"], place, quarantine),
        "position": position,
        "shard": split["file"],
        "ordinal": split["ordinal"],
        "rows": rows,
        "row_addresses": [(split["ordinal"] << 32) | row for row in rows],
        "num_chunks": facts[0]["num_chunks"],
        "num_tokens": [fact["num_tokens"] for fact in facts],
        "truncated": any(fact["truncated"] for fact in facts),
        "chars": [[fact["char_begin"], fact["char_end"]] for fact in facts],
        "content_hash": facts[0]["content_hash"].hex(),
    }


def _quarantined(split: Row, row: Row) -> Row:
    return _of_split(split) | {
        "state": "quarantined",
        "row": row["row"],
        "quarantine_file": split["quarantine_file"],
        "stage": row["stage"],
        "reason": row["reason"],
        "message": row["message"],
    }


def _of_split(split: Row) -> Row:
    return {"input_file": split["file_uri"], **{name: split[name] for name in ("split_id", "begin", "end")}}


def _input_row(split: Row, doc_id: str, place: int, quarantine: pa.Table | None) -> int | None:
    """The row of the input file (of lines: the byte offset), where something tells it.

    A derived id does. A shard keeps no row otherwise: of Parquet it follows from the place among the documents of
    the file, less the rows in quarantine; of lines nothing tells at which byte they began.
    """
    derived = _derived(doc_id)
    if split["is_derived"] and derived is not None:
        return derived[1]
    if split["row_begin"] is None or (split["begin"], split["end"]) != (split["row_begin"], split["row_end"]):
        return None
    bad: npt.NDArray[np.int64] = np.empty(0, np.int64)
    if quarantine is not None:
        is_of_file = pc.equal(quarantine["input_file"], split["file_uri"])
        bad = quarantine["row"].filter(is_of_file).drop_null().to_numpy()
    left = np.setdiff1d(np.arange(split["begin"], split["end"]), bad)
    return int(left[place]) if len(left) == split["num_documents"] - split["num_quarantined"] else None


def _read(storage: Storage, name: str, columns: list[str] | None) -> pa.Table:
    with _present(storage, name) as source:
        return pq.ParquetFile(source, pre_buffer=True).read(columns=columns)


@contextmanager
def _present(storage: Storage, name: str) -> Iterator[BinaryIO]:
    try:
        with storage.open(name) as source:
            yield source
    except FileNotFoundError:
        raise StoreError(f"missing from the store: {storage.full_uri(name)}; `vecmill verify` tells all") from None
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"damaged: {storage.full_uri(name)} ({error}); `vecmill verify` tells all") from None
