"""Any other scheme that fsspec has, only to be read.

An object is known by its version or its etag; where a scheme gives neither, by size and time, and
where it gives no time by a hash of the content, if that is small. It is asked for before and
after it is read. What fsspec itself keeps of listings is dropped before each. There is one attempt a
request, beyond those of the scheme's own client.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from pipeline.config import redact_uri
from pipeline.errors import CredentialsFault, InputError, StorageFault, UsageError, VecmillError
from pipeline.uris._addresses import Address
from pipeline.uris._objects import ObjectInfo, ReadOnly, changed

_VERSIONS = ("version_id", "VersionId", "versionId", "generation")
_ETAGS = ("ETag", "etag", "e_tag", "eTag", "Content-MD5", "content_md5", "md5Hash", "md5", "sha1", "checksum")
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "Last-Modified", "timeModified", "created")
_MOST_HASHED_BYTES = 16 * 2**20


class FsspecFolder(ReadOnly):
    """The objects below a folder of some file system of fsspec."""

    def __init__(self, address: Address, options: Mapping[str, Any]) -> None:
        super().__init__(address)
        self._fs = _filesystem(address, options)

    def _path(self, name: str) -> str:
        path: str = self._fs._strip_protocol(self._address.below(name).uri)
        return path

    def root_exists(self) -> bool:
        with _translated(self._address.uri):
            self._fs.invalidate_cache()
            return bool(self._fs.exists(self._path("")))

    def scan(self, prefix: str) -> Iterator[ObjectInfo]:
        root = self._path("").rstrip("/")
        with _translated(self._address.below(prefix).uri):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._path(prefix), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return
        for path, info in found.items():
            if info["type"] == "file":
                yield self._info(path[len(root) :].strip("/"), info)

    def stat(self, name: str) -> ObjectInfo:
        with _translated(self._address.below(name).uri):
            self._fs.invalidate_cache()
            info = self._fs.info(self._path(name))
            if info["type"] != "file":
                raise FileNotFoundError(name)
        return self._info(name, info)

    def _info(self, name: str, info: Mapping[str, Any]) -> ObjectInfo:
        uri, size = self._address.below(name).uri, info.get("size")
        if size is None:
            raise InputError(f"the size of {uri} is not told by what serves it; copy it to a folder or to s3://")
        for kind, fields in (("version", _VERSIONS), ("etag", _ETAGS)):
            identity = next((str(info[field]) for field in fields if info.get(field)), None)
            if identity is not None:
                return ObjectInfo(name, size, identity.strip('"'), "version" if kind == "version" else "etag")
        time_ns = next((_nanoseconds(info[field]) for field in _TIMES if info.get(field)), None)
        if time_ns is not None:
            return ObjectInfo(name, size, f"{size}-{time_ns}-{time_ns}", "stat")
        if size > _MOST_HASHED_BYTES:
            raise InputError(
                f"nothing tells whether {uri} changes: no version, etag or time; copy it to a folder or to s3://"
            )
        with _translated(uri):
            content = self._fs.cat_file(self._path(name))
        return ObjectInfo(name, size, hashlib.blake2b(content, digest_size=16).hexdigest(), "etag")

    def open_raw(self, name: str, expect: ObjectInfo | None) -> io.RawIOBase:
        self._check(name, expect)
        with _translated(self._address.below(name).uri):
            file = self._fs.open(self._path(name), "rb")
        return CheckedReader(file, self._address.below(name).uri, lambda: self._check(name, expect))

    def _check(self, name: str, expect: ObjectInfo | None) -> None:
        if expect is not None and self.stat(name).identity != expect.identity:
            raise changed(self._address.below(name).uri)


class CheckedReader(io.RawIOBase):
    """A file of fsspec, or of an archive, with its faults in plain words; checked once more when it is closed."""

    def __init__(self, file: Any, uri: str, check: Any) -> None:
        self._file, self._uri, self._check = file, uri, check

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _translated(self._uri):
            self._file.seek(offset, whence)
            return self.tell()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        with _translated(self._uri):
            data = self._file.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if self.closed:
            return
        try:
            self._check()
        finally:
            self._file.close()
            super().close()


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    try:
        yield
    except VecmillError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"not found: {redact_uri(uri)}") from None
    except PermissionError as error:
        raise CredentialsFault(f"no right to read {redact_uri(uri)}: {error}; grant it, then run again") from error
    except (OSError, ValueError, RuntimeError, TimeoutError) as error:
        if isinstance(error, UnicodeError):
            raise
        raise StorageFault(
            f"cannot read {redact_uri(uri)}: {error}; put it right, then run the same command again"
        ) from error


def _filesystem(address: Address, options: Mapping[str, Any]) -> Any:
    import fsspec

    scheme = address.scheme
    try:
        kind = fsspec.get_filesystem_class(scheme)
        # Of some, such as sftp, the host in the URI is an option.
        given = {**kind._get_kwargs_from_urls(address.uri), **options}
        return kind(**{**given, "use_listings_cache": False, "skip_instance_cache": True})
    except ImportError as error:
        raise UsageError(f"{scheme}:// needs another package: {error}") from None
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"storage_options of {redact_uri(address.uri)} are of no use: {type(error).__name__}"
        ) from None


def _nanoseconds(value: object) -> int:
    """A time as file systems give it: seconds, a datetime, or text."""
    if isinstance(value, int | float):
        return int(value * 1e9)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            # Of a time that cannot be read it is still known whether it changes; it is old, or waiting would not help.
            return int.from_bytes(hashlib.blake2b(str(value).encode(), digest_size=6).digest())
    assert isinstance(value, datetime), f"{type(value).__name__} is no time"
    return int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp() * 1e9)
