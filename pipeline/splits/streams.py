"""Input files as byte streams: storage's faults kept apart from what a decoder cannot read.

The two must never be mixed up: bytes that cannot be decoded are quarantined, a storage that does
not answer fails the run. Decoders hide where an error came from (Arrow raises OSError for both),
so each source remembers what storage raised under it.

Arrow decompresses: it goes on through concatenated gzip members and zstd frames and raises on a
cut stream, which the `zstandard` package does not. It knows no xz, and fails over an empty stream
between others of bzip2 (pyarrow 26.0); there the standard library does the same, stream by stream,
since its own `open` says nothing of other bytes behind the last one.
"""

from __future__ import annotations

import bz2
import codecs
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

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
# What a stream may ask for; `xz -9` takes 65 MiB.
_XZ_MEMORY_BYTES = 512 * 2**20
# Errors of the members of an archive: the input's, not storage's.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError)


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

    def close(self) -> None:
        """Nothing: a buffer that goes away must not end what others read on; `open_source` closes the file."""

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
        except _DAMAGED as error:
            raise UndecodableError(" ".join(str(error).split())) from error
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
    except (pa.ArrowException, OSError, ValueError, EOFError, lzma.LZMAError) as error:
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
    if compression in _STREAMS:
        return io.BufferedReader(_Streams(source, *_STREAMS[compression]), _BLOCK_BYTES)
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


class _Streams(io.RawIOBase):
    """The streams of a file one after the other, whatever each holds, with padding that may stand between them."""

    def __init__(self, source: Source, begin: Callable[[], _Stream], padding: bytes) -> None:
        self._source, self._begin, self._padding = source, begin, padding
        self._stream: _Stream | None = None
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)
        with decoding(self._source):
            data = self._read(len(view))
        view[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        while True:
            if self._stream is None and not self._next_stream():
                return b""
            assert self._stream is not None
            if self._stream.needs_input and not self._left:
                self._left = self._source.read(_BLOCK_BYTES)
                if not self._left:
                    raise UndecodableError("the compressed stream is cut")
            data = self._stream.decompress(self._left, max_length=size)
            self._left = b""
            if self._stream.eof:
                self._left, self._stream = self._stream.unused_data, None
            if data:
                return data

    def _next_stream(self) -> bool:
        """Whether there is one more."""
        while True:
            if len(self._left) < max(1, len(self._padding)):
                self._left += self._source.read(_BLOCK_BYTES)
            if not self._left:
                return False
            if not self._padding or not self._left.startswith(self._padding):
                self._stream = self._begin()
                return True
            self._left = self._left[len(self._padding) :]


class _Stream(Protocol):
    """What decompressors of the standard library do."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


_STREAMS: dict[str | None, tuple[Callable[[], _Stream], bytes]] = {
    "bz2": (bz2.BZ2Decompressor, b""),
    "xz": (partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES), b"\0\0\0\0"),
}


_MARK = b"\xff"


def _marked(error: UnicodeError) -> tuple[str, int]:
    """What cannot be decoded becomes a byte that no UTF-8 has: the row that holds it is at fault, and no other."""
    assert isinstance(error, UnicodeDecodeError)
    return _MARK.decode(errors="surrogateescape"), error.end


codecs.register_error("vecmill.mark", _marked)


class Transcoded(io.RawIOBase):
    """Text of another encoding as UTF-8; what cannot be decoded is no UTF-8 there either."""

    def __init__(self, reader: io.BufferedReader, encoding: str) -> None:
        self._reader = reader
        self._decoder = codecs.getincrementaldecoder(encoding)("vecmill.mark")
        self._left = b""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Up to as many bytes as fit."""
        view = memoryview(buffer)
        while not self._left:
            data = self._reader.read1(_BLOCK_BYTES)
            # A lone surrogate that the encoding spelled is none of UTF-8 either.
            self._left = self._decoder.decode(data, not data).encode("utf-8", "surrogatepass").replace(_ESCAPED, _MARK)
            if not data:
                break
        data, self._left = self._left[: len(view)], self._left[len(view) :]
        view[: len(data)] = data
        return len(data)


_ESCAPED = _MARK.decode(errors="surrogateescape").encode(errors="surrogatepass")
