"""What is known of an object, and the faults of storage in plain words."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ChangedError, CredentialsFault, StorageFault, StoreError


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a listing or a stat found it."""

    name: str
    """Relative to the storage's root, "/"-separated."""
    size: int
    """Bytes."""
    identity: str
    """Changes whenever the content does: the etag without quotes, or "size-mtime_ns-ctime_ns"."""
    identity_kind: Literal["etag", "stat", "version"]
    """"etag" or "stat" ("version" is reserved)."""


def changed(uri: str) -> ChangedError:
    """The fault of an object that is not the one that was listed."""
    return ChangedError(f"changed since it was listed: {uri}; run the same command again")


def from_os_error(error: OSError, uri: str) -> Exception:
    """A fault of the operating system, as what a person can act on."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"not found: {uri}")
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return CredentialsFault(f"no right to use {uri}: {error.strerror}; then run the same command again")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFault(f"disk full: {uri}; free some space, then run the same command again")
    if isinstance(error, NotADirectoryError | IsADirectoryError):
        return StoreError(f"{uri} is a {'folder' if isinstance(error, IsADirectoryError) else 'path below a file'}")
    return StorageFault(f"storage failed at {uri}: {error.strerror or error}; run the same command again")
