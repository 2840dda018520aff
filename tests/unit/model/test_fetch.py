"""Where a model comes from: a folder, an object-storage prefix, the hub."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import huggingface_hub
import pytest
from httpx2 import ProxyError, RemoteProtocolError, Request, Response
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from pipeline.config import EncoderSettings
from pipeline.errors import EnvironmentFault, ModelError, StorageFault
from pipeline.model import fetch, fetch_model
from pipeline.uris import ObjectInfo


class FakeStorage:
    """A prefix of object storage in memory."""

    objects: ClassVar[dict[str, bytes]] = {}
    opened: ClassVar[list[str]] = []

    def __init__(self, uri: str, options: Any = None) -> None:
        self.uri = uri

    def list(self) -> list[ObjectInfo]:
        return [ObjectInfo(name, len(data), f"etag-{hash(data)}", "etag") for name, data in self.objects.items()]

    def open(self, name: str, *, expect: ObjectInfo | None = None) -> BinaryIO:
        self.opened.append(name)
        return io.BytesIO(self.objects[name])


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "_found", {})


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> type[FakeStorage]:
    monkeypatch.setattr(fetch, "Storage", FakeStorage)
    names = ["modules.json", "1_Pooling/config.json", "model.safetensors", "pytorch_model.bin", "modeling.py"]
    monkeypatch.setattr(FakeStorage, "objects", {name: name.encode() for name in names})
    monkeypatch.setattr(FakeStorage, "opened", [])
    return FakeStorage


def settings(model: object, revision: str | None = None) -> EncoderSettings:
    return EncoderSettings(model=str(model), revision=revision)


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    assert fetch_model(settings(tmp_path)) == tmp_path
    assert fetch_model(settings(f"file://{tmp_path}")) == tmp_path


def test_a_prefix_is_fetched_once_without_pickles_or_code(
    storage: type[FakeStorage], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch_model(settings("s3://bucket/model"))
    monkeypatch.setattr(fetch, "_found", {})  # another process of the node
    assert fetch_model(settings("s3://bucket/model")) == folder
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {"modules.json", "1_Pooling/config.json", "model.safetensors"}
    assert (folder / "1_Pooling/config.json").read_bytes() == b"1_Pooling/config.json"
    assert len(storage.opened) == 3


def test_a_model_that_was_replaced_is_fetched_again(
    storage: type[FakeStorage], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = fetch_model(settings("s3://bucket/model"))
    storage.objects["model.safetensors"] = b"new"
    monkeypatch.setattr(fetch, "_found", {})
    new = fetch_model(settings("s3://bucket/model"))
    assert new != old
    assert (new / "model.safetensors").read_bytes() == b"new"


def test_a_copy_that_fails_leaves_nothing_that_looks_whole(
    storage: type[FakeStorage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(self: FakeStorage, name: str, *, expect: ObjectInfo | None = None) -> BinaryIO:
        if name == "model.safetensors":
            raise StorageFault("gone")
        return io.BytesIO(b"x")

    monkeypatch.setattr(FakeStorage, "open", fail)
    with pytest.raises(StorageFault, match="gone"):
        fetch_model(settings("s3://bucket/model"))
    assert [path for path in (tmp_path / "cache/vecmill/models").iterdir() if path.is_dir()] == []


def test_a_cache_that_cannot_be_written_is_told(
    storage: type[FakeStorage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageFault, match="set XDG_CACHE_HOME"):
        fetch_model(settings("s3://bucket/model"))


def test_an_empty_prefix_is_no_model(storage: type[FakeStorage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeStorage, "objects", {"readme.md": b""})
    with pytest.raises(ModelError, match=r"s3://\*\*\*@bucket/x, which holds readme.md"):
        fetch_model(settings("s3://key:secret@bucket/x"))


@pytest.mark.parametrize("model", ["/nowhere/model", "./model", "a/b/c", "../up"])
def test_a_path_that_is_no_folder_is_not_asked_of_the_hub(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", pytest.fail)
    with pytest.raises(ModelError, match=f"model not found: {model} is no folder"):
        fetch_model(settings(model))


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="pins a hub id"):
        fetch_model(settings(tmp_path, "main"))


def test_the_hub_gives_no_pickles_and_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []

    def download(model: str, **kwargs: Any) -> str:
        calls.append(kwargs)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert fetch_model(settings("owner/name", "v1")) == fetch_model(settings("owner/name", "v1")) == tmp_path
    (call,) = calls
    assert call["revision"] == "v1"
    assert call["allow_patterns"] == ["*.safetensors", "*.json", "*.txt", "*.model"]


def test_a_pinned_commit_in_the_cache_needs_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def download(model: str, *, local_files_only: bool = False, **kwargs: Any) -> str:
        assert local_files_only
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert fetch_model(settings("owner/name", "a" * 40)) == tmp_path


def refused(kind: type[HfHubHTTPError], status: int) -> Exception:
    return kind("no", response=Response(status, request=Request("GET", "http://hub")))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            lambda: LocalEntryNotFoundError("no\nway"),
            "there is no folder owner/name, and the hub could not be asked for owner/name",
        ),
        (lambda: refused(RepositoryNotFoundError, 404), "there is no folder owner/name, and the hub has no owner/name"),
        (lambda: refused(HfHubHTTPError, 403), "cannot be fetched: owner/name: no"),
        (lambda: ValueError("bad"), "cannot be fetched: owner/name: bad"),
    ],
)
def test_a_model_that_the_hub_does_not_give_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], sentence: str
) -> None:
    def download(model: str, **kwargs: Any) -> str:
        raise error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelError, match=sentence) as caught:
        fetch_model(settings("owner/name"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (lambda: OSError(28, "No space\nleft"), "No space left"),
        (lambda: ProxyError("proxy away"), "proxy away"),
        (lambda: RemoteProtocolError(""), "RemoteProtocolError"),
        (lambda: refused(HfHubHTTPError, 503), "no"),
        (lambda: refused(HfHubHTTPError, 429), "no"),
    ],
)
def test_a_disk_or_a_network_that_fails_is_no_fault_of_the_model(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], sentence: str
) -> None:
    def download(model: str, **kwargs: Any) -> str:
        raise error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(
        EnvironmentFault, match=f"cannot be fetched: owner/name: .*{sentence}.*; run the same"
    ) as caught:
        fetch_model(settings("owner/name"))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 75
