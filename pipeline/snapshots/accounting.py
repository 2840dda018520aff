"""The books of a snapshot: what must hold before it is published, computed from its tables.

documents_in comes from the count made apart from the reader, what was embedded from the shards (a
document is one row, or its chunks), what was quarantined from the records: three sources, so that
the sum proves something.
Whatever does not hold here is a fault of Vecmill, and ends the run with nothing published.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError, VecmillError
from pipeline.snapshots.manifest import Accounting
from pipeline.snapshots.table import file_keys, parse_file_name
from pipeline.uris import Storage


@dataclass(frozen=True)
class Books:
    """The tables of a snapshot about to be published, and what they are held against."""

    shards: pa.Table
    """By ordinal."""
    splits: pa.Table
    """By file_uri, begin, end; `file_uri` is dictionary-encoded."""
    documents_before: Mapping[str, int]
    """Of each file of the parent snapshot."""
    files: frozenset[str]
    """The file ids of all input files, from the listing."""
    first_new_ordinal: int
    """Shards below it are the parent's."""
    is_limited: bool
    """Whether files may end before their last split (`--limit`)."""


def prove(books: Books) -> Accounting:
    """The accounting of a snapshot.

    Raises:
        VecmillError: a file, a range or a document is missing or there twice. A bug.
    """
    _prove_tiling(books)
    _prove_counts(books)
    splits = books.splits
    # By shard, not by file: of a file that was looked at again some shards may be the parent's.
    is_new = pc.greater_equal(splits["ordinal"], books.first_new_ordinal)
    new = splits.filter(is_new)
    is_new_shard = pc.greater_equal(books.shards["ordinal"], books.first_new_ordinal)
    in_shards, in_new = _documents(books.shards), _documents(books.shards.filter(is_new_shard))
    uncounted = splits.filter(pc.is_null(splits["num_counted"]))
    files_quarantined = len(_distinct(uncounted["file_id"]))
    accounting = Accounting(
        documents_in=_sum(pc.coalesce(splits["num_counted"], splits["num_documents"])),
        embedded=_sum(in_new) - _sum(new["num_reused"]),
        reused=_sum(in_shards) - _sum(in_new) + _sum(new["num_reused"]),
        quarantined=_sum(splits["num_quarantined"]),
        deleted=_num_deleted(books),
        truncated=_sum(splits["num_truncated"]),
        chunks=_sum(books.shards["num_rows"]),
        tokens=_sum(splits["num_tokens"]),
        files_in=len(books.files),
        files_read=len(_distinct(splits["file_id"])) - files_quarantined,
        files_quarantined=files_quarantined,
    )
    a = accounting
    if a.documents_in != a.embedded + a.reused + a.quarantined or a.files_in != a.files_read + a.files_quarantined:
        raise _bug(f"the books do not balance: {accounting!r}")
    return accounting


def prove_files(storage: Storage, books: Books, victims: Collection[str] = frozenset()) -> None:
    """Every file that the tables name lies in the store, and gc is not about to delete it.

    One listing, no request for a file.

    Raises:
        StoreError: a file is gone, of another size, or doomed.
    """
    missing = [
        *_missing(storage, books.shards["file"], books.shards["size"].combine_chunks(), victims),
        *_missing(storage, books.splits["quarantine_file"].drop_null(), None, victims),
    ]
    for name in missing:
        raise StoreError(
            f"{len(missing)} files of finished splits are missing from the store or damaged, "
            f"first {storage.full_uri(name)}; restore them, or delete the records of these split ids "
            "below records/, then run the same command again"
        )


def _missing(storage: Storage, names: pa.ChunkedArray, sizes: pa.Array | None, victims: Collection[str]) -> list[str]:
    """Those of `names` that a listing does not show, or with another size (None: any will do)."""
    if not len(names):
        return []
    folders = pc.utf8_slice_codeunits(names, 0, len(f"embeddings/{'0' * 16}/{'0' * 16}"))
    found, found_sizes = bytearray(), array("q")
    for folder in sorted(_distinct(folders)):
        for info in storage.scan(folder):
            key = parse_file_name(info.name)
            if key is not None and info.name not in victims:
                found += key
                found_sizes.append(info.size)
    listed = pa.Array.from_buffers(pa.binary(24), len(found_sizes), [None, pa.py_buffer(found)])
    places = pc.index_in(file_keys(names), value_set=listed)
    is_there = pc.is_valid(places)
    if sizes is not None:
        listed_sizes = pa.Array.from_buffers(pa.int64(), len(found_sizes), [None, pa.py_buffer(found_sizes)])
        is_there = pc.and_(is_there, pc.fill_null(pc.equal(listed_sizes.take(places), sizes), False))
    missing: list[str] = names.filter(pc.invert(is_there)).to_pylist()
    return missing


