"""CSV and TSV as rows with their places: which bytes each row takes, its values, or why it has none.

The standard library's `csv` parses, line by line, and so tells exactly which lines made a row, or
made none: pyarrow.csv gives neither the place of a row nor, where a block holds one byte that is
no UTF-8, any row of it. A row is named by the offset of its first byte in the decompressed text
(in UTF-8, if the file has another encoding). Values may hold newlines within quotes, so nothing but
a parse from the beginning knows where a row begins: files are read as one.

After a row that cannot be parsed the next line begins a new one. Where a quote is not closed
nothing tells what it was meant to hold: the file is readable only up to that row.
`count_rows` counts the rows of the same bytes apart from the parser.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pipeline.config import Csv
from pipeline.splits.streams import BOM, Source, Transcoded, UndecodableError, open_text

MAX_ROW_BYTES = 2**28
"""A longer row is taken for a quote that is not closed."""
# The parser's own bound, 128 kB a value, is for the whole process.
csv.field_size_limit(2**31 - 1)

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_UNCLOSED = "a quote that opens in the row at byte {offset} is not closed; input.csv.quote: null reads quotes as text"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a file is written."""

    delimiter: str
    quote: str | None
    multiline: bool

    @classmethod
    def of(cls, format: str, settings: Csv) -> Dialect:
        """That of `input.csv`, with the format's own delimiter unless another is given."""
        multiline = settings.multiline and settings.quote is not None
        return cls(settings.delimiter or _DELIMITERS[format], settings.quote, multiline)


@dataclass(slots=True)
class CsvRow:
    """A row of a file.

    Attributes:
        offset: of its first byte.
        data: its bytes, without a byte order mark.
        num_bytes: in the file, in UTF-8.
        values: None where it cannot be parsed.
        fault: why it cannot.
        is_utf8: whether all of its bytes are.
    """

    offset: int
    data: bytes
    num_bytes: int
    values: Sequence[str] | None
    fault: str = ""
    is_utf8: bool = True

    @property
    def is_blank(self) -> bool:
        """An empty line is no row."""
        return self.values is not None and not self.values


def open_csv(source: Source, compression: str | None, settings: Csv, num_bytes: int | None = None) -> io.BufferedReader:
    """The file's text in UTF-8, from its first byte on; `num_bytes` as `open_text`."""
    text = open_text(source, compression) if num_bytes is None else open_text(source, compression, num_bytes)
    if codecs.lookup(settings.encoding).name in ("utf-8", "utf-8-sig", "ascii"):
        return text
    return io.BufferedReader(Transcoded(text, settings.encoding), 2**16)


def csv_rows(reader: io.BufferedReader, dialect: Dialect) -> Iterator[CsvRow]:
    """All rows of a file, the header and blank ones too; they tile it.

    Raises:
        UndecodableError: a quote is not closed, or the stream cannot be read on.
    """
    lines = _Lines(reader)
    parser = _parser(lines, dialect)
    offset = 0
    while True:
        values, fault = None, ""
        try:
            values = next(parser) if dialect.multiline else _one_line(lines, dialect)
        except StopIteration:
            return
        except csv.Error as error:
            if dialect.multiline and lines.at_end:
                raise UndecodableError(_UNCLOSED.format(offset=offset)) from None
            fault = str(error).partition(" - ")[0]
        data, num_bytes, is_utf8 = lines.take()
        yield CsvRow(offset, data, num_bytes, values, fault, is_utf8)
        offset += num_bytes


def _parser(lines: Iterator[str], dialect: Dialect) -> Iterator[list[str]]:
    if dialect.quote is None:
        return csv.reader(lines, delimiter=dialect.delimiter, quoting=csv.QUOTE_NONE, quotechar=None)
    return csv.reader(lines, delimiter=dialect.delimiter, quotechar=dialect.quote, strict=True)


def _one_line(lines: Iterator[str], dialect: Dialect) -> list[str]:
    return next(_parser(iter([next(lines)]), dialect))


class _Lines:
    """The lines that a parser asks for; `take` gives those since the last."""

    def __init__(self, reader: io.BufferedReader) -> None:
        self._reader = reader
        self._taken: list[bytes] = []
        self._num_bytes = 0
        self._offset = 0
        self._is_utf8 = True
        self.at_end = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._num_bytes > MAX_ROW_BYTES:
            raise UndecodableError(_UNCLOSED.format(offset=self._offset))
        line = self._reader.readline(MAX_ROW_BYTES + 1)
        if not line:
            self.at_end = True
            raise StopIteration
        self._num_bytes += len(line)
        if len(line) > MAX_ROW_BYTES:
            raise UndecodableError(f"the line at byte {self._offset} is longer than {MAX_ROW_BYTES} bytes")
        if self._offset == 0 and not self._taken:
            line = line.removeprefix(BOM)
        self._taken.append(line)
        try:
            return line.decode()
        except UnicodeDecodeError:
            self._is_utf8 = False
            return line.decode(errors="surrogateescape")

    def take(self) -> tuple[bytes, int, bool]:
        """The bytes, how many they are in the file, and whether they are UTF-8."""
        taken = b"".join(self._taken), self._num_bytes, self._is_utf8
        self._offset += self._num_bytes
        self._taken, self._num_bytes, self._is_utf8 = [], 0, True
        return taken


def count_rows(data: bytes, dialect: Dialect) -> int:
    """Rows that are not blank, counted from the bytes: knows nothing of how they are parsed."""
    return sum(bool(row.group().strip(b"\r\n")) for row in _row_pattern(dialect).finditer(data))


@lru_cache(maxsize=8)
def _row_pattern(dialect: Dialect) -> re.Pattern[bytes]:
    if not dialect.multiline:
        return re.compile(rb"[^\n]*+(?:\n|\Z)")
    assert dialect.quote is not None
    delimiter, quote = (re.escape(each.encode()) for each in (dialect.delimiter, dialect.quote))
    rest = rb"[^%s\n]*+" % delimiter
    field = rb"(?:%s(?:[^%s]++|%s%s)*+%s?%s|%s)" % (quote, quote, quote, quote, quote, rest, rest)
    return re.compile(rb"%s(?:%s%s)*+(?:\n|\Z)" % (field, delimiter, field))
