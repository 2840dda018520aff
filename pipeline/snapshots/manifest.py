"""Manifests and their tables: what a snapshot is.

`snapshots/<number>.json` is a manifest; the highest number is the current snapshot. Each is
complete: one object and the two tables it names tell all files of the snapshot. A manifest is
put once, by a conditional put, and never changed.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import StoreError
from pipeline.snapshots.records import checksum
from pipeline.uris import Storage

FORMAT_VERSION = 1

_MANIFEST_NAME = re.compile(r"snapshots/([0-9]{20})\.json")

SHARDS_SCHEMA = pa.schema(
    [
        pa.field("ordinal", pa.int32(), nullable=False),  # given once to a physical file, never reused
        pa.field("file", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("checksum", pa.string(), nullable=False),
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("vector_begin", pa.int64(), nullable=False),
        pa.field("compute", pa.string(), nullable=False),
        pa.field("deletes", pa.string()),  # reserved, null
        pa.field("num_documents", pa.int64()),  # whose chunks the rows are; null: as many as rows
    ]
)

SPLITS_SCHEMA = pa.schema(
    [
        pa.field("split_id", pa.string(), nullable=False),
        pa.field("ordinal", pa.int32(), nullable=False),  # of its shard
        pa.field("file_uri", pa.string(), nullable=False),
        pa.field("file_id", pa.string(), nullable=False),
        pa.field("identity", pa.string(), nullable=False),
        pa.field("identity_kind", pa.string(), nullable=False),
        pa.field("begin", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("last", pa.bool_(), nullable=False),
        pa.field("row_begin", pa.int64()),
        pa.field("row_end", pa.int64()),
        pa.field("num_documents", pa.int64(), nullable=False),
        pa.field("num_counted", pa.int64()),
        pa.field("num_quarantined", pa.int64(), nullable=False),
        pa.field("num_reused", pa.int64(), nullable=False),
        pa.field("num_truncated", pa.int64(), nullable=False),
        pa.field("num_tokens", pa.int64(), nullable=False),
        pa.field("quarantine_file", pa.string()),
        pa.field("quarantine_checksum", pa.string()),
    ]
)


# So that no more than this is in memory as plain strings.
_ROW_GROUP = 100_000


# What thousands of splits have in common.
_SHARED = frozenset({"file_uri", "file_id", "identity", "identity_kind", "compute"})


def in_memory(schema: pa.Schema) -> pa.Schema:
    """The schema with what splits share dictionary-encoded: a third of the bytes, for a million of them."""
    shared = pa.dictionary(pa.int32(), pa.string())
    return pa.schema([field.with_type(shared) if field.name in _SHARED else field for field in schema])


class _Part(BaseModel):
    # Unknown keys of the same format version are additions that old readers may ignore.
    model_config = ConfigDict(frozen=True, extra="ignore")


class TableRef(_Part):
    """A table of a snapshot; `num` rows."""

    file: str
    checksum: str
    num: int


class IndexRef(_Part):
    """The index that is read with a snapshot; `snapshot_id` is the snapshot it was built from."""

    file: str
    checksum: str
    snapshot_id: int


class Accounting(_Part):
    """documents_in = embedded + reused + quarantined; files_in = files_read + files_quarantined."""

    documents_in: int
    embedded: int
    """Encoded since the parent snapshot."""
    reused: int
    """Carried from the parent snapshot, or their vectors taken from it."""
    quarantined: int
    """Documents of this snapshot that have no vector."""
    deleted: int
    """Documents of the parent snapshot that are no longer there."""
    truncated: int
    chunks: int
    tokens: int
    files_in: int
    files_read: int
    files_quarantined: int


class Manifest(_Part):
    """One snapshot; what is put as `snapshots/<snapshot_id>.json`."""

    format_version: int = FORMAT_VERSION
    snapshot_id: int = Field(ge=1)
    """The number of the manifest: 1, 2, 3, ..."""
    parent_id: int | None
    kind: Literal["embed", "index", "rollback", "gc"]
    commit_id: str
    """Random; tells a lost reply to one's own put from another's success."""
    run_id: str
    created_at: str
    """UTC, RFC 3339."""
    encoder: dict[str, Any]
    encoder_fp: str
    shard_fp: str
    keep: dict[str, str]
    """Kept columns and their Arrow types."""
    limit: int | None
    """Documents asked for by `--limit`, if it is a snapshot of a part only."""
    next_ordinal: int
    """The ordinal that the next new shard gets."""
    shards: TableRef
    splits: TableRef
    index: IndexRef | None
    victims: tuple[str, ...] | None
    """Names that gc is about to delete, or has."""
    accounting: Accounting
    versions: dict[str, str]
    config: dict[str, Any]

    @property
    def rows_fp(self) -> str:
        """16 hex digits: snapshots of the same rows, by the same encoder, have the same."""
        return hashlib.blake2b(f"{self.encoder_fp} {self.shards.checksum}".encode(), digest_size=8).hexdigest()

    def successor(self, kind: Literal["index", "gc"], run_id: str, **changes: Any) -> Manifest:
        """The next manifest, of the same rows; `changes` are fields."""
        update = {
            "snapshot_id": self.snapshot_id + 1,
            "parent_id": self.snapshot_id,
            "kind": kind,
            "commit_id": secrets.token_hex(16),
            "run_id": run_id,
            "created_at": utc_now(),
        }
        return self.model_copy(update=update | changes)

    def to_json(self) -> bytes:
        """As `read_manifest` reads it."""
        return orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_INDENT_2)


def utc_now() -> str:
    """Now, as RFC 3339, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def manifest_name(number: int) -> str:
    """Where the manifest lies in the store; names sort as numbers do."""
    return f"snapshots/{number:020d}.json"


