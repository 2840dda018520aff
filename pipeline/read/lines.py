"""A range of a file of lines -> splits of it, and their documents: JSONL, plain lines, and CSV, whose rows are lines.

A line ends with a newline (before it a carriage return may stand). A document is named by the
offset of its line's first byte. A byte range holds the lines whose first byte it holds: one with
begin > 0 starts at begin - 1 and skips through the first newline, so a line that begins exactly at
`begin` is its own, and the line that runs into it is not.

A range is cut while it is read: before the line that would put the piece over a bound. Its first
piece begins where it begins and its last one ends where it ends, wherever lines do, so that ranges
tile the file. Memory is one piece's. Where a stream cannot be decoded on, the file's last piece ends
after the last whole line, and a row in quarantine stands for what is missing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from pipeline.config import SplitBounds
from pipeline.errors import VecmillError
from pipeline.read.documents import Fault, ReadSplit, Rows, Target, make_documents, quarantined_file
from pipeline.schema import QUARANTINE_SCHEMA
from pipeline.splits import Cut, Split
from pipeline.splits.streams import BOM, Source, UndecodableError, open_source, open_text
from pipeline.uris import Storage

MAX_LINE_BYTES = 2**30
"""A longer line is quarantined unread; a column of Arrow strings ends at 2 GiB."""
_BATCH_LINES = 1024
_BATCH_BYTES = 8 * 2**20
_COUNT_BYTES = 2**20


@dataclass(slots=True)
class Line:
    """A line, or a row of CSV, which may be several.

    Attributes:
        offset: of its first byte.
        data: its bytes, without a byte order mark.
        num_bytes: in the file.
        is_row: whether it is one: blank lines and headers are none.
        is_overlong: `data` is its beginning only.
        values: of CSV.
    """

    offset: int
    data: bytes
    num_bytes: int
    is_row: bool
    is_overlong: bool = False
    values: Sequence[str] | Fault = ()


class Count(Protocol):
    """Counts rows from the bytes, apart from how they are read."""

    def add(self, data: bytes) -> None:
        """Take the bytes of the next line."""

    def total(self) -> int:
        """Rows so far."""


class LineCount:
    """Lines that are not blank."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._total = 0

    def add(self, data: bytes) -> None:
        """Take the bytes of the next line."""
        self._pending += data
        if len(self._pending) >= _COUNT_BYTES:
            self._flush()

    def total(self) -> int:
        """Lines so far."""
        self._flush()
        return self._total

    def _flush(self) -> None:
        values = np.frombuffer(bytes(self._pending), np.uint8)
        self._pending.clear()
        if not len(values):
            return
        starts = np.concatenate([[0], np.flatnonzero(values == 0x0A) + 1])
        starts = starts[starts < len(values)]
        blank = (values == 0x20) | (values - np.uint8(9) < 5)  # space, and \t to \r
        self._total += len(starts) - int(np.logical_and.reduceat(blank, starts).sum())


class Layout(NamedTuple):
    """How a format makes rows of lines.

    Attributes:
        open: the text from the split's first line on, and the offset of that.
        lines: (text, offset, end) -> lines that begin before `end`; together they are all bytes.
        counter: a new `Count`.
        rows: lines that are rows -> `Rows`.
        is_quoted: whether a newline may be part of a row.
    """

    open: Callable[[Source, Split], tuple[io.BufferedReader, int]]
    lines: Callable[[io.BufferedReader, int, int | None], Iterator[Line]]
    counter: Callable[[], Count]
    rows: Callable[[Sequence[Line], Target], Rows]
    is_quoted: bool = False


def read_layout(
    storage: Storage, split: Split, target: Target, bounds: SplitBounds, done: Collection[Cut], layout: Layout
) -> Iterator[ReadSplit]:
    """The pieces of a range, in order; at least one.

    Args:
        done: splits of which no documents are wanted; their rows are not made into documents.

    Raises:
        EnvironmentFault: storage failed, or the file is another by now.
    """
    num_rows = 0
    for piece in _pieces(storage, split, bounds, layout):
        first, num_rows = num_rows, num_rows + len(piece.lines)
        made = replace(split, begin=piece.begin, end=piece.end, last=piece.last)
        if split.begin == 0:  # of other ranges nobody knows how many rows are before them
            made = replace(made, row_begin=first, row_end=num_rows)
        if (piece.begin, piece.end, piece.last) in done:
            counted = piece.count.total() if piece.error is None else None
            yield ReadSplit(made, None, QUARANTINE_SCHEMA.empty_table(), len(piece.lines), counted)
        else:
            yield _made(piece, made, target, layout)


