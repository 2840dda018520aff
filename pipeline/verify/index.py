"""The index of a snapshot, against itself and against the embedding shards of the snapshot that it serves.

Each file is what index.json lists, byte by byte; each row group is what the directory says of it; each row of the
shards stands in the index as often as a row has lists, under its own hash, what deleted.parquet names not counted; and
the panel's nearest are rows, the first ten as near as it says. Parts stream one at a time; beside them there is a byte
for each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.index.description import FileRef, IndexDescription, PartRef, Recall, read_description
from pipeline.index.files import read_file, read_quantizer
from pipeline.index.layout import (
    ADDRESSES_SCHEMA,
    DELETED_SCHEMA,
    DIRECTORY_SCHEMA,
    codes_schema,
    panel_schema,
)
from pipeline.index.panel import parse_panel
from pipeline.index.parts import group_checksum
from pipeline.index.quantizer import Quantizer
from pipeline.index.sample import read_rows
from pipeline.index.shards import Rows, Shard, read_columns, shards_in
from pipeline.snapshots.manifest import SHARDS_SCHEMA, Manifest, read_table
from pipeline.snapshots.records import checksum
from pipeline.snapshots.table import as_bytes
from pipeline.uris import Storage

# Scores of equal vectors, in two products, differ by less.
_SCORE_TOLERANCE = 1e-4

# Of each query; to read the vectors of all would take what all else does not.
_CHECKED_NEAREST = 10

Sums = npt.NDArray[np.uint64]


@dataclass
class CheckedIndex:
    """What came of it."""

    findings: list[str] = field(default_factory=list)
    num_rows: int = 0
    """Row addresses seen, without deleted ones."""
    num_bytes: int = 0


def check_index(storage: Storage, manifest: Manifest) -> CheckedIndex:
    """All findings of the index that the manifest names; none if it names none.

    Raises:
        EnvironmentFault: storage failed.
    """
    checked = CheckedIndex()
    if manifest.index is None:
        return checked
    name = manifest.index.file
    try:
        description = read_description(storage, name, manifest.index.checksum)
        if _read(storage, description.centroids, checked) is None:
            return checked
        quantizer = read_quantizer(storage, description.centroids, description.quantizer_fp)
        quantizer.check_golden(description.golden, storage.full_uri(name))
        directory = read_file(storage, description.lists, DIRECTORY_SCHEMA)
        deleted = read_file(storage, description.deleted, DELETED_SCHEMA)
        panel = read_file(storage, description.panel, panel_schema(description.dim))
        table = read_table(storage, description.shards, SHARDS_SCHEMA)
    except StoreError as error:
        checked.findings.append(str(error))
        return checked
    shards = [shard for shard in shards_in(table, description.dim, description.vector_dtype) if shard.num_rows]
    checked.findings += _books(manifest, description, quantizer, directory)
    seen = _Seen(shards)
    for part in description.parts:
        mine = directory.filter(pa.compute.equal(directory["part"], part.part)).sort_by("row_group")
        gone = np.unique(deleted.filter(pa.compute.equal(deleted["part"], part.part))["position"].to_numpy())
        checked.findings += list(_Part(storage, description, quantizer, part, gone).check(mine, seen, checked))
    checked.findings += _deletions(description, deleted)
    checked.findings += seen.findings(storage, description)
    checked.findings += _panel(storage, description, shards, panel)
    return checked


def _books(
    manifest: Manifest, description: IndexDescription, quantizer: Quantizer, directory: pa.Table
) -> Iterator[str]:
    """index.json against its manifest, its centroids and its directory."""
    assert manifest.index is not None
    name = manifest.index.file
    told = {
        "snapshot_id": (description.snapshot_id, manifest.index.snapshot_id),
        "encoder_fp": (description.encoder_fp, manifest.encoder_fp),
        "nlist": (description.nlist, quantizer.nlist),
        "dim": (description.dim, quantizer.dim),
        "codec": (description.codec, quantizer.codec.name),
        "num_code_bytes": (description.num_code_bytes, quantizer.codec.num_bytes),
    }
    for key, (here, there) in told.items():
        if here != there:
            yield f"{name}: {key} is {here}, its snapshot or its centroids have {there}"
    listed = {name, *(file.file for file in description.files())}
    for doomed in sorted(listed.intersection(manifest.victims or ())):
        yield f"{doomed} is listed, and among the victims of gc"
    setting = (description.search.nprobe, description.search.rerank)
    if setting not in [(row.nprobe, row.rerank) for row in _reaching(description)]:
        yield (
            f"{name}: nprobe {setting[0]} and rerank {setting[1]}, its settings, were not measured to reach its "
            f"recall_target {description.recall_target}"
        )
    for part in description.parts:
        if part.quantizer_fp != description.quantizer_fp:
            yield f"{part.codes.file} was made with the quantizer {part.quantizer_fp}, the index has another"
    known = {part.part for part in description.parts}
    for number in sorted(set(directory["part"].to_pylist()) - known):
        yield f"{description.lists.file}: part {number} is none of the index"


def _reaching(description: IndexDescription) -> list[Recall]:
    target = description.recall_target
    return [row for row in description.measured.table if min(row.recall_at_10, row.chosen_by) >= target]


def _read(storage: Storage, ref: FileRef, checked: CheckedIndex) -> bytes | None:
    """A file that index.json lists; None, and a finding, if it is not the one listed."""
    try:
        data = storage.read(ref.file)
    except FileNotFoundError:
        checked.findings.append(f"{ref.file} is missing")
        return None
    if len(data) != ref.size:
        checked.findings.append(f"{ref.file} has {len(data)} bytes, {ref.size} are listed")
        return None
    if checksum(data) != ref.checksum:
        checked.findings.append(f"{ref.file} is damaged: its checksum is not the one listed")
        return None
    return data


class _Part:
    """One part: its two files against index.json and the directory; `gone` are its rows that are deleted, ascending."""

    def __init__(
        self, storage: Storage, description: IndexDescription, quantizer: Quantizer, part: PartRef, gone: Rows
    ) -> None:
        self._storage, self._description, self._part, self._gone = storage, description, part, gone
        self._codec = quantizer.codec

    def check(self, directory: pa.Table, seen: _Seen, checked: CheckedIndex) -> Iterator[str]:
        files = []
        for ref in (self._part.codes, self._part.addresses):
            data = _read(self._storage, ref, checked)
            checked.num_bytes += len(data or b"")
            files.append(data)
        codes, addresses = files
        if codes is None or addresses is None:
            return
        try:
            yield from self._groups(codes, addresses, directory, seen, checked)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            yield f"{self._part.codes.file} cannot be read as Parquet: {' '.join(str(error).split())[:200]}"

    def _groups(
        self, codes: bytes, addresses: bytes, directory: pa.Table, seen: _Seen, checked: CheckedIndex
    ) -> Iterator[str]:
        name, ref, num_bytes = self._part.codes.file, self._part, self._description.num_code_bytes
        of_codes, of_addresses = pq.ParquetFile(pa.BufferReader(codes)), pq.ParquetFile(pa.BufferReader(addresses))
        found, keep = of_codes.schema_arrow.remove_metadata(), self._description.keep
        kept = pa.schema([found.field(column) for column in keep if column in found.names])
        is_kept = {column.name: str(column.type) for column in kept} == keep
        if not is_kept or not found.equals(codes_schema(self._codec, kept)):
            yield f"{name} has other columns than its index: {', '.join(map(str, found))}"
            return
        if not of_addresses.schema_arrow.remove_metadata().equals(ADDRESSES_SCHEMA):
            yield f"{ref.addresses.file} has other columns than an addresses file"
            return
        listed = (ref.num_rows, ref.num_groups)
        for file in (of_codes, of_addresses):
            if (file.metadata.num_rows, file.metadata.num_row_groups) != listed:
                yield f"{name} and {ref.addresses.file} have not the {listed[0]} rows in {listed[1]} groups listed"
                return
        if directory["row_group"].to_pylist() != list(range(ref.num_groups)):
            yield f"{self._description.lists.file} does not list each row group of {name} once"
            return
        begin = 0
        for row in directory.to_pylist():
            number = row["row_group"]
            group = of_codes.read_row_group(number)
            own = np.asarray(of_addresses.read_row_group(number)["row_address"].to_numpy())
            in_code = codes[row["code_begin"] : row["code_begin"] + row["num_rows"] * num_bytes]
            in_addresses = addresses[row["address_begin"] : row["address_begin"] + 8 * row["num_rows"]]
            yield from self._group(row, group, own, in_code, in_addresses)
            first, last = np.searchsorted(self._gone, [begin, begin + len(own)])
            if last - first != row["num_deleted"]:
                yield (
                    f"row group {number} of {name} has {last - first} deleted rows, the directory says "
                    f"{row['num_deleted']}"
                )
            left = np.delete(np.arange(len(own)), self._gone[first:last] - begin)
            begin += len(own)
            checked.num_rows += len(left)
            hashes = group["row_hash"].take(pa.array(left))
            yield from (f"{ref.addresses.file}: {what}" for what in seen.add(own[left], hashes, row["list_id"]))

    def _group(
        self, row: dict[str, Any], group: pa.Table, own: Rows, in_code: bytes, in_addresses: bytes
    ) -> Iterator[str]:
        where = f"row group {row['row_group']} of {self._part.codes.file}"
        if group.num_rows != row["num_rows"]:
            yield f"{where} has {group.num_rows} rows, the directory says {row['num_rows']}"
            return
        if set(group["list_id"].to_pylist()) - {row["list_id"]}:
            yield f"{where} has rows of other lists than {row['list_id']}, which the directory says"
        if _code_bytes(group) != in_code or own.astype("<i8").tobytes() != in_addresses:
            yield f"{where} has its codes, or their addresses, not where the directory says"
        if group_checksum(in_code, in_addresses) != row["checksum"]:
            yield f"{where} has another checksum than the directory says"


def _code_bytes(group: pa.Table) -> bytes:
    if "vector" in group.column_names:
        flat = group["vector"].combine_chunks().flatten()
        return np.asarray(flat.to_numpy(zero_copy_only=False), "<f2").tobytes()
    return as_bytes(group["code"].combine_chunks()).tobytes()


class _Seen:
    """How often each row of the shards was seen, and the sums of their hashes, by shard."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = sorted(shards, key=lambda shard: shard.ordinal)
        self._ordinals = np.array([shard.ordinal for shard in self._shards], np.int64)
        self._num_rows = np.array([shard.num_rows for shard in self._shards], np.int64)
        self._starts = np.concatenate([[0], self._num_rows.cumsum()]).astype(np.int64)
        self._counts = np.zeros(self._starts[-1], np.uint8)
        self._sums = np.zeros(len(self._shards), np.uint64)
        self._is_stranger = False

    def add(self, addresses: Rows, hashes: pa.ChunkedArray, list_id: int) -> Iterator[str]:
        """Rows of one row group."""
        if len(np.unique(addresses)) < len(addresses):
            yield f"a row stands twice in list {list_id}"
        shard = np.searchsorted(self._ordinals, addresses >> 32)
        row = addresses & 0xFFFFFFFF
        inside = shard < len(self._ordinals)
        inside[inside] &= (self._ordinals[shard[inside]] == addresses[inside] >> 32) & (
            row[inside] < self._num_rows[shard[inside]]
        )
        if not inside.all():
            self._is_stranger = True
            bad = int(addresses[~inside][0])
            yield f"list {list_id} has row {bad & 0xFFFFFFFF} of shard {bad >> 32}, which the snapshot does not have"
        shard, row = shard[inside], row[inside]
        np.add.at(self._counts, self._starts[shard] + row, 1)
        np.add.at(self._sums, shard, _mixed(_low_halves(hashes)[inside], row))

    def findings(self, storage: Storage, description: IndexDescription) -> Iterator[str]:
        """What is off once all parts were seen."""
        times = min(description.lists_per_row, description.nlist)
        for place, shard in enumerate(self._shards):
            counts = self._counts[self._starts[place] : self._starts[place + 1]]
            wrong = np.flatnonzero(counts != times)
            if len(wrong):
                yield (
                    f"{len(wrong)} rows of {shard.file} are not in the index {times} times: row {wrong[0]} is "
                    f"{counts[wrong[0]]} times"
                )
                continue
            try:
                hashes = read_columns(storage, shard, ["row_hash"])["row_hash"]
            except StoreError as error:
                yield str(error)
                continue
            expected = _mixed(_low_halves(hashes), np.arange(shard.num_rows, dtype=np.int64)).sum(dtype=np.uint64)
            if int(expected) * times % 2**64 != int(self._sums[place]):
                yield f"the index has other rows than {shard.file} under their addresses: row_hash differs"