def latest(storage: Storage) -> Manifest | None:
    """The current snapshot's manifest; None if nothing was published yet. A listing and a read.

    Raises:
        StoreError: it is newer than this reader, or no manifest.
    """
    numbers = manifest_numbers(storage)
    return read_manifest(storage, numbers[-1]) if numbers else None


def manifest_numbers(storage: Storage) -> list[int]:
    """The numbers of all manifests, ascending."""
    matches = (_MANIFEST_NAME.fullmatch(info.name) for info in storage.scan("snapshots"))
    return sorted(int(match[1]) for match in matches if match)


def read_manifest(storage: Storage, number: int) -> Manifest:
    """The manifest of that number.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it is newer than this reader, or no manifest.
    """
    name = manifest_name(number)
    uri = storage.full_uri(name)
    try:
        value = orjson.loads(storage.read(name))
        version = value["format_version"]
        if version > FORMAT_VERSION:
            raise StoreError(f"{uri} has format {version}, this Vecmill reads {FORMAT_VERSION}; install a newer one")
        manifest = Manifest.model_validate(value)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
        raise StoreError(f"{uri} is no manifest ({' '.join(str(error).split())[:200]})") from None
    if manifest.snapshot_id != number:
        raise StoreError(f"{uri} is the manifest of snapshot {manifest.snapshot_id}; it was copied or damaged")
    return manifest


def put_table(storage: Storage, name: str, table: pa.Table) -> TableRef:
    """Put a snapshot's table and tell how a manifest names it.

    Args:
        name: where.
        table: dictionary-encoded columns are written as what they stand for, so that any engine reads the same.
    """
    sink = pa.BufferOutputStream()
    plain = pa.schema([field.with_type(_plain(field.type)) for field in table.schema])
    with pq.ParquetWriter(sink, plain, compression="zstd") as writer:
        for batch in table.to_batches(max_chunksize=_ROW_GROUP):
            writer.write_table(pa.Table.from_batches([batch]).cast(plain))
    data = sink.getvalue()
    storage.put(name, data)
    return TableRef(file=name, checksum=checksum(data), num=table.num_rows)


def with_nulls(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the nullable columns of `schema` that came after it was written, in the schema's order."""
    for field in schema:
        if field.nullable and field.name not in table.schema.names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(schema.names)


def _plain(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def read_table(storage: Storage, ref: TableRef, schema: pa.Schema) -> pa.Table:
    """A snapshot's table, in `in_memory(schema)` (of SHARDS_SCHEMA or SPLITS_SCHEMA).

    Raises:
        StoreError: missing, or not what the manifest names.
    """
    uri = storage.full_uri(ref.file)
    try:
        data = storage.read(ref.file)
    except FileNotFoundError:
        raise StoreError(f"missing from the store: {uri}, which a manifest names") from None
    if checksum(data) != ref.checksum:
        raise StoreError(f"damaged: {uri} is not the table that its manifest names (checksum)")
    shared = [field.name for field in schema if field.name in _SHARED]
    file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=shared)
    table = with_nulls(file.read(columns=[name for name in schema.names if name in file.schema_arrow.names]), schema)
    # Each row group has dictionaries of its own, and few functions take them together.
    return table.cast(in_memory(schema)).unify_dictionaries()
