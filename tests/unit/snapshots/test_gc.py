"""gc: only what nobody needs goes, whatever is killed when, and a run beside it loses nothing."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import pipeline.snapshots.gc
from pipeline.errors import ConflictError, StoreError, UsageError
from pipeline.snapshots.commit import publish
from pipeline.snapshots.garbage import Garbage, find_garbage
from pipeline.snapshots.gc import collect, gc
from pipeline.snapshots.journal import load_records, write_journal
from pipeline.snapshots.lease import Lease
from pipeline.snapshots.manifest import Manifest, latest, manifest_name, read_manifest
from pipeline.snapshots.reader import Snapshot, open_snapshot
from pipeline.snapshots.records import Record, choose, record_name
from pipeline.snapshots.store import open_store
from pipeline.uris import ObjectInfo, Storage
from tests.stores import ENCODER_FP, SHARD_FP, FaultyStorage, Killed, file_id, make_record, names_in, publication, put

pytestmark = pytest.mark.usefixtures("no_fsync")


def names_of(record: Record) -> set[str]:
    return {record_name(record), record.shard.file} | ({record.quarantine.file} if record.quarantine else set())


def clean(storage: Storage, *, keep: int = 1, everything: bool = False) -> None:
    """gc without its lease."""
    collect(storage, "gc-run", keep=keep, everything=everything, ended_runs={"run"})


def garbage_of(storage: Storage, *, keep: int = 1, everything: bool = False) -> Garbage:
    current = latest(storage)
    assert current is not None
    return find_garbage(storage, current, keep=keep, everything=everything, ended_runs={"run"})


def is_whole(storage: Storage, manifest: Manifest | None) -> bool:
    """Whether all that a snapshot lists is there, and nothing of it is doomed."""
    if manifest is None:
        return True
    snapshot, there = Snapshot(storage, manifest), names_in(storage)
    listed = set(snapshot.shards["file"].to_pylist()) | set(snapshot.splits["quarantine_file"].drop_null().to_pylist())
    listed |= {manifest.shards.file, manifest.splits.file}
    return listed <= there and listed.isdisjoint(manifest.victims or ())


def rows_of(storage: Storage) -> list[str]:
    return sorted(open_snapshot(storage.uri).dataset().to_table(columns=["doc_id"])["doc_id"].to_pylist())


def publish_versions(storage: Storage, *versions: str) -> list[Record]:
    """A snapshot for each version of the file "a", beside a file "b" that stays; the records of "a"."""
    b = put(storage, make_record("b", num_quarantined=1))
    made: list[Record] = []
    parent = None
    for version in versions:
        made.append(put(storage, make_record("a", identity=version, num_quarantined=1)))
        if parent is None:
            parent = publish(storage, publication(None, [made[-1], b]))
        else:
            parent = publish(storage, publication(parent, [made[-1]], carried=[file_id("b")]))
    return made


def test_what_only_dropped_snapshots_list_goes_with_their_tables(storage: Storage) -> None:
    one, two, three = publish_versions(storage, "v1", "v2", "v3")
    before = names_in(storage)
    clean(storage, keep=2)
    gone = before - names_in(storage)
    tables = {name for name in before if name.startswith(f"snapshots/{1:020d}-")}
    assert gone == names_of(one) | tables
    for number in (2, 3):
        assert is_whole(storage, read_manifest(storage, number))
    clean(storage, keep=1)
    assert names_of(two).isdisjoint(names_in(storage))
    assert names_of(three) <= names_in(storage)
    # To keep more brings nothing back, and finds nothing missing.
    assert garbage_of(storage, keep=3).kept_snapshots == [5, 4, 3]
    assert garbage_of(storage, keep=3).attempts == []


def test_an_index_or_a_gc_counts_with_the_snapshot_it_is_of(storage: Storage) -> None:
    """Else each gc would push a readable snapshot out of the newest N."""
    one, *_ = publish_versions(storage, "v1", "v2")
    put(storage, make_record("orphan"))
    for _ in range(4):
        storage.delete([record_name(put(storage, make_record("o")))])  # an orphan, so that each gc has work
        clean(storage, keep=2)
    current = latest(storage)
    assert current is not None
    assert current.snapshot_id == 6
    assert names_of(one) <= names_in(storage)
    assert garbage_of(storage, keep=2).kept_snapshots == [6, 5, 4, 3, 2, 1]


def test_attempts_that_lost_and_orphans_go(storage: Storage) -> None:
    listed = put(storage, make_record("a", attempt="5" * 16))
    publish(storage, publication(None, [listed]))
    lost = [put(storage, make_record("a", attempt=digit * 16)) for digit in "19"]
    orphan = put(storage, make_record("c", num_quarantined=1))
    storage.delete([record_name(orphan)])
    table = f"snapshots/{2:020d}-killed.shards.parquet"
    storage.put(table, b"of a publisher that was killed")
    before = names_in(storage)
    clean(storage)
    expected = names_of(lost[0]) | names_of(lost[1]) | names_of(orphan) | {table}
    assert before - names_in(storage) == expected & before


def test_finished_work_that_was_never_published_is_kept_unless_asked_for(storage: Storage) -> None:
    """It is paid for: the resume of an interrupted or refused run takes it."""
    publish(storage, publication(None, [put(storage, make_record("a"))]))
    waiting = [
        put(storage, make_record("new")),
        put(storage, make_record("a", identity="v2")),
        put(storage, make_record("a", 0, 2, last=False)),  # another cut
        put(storage, make_record("a", shard_fp="6" * 16)),  # another config, never published
        put(storage, make_record("a", generation=1)),  # tried again, to replace what is listed
        put(storage, make_record("twice", attempt="1" * 16)),
    ]
    beaten = put(storage, make_record("twice", attempt="2" * 16))
    clean(storage)
    there = names_in(storage)
    assert all(names_of(record) <= there for record in waiting)
    assert names_of(beaten).isdisjoint(there)
    assert garbage_of(storage).num_unpublished == len(waiting)
    clean(storage, everything=True)
    there = names_in(storage)
    assert all(names_of(record).isdisjoint(there) for record in waiting)
    assert is_whole(storage, latest(storage))


def test_one_range_recorded_as_last_and_as_not_is_two_cuts(storage: Storage) -> None:
    """A `--limit` that ends where a stream is cut records the range as not the last; a full run needs it as last."""
    limited = put(storage, make_record("a", last=False))
    publish(storage, publication(None, [limited], limit=3))
    full = put(storage, make_record("a", last=True))
    clean(storage)
    assert names_of(full) <= names_in(storage)


def test_a_record_without_its_shard_is_garbage(storage: Storage) -> None:
    publish(storage, publication(None, [put(storage, make_record("a"))]))
    broken = put(storage, make_record("b"))
    storage.delete([broken.shard.file])
    clean(storage)
    assert record_name(broken) not in names_in(storage)


def test_objects_of_others_are_left_alone(storage: Storage) -> None:
    publish_versions(storage, "v1", "v2")
    strangers = [
        "embeddings/notes.txt",
        "records/x.json",
        "snapshots/readme.md",
        "indexes/i/index.json",
        "reports/1.html",
    ]
    for name in strangers:
        storage.put(name, b"?")
    clean(storage, everything=True)
    assert set(strangers) <= names_in(storage)


def test_runs_that_ended_go_but_journals_stay_while_they_spare_requests(storage: Storage) -> None:
    kept, dead = put(storage, make_record("a")), put(storage, make_record("a", attempt="f" * 16))
    publish(storage, publication(None, [kept]))
    write_journal(storage, "run", 0, [kept])
    write_journal(storage, "run", 1, [dead])
    storage.put("runs/run/records-000002.parquet", b"cut off")
    storage.put("runs/run/run.json", b"{}")
    storage.put("runs/run/attempts/x-1.json", b"{}")
    storage.put("runs/other/run.json", b"{}")
    clean(storage)
    assert {name for name in names_in(storage) if name.startswith("runs/")} == {
        "runs/run/records-000000.parquet",
        "runs/other/run.json",
    }


def test_dry_unless_asked_and_it_writes_nothing(storage: Storage) -> None:
    one, _ = publish_versions(storage, "v1", "v2")
    before = names_in(storage)
    found = gc(storage, keep=1)
    assert names_in(storage) == before
    counts = {key: found[key] for key in ("deleted", "records", "shards", "quarantine_files", "tables", "unpublished")}
    assert counts == {
        "deleted": False, "records": 1, "shards": 1, "quarantine_files": 1, "tables": 2, "unpublished": 0,
    }  # fmt: skip
    assert found["bytes"] >= one.shard.size
    deleted = gc(storage, keep=1, delete=True)
    assert {**deleted, "deleted": False, "snapshot_id": 2} == found | {"kept_snapshots": [2]}
    assert deleted["snapshot_id"] == 3
    assert names_of(one).isdisjoint(names_in(storage))


def test_a_run_that_holds_the_store_holds_gc_off(storage: Storage) -> None:
    publish_versions(storage, "v1", "v2")
    with Lease(storage, "running"):
        before = names_in(storage)
        with pytest.raises(ConflictError, match="run running holds the store"):
            gc(storage, keep=1, delete=True)
        assert names_in(storage) - before == set()
        assert gc(storage, keep=1)["shards"] == 1
        assert "runs/running/run.json" not in garbage_of(storage).runs


def test_what_gc_refuses(storage: Storage) -> None:
    with pytest.raises(StoreError, match="no snapshot yet"):
        gc(storage, delete=True)
    publish_versions(storage, "v1")
    with pytest.raises(UsageError, match="--keep"):
        gc(storage, keep=0)


def test_temporary_files_of_killed_puts_go(storage: Storage) -> None:
    publish_versions(storage, "v1")
    left = Path(storage.uri) / "embeddings" / ".x.parquet.0123456789abcdef.tmp"
    beating = Path(storage.uri) / "runs" / ".run.json.0123456789abcdef.tmp"
    for path in (left, beating):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    gc(storage)
    assert left.exists()
    gc(storage, delete=True)
    assert not left.exists()
    assert beating.exists(), "a run that waits for the lease may be writing it"


def test_victims_come_in_rounds_and_lists_do_not_grow(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.snapshots.gc, "MAX_VICTIMS", 4)
    publish_versions(storage, *(f"v{n}" for n in range(6)))
    found = garbage_of(storage).names
    clean(storage)
    lists = [read_manifest(storage, number).victims or () for number in range(7, 7 + -(-len(found) // 4))]
    assert [name for victims in lists for name in victims] == found
    assert max(map(len, lists)) == 4
    put_orphan(storage)
    clean(storage)
    current = latest(storage)
    assert current is not None
    assert len(current.victims or ()) == 1


def put_orphan(storage: Storage) -> None:
    storage.delete([record_name(put(storage, make_record("orphan")))])


def test_a_late_record_of_a_deleted_orphan_is_not_taken(storage: Storage) -> None:
    """Its writer was thought dead: shard put, then a gc, then the record."""
    publish(storage, publication(None, [put(storage, make_record("a"))]))
    late = put(storage, make_record("late"))
    storage.delete([record_name(late)])
    clean(storage)
    assert late.shard.file not in names_in(storage)
    storage.put(record_name(late), late.to_json())
    current = latest(storage)
    assert current is not None
    known = [r.file_uri for r in load_records(storage, ENCODER_FP, SHARD_FP, frozenset(current.victims or ()))]
    assert known == ["a"]
    clean(storage)
    assert record_name(late) not in names_in(storage), "the next gc removes it"


def test_a_publisher_whose_tables_were_taken_for_orphans_is_told(storage: Storage) -> None:
    """Between its tables and its manifest somebody cleaned: the snapshot would have no tables."""
    one = publish(storage, publication(None, [put(storage, make_record("a"))]))
    added = put(storage, make_record("b"))

    def clean_before_manifest(name: str) -> None:
        if name == manifest_name(2):
            clean(storage)

    with pytest.raises(ConflictError, match="is deleting files of this run"):
        publish(FaultyStorage(storage, clean_before_manifest), publication(one, [added], carried=[file_id("a")]))
    assert is_whole(storage, latest(storage))


# --- killed, and interleaved with a run ---


class Watched(Storage):
    """Calls `gate` before each listing, put and delete of a single object, and `after` when a write is done."""

    def __init__(self, storage: Storage, gate: Callable[[], None], after: Callable[[], None] = lambda: None) -> None:
        super().__init__(*storage.__reduce__()[1])
        self._gate, self._after = gate, after

    def scan(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._gate()
        return iter(list(super().scan(prefix)))

    def put(self, name: str, data: bytes | pa.Buffer) -> None:
        self._gate()
        super().put(name, data)
        self._after()

    def put_if_absent(self, name: str, data: bytes) -> bool:
        self._gate()
        won = super().put_if_absent(name, data)
        self._after()
        return won

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._gate()
            super().delete([name])
            self._after()


# The input goes back to what it was in the first snapshot, beside a file of an interrupted run.
INPUT = [("a", "v1"), ("b", "v1"), ("c", "v1")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with garbage that a run wants: the first version of "a", which only a dropped snapshot lists."""
    storage = Storage(str(tmp_path_factory.mktemp("world") / "store"))
    open_store(storage, "/corpus", create=True)
    [first, _] = publish_versions(storage, "v1", "v2")
    write_journal(storage, "run", 0, [first])
    put(storage, make_record("c"))
    put_orphan(storage)
    return Path(storage.uri)


