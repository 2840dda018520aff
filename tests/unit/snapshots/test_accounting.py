"""The books: documents and files in equal what became of them, or nothing is published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import StoreError, VecmillError
from pipeline.snapshots.accounting import Books, prove
from pipeline.snapshots.commit import Publication, publish
from pipeline.snapshots.manifest import latest
from pipeline.snapshots.reader import Snapshot
from pipeline.snapshots.records import Record
from pipeline.uris import Storage
from tests.stores import file_id, make_member, make_pack, make_record, publication, put


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def _put_all(storage: Storage, *records: Record) -> list[Record]:
    return [put(storage, record) for record in records]


def _refused(storage: Storage, bad: Publication, match: str) -> None:
    with pytest.raises(VecmillError, match=match) as caught:
        publish(storage, bad)
    assert caught.value.exit_code == 1
    assert "This is a bug" in str(caught.value)
    assert latest(storage) is None
    assert storage.list("snapshots") == []


def test_what_became_of_every_document(storage: Storage) -> None:
    records = _put_all(
        storage,
        make_record("a", 0, 3, last=False),
        make_record("a", 3, 7, num_quarantined=2),
        make_record("b", 0, 4, num_counted=None, num_documents=4),  # cut off: what was read before is kept
        make_record("c", 0, 0, num_counted=None, num_documents=0),  # not what its name says
        make_record("d", 0, 10),
    )
    one = publish(storage, publication(None, records))
    expected = {
        "documents_in": 21,
        "embedded": 19,
        "reused": 0,
        "quarantined": 2,
        "deleted": 0,
        "truncated": 5,
        "chunks": 19,
        "tokens": 50,
        "files_in": 4,
        "files_read": 2,
        "files_quarantined": 2,
    }
    assert one.accounting.model_dump() == expected
    # The next night: a unchanged, b and c gone, d shrank, e is new.
    changed = _put_all(storage, make_record("d", 0, 6, identity="v2"), make_record("e", 0, 5, num_reused=1))
    two = publish(storage, publication(one, changed, carried=[file_id("a")]))
    assert two.accounting.model_dump() == expected | {
        "documents_in": 18,
        "embedded": 10,
        "reused": 6,
        "deleted": 8,
        "truncated": 4,
        "chunks": 16,
        "tokens": 40,
        "files_in": 3,
        "files_read": 3,
        "files_quarantined": 0,
    }


def test_counts_that_differ_are_refused(storage: Storage) -> None:
    records = _put_all(storage, make_record(num_documents=3, num_counted=4))
    _refused(storage, publication(None, records), "a.parquet were counted twice, with two results")


def test_a_shard_with_other_rows_is_refused(storage: Storage) -> None:
    (record,) = _put_all(storage, make_record())
    bad = replace(record, shard=replace(record.shard, num_rows=2))
    _refused(storage, publication(None, [bad]), "has not as many rows")


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 3, False)],  # the end is missing
        [(1, 3, True)],  # the beginning
        [(0, 3, False), (4, 6, True)],  # a gap
        [(0, 3, False), (2, 6, True)],  # an overlap
        [(0, 3, True), (3, 6, True)],  # two ends
    ],
)
def test_a_file_not_covered_once_is_refused(storage: Storage, ranges: list[tuple[int, int, bool]]) -> None:
    records = _put_all(storage, *(make_record("x", begin, end, last=last) for begin, end, last in ranges))
    _refused(storage, publication(None, [*records, make_record("y")]), "the splits of x do not cover it once")


def test_a_limited_run_may_end_within_a_file(storage: Storage) -> None:
    records = _put_all(storage, make_record("a"), make_record("b", 0, 2, last=False))
    assert publish(storage, publication(None, records, limit=5)).accounting.documents_in == 5
    _refused(Storage(f"{storage.uri}/x"), publication(None, [make_record("b", 1, 2, last=False)], limit=5), "cover it")


def test_a_listed_file_without_splits_is_refused(storage: Storage) -> None:
    records = _put_all(storage, make_record("a"))
    listed = [file_id("a"), file_id("b")]
    _refused(storage, publication(None, records, files=listed), "1 of 2 input files have no splits")
    _refused(storage, publication(None, records, files=[]), "1 are no input files")


def test_two_versions_of_a_file_are_refused(storage: Storage) -> None:
    records = _put_all(storage, make_record("a"), make_record("a", identity="v2"))
    _refused(storage, publication(None, records), "two versions of one input file")


def test_a_split_or_shard_listed_twice_is_refused(storage: Storage) -> None:
    first = make_record("a", 0, 3, last=False)
    second = make_record("a", 3, 6, split_id=first.split_id)
    _refused(storage, publication(None, _put_all(storage, first, second)), "a split is in a snapshot twice")
    with pytest.raises(StoreError, match="lists files of another"):
        publication(None, [first, replace(make_record("b"), shard=first.shard)])


def test_tables_that_list_a_shard_twice_are_refused(storage: Storage) -> None:
    records = _put_all(storage, make_record("a"), make_record("b"))
    found = Snapshot(storage, publish(storage, publication(None, records)))
    splits = found.splits.set_column(2, "file_uri", found.splits["file_uri"].dictionary_encode())
    twice = found.shards.set_column(1, "file", pa.array([records[0].shard.file] * 2))
    files = frozenset(record.file_id for record in records)
    books = Books(found.shards, splits, {}, files, first_new_ordinal=0, is_limited=False)
    assert prove(books).documents_in == 6
    with pytest.raises(VecmillError, match="a shard is in a snapshot twice"):
        prove(replace(books, shards=twice))


def test_a_file_both_carried_and_recorded_is_refused(storage: Storage) -> None:
    (record,) = _put_all(storage, make_record("a"))
    one = publish(storage, publication(None, [record]))
    with pytest.raises(VecmillError, match="This is a bug"):
        publish(storage, publication(one, [record], carried=[record.file_id]))


def test_shards_of_the_parent_are_reused_also_in_a_file_that_was_looked_at_again(storage: Storage) -> None:
    """Its records are given anew, and nothing of it was encoded again."""
    kept, replaced = _put_all(
        storage, make_record("a", 0, 3, last=False, num_reused=1), make_record("a", 3, 6, num_reused=1)
    )
    one = publish(storage, publication(None, [kept, replaced]))
    (again,) = _put_all(storage, make_record("a", 3, 6, generation=1))
    found = publish(storage, publication(one, [kept, again])).accounting
    assert (found.embedded, found.reused, found.documents_in) == (3, 3, 6)


def _remove(storage: Storage, name: str) -> None:
    storage.delete([name])


def _cut(storage: Storage, name: str) -> None:
    storage.put(name, storage.read(name)[:-1])


@pytest.mark.parametrize("damage", [_remove, _cut])
def test_a_shard_that_is_gone_or_cut_is_not_published(storage: Storage, damage: Any) -> None:
    records = _put_all(storage, make_record("a"), make_record("b"))
    damage(storage, records[1].shard.file)
    with pytest.raises(StoreError, match=f"1 files of finished splits .*{records[1].shard.file}"):
        publish(storage, publication(None, records))
    assert latest(storage) is None


def test_a_quarantine_file_that_is_gone_is_not_published(storage: Storage) -> None:
    (record,) = _put_all(storage, make_record(num_quarantined=1))
    assert record.quarantine is not None
    storage.delete([record.quarantine.file])
    with pytest.raises(StoreError, match="quarantine/"):
        publish(storage, publication(None, [record]))


def test_each_file_of_a_pack_is_accounted_for_by_itself(storage: Storage) -> None:
    """One that cannot be read is a quarantined file; the others of its pack are read."""
    pack = make_pack(
        make_member("a", 3, num_quarantined=1, num_truncated=1),
        make_member("c", 2, num_counted=None),
        make_member("d", 0),
        make_member("e", 0, num_counted=None),
    )
    one = publish(storage, publication(None, _put_all(storage, pack, make_record("b"))))
    accounting = one.accounting
    assert (accounting.files_in, accounting.files_read, accounting.files_quarantined) == (5, 3, 2)
    assert (accounting.documents_in, accounting.embedded, accounting.quarantined) == (8, 7, 1)
    splits = Snapshot(storage, one).splits
    assert splits["file_uri"].to_pylist() == ["a", "b", "c", "d", "e"]
    assert splits.select(["split_id", "ordinal", "begin", "end", "last", "num_documents", "num_truncated"]).to_pylist()[
        2
    ] == {
        "split_id": pack.split_id, "ordinal": 0, "begin": 0, "end": 2, "last": True, "num_documents": 2,
        "num_truncated": 0,
    }  # fmt: skip
    assert splits["quarantine_file"].to_pylist() == [
        pack.quarantine and pack.quarantine.file if uri != "b" else None for uri in "abcde"
    ]
    # The next night: carried as it is.
    two = publish(storage, publication(one, [], carried=splits["file_id"].to_pylist()))
    assert (two.accounting.reused, two.accounting.files_in, two.accounting.deleted) == (7, 5, 0)


def test_a_pack_is_unique_by_file(storage: Storage) -> None:
    pack = make_pack(make_member("a"), make_member("b"))
    other = make_pack(make_member("c"), make_member("d"), split_id=pack.split_id)
    _refused(storage, publication(None, _put_all(storage, pack, other)), "a split is in a snapshot twice")
    ranged = [make_record("a", 0, 3, last=False), make_record("b", 0, 3)]
    same = [ranged[0], replace(ranged[1], split_id=ranged[0].split_id)]
    with pytest.raises(StoreError):
        publication(None, same)


def test_a_file_in_two_packs_is_refused(storage: Storage) -> None:
    records = _put_all(
        storage, make_pack(make_member("a"), make_member("b")), make_pack(make_member("b"), make_member("c"))
    )
    _refused(storage, publication(None, records), "the splits of b do not cover it once")


def test_a_member_counted_with_two_results_is_refused(storage: Storage) -> None:
    records = _put_all(storage, make_pack(make_member("a"), make_member("b", 2, num_counted=1)))
    _refused(storage, publication(None, records), "documents of b were counted twice")
