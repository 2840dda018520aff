"""The driver's journal: records of many splits in one file, so that a resume asks for few.

The records themselves are what counts; the journal is a copy that spares a request for each.
A record that is gone from `records/` (swept by gc) is gone, whatever a journal says.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.snapshots.records import Record, key_of, parse_record_name, record_name, records_prefix
from pipeline.uris import Storage

MAX_JOURNAL_SPLITS = 10_000
MAX_JOURNAL_S = 60.0

_THREADS = 32
_JOURNAL_NAME = re.compile(r"runs/[^/]+/records-[0-9]+\.parquet")
_SCHEMA = pa.schema(
    [
        pa.field("encoder_fp", pa.string(), nullable=False),
        pa.field("shard_fp", pa.string(), nullable=False),
        pa.field("record", pa.string(), nullable=False),  # its JSON: one format, one parser
    ]
)


class Journal:
    """Collects the records of a run, and writes them every 10,000 splits or 60 s, and at `close`.

    Nothing is lost with what it has not written: those records are read one by one at a resume.
    """

    def __init__(self, storage: Storage, run_id: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage = storage
        self._run_id = run_id
        self._clock = clock
        self._number = 0
        self._pending: list[Record] = []
        self._written_at = clock()

    def add(self, record: Record) -> None:
        """Take a record that is in the store; writes a file when one is due."""
        self._pending.append(record)
        if len(self._pending) >= MAX_JOURNAL_SPLITS or self._clock() - self._written_at >= MAX_JOURNAL_S:
            self.close()

    def close(self) -> None:
        """Write what has been collected since the last file, if anything."""
        if self._pending:
            write_journal(self._storage, self._run_id, self._number, self._pending)
            self._number += 1
            self._pending = []
        self._written_at = self._clock()


def write_journal(storage: Storage, run_id: str, number: int, records: Sequence[Record]) -> None:
    """Put the run's journal file `number`."""
    columns = [
        [record.encoder_fp for record in records],
        [record.shard_fp for record in records],
        [record.to_json().decode() for record in records],
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=_SCHEMA), sink, compression="zstd")
    storage.put(f"runs/{run_id}/records-{number:06d}.parquet", sink.getvalue())


def read_journals(storage: Storage, encoder_fp: str, shard_fp: str) -> list[Record]:
    """The journalled records of all runs that have these fingerprints, each once.

    Raises:
        StoreError: a file is no journal.
    """
    names = [info.name for info in storage.list("runs") if _JOURNAL_NAME.fullmatch(info.name)]
    found: dict[object, Record] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        # In slices, so that only a few files are in memory at once.
        for slice_ in _slices(names):
            for records in pool.map(lambda name: _read_journal(storage, name, encoder_fp, shard_fp), slice_):
                found.update((key_of(record), record) for record in records)
    return list(found.values())


def load_records(
    storage: Storage, encoder_fp: str, shard_fp: str, victims: Collection[str] = frozenset()
) -> list[Record]:
    """All records with these fingerprints: a listing, and a request for those alone that no journal holds.

    Args:
        storage: rooted at the store.
        encoder_fp: 16 hex digits.
        shard_fp: 16 hex digits.
        victims: names that gc is about to delete; records of that name are left out.

    Raises:
        StoreError: an object is no record, or not the one that its name says.
    """
    listed = {}
    for info in storage.list(records_prefix(encoder_fp, shard_fp)):
        key = parse_record_name(info.name)
        if key is not None and info.name not in victims:
            listed[key] = info.name
    journalled = read_journals(storage, encoder_fp, shard_fp) if listed else []
    records = [record for record in journalled if listed.pop(key_of(record), None)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for slice_ in _slices(list(listed.values())):
            records.extend(filter(None, pool.map(lambda name: _read_record(storage, name), slice_)))
    return records


def _slices(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for begin in range(0, len(names), _THREADS * 4):
        yield names[begin : begin + _THREADS * 4]


def _read_journal(storage: Storage, name: str, encoder_fp: str, shard_fp: str) -> list[Record]:
    try:
        table = pq.read_table(pa.BufferReader(storage.read(name)), schema=_SCHEMA)
    except pa.ArrowException as error:
        raise StoreError(f"{storage.full_uri(name)} is no journal of records ({error}); delete it") from None
    wanted = pc.and_(pc.equal(table["encoder_fp"], encoder_fp), pc.equal(table["shard_fp"], shard_fp))
    rows: Iterable[str] = table["record"].filter(wanted).to_pylist()
    return [_interned(Record.from_json(row, name)) for row in rows]


def _read_record(storage: Storage, name: str) -> Record | None:
    try:
        record = Record.from_json(storage.read(name), storage.full_uri(name))
    except FileNotFoundError:
        return None  # swept since it was listed
    if record_name(record) != name:
        raise StoreError(f"{storage.full_uri(name)} holds the record of another split; delete it, then run again")
    return _interned(record)


def _interned(record: Record) -> Record:
    """The record with the strings that thousands share held once: keeps one below 1 kB."""
    return replace(
        record,
        run_id=sys.intern(record.run_id),
        encoder_fp=sys.intern(record.encoder_fp),
        shard_fp=sys.intern(record.shard_fp),
        file_uri=sys.intern(record.file_uri),
        file_id=sys.intern(record.file_id),
        identity=sys.intern(record.identity),
        compute=sys.intern(record.compute),
    )
