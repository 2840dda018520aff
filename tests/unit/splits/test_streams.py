"""What a decoder cannot read and what storage did not do are never taken for each other."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, cast

import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.errors import ChangedError, StorageFault
from pipeline.splits import InputFile
from pipeline.splits.streams import Source, UndecodableError, decoding, open_source, open_text
from pipeline.uris import Storage

LINES = b"".join(b'{"text": "%d"}\n' % i for i in range(50_000))
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstandard.compress}


class _Failing(io.BytesIO):
    def __init__(self, content: bytes, fault: Exception, after: int) -> None:
        super().__init__(content)
        self._fault, self._left = fault, after

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise self._fault
        return super().read(size)


def _text(content: bytes, compression: str) -> bytes:
    return open_text(Source(io.BytesIO(content), "a"), compression).read()


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_members_one_after_another_are_one_stream(compression: str) -> None:
    compress = COMPRESS[compression]
    parts = [LINES[:7], b"", LINES[7:300_000], LINES[300_000:]]
    assert _text(b"".join(map(compress, parts)), compression) == LINES


@pytest.mark.parametrize("compression", ["gz", "zst"])
@pytest.mark.parametrize("cut", [0.5, 0.99])
def test_a_cut_stream_is_undecodable_not_short(compression: str, cut: float) -> None:
    content = COMPRESS[compression](LINES)
    with pytest.raises(UndecodableError, match="Truncated"):
        _text(content[: int(len(content) * cut)], compression)


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_what_is_no_stream_is_undecodable(compression: str) -> None:
    with pytest.raises(UndecodableError):
        _text(b'{"text": "a"}\n', compression)


@pytest.mark.parametrize("compression", ["gz", "zst", None])
@pytest.mark.parametrize("fault", [ChangedError("another"), OSError("reset by peer"), ValueError("x")])
def test_a_fault_of_storage_stays_one(compression: str | None, fault: Exception) -> None:
    content = LINES if compression is None else COMPRESS[compression](LINES)
    source = Source(_Failing(content, fault, after=1 if len(content) > 2**18 else 0), "s3://b/a")
    with pytest.raises(StorageFault, match=r"another|s3://b/a"):
        open_text(source, compression, 2**16).read()
    assert isinstance(source.fault, StorageFault)


def test_a_fault_of_storage_under_parquet_stays_one() -> None:
    source = Source(_Failing(b"x" * 100, OSError("reset by peer"), after=0), "s3://b/a")
    with pytest.raises(StorageFault, match="reset by peer"), decoding(source):
        pq.ParquetFile(source)
    with pytest.raises(UndecodableError), decoding(Source(io.BytesIO(b"x" * 100), "a")):
        pq.ParquetFile(Source(io.BytesIO(b"x" * 100), "a"))


def _hiding_decoder(source: Source) -> None:
    try:
        source.read(10)
    except StorageFault:
        raise OSError("unexpected end of stream") from None


def test_a_fault_that_a_decoder_hides_is_still_storages() -> None:
    source = Source(_Failing(b"x" * 100, OSError("reset by peer"), after=0), "s3://b/a")
    with pytest.raises(StorageFault, match="reset by peer"), decoding(source):
        _hiding_decoder(source)


@pytest.mark.parametrize("compression", ["gz", None])
def test_a_file_deleted_while_it_is_read_has_changed(compression: str | None) -> None:
    """An object store answers 404 in the middle of a file: the corpus changed, the storage is well."""
    source = Source(_Failing(b"x" * 100, FileNotFoundError("not found"), after=0), "s3://b/a")
    with pytest.raises(ChangedError, match="gone by now: s3://b/a"):
        open_text(source, compression, 2**16).read()
    assert isinstance(source.fault, ChangedError)


def test_a_file_deleted_before_it_is_opened_has_changed(tmp_path: Path) -> None:
    file = InputFile("a.jsonl", 1, "1-2-3", "stat")
    for buffered in (False, True):
        with (
            pytest.raises(ChangedError, match=r"gone by now: .*a\.jsonl"),
            open_source(Storage(str(tmp_path)), file, buffered=buffered),
        ):
            pass


def test_plain_files_are_fetched_in_equal_requests() -> None:
    """Each read below is one request on object storage: 10 MiB take two, and little beyond the range."""

    class Counting(io.BytesIO):
        sizes: ClassVar[list[int]] = []

        def read(self, size: int | None = -1, /) -> bytes:
            self.sizes.append(cast(int, size))
            return super().read(size)

    reader = open_text(Source(Counting(b"x" * (30 * 2**20)), "a"), None, 10 * 2**20)
    num_bytes = 0
    while num_bytes < 10 * 2**20:
        num_bytes += len(reader.readline(2**16))
    assert len(Counting.sizes) == 2
    assert sum(Counting.sizes) < 10.1 * 2**20
