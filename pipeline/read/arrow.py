"""A file of Arrow -> splits of it, and their documents; read from its first batch on, and cut while it streams.

A split is rows [begin, end). Batches are cut, and several make one split, by rows and by the bytes
that the wanted columns take: the same cuts whatever is done. A row is counted twice: by the
batches' own headers, and as a document or a row of quarantine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from pipeline.config import SplitBounds
from pipeline.read.batches import halved, num_bytes
from pipeline.read.documents import ReadSplit, Target, make_documents, quarantined_file
from pipeline.read.fields import check_names, rows_of_arrow
from pipeline.schema import QUARANTINE_SCHEMA
from pipeline.splits import Cut, Split
from pipeline.splits.batches import open_arrow
from pipeline.splits.names import find_path
from pipeline.splits.plan import rows_within
from pipeline.splits.streams import Source, UndecodableError, open_source
from pipeline.uris import Storage


def read_arrow(
    storage: Storage, split: Split, target: Target, bounds: SplitBounds, done: Collection[Cut]
) -> Iterator[ReadSplit]:
    """The pieces of rows [begin, end), in order; at least one.

    Memory is that of one piece and up to four of the batches that the file was written in.

    Args:
        done: splits of which no documents are wanted; their rows are not made into documents.

    Raises:
        EnvironmentFault: storage failed, or the file is another by now.
        InputError: a column is missing.
    """
    for piece in _pieces(storage, split, target, bounds):
        made = replace(
            split, begin=piece.begin, end=piece.end, last=piece.last, row_begin=piece.begin, row_end=piece.end
        )
        counted = piece.end - piece.begin if piece.error is None else None
        if (piece.begin, piece.end, piece.last) in done:
            yield ReadSplit(made, None, QUARANTINE_SCHEMA.empty_table(), piece.end - piece.begin, counted)
            continue
        documents, quarantine = [target.schema.empty_table()], [QUARANTINE_SCHEMA.empty_table()]
        row = piece.begin
        for batch in piece.batches:
            for part in halved(batch):
                numbers = np.arange(row, row + part.num_rows)
                good, bad = make_documents(rows_of_arrow(part, numbers, target, {}), target)
                documents.append(good)
                quarantine.append(bad)
                row += part.num_rows
        num_documents = sum(table.num_rows for table in (*documents, *quarantine))
        if piece.error is not None:
            quarantine.append(quarantined_file(target.file_uri, piece.error))
        yield ReadSplit(made, pa.concat_tables(documents), pa.concat_tables(quarantine), num_documents, counted)


@dataclass
class _Piece:
    begin: int
    end: int
    batches: list[pa.RecordBatch] = field(default_factory=list)
    num_bytes: int = 0
    last: bool | None = False
    error: str | None = None

    def add(self, batch: pa.RecordBatch, size: int) -> None:
        self.batches.append(batch)
        self.end += batch.num_rows
        self.num_bytes += size


def _pieces(storage: Storage, split: Split, target: Target, bounds: SplitBounds) -> Iterator[_Piece]:
    piece = _Piece(0, 0)
    with open_source(storage, split.file) as source:
        try:
            # Cut as the whole file is, and only then to the split's end, so that a part of the file has its pieces.
            for part in _parts(_batches(source, target), bounds):
                size = num_bytes(part)
                fits = piece.end - piece.begin + part.num_rows <= bounds.num_rows
                if piece.batches and not (fits and piece.num_bytes + size <= bounds.max_bytes):
                    yield piece
                    piece = _Piece(piece.end, piece.end)
                piece.add(part if split.end is None else part.slice(0, split.end - piece.end), size)
                if piece.end == split.end:
                    break
            piece.last = split.end is None or split.last
        except UndecodableError as error:
            piece.error, piece.last = str(error), True
    yield piece  # only now: on leaving, the file was seen to be unchanged


def _batches(source: Source, target: Target) -> Iterator[pa.RecordBatch]:
    schema = open_arrow(source).schema
    check_names(target, schema, source.uri)
    paths = [find_path(schema, name) for name in target.input.columns]
    return open_arrow(source, [path[0] for path in paths if path is not None]).batches


def _parts(batches: Iterable[pa.RecordBatch], bounds: SplitBounds) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        step = rows_within(batch.num_rows, num_bytes(batch), bounds)
        for begin in range(0, batch.num_rows, step):
            yield batch.slice(begin, step)
