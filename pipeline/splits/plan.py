"""Splits: ranges of input files, planned without reading them, that the reader cuts into embedding shards.

    Parquet            rows [begin, end): whole row groups packed up to the bounds, or one row group
                       that is over a bound by itself
    JSONL, lines       bytes [begin, end), equal parts; a document belongs to the range that holds
                       its first byte. Planned without a request
    those compressed   the whole file; offsets are those of decompressed bytes
    CSV, TSV           the whole file, as where a row begins is known only from the beginning on;
                       offsets are those of decompressed text in UTF-8
    Arrow              the whole file, in rows
    text               one row [0, 1)

A derived id is `<uri>#<row or offset>`.

Most ranges come out of the reader as they were planned. What a plan cannot know, or what only one
pass can read, the reader cuts under the same bounds: lines, and rows of a large row group
(`cut_rows`). Cuts depend on the file, the columns and the bounds alone, so that a run that is
resumed cuts alike. A file is done when its splits tile it from 0 to one that says `last`.
Files that are small beside the bounds share a split: see pipeline.splits.packs.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from pipeline.config import Csv, Input, SplitBounds
from pipeline.splits.batches import num_rows_up_to
from pipeline.splits.delimited import Dialect, csv_rows, open_csv
from pipeline.splits.files import Compression, Format, InputFile, file_format, is_streamed
from pipeline.splits.footers import Footer, read_footer
from pipeline.splits.streams import BOM, UndecodableError, open_source, open_text
from pipeline.uris import Storage

# A plain JSONL file is planned by bytes only, its rows being unknown without reading it. Taken for a line,
# this lets most ranges of texts of a paragraph or more be one split, and shares out those of shorter ones.
ASSUMED_LINE_BYTES = 2**10
# Only for dispatching big ones first.
_ASSUMED_COMPRESSION = 4


@dataclass(frozen=True, slots=True)
class Split:
    """A range of one file: as it is planned, or as the reader cut it, in which case it is one embedding shard.

    Attributes:
        begin, end: rows (`in_rows`), else bytes of decompressed text; end is None for a file that is
            cut while it streams, up to its end.
        last: whether the file ends here; None until it is known.
        row_begin, row_end: the same in rows, where the reader knows them.
        num_bytes: an estimate, for dispatching big splits first.
        unreadable: why the whole file cannot be read, found while planning.
        members: of a pack the whole files that it is made of, by URI, each as its own split; then `file`
            stands for all of them, and [begin, end) are members (see pipeline.splits.packs).
        member_begin: where the pack's members begin among those of the pack that was planned.
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
    unreadable: str | None = None
    members: tuple[Split, ...] = ()
    member_begin: int = 0

    @property
    def files(self) -> tuple[InputFile, ...]:
        """What it is read from."""
        return tuple(member.file for member in self.members) or (self.file,)

    @property
    def in_rows(self) -> bool:
        """Whether begin and end are rows; else they are bytes."""
        return self.format in ("parquet", "arrow", "text")

    @property
    def split_id(self) -> str:
        """32 hex digits; only once `end` is known."""
        if self.end is None:
            raise ValueError(f"the end of {self.file.uri} is not known yet: no split id without it. This is a bug")
        return split_id(self.file.file_id, self.begin, self.end)

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Split:
        """The split that `to_json` wrote."""
        return cls._of(json.loads(text))

    @classmethod
    def _of(cls, value: dict[str, Any]) -> Split:
        members = tuple(map(cls._of, value["members"]))
        return cls(**{**value, "file": InputFile(**value["file"]), "members": members})


Cut = tuple[int, int, bool]
"""begin, end and `last` of a split. The same range may be recorded as a file's last and as not: a `--limit` may
end where a stream is cut, which only who reads on finds out."""


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
    num_bytes = file.size * (1 if compression is None else _ASSUMED_COMPRESSION)
    if kind == "text":
        return [Split(file, kind, compression, begin=0, end=1, last=True, num_bytes=num_bytes)]
    if is_streamed(kind, compression):
        return [Split(file, kind, compression, begin=0, end=None, last=None, num_bytes=num_bytes)]
    step = min(bounds.max_bytes, bounds.num_rows * ASSUMED_LINE_BYTES)
    return [
        Split(file, kind, None, begin, end, last=end == file.size, num_bytes=end - begin)
        for begin, end in _equal_parts(file.size, step) or [(0, 0)]
    ]


def plan_parquet(file: InputFile, footer: Footer, bounds: SplitBounds) -> list[Split]:
    """The splits of a Parquet file from its footer; of one that cannot be read, one that says so."""
    if footer.error is not None:
        return [Split(file, "parquet", None, 0, 0, True, unreadable=footer.error)]
    ranges = list(_row_ranges(footer, bounds)) or [_RowRange(0, 0, 0)]
    final = len(ranges) - 1
    return [
        Split(file, "parquet", None, rows.begin, rows.end, i == final, num_bytes=rows.num_bytes)
        for i, rows in enumerate(ranges)
    ]


def cut_rows(footer: Footer, bounds: SplitBounds, begin: int, end: int) -> list[tuple[int, int]]:
    """Rows [begin, end) of a Parquet file in parts under the bounds; at least one.

    A row group over a bound is cut into equal parts. Parts are those of the whole file, as far as
    they lie in the range: another range of the file is not cut elsewhere.

    Args:
        footer: sizes are those of the columns that will be read.
    """
    parts = (part for rows in _row_ranges(footer, bounds) for part in rows.parts)
    return [(max(low, begin), min(high, end)) for low, high in parts if low < end and begin < high] or [(begin, end)]


