"""Records and publications for tests, with files that really lie in the store."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.known import KnownRecords
from pipeline.snapshots.commit import Publication
from pipeline.snapshots.manifest import Manifest
from pipeline.snapshots.records import (
    Member,
    QuarantineFile,
    Record,
    ShardFile,
    checksum,
    new_attempt,
    put_attempt,
    quarantine_name,
    shard_name,
)
from pipeline.snapshots.table import RecordTable
from pipeline.uris import Storage

ENCODER_FP = "e" * 16
SHARD_FP = "5" * 16


class Killed(BaseException):
    """kill -9: nothing that catches errors catches it, nothing is written after it."""


def hex32(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def names_in(storage: Storage) -> set[str]:
    return {info.name for info in storage.list()}


def file_id(uri: str, identity: str = "v1") -> str:
    return hex32(uri, identity)


def shard_data(ids: Sequence[str]) -> bytes:
    vector = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 0.0] * len(ids), pa.float32()), 2)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"doc_id": pa.array(ids, pa.string()), "vector": vector}), sink)
    return bytes(sink.getvalue())


def make_record(uri: str = "a.parquet", begin: int = 0, end: int = 3, *, last: bool = True, **changes: Any) -> Record:
    """A record of rows [begin, end); nothing is put."""
    values: dict[str, Any] = {
        "identity": "v1",
        "attempt": new_attempt(),
        "generation": 0,
        "num_documents": end - begin,
        "num_counted": end - begin,
        "num_quarantined": 0,
        "encoder_fp": ENCODER_FP,
        "shard_fp": SHARD_FP,
    } | changes
    identity = values["identity"]
    values.setdefault("split_id", hex32(file_id(uri, identity), begin, end))
    ids = (values["encoder_fp"], values["shard_fp"], values["split_id"], values["attempt"])
    num_rows = values["num_documents"] - values["num_quarantined"]
    data = shard_data([f"{uri}#{begin + row}" for row in range(num_rows)])
    quarantine = None
    if values["num_quarantined"] or values["num_counted"] is None:
        quarantine = QuarantineFile(quarantine_name(*ids), checksum(b"quarantine"), max(1, values["num_quarantined"]))
    defaults: dict[str, Any] = {
        "run_id": "run",
        "file_uri": uri,
        "file_id": file_id(uri, identity),
        "identity_kind": "etag",
        "begin": begin,
        "end": end,
        "last": last,
        "row_begin": begin,
        "row_end": end,
        "num_reused": 0,
        "num_truncated": 1,
        "num_tokens": 10,
        "num_padded_tokens": 12,
        "compute": "float32",
        "shard": ShardFile(shard_name(*ids), len(data), checksum(data), num_rows, 4),
        "quarantine": quarantine,
        "reasons": {"empty_text": values["num_quarantined"]} if values["num_quarantined"] else {},
    }
    return Record(**(defaults | values))


def make_member(uri: str, num_documents: int = 2, **changes: Any) -> Member:
    """A file of a pack, of Parquet."""
    identity = changes.get("identity", "v1")
    values: dict[str, Any] = {
        "file_uri": uri,
        "file_id": file_id(uri, identity),
        "identity": identity,
        "identity_kind": "etag",
        "end": num_documents,
        "row_begin": 0,
        "row_end": num_documents,
        "num_documents": num_documents,
        "num_counted": num_documents,
        "num_quarantined": 0,
        "num_truncated": 0,
        "num_tokens": 5 * num_documents,
    }
    return Member(**(values | changes))


def make_pack(*members: Member, **changes: Any) -> Record:
    """A record of a pack of these files; nothing is put."""
    pack_id = hex32([member.file_id for member in members])
    counted = [member.num_counted for member in members if member.num_counted is not None]
    values: dict[str, Any] = {
        "file_id": pack_id,
        "split_id": hex32(pack_id),
        "identity": pack_id,
        "row_begin": None,
        "row_end": None,
        "num_documents": sum(member.num_documents for member in members),
        "num_counted": sum(counted) if len(counted) == len(members) else None,
        "num_quarantined": sum(member.num_quarantined for member in members),
        "num_tokens": sum(member.num_tokens for member in members),
        "num_truncated": sum(member.num_truncated for member in members),
        "members": members,
    }
    record = make_record(members[0].file_uri, 0, len(members), **(values | changes))
    data = shard_data(_ids(record))
    return replace(record, shard=replace(record.shard, size=len(data), checksum=checksum(data)))


def _ids(record: Record) -> list[str]:
    """Of the rows of a record's shard."""
    files: Iterable[Record | Member] = record.members or (record,)
    return [
        f"{file.file_uri}#{row}"
        for file in files
        for row in range(record.begin, record.begin + file.num_documents - file.num_quarantined)
    ]


def put(storage: Storage, record: Record) -> Record:
    """Put the record with its files, as a writer does."""
    data = shard_data(_ids(record))
    put_attempt(storage, record, data, b"quarantine" if record.quarantine else None)
    return record


def publication(parent: Manifest | None, records: Iterable[Record], **changes: Any) -> Publication:
    """Publishes `records`, and `carried` (file ids) from the parent."""
    records = RecordTable.of(records)
    carried = frozenset(changes.pop("carried", ()))
    values: dict[str, Any] = {
        "run_id": f"run-{new_attempt()}",
        "files": {file.file_id for record in records for file in record.members or (record,)} | carried,
        "encoder": {"model": "m"},
        "encoder_fp": ENCODER_FP,
        "shard_fp": SHARD_FP,
        "keep": {},
        "config": {},
        "versions": {},
    } | changes
    return Publication(parent=parent, records=records, carried=carried, **values)


def tiling_of(records: Iterable[Record], parent: Sequence[Record] = ()) -> list[Record] | None:
    """The records that a run takes for a file of which these are all; `parent` are those that its snapshot lists."""
    records = list(records)
    known = KnownRecords(records, RecordTable.of(parent).keys())
    rows = known.tiling(records[0].file_id) if records else None
    return None if rows is None else list(known.records.take(rows))


class FaultyStorage(Storage):
    """Calls `before` and `after` around each put; what they raise is what the caller sees."""

    def __init__(self, storage: Storage, before: Callable[[str], None] | None = None, **hooks: Any) -> None:
        super().__init__(*storage.__reduce__()[1])
        self._before = before or (lambda name: None)
        self._after: Callable[[str], None] = hooks.pop("after", lambda name: None)
        self.reads: list[str] = []

    def put(self, name: str, data: bytes | pa.Buffer) -> None:
        self._before(name)
        super().put(name, data)
        self._after(name)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        self._before(name)
        won = super().put_if_absent(name, data)
        self._after(name)
        return won

    def read(self, name: str) -> bytes:
        self.reads.append(name)
        return super().read(name)


def step_of(name: str) -> str:
    """The kind of object that a name is of, as the table of the protocol calls it."""
    if match := re.fullmatch(r"snapshots/[0-9]{20}(?:-[^.]+)?\.(shards|splits|json).*", name):
        return {"shards": "shards table", "splits": "splits table", "json": "manifest"}[match[1]]
    if name.startswith("runs/"):
        return "run.json" if name.endswith("run.json") else "journal"
    return {"embeddings": "shard", "quarantine": "quarantine", "records": "record"}.get(name.split("/")[0], name)
