"""A folder as storage.

put             temporary file beside it, fsync, rename, fsync of the folder.
put_if_absent   temporary file beside it, fsync, hard link (which fails if the name is taken, and
                shows the whole file at once), fsync of the folder. Opening with O_EXCL would show
                a torn file to others, and leave it if killed.

A killed put leaves its temporary file; listings leave those out.
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import StoreError
from pipeline.uris._objects import ObjectInfo, changed, from_os_error

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


class LocalFolder:
    """The objects below a folder, which need not exist yet."""

    def __init__(self, root: str) -> None:
        self._folder = root

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def root_exists(self) -> bool:
        return os.path.exists(self._folder)

    def scan(self, prefix: str) -> Iterator[ObjectInfo]:
        with _translated(self._path(prefix)):
            yield from self._walk(prefix, frozenset())

    def _walk(self, folder: str, above: frozenset[tuple[int, int]]) -> Iterator[ObjectInfo]:
        path = self._path(folder)
        try:
            here = os.stat(path)
            entries = list(os.scandir(path))
        except (FileNotFoundError, NotADirectoryError):
            return
        inode = (here.st_dev, here.st_ino)
        if inode in above:  # a link to a folder above itself
            return
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                yield from self._walk(name, above | {inode})
            elif not _TEMPORARY.fullmatch(entry.name):
                with suppress(FileNotFoundError):  # deleted since, or a link to nothing
                    yield _info(name, entry.stat())

    def leftovers(self) -> list[str]:
        """The temporary files of puts, which `scan` leaves out."""
        with _translated(self._folder):
            found = [os.path.join(folder, name) for folder, _, names in os.walk(self._folder) for name in names]
        temporary = [path for path in found if _TEMPORARY.fullmatch(os.path.basename(path))]
        return sorted(os.path.relpath(path, self._folder).replace(os.sep, "/") for path in temporary)

    def stat(self, name: str) -> ObjectInfo:
        with _translated(self._path(name)):
            return _info(name, os.stat(self._path(name)))

    def read(self, name: str, begin: int, end: int | None, expect: ObjectInfo | None) -> bytes:
        with self.open_raw(name, expect) as raw:
            # A buffered reader goes on where the kernel gives less than asked for (2 GiB at most a call).
            reader = io.BufferedReader(raw)
            reader.seek(begin)
            return reader.read() if end is None else reader.read(end - begin)

    def open_raw(self, name: str, expect: ObjectInfo | None) -> io.RawIOBase:
        with _translated(self._path(name)):
            return _CheckedFile(self._path(name), expect)

    def put(self, name: str, data: bytes | pa.Buffer) -> None:
        path = self._path(name)
        with _translated(path), _temporary(path, data) as temporary:
            os.rename(temporary, path)
            _sync_folder(os.path.dirname(path))

    def put_if_absent(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        with _translated(path), _temporary(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                # Over NFS a link may be made, its reply lost, and the kernel's second try refused.
                return os.path.samefile(temporary, path)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                raise StoreError(
                    f"the file system of {self._folder} has no hard links, without which two writers "
                    "could both publish; put the store on another disk or on s3://"
                ) from None
            _sync_folder(os.path.dirname(path))
        return True

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            with _translated(self._path(name)), suppress(FileNotFoundError):
                os.unlink(self._path(name))


class _CheckedFile(io.FileIO):
    """A file that must be the one expected when it is opened, and still when it is closed.

    Networks stand behind some folders: each call may fail (ESTALE, EIO), and leaves here as a fault of storage.
    """

    def __init__(self, path: str, expect: ObjectInfo | None) -> None:
        self._expect = None  # so that a failed open closes without a check
        super().__init__(path, "rb")
        self._expect = expect
        try:
            self._check()
        except BaseException:
            self._expect = None
            super().close()
            raise

    def _check(self) -> None:
        with _translated(str(self.name)):
            if self._expect is not None and _info("", os.fstat(self.fileno())).identity != self._expect.identity:
                raise changed(str(self.name))

    def read(self, size: int | None = -1, /) -> bytes:
        with _translated(str(self.name)):
            return super().read(size)

    def readall(self) -> bytes:
        with _translated(str(self.name)):
            return super().readall()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        with _translated(str(self.name)):
            return super().readinto(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        with _translated(str(self.name)):
            return super().seek(offset, whence)

    def close(self) -> None:
        if self.closed:
            return
        try:
            self._check()
        finally:
            super().close()


def _info(name: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(name, found.st_size, f"{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}", "stat")


@contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, path) from error


@contextmanager
def _temporary(path: str, data: bytes | pa.Buffer) -> Iterator[str]:
    """A file beside `path` that holds `data`, on disk; gone afterwards, unless it was renamed."""
    folder, name = os.path.split(path)
    _make_folder(folder)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _make_folder(folder: str) -> None:
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    _make_folder(parent)
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from None
    _sync_folder(parent)


def _sync_folder(folder: str) -> None:
    """Make names in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