def _prove_tiling(books: Books) -> None:
    """Each file once, each from 0 to its end without gap or overlap."""
    splits = books.splits
    file_ids, uris = _distinct(splits["file_id"]), _distinct(splits["file_uri"])
    if file_ids != books.files:
        missing, unknown = books.files - file_ids, file_ids - books.files
        raise _bug(
            f"{len(missing)} of {len(books.files)} input files have no splits, {len(unknown)} are no input files"
        )
    if len(file_ids) != len(uris):
        raise _bug("two versions of one input file are in one snapshot")
    if not uris:
        return
    begin, end, last = (splits[name].to_numpy() for name in ("begin", "end", "last"))
    codes = splits["file_uri"].combine_chunks().indices.to_numpy()
    is_first = np.concatenate([[True], codes[1:] != codes[:-1]])
    is_final = np.concatenate([is_first[1:], [True]])
    gaps = np.where(is_first, begin != 0, begin != np.concatenate([[0], end[:-1]]))
    wrong_end = (last & ~is_final) if books.is_limited else (last != is_final)
    for index in np.flatnonzero(gaps | wrong_end):
        uri = splits["file_uri"][int(index)].as_py()
        raise _bug(f"the splits of {uri} do not cover it once: at [{begin[index]}, {end[index]})")


def _prove_counts(books: Books) -> None:
    """Both counts of each split agree, and each shard has its splits' documents."""
    splits, shards = books.splits, books.shards
    _prove_splits(splits)
    _prove_unique(shards["ordinal"], "ordinal")
    _prove_unique(shards["file"], "shard")
    counted = pc.fill_null(pc.equal(splits["num_documents"], splits["num_counted"]), True)
    for uri in splits["file_uri"].filter(pc.invert(counted)).to_pylist():
        raise _bug(f"documents of {uri} were counted twice, with two results")
    ordinals, shard_of = np.unique(splits["ordinal"].to_numpy(), return_inverse=True)
    if not np.array_equal(ordinals, shards["ordinal"].to_numpy()):
        raise _bug("the splits name other shards than the shards table holds")
    needed = np.zeros(shards.num_rows, np.int64)
    np.add.at(needed, shard_of, pc.subtract(splits["num_documents"], splits["num_quarantined"]).to_numpy())
    for index in np.flatnonzero(needed != _documents(shards).to_numpy()):
        file = shards["file"][int(index)].as_py()
        raise _bug(f"{file} has not as many rows, or documents in chunks, as its split has without a fault")


def _documents(shards: pa.Table) -> pa.ChunkedArray:
    """How many documents each shard holds."""
    return pc.coalesce(shards["num_documents"], shards["num_rows"])


def _prove_unique(column: pa.ChunkedArray, what: str) -> None:
    if pc.count_distinct(column).as_py() != len(column):
        raise _bug(f"a {what} is in a snapshot twice")


def _prove_splits(splits: pa.Table) -> None:
    """A split is there once; a pack once for each of its files, whole ones all of them, with one shard."""
    num_splits = pc.count_distinct(splits["split_id"]).as_py()
    if num_splits == splits.num_rows:
        return
    found = splits.group_by(["split_id", "ordinal"]).aggregate([("file_uri", "count")])
    packs = found.filter(pc.greater(found["file_uri_count"], 1))["split_id"]
    is_packed = pc.is_in(splits["split_id"], value_set=packs.combine_chunks())
    is_whole = pc.and_(splits["last"], pc.equal(splits["begin"], 0))
    if found.num_rows != num_splits or not pc.all(pc.or_(is_whole, pc.invert(is_packed))).as_py():
        raise _bug("a split is in a snapshot twice")


def _num_deleted(books: Books) -> int:
    """Documents of the parent that are gone, as files tell: vanished files, and what others shrank by.

    Documents replaced one for one within a file are not seen here; telling them takes their ids.
    """
    return sum(deleted_by_uri(books.documents_before, documents_by_uri(books.splits)).values())


def deleted_by_uri(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """How many documents fewer each file has; files without a loss are left out."""
    return {uri: num - now.get(uri, 0) for uri, num in before.items() if num > now.get(uri, 0)}


def documents_by_uri(splits: pa.Table) -> dict[str, int]:
    """Documents of each input file (SPLITS_SCHEMA)."""
    counts = splits.group_by("file_uri").aggregate([("num_documents", "sum")])
    return dict(zip(counts["file_uri"].to_pylist(), counts["num_documents_sum"].to_pylist(), strict=True))


def _distinct(column: pa.ChunkedArray | pa.Array) -> set[str]:
    return set(pc.unique(column).to_pylist())


def _sum(column: pa.ChunkedArray) -> int:
    return int(pc.sum(column).as_py() or 0)


def _bug(what: str) -> VecmillError:
    return VecmillError(f"{what}; nothing was published. This is a bug.")
