"""The books of a snapshot: what must hold before it is published, computed from its tables.

documents_in comes from the count made apart from the reader, what was embedded from the rows of
the shards, what was quarantined from the records: three sources, so that the sum proves something.
Whatever does not hold here is a fault of Vecmill, and ends the run with nothing published.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError, VecmillError
from pipeline.snapshots.manifest import Accounting
from pipeline.uris import Storage


@dataclass(frozen=True)
class Books:
    """The tables of a snapshot about to be published, and what they are held against."""

    shards: pa.Table
    splits: pa.Table
    """By file_uri, begin, end."""
    parent_splits: pa.Table
    files: frozenset[str]
    """The file ids of all input files, from the listing."""
    carried: frozenset[str]
    """Those whose splits are the parent's."""
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
    is_carried = pc.is_in(splits["file_id"], value_set=pa.array(sorted(books.carried), pa.string()))
    new = splits.filter(pc.invert(is_carried))
    carried = splits.filter(is_carried)
    rows_of_new = _sum(_rows_of(books.shards, new))
    uncounted = splits.filter(pc.is_null(splits["num_counted"]))
    files_quarantined = len(set(uncounted["file_id"].to_pylist()))
    accounting = Accounting(
        documents_in=_sum(pc.coalesce(splits["num_counted"], splits["num_documents"])),
        embedded=rows_of_new - _sum(new["num_reused"]),
        reused=_sum(_rows_of(books.shards, carried)) + _sum(new["num_reused"]),
        quarantined=_sum(splits["num_quarantined"]),
        deleted=_num_deleted(books),
        truncated=_sum(splits["num_truncated"]),
        chunks=_sum(books.shards["num_rows"]),
        tokens=_sum(splits["num_tokens"]),
        files_in=len(books.files),
        files_read=len(set(splits["file_id"].to_pylist())) - files_quarantined,
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
    sizes = dict(zip(books.shards["file"].to_pylist(), books.shards["size"].to_pylist(), strict=True))
    wanted: dict[str, int | None] = {**sizes, **dict.fromkeys(books.splits["quarantine_file"].drop_null().to_pylist())}
    # <kind>/<encoder_fp>/<shard_fp>/<xx>/<file>
    prefixes = sorted({"/".join(name.split("/")[:3]) for name in wanted})
    for prefix in prefixes:
        for info in storage.list(prefix):
            if info.name in wanted and wanted[info.name] in (None, info.size) and info.name not in victims:
                del wanted[info.name]
    for name in wanted:
        raise StoreError(
            f"{len(wanted)} files of finished splits are missing from the store or damaged, "
            f"first {storage.full_uri(name)}; restore them, or delete the records of these split ids "
            "below records/, then run the same command again"
        )


def _prove_tiling(books: Books) -> None:
    """Each file once, each from 0 to its end without gap or overlap."""
    splits = books.splits
    uris = np.array(splits["file_uri"].to_pylist(), dtype=object)
    file_ids = splits["file_id"].to_pylist()
    if set(file_ids) != books.files:
        missing, unknown = books.files - set(file_ids), set(file_ids) - books.files
        raise _bug(
            f"{len(missing)} of {len(books.files)} input files have no splits, {len(unknown)} are no input files"
        )
    if len(set(file_ids)) != len(set(uris)):
        raise _bug("two versions of one input file are in one snapshot")
    if not len(uris):
        return
    begin, end, last = (splits[name].to_numpy() for name in ("begin", "end", "last"))
    is_first = np.concatenate([[True], uris[1:] != uris[:-1]])
    is_final = np.concatenate([is_first[1:], [True]])
    gaps = np.where(is_first, begin != 0, begin != np.concatenate([[0], end[:-1]]))
    wrong_end = (last & ~is_final) if books.is_limited else (last != is_final)
    for index in np.flatnonzero(gaps | wrong_end):
        raise _bug(f"the splits of {uris[index]} do not cover it once: at [{begin[index]}, {end[index]})")


def _prove_counts(books: Books) -> None:
    """Both counts of each split agree, and each shard has the rows that its splits' documents need."""
    splits, shards = books.splits, books.shards
    _prove_unique(splits["split_id"], "split")
    _prove_unique(shards["ordinal"], "ordinal")
    _prove_unique(shards["file"], "shard")
    counted = pc.fill_null(pc.equal(splits["num_documents"], splits["num_counted"]), True)
    for uri in splits["file_uri"].filter(pc.invert(counted)).to_pylist():
        raise _bug(f"documents of {uri} were counted twice, with two results")
    if set(splits["ordinal"].to_pylist()) != set(shards["ordinal"].to_pylist()):
        raise _bug("the splits name other shards than the shards table holds")
    # Every document that is not quarantined is one row: documents are not chunked yet.
    needed = pc.subtract(splits["num_documents"], splits["num_quarantined"])
    by_split = pa.table({"ordinal": splits["ordinal"], "needed": needed})
    per_shard = by_split.group_by("ordinal").aggregate([("needed", "sum")])
    joined = shards.select(["ordinal", "file", "num_rows"]).join(per_shard, "ordinal")
    for file in joined["file"].filter(pc.not_equal(joined["num_rows"], joined["needed_sum"])).to_pylist():
        raise _bug(f"{file} has not as many rows as its split has documents without a fault")


def _prove_unique(column: pa.ChunkedArray, what: str) -> None:
    if pc.count_distinct(column).as_py() != len(column):
        raise _bug(f"a {what} is in a snapshot twice")


def _rows_of(shards: pa.Table, splits: pa.Table) -> pa.ChunkedArray:
    """num_rows of the shards that these splits name."""
    return shards.filter(pc.is_in(shards["ordinal"], value_set=splits["ordinal"].combine_chunks()))["num_rows"]


def _num_deleted(books: Books) -> int:
    """Documents of the parent that are gone, as files tell: vanished files, and what others shrank by.

    Documents replaced one for one within a file are not seen here; telling them takes their ids.
    """
    return sum(deleted_by_uri(documents_by_uri(books.parent_splits), documents_by_uri(books.splits)).values())


def deleted_by_uri(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """How many documents fewer each file has; files without a loss are left out."""
    return {uri: num - now.get(uri, 0) for uri, num in before.items() if num > now.get(uri, 0)}


def documents_by_uri(splits: pa.Table) -> dict[str, int]:
    """Documents of each input file (SPLITS_SCHEMA)."""
    counts = splits.group_by("file_uri").aggregate([("num_documents", "sum")])
    return dict(zip(counts["file_uri"].to_pylist(), counts["num_documents_sum"].to_pylist(), strict=True))


def _sum(column: pa.ChunkedArray) -> int:
    return int(pc.sum(column).as_py() or 0)


def _bug(what: str) -> VecmillError:
    return VecmillError(f"{what}; nothing was published. This is a bug.")
