"""What is known of an object, and the faults of storage in plain words."""

from __future__ import annotations

import errno
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NoReturn

import pyarrow as pa

from pipeline.errors import ChangedError, CredentialsFault, NotSupportedError, StorageFault, StoreError
from pipeline.uris._addresses import Address


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


class ReadOnly(ABC):
    """What every root has that is only read."""

    def __init__(self, address: Address) -> None:
        self._address = address

    @abstractmethod
    def open_raw(self, name: str, expect: ObjectInfo | None) -> io.RawIOBase:
        """The object as a file; it must be the one expected until it is closed."""

    def read(self, name: str, begin: int, end: int | None, expect: ObjectInfo | None) -> bytes:
        with self.open_raw(name, expect) as raw:
            raw.seek(begin)
            return io.BufferedReader(raw).read(-1 if end is None else end - begin)

    def put(self, name: str, data: bytes | pa.Buffer) -> None:
        self._refuse(name)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        self._refuse(name)

    def delete(self, names: Iterable[str]) -> None:
        self._refuse("")

    def _refuse(self, name: str) -> NoReturn:
        raise NotSupportedError(f"writing to {self._address.below(name).uri}; local folders and s3:// are written to")


def changed(uri: str) -> ChangedError:
    """The fault of an object that is not the one that was listed."""
    return ChangedError(f"changed since it was listed: {uri}; run the same command again")


class NoBucketFault(StorageFault, FileNotFoundError):
    """The bucket is not there: nothing in it is, and nothing can be put; the same command goes on once it is."""


_UNDER_THE_FILE_SYSTEM = (errno.EIO, errno.ENXIO, errno.ENODEV, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN)


def from_os_error(error: OSError, uri: str) -> Exception:
    """A fault of the operating system, as what a person can act on. Nothing is tried again: the kernel does that."""
    said = error.strerror or str(error)
    again = "then run the same command again"
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"not found: {uri}")
    if isinstance(error, NotADirectoryError | IsADirectoryError):
        return StoreError(f"{uri} is a {'folder' if isinstance(error, IsADirectoryError) else 'path below a file'}")
    if error.errno == errno.EROFS:
        return CredentialsFault(f"no right to write {uri}: it is mounted read-only; mount it for writing, {again}")
    if isinstance(error, PermissionError):
        return CredentialsFault(f"no right to use {uri}: {said}; grant it, {again}")
    if error.errno == errno.ENOSPC:
        return StorageFault(f"disk full: {uri}; free some space, {again}")
    if error.errno == errno.EDQUOT:
        return StorageFault(f"quota used up: {uri}; free some space or get more, {again}")
    if error.errno == errno.ESTALE:
        return StorageFault(f"the network folder of {uri} went away under it ({said}); mount it anew, {again}")
    if error.errno in _UNDER_THE_FILE_SYSTEM:
        return StorageFault(f"the disk or network that holds {uri} fails ({said}); put it right, {again}")
    return StorageFault(f"storage failed at {uri}: {said}; put it right, {again}")
