"""The files of one split, against the tables and each other: shard, quarantine file, record.

A split is known by its rows of the splits table: one, or of a pack one for each of its input files.

A file that is missing, cut or changed is one finding: what a damaged file says proves nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.row_hashes import row_hashes
from pipeline.schema import QUARANTINE_SCHEMA, Reason, Stage, embedding_schema
from pipeline.snapshots.manifest import Manifest
from pipeline.snapshots.records import Record, ShardFile, checksum
from pipeline.snapshots.table import RecordTable
from pipeline.uris import Storage

_NORM_TOLERANCE = 1e-3

_COUNTED = (("num_tokens", "num_tokens", "tokens"), ("truncated", "num_truncated", "truncated rows"))

Row = dict[str, Any]
"""Of the splits table (SPLITS_SCHEMA) or the shards table (SHARDS_SCHEMA)."""


@dataclass
class Checked:
    """A split, checked."""

    findings: list[str] = field(default_factory=list)
    num_rows: int = 0
    num_bytes: int = 0
    """Read of shard and quarantine file."""
    is_sound: bool = False
    """Whether the shard can be read on."""
    coming: Row = field(default_factory=dict)
    """The split as pipeline.duplicates wants it."""


class SplitChecker:
    """Checks splits of one snapshot; may be called from many threads.

    Args:
        storage: rooted at the store.
        manifest: of the snapshot.
        records: (split id, attempt) -> name of its record.
    """

    def __init__(self, storage: Storage, manifest: Manifest, records: Mapping[tuple[str, str], str]) -> None:
        self._storage, self._manifest, self._records = storage, manifest, records
        store = manifest.config.get("store", {})
        self._dim = int(manifest.encoder.get("dim", 0))
        self._dtype = "float32" if store.get("dtype") == "float32" else "float16"
        self._keep_text = bool(store.get("keep_text"))

    def check(self, files: list[Row], shard: Row) -> Checked:
        """All findings of one split; `files` are its rows, by URI."""
        checked, split = Checked(), files[0]
        ids = self._shard(files, shard, checked)
        checked.is_sound = ids is not None
        reasons = self._quarantine(files, ids, checked)
        checked.findings += self._record(files, shard, reasons)
        checked.coming = {
            "split_id": split["split_id"],
            "file": shard["file"],
            "num_rows": shard["num_rows"],
            "quarantine_file": split["quarantine_file"] if reasons and "duplicate_id" in reasons else None,
            "is_new": True,
        }
        return checked

    def _read(self, name: str, expected: str, size: int | None, checked: Checked) -> pa.Table | None:
        """A Parquet file of the store; None, and a finding, if it is not the one listed."""
        try:
            data = self._storage.read(name)
        except FileNotFoundError:
            checked.findings.append(f"{name} is missing")
            return None
        checked.num_bytes += len(data)
        if size is not None and len(data) != size:
            checked.findings.append(f"{name} has {len(data)} bytes, {size} are listed")
        elif checksum(data) != expected:
            checked.findings.append(f"{name} is damaged: its checksum is not the one listed")
        else:
            try:
                table = pq.read_table(pa.BufferReader(data))
                table.validate(full=True)
                return table
            except (pa.ArrowException, OSError, ValueError) as error:
                checked.findings.append(f"{name} cannot be read as Parquet: {' '.join(str(error).split())[:200]}")
        return None

    def _shard(self, files: list[Row], shard: Row, checked: Checked) -> pa.Array | None:
        """The doc_ids of a sound shard."""
        name = shard["file"]
        table = self._read(name, shard["checksum"], shard["size"], checked)
        if table is None:
            return None
        keep = [column for column in self._manifest.keep if column in table.schema.names]
        kept = pa.schema([table.schema.field(column) for column in keep])
        schema = embedding_schema(self._dim, self._dtype, kept, keep_text=self._keep_text)
        types = {column.name: str(column.type) for column in kept}
        if types != self._manifest.keep or not table.schema.remove_metadata().equals(schema):
            checked.findings.append(f"{name} has other columns than its snapshot: {', '.join(map(str, table.schema))}")
            return None
        checked.num_rows = table.num_rows
        if table.num_rows != shard["num_rows"]:
            checked.findings.append(f"{name} has {table.num_rows} rows, {shard['num_rows']} are listed")
            return None
        table = table.combine_chunks()
        checked.findings += (f"{name}: {what}" for what in self._rows(table, keep, files, shard))
        checked.findings += (f"{name}: {what}" for what in self._vectors(table, shard))
        return table["doc_id"]

    def _rows(self, table: pa.Table, keep: list[str], files: list[Row], shard: Row) -> Iterator[str]:
        chunk = table["chunk_index"].to_numpy()
        is_first = chunk == 0
        goes_on = np.concatenate([[False], chunk[1:] == chunk[:-1] + 1]) if len(chunk) else is_first
        ids = table["doc_id"]
        if len(chunk) > 1:
            goes_on[1:] &= pc.equal(ids[1:], ids[:-1]).to_numpy()
        num_chunks = table["num_chunks"].to_numpy()
        is_final = np.append(is_first, True)[1:]
        wrong = ~(is_first | goes_on) | (chunk >= num_chunks)
        is_cut = is_final != (chunk + 1 == num_chunks)
        if wrong.any():
            yield _some("chunks are out of order", wrong)
        elif is_cut.any():
            yield _some("num_chunks is not how many there are", is_cut)
        in_shard = shard["num_rows"] if shard["num_documents"] is None else shard["num_documents"]
        if is_first.sum() != in_shard:
            yield f"{is_first.sum()} documents, {in_shard} are listed"
        needed = [file["num_documents"] - file["num_quarantined"] for file in files]
        if is_first.sum() != sum(needed):
            yield f"{is_first.sum()} documents, its split has {sum(needed)} that are not in quarantine"
        else:
            file_of = np.zeros(len(chunk), np.int64)
            if is_first.any():
                file_of = np.repeat(np.arange(len(files)), needed)[np.maximum(np.cumsum(is_first) - 1, 0)]
            for column, name, what in _COUNTED:
                found = np.bincount(file_of, table[column].to_numpy(), len(files))
                for file, num in zip(files, found.astype(np.int64).tolist(), strict=True):
                    if num != file[name]:
                        whose = "its split" if len(files) == 1 else file["file_uri"]
                        yield f"{num} {what}, {whose} lists {file[name]}"
        stored = table["row_hash"].to_pylist()
        changed = np.array([a != b for a, b in zip(stored, row_hashes(table, table.select(keep)), strict=True)], bool)
        if changed.any():
            yield _some("row_hash is not that of the row", changed)

    def _vectors(self, table: pa.Table, shard: Row) -> Iterator[str]:
        if not table.num_rows:
            return
        flat = table["vector"].combine_chunks().flatten()
        stored = np.asarray(flat).reshape(-1, self._dim)  # (N, D)
        norms = np.linalg.norm(stored.astype(np.float32), axis=1)
        is_finite = np.isfinite(norms)
        if not is_finite.all():
            yield _some("the vector is not finite", ~is_finite)
        off = is_finite & ~(np.abs(norms - 1) <= _NORM_TOLERANCE)
        if off.any():
            yield _some("the vector is not of unit norm", off)
        begin, num_bytes = shard["vector_begin"], stored[0].nbytes
        try:
            ranged = self._storage.read_range(shard["file"], begin, begin + num_bytes)
        except FileNotFoundError:
            ranged = b""
        if ranged != stored[0].tobytes():
            yield f"vector_begin {begin} is not where its first vector is"

    def _quarantine(self, files: list[Row], ids: pa.Array | None, checked: Checked) -> Counter[str] | None:
        """The rows of a sound quarantine file by reason."""
        split = files[0]
        name = split["quarantine_file"]
        if len({(file["quarantine_file"], file["quarantine_checksum"]) for file in files}) > 1:
            checked.findings.append(f"split {split['split_id']} has more than one quarantine file")
        if name is None:
            if any(file["num_quarantined"] or file["num_counted"] is None for file in files):
                checked.findings.append(f"split {split['split_id']} of {split['file_uri']} lacks its quarantine file")
            return Counter()
        table = self._read(name, split["quarantine_checksum"], None, checked)
        if table is None:
            return None
        wanted = pa.schema([column for column in QUARANTINE_SCHEMA if column.name != "text"])
        if not table.schema.remove_metadata().equals(QUARANTINE_SCHEMA) and not table.schema.remove_metadata().equals(
            wanted
        ):
            checked.findings.append(f"{name} has other columns than a quarantine file")
            return None
        checked.findings += (f"{name}: {what}" for what in _quarantine_rows(table, files, ids))
        return Counter(table["reason"].to_pylist())

    def _record(self, files: list[Row], shard: Row, reasons: Counter[str] | None) -> Iterator[str]:
        split = files[0]
        attempt = shard["file"].rpartition("-")[2].removesuffix(".parquet")
        name = self._records.get((split["split_id"], attempt))
        try:
            record = None if name is None else Record.from_json(self._storage.read(name), name)
        except (FileNotFoundError, StoreError) as error:
            yield str(error) if isinstance(error, StoreError) else f"{name} is missing"
            return
        if record is None:
            yield f"{shard['file']} is listed, and its attempt has no record"
            return
        listed = ShardFile(**{field.name: shard[field.name] for field in fields(ShardFile)})
        if record.shard != listed or record.compute != shard["compute"]:
            yield f"{name} speaks of another shard than the one listed, {shard['file']}"
        quarantine = (record.quarantine.file, record.quarantine.checksum) if record.quarantine else (None, None)
        if quarantine != (split["quarantine_file"], split["quarantine_checksum"]):
            yield f"{name} speaks of another quarantine file than the one listed, {split['quarantine_file']}"
        recorded = {file["file_uri"]: file for file in RecordTable.of([record]).by_file().to_pylist()}
        if recorded.keys() != {file["file_uri"] for file in files}:
            yield f"{name} is of {len(recorded)} files, {', '.join(sorted(recorded)[:3])}; the splits table has others"
            return
        for file in files:
            found = {"split_id": record.split_id} | recorded[file["file_uri"]]
            for key, value in file.items():
                if found.get(key, value) != value:
                    yield f"{name}: {key} is {found[key]}, the splits table has {value}"
        if reasons is not None and record.reasons != dict(reasons):
            yield f"{name}: reasons are {record.reasons}, its quarantine file has {dict(reasons)}"


def _quarantine_rows(table: pa.Table, files: list[Row], ids: pa.Array | None) -> Iterator[str]:
    is_document = pc.or_(pc.is_valid(table["row"]), pc.is_valid(table["doc_id"]))
    uris = table["input_file"].to_pylist()
    found = Counter(uri for uri, is_one in zip(uris, is_document.to_pylist(), strict=True) if is_one)
    for file in files:
        if found[file["file_uri"]] != file["num_quarantined"]:
            whose = "its split" if len(files) == 1 else file["file_uri"]
            yield f"{found[file['file_uri']]} documents, {whose} has {file['num_quarantined']} in quarantine"
    for column, closed in (("reason", get_args(Reason)), ("stage", get_args(Stage))):
        for value in set(table[column].to_pylist()) - set(closed):
            yield f"{value!r} is no {column}"
    for uri in set(uris) - {file["file_uri"] for file in files}:
        yield f"speaks of {uri}, its split is of {files[0]['file_uri']}"
    rows = [(uri, row) for uri, row in zip(uris, table["row"].to_pylist(), strict=True) if row is not None]
    if len(set(rows)) != len(rows):
        yield "a row is there twice"
    # Another row may have the same id of its own; a derived one names the row.
    names = zip(table["doc_id"].to_pylist(), uris, table["row"].to_pylist(), strict=True)
    derived = [name for name, uri, row in names if row is not None and name == f"{uri}#{row}"]
    if ids is not None and derived:
        for name in ids.filter(pc.is_in(ids, pa.array(derived, pa.string()))).to_pylist():
            yield f"{name} is in quarantine, and in the shard"


def _some(what: str, is_wrong: npt.NDArray[np.bool_]) -> str:
    rows = np.flatnonzero(is_wrong)
    return f"{what} in {len(rows)} rows, the first of them {rows[0]}"