@dataclass(slots=True)
class _Piece:
    """Lines [begin, end) that become one split; `lines` holds only the rows."""

    begin: int
    end: int
    count: Count
    lines: list[Line] = field(default_factory=list)
    last: bool | None = False
    error: str | None = None

    def add(self, line: Line) -> None:
        self.end = line.offset + line.num_bytes
        self.count.add(line.data)
        if line.is_row:
            self.lines.append(line)

    def fits(self, line: Line, split: Split, bounds: SplitBounds) -> bool:
        if self.end == self.begin:
            return True
        end = line.offset + line.num_bytes
        if split.end is not None:
            end = min(end, split.end)  # else a range would leave its final line, which runs past it, for a piece
        return len(self.lines) < bounds.num_rows and end - self.begin <= bounds.max_bytes

    def check_count(self) -> None:
        """Where a quote may hide a newline, two counts that differ say that nobody knows what a row is."""
        counted = self.count.total()
        if counted != len(self.lines):
            raise UndecodableError(
                f"{len(self.lines)} rows were parsed of bytes {self.begin} to {self.end}, and {counted} counted: "
                "quotes are not as CSV has them; see input.csv"
            )


def _pieces(storage: Storage, split: Split, bounds: SplitBounds, layout: Layout) -> Iterator[_Piece]:
    piece = _Piece(split.begin, split.begin, layout.counter())
    # What a decoder asks for comes in small reads.
    with open_source(storage, split.file, buffered=split.compression is not None) as source:
        try:
            reader, offset = layout.open(source, split)
            for line in layout.lines(reader, offset, split.end):
                if line.offset != offset:
                    raise _gap(split, offset)
                offset += line.num_bytes
                if not piece.fits(line, split, bounds):
                    if layout.is_quoted:
                        piece.check_count()
                    yield piece
                    piece = _Piece(line.offset, line.offset, layout.counter())
                piece.add(line)
            if reader.peek(1) if split.end is None else offset < split.end:
                raise _gap(split, offset)
            if layout.is_quoted:
                piece.check_count()
            piece.last = split.end is None or split.last
            piece.end = piece.end if split.end is None else split.end
        except UndecodableError as error:
            piece.error, piece.last = str(error), True
    yield piece  # only now: on leaving, the file was seen to be unchanged


def _gap(split: Split, offset: int) -> VecmillError:
    # The count of newlines speaks of the bytes that were cut into lines; this proves that those are all.
    return VecmillError(f"{split.file.uri} was not read without a gap: one begins at byte {offset}. This is a bug.")


def open_range(source: Source, split: Split) -> tuple[io.BufferedReader, int]:
    """A reader that stands before the range's first line, and the offset of that."""
    if split.compression is not None:
        check_not_empty(split)
        return open_text(source, split.compression), 0
    assert split.end is not None
    start = max(split.begin - 1, 0)
    source.seek(start)
    reader = open_text(source, None, split.end - start)
    return reader, start + (_skip_line(reader, split.end - start) if split.begin > 0 else 0)


def check_not_empty(split: Split) -> None:
    """Raise UndecodableError for a compressed file of no bytes."""
    if split.compression is not None and split.file.size == 0:
        raise UndecodableError(f"0 bytes are no .{split.compression} file")


def plain_lines(reader: io.BufferedReader, offset: int, end: int | None) -> Iterator[Line]:
    """Lines from the reader's position, `offset`, on; those that begin before `end`."""
    while end is None or offset < end:
        data = reader.readline(MAX_LINE_BYTES)
        if not data:
            return
        num_bytes = len(data)
        is_overlong = num_bytes == MAX_LINE_BYTES and not data.endswith(b"\n")
        if is_overlong:
            num_bytes += _skip_line(reader, None)
            data = (data[: 2**10].strip() or b"?") + b"\n"
        if offset == 0:
            data = data.removeprefix(BOM)
        yield Line(offset, data, num_bytes, bool(data) and not data.isspace(), is_overlong)
        offset += num_bytes


def _skip_line(reader: io.BufferedReader, limit: int | None) -> int:
    """Skip through the first newline; stop at `limit` bytes or the end. How many were skipped."""
    num_bytes = 0
    while limit is None or num_bytes < limit:
        part = reader.readline(2**20 if limit is None else min(2**20, limit - num_bytes))
        num_bytes += len(part)
        if not part or part.endswith(b"\n"):
            break
    return num_bytes


def _made(piece: _Piece, split: Split, target: Target, layout: Layout) -> ReadSplit:
    made, quarantine = [target.schema.empty_table()], [QUARANTINE_SCHEMA.empty_table()]
    for lines in _batches(piece.lines):
        documents, bad = make_documents(layout.rows(lines, target), target)
        made.append(documents)
        quarantine.append(bad)
    num_documents = sum(table.num_rows for table in (*made, *quarantine))
    if piece.error is not None:
        quarantine.append(quarantined_file(target.file_uri, piece.error))
    counted = piece.count.total() if piece.error is None else None
    return ReadSplit(split, pa.concat_tables(made), pa.concat_tables(quarantine), num_documents, counted)


def _batches(lines: list[Line]) -> Iterator[list[Line]]:
    batch: list[Line] = []
    num_bytes = 0
    for line in lines:
        if batch and (len(batch) == _BATCH_LINES or num_bytes + len(line.data) > _BATCH_BYTES):
            yield batch
            batch, num_bytes = [], 0
        batch.append(line)
        num_bytes += len(line.data)
    if batch:
        yield batch
