"""Which rows of a coming snapshot have an id that an earlier row has; see the package."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.duplicates.pairs import Pairs, Places, batched
from pipeline.errors import StoreError
from pipeline.parallel import map_ahead
from pipeline.uris import Storage

_MAX_MEETING_ROWS = 2**20
_THREADS = 16


@dataclass(frozen=True)
class Duplicates:
    """What is wrong with the ids of a coming snapshot."""

    rows: dict[str, Places] = field(default_factory=dict)
    """Split id -> rows of its shard, ascending, whose id an earlier row has (of a document in chunks: the first)."""
    revived: frozenset[str] = frozenset()
    """Split ids with a row in quarantine whose id no earlier row has any more: to be read again."""

    @property
    def num(self) -> int:
        """Documents to be quarantined."""
        return sum(len(rows) for rows in self.rows.values())


def find_duplicates(store: Storage, coming: pa.Table, *, has_vanished: bool) -> Duplicates:
    """The rows of a coming snapshot whose ids are not theirs, and what comes back from quarantine.

    Reads each quarantine file in the table, and of each shard the footer and two columns. Nothing if
    nothing is new and nothing has vanished; quarantine files alone if nothing is new and they hold no
    duplicates: the parent's ids are unique.

    Args:
        store: rooted at the store.
        coming: COMING_SCHEMA, in its order.
        has_vanished: whether a split of the parent is not among them.

    Raises:
        StoreError: a shard or a quarantine file is missing or damaged.
        EnvironmentFault: storage failed, or the disk for temporary files is full.
    """
    has_new = pc.any(coming["is_new"]).as_py()
    if not has_new and not has_vanished:
        return Duplicates()
    with ThreadPoolExecutor(_THREADS) as pool:
        ranks = _Ranks(coming)
        waiting = _Waiting.of(store, coming, ranks, pool)
        if not has_new and not waiting.ids:
            return Duplicates()
        with tempfile.TemporaryDirectory(prefix="vecmill-ids-") as folder:
            pairs = Pairs(Path(folder))
            shards = _Shards(store, coming, ranks, pool)
            for index, rows, ids in shards.ids(range(coming.num_rows)):
                hashes = _hashes(ids)
                waiting.look(ranks.of(index, np.arange(len(ids))), hashes, ids)
                if has_new:
                    pairs.add(hashes, rows + shards.begins[index])
            losers = [shards.later_of(places) for places in batched(pairs.meetings(), _MAX_MEETING_ROWS)]
    return Duplicates(shards.by_split(np.concatenate([np.empty(0, np.int64), *losers])), waiting.revived())


def missing(store: Storage, name: str) -> StoreError:
    """What is raised for a file that is not there."""
    return StoreError(
        f"missing from the store: {store.full_uri(name)}, which a finished split names; put it back, or delete "
        "the record of this split id below records/, then run the same command again"
    )


def _columns(store: Storage, name: str, *columns: str) -> pa.Table:
    try:
        with store.open(name) as source:
            return pq.ParquetFile(source, pre_buffer=True).read(columns=list(columns))
    except FileNotFoundError:
        raise missing(store, name) from None
    except (pa.ArrowException, OSError) as error:  # storage's own faults are neither
        raise StoreError(f"damaged: {store.full_uri(name)} is no whole file of a split ({error})") from None


def _hashes(ids: pa.Array) -> npt.NDArray[np.uint64]:
    """64 bits of each id: Python's own, which is keyed by the process, so that nobody can make them meet."""
    return np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids)).view(np.uint64)


class _Ranks:
    """Where documents stand in the order that decides which of one id is the first."""

    def __init__(self, coming: pa.Table) -> None:
        self._ranks: Places = pc.coalesce(coming["rank"], pa.array(np.arange(coming.num_rows))).to_numpy()
        self._files = coming["files"]
        self._is_pack = coming["files"].is_valid().to_numpy()

    def of(self, index: int, documents: Places) -> Places:
        """Ranks of documents of a shard by their number; those of one file have one."""
        if not self._is_pack[index]:
            return np.full(len(documents), self._ranks[index])
        files = self._files[index].as_py()
        ends = np.cumsum([file["num_embedded"] for file in files])
        found = np.searchsorted(ends, documents, side="right").clip(max=len(files) - 1)
        ranks: Places = np.array([file["rank"] for file in files], np.int64)[found]
        return ranks

    def of_file(self, index: int, uri: str) -> int:
        """The rank of an input file of a split."""
        if self._is_pack[index]:
            for file in self._files[index].as_py():
                if file["file_uri"] == uri:
                    return int(file["rank"])
        return int(self._ranks[index])


