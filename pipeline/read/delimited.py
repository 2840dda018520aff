"""CSV and TSV: the first row names the columns, each other row is a document (see `pipeline.splits.delimited`).

All values are text; an empty one is an empty string, and no value at all in a kept column of
another type. A row with more or fewer values than the header is at fault, and no other is.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from pyarrow import types

from pipeline.config import SplitBounds
from pipeline.read.documents import Fault, Faults, ReadSplit, Rows, Target
from pipeline.read.fields import check_names, rows_of_arrow
from pipeline.read.lines import Layout, Line, check_not_empty, read_layout
from pipeline.splits import Cut, Split
from pipeline.splits.delimited import CsvRow, Dialect, count_rows, csv_rows, open_csv
from pipeline.splits.streams import Source, UndecodableError
from pipeline.uris import Storage


def read_csv(
    storage: Storage, split: Split, target: Target, bounds: SplitBounds, done: Collection[Cut]
) -> Iterator[ReadSplit]:
    """The pieces of a file, in order; as `read_layout`.

    Raises:
        EnvironmentFault: storage failed, or the file is another by now.
        InputError: a column is missing.
    """
    reader = _Reader(Dialect.of(split.format, target.input.csv), target, storage.full_uri(split.file.uri))
    layout = Layout(reader.open, reader.lines, lambda: _RowCount(reader.dialect), reader.rows, is_quoted=True)
    return read_layout(storage, split, target, bounds, done, layout)


@dataclass
class _RowCount:
    """Rows of a piece; all of its bytes at once, since only from its beginning on is a newline known for what it is."""

    dialect: Dialect
    _data: bytearray = field(default_factory=bytearray)
    _total: int | None = None

    def add(self, data: bytes) -> None:
        self._data += data

    def total(self) -> int:
        if self._total is None:
            self._total = count_rows(bytes(self._data), self.dialect)
            self._data = bytearray()
        return self._total


class _Reader:
    """One file; what the header says is known once its first line was read."""

    def __init__(self, dialect: Dialect, target: Target, uri: str) -> None:
        self.dialect = dialect
        self._target, self._uri = target, uri
        self._columns: dict[str, int] = {}  # those wanted, and where they are
        self._width = 0

    def open(self, source: Source, split: Split) -> tuple[io.BufferedReader, int]:
        check_not_empty(split)
        return open_csv(source, split.compression, self._target.input.csv), 0

    def lines(self, reader: io.BufferedReader, offset: int, end: int | None) -> Iterator[Line]:
        is_header = True
        for row in csv_rows(reader, self.dialect):
            if end is not None and row.offset >= end:
                return
            if row.is_blank:
                yield Line(row.offset, row.data, row.num_bytes, is_row=False)
            elif is_header:
                self._take_header(row)
                is_header = False
                yield Line(row.offset, b"", row.num_bytes, is_row=False)
            else:
                yield Line(row.offset, row.data, row.num_bytes, is_row=True, values=self._values(row))
            if end is not None and row.offset + row.num_bytes >= end:
                return

    def _take_header(self, row: CsvRow) -> None:
        if row.values is None or not row.is_utf8:
            raise UndecodableError(f"the header cannot be read: {row.fault or 'no text of its encoding'}")
        check_names(self._target, pa.schema([(name, pa.string()) for name in row.values]), self._uri)
        self._width = len(row.values)
        wanted = [name for name in self._target.input.columns if name in row.values]
        self._columns = {name: list(row.values).index(name) for name in wanted}

    def _values(self, row: CsvRow) -> Sequence[str] | Fault:
        if not row.is_utf8:
            return Fault("invalid_utf8", "the row is no text of its encoding")
        if row.values is None:
            return Fault("invalid_csv", row.fault)
        if len(row.values) != self._width:
            return Fault("invalid_csv", f"{len(row.values)} values where the header has {self._width}")
        return [row.values[index] for index in self._columns.values()]

    def rows(self, lines: Sequence[Line], target: Target) -> Rows:
        faults: Faults = {i: line.values for i, line in enumerate(lines) if isinstance(line.values, Fault)}
        typed = {one.name for one in target.keep if not types.is_string(one.type)}
        columns: dict[str, list[str | None]] = {}
        for index, name in enumerate(self._columns):
            values = [None if i in faults else line.values[index] for i, line in enumerate(lines)]
            is_typed = name in typed and name not in target.input.text_columns and name != target.input.id
            columns[name] = [value or None for value in values] if is_typed else values
        # A column that is not there still has as many rows.
        arrays = {name: pa.array(values, pa.large_string()) for name, values in columns.items()}
        batch = pa.RecordBatch.from_pydict(arrays or {"": pa.nulls(len(lines))})
        numbers = np.array([line.offset for line in lines], np.int64)
        return rows_of_arrow(batch, numbers, target, faults, [line.data for line in lines])