def run_job(storage: Storage, *, tries: int = 20) -> None:
    """An embed run in small, without a lease, started again until it ends well."""
    for _ in range(tries):
        parent = latest(storage)
        assert parent is not None
        listed = set(Snapshot(storage, parent).splits["file_id"].to_pylist())
        carried = {file_id(*file) for file in INPUT} & listed
        if len(carried) == len(INPUT):
            return
        known = load_records(storage, ENCODER_FP, SHARD_FP, frozenset(parent.victims or ()))
        chosen = []
        for uri, version in INPUT:
            if file_id(uri, version) not in carried:
                found = [record for record in known if record.file_id == file_id(uri, version)]
                made = make_record(uri, identity=version, num_quarantined=1 if uri == "a" else 0)
                chosen.append(choose(found) if found else put(storage, made))
        try:
            publish(storage, publication(parent, chosen, carried=carried))
        except ConflictError:
            continue
        return
    raise AssertionError("it does not come to an end")


EXPECTED = sorted(["a#0", "a#1", "b#0", "b#1", "c#0", "c#1", "c#2"])


def copy_of(world: Path, folder: Path) -> Storage:
    shutil.copytree(world, folder)
    return Storage(str(folder))


def count_steps(world: Path, folder: Path, call: Callable[[Storage], None]) -> int:
    steps: list[None] = []
    call(Watched(copy_of(world, folder), lambda: steps.append(None)))
    return len(steps)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_step_the_next_gc_ends_as_one_that_was_not(world: Path, tmp_path: Path, moment: str) -> None:
    num_steps = count_steps(world, tmp_path / "clean", clean)
    expected = {name for name in names_in(Storage(str(tmp_path / "clean"))) if not name.endswith(".json")}
    for kill_at in range(num_steps):
        storage = copy_of(world, tmp_path / str(kill_at))
        count = 0

        def kill(kill_at: int = kill_at) -> None:
            nonlocal count
            count += 1
            if count > kill_at:
                raise Killed

        faulty = Watched(storage, kill) if moment == "before" else Watched(storage, lambda: None, kill)
        try:
            clean(faulty)
            assert moment == "after", "fewer writes than steps"
        except Killed:
            pass
        assert is_whole(storage, latest(storage))
        clean(storage)
        assert {name for name in names_in(storage) if not name.endswith(".json")} == expected
        records = [name for name in names_in(storage) if name.startswith("records/")]
        assert len(records) == 3, "b, c and the second version of a"
        run_job(storage)
        assert rows_of(storage) == EXPECTED