class _Shards:
    """The ids of a table of splits, by shard; a place is a row of all of them one after another."""

    def __init__(self, store: Storage, coming: pa.Table, ranks: _Ranks, pool: ThreadPoolExecutor) -> None:
        self._store, self._ranks, self._pool = store, ranks, pool
        self._files = coming["file"]
        self._split_ids = coming["split_id"]
        self._num_rows: Places = coming["num_rows"].to_numpy()
        self.begins: Places = np.cumsum(self._num_rows) - self._num_rows

    def ids(self, indices: Iterable[int]) -> Iterator[tuple[int, Places, pa.Array]]:
        """(index, rows, ids as bytes) of the documents of each shard that has any, read ahead by a few."""
        filled = [index for index in indices if self._num_rows[index]]
        for index, (rows, ids) in zip(filled, map_ahead(self._pool, self._read, filled, _THREADS), strict=True):
            yield index, rows, ids

    def later_of(self, places: Places) -> Places:
        """Of rows that may have one id, those that are not the first to have it."""
        places = np.sort(places)
        wanted = self._by_shard(places)
        found, ranks = [], [np.empty(0, np.int64)]
        for index, rows, ids in self.ids(list(wanted)):
            documents = np.searchsorted(rows, wanted[index])
            found.append(ids.take(pa.array(documents)))
            ranks.append(self._ranks.of(index, documents))
        codes = pa.chunked_array(found, pa.binary()).combine_chunks().dictionary_encode().indices.to_numpy()
        order = np.lexsort([places, np.concatenate(ranks)])
        is_later = np.ones(len(places), bool)
        is_later[order[np.unique(codes[order], return_index=True)[1]]] = False
        return places[is_later]

    def by_split(self, places: Places) -> dict[str, Places]:
        """Split id -> rows of its shard."""
        return {self._split_ids[index].as_py(): rows for index, rows in self._by_shard(np.sort(places)).items()}

    def _by_shard(self, places: Places) -> dict[int, Places]:
        """Index -> rows of the shard, both ascending; of ascending places."""
        shard = np.searchsorted(self.begins, places, side="right") - 1
        held, first = np.unique(shard, return_index=True)
        ends = [*first[1:].tolist(), len(places)]
        parts = zip(held.tolist(), first.tolist(), ends, strict=False)  # no places: an end, and no shard
        return {index: places[begin:end] - self.begins[index] for index, begin, end in parts}

    def _read(self, index: int) -> tuple[Places, pa.Array]:
        name = self._files[index].as_py()
        table = _columns(self._store, name, "doc_id", "chunk_index")
        if table.num_rows != self._num_rows[index]:
            raise StoreError(
                f"damaged: {self._store.full_uri(name)} has {table.num_rows} rows, not {self._num_rows[index]}"
            )
        rows = np.flatnonzero(table["chunk_index"].to_numpy() == 0)
        ids = table["doc_id"].combine_chunks().cast(pa.binary())
        return rows, ids if len(rows) == len(ids) else ids.take(pa.array(rows))


@dataclass
class _Waiting:
    """Ids in quarantine as duplicates, and the first shard that holds each."""

    splits: list[tuple[str, list[tuple[int, bytes]]]]
    """(split id, (rank, id) of each)."""
    ids: dict[bytes, int]
    """Id -> the least rank of a document that holds it."""
    hashes: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, store: Storage, coming: pa.Table, ranks: _Ranks, pool: ThreadPoolExecutor) -> _Waiting:
        """Those of the quarantine files of a table of splits."""
        names = coming["quarantine_file"]
        indices: list[int] = np.flatnonzero(names.is_valid()).tolist()
        found = map_ahead(pool, lambda index: _duplicates_in(store, names[index].as_py()), indices, _THREADS)
        splits = [
            (coming["split_id"][index].as_py(), [(ranks.of_file(index, uri), doc_id) for uri, doc_id in ids])
            for index, ids in zip(indices, found, strict=True)
            if ids
        ]
        ids = {doc_id: np.iinfo(np.int64).max for _, some in splits for _, doc_id in some}
        return cls(splits, ids, _hashes(pa.array(list(ids), pa.binary())))

    def look(self, ranks: Places, hashes: npt.NDArray[np.uint64], ids: pa.Array) -> None:
        """Take note of the ids that a shard holds."""
        if not self.ids:
            return
        is_near = np.isin(hashes, self.hashes)
        for rank, doc_id in zip(ranks[is_near].tolist(), ids.filter(pa.array(is_near)).to_pylist(), strict=True):
            if doc_id in self.ids:
                self.ids[doc_id] = min(self.ids[doc_id], rank)

    def revived(self) -> frozenset[str]:
        """Splits with an id that neither its file nor those before it hold."""
        return frozenset(
            split_id for split_id, some in self.splits if any(self.ids[doc_id] > rank for rank, doc_id in some)
        )


def _duplicates_in(store: Storage, name: str) -> list[tuple[str, bytes]]:
    table = _columns(store, name, "doc_id", "reason", "input_file")
    table = table.filter(pc.equal(table["reason"], "duplicate_id"))
    return list(zip(table["input_file"].to_pylist(), table["doc_id"].cast(pa.binary()).to_pylist(), strict=True))
