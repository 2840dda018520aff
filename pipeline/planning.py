"""What is done and what is left: the files of the corpus against the parent snapshot and the records.

A file that the parent snapshot lists whole is *carried*: it is not opened, nor are its records
read. Of the others, one is done when records tile it, under whatever cut; what is left of the
rest is planned, less the ranges that are recorded already.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.flow.rows import Work
from pipeline.snapshots.records import Record, choose, tile
from pipeline.splits import InputFile, Split


class KnownRecords:
    """The records of one encoder and shard fingerprint, by file."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._by_file: defaultdict[str, list[Record]] = defaultdict(list)
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Take in a record."""
        self._by_file[record.file_id].append(record)

    def tiling(self, file: InputFile) -> list[Record] | None:
        """Records that cover the file as it is now, without gap or overlap; None if there are none such."""
        return tile(self._by_file.get(file.file_id, []))

    def covering(self, split: Split) -> list[Record] | None:
        """Records that cover exactly the range of a planned split; None if there are none such."""
        records = self._by_file.get(split.file.file_id, [])
        if split.end is None:
            return tile(records)
        exact = [record for record in records if (record.begin, record.end) == (split.begin, split.end)]
        return [choose(exact)] if exact else None

    def ranges(self, file: InputFile) -> frozenset[tuple[int, int]]:
        """The ranges of the file that are recorded."""
        return frozenset((record.begin, record.end) for record in self._by_file.get(file.file_id, []))


def carried_files(parent_splits: pa.Table, files: Sequence[InputFile]) -> frozenset[str]:
    """The file ids that the parent lists whole and that are still in the input as they were.

    A published file is tiled; one of which a `--limit` took only a part has no split that is last.
    """
    whole = set(parent_splits.filter(pc.field("last"))["file_id"].to_pylist())
    return frozenset(file.file_id for file in files if file.file_id in whole)


def left_to_do(planned: Iterable[Split], known: KnownRecords) -> list[Work]:
    """The work that is left of planned splits."""
    return [Work(split, known.ranges(split.file)) for split in planned if known.covering(split) is None]


def without(files: Sequence[InputFile], carried: Collection[str]) -> list[InputFile]:
    """The files that are not carried."""
    return [file for file in files if file.file_id not in carried]
