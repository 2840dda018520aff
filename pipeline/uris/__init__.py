"""URIs: list, read, put, conditional put. The only module that knows local from object storage.

    _addresses   URIs taken apart
    _inputs      lists and globs of what is read, and their one root
    _local, _s3  a folder and a prefix, which also hold stores
    _fsspec      any other scheme of fsspec, only to be read
    _archives    what is in a zip or tar file at any of these

A `Storage` is a root (a local folder, an S3 prefix, or another place to read from) and names below
it, "/"-separated. It is cheap to make and to pickle; connections open at first use and are shared by all storages of a
process that have the same options.

Two things are promised because everything about commits stands on them:

* A put is atomic. Whoever reads sees all of the object or none of it, whatever is killed when.
* `put_if_absent` is won by one caller at most. A reply that is lost can make the winner see a
  loss or a fault, so callers put something of their own into the object and read it back.

Nothing is answered from a cache, and every fault leaves here as one of `pipeline.errors`, with
the URI in its message. A FileNotFoundError says that an object is not there; where its bucket is
not, it is a StorageFault as well.

Object storage fails every day. What may pass (5xx, throttling, timeouts, resets, replies cut or
garbled) is asked for again for half a minute, by one policy (`pipeline.uris._retry`); what does
not pass (no right, not there, not the object expected, credentials wrong or expired) is told at
once. A local fault is told at once too. Whatever is interrupted leaves no request behind.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Protocol, cast

import pyarrow as pa
import pyarrow.fs

from pipeline.config import redact_uri
from pipeline.errors import NotSupportedError, StoreError
from pipeline.uris._addresses import ARCHIVES, Address
from pipeline.uris._inputs import InputEntry, open_inputs
from pipeline.uris._local import LocalFolder
from pipeline.uris._objects import ObjectInfo, changed

__all__ = ["InputEntry", "ObjectInfo", "Storage", "open_inputs", "split_input_uri"]

# One request each on object storage: large enough that a sequential reader waits seldom.
_READ_BUFFER_BYTES = 8 * 2**20


class _Root(Protocol):
    """What a kind of storage does; `LocalFolder` and `S3Prefix` do all of it, others only read."""

    def scan(self, prefix: str) -> Iterator[ObjectInfo]: ...
    def stat(self, name: str) -> ObjectInfo: ...
    def root_exists(self) -> bool: ...
    def read(self, name: str, begin: int, end: int | None, expect: ObjectInfo | None) -> bytes: ...
    def open_raw(self, name: str, expect: ObjectInfo | None) -> io.RawIOBase: ...
    def put(self, name: str, data: bytes | pa.Buffer) -> None: ...
    def put_if_absent(self, name: str, data: bytes) -> bool: ...
    def delete(self, names: Iterable[str]) -> None: ...


class Storage:
    """A root and the objects below it.

    Args:
        uri: a local path, `file://...` or `s3://bucket/prefix`; only to be read, any URI of a scheme that fsspec
            has, or `zip://folder::` (`tar://`) and one of those.
        options: fsspec's storage options (for S3: key, secret, endpoint_url, ...); never shown.

    Raises:
        NotSupportedError: no such scheme.
        UsageError: credentials in the URI.
    """

    def __init__(self, uri: str, options: Mapping[str, Any] | None = None) -> None:
        self.address = Address.parse(uri)
        self.uri = self.address.uri
        _refuse_unknown(self.address)
        self._options = dict(options or {})
        self._opened: _Root | None = None

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder of this machine (or of a file system it has mounted)."""
        return "://" not in self.uri

    @property
    def _root(self) -> _Root:
        if self._opened is None and self.is_local:
            self._opened = LocalFolder(self.uri)
        elif self._opened is None and self.address.scheme in ARCHIVES:
            from pipeline.uris._archives import Archive

            self._opened = Archive(self.address, self._options)
        elif self._opened is None and self.address.scheme != "s3":
            from pipeline.uris._fsspec import FsspecFolder

            self._opened = FsspecFolder(self.address, self._options)
        elif self._opened is None:
            from pipeline.uris._s3 import S3Prefix  # a second of imports that local stores do not need

            self._opened = S3Prefix(self.uri, self._options)
        return self._opened

    def __reduce__(self) -> tuple[type[Storage], tuple[str, dict[str, Any]]]:
        return Storage, (self.uri, self._options)

    def __repr__(self) -> str:
        return f"Storage({redact_uri(self.uri)!r})"

    def full_uri(self, name: str) -> str:
        """The URI of an object, as other tools take it; a path if it is local."""
        return self.address.below(name).uri if name else self.uri

    def check_store(self) -> None:
        """Refuse what cannot hold a store.

        Raises:
            NotSupportedError: another place than a local folder or S3.
            StoreError: a local path that is a file.
        """
        if self.address.scheme not in ("", "s3"):
            raise NotSupportedError(
                f"a store on {self.address.scheme}:// ({redact_uri(self.uri)}); local folders and s3:// are, since "
                "elsewhere nothing is known of conditional puts"
            )
        if self.is_local and os.path.exists(self.uri) and not os.path.isdir(self.uri):
            raise StoreError(f"store.uri is a file: {self.uri}; give a folder, which is made if it does not exist")

    def leftovers(self) -> list[str]:
        """Temporary files that killed puts left, or that are being written; listings leave them out."""
        return LocalFolder(self.uri).leftovers() if self.is_local else []

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """All objects below the folder `prefix`, sorted by name; none if there is no such folder.

        Raises:
            FileNotFoundError: there is no such bucket.
        """
        return sorted(self.scan(prefix), key=lambda info: info.name)

    def scan(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """As `list`, in any order and as storage gives it, page by page: no more than a page is in memory."""
        return self._root.scan(prefix.strip("/"))

    def stat(self, name: str) -> ObjectInfo:
        """Size and identity as they are now.

        Raises:
            FileNotFoundError: absent.
        """
        return self._root.stat(name)

    def exists(self, name: str = "") -> bool:
        """Whether there is such an object; without a name, whether the root is there."""
        if not name:
            return self._root.root_exists()
        try:
            self.stat(name)
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: absent.
        """
        return self._root.read(name, 0, None, None)

    def read_range(self, name: str, begin: int, end: int, *, expect: ObjectInfo | None = None) -> bytes:
        """Bytes [begin, end), cut at the object's end.

        Raises:
            FileNotFoundError: absent.
            ChangedError: it is not the object expected.
        """
        return self._root.read(name, begin, end, expect) if end > begin else b""

    def open(self, name: str, *, expect: ObjectInfo | None = None) -> BinaryIO:
        """A seekable, buffered reader.

        Given `expect`, only that object is read: S3 checks each request (If-Match); a local file
        is checked when it is opened and, whether or not anything failed in between, closed.

        Raises:
            FileNotFoundError: absent.
            ChangedError: at open, at a read or at close: it is not the object expected.
        """
        raw = self.open_unbuffered(name, expect=expect)
        return cast(BinaryIO, io.BufferedReader(raw, buffer_size=2**17 if self.is_local else _READ_BUFFER_BYTES))

    def open_unbuffered(self, name: str, *, expect: ObjectInfo | None = None) -> io.RawIOBase:
        """As `open`, for callers that know which ranges they want: each read is one request."""
        return self._root.open_raw(name, expect)

    def check_unchanged(self, name: str, expect: ObjectInfo) -> None:
        """Raise ChangedError unless the object is still the one expected (one request)."""
        try:
            unchanged = self.stat(name).identity == expect.identity
        except FileNotFoundError:
            unchanged = False
        if not unchanged:
            raise changed(self.full_uri(name))

    def put(self, name: str, data: bytes | pa.Buffer) -> None:
        """Put an object, in place of one that may be there; atomic, and durable on return.

        Raises:
            StorageFault: disk full, or storage failed: it may have gone through all the same.
            CredentialsFault: no right to, or credentials missing, wrong or expired; so with all the others here.
        """
        self._root.put(name, data)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Put an object unless one is there; False if one is. Atomic among all callers.

        False, or a StorageFault, may also mean that one's own put went through and its reply was
        lost, for a put that may have failed is tried again: read back and compare.
        """
        return self._root.put_if_absent(name, data)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; those that are not there are no error."""
        self._root.delete(names)

    def arrow_filesystem(self) -> pyarrow.fs.FileSystem:
        """A file system for `pyarrow.dataset`, to be used with `arrow_path`; it only reads."""
        from pipeline.uris._arrow import StorageHandler

        return pa.fs.LocalFileSystem() if self.is_local else pa.fs.PyFileSystem(StorageHandler(self))

    def arrow_path(self, name: str) -> str:
        """The path of an object in `arrow_filesystem()`."""
        return self.full_uri(name) if self.is_local else name


def split_input_uri(uri: str, options: Mapping[str, Any] | None = None) -> tuple[Storage, str | None]:
    """Where an input is: (its root, None), or for a single file (its folder, its name).

    What does not exist comes back as a root; listing it gives nothing.
    """
    storage = Storage(uri, options)
    folder, name = storage.address.split()
    if uri.endswith("/") or not name:
        return storage, None
    parent = Storage(folder.uri, options)
    is_file = os.path.isfile(storage.uri) if storage.is_local else parent.exists(name)
    return (parent, name) if is_file else (storage, None)


def _refuse_unknown(address: Address) -> None:
    if address.scheme in ("", "s3", *ARCHIVES):
        return
    from fsspec import available_protocols

    if address.scheme not in available_protocols():
        raise NotSupportedError(
            f"storage on {address.scheme}:// ({redact_uri(address.uri)}); fsspec knows no such scheme"
        )