def rows_within(rows: int, num_bytes: int, bounds: SplitBounds) -> int:
    """How many rows of a row group of so many bytes fit the bounds, at their mean size; at least one."""
    return max(1, min(bounds.num_rows, rows * bounds.max_bytes // max(num_bytes, 1)))


def limit_splits(
    storage: Storage,
    files: Sequence[InputFile],
    bounds: SplitBounds,
    limit: int,
    input: Input | None = None,
) -> list[Split]:
    """Splits over exactly the first `limit` documents, by URI (`--limit`).

    They are those of `plan_file`, up to the one that the limit ends early: a full run later takes
    over what was read. A file of which a part is left out has no split that is `last`, so that it
    is not taken for done. Blank lines are no documents; quarantined ones are. Of all but Parquet documents
    are counted by reading.

    Args:
        input: of the config; None: format by suffix, all columns.

    Raises:
        EnvironmentFault: as `plan_file`.
    """
    chosen: list[Split] = []
    format, columns = (input.format, input.columns) if input is not None else (None, ())
    csv = input.csv if input is not None else Csv()
    for file in files:
        if limit <= 0:
            break
        splits, num_documents = _limited(storage, plan_file(storage, file, bounds, format, columns), limit, csv)
        chosen += splits
        limit -= num_documents
    return chosen


def _format_of(file: InputFile, format: str | None) -> tuple[Format, Compression | None]:
    found = file_format(file.uri, format)
    if found is None:
        raise ValueError(f"{file.uri} is of no format that is read, yet it was listed. This is a bug")
    return found


class _RowRange(NamedTuple):
    """A range as it is planned: packed row groups, or one over a bound, in parts of up to `step` rows."""

    begin: int
    end: int
    num_bytes: int
    step: int | None = None

    @property
    def parts(self) -> list[tuple[int, int]]:
        rows = self.end - self.begin
        return [(self.begin + low, self.begin + high) for low, high in _equal_parts(rows, self.step or rows)]


def _row_ranges(footer: Footer, bounds: SplitBounds) -> Iterator[_RowRange]:
    begin = end = num_bytes = 0
    for rows, group_bytes in zip(footer.group_rows, footer.group_bytes, strict=True):
        fits = end - begin + rows <= bounds.num_rows and num_bytes + group_bytes <= bounds.max_bytes
        if end > begin and not fits:
            yield _RowRange(begin, end, num_bytes)
            begin, num_bytes = end, 0
        end, num_bytes = end + rows, num_bytes + group_bytes
        if rows > bounds.num_rows or (group_bytes > bounds.max_bytes and rows > 1):
            yield _RowRange(begin, end, group_bytes, rows_within(rows, group_bytes, bounds))
            begin, num_bytes = end, 0
    if end > begin:
        yield _RowRange(begin, end, num_bytes)


def _equal_parts(size: int, step: int) -> list[tuple[int, int]]:
    """[0, size) in the fewest parts of at most `step`."""
    num_parts = -(-size // step)
    return [(i * size // num_parts, (i + 1) * size // num_parts) for i in range(num_parts)]


def _limited(storage: Storage, planned: list[Split], limit: int, csv: Csv) -> tuple[list[Split], int]:
    """The planned splits of a file up to its first `limit` documents, and how many those are."""
    if planned[0].format in ("parquet", "text"):
        num_rows = planned[-1].end or 0
        num_documents, end, complete = min(limit, num_rows), limit, limit >= num_rows
    else:
        num_documents, end, complete = _first_rows(storage, planned[0], limit, csv)
    if num_documents < limit:
        return planned, num_documents
    kept = [split for split in planned if split.begin < end]
    kept[-1] = replace(kept[-1], end=end if kept[-1].end is None else min(end, kept[-1].end), last=complete)
    return kept, num_documents


def _first_rows(storage: Storage, split: Split, limit: int, csv: Csv) -> tuple[int, int, bool]:
    """How many documents a file has, up to `limit`, the row or offset after them, and whether it ends there."""
    num_documents = offset = 0
    places: Iterator[tuple[bool, int]]
    with open_source(storage, split.file, buffered=True) as source:
        if split.format == "arrow":
            num_rows, complete = num_rows_up_to(source, limit)
            return num_rows, num_rows, complete
        try:
            if split.format in ("csv", "tsv"):
                num_documents = -1  # the header
                reader = open_csv(source, split.compression, csv)
                rows = csv_rows(reader, Dialect.of(split.format, csv))
                places = ((not row.is_blank, row.num_bytes) for row in rows)
            else:
                reader = open_text(source, split.compression)
                places = _lines(reader)
            while num_documents < limit and (place := next(places, None)) is not None:
                num_documents += place[0]
                offset += place[1]
            return max(0, num_documents), offset, not reader.peek(1)
        except UndecodableError:
            pass  # the reader quarantines the file; the lines before the fault count
    return max(0, num_documents), offset, False


def _lines(reader: io.BufferedReader) -> Iterator[tuple[bool, int]]:
    """Of each line whether it is a document, and its bytes."""
    is_first = True
    while line := reader.readline():
        yield bool((line.removeprefix(BOM) if is_first else line).strip()), len(line)
        is_first = False
