"""A folder as storage: atomic puts, one winner, identity, faults in words."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.errors import (
    ChangedError,
    CredentialsFault,
    EnvironmentFault,
    NotSupportedError,
    StorageFault,
    StoreError,
)
from pipeline.uris import Storage, split_input_uri


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "store"))


def test_objects_come_back_as_they_were_put(storage: Storage) -> None:
    assert storage.list() == []
    assert not storage.exists()
    storage.put("x/y/one", b"1")
    storage.put("two", pa.py_buffer(b"22"))
    assert [(info.name, info.size, info.identity_kind) for info in storage.list()] == [
        ("two", 2, "stat"),
        ("x/y/one", 1, "stat"),
    ]
    assert storage.list("x") == storage.list("x/") == [storage.stat("x/y/one")]
    assert storage.list("nothing") == []
    assert storage.exists()
    assert storage.exists("two")
    assert not storage.exists("three")
    assert storage.read("two") == b"22"
    assert storage.read_range("two", 1, 99) == b"2"
    assert storage.read_range("two", 1, 1) == b""
    storage.delete(["two", "not there"])
    assert not storage.exists("two")


def test_of_racing_conditional_puts_exactly_one_wins(storage: Storage) -> None:
    names = [f"snapshots/{number}.json" for number in range(20)]
    wins: dict[str, list[int]] = {name: [] for name in names}
    barrier = threading.Barrier(8)

    def writer(me: int) -> None:
        for name in names:
            barrier.wait()
            if storage.put_if_absent(name, b"%d" % me):
                wins[name].append(me)

    threads = [threading.Thread(target=writer, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(winners) for winners in wins.values()] == [1] * len(names)
    assert all(storage.read(name) == b"%d" % winners[0] for name, winners in wins.items())
    assert sorted(os.listdir(Path(storage.uri) / "snapshots")) == sorted(f"{number}.json" for number in range(20))


_PUTS_FOR_EVER = """
import itertools, sys
from pipeline.uris import Storage
storage = Storage(sys.argv[1])
for number in itertools.count():
    storage.put("replaced", bytes([number % 256]) * 2**22)
    storage.put_if_absent(f"numbered/{number}", bytes([number % 256]) * 2**22)
    print(number, flush=True)
"""


def test_a_put_that_is_killed_leaves_all_or_nothing(storage: Storage) -> None:
    """kill -9 at some moment of many: every object a reader can see is whole."""
    root = Path(__file__).parents[3]
    for num_puts in (1, 3):
        child = subprocess.Popen(
            [sys.executable, "-c", _PUTS_FOR_EVER, storage.uri], stdout=subprocess.PIPE, cwd=root, text=True
        )
        assert child.stdout is not None
        with child.stdout as lines:
            for _ in range(num_puts):
                lines.readline()
            child.send_signal(signal.SIGKILL)
            child.wait()
        for info in storage.list():
            data = storage.read(info.name)
            assert len(data) == 2**22
            assert data == data[:1] * 2**22


def test_what_a_killed_put_leaves_is_not_listed(storage: Storage) -> None:
    storage.put("snapshots/1.json", b"{}")
    leftover = Path(storage.uri) / "snapshots" / ".2.json.0123456789abcdef.tmp"
    leftover.write_bytes(b"{")
    assert [info.name for info in storage.list()] == ["snapshots/1.json"]


def test_a_put_that_fails_leaves_the_old_object(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.put("x", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFault, match="disk full: .*/x"):
        storage.put("x", b"new")
    with pytest.raises(StorageFault, match="disk full"):
        storage.put_if_absent("y", b"new")
    monkeypatch.undo()
    assert storage.read("x") == b"old"
    assert os.listdir(storage.uri) == ["x"]


def test_a_file_system_without_links_is_refused(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(StoreError, match="no hard links"):
        storage.put_if_absent("x", b"")


def test_a_link_whose_reply_was_lost_is_a_win(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS makes the link, loses the reply, and refuses the kernel's second try."""
    link = os.link

    def twice(source: str, target: str) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    assert storage.put_if_absent("x", b"mine")


def test_only_the_expected_file_is_read(storage: Storage) -> None:
    storage.put("x", b"one")
    listed = storage.stat("x")
    with storage.open("x", expect=listed) as reader:
        assert reader.read() == b"one"
    # In place, during the read: seen at close, also where the reader stumbled over it.
    reader = storage.open("x", expect=listed)
    (Path(storage.uri) / "x").write_bytes(b"other")
    with pytest.raises(ChangedError, match="changed since it was listed"):
        reader.close()
    with pytest.raises(ChangedError):
        _stumble(storage)
    # Before the read: seen at open.
    with pytest.raises(ChangedError):
        storage.open("x", expect=listed)
    with pytest.raises(ChangedError):
        storage.read_range("x", 0, 1, expect=listed)
    with pytest.raises(ChangedError):
        storage.check_unchanged("x", listed)
    storage.delete(["x"])
    with pytest.raises(ChangedError):
        storage.check_unchanged("x", listed)


def _stumble(storage: Storage) -> None:
    with storage.open("x", expect=storage.stat("x")):
        (Path(storage.uri) / "x").write_bytes(b"and now")
        raise ValueError("no parser can read this")


def test_a_file_replaced_while_it_is_read_is_read_as_it_was(storage: Storage) -> None:
    """A rename leaves the open file alone; its lost link counts as a change all the same, which is safe."""
    storage.put("x", b"one")
    listed = storage.stat("x")
    reader = storage.open("x", expect=listed)
    storage.put("x", b"two")
    assert reader.read() == b"one"
    with pytest.raises(ChangedError):
        reader.close()


