"""A range of lists of all intermediates to one part of the index: the h-slice of the shuffle.

Ranges are planned by bytes, from what the intermediates say of their buckets. Where one bucket alone is
more than a part takes (many equal rows), its intermediates are shared out among several parts: a list may
lie in any number of them. A merge reads one range of each intermediate, sorts, and writes; it holds
its range a few times over, whatever the corpus.

An intermediate made with another quantizer is refused: its codes would decode to nonsense without a word.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StoreError, VecmillError
from pipeline.index.assign import Intermediate, Work, bucket_bounds
from pipeline.index.description import PartRef
from pipeline.index.files import file_ref, first_lost, table_bytes, undamaged
from pipeline.index.layout import DIRECTORY_SCHEMA, digest, index_folder, part_names
from pipeline.index.parts import MAX_GROUP_BYTES, MAX_PART_GROUPS, make_part
from pipeline.parallel import map_ahead
from pipeline.snapshots.records import new_attempt
from pipeline.uris import Storage

# Of intermediate bytes in one part: small enough that a merge stays far below 1 GB, and all CPUs have one.
_MIN_PART_BYTES, _MAX_PART_BYTES = 48 * 2**20, 128 * 2**20
_WANTED_PARTS = 512

# Ranges read at once: hides the round trips of object storage.
_READ_AHEAD = 8

_PART_KEY = b"vecmill.part"


@dataclass(frozen=True)
class Range:
    """What one merge takes: buckets [begin, end) of intermediates [first, last), all in their order."""

    part: int
    begin: int
    end: int
    first: int
    last: int


@dataclass(frozen=True, eq=False)
class Merged:
    """A finished part: how index.json lists it, and its rows of the directory."""

    ref: PartRef
    directory: pa.Table


def check_intermediates(work: Work, records: Sequence[Intermediate]) -> None:
    """Refuse what was made with another quantizer or in other buckets.

    Raises:
        StoreError: such an intermediate.
    """
    num_buckets = len(bucket_bounds(work.quantizer.nlist)) - 1
    for record in records:
        if record.quantizer_fp != work.quantizer.fingerprint:
            raise StoreError(
                f"{record.file} was made with the quantizer {record.quantizer_fp}, this index has "
                f"{work.quantizer.fingerprint}: other codes; delete it, then run the same command again"
            )
        if len(record.buckets) != num_buckets or record.lists_per_row != work.lists_per_row:
            raise StoreError(
                f"{record.file} has {len(record.buckets)} buckets and rows in {record.lists_per_row} lists, this "
                f"index {num_buckets} and {work.lists_per_row}; delete it, then run the same command again"
            )


def plan_merges(work: Work, records: Sequence[Intermediate]) -> list[Range]:
    """Ranges of about equal bytes, which together are all rows of the intermediates (by ordinal), each once.

    Raises:
        StoreError: an intermediate is of another build.
    """
    check_intermediates(work, records)
    sizes = np.array([[one.end - one.begin for one in record.buckets] for record in records], np.int64)
    lists = np.diff(bucket_bounds(work.quantizer.nlist))
    target = int(np.clip(sizes.sum() // _WANTED_PARTS, _MIN_PART_BYTES, _MAX_PART_BYTES))
    ranges: list[Range] = []

    def add(begin: int, end: int, first: int, last: int) -> None:
        if sizes[first:last, begin:end].any():
            ranges.append(Range(len(ranges), begin, end, first, last))

    begin, num_bytes, num_lists = 0, 0, 0
    for bucket, size in enumerate(sizes.sum(0).tolist()):
        groups = num_lists + int(lists[bucket]) + (num_bytes + size) // MAX_GROUP_BYTES
        if bucket > begin and (num_bytes + size > target or groups > MAX_PART_GROUPS):
            add(begin, bucket, 0, len(records))
            begin, num_bytes, num_lists = bucket, 0, 0
        if size > target:
            for first, last in _shares(sizes[:, bucket], target):
                add(bucket, bucket + 1, first, last)
            begin = bucket + 1
            continue
        num_bytes, num_lists = num_bytes + size, num_lists + int(lists[bucket])
    if begin < sizes.shape[1]:
        add(begin, sizes.shape[1], 0, len(records))
    return ranges


def _shares(sizes: np.ndarray[tuple[int], np.dtype[np.int64]], target: int) -> Iterator[tuple[int, int]]:
    """Consecutive intermediates [first, last) of at most `target` bytes in a bucket, or a single one."""
    first, taken = 0, 0
    for index, size in enumerate(sizes.tolist()):
        if index > first and taken + size > target:
            yield first, index
            first, taken = index, 0
        taken += size
    yield first, len(sizes)


def merge(storage: Storage, work: Work, records: Sequence[Intermediate], planned: Range) -> Merged:
    """Merge a range, put its two files and, last, its record.

    Args:
        storage: of the store.
        work: of the build.
        records: all intermediates, by ordinal, as `plan_merges` saw them.
        planned: the range.

    Raises:
        StoreError: an intermediate is of another build, missing, or damaged.
        EnvironmentFault: storage failed.
    """
    check_intermediates(work, records)
    mine = records[planned.first : planned.last]
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        batches = [
            batch
            for found in map_ahead(pool, lambda record: _read_range(storage, work, record, planned), mine, _READ_AHEAD)
            for batch in found
        ]
    rows = pa.Table.from_batches(batches, work.rows_schema)
    del batches
    num_rows = sum(one.num_rows for record in mine for one in record.buckets[planned.begin : planned.end])
    order = np.argsort(rows["list_id"].to_numpy(), kind="stable")
    rows = rows.take(pa.array(order))
    part = make_part(planned.part, rows, work.quantizer.codec, work.keep)
    if sum(part.directory["num_rows"].to_pylist()) != num_rows:
        raise VecmillError(f"part {planned.part} has not the {num_rows} rows of its intermediates. This is a bug.")
    attempt = new_attempt()
    codes_name, addresses_name = part_names(work.index_id, planned.part, attempt)
    ref = PartRef(
        part=planned.part,
        codes=file_ref(codes_name, part.codes),
        addresses=file_ref(addresses_name, part.addresses),
        footer_begin=_footer_begin(part.codes),
        num_rows=num_rows,
        num_groups=part.directory.num_rows,
        quantizer_fp=work.quantizer.fingerprint,
    )
    storage.put(codes_name, part.codes)
    storage.put(addresses_name, part.addresses)
    told = part.directory.replace_schema_metadata({_PART_KEY: ref.model_dump_json().encode()})
    storage.put(f"{_record_prefix(work, mine, planned)}-{attempt}.parquet", table_bytes(told))
    return Merged(ref, part.directory)


def _read_range(storage: Storage, work: Work, record: Intermediate, planned: Range) -> list[pa.RecordBatch]:
    slices = record.buckets[planned.begin : planned.end]
    begin = slices[0].begin
    damaged = f"{record.file} is not what its record says; delete the record beside it, then run the same command again"
    try:
        data = memoryview(storage.read_range(record.file, begin, slices[-1].end))
    except FileNotFoundError:
        raise StoreError(f"missing: {damaged}") from None
    batches = []
    for one in slices:
        if one.num_rows:
            message = data[one.begin - begin : one.end - begin]
            if zlib.crc32(message) != one.checksum:
                raise StoreError(f"damaged: {damaged}")
            batches.append(pa.ipc.read_record_batch(pa.py_buffer(message), work.rows_schema))
            if batches[-1].num_rows != one.num_rows:
                raise StoreError(f"damaged: {damaged}")
    return batches


def finished_merges(
    storage: Storage, work: Work, records: Sequence[Intermediate], ranges: Sequence[Range]
) -> dict[int, Merged]:
    """What an earlier run has merged of these ranges, from these very intermediates: by part, the least attempt.

    A part that has lost a file, or part of one, is merged again.

    Raises:
        StoreError: a record is damaged.
    """
    sizes = {info.name: info.size for info in storage.scan(index_folder(work.index_id))}
    names = sorted(name for name in sizes if name.startswith(f"{work.folder}/merge/"))
    found = {}
    for planned in ranges:
        prefix = f"{_record_prefix(work, records[planned.first : planned.last], planned)}-"
        for name in names:
            if planned.part not in found and name.startswith(prefix):
                part = _read_record(storage, name)
                if first_lost(sizes, (part.ref.codes, part.ref.addresses)) is None:
                    found[planned.part] = part
    return found


def _record_prefix(work: Work, mine: Sequence[Intermediate], planned: Range) -> str:
    made_of = digest(*(record.file.encode() for record in mine), b"%d-%d" % (planned.begin, planned.end))
    return f"{work.folder}/merge/{planned.part}-{made_of}"


def _read_record(storage: Storage, name: str) -> Merged:
    with undamaged(storage.full_uri(name), "record of the index build"):
        table = pq.read_table(pa.BufferReader(storage.read(name)))
        ref = PartRef.model_validate(orjson.loads(table.schema.metadata[_PART_KEY]))
        return Merged(ref, table.replace_schema_metadata(None).cast(DIRECTORY_SCHEMA))


def _footer_begin(data: pa.Buffer) -> int:
    """Where the footer of a Parquet file begins: its length stands before the last four bytes."""
    return int(data.size - 8 - int.from_bytes(memoryview(data).cast("B")[-8:-4], "little"))
