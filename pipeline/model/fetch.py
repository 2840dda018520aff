"""The model's files, on this machine.

A folder is used as it is. A prefix of object storage is copied once per node into the cache,
under a file lock and by one rename, so that a killed copy leaves nothing that looks whole. A
hub id goes through huggingface_hub and its own cache, which does the same. Only what an encoder
is made of is fetched: safetensors, JSON, vocabularies. Never a pickle, never code.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.config import EncoderSettings, redact_uri
from pipeline.errors import EnvironmentFault, ModelError, StorageFault
from pipeline.uris import ObjectInfo, Storage

_SUFFIXES = (".safetensors", ".json", ".txt", ".model")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_TIMEOUT_S = 10.0
_TRY_AGAIN = (408, 429)  # too slow, too many requests

# What this process has asked for already: a reader asks once a split, the hub should hear of it once.
_found: dict[tuple[str, str | None], Path] = {}


def cache_path() -> Path:
    """Where this node keeps what it fetched: `$XDG_CACHE_HOME/vecmill`, by default `~/.cache/vecmill`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vecmill"


def fetch_model(settings: EncoderSettings, storage_options: Mapping[str, Any] | None = None) -> Path:
    """The folder that holds the model's files, fetched first if it is not on this machine.

    Args:
        settings: `model` is a folder, an object-storage prefix or a hub id; `revision` pins a hub id.
        storage_options: fsspec's, for an object-storage prefix.

    Raises:
        ModelError: there is no such folder, prefix, hub id or revision, or the hub cannot be asked.
        StorageFault: the object storage, or the cache's disk, did not do what was asked.
        EnvironmentFault: the hub, the network or the disk failed while the model was fetched.
    """
    key = (settings.model, settings.revision)
    if key not in _found or not _found[key].is_dir():
        _found[key] = _fetch(settings.model, settings.revision, storage_options)
    return _found[key]


def _fetch(model: str, revision: str | None, storage_options: Mapping[str, Any] | None) -> Path:
    folder = Path(model.removeprefix("file://")).expanduser()
    remote = "://" in model and not model.startswith("file://")
    if revision is not None and (remote or folder.is_dir()):
        raise ModelError(
            f"encoder.revision pins a hub id, and encoder.model is none: {redact_uri(model)}; leave it out"
        )
    if remote:
        return _fetch_prefix(model, storage_options)
    if folder.is_dir():
        return folder.resolve()
    if folder.exists() or not _HUB_ID.fullmatch(model):
        raise ModelError(f"model not found: {model} is no folder; give a folder, an s3:// prefix or a hub id")
    return _fetch_hub(model, revision)


def _fetch_prefix(uri: str, storage_options: Mapping[str, Any] | None) -> Path:
    storage = Storage(uri, storage_options)
    try:
        listed = storage.list()
    except FileNotFoundError as error:
        raise ModelError(f"model not found: {error}") from None
    objects = [info for info in listed if info.name.endswith(_SUFFIXES)]
    if not objects:
        found = ", ".join(info.name for info in listed[:5]) or "nothing"
        raise ModelError(f"no model below {redact_uri(uri)}, which holds {found}; give the prefix with modules.json")
    # The listing is part of the key: a model that was replaced is another model, never a mixture with the old one.
    seen = repr([storage.uri, [(info.name, info.size, info.identity) for info in objects]])
    folder = cache_path() / "models" / hashlib.blake2b(seen.encode(), digest_size=16).hexdigest()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _copy(storage, objects, folder)
    except OSError as error:
        raise StorageFault(
            f"the model cannot be kept in {folder.parent}: {error}; make room there, or set XDG_CACHE_HOME"
        ) from None
    return folder


def _copy(storage: Storage, objects: list[ObjectInfo], folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as temporary:
        whole = Path(temporary) / "model"
        for info in objects:
            path = whole / info.name
            path.parent.mkdir(parents=True, exist_ok=True)
            with storage.open(info.name, expect=info) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, 8 * 2**20)
        whole.rename(folder)


def _fetch_hub(model: str, revision: str | None) -> Path:
    # Imported here: half a second that a local folder need not pay in every reader's process.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    patterns = [f"*{suffix}" for suffix in _SUFFIXES]
    name = model if revision is None else f"{model} at revision {revision}"
    try:
        if revision is not None and _COMMIT.fullmatch(revision):
            try:
                return Path(snapshot_download(model, revision=revision, local_files_only=True, allow_patterns=patterns))
            except LocalEntryNotFoundError:
                pass  # not in the cache yet: ask the hub
        return Path(
            snapshot_download(
                model,
                revision=revision,
                etag_timeout=_HUB_TIMEOUT_S,
                allow_patterns=patterns,
                ignore_patterns=["onnx/*", "openvino/*"],
            )
        )
    except GatedRepoError:
        raise ModelError(f"model not open to everybody: {name}; accept its terms on the hub and set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise ModelError(f"no such revision of the model: {name}") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"model not found: there is no folder {model}, and the hub has no {name}; correct the path, or set "
            "HF_TOKEN for a private model"
        ) from None
    except LocalEntryNotFoundError:
        raise ModelError(
            f"model not found: there is no folder {model}, and the hub could not be asked for {name}, of which this "
            "machine's cache holds no whole copy; correct the path, or give a folder or an s3:// prefix with the model"
        ) from None
    except Exception as error:  # those of its HTTP library are no OSError, and it has changed that library before
        raise _unfetched(name, error) from None


def _unfetched(name: str, error: Exception) -> ModelError | EnvironmentFault:
    """What the hub refuses for good, against what may go well the next time."""
    said = f"model cannot be fetched: {name}: {' '.join(str(error).split())[:300] or type(error).__name__}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, ValueError) if status is None else status < 500 and status not in _TRY_AGAIN:
        return ModelError(f"{said}; give a folder that holds the model")
    return EnvironmentFault(f"{said}; run the same command again, with room on the disk of HF_HOME")
