"""store.json: made once, of one corpus, and never inside it."""

from __future__ import annotations

import threading
from pathlib import Path

import orjson
import pytest

from pipeline.errors import NotSupportedError, StorageFault, StoreError
from pipeline.snapshots.store import StoreIdentity, check_store, open_store
from pipeline.uris import Storage
from tests.stores import FaultyStorage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "store"))


def test_a_store_keeps_its_identity(storage: Storage) -> None:
    made = open_store(storage, "/corpus", create=True)
    assert open_store(storage, "/corpus", create=True) == made
    assert open_store(storage, None, create=False) == made
    assert len(made.store_id) == 32


def test_of_many_makers_all_get_the_same_identity(storage: Storage) -> None:
    barrier = threading.Barrier(8)
    found: list[StoreIdentity] = []

    def maker() -> None:
        barrier.wait()
        found.append(open_store(storage, "/corpus", create=True))

    threads = [threading.Thread(target=maker) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({identity.store_id for identity in found}) == 1
    assert len(found) == 8


def test_a_lost_reply_is_settled(storage: Storage) -> None:
    def lose(_: str) -> None:
        raise StorageFault("timeout")

    made = open_store(FaultyStorage(storage, after=lose), "/corpus", create=True)
    assert open_store(storage, None, create=False) == made
    other = Storage(storage.uri + "2")
    with pytest.raises(StorageFault, match="timeout"):
        open_store(FaultyStorage(other, lose), "/corpus", create=True)


@pytest.mark.parametrize("create", [True, False])
def test_what_can_only_be_read_is_neither_made_a_store_nor_opened_as_one(create: bool) -> None:
    """Whichever of the two a command asks, it is told so before anything is looked up there."""
    storage = Storage("memory://place/store")
    with pytest.raises(NotSupportedError, match="a store on memory://"):
        check_store(storage, "/corpus")
    with pytest.raises(NotSupportedError, match="a store on memory://"):
        open_store(storage, "/corpus", create=create)


def test_another_corpus_is_refused_with_both_roots(storage: Storage) -> None:
    open_store(storage, "s3://one/docs", create=True)
    with pytest.raises(StoreError, match=r"s3://one/docs.*s3://two/docs"):
        open_store(storage, "s3://two/docs", create=True)


def test_credentials_in_a_uri_are_not_kept(storage: Storage) -> None:
    open_store(storage, "s3://me:planted@bucket/docs", create=True)
    assert b"planted" not in storage.read("store.json")


def test_there_is_no_store_to_read(storage: Storage) -> None:
    with pytest.raises(StoreError, match="no store at .*vecmill embed"):
        open_store(storage, None, create=False)
    assert not storage.exists()


def test_a_newer_store_is_refused(storage: Storage) -> None:
    open_store(storage, "/corpus", create=True)
    value = orjson.loads(storage.read("store.json"))
    storage.put("store.json", orjson.dumps(value | {"format_version": 2, "min_reader_version": 2}))
    with pytest.raises(StoreError, match="needs a reader of format 2"):
        open_store(storage, None, create=False)
    storage.put("store.json", orjson.dumps(value | {"format_version": 2, "added": True}))
    assert open_store(storage, None, create=False).format_version == 2


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"min_reader_version": 1}'])
def test_what_is_no_store_json_is_refused(storage: Storage, data: bytes) -> None:
    storage.put("store.json", data)
    with pytest.raises(StoreError, match=r"no store\.json of Vecmill"):
        open_store(storage, "/corpus", create=True)


@pytest.mark.parametrize(
    ("store", "corpus"),
    [
        ("{tmp}/a/store", "{tmp}/a"),
        ("{tmp}/a", "{tmp}/a/corpus"),
        ("{tmp}/a", "{tmp}/a"),
        ("{tmp}/link/store", "{tmp}/a"),
        ("s3://b/a/store", "s3://b/a"),
        ("s3://b/store", "s3://b"),
    ],
)
def test_a_store_inside_its_input_is_refused(tmp_path: Path, store: str, corpus: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(StoreError, match="input"):
        open_store(Storage(store.format(tmp=tmp_path)), corpus.format(tmp=tmp_path), create=True)


def test_neighbours_are_not_inside_each_other(tmp_path: Path) -> None:
    open_store(Storage(str(tmp_path / "corpus-vectors")), str(tmp_path / "corpus"), create=True)
