"""Records: the commit of one split by one attempt, and how records of a file become its shards.

An attempt writes files under its own name and then its record; a record says that its files are
there and whole. That of a pack (pipeline.splits.packs) tells of each of its files what a record of
the file alone would. Several attempts of a split may leave records (a task run twice, a run that was
thought dead), and a file may have been cut in several ways by several versions of a config.
`choose` picks one attempt (pipeline.known does so for many), and `tile` a row of splits that covers
the file exactly once: both depend on the records alone, so whoever publishes picks the same.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import orjson
import pyarrow as pa
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.errors import StoreError, VecmillError
from pipeline.uris import Storage

Hex16 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Count = Annotated[int, Field(ge=0)]

_RECORD_NAME = re.compile(r"(?P<split_id>[0-9a-f]{32})-(?P<generation>[0-9]{1,9})-(?P<attempt>[0-9a-f]{16})\.json")


Range = tuple[int, int, bool]
"""begin, end and `last` of a record."""


def checksum(data: bytes | pa.Buffer) -> str:
    """32 hex digits over the bytes of a file of the store."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def new_attempt() -> str:
    """A name that no other attempt has: 16 random hex digits."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class ShardFile:
    """An embedding shard as a record or a shards table lists it."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    file: str
    size: Count
    """Bytes."""
    checksum: Hex32
    num_rows: Count
    vector_begin: Count
    """Byte offset of the first vector."""
    num_documents: Count | None = None
    """Whose chunks the rows are; None: as many as rows."""


@dataclass(frozen=True, slots=True)
class QuarantineFile:
    """A quarantine file as a record lists it; one of its rows may speak of the file as a whole."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    file: str
    checksum: Hex32
    num_rows: Count


@dataclass(frozen=True, slots=True)
class Member:
    """A whole small file in a pack; what the record of a file alone would say of it."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    file_uri: str
    file_id: Hex32
    identity: str
    identity_kind: Literal["etag", "stat", "version"]
    end: Count
    row_begin: Count | None
    row_end: Count | None
    num_documents: Count
    num_counted: Count | None
    num_quarantined: Count
    num_truncated: Count
    num_tokens: Count


@dataclass(frozen=True, slots=True)
class Record:
    """A finished attempt of a split: range [begin, end) of one version of one input file, or a pack of whole files."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    split_id: Hex32
    generation: Count
    """Raised only to try quarantined documents again."""
    attempt: Hex16
    run_id: str
    encoder_fp: Hex16
    shard_fp: Hex16
    file_uri: str
    """Relative to the input root; of a pack that of its first file, as what follows is of no file of its own."""
    file_id: Hex32
    identity: str
    identity_kind: Literal["etag", "stat", "version"]
    begin: Count
    end: Count
    last: bool
    """Whether the file ends with this split."""
    row_begin: Count | None
    row_end: Count | None
    num_documents: Count
    """Documents the reader saw, embedded or not."""
    num_counted: Count | None
    """Documents counted apart from the reader; None: the file cannot be read to its end (a quarantined file)."""
    num_quarantined: Count
    """Documents; a row about the file as a whole is none."""
    num_reused: Count
    num_truncated: Count
    num_tokens: Count
    num_padded_tokens: Count
    compute: str
    shard: ShardFile
    quarantine: QuarantineFile | None
    reasons: dict[str, int]
    """Quarantined rows by reason."""
    members: tuple[Member, ...] | None = None
    """Of a pack, by URI."""

    def to_json(self) -> bytes:
        """As `from_json` reads it."""
        value = asdict(self)
        if self.shard.num_documents is None:
            del value["shard"]["num_documents"]  # without chunks a record is what it was before there were any
        if self.members is None:
            del value["members"]  # the record of a range is what it was before there were packs
        return orjson.dumps(value)

    @classmethod
    def from_json(cls, data: bytes | str, name: str = "a record") -> Record:
        """The record in `data`, which came from `name`.

        Raises:
            StoreError: it is no record of this version.
        """
        try:
            return _RECORD.validate_json(data, strict=True)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            message = f"{name} is no record of a split ({where or 'JSON'}: {error.errors()[0]['msg']})"
            raise StoreError(f"{message}; delete it, then run the same command again") from None


_RECORD = TypeAdapter(Record)


class RecordKey(NamedTuple):
    """What a record's name tells without a request for it."""

    split_id: str
    generation: int
    attempt: str