def test_links_are_followed_but_not_in_circles(storage: Storage, tmp_path: Path) -> None:
    storage.put("real/a", b"1")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b").write_bytes(b"22")
    (Path(storage.uri) / "linked").symlink_to(tmp_path / "elsewhere")
    (Path(storage.uri) / "real" / "up").symlink_to(storage.uri)
    (Path(storage.uri) / "dangling").symlink_to(tmp_path / "nothing")
    assert [(info.name, info.size) for info in storage.list()] == [("linked/b", 2), ("real/a", 1)]


def test_a_read_that_fails_is_a_fault_of_storage(storage: Storage) -> None:
    """A mounted folder may fail in the middle of a file; the message names it, the same command goes on."""
    storage.put("x", b"one")
    read_end, write_end = os.pipe()
    with storage.open("x") as reader, storage.open_unbuffered("x") as raw:
        for opened in (reader, raw):
            os.dup2(write_end, opened.fileno())  # from now on, each read and seek fails
        fails: list[Callable[[], object]] = [reader.read, lambda: reader.read(1), raw.read, lambda: raw.read(1)]
        fails += [raw.readall, lambda: raw.readinto(bytearray(1)), lambda: raw.seek(1)]
        for fail in fails:
            with pytest.raises(StorageFault, match="storage failed at .*/x: "):
                fail()
    os.close(read_end)
    os.close(write_end)


def test_a_file_that_cannot_be_checked_at_close_is_a_fault_of_storage(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put("x", b"one")
    reader = storage.open("x", expect=storage.stat("x"))

    def stale(_: int) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:  # pytest itself asks for files' states
        patch.setattr(os, "fstat", stale)
        with pytest.raises(
            StorageFault, match="network folder of .*/x went away under it .Stale file handle.; mount it anew"
        ):
            reader.close()


@pytest.mark.parametrize(
    ("number", "kind", "sentence"),
    [
        (errno.ENOSPC, StorageFault, "disk full: .*/x; free some space, then run the same command again"),
        (errno.EDQUOT, StorageFault, "quota used up: .*/x; free some space or get more, then run"),
        (errno.EROFS, CredentialsFault, "no right to write .*/x: it is mounted read-only; mount it for writing"),
        (errno.EACCES, CredentialsFault, "no right to use .*/x: Permission denied; grant it, then run"),
        (errno.EPERM, CredentialsFault, "no right to use .*/x: Operation not permitted; grant it, then run"),
        (errno.ESTALE, StorageFault, "the network folder of .*/x went away under it"),
        (errno.EIO, StorageFault, "the disk or network that holds .*/x fails .Input/output error.; put it right"),
        (errno.ENOTCONN, StorageFault, "the disk or network that holds .*/x fails"),
        (errno.EMFILE, StorageFault, "storage failed at .*/x: Too many open files; put it right, then run"),
    ],
)
def test_a_fault_of_the_machine_is_a_sentence_and_is_not_tried_again(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[EnvironmentFault], sentence: str
) -> None:
    """All end the command with 75: put right, the same command goes on."""
    storage.put("x", b"old")
    num_tried = 0

    def fail(*_: object) -> None:
        nonlocal num_tried
        num_tried += 1
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        with pytest.raises(kind, match=sentence) as caught:
            storage.put("x", b"new")
    assert (caught.value.exit_code, num_tried) == (75, 1)
    assert storage.read("x") == b"old"


def test_no_right_is_said(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.put("x", b"")

    def refuse(*_: object) -> None:  # the tests may run as root, whom no mode keeps out
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(CredentialsFault, match="no right to use .*/x: Permission denied"):
        storage.stat("x")


def test_faults_name_the_place(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError, match=r"not found: .*/store/x"):
        storage.read("x")
    with pytest.raises(FileNotFoundError, match="not found"):
        storage.open("x")
    storage.put("x", b"")
    with pytest.raises(StoreError, match="below a file"):
        storage.put("x/y", b"")
    with pytest.raises(StoreError, match="a folder"):
        Storage(os.path.dirname(storage.uri)).read("store")


def test_uris_are_normalized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Storage("x/").uri == Storage(f"file://{tmp_path}/x").uri == f"{tmp_path}/x"
    assert Storage("s3://bucket/p/").uri == Storage("s3a://bucket/p").uri == "s3://bucket/p"
    assert Storage("x").is_local
    assert not Storage("s3://b").is_local
    with pytest.raises(NotSupportedError, match="not supported yet: storage on carrier-pigeon://"):
        Storage("carrier-pigeon://bucket/x")


def test_what_can_only_be_read_is_no_store() -> None:
    for uri in ("gs://bucket/x", "memory://x", "https://host/x", "zip://x::s3://bucket/a.zip"):
        with pytest.raises(NotSupportedError, match=r"a store on .*local folders and s3:// are"):
            Storage(uri).check_store()


def test_a_file_cannot_be_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="is a file"):
        Storage(str(tmp_path / "file")).check_store()
    Storage(str(tmp_path / "new")).check_store()


def test_an_input_may_be_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{}")
    storage, name = split_input_uri(str(tmp_path / "a.jsonl"), None)
    assert (storage.uri, name) == (str(tmp_path), "a.jsonl")
    assert split_input_uri(str(tmp_path), None)[1] is None
    assert split_input_uri(str(tmp_path / "nothing"), None)[1] is None


def test_options_travel_and_are_not_shown() -> None:
    storage = Storage("s3://bucket/x", {"secret": "planted"})
    assert "planted" not in repr(storage)
    assert b"planted" in pickle.dumps(storage)  # workers need it


def test_arrow_reads_through_it(storage: Storage) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1, 2]}), sink)
    storage.put("t.parquet", sink.getvalue())
    dataset = ds.dataset(storage.arrow_path("t.parquet"), filesystem=storage.arrow_filesystem())
    assert dataset.to_table()["a"].to_pylist() == [1, 2]
