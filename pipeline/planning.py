"""What is done and what is left: the files of the corpus against the parent snapshot and the records.

A file that the parent snapshot lists whole is *carried*: it is not opened, nor are its records
read. Of the others, one is done when records tile it, under whatever cut, and so is a planned range
of the rest. What is recorded of a range that is left goes along, so that it is not embedded again.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.flow.rows import Work
from pipeline.snapshots.records import Record, tile
from pipeline.splits import InputFile, Split


class KnownRecords:
    """The records of one encoder and shard fingerprint, by file; an attempt that the parent lists wins."""

    def __init__(self, records: Iterable[Record] = (), parent_attempts: Mapping[str, str] | None = None) -> None:
        self._parent_attempts = parent_attempts or {}
        by_file: defaultdict[str, list[Record]] = defaultdict(list)
        for record in records:
            by_file[record.file_id].append(record)
        # By offset, so that a split looks at its own records only: a large file has 10^4 of both.
        self._by_file = {file_id: sorted(found, key=_begin) for file_id, found in by_file.items()}

    def tiling(self, file: InputFile) -> list[Record] | None:
        """Records that cover the file as it is now, without gap or overlap; None if there are none such."""
        return tile(self._by_file.get(file.file_id, []), self._parent_attempts)

    def covering(self, split: Split) -> list[Record] | None:
        """Records that cover exactly the range of a planned split, under whatever cut; None if there are none such."""
        # The file's last range is covered only by records up to one that says so.
        return tile(
            self._within(split), self._parent_attempts, begin=split.begin, end=None if split.last else split.end
        )

    def ranges(self, split: Split) -> frozenset[tuple[int, int]]:
        """What is recorded of the range of a planned split."""
        return frozenset((record.begin, record.end) for record in self._within(split))

    def _within(self, split: Split) -> list[Record]:
        found, end = self._by_file.get(split.file.file_id, []), split.end
        first = bisect_left(found, split.begin, key=_begin)
        if end is None:
            return found[first:]
        return [record for record in found[first : bisect_right(found, end, key=_begin)] if record.end <= end]


def _begin(record: Record) -> int:
    return record.begin


def carried_files(parent_splits: pa.Table, files: Sequence[InputFile]) -> frozenset[str]:
    """The file ids that the parent lists whole and that are still in the input as they were.

    A published file is tiled; one of which a `--limit` took only a part has no split that is last.
    """
    whole = set(parent_splits.filter(pc.field("last"))["file_id"].to_pylist())
    return frozenset(file.file_id for file in files if file.file_id in whole)


def left_to_do(planned: Iterable[Split], known: KnownRecords) -> list[Work]:
    """The work that is left of planned splits."""
    return [Work(split, known.ranges(split)) for split in planned if known.covering(split) is None]


def without(files: Sequence[InputFile], carried: Collection[str]) -> list[InputFile]:
    """The files that are not carried."""
    return [file for file in files if file.file_id not in carried]
