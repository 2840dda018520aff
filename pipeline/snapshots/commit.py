"""The commit protocol: from records to a published manifest.

Every put is atomic, and no name that a manifest can list is ever put twice with other bytes: names
hold a random attempt, or a run and a number. Two objects are put only if absent: store.json and
manifests. What a crash just after each step leaves, and who cleans it:

    step                  what lies there then                        the next run            cleaned by
    --------------------  ------------------------------------------  ----------------------  ----------------
    (within any put)      locally a hidden temporary file             does not see it         gc
    store.json            a store without snapshots                   goes on                 nobody: it counts
    run.json "starting"   a run that looks live                       sees that its process   gc, with the run
       or "running"                                                   is gone, or waits 20 s
    embedding shard       a file no record names                      does the split again    gc (orphan)
    quarantine file       two files no record names                   does the split again    gc (orphans)
    record                a finished split                            takes it, by a listing  nobody: it counts
                                                                      and one request
    journal               the same, with fewer requests               takes them at once      gc, with its records
    shards table          a table no manifest names                   writes its own          gc (orphan)
    splits table          two tables no manifest names                writes its own          gc (orphans)
    manifest              a snapshot, whole                           finds nothing to do     nobody: it counts
    run.json "finished"   the same                                    finds nothing to do     gc, with the run
    work of an index      intermediates and parts, with records       takes what is recorded  gc, once it is listed
    index.json            an index that no manifest names             publishes it            gc, with its rows

A reader needs the manifest alone and so sees a snapshot whole or not at all. Two publishers that
planned on the same parent want the same number; storage lets one have it. Whoever does not get it
reads what lies there: under one's own commit id it was a success whose reply got lost; an index
or a gc changed no row, so the next number is tried on top of it; an embed or a rollback won, and
this run ends (exit 4), its records kept for the next.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConflictError, StorageFault, StoreError, VecmillError
from pipeline.snapshots.accounting import Books, documents_by_uri, prove, prove_files
from pipeline.snapshots.draft import draft_tables, filtered
from pipeline.snapshots.manifest import (
    SHARDS_SCHEMA,
    SPLITS_SCHEMA,
    Accounting,
    IndexRef,
    Manifest,
    manifest_name,
    put_table,
    read_manifest,
    read_table,
    utc_now,
)
from pipeline.snapshots.records import Record
from pipeline.snapshots.table import RecordTable
from pipeline.uris import Storage


@dataclass(frozen=True)
class Publication:
    """What a run wants to publish.

    `records` are those of every file that is not carried: a tiling of each, from `records.tile`.
    `carried` are the ids of files that the parent lists and that are still in the input, unchanged.
    `files` are the ids of all input files, from the listing: none may be without splits.
    """

    run_id: str
    parent: Manifest | None
    files: Collection[str]
    records: Sequence[Record]
    carried: Collection[str]
    encoder: Mapping[str, Any]
    """All that makes the encoder fingerprint, spelled out."""
    encoder_fp: str
    shard_fp: str
    keep: Mapping[str, str]
    """Kept columns and their Arrow types."""
    config: Mapping[str, Any]
    """Redacted."""
    versions: Mapping[str, str]
    limit: int | None = None
    commit_id: str = field(default_factory=lambda: secrets.token_hex(16))


def publish(storage: Storage, publication: Publication) -> Manifest:
    """Prove that nothing is missing, put the tables, then the manifest.

    Raises:
        VecmillError: the books do not balance: documents or files are missing or doubled. A bug.
        StoreError: a file that a record lists is gone.
        ConflictError: another embed or a rollback was published on the same parent, or a gc deletes what this needs.
        StorageFault: storage failed, and nothing of ours was published.
    """
    _refuse_mixture(publication)
    try:
        return _publish(storage, publication)
    except StoreError as error:
        # What is missing may be gone for good reason: a gc took it, after this run had planned on it.
        number = publication.parent.snapshot_id + 1 if publication.parent else 1
        if storage.exists(manifest_name(number)):
            raise ConflictError(
                f"snapshot {number} came first, and a file that this run needs is gone ({error}); nothing was "
                "published here: run the same command again"
            ) from None
        raise


def _publish(storage: Storage, publication: Publication) -> Manifest:
    parent = publication.parent
    # What planning took and gave back would else be held beside what publishing takes.
    pa.default_memory_pool().release_unused()
    books, next_ordinal = _books(storage, publication)
    accounting = prove(books)
    prove_files(storage, books, frozenset((parent.victims if parent else None) or ()))
    draft = _put_tables(storage, publication, books, accounting, next_ordinal)
    while True:
        winner = try_number(storage, draft)
        if winner is None:
            return draft
        draft = _on_top_of(draft, winner, books)


def _refuse_mixture(publication: Publication) -> None:
    """All rows of a snapshot are of one encoder and one config."""
    parent = publication.parent
    wanted = (publication.encoder_fp, publication.shard_fp)
    found = RecordTable.of(publication.records).fingerprints()
    if publication.carried:
        found.add((parent.encoder_fp, parent.shard_fp) if parent else ("", ""))
    if not found <= {wanted}:
        raise VecmillError(
            f"splits of {found - {wanted}} in a snapshot of {wanted}; nothing was published. This is a bug."
        )


def _books(storage: Storage, publication: Publication) -> tuple[Books, int]:
    """The tables of the new snapshot, and the next free ordinal."""
    parent = publication.parent
    parent_shards, parent_splits = _parent_tables(storage, parent)
    kept = pc.is_in(parent_splits["file_id"], value_set=pa.array(sorted(publication.carried), pa.string()))
    shards, splits, next_ordinal = draft_tables(
        parent_shards,
        filtered(parent_splits, kept),
        RecordTable.of(publication.records),
        parent.next_ordinal if parent else 0,
    )
    books = Books(
        shards,
        splits,
        documents_by_uri(parent_splits),
        files=frozenset(publication.files),
        first_new_ordinal=parent.next_ordinal if parent else 0,
        is_limited=publication.limit is not None,
    )
    return books, next_ordinal


def _put_tables(
    storage: Storage, publication: Publication, books: Books, accounting: Accounting, next_ordinal: int
) -> Manifest:
    """Put the tables; the manifest that names them and follows the parent."""
    parent = publication.parent
    number = parent.snapshot_id + 1 if parent else 1
    stem = f"snapshots/{number:020d}-{publication.run_id}"
    return Manifest(
        snapshot_id=number,
        parent_id=parent.snapshot_id if parent else None,
        kind="embed",
        commit_id=publication.commit_id,
        run_id=publication.run_id,
        created_at=utc_now(),
        encoder=dict(publication.encoder),
        encoder_fp=publication.encoder_fp,
        shard_fp=publication.shard_fp,
        keep=dict(publication.keep),
        limit=publication.limit,
        next_ordinal=next_ordinal,
        shards=put_table(storage, f"{stem}.shards.parquet", books.shards),
        splits=put_table(storage, f"{stem}.splits.parquet", books.splits),
        index=_carried_index(parent, publication.encoder_fp),
        victims=parent.victims if parent else None,
        accounting=accounting,
        versions=dict(publication.versions),
        config=dict(publication.config),
    )


def _parent_tables(storage: Storage, parent: Manifest | None) -> tuple[pa.Table, pa.Table]:
    if parent is None:
        return SHARDS_SCHEMA.empty_table(), SPLITS_SCHEMA.empty_table()
    return read_table(storage, parent.shards, SHARDS_SCHEMA), read_table(storage, parent.splits, SPLITS_SCHEMA)


def try_number(storage: Storage, draft: Manifest) -> Manifest | None:
    """Put the manifest under its number. None: it is ours; else the manifest that has the number.

    Raises:
        StorageFault: storage failed, and the number is not ours.
    """
    fault: StorageFault | None = None
    try:
        if storage.put_if_absent(manifest_name(draft.snapshot_id), draft.to_json()):
            return None
    except StorageFault as error:
        fault = error  # the put may have gone through all the same
    try:
        found = read_manifest(storage, draft.snapshot_id)
    except FileNotFoundError:
        raise fault or StorageFault(
            f"snapshot {draft.snapshot_id} was refused by {storage.uri} and is not there; run the same command again"
        ) from None
    return None if found.commit_id == draft.commit_id else found


def _carried_index(parent: Manifest | None, encoder_fp: str) -> IndexRef | None:
    """The parent's index, which goes on serving the rows it was built of, until the next `index`.

    Else nothing could be searched between the two; answers come from it alone, and say so. But not from the
    vectors of another encoder: queries of this one compare to nothing there.
    """
    return parent.index if parent and parent.encoder_fp == encoder_fp else None


def _on_top_of(draft: Manifest, winner: Manifest, books: Books) -> Manifest:
    """The draft as successor of a manifest that took its number but changed no row."""
    tables = [draft.shards.file, draft.splits.file]
    _refuse_loss(winner, books.shards["file"].to_pylist() + books.splits["quarantine_file"].to_pylist() + tables)
    return draft.model_copy(
        update={
            "snapshot_id": winner.snapshot_id + 1,
            "parent_id": winner.snapshot_id,
            "index": _carried_index(winner, draft.encoder_fp),
            "victims": winner.victims,
        }
    )


def _refuse_loss(winner: Manifest, files: Iterable[str]) -> None:
    """Refuse to publish on top of a manifest that dooms one of these files, or changed rows."""
    if not frozenset(winner.victims or ()).isdisjoint(files):
        raise ConflictError(
            f"run {winner.run_id} ({winner.kind}) is deleting files of this run; nothing was published here: "
            "run the same command again"
        )
    if winner.kind in ("embed", "rollback"):
        raise ConflictError(
            f"run {winner.run_id} published snapshot {winner.snapshot_id} ({winner.kind}) first; nothing was published "
            "here, and what was done is kept: run the same command again"
        )


def publish_index(
    storage: Storage, current: Manifest, index: IndexRef, files: Collection[str], run_id: str
) -> Manifest:
    """Put the manifest of an index: the snapshot as it is, with that index.

    Args:
        storage: rooted at the store.
        current: the snapshot that was indexed, or an index or a gc on top of it.
        index: built of its rows.
        files: what it lists.
        run_id: whose it is.

    Raises:
        ConflictError: an embed or a rollback was published meanwhile: the index is not of the current rows; or a gc
            deletes what it lists.
        StorageFault: storage failed, and nothing of ours was published.
    """
    draft = current.successor("index", run_id, index=index)
    while True:
        winner = try_number(storage, draft)
        if winner is None:
            return draft
        _refuse_loss(winner, [*files, current.shards.file, current.splits.file])
        if winner.index == index:
            return winner
        draft = winner.successor("index", run_id, index=index)
