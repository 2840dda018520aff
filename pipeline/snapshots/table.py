"""Records of many splits, by column: what the driver holds of a corpus, some 200 bytes a split.

A `Record` is the format of one; a million of them as objects would be 2 GB. Here ids and checksums
are bytes, what thousands of records share (file, run, fingerprints, reasons) is dictionary-encoded,
and names that follow from ids are not stored. The journal has the same columns (RECORDS_SCHEMA).
Packs list their files in a nested column; `by_file` lays them out, a row for each file of each record.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError
from pipeline.snapshots.records import Member, QuarantineFile, Record, ShardFile, quarantine_name, shard_name

_SHARED = ("run_id", "encoder_fp", "shard_fp", "file_uri", "file_id", "identity", "identity_kind", "compute", "reasons")
_COUNTS = ("num_documents", "num_quarantined", "num_reused", "num_truncated", "num_tokens", "num_padded_tokens")
_HASH = pa.binary(16)

_MEMBER_NAMES = ("file_uri", "file_id", "identity", "identity_kind")

_MEMBER = pa.struct(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in _MEMBER_NAMES),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("row_begin", pa.int64()),
        pa.field("row_end", pa.int64()),
        pa.field("num_documents", pa.int64(), nullable=False),
        pa.field("num_counted", pa.int64()),
        pa.field("num_quarantined", pa.int64(), nullable=False),
        pa.field("num_truncated", pa.int64(), nullable=False),
        pa.field("num_tokens", pa.int64(), nullable=False),
    ]
)

RECORDS_SCHEMA = pa.schema(
    [
        pa.field("split_id", _HASH, nullable=False),
        pa.field("attempt", pa.binary(8), nullable=False),
        pa.field("generation", pa.int32(), nullable=False),
        # reasons: JSON, {reason: rows}
        *(pa.field(name, pa.dictionary(pa.int32(), pa.string()), nullable=False) for name in _SHARED),
        pa.field("begin", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("last", pa.bool_(), nullable=False),
        pa.field("row_begin", pa.int64()),
        pa.field("row_end", pa.int64()),
        pa.field("num_counted", pa.int64()),
        *(pa.field(name, pa.int64(), nullable=False) for name in _COUNTS),
        pa.field("shard_size", pa.int64(), nullable=False),
        pa.field("shard_checksum", _HASH, nullable=False),
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("vector_begin", pa.int64(), nullable=False),
        pa.field("shard_num_documents", pa.int64()),
        pa.field("quarantine_checksum", _HASH),
        pa.field("quarantine_num_rows", pa.int64()),
        pa.field("members", pa.list_(pa.field("element", _MEMBER, nullable=False))),
    ]
)

_BY_FILE = [
    *_MEMBER_NAMES,
    *("begin", "end", "last", "row_begin", "row_end"),
    *("num_documents", "num_counted", "num_quarantined", "num_reused", "num_truncated", "num_tokens"),
]

# Records that are objects at a time, on their way into columns or out.
_SLICE = 10_000

_FILE_NAME = re.compile(r"[a-z]+/[0-9a-f]{16}/[0-9a-f]{16}/([0-9a-f]{2})/([0-9a-f]{32})-([0-9a-f]{16})\.parquet")

_EMPTY = RECORDS_SCHEMA.empty_table()

Indices = npt.NDArray[np.int64]


class RecordTable(Sequence[Record]):
    """Records by column; as a sequence it makes each `Record` when it is asked for.

    Attributes:
        table: one record a row (RECORDS_SCHEMA), one chunk a column.
    """

    def __init__(self, table: pa.Table | None = None) -> None:
        table = _EMPTY if table is None else table
        self.table = table.unify_dictionaries().combine_chunks()

    @classmethod
    def of(cls, records: Iterable[Record]) -> RecordTable:
        """The table of these records.

        Raises:
            StoreError: a record lists files of another attempt.
        """
        if isinstance(records, RecordTable):
            return records
        rows = map(_row, records)
        slices = iter(lambda: list(itertools.islice(rows, _SLICE)), [])
        return cls(pa.concat_tables([_EMPTY, *(pa.Table.from_pylist(some, RECORDS_SCHEMA) for some in slices)]))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Record]:
        for batch in self.table.to_batches(max_chunksize=_SLICE):
            yield from map(_record, batch.to_pylist())

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> RecordTable: ...
    def __getitem__(self, index: int | slice) -> Record | RecordTable:
        if isinstance(index, slice):
            return self.take(np.arange(len(self), dtype=np.int64)[index])
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return _record(self.table.slice(index % len(self), 1).to_pylist()[0])

    def take(self, rows: Indices) -> RecordTable:
        """These rows, in this order."""
        return RecordTable(self.table.take(pa.array(rows, pa.int64())))

    def column(self, name: str) -> pa.Array:
        """A column as one array."""
        chunks = self.table[name].chunks
        return chunks[0] if chunks else pa.array([], self.table.schema.field(name).type)

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """A column of numbers without nulls, or the codes of one that is dictionary-encoded."""
        column = self.column(name)
        if isinstance(column, pa.DictionaryArray):
            column = column.indices
        return np.asarray(column.to_numpy(zero_copy_only=False))

    def values(self, name: str) -> list[Any]:
        """The dictionary of a column that has one: some of its values may be in no row."""
        column = self.column(name)
        assert isinstance(column, pa.DictionaryArray)
        return list(column.dictionary.to_pylist())

    def by_file(self) -> pa.Table:
        """Range and counts of each file of each record, as SPLITS_SCHEMA names them; `record` is the row of the record.

        A range has one row, a pack one for each of its files.
        """
        members = self.column("members")
        of_ranges = self.table.select(_BY_FILE).append_column("record", pa.array(np.arange(len(self))))
        if members.null_count == len(members):
            return of_ranges
        record = pc.list_parent_indices(members).cast(pa.int64())
        flat = pa.Table.from_struct_array(pc.list_flatten(members))
        whole = {
            "begin": pa.repeat(pa.scalar(0, pa.int64()), len(record)),
            "last": pa.repeat(True, len(record)),
            "num_reused": pa.repeat(pa.scalar(0, pa.int64()), len(record)),
            "record": record,
        }
        columns = {name: whole[name] if name in whole else flat[name] for name in of_ranges.schema.names}
        of_packs = pa.table({name: _encoded(column) for name, column in columns.items()})
        both = [of_ranges.filter(members.is_null()), of_packs.cast(of_ranges.schema)]
        return pa.concat_tables(both).unify_dictionaries().combine_chunks()

    def shard_names(self) -> pa.Array:
        """Where the embedding shards lie in the store."""
        return _strings(shard_name(*ids) for ids in self._ids())

    def quarantine_names(self) -> pa.Array:
        """Where the quarantine files lie in the store; null where there is none."""
        checksums = _values(self.column("quarantine_checksum"))
        found = zip(self._ids(), checksums, strict=True)
        return _strings(None if checksum is None else quarantine_name(*ids) for ids, checksum in found)

    def _ids(self) -> Iterator[tuple[str, str, str, str]]:
        columns = [_values(self.column(name)) for name in ("encoder_fp", "shard_fp", "split_id", "attempt")]
        for encoder_fp, shard_fp, split_id, attempt in zip(*columns, strict=True):
            yield encoder_fp, shard_fp, split_id.hex(), attempt.hex()

    def fingerprints(self) -> set[tuple[str, str]]:
        """encoder_fp and shard_fp of its records."""
        pairs = self.table.group_by(["encoder_fp", "shard_fp"]).aggregate([])
        return set(zip(pairs["encoder_fp"].to_pylist(), pairs["shard_fp"].to_pylist(), strict=True))

    def keys(self) -> pa.FixedSizeBinaryArray:
        """split_id and attempt in one, as `file_keys` gives them."""
        joined = np.concatenate([as_bytes(self.column(name)) for name in ("split_id", "attempt")], axis=1)
        return to_binary(joined.tobytes(), joined.shape[1])


def parse_file_name(name: str) -> bytes | None:
    """The key (24 bytes, see `file_keys`) in the name of a shard or quarantine file; None for another object."""
    match = _FILE_NAME.fullmatch(name)
    return bytes.fromhex(match[2] + match[3]) if match and match[2].startswith(match[1]) else None


def file_keys(names: pa.Array | pa.ChunkedArray) -> pa.FixedSizeBinaryArray:
    """The split_id and attempt (24 bytes) that end each name of a shard or quarantine file: `shard_name`, backwards.

    Raises:
        ValueError: a name that ends otherwise.
    """
    parts = []
    for begin in range(0, len(names), _SLICE):
        some = names.slice(begin, _SLICE)
        stems = pc.utf8_slice_codeunits(some, -len(f"{'0' * 32}-{'0' * 16}.parquet"), -len(".parquet"))
        parts.append(_from_hex(pc.replace_substring(stems, "-", "").to_pylist(), 24))
    return to_binary(b"".join(parts), 24)


def from_hex(digits: Sequence[str], width: int) -> pa.FixedSizeBinaryArray:
    """Strings of hex digits as bytes, `width` each.

    Raises:
        ValueError: not hex, or of another length.
    """
    return to_binary(_from_hex(digits, width), width)


def _from_hex(digits: Sequence[str], width: int) -> bytes:
    if any(len(text) != 2 * width for text in digits):
        raise ValueError(f"not {2 * width} hex digits")
    return bytes.fromhex("".join(digits))


def to_hex(values: pa.FixedSizeBinaryArray) -> pa.Array:
    """Bytes as strings of hex digits; null stays null."""
    return _strings(None if value is None else value.hex() for value in _values(values))


def as_bytes(column: pa.FixedSizeBinaryArray) -> npt.NDArray[np.uint8]:
    """(N, width), without a copy."""
    width = column.type.byte_width
    data = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    begin = column.offset * width
    return data[begin : begin + len(column) * width].reshape(-1, width)


def to_binary(data: bytes, width: int) -> pa.FixedSizeBinaryArray:
    """Bytes as a column of values of that width."""
    return pa.Array.from_buffers(pa.binary(width), len(data) // width, [None, pa.py_buffer(data)])


def _values(column: pa.Array) -> Iterator[Any]:
    for begin in range(0, len(column), _SLICE):
        yield from column.slice(begin, _SLICE).to_pylist()


def _strings(values: Iterable[str | None]) -> pa.Array:
    values = iter(values)
    slices = iter(lambda: list(itertools.islice(values, _SLICE)), [])
    return pa.concat_arrays([pa.array([], pa.string()), *(pa.array(some, pa.string()) for some in slices)])


def _encoded(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.dictionary_encode(column) if pa.types.is_string(column.type) else column


def _row(record: Record) -> dict[str, Any]:
    shard, quarantine = record.shard, record.quarantine
    ids = (record.encoder_fp, record.shard_fp, record.split_id, record.attempt)
    if shard.file != shard_name(*ids) or (quarantine is not None and quarantine.file != quarantine_name(*ids)):
        raise StoreError(
            f"the record of split {record.split_id}, attempt {record.attempt}, lists files of another; "
            "delete it, then run the same command again"
        )
    same = {name: getattr(record, name) for name in RECORDS_SCHEMA.names if hasattr(record, name)}
    return same | {
        "split_id": bytes.fromhex(record.split_id),
        "attempt": bytes.fromhex(record.attempt),
        "reasons": orjson.dumps(record.reasons, option=orjson.OPT_SORT_KEYS).decode(),
        "shard_size": shard.size,
        "shard_checksum": bytes.fromhex(shard.checksum),
        "num_rows": shard.num_rows,
        "vector_begin": shard.vector_begin,
        "shard_num_documents": shard.num_documents,
        "quarantine_checksum": bytes.fromhex(quarantine.checksum) if quarantine else None,
        "quarantine_num_rows": quarantine.num_rows if quarantine else None,
        "members": None if record.members is None else [asdict(member) for member in record.members],
    }


def _record(row: dict[str, Any]) -> Record:
    split_id, attempt = row.pop("split_id").hex(), row.pop("attempt").hex()
    ids = (row["encoder_fp"], row["shard_fp"], split_id, attempt)
    shard = ShardFile(
        shard_name(*ids),
        row.pop("shard_size"),
        row.pop("shard_checksum").hex(),
        row.pop("num_rows"),
        row.pop("vector_begin"),
        row.pop("shard_num_documents"),
    )
    found, num_rows = row.pop("quarantine_checksum"), row.pop("quarantine_num_rows")
    quarantine = None if found is None else QuarantineFile(quarantine_name(*ids), found.hex(), num_rows)
    reasons, members = orjson.loads(row.pop("reasons")), row.pop("members")
    packed = None if members is None else tuple(Member(**member) for member in members)
    return Record(
        **row,
        split_id=split_id,
        attempt=attempt,
        shard=shard,
        quarantine=quarantine,
        reasons=reasons,
        members=packed,
    )
