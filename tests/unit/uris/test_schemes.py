"""Schemes of fsspec that are only read: what is there, by an identity that tells when it is another."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pyarrow as pa
import pytest

import pipeline.uris._fsspec as generic
from pipeline.config import Input, SplitBounds
from pipeline.errors import ChangedError, InputError, NotSupportedError, UsageError
from pipeline.read import read_split
from pipeline.splits import Corpus, plan_files
from pipeline.splits.files import Clock
from pipeline.uris import Storage
from tests.formats import parquet_bytes

LATER = Clock(now_ns=lambda: 2**62)
FILES = {
    "docs/a.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
    "docs/deep/b.csv": b"text\nthree\n",
    "docs/c.parquet": parquet_bytes(pa.table({"text": ["four"]})),
    "docs/_hidden.jsonl": b"x",
    "other/d.jsonl": b"x",
}


def _texts(*uris: str, **input: Any) -> list[str]:
    config = Input(uri=uris, **input)
    corpus = Corpus.open(config)
    splits, keep = plan_files(corpus.source, corpus.list(LATER), config, SplitBounds())
    made = [one for split in splits for one in read_split(corpus.source, split, config, keep, SplitBounds())]
    assert all(one.num_documents == one.num_counted for one in made)
    return [text for one in made if one.documents is not None for text in one.documents["text"].to_pylist()]


def _pack(path: Path, files: dict[str, bytes]) -> str:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return str(path)


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder of fsspec's memory, as a URI."""
    memory, name = fsspec.filesystem("memory"), uuid4().hex
    for path, data in FILES.items():
        memory.pipe_file(f"/{name}/{path}", data)
    yield f"memory://{name}"
    memory.rm(f"/{name}", recursive=True)


def test_memory_as_folder_file_glob_and_list(bucket: str) -> None:
    assert _texts(f"{bucket}/docs") == ["one", "two", "four", "three"]
    assert _texts(f"{bucket}/docs/a.jsonl") == ["one", "two"]
    assert _texts(f"{bucket}/**/*.csv") == ["three"]
    assert _texts(f"{bucket}/docs/a.jsonl", f"{bucket}/docs/deep/") == ["one", "two", "three"]


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_an_archive_as_folder_file_glob_and_list(tmp_path: Path, name: str) -> None:
    kind, path = name.split(".")[1], _pack(tmp_path / name, FILES)
    for place in (path, f"file://{path}"):
        assert _texts(f"{kind}://docs::{place}") == ["one", "two", "four", "three"]
        assert _texts(f"{kind}://docs/a.jsonl::{place}") == ["one", "two"]
        assert _texts(f"{kind}://**/*.csv::{place}") == ["three"]
        assert _texts(f"{kind}://docs/*.jsonl::{place}", f"{kind}://docs/deep::{place}") == ["one", "two", "three"]
    one = _pack(tmp_path / f"one.{name.partition('.')[2]}", {"x.jsonl": FILES["docs/a.jsonl"]})
    assert _texts(f"{kind}::{one}") == ["one", "two"]


def test_an_archive_in_another_scheme(bucket: str, tmp_path: Path) -> None:
    packed = Path(_pack(tmp_path / "a.zip", FILES)).read_bytes()
    fsspec.filesystem("memory").pipe_file(f"{bucket}/a.zip", packed)
    assert _texts(f"zip://docs/*.jsonl::{bucket}/a.zip") == ["one", "two"]


def test_members_of_a_zip_are_known_by_their_content(tmp_path: Path) -> None:
    """An archive that grows by a member changes no other."""
    uri = f"zip::{_pack(tmp_path / 'a.zip', FILES)}"
    before = {file.uri: file.file_id for file in Corpus.open(Input(uri=uri, format="lines")).list(LATER)}
    _pack(tmp_path / "a.zip", {**FILES, "docs/new.jsonl": b"x", "other/d.jsonl": b"y"})
    after = {file.uri: file.file_id for file in Corpus.open(Input(uri=uri, format="lines")).list(LATER)}
    assert {name for name in after if before.get(name) != after[name]} == {"docs/new.jsonl", "other/d.jsonl"}


@pytest.mark.parametrize("member", ["docs/a.jsonl", "docs/c.parquet"])
@pytest.mark.parametrize("when", ["before", "while"])
def test_an_archive_that_is_replaced_is_a_changed_file(tmp_path: Path, member: str, when: str) -> None:
    path = _pack(tmp_path / "a.zip", FILES)
    storage = Storage(f"zip::{path}")
    info = storage.stat(member)
    if when == "before":
        _pack(Path(path), {**FILES, member: b"another"})
        with pytest.raises(ChangedError):
            storage.open(member, expect=info)
        return
    reader = storage.open(member, expect=info)
    reader.read(3)
    _pack(Path(path), {**FILES, member: b"another"})
    os.utime(path, ns=(1, 1))
    with pytest.raises(ChangedError):
        reader.close()