def records_prefix(encoder_fp: str, shard_fp: str) -> str:
    """The folder that holds all records of one encoder and shard fingerprint."""
    return f"records/{encoder_fp}/{shard_fp}"


def record_name(record: Record) -> str:
    """Where a record lies in the store."""
    folder = f"{records_prefix(record.encoder_fp, record.shard_fp)}/{record.split_id[:2]}"
    return f"{folder}/{record.split_id}-{record.generation}-{record.attempt}.json"


def parse_record_name(name: str) -> RecordKey | None:
    """The key in a record's name; None for another object."""
    match = _RECORD_NAME.fullmatch(name.rpartition("/")[2])
    return RecordKey(match["split_id"], int(match["generation"]), match["attempt"]) if match else None


def shard_name(encoder_fp: str, shard_fp: str, split_id: str, attempt: str) -> str:
    """Where an attempt's embedding shard lies in the store."""
    return f"embeddings/{encoder_fp}/{shard_fp}/{split_id[:2]}/{split_id}-{attempt}.parquet"


def quarantine_name(encoder_fp: str, shard_fp: str, split_id: str, attempt: str) -> str:
    """Where an attempt's quarantine file lies in the store."""
    return f"quarantine/{encoder_fp}/{shard_fp}/{split_id[:2]}/{split_id}-{attempt}.parquet"


def put_attempt(
    storage: Storage, record: Record, shard: bytes | pa.Buffer, quarantine: bytes | pa.Buffer | None
) -> None:
    """Put an attempt's files, then its record; that order is what a record promises.

    Raises:
        VecmillError: the record does not describe these files, which is a bug.
    """
    ids = (record.encoder_fp, record.shard_fp, record.split_id, record.attempt)
    listed = record.quarantine
    described = record.shard.file == shard_name(*ids) and record.shard.checksum == checksum(shard)
    described &= (listed is None) == (quarantine is None)
    if listed is not None and quarantine is not None:
        described &= listed.file == quarantine_name(*ids) and listed.checksum == checksum(quarantine)
    if not described:
        raise VecmillError(f"the record of split {record.split_id} does not describe its files. This is a bug.")
    storage.put(record.shard.file, shard)
    if listed is not None and quarantine is not None:
        storage.put(listed.file, quarantine)
    storage.put(record_name(record), record.to_json())


def choose(records: Iterable[Record], parent_attempt: str | None = None) -> Record:
    """Of attempts at one cut the one that counts: of the highest generation, then the parent's, then the least name.

    A higher generation was made to replace what the parent lists.
    """
    return min(records, key=lambda record: (-record.generation, record.attempt != parent_attempt, record.attempt))


def tile(cuts: Iterable[Range], begin: int = 0, end: int | None = None) -> list[Range] | None:
    """Ranges of one file that cover [begin, end) of it, without gap or overlap, in order.

    The cuts may be of several kinds, as runs with several bounds left them. Of several ways to
    cover the range the one with the fewest splits is taken, at equal counts the one whose splits
    end later. None if there is none: the range is not done.

    Args:
        cuts: what is recorded of the file.
        begin: where the range begins.
        end: where it ends; None: the end of the file, which a record marks that is `last`.
    """
    # From the back: from each offset, how many splits it takes to the end, and the first of them.
    best: dict[int, tuple[int, int, Range]] = {}
    for cut in sorted(set(cuts), key=lambda cut: (-cut[0], cut[1])):
        is_final = cut[2] if end is None else cut[1] == end
        if is_final or (cut[1] > cut[0] and cut[1] in best):
            candidate = (1 if is_final else 1 + best[cut[1]][0], -cut[1], cut)
            best[cut[0]] = min(best.get(cut[0], candidate), candidate)
    tiling: list[Range] = []
    while begin in best:
        num_left, _, cut = best[begin]
        tiling.append(cut)
        if num_left == 1:
            return tiling
        begin = cut[1]
    return None
