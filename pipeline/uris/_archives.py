"""What is in a zip or tar file, at any address that can be read.

A member of a zip is known by the checksum that the archive holds of its content, so that an archive
that is written anew with one file more changes no other; of a tar, which has none, by the archive it
is in. The archive is read as any other object is, and must be the one that was opened until the
member is read. To go back within a compressed member is to unpack it anew from its beginning.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pipeline.errors import InputError
from pipeline.uris._addresses import Address
from pipeline.uris._fsspec import CheckedReader
from pipeline.uris._objects import ObjectInfo, ReadOnly, changed

if TYPE_CHECKING:
    from pipeline.uris import Storage

_BUFFER_BYTES = 2**20


class Archive(ReadOnly):
    """The members below a folder of an archive."""

    def __init__(self, address: Address, options: Mapping[str, Any]) -> None:
        from pipeline.uris import Storage

        super().__init__(address)
        outer = Address.parse(address.tail.removeprefix("::"))
        # As fsspec has it, options of each scheme may stand under its name.
        own = options.get(outer.scheme or "file", options)
        folder, self._name = outer.split()
        self._outer = Storage(folder.uri, own if isinstance(own, Mapping) else options)
        self._opened: _Opened | None = None

    def _open(self, *, afresh: bool = False) -> _Opened:
        """The archive as it is now; kept open, since to list a large one takes long."""
        if self._opened is None or afresh:
            info = self._outer.stat(self._name)
            if self._opened is None or self._opened.info != info:
                self._opened = _Opened(self._outer, info, self._address.scheme)
        return self._opened

    def _path(self, name: str) -> str:
        return self._address.below(name).path

    def root_exists(self) -> bool:
        try:
            members = self._open(afresh=True).members
        except FileNotFoundError:
            return False
        path = self._address.path
        return not path or any(name == path or name.startswith(f"{path}/") for name in members)

    def scan(self, prefix: str) -> Iterator[ObjectInfo]:
        below = self._path(prefix)
        start = len(self._address.path) + 1 if self._address.path else 0
        for path, (size, identity) in self._open(afresh=True).members.items():
            if not below or path.startswith(f"{below}/"):
                yield ObjectInfo(path[start:], size, identity, "etag")

    def stat(self, name: str) -> ObjectInfo:
        found = self._open(afresh=True).members.get(self._path(name))
        if found is None:
            raise FileNotFoundError(f"not found: {self._address.below(name).uri}")
        return ObjectInfo(name, found[0], found[1], "etag")

    def open_raw(self, name: str, expect: ObjectInfo | None) -> io.RawIOBase:
        uri, opened = self._address.below(name).uri, self._open(afresh=True)
        found = opened.members.get(self._path(name))
        if found is None:
            raise FileNotFoundError(f"not found: {uri}")
        if expect is not None and found[1] != expect.identity:
            raise changed(uri)
        return CheckedReader(opened.open(self._path(name)), uri, opened.check)


class _Opened:
    """One archive as it was when it was opened; `members` are size and identity by path."""

    def __init__(self, outer: Storage, info: ObjectInfo, kind: str) -> None:
        self._outer, self.info = outer, info
        self._kind = kind
        uri = outer.full_uri(info.name)
        try:
            self._archive = self._read()
        except (zipfile.BadZipFile, tarfile.TarError) as error:
            raise InputError(f"{uri} is no {kind} file: {error}") from None
        self._entries: dict[str, zipfile.ZipInfo | tarfile.TarInfo] = {}
        self.members: dict[str, tuple[int, str]] = {}
        if isinstance(self._archive, zipfile.ZipFile):
            for member in self._archive.infolist():
                if not member.is_dir():
                    identity = f"{member.file_size}-{member.CRC:08x}"
                    self._add(member.filename.strip("/"), member, member.file_size, identity)
        else:
            for entry in self._archive.getmembers():
                if entry.isfile():
                    identity = f"{info.identity}-{entry.offset}"
                    self._add(entry.name.removeprefix("./").strip("/"), entry, entry.size, identity)

    def _add(self, path: str, entry: zipfile.ZipInfo | tarfile.TarInfo, size: int, identity: str) -> None:
        self._entries[path], self.members[path] = entry, (size, identity)

    def _read(self) -> zipfile.ZipFile | tarfile.TarFile:
        file = cast(BinaryIO, io.BufferedReader(_Ranges(self._outer, self.info), _BUFFER_BYTES))
        return zipfile.ZipFile(file) if self._kind == "zip" else tarfile.open(fileobj=file)

    def open(self, path: str) -> Any:
        entry = self._entries[path]
        if isinstance(entry, zipfile.ZipInfo):
            assert isinstance(self._archive, zipfile.ZipFile)
            return self._archive.open(entry)
        # tarfile has one place in its file for all members: each that is open has a file of its own.
        archive = self._read()
        assert isinstance(archive, tarfile.TarFile)
        return archive.extractfile(entry)

    def check(self) -> None:
        self._outer.check_unchanged(self.info.name, self.info)


class _Ranges(io.RawIOBase):
    """An archive as it was listed, a request a read: nothing stays open, so that members may be read when they may."""

    def __init__(self, outer: Storage, info: ObjectInfo) -> None:
        self._outer, self._info, self._position = outer, info, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + (0, self._position, self._info.size)[whence]
        if position < 0:
            raise OSError(f"before the beginning: {position}")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._position + len(view), self._info.size)
        data = self._outer.read_range(self._info.name, self._position, end, expect=self._info)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
