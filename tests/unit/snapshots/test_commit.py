"""The commit protocol: whatever is killed when, the next run ends where one clean run would; of two one publishes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConflictError, StorageFault, VecmillError
from pipeline.snapshots.commit import publish
from pipeline.snapshots.journal import load_records, write_journal
from pipeline.snapshots.lease import Lease, Process
from pipeline.snapshots.manifest import IndexRef, Manifest, latest, manifest_name
from pipeline.snapshots.reader import open_snapshot
from pipeline.snapshots.records import Record, new_attempt
from pipeline.snapshots.store import open_store
from pipeline.uris import Storage
from tests.stores import (
    ENCODER_FP,
    SHARD_FP,
    FaultyStorage,
    Killed,
    file_id,
    make_member,
    make_pack,
    make_record,
    publication,
    put,
    step_of,
    tiling_of,
)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "store"))


# uri -> the splits it is cut into
CORPUS = {"a": [(0, 3), (3, 5)], "b": [(0, 4)], "c": [(0, 2), (2, 4), (4, 6)]}
# The files of a pack; files of others lie between them.
PACK = {"aa": 2, "bb": 0, "d": 3}
NUM_DOCUMENTS = 15 + 5


def run_job(storage: Storage, encoded: list[str]) -> Manifest | None:
    """An embed run in small: the same steps in the same order. Returns the manifest, None if all was done."""
    open_store(storage, "/corpus", create=True)
    run_id = new_attempt()
    # Of a process that is gone when the next run looks, as after a kill.
    with Lease(storage, run_id, process=replace(Process.current(), pid=2**30, start="0")):
        parent = latest(storage)
        if parent is not None:
            return None
        known: dict[str, list[Record]] = {}
        for record in load_records(storage, ENCODER_FP, SHARD_FP):
            known.setdefault(record.file_uri, []).append(record)
        for uri, ranges in CORPUS.items():
            made = []
            for begin, end in ranges:
                if (begin, end) not in {(record.begin, record.end) for record in known.get(uri, [])}:
                    last = end == ranges[-1][1]
                    num_quarantined = 1 if (uri, begin) == ("b", 0) else 0
                    record = make_record(uri, begin, end, last=last, num_quarantined=num_quarantined, run_id=run_id)
                    encoded.append(record.split_id)
                    made.append(put(storage, record))
            if made:
                write_journal(storage, run_id, len(encoded), made)
                known.setdefault(uri, []).extend(made)
        if "aa" not in known:
            packed = make_pack(*(make_member(uri, num) for uri, num in PACK.items()), run_id=run_id)
            encoded.append(packed.split_id)
            known["aa"] = [put(storage, packed)]
            write_journal(storage, run_id, len(encoded), known["aa"])
        tilings = [tiling_of(known[uri]) for uri in [*CORPUS, "aa"]]
        records = [record for tiling in tilings if tiling is not None for record in tiling]
        return publish(storage, publication(parent, records, run_id=run_id))


def rows_of(storage: Storage) -> list[str]:
    return sorted(open_snapshot(storage.uri).dataset().to_table(columns=["doc_id"])["doc_id"].to_pylist())


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    """Rows, and the names of all puts, of one clean run."""
    puts: list[str] = []
    storage = FaultyStorage(Storage(str(tmp_path_factory.mktemp("clean"))), puts.append)
    assert run_job(storage, []) is not None
    return rows_of(storage), puts


def test_the_steps_are_those_of_the_table(clean: tuple[list[str], list[str]]) -> None:
    _, puts = clean
    steps = [step_of(name) for name in puts]
    assert steps[:3] == ["store.json", "run.json", "run.json"]
    assert steps[-4:] == ["shards table", "splits table", "manifest", "run.json"]
    assert set(steps[3:-4]) == {"shard", "quarantine", "record", "journal"}
    names = [name for name in puts if step_of(name) != "run.json"]
    assert len(names) == len(set(names)), "no name is put twice"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_step_the_next_run_ends_as_a_clean_one(
    clean: tuple[list[str], list[str]], tmp_path: Path, moment: str
) -> None:
    rows, puts = clean
    assert len(rows) == NUM_DOCUMENTS - 1
    for kill_at in range(len(puts)):
        storage = Storage(str(tmp_path / f"{kill_at}"))
        count = 0

        def kill(name: str, kill_at: int = kill_at) -> None:
            nonlocal count
            count += 1
            if count > kill_at:
                raise Killed

        faulty = FaultyStorage(storage, kill) if moment == "before" else FaultyStorage(storage, after=kill)
        first: list[str] = []
        with pytest.raises(Killed):
            run_job(faulty, first)
        recorded = {info.name.split("/")[-1][:32] for info in storage.list("records")}
        visible = latest(storage)
        if visible is not None:  # a reader sees a snapshot whole or not at all
            assert rows_of(storage) == rows
        second: list[str] = []
        manifest = run_job(storage, second)
        assert (manifest is None) == (visible is not None)
        assert rows_of(storage) == rows
        assert not set(second) & recorded, "a recorded split is never encoded again"
        current = latest(storage)
        assert current is not None
        assert current.snapshot_id == 1
        assert current.accounting.documents_in == NUM_DOCUMENTS
        assert current.accounting.files_in == len(CORPUS) + len(PACK)
        third: list[str] = []
        assert run_job(storage, third) is None
        assert third == []


def test_of_racing_publishers_one_wins_and_the_others_are_told(storage: Storage) -> None:
    record = put(storage, make_record())
    outcomes: list[str] = []
    barrier = threading.Barrier(6)

    def publisher() -> None:
        mine = publication(None, [record])
        barrier.wait()
        try:
            outcomes.append(publish(storage, mine).commit_id)
        except ConflictError:
            outcomes.append("lost")

    threads = [threading.Thread(target=publisher) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes).count("lost") == 5
    current = latest(storage)
    assert current is not None
    assert current.commit_id in outcomes
    assert len(rows_of_store(storage)) == 3


def rows_of_store(storage: Storage) -> list[str]:
    open_store(storage, "/corpus", create=True)
    return rows_of(storage)


def _raise(name: str) -> None:
    if step_of(name) == "manifest":
        raise StorageFault("timeout")


class _LossReported(Storage):
    """The put went through, its reply was lost, and the retry under it was refused."""

    def put_if_absent(self, name: str, data: bytes) -> bool:
        super().put_if_absent(name, data)
        return False


@pytest.mark.parametrize(
    "faulty", [lambda storage: FaultyStorage(storage, after=_raise), lambda storage: _LossReported(storage.uri)]
)
def test_a_lost_reply_to_ones_own_manifest_is_a_success(storage: Storage, faulty: Callable[[Storage], Storage]) -> None:
    record = put(storage, make_record())
    manifest = publish(faulty(storage), publication(None, [record]))
    assert latest(storage) == manifest


def test_a_put_that_did_not_go_through_is_a_storage_fault(storage: Storage) -> None:
    record = put(storage, make_record())
    with pytest.raises(StorageFault, match="timeout"):
        publish(FaultyStorage(storage, _raise), publication(None, [record]))
    assert latest(storage) is None


def test_a_lost_reply_under_which_another_won_is_a_conflict(storage: Storage) -> None:
    """The reply that is lost may have said: taken."""
    record = put(storage, make_record())
    publish(storage, publication(None, [record]))
    with pytest.raises(ConflictError):
        publish(FaultyStorage(storage, after=_raise), publication(None, [record]))


def _follow(storage: Storage, parent: Manifest, **changes: object) -> Manifest:
    number = parent.snapshot_id + 1
    update = {"snapshot_id": number, "parent_id": parent.snapshot_id, "commit_id": "other", **changes}
    manifest = parent.model_copy(update=update)
    assert storage.put_if_absent(manifest_name(number), manifest.to_json())
    return manifest


def test_an_index_or_a_gc_that_came_first_is_built_upon(storage: Storage) -> None:
    one = publish(storage, publication(None, [put(storage, make_record("a"))]))
    index = IndexRef(file="indexes/i/index.json", checksum="c", snapshot_id=1)
    two = _follow(storage, one, kind="index", index=index)
    three = _follow(storage, two, kind="gc", victims=("embeddings/x",))
    added = put(storage, make_record("b"))
    four = publish(storage, publication(one, [added], carried=[file_id("a")]))
    assert (four.snapshot_id, four.parent_id, four.kind) == (4, 3, "embed")
    assert four.index == index, "index and shards stay a pair"
    assert four.victims == three.victims
    assert latest(storage) == four


def test_a_gc_that_is_deleting_our_files_is_not_built_upon(storage: Storage) -> None:
    one = publish(storage, publication(None, [put(storage, make_record("a"))]))
    added = put(storage, make_record("b"))
    _follow(storage, one, kind="gc", victims=(added.shard.file,))
    with pytest.raises(ConflictError, match="is deleting files of this run"):
        publish(storage, publication(one, [added], carried=[file_id("a")]))


@pytest.mark.parametrize("kind", ["embed", "rollback"])
def test_an_embed_or_a_rollback_that_came_first_wins(storage: Storage, kind: str) -> None:
    one = publish(storage, publication(None, [put(storage, make_record("a"))]))
    _follow(storage, one, kind=kind)
    with pytest.raises(ConflictError, match=f"snapshot 2 \\({kind}\\) first.*run the same command again"):
        publish(storage, publication(one, [], carried=[file_id("a")]))


def test_ordinals_are_carried_and_never_given_twice(storage: Storage) -> None:
    records = {uri: put(storage, make_record(uri)) for uri in "abc"}
    one = publish(storage, publication(None, records.values()))
    two = publish(storage, publication(one, [], carried=[file_id("a"), file_id("b")]))
    records["d"] = put(storage, make_record("d"))
    three = publish(storage, publication(two, [records["b"], records["d"]], carried=[file_id("a")]))
    open_store(storage, "/corpus", create=True)

    def ordinals(number: int) -> dict[str, int]:
        shards = open_snapshot(storage.uri, number=number).shards
        by_file = dict(zip(shards["file"].to_pylist(), shards["ordinal"].to_pylist(), strict=True))
        return {uri: by_file[r.shard.file] for uri, r in records.items() if r.shard.file in by_file}

    assert ordinals(1) == {"a": 0, "b": 1, "c": 2}
    assert ordinals(2) == {"a": 0, "b": 1}
    assert ordinals(3) == {"a": 0, "b": 1, "d": 3}, "c's is not given again; b, listed anew, keeps its own"
    assert three.next_ordinal == 4


def test_encoders_are_never_mixed(storage: Storage) -> None:
    one = publish(storage, publication(None, [put(storage, make_record("a"))]))
    changes: Any
    for changes in ({"encoder_fp": "f" * 16}, {"shard_fp": "f" * 16}):
        with pytest.raises(VecmillError, match="in a snapshot of"):
            publish(storage, publication(one, [], carried=[file_id("a")], **changes))
        with pytest.raises(VecmillError, match="in a snapshot of"):
            publish(storage, publication(None, [make_record("a", **changes)]))


def test_readers_do_not_see_orphans(storage: Storage) -> None:
    counts, orphan = put(storage, make_record(attempt="1" * 16)), put(storage, make_record(attempt="2" * 16))
    publish(storage, publication(None, tiling_of([counts, orphan]) or ()))
    assert rows_of_store(storage) == ["a.parquet#0", "a.parquet#1", "a.parquet#2"]
    assert [name.endswith(counts.shard.file) for name in open_snapshot(storage.uri).files()] == [True]