class Stepper:
    """Runs a call in a thread that stops before each step."""

    def __init__(self, storage: Storage, call: Callable[[Storage], None]) -> None:
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self.is_done = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call, Watched(storage, self._gate)))
        self._thread.start()
        self._paused.acquire()

    def _gate(self) -> None:
        self._paused.release()
        self._go.acquire()

    def _run(self, call: Callable[[Storage], None], storage: Storage) -> None:
        try:
            call(storage)
        except BaseException as error:
            self.error = error
        self.is_done = True
        self._paused.release()

    def step(self, num: int) -> None:
        """Go `num` steps on, or to the end."""
        while num > 0 and not self.is_done:
            self._go.release()
            self._paused.acquire()
            num -= 1


ALL = 10**6


@pytest.mark.parametrize("first", ["run", "gc"])
def test_no_interleaving_with_a_run_loses_a_row_or_publishes_what_is_not_there(
    world: Path, tmp_path: Path, first: str
) -> None:
    """The one goes i steps, then the other j, then the one to its end: every i, and every j."""
    num_run = count_steps(world, tmp_path / "run", run_job)
    num_gc = count_steps(world, tmp_path / "gc", clean)
    for i in range(num_run + 1):
        for j in range(i % 3, num_gc + 1, 3):  # a third of all pairs: seconds
            storage = copy_of(world, tmp_path / f"{i}-{j}")
            run, cleaner = Stepper(storage, run_job), Stepper(storage, clean)
            plan = [(run, i), (cleaner, j), (run, ALL), (cleaner, ALL)]
            if first == "gc":
                plan = [(cleaner, j), (run, i), (cleaner, ALL), (run, ALL)]
            for who, steps in plan:
                who.step(steps)
                assert is_whole(storage, latest(storage)), (first, i, j)
            assert (run.error, cleaner.error) == (None, None), (first, i, j)
            assert rows_of(storage) == EXPECTED, (first, i, j)
            shutil.rmtree(storage.uri)


def test_what_a_killed_gc_committed_is_deleted_whatever_the_next_is_asked_for(storage: Storage) -> None:
    """Else the work that only `--all` takes would stay, doomed, and be lost and not gone."""
    publish(storage, publication(None, [put(storage, make_record("a"))]))
    waiting = put(storage, make_record("new"))

    def kill(name: str) -> None:
        if name == manifest_name(2):
            raise Killed

    with pytest.raises(Killed):
        clean(FaultyStorage(storage, after=kill), everything=True)
    assert names_of(waiting) <= names_in(storage)
    clean(storage)
    assert names_of(waiting).isdisjoint(names_in(storage))