def _low_halves(hashes: pa.ChunkedArray) -> Sums:
    """Eight bytes of each row hash."""
    return np.ascontiguousarray(as_bytes(hashes.combine_chunks())[:, :8]).view("<u8").reshape(-1).astype(np.uint64)


def _mixed(hashes: Sums, rows: Rows) -> Sums:
    """A number for each pair of hash and row, whose sum tells whether all pairs are the same in whatever order."""
    return np.asarray(hashes * (rows.astype(np.uint64) * np.uint64(2) + np.uint64(1)), np.uint64)


def _deletions(description: IndexDescription, deleted: pa.Table) -> Iterator[str]:
    sizes = {part.part: part.num_rows for part in description.parts}
    for row in deleted.to_pylist():
        if not 0 <= row["position"] < sizes.get(row["part"], 0):
            yield f"{description.deleted.file}: part {row['part']} has no row {row['position']}"


def _panel(storage: Storage, description: IndexDescription, shards: Sequence[Shard], table: pa.Table) -> Iterator[str]:
    name, measured = description.panel.file, description.measured
    panel, truth = parse_panel(table)
    num_published = int(panel.is_published.sum())
    num_choosing = len(panel) - num_published if len(panel) > 1 else num_published
    if (panel.source, num_published, num_choosing) != (measured.source, measured.num_queries, measured.num_choosing):
        yield f"{name} has other queries than index.json says that recall was measured with"
    sizes = {shard.ordinal: shard.num_rows for shard in shards}
    every = np.unique(np.concatenate([np.zeros(0, np.int64), *truth.addresses]))
    strangers = [one for one in every.tolist() if not 0 <= one & 0xFFFFFFFF < sizes.get(one >> 32, 0)]
    if strangers:
        yield f"{name} names row {strangers[0] & 0xFFFFFFFF} of shard {strangers[0] >> 32}, which is not there"
        return
    checked = np.unique(np.concatenate([np.zeros(0, np.int64), *(some[:_CHECKED_NEAREST] for some in truth.addresses)]))
    try:
        vectors = read_rows(storage, shards, checked)
    except StoreError as error:
        yield str(error)
        return
    for query, (addresses, scores) in enumerate(zip(truth.addresses, truth.scores, strict=True)):
        exact = vectors[np.searchsorted(checked, addresses[:_CHECKED_NEAREST])] @ panel.vectors[query]
        is_off = np.abs(exact - scores[:_CHECKED_NEAREST]).max(initial=0) > _SCORE_TOLERANCE
        if is_off or (np.diff(scores) > 0).any():
            yield f"{name}: the nearest rows of query {query} have other scores than it says"
        if np.isin(addresses, truth.left_out[query]).any() or len(np.unique(addresses)) < len(addresses):
            yield f"{name}: the nearest rows of query {query} are there twice, or were to be left out"
