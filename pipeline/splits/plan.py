"""Splits: the ranges of input files that become one embedding shard each.

    Parquet            rows [begin, end): whole row groups packed up to the bounds; a group over a
                       bound is cut by rows, into equal parts
    plain JSONL        bytes [begin, end), equal parts; a document belongs to the range that holds
                       its first byte. Planned without a request
    compressed JSONL   the whole file, cut while it streams; offsets are those of decompressed bytes

Cuts depend on the file, the columns and the bounds alone, so that a run that is resumed cuts alike.
A file is done when its splits tile it from 0 to one that says `last`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.config import SplitBounds
from pipeline.splits.files import Compression, Format, InputFile, file_format
from pipeline.splits.footers import Footer, read_footer
from pipeline.splits.streams import BOM, UndecodableError, open_source, open_text
from pipeline.uris import Storage

# A plain JSONL file is cut by bytes only, its rows being unknown without reading it. Taken for
# a line, this keeps splits near the bound in rows for texts of a paragraph or more.
_ASSUMED_LINE_BYTES = 2**10
# Only for dispatching big ones first.
_ASSUMED_COMPRESSION = 4


@dataclass(frozen=True, slots=True)
class Split:
    """A unit of reading: a range of one file, or a whole file that is cut while it streams.

    Attributes:
        begin, end: rows (Parquet) or bytes (JSONL; compressed: decompressed bytes); end is None
            for a file that is cut while it streams.
        last: whether the file ends here; None until it is known.
        row_begin, row_end: the same in rows, where they are known.
        num_bytes: an estimate, for dispatching big splits first.
        max_documents: read no more than this (`--limit`, streamed files).
        unreadable: why the whole file cannot be read, found while planning.
    """

    file: InputFile
    format: Format
    compression: Compression | None
    begin: int
    end: int | None
    last: bool | None
    row_begin: int | None = None
    row_end: int | None = None
    num_bytes: int = 0
    max_documents: int | None = None
    unreadable: str | None = None

    @property
    def split_id(self) -> str:
        """32 hex digits; only once `end` is known."""
        if self.end is None:
            raise ValueError(f"{self.file.uri} is cut while it streams: it has no split id as a whole. This is a bug")
        return split_id(self.file.file_id, self.begin, self.end)

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Split:
        """The split that `to_json` wrote."""
        value: dict[str, Any] = json.loads(text)
        return cls(**{**value, "file": InputFile(**value["file"])})


def split_id(file_id: str, begin: int, end: int) -> str:
    """32 hex digits over the file and the range."""
    return hashlib.blake2b(f"{file_id}\0{begin}\0{end}".encode(), digest_size=16).hexdigest()


def plan_file(
    storage: Storage, file: InputFile, bounds: SplitBounds, format: str | None, columns: Collection[str] = ()
) -> list[Split]:
    """The splits of a file, in order; at least one, with `last` on the final one.

    Args:
        format: `input.format`; None: by suffix.
        columns: those that will be read, so that others do not count as size.

    Raises:
        EnvironmentFault: storage failed, or the file is another by now.
    """
    kind, compression = _format_of(file, format)
    if kind == "parquet":
        return plan_parquet(file, read_footer(storage, file, columns), bounds)
    if compression is not None:
        num_bytes = file.size * _ASSUMED_COMPRESSION
        return [Split(file, "jsonl", compression, begin=0, end=None, last=None, num_bytes=num_bytes)]
    return _plan_bytes(file, file.size, bounds, complete=True)


def plan_parquet(file: InputFile, footer: Footer, bounds: SplitBounds) -> list[Split]:
    """The splits of a Parquet file from its footer; of one that cannot be read, one that says so."""
    if footer.error is not None:
        return [Split(file, "parquet", None, 0, 0, True, 0, 0, unreadable=footer.error)]
    ranges = list(_row_ranges(footer, bounds)) or [(0, 0, 0)]
    final = len(ranges) - 1
    return [
        Split(file, "parquet", None, begin, end, i == final, row_begin=begin, row_end=end, num_bytes=num_bytes)
        for i, (begin, end, num_bytes) in enumerate(ranges)
    ]


def limit_splits(
    storage: Storage, files: Sequence[InputFile], bounds: SplitBounds, limit: int, format: str | None = None
) -> list[Split]:
    """Splits over exactly the first `limit` documents, by URI (`--limit`).

    A file of which a part is left out has no split that is `last`: a full run later does not take
    it for done. Blank lines are no documents; quarantined ones are. Lines are counted by reading.

    Raises:
        EnvironmentFault: as `plan_file`.
    """
    chosen: list[Split] = []
    for file in files:
        if limit <= 0:
            break
        splits, num_documents = _limit_file(storage, file, bounds, limit, format)
        chosen += splits
        limit -= num_documents
    return chosen


def _format_of(file: InputFile, format: str | None) -> tuple[Format, Compression | None]:
    found = file_format(file.uri, format)
    if found is None:
        raise ValueError(f"{file.uri} is neither .parquet nor .jsonl, yet it was listed. This is a bug")
    return found


def _row_ranges(footer: Footer, bounds: SplitBounds) -> Iterator[tuple[int, int, int]]:
    """(begin, end, bytes) of each split."""
    begin = end = num_bytes = 0
    for rows, group_bytes in zip(footer.group_rows, footer.group_bytes, strict=True):
        fits = end - begin + rows <= bounds.num_rows and num_bytes + group_bytes <= bounds.max_bytes
        if end > begin and not fits:
            yield begin, end, num_bytes
            begin, num_bytes = end, 0
        end, num_bytes = end + rows, num_bytes + group_bytes
        if rows > bounds.num_rows or (group_bytes > bounds.max_bytes and rows > 1):
            step = max(1, min(bounds.num_rows, rows * bounds.max_bytes // max(group_bytes, 1)))
            for low, high in _equal_parts(rows, step):
                yield begin + low, begin + high, group_bytes * (high - low) // rows
            begin, num_bytes = end, 0
    if end > begin:
        yield begin, end, num_bytes


def _plan_bytes(file: InputFile, size: int, bounds: SplitBounds, *, complete: bool) -> list[Split]:
    step = min(bounds.max_bytes, bounds.num_rows * _ASSUMED_LINE_BYTES)
    ranges = _equal_parts(size, step) or [(0, 0)]
    return [
        Split(file, "jsonl", None, begin, end, last=complete and end == size, num_bytes=end - begin)
        for begin, end in ranges
    ]


def _equal_parts(size: int, step: int) -> list[tuple[int, int]]:
    """[0, size) in the fewest parts of at most `step`."""
    num_parts = -(-size // step)
    return [(i * size // num_parts, (i + 1) * size // num_parts) for i in range(num_parts)]


def _limit_file(
    storage: Storage, file: InputFile, bounds: SplitBounds, limit: int, format: str | None
) -> tuple[list[Split], int]:
    kind, compression = _format_of(file, format)
    planned = plan_file(storage, file, bounds, format)
    if kind == "parquet":
        return _limit_rows(planned, limit)
    num_documents, offset = _first_lines(storage, file, compression, limit)
    if num_documents < limit:
        return planned, num_documents
    if compression is not None:
        return [replace(planned[0], max_documents=limit)], num_documents
    return _plan_bytes(file, offset, bounds, complete=offset == file.size), num_documents


def _limit_rows(planned: Sequence[Split], limit: int) -> tuple[list[Split], int]:
    kept = [split for split in planned if split.begin < limit or split.begin == 0]
    final = kept[-1]
    if final.end is not None and final.end > limit:
        kept[-1] = replace(final, end=limit, row_end=limit, last=False)
    return kept, kept[-1].end or 0


def _first_lines(storage: Storage, file: InputFile, compression: str | None, limit: int) -> tuple[int, int]:
    """How many documents there are, up to `limit`, and the offset after them."""
    num_documents = offset = 0
    with open_source(storage, file, buffered=True) as source:
        try:
            for line in open_text(source, compression):
                num_documents += bool((line if offset else line.removeprefix(BOM)).strip())
                offset += len(line)
                if num_documents == limit:
                    break
        except UndecodableError:
            pass  # the reader quarantines the file; the lines before the fault count
    return num_documents, offset
