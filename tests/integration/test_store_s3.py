"""Storage and the commit protocol over a real S3 server.

Conditional puts, identities, lost replies, requests counted, faults in words.
"""

from __future__ import annotations

import pickle
import socket
import threading
from typing import Any

import pytest

from pipeline.errors import ChangedError, ConflictError, CredentialsFault, StorageFault
from pipeline.snapshots.commit import publish
from pipeline.snapshots.journal import load_records, write_journal
from pipeline.snapshots.lease import Lease
from pipeline.snapshots.manifest import latest
from pipeline.snapshots.reader import open_snapshot
from pipeline.snapshots.store import open_store
from pipeline.uris import Storage, _retry, split_input_uri
from tests.stores import ENCODER_FP, SHARD_FP, make_record, publication, put


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between attempts, and fewer of them."""
    monkeypatch.setattr(_retry, "MAX_ATTEMPTS", 5)
    monkeypatch.setattr(_retry, "_MAX_WAIT_S", 0.01)


@pytest.fixture
def storage(s3: Any) -> Storage:
    return Storage(f"{s3.uri}/a/store", s3.options)


def test_objects_come_back_as_they_were_put(storage: Storage) -> None:
    assert storage.list() == []
    assert not storage.exists()
    storage.put("x/one.json", b"1")
    storage.put("two", b"22")
    assert [(info.name, info.size, info.identity_kind) for info in storage.list()] == [
        ("two", 2, "etag"),
        ("x/one.json", 1, "etag"),
    ]
    assert storage.exists()
    assert storage.list("x")[0] == storage.stat("x/one.json")
    assert storage.read("two") == b"22"
    assert storage.read_range("two", 1, 99) == b"2"
    assert storage.read_range("two", 7, 9) == b""
    storage.put("two", b"333")
    assert storage.read("two") == b"333"
    storage.delete(["two", "not there"])
    assert [info.name for info in storage.list()] == ["x/one.json"]


def test_a_prefix_is_a_folder_not_a_beginning_of_names(storage: Storage) -> None:
    storage.put("records/1", b"")
    storage.put("records-of-another/1", b"")
    assert [info.name for info in storage.list("records")] == ["records/1"]


def test_a_listing_of_many_pages_is_whole(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        storage.put(f"n/{number}", b"")
    from s3fs import S3FileSystem

    original = S3FileSystem._call_s3

    async def small_pages(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method == "list_objects_v2":
            kwargs["MaxKeys"] = 3
        return await original(self, method, *args, **kwargs)

    monkeypatch.setattr(S3FileSystem, "_call_s3", small_pages)
    assert len(storage.list("n")) == 7


def test_of_racing_conditional_puts_exactly_one_wins(s3: Any) -> None:
    names = [f"snapshots/{number}.json" for number in range(10)]
    wins: dict[str, list[int]] = {name: [] for name in names}
    barrier = threading.Barrier(6)

    def writer(me: int) -> None:
        storage = Storage(s3.uri, s3.options)
        for name in names:
            barrier.wait()
            if storage.put_if_absent(name, b"%d" % me):
                wins[name].append(me)

    threads = [threading.Thread(target=writer, args=(me,)) for me in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    storage = Storage(s3.uri, s3.options)
    assert [len(winners) for winners in wins.values()] == [1] * len(names)
    assert all(storage.read(name) == b"%d" % winners[0] for name, winners in wins.items())


def test_a_reader_never_sees_two_versions(storage: Storage) -> None:
    """If-Match goes with every range; a change between two reads is a ChangedError, not a mixture."""
    storage.put("x", b"a" * (9 * 2**20))
    listed = storage.stat("x")
    with storage.open("x", expect=listed) as reader:
        assert reader.read(1) == b"a"
        storage.put("x", b"b" * (9 * 2**20))
        with pytest.raises(ChangedError, match="x"):
            reader.read()
    with pytest.raises(ChangedError), storage.open("x", expect=listed) as reader:
        reader.read(1)
    with pytest.raises(ChangedError):
        storage.read_range("x", 0, 1, expect=listed)
    with pytest.raises(ChangedError):
        storage.check_unchanged("x", listed)
    storage.check_unchanged("x", storage.stat("x"))


def test_a_reader_seeks(storage: Storage) -> None:
    data = bytes(range(256)) * 100
    storage.put("x", data)
    with storage.open("x") as reader:
        reader.seek(-10, 2)
        assert reader.read() == data[-10:]
        reader.seek(300)
        assert reader.read(5) == data[300:305]
        assert reader.tell() == 305


def test_nothing_is_answered_from_a_cache(s3: Any) -> None:
    one, other = Storage(s3.uri, s3.options), Storage(s3.uri, s3.options)
    assert one.list() == []
    other.put("x", b"1")
    assert one.stat("x").size == 1
    other.put("x", b"22")
    assert one.stat("x").size == 2
    assert one.list()[0].size == 2


def test_a_lost_reply_to_a_conditional_put_looks_like_a_loss(s3: Any, storage: Storage) -> None:
    """What callers must reckon with: the put went through, its reply was lost, and the retry is refused."""
    lost: list[str] = []

    def lose_first_put(method: str, target: str) -> None:
        if method == "PUT" and not lost:
            lost.append(target)
            raise ConnectionError

    s3.after_reply.append(lose_first_put)
    assert storage.put_if_absent("x", b"mine") is False
    assert storage.read("x") == b"mine"


def test_missing_things_are_named(s3: Any, storage: Storage) -> None:
    with pytest.raises(FileNotFoundError, match="not found: s3://.*/a/store/x"):
        storage.read("x")
    with pytest.raises(FileNotFoundError, match="not found"):
        storage.stat("x")
    nowhere = Storage("s3://no-such-bucket-here/x", s3.options)
    with pytest.raises(FileNotFoundError, match="no such bucket: no-such-bucket-here"):
        nowhere.list()
    assert not nowhere.exists()


def test_missing_credentials_are_a_sentence(s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    options = {key: value for key, value in s3.options.items() if key not in ("key", "secret")}
    with pytest.raises(CredentialsFault, match="AWS_ACCESS_KEY_ID"):
        Storage(s3.uri, options).list()


def test_an_endpoint_where_nobody_listens_is_told(s3: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        options = {**s3.options, "endpoint_url": f"http://127.0.0.1:{unused.getsockname()[1]}"}
        with pytest.raises(StorageFault, match="cannot be reached"):
            Storage(s3.uri, options).list()


def test_secrets_are_not_shown(s3: Any) -> None:
    storage = Storage(s3.uri, {**s3.options, "secret": "planted-secret"})
    assert "planted-secret" not in repr(storage)
    again = pickle.loads(pickle.dumps(storage))  # noqa: S301
    assert again.uri == storage.uri
    with pytest.raises(FileNotFoundError) as caught:
        again.read("x")
    assert "planted-secret" not in str(caught.value)


def test_an_input_may_be_one_object(s3: Any) -> None:
    Storage(s3.uri, s3.options).put("in/a.jsonl", b"{}")
    storage, name = split_input_uri(f"{s3.uri}/in/a.jsonl", s3.options)
    assert (storage.uri, name) == (f"{s3.uri}/in", "a.jsonl")
    assert split_input_uri(f"{s3.uri}/in", s3.options)[1] is None
    assert split_input_uri(f"{s3.uri}/in/", s3.options)[0].uri == f"{s3.uri}/in"
    assert split_input_uri(s3.uri, s3.options)[1] is None


def test_a_snapshot_is_published_and_read(s3: Any, storage: Storage) -> None:
    open_store(storage, "s3://corpus/docs", create=True)
    with Lease(storage, "run"):
        records = [put(storage, make_record(uri, num_quarantined=1)) for uri in "ab"]
        publish(storage, publication(None, records))
    s3.requests.clear()
    snapshot = open_snapshot(storage.uri, s3.options)
    assert snapshot.dataset().to_table()["doc_id"].to_pylist() == ["a#0", "a#1", "b#0", "b#1"]
    assert (snapshot.dim, snapshot.dtype) == (2, "float32")
    assert snapshot.files() == [f"{storage.uri}/{record.shard.file}" for record in records]
    assert {method for method, _ in s3.requests} <= {"GET", "HEAD"}, "a reader needs no right to write"


def test_of_racing_publishers_one_wins_and_the_others_are_told(s3: Any, storage: Storage) -> None:
    record = put(storage, make_record())
    outcomes: list[str] = []
    barrier = threading.Barrier(5)

    def publisher() -> None:
        mine = publication(None, [record])
        barrier.wait()
        try:
            outcomes.append(publish(storage, mine).commit_id)
        except ConflictError:
            outcomes.append("lost")

    threads = [threading.Thread(target=publisher) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    current = latest(storage)
    assert current is not None
    assert sorted(outcomes) == sorted([current.commit_id] + ["lost"] * 4)


@pytest.mark.parametrize("num_lost", [1, 99])
def test_a_lost_reply_to_ones_own_manifest_is_a_success(s3: Any, storage: Storage, num_lost: int) -> None:
    """Whether the retry under it is refused (412), or no reply ever comes."""
    record = put(storage, make_record())
    lost: list[str] = []

    def lose(method: str, target: str) -> None:
        if method == "PUT" and target.endswith("1.json") and len(lost) < num_lost:
            lost.append(target)
            raise ConnectionError

    s3.after_reply.append(lose)
    manifest = publish(storage, publication(None, [record]))
    assert lost
    assert latest(storage) == manifest


def test_a_resume_is_a_listing_and_no_request_for_what_the_journal_holds(s3: Any, storage: Storage) -> None:
    records = [put(storage, make_record(f"{number}.parquet")) for number in range(20)]
    write_journal(storage, "run", 0, records[:18])
    s3.requests.clear()
    loaded = load_records(storage, ENCODER_FP, SHARD_FP)
    assert sorted(record.split_id for record in loaded) == sorted(record.split_id for record in records)
    gets = [target for method, target in s3.requests if method == "GET" and "list-type" not in target]
    assert len([target for target in gets if "/records/" in target]) == 2
    assert len([target for target in gets if "/runs/" in target]) == 1
    assert len(s3.requests) == 5, "two listings, a journal, two records"
