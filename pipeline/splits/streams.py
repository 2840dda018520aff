"""Input files as byte streams: storage's faults kept apart from what a decoder cannot read.

The two must never be mixed up: bytes that cannot be decoded are quarantined, a storage that does
not answer fails the run. Decoders hide where an error came from (Arrow raises OSError for both),
so each source remembers what storage raised under it.

Arrow decompresses: it goes on through concatenated gzip members and zstd frames and raises on a
cut stream, which the `zstandard` package does not.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import pyarrow as pa

from pipeline.errors import ChangedError, StorageFault, VecmillError
from pipeline.uris import Storage

if TYPE_CHECKING:
    from pipeline.splits.files import InputFile

BOM = b"\xef\xbb\xbf"
"""The byte order mark that some writers put before UTF-8; not part of the first line."""
# One request each on object storage, of byte ranges and column chunks.
REQUEST_BYTES = 8 * 2**20
# A byte range ends within a line: fetched with the range, this spares most a second request.
_TAIL_BYTES = 64 * 2**10
# What a decoder loses before a fault in the stream is at most this much of decompressed text.
_BLOCK_BYTES = 64 * 2**10
_CODECS = {"gz": "gzip", "zst": "zstd"}


class UndecodableError(Exception):
    """Bytes that are not what the file's name says; the message is for the quarantine."""


class Source(io.RawIOBase):
    """A file of the input; `fault` is what storage raised while it was read, if it did."""

    def __init__(self, file: BinaryIO, uri: str) -> None:
        self._file = file
        self.uri = uri
        self.fault: Exception | None = None

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to a position in bytes."""
        with self._watched():
            return self._file.seek(offset, whence)

    def read(self, size: int = -1, /) -> bytes:
        """`size` bytes, fewer only at the end."""
        with self._watched():
            data = self._file.read(size)
            while 0 < len(data) < size and (more := self._file.read(size - len(data))):
                data += more
            return data

    def readinto(self, buffer: Any, /) -> int:
        """As `read`, into a buffer."""
        view = memoryview(buffer)
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except VecmillError as error:
            self.fault = error
            raise
        except FileNotFoundError as error:
            self.fault = _gone(self.uri)
            raise self.fault from error
        except Exception as error:
            self.fault = StorageFault(f"cannot read {self.uri}: {error}")
            raise self.fault from error


@contextmanager
def open_source(storage: Storage, file: InputFile, *, buffered: bool = False) -> Iterator[Source]:
    """The file as it was listed.

    Unless `buffered`, each read is one request: for callers that know their ranges.

    Raises:
        ChangedError: it is another by now; also on leaving.
        StorageFault: storage does not answer.
    """
    uri = storage.full_uri(file.uri)
    try:
        opened = (storage.open if buffered else storage.open_unbuffered)(file.uri, expect=file.info)
    except FileNotFoundError:
        raise _gone(uri) from None
    with opened:
        yield Source(cast(BinaryIO, opened), uri)


def _gone(uri: str) -> ChangedError:
    return ChangedError(f"listed and gone by now: {uri}; run again")


@contextmanager
def decoding(source: Source) -> Iterator[None]:
    """Raises `UndecodableError` for what a decoder raises, unless storage failed under it."""
    try:
        yield
    except (UndecodableError, VecmillError):
        raise
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        if source.fault is not None:
            raise source.fault from error
        if isinstance(error, MemoryError):
            raise
        raise UndecodableError(" ".join(str(error).split())) from error


def open_text(source: Source, compression: str | None, num_bytes: int = REQUEST_BYTES) -> io.BufferedReader:
    """A reader of the decompressed bytes, from the source's position on.

    Args:
        num_bytes: what is wanted, as far as that is known; plain files are fetched in equal requests
            that just cover it.

    Reading raises UndecodableError where the stream is cut or is none; storage's faults as they are.
    """
    if compression is not None:
        return io.BufferedReader(_Decompressed(source, compression), _BLOCK_BYTES)
    num_requests = -(-(num_bytes + _TAIL_BYTES) // REQUEST_BYTES)
    return io.BufferedReader(source, -(-(num_bytes + _TAIL_BYTES) // num_requests))


class _Decompressed(io.RawIOBase):
    def __init__(self, source: Source, compression: str) -> None:
        self._source = source
        self._stream = pa.CompressedInputStream(pa.PythonFile(source, mode="r"), _CODECS[compression])

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)
        with decoding(self._source):
            data = self._stream.read(len(view))
        view[: len(data)] = data
        return len(data)
