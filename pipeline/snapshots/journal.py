"""The driver's journal: records of many splits in one file, so that a resume asks for few.

The records themselves are what counts; the journal is a copy that spares a request for each.
A record that is gone from `records/` (swept by gc) is gone, whatever a journal says.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.snapshots.manifest import with_nulls
from pipeline.snapshots.records import Record, RecordKey, parse_record_name, record_name, records_prefix, shard_name
from pipeline.snapshots.table import RECORDS_SCHEMA, RecordTable, as_bytes, to_binary
from pipeline.uris import Storage

MAX_JOURNAL_SPLITS = 10_000
MAX_JOURNAL_S = 60.0

_THREADS = 32
_JOURNAL_NAME = re.compile(r"runs/[^/]+/records-[0-9]+\.parquet")

# So many journals are in memory beside what they come to.
_JOURNALS_AT_ONCE = 16

# split_id, attempt, generation (big-endian): what a record's name says.
_KEY = np.dtype(f"S{16 + 8 + 4}")


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


def write_journal(storage: Storage, run_id: str, number: int, records: Iterable[Record]) -> None:
    """Put the run's journal file `number`."""
    sink = pa.BufferOutputStream()
    pq.write_table(RecordTable.of(records).table, sink, compression="zstd")
    storage.put(f"runs/{run_id}/records-{number:06d}.parquet", sink.getvalue())


def read_journals(storage: Storage, encoder_fp: str, shard_fp: str) -> Iterator[RecordTable]:
    """The journalled records of all runs that have these fingerprints, by file; one may be there more than once.

    Raises:
        StoreError: a file is no journal.
    """
    names = sorted(info.name for info in storage.scan("runs") if _JOURNAL_NAME.fullmatch(info.name))
    with ThreadPoolExecutor(_THREADS) as pool:
        for slice_ in _slices(names, _JOURNALS_AT_ONCE):
            yield from pool.map(lambda name: _read_journal(storage, name, encoder_fp, shard_fp), slice_)


def load_records(
    storage: Storage,
    encoder_fp: str,
    shard_fp: str,
    victims: Collection[str] = frozenset(),
    but: pa.FixedSizeBinaryArray | None = None,
) -> RecordTable:
    """All records with these fingerprints: a listing, and a request for those alone that no journal holds.

    Args:
        storage: rooted at the store.
        encoder_fp: 16 hex digits.
        shard_fp: 16 hex digits.
        victims: names that gc is about to delete; records that are one, or whose shard is, are left out.
        but: attempts that are left out too, as `table.file_keys` gives them.

    Raises:
        StoreError: an object is no record, or not the one that its name says.
    """
    prefix = records_prefix(encoder_fp, shard_fp)
    listed = _listed_keys(storage, prefix, victims, but)
    if not len(listed):
        return RecordTable()
    is_found = np.zeros(len(listed), np.bool_)
    tables = [RECORDS_SCHEMA.empty_table()]
    for journalled in read_journals(storage, encoder_fp, shard_fp):
        keys = _keys(journalled)
        places = np.minimum(np.searchsorted(listed, keys), len(listed) - 1)
        # Journals of several runs may hold the same record: the first that is read counts.
        is_new = (listed[places] == keys) & ~is_found[places]
        rows = np.flatnonzero(is_new)[np.unique(places[is_new], return_index=True)[1]]
        is_found[places[is_new]] = True
        tables.append(journalled.take(np.sort(rows)).table)
    names = [_name(prefix, key) for key in listed[~is_found]]
    tables.append(RecordTable.of(_read_records(storage, names)).table)
    return RecordTable(pa.concat_tables(tables))


def _listed_keys(
    storage: Storage, prefix: str, victims: Collection[str], but: pa.FixedSizeBinaryArray | None
) -> npt.NDArray[np.bytes_]:
    """The keys of the records that are there, sorted."""
    found = bytearray()
    for info in storage.scan(prefix):
        key = parse_record_name(info.name)
        if key is not None and not _is_doomed(info.name, key, victims):
            found += bytes.fromhex(key.split_id) + bytes.fromhex(key.attempt) + key.generation.to_bytes(4)
    listed = np.frombuffer(found, _KEY)
    if but is not None and len(but):
        attempts = np.ascontiguousarray(listed.view(np.uint8).reshape(-1, _KEY.itemsize)[:, :-4])
        is_left = pc.invert(pc.is_in(to_binary(attempts.tobytes(), attempts.shape[1]), value_set=but))
        listed = listed[is_left.to_numpy(zero_copy_only=False)]
    return np.sort(listed)


def _is_doomed(name: str, key: RecordKey, victims: Collection[str]) -> bool:
    """Whether gc deletes the record or its shard: that of a late writer, whose record nobody knew of, alone."""
    if not victims or name in victims:
        return bool(victims)
    _, encoder_fp, shard_fp, *_ = name.split("/")
    return shard_name(encoder_fp, shard_fp, key.split_id, key.attempt) in victims


def _name(prefix: str, key: bytes) -> str:
    key = key.ljust(_KEY.itemsize, b"\0")  # numpy gives bytes without the zeros that end them
    split_id, attempt, generation = key[:16].hex(), key[16:24].hex(), int.from_bytes(key[24:])
    return f"{prefix}/{split_id[:2]}/{split_id}-{generation}-{attempt}.json"


def _keys(records: RecordTable) -> npt.NDArray[np.bytes_]:
    generations = np.ascontiguousarray(records.numbers("generation"), ">u4").view(np.uint8).reshape(-1, 4)
    return np.concatenate([as_bytes(records.keys()), generations], axis=1).view(_KEY).reshape(-1)


def _read_records(storage: Storage, names: Sequence[str]) -> Iterator[Record]:
    with ThreadPoolExecutor(_THREADS) as pool:
        for slice_ in _slices(names, _THREADS * 4):
            yield from filter(None, pool.map(lambda name: _read_record(storage, name), slice_))


def journalled_names(storage: Storage, name: str) -> Iterator[str]:
    """The names of the records that a journal file copies.

    Raises:
        StoreError: the file is no journal.
    """
    return map(record_name, RecordTable(_read_table(storage, name)))


def _slices(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for begin in range(0, len(names), size):
        yield names[begin : begin + size]


def _read_journal(storage: Storage, name: str, encoder_fp: str, shard_fp: str) -> RecordTable:
    table = _read_table(storage, name)
    wanted = [pc.equal(table["encoder_fp"], encoder_fp), pc.equal(table["shard_fp"], shard_fp)]
    return RecordTable(table.filter(pc.and_(*wanted)))


def _read_table(storage: Storage, name: str) -> pa.Table:
    try:
        table = with_nulls(pq.ParquetFile(pa.BufferReader(storage.read(name))).read(), RECORDS_SCHEMA)
        if not table.schema.equals(RECORDS_SCHEMA):
            raise pa.ArrowInvalid("it has other columns")
        table.validate(full=True)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise StoreError(
            f"{storage.full_uri(name)} is no journal of records ({' '.join(str(error).split())[:200]}); "
            "delete it, then run the same command again"
        ) from None
    return table


def _read_record(storage: Storage, name: str) -> Record | None:
    try:
        record = Record.from_json(storage.read(name), storage.full_uri(name))
    except FileNotFoundError:
        return None  # swept since it was listed
    if record_name(record) != name:
        raise StoreError(f"{storage.full_uri(name)} holds the record of another split; delete it, then run again")
    return record
