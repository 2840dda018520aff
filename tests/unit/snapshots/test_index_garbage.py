"""gc of indexes: what kept snapshots are searched by stays, with the rows it is of; the rest goes, in an order."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pipeline.errors import ConflictError
from pipeline.snapshots.commit import publish, publish_index
from pipeline.snapshots.gc import collect, gc
from pipeline.snapshots.index_garbage import in_steps
from pipeline.snapshots.lease import Lease, new_run_id
from pipeline.snapshots.manifest import IndexRef, Manifest, latest
from pipeline.snapshots.reader import Snapshot
from pipeline.snapshots.records import Record
from pipeline.uris import Storage
from tests.stores import FaultyStorage, Killed, file_id, make_record, names_in, publication, put

pytestmark = pytest.mark.usefixtures("no_fsync")

WORK = ("work/panel.parquet", "work/assign/0-a.json", "work/assign/0-a.arrows", "work/merge/0-x-a.parquet")
TOP = ("index.json", "lists.parquet", "centroids.parquet", "deleted.parquet", "panel.parquet")
PARTS = ("codes/part-0-a.parquet", "addresses/part-0-a.parquet")


def clean(storage: Storage, *, keep: int = 1, everything: bool = False) -> None:
    """gc without its lease."""
    collect(storage, "gc-run", keep=keep, everything=everything, ended_runs={"run"})


def current(storage: Storage) -> Manifest:
    found = latest(storage)
    assert found is not None
    return found


def folder_of(manifest: Manifest, how: str = "1") -> str:
    return f"indexes/{manifest.rows_fp}-{how * 16}"


def put_index(storage: Storage, manifest: Manifest, how: str = "1", *, more: tuple[str, ...] = ()) -> set[str]:
    """The files of an index of a snapshot, and what its build leaves; their names."""
    folder = folder_of(manifest, how)
    listed = [{"file": f"{folder}/{name}"} for name in (*TOP[1:], *PARTS)]
    for name in (*WORK, *TOP, *PARTS, *more):
        storage.put(f"{folder}/{name}", orjson.dumps({"parts": [{"codes": one} for one in listed]}))
    return {f"{folder}/{name}" for name in (*WORK, *TOP, *PARTS, *more)}


def publish_put(storage: Storage, manifest: Manifest, how: str = "1") -> Manifest:
    """A manifest that names the index that was put."""
    file = f"{folder_of(manifest, how)}/index.json"
    ref = IndexRef(file=file, checksum="c", snapshot_id=manifest.snapshot_id)
    return publish_index(storage, current(storage), ref, [file], "run")


def embed(storage: Storage, version: str, parent: Manifest | None = None) -> tuple[Manifest, Record]:
    """A snapshot of the file "a" in this version, beside "b" that stays."""
    a = put(storage, make_record("a", identity=version))
    if parent is None:
        return publish(storage, publication(None, [a, put(storage, make_record("b"))])), a
    return publish(storage, publication(parent, [a], carried=[file_id("b")])), a


def test_a_published_index_stays_and_what_its_build_left_goes(storage: Storage) -> None:
    one, _ = embed(storage, "v1")
    lost = ("codes/part-0-lost.parquet", "addresses/part-0-lost.parquet", "work/merge/0-x-lost.parquet")
    put_index(storage, one, more=lost)
    publish_put(storage, one)
    before = names_in(storage)
    clean(storage)
    folder = folder_of(one)
    assert before - names_in(storage) == {f"{folder}/{name}" for name in (*WORK, *lost)}
    assert current(storage).index == publish_index_ref(one)


def publish_index_ref(manifest: Manifest) -> IndexRef:
    return IndexRef(file=f"{folder_of(manifest)}/index.json", checksum="c", snapshot_id=manifest.snapshot_id)


def test_the_rows_that_an_index_serves_stay_while_a_newer_snapshot_names_it(storage: Storage) -> None:
    """Answers come from their vectors until the next index."""
    one, old = embed(storage, "v1")
    put_index(storage, one)
    served = publish_put(storage, one)
    two, _ = embed(storage, "v2", served)
    assert two.index == served.index, "the index goes on serving"
    clean(storage, keep=1)
    there = names_in(storage)
    assert {old.shard.file, one.shards.file, one.splits.file} <= there
    assert {f"{folder_of(one)}/{name}" for name in (*TOP, *PARTS)} <= there
    assert Snapshot(storage, one).shards.num_rows == 2
    put_index(storage, two)
    publish_put(storage, two)
    clean(storage, keep=1)
    there = names_in(storage)
    assert {old.shard.file, one.shards.file, one.splits.file}.isdisjoint(there)
    assert not [name for name in there if name.startswith(folder_of(one))], "an index of a dropped snapshot"
    assert {f"{folder_of(two)}/{name}" for name in (*TOP, *PARTS)} <= there


def test_an_index_of_another_encoder_is_not_carried(storage: Storage) -> None:
    """Queries of the new one compare to nothing there."""
    one, _ = embed(storage, "v1")
    put_index(storage, one)
    served = publish_put(storage, one)
    other = [put(storage, make_record(uri, encoder_fp="f" * 16)) for uri in "ab"]
    assert publish(storage, publication(served, other, encoder_fp="f" * 16)).index is None


def test_a_build_that_can_be_gone_on_with_stays_unless_asked_for(storage: Storage) -> None:
    one, _ = embed(storage, "v1")
    waiting = put_index(storage, one)
    clean(storage)
    assert waiting <= names_in(storage)
    clean(storage, everything=True)
    assert waiting.isdisjoint(names_in(storage))
    waiting = put_index(storage, one)
    embed(storage, "v2", current(storage))
    clean(storage, keep=1)
    assert waiting.isdisjoint(names_in(storage)), "of rows that no kept snapshot has"


def test_a_dry_gc_beside_a_build_finds_nothing_of_it(storage: Storage) -> None:
    one, _ = embed(storage, "v1")
    put_index(storage, one)
    with Lease(storage, new_run_id()):
        assert gc(storage, keep=1)["index_files"] == 0
        with pytest.raises(ConflictError, match="holds the store"):
            gc(storage, keep=1, delete=True)


def test_an_index_whose_json_cannot_be_read_is_left_alone(storage: Storage) -> None:
    one, _ = embed(storage, "v1")
    put_index(storage, one)
    publish_put(storage, one)
    storage.put(f"{folder_of(one)}/index.json", b"{")
    before = names_in(storage)
    clean(storage)
    assert before <= names_in(storage)


def test_other_names_in_the_folder_are_not_touched(storage: Storage) -> None:
    embed(storage, "v1")
    storage.put("indexes/mine/notes.txt", b"x")
    clean(storage, everything=True)
    assert "indexes/mine/notes.txt" in names_in(storage)


def test_what_tells_that_something_is_done_goes_before_it(storage: Storage) -> None:
    one, _ = embed(storage, "v1")
    files = put_index(storage, one, more=("rotation-ab.parquet",))
    steps = [[name.partition("/")[2].partition("/")[2] for name in some] for some in in_steps(files)]
    assert steps[0] == ["index.json"]
    assert set(steps[1]) == set(TOP[1:])
    assert set(steps[2]) == {"work/assign/0-a.json", "work/merge/0-x-a.parquet"}
    assert {"codes/part-0-a.parquet", "work/assign/0-a.arrows", "rotation-ab.parquet"} <= set(steps[3])


def test_killed_after_any_delete_what_is_left_is_never_taken_for_more_than_it_is(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = embed(storage, "v1")
    real = Storage.delete
    for kill_at in range(4):
        put_index(storage, one)
        calls: list[list[str]] = []

        def delete(self: Storage, doomed: Any, calls: list[list[str]] = calls, last: int = kill_at) -> None:
            some = list(doomed)
            if some and some[0].startswith("indexes/"):
                calls.append(some)
                if len(calls) > last:
                    raise Killed
            real(self, some)

        with monkeypatch.context() as patch:
            patch.setattr(Storage, "delete", delete)
            with pytest.raises(Killed):
                clean(storage, everything=True)
        left = {name.partition("/")[2].partition("/")[2] for name in names_in(storage) if name.startswith("indexes/")}
        assert ("index.json" in left) <= (set(TOP) | set(PARTS) <= left)
        assert ("lists.parquet" in left) <= (set(PARTS) <= left)
        assert ("work/merge/0-x-a.parquet" in left) <= (set(PARTS) <= left)
        assert ("work/assign/0-a.json" in left) <= ("work/assign/0-a.arrows" in left)
        clean(storage)
        assert not [name for name in names_in(storage) if name.startswith("indexes/")], "the next gc finishes it"


def test_the_lost_reply_to_ones_own_put_of_an_index_is_a_success(storage: Storage) -> None:
    one, _ = embed(storage, "v1")
    put_index(storage, one)
    lossy = FaultyStorage(storage, after=_raise)
    ref = publish_index_ref(one)
    assert publish_index(lossy, one, ref, [ref.file], "run").index == ref
    assert current(storage).snapshot_id == 2


def _raise(name: str) -> None:
    from pipeline.errors import StorageFault

    raise StorageFault(f"timeout: {name}")
