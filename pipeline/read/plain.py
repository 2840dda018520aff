"""Plain text: a document a line (`lines`), or a document a file (`text`); either way the column is `text`.

A file of `lines` is cut as JSONL is. A file of `text` is one row, number 0, its split rows [0, 1):
however many bytes it takes it is never cut, nor is an empty one nothing. Text is UTF-8.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipeline.config import SplitBounds
from pipeline.read import lines as lines_of
from pipeline.read.documents import Fault, Faults, ReadSplit, Rows, Target, make_documents, quarantined_file
from pipeline.read.fields import check_names, rows_of_arrow
from pipeline.read.lines import Layout, Line, LineCount, check_not_empty, open_range, read_layout
from pipeline.schema import QUARANTINE_SCHEMA
from pipeline.splits import Cut, Split
from pipeline.splits.streams import BOM, UndecodableError, open_source, open_text
from pipeline.uris import Storage

MAX_TEXT_BYTES = 2**30
"""A longer file is quarantined."""
_BLOCK_BYTES = 2**20
_SCHEMA = pa.schema([("text", pa.large_string())])


def read_lines(
    storage: Storage, split: Split, target: Target, bounds: SplitBounds, done: Collection[Cut]
) -> Iterator[ReadSplit]:
    """The pieces of a range; as `read_layout`, and InputError where the config names another column."""
    check_names(target, _SCHEMA, storage.full_uri(split.file.uri))
    layout = Layout(open_range, lines_of.plain_lines, LineCount, _rows_of_lines)
    return read_layout(storage, split, target, bounds, done, layout)


def read_text(
    storage: Storage, split: Split, target: Target, bounds: SplitBounds, done: Collection[Cut]
) -> Iterator[ReadSplit]:
    """The one split of a file, with its one document; errors as `read_lines`."""
    check_names(target, _SCHEMA, storage.full_uri(split.file.uri))
    made = replace(split, begin=0, end=1, last=True, row_begin=0, row_end=1)
    if (0, 1, True) in done:
        yield ReadSplit(made, None, QUARANTINE_SCHEMA.empty_table(), 1, 1)
        return
    error = ""
    with open_source(storage, split.file, buffered=split.compression is not None) as source:
        try:
            check_not_empty(split)
            data = _whole(open_text(source, split.compression, split.file.size))
        except UndecodableError as fault:
            error = str(fault)
    if error:
        yield ReadSplit(made, target.schema.empty_table(), quarantined_file(target.file_uri, error), 0, None)
        return
    documents, bad = make_documents(_rows([(0, data.removeprefix(BOM))], target, {}), target)
    # A file is a document: that there is one was told by the listing.
    yield ReadSplit(made, documents, bad, documents.num_rows + bad.num_rows, 1)


def _whole(reader: io.BufferedReader) -> bytes:
    data = bytearray()
    while block := reader.read(_BLOCK_BYTES):
        data += block
        if len(data) > MAX_TEXT_BYTES:
            raise UndecodableError(f"a text of more than {MAX_TEXT_BYTES} bytes")
    return bytes(data)


def _rows_of_lines(lines: Sequence[Line], target: Target) -> Rows:
    most = lines_of.MAX_LINE_BYTES
    faults: Faults = {
        i: Fault("undecodable_row", f"a line of {line.num_bytes} bytes; {most} are the most")
        for i, line in enumerate(lines)
        if line.is_overlong
    }
    return _rows([(line.offset, line.data.rstrip(b"\r\n")) for line in lines], target, faults)


def _rows(rows: Sequence[tuple[int, bytes]], target: Target, faults: Faults) -> Rows:
    texts: list[str | None] = []
    for position, (_, data) in enumerate(rows):
        try:
            texts.append(None if position in faults else data.decode())
        except UnicodeDecodeError as error:
            texts.append(None)
            faults[position] = Fault("invalid_utf8", f"no UTF-8 from its byte {error.start} on")
    batch = pa.RecordBatch.from_arrays([pa.array(texts, pa.large_string())], schema=_SCHEMA)
    numbers = np.array([number for number, _ in rows], np.int64)
    return rows_of_arrow(batch, numbers, target, faults, [data for _, data in rows])