def test_memory_that_is_overwritten_is_a_changed_file(bucket: str) -> None:
    storage = Storage(bucket)
    info = storage.stat("docs/a.jsonl")
    assert info.identity_kind == "stat"
    fsspec.filesystem("memory").pipe_file(f"{bucket}/docs/a.jsonl", FILES["docs/a.jsonl"])
    with pytest.raises(ChangedError):
        storage.open("docs/a.jsonl", expect=info)
    assert storage.stat("docs/a.jsonl").identity != info.identity


def test_a_damaged_member_is_a_file_in_quarantine(tmp_path: Path) -> None:
    path = Path(_pack(tmp_path / "a.zip", {"a.jsonl": FILES["docs/a.jsonl"] * 500, "b.jsonl": FILES["docs/a.jsonl"]}))
    data = bytearray(path.read_bytes())
    data[60:70] = b"\xff" * 10
    path.write_bytes(data)
    config = Input(uri=f"zip::{path}")
    corpus = Corpus.open(config)
    splits, keep = plan_files(
        corpus.source, corpus.list(LATER), Input(uri="x", format="lines", text="{text}"), SplitBounds()
    )
    made = [one for split in splits for one in read_split(corpus.source, split, config, keep, SplitBounds())]
    assert [row["reason"] for row in made[0].quarantine.to_pylist()][-1] == "unreadable_file"
    assert made[0].num_counted is None
    assert made[-1].num_counted == 2


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"text")
    with pytest.raises(InputError, match=r"a\.zip is no zip file"):
        _texts(f"zip::{tmp_path}/a.zip")
    with pytest.raises(InputError, match="no files at"):
        _texts(f"zip://docs::{_pack(tmp_path / 'b.zip', {'x': b''})}")
    with pytest.raises(InputError, match=rf"no files at zip://\*\.csv::{tmp_path}/b\.zip;"):
        _texts(f"zip://*.csv::{tmp_path}/b.zip")
    with pytest.raises(InputError, match="not found"):
        _texts(f"zip::{tmp_path}/c.zip")


@contextmanager
def _web(folder: Path, headers: dict[str, str]) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in headers.items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_file_on_the_web(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.jsonl").write_bytes(FILES["docs/a.jsonl"])
    with _web(tmp_path, {"ETag": '"first"'}) as url:
        storage = Storage(f"{url}/docs")
        info = storage.stat("a.jsonl")
        assert (info.identity, info.identity_kind, info.size) == ("first", "etag", 32)
        assert _texts(f"{url}/docs/a.jsonl") == ["one", "two"]
        with pytest.raises(InputError, match="no files at|not found"):
            _texts(f"{url}/docs/none.jsonl")


def test_what_has_no_time_is_known_by_its_content_if_that_is_small(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generic, "_TIMES", ())
    storage = Storage(bucket)
    info = storage.stat("docs/a.jsonl")
    assert (info.identity_kind, len(info.identity)) == ("etag", 32)
    monkeypatch.setattr(generic, "_MOST_HASHED_BYTES", 10)
    with pytest.raises(InputError, match="nothing tells whether .*a.jsonl changes"):
        storage.stat("docs/a.jsonl")


@pytest.mark.parametrize("uri", ["simplecache::s3://b/x", "https://host/a.csv?token=planted-secret", "zip://a/b.zip"])
def test_what_is_not_read_is_refused_without_its_secret(uri: str) -> None:
    with pytest.raises(UsageError) as error:
        Corpus.open(Input(uri=uri))
    assert "planted" not in str(error.value)


def test_nothing_is_written_to_what_is_only_read(bucket: str, tmp_path: Path) -> None:
    for uri in (bucket, f"zip::{_pack(tmp_path / 'a.zip', FILES)}"):
        storage = Storage(uri)
        with pytest.raises(NotSupportedError, match="writing"):
            storage.put("x", b"")
        with pytest.raises(NotSupportedError, match="writing"):
            storage.put_if_absent("x", b"")
        with pytest.raises(NotSupportedError, match="writing"):
            storage.delete(["x"])


def test_credentials_in_any_uri_are_refused() -> None:
    for uri in ("sftp://me:planted-secret@host/x", "zip://x::s3://key:planted-secret@b/a.zip"):
        with pytest.raises(UsageError, match="credentials in a URI") as error:
            Storage(uri)
        assert "planted" not in str(error.value)
