"""Arrow's own files (IPC; Feather is the same): their columns, and their rows batch by batch.

There is a file format, which begins with a magic word, and a stream format, which Hugging Face's
`save_to_disk` writes; both are read from the first byte on. A batch is the least that can be
decoded, so that memory is at least one batch's. Rows are numbered; how many there are nobody knows
before the end. Where a batch cannot be decoded the rows behind it have no numbers: the file is
readable up to there.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import ipc

from pipeline.splits.streams import Source, UndecodableError, decoding

_MAGIC = b"ARROW1"
# Headers come in small reads; a body that is larger passes by it.
_BUFFER_BYTES = 2**17


@dataclass(frozen=True)
class ArrowFile:
    """An open file: its schema, and its batches in order."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


def open_arrow(source: Source, columns: Collection[str] = ()) -> ArrowFile:
    """The file, with only the top-level columns named, all if none are.

    Raises:
        UndecodableError: it is none; while batches are read: it is cut or damaged.
    """
    with decoding(source):
        source.seek(0)
        file = io.BufferedReader(source, _BUFFER_BYTES)
        is_file = file.read(len(_MAGIC)) == _MAGIC
        schema = _open(file, is_file, ipc.IpcReadOptions()).schema
        wanted = [i for i, name in enumerate(schema.names) if not columns or name in columns]
        # Without any column a batch would have no rows; without a list of them all are read.
        options = ipc.IpcReadOptions(included_fields=wanted or [0] if schema.names else [])
        return ArrowFile(schema, _batches(source, _open(file, is_file, options), is_file))


def _open(file: io.BufferedReader[Source], is_file: bool, options: ipc.IpcReadOptions) -> ipc.RecordBatchFileReader:
    file.seek(0)
    opened = ipc.open_file if is_file else ipc.open_stream
    return opened(pa.PythonFile(file, mode="r"), options=options)


def _batches(source: Source, reader: ipc.RecordBatchFileReader, is_file: bool) -> Iterator[pa.RecordBatch]:
    for index in range(reader.num_record_batches if is_file else 2**62):
        with decoding(source):
            try:
                batch = reader.get_batch(index) if is_file else reader.read_next_batch()
            except StopIteration:
                return
            _check(batch)
        yield batch


def _check(batch: pa.RecordBatch) -> None:
    """Offsets, lengths and indices that lie outside of the data would be followed all the same."""
    for column in batch.columns:
        # A string that is no UTF-8 is its row's fault alone, and found there.
        plain = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get(column.type)
        (column if plain is None else column.view(plain)).validate(full=True)


def num_rows_up_to(source: Source, limit: int) -> tuple[int, bool]:
    """How many rows there are, up to `limit`, and whether the file ends there."""
    num_rows = 0
    try:
        for batch in open_arrow(source).batches:
            num_rows += batch.num_rows
            if num_rows > limit:
                return limit, False
    except UndecodableError:
        return min(num_rows, limit), False  # the reader quarantines the file; the rows before the fault count
    return num_rows, True
