"""What is known of the corpus's files: which of their ranges records cover, and by which attempts.

Several attempts of a split may have left records, and several cuts of a file. Of each cut one
attempt is chosen: of the highest generation (it was made to replace the others), then the one that
the parent snapshot lists, then the least by name. Then `tile` chooses among cuts. Both depend on
the records alone, so whoever publishes picks the same.

All records are sorted once, by file, range and that order; a file or a range is a slice of them.

A pack counts by itself, whatever it was planned with: while all of its files are there and open. Of
packs that have files in common the one of the higher generation is taken, then the parent's, then
the larger, then the least id.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.snapshots.records import Record, tile
from pipeline.snapshots.table import Indices, RecordTable, as_bytes
from pipeline.splits import Cut, Split

Mask = npt.NDArray[np.bool_]

# One for all: an empty set of its own would be half of what a planned split takes.
_NO_CUTS: frozenset[Cut] = frozenset()


@dataclass(frozen=True)
class KnownPack:
    """A pack that is recorded, of files that are all open."""

    row: int
    """Of `KnownRecords.records`."""
    file_ids: tuple[str, ...]
    last_uri: str
    is_done: bool
    """Whether its record counts; else it is to be made again, of the same files."""


class KnownRecords:
    """The records of one encoder and shard fingerprint, by file.

    Some may not count as done: those that are to be replaced, by a higher generation. Of each cut
    the chosen attempt is judged; where it does not count, no older attempt does.

    Args:
        records: all there are.
        parent: the attempts that the parent snapshot lists, as `file_keys` of its shards.
        is_done: tells of each record whether it counts as done, (N,); by default all do.
    """

    def __init__(
        self,
        records: Iterable[Record] = (),
        parent: pa.FixedSizeBinaryArray | None = None,
        is_done: Callable[[RecordTable], Mask] | None = None,
    ) -> None:
        self.records = RecordTable.of(records)
        self._parent = parent
        self._codes = {file_id: code for code, file_id in enumerate(self.records.values("file_id"))}
        rows = _in_order(self.records, parent)
        chosen = rows[_first_of_each(self.records, rows)]
        done = chosen if is_done is None else chosen[is_done(self.records)[chosen]]
        self._done = _Slices.of(self.records, done, len(self._codes))
        # The same object where all counts, which is nearly always.
        self._chosen = self._done if len(done) == len(chosen) else _Slices.of(self.records, chosen, len(self._codes))

    def tiling(self, file_id: str) -> Indices | None:
        """Rows of `records` that cover the file, without gap or overlap, in order; None if there are none such."""
        code = self._codes.get(file_id)
        if code is None:
            return None
        low, high = self._done.bounds[code : code + 2]
        if self._done.is_tiling[code]:
            return self._done.rows[low:high]
        # A file that nothing ends is the usual one here: that of a run that was interrupted.
        return self._tile(low, high, 0, None) if self._done.last[low:high].any() else None

    def is_known(self, file_id: str) -> bool:
        """Whether a range of the file is recorded by itself."""
        code = self._codes.get(file_id)
        return code is not None and bool(self._chosen.bounds[code] < self._chosen.bounds[code + 1])

    def packs(self, open_files: Collection[str]) -> list[KnownPack]:
        """Recorded packs of these files (ids), none of which is in two of them."""
        members = self.records.column("members")
        if members.null_count == len(members):
            return []
        is_pack = members.is_valid().to_numpy(zero_copy_only=False)
        rows = self._in_order_of_choice(self._chosen.rows[is_pack[self._chosen.rows]])
        members = members.take(pa.array(rows))
        uris, ids = (pc.struct_field(pc.list_flatten(members), name).to_pylist() for name in ("file_uri", "file_id"))
        ends = np.cumsum(pc.list_value_length(members)).tolist()
        is_done = np.isin(rows, self._done.rows).tolist()
        packs, taken, begin = [], set[str](), 0
        for row, done, end in zip(rows.tolist(), is_done, ends, strict=True):
            file_ids, begin = tuple(ids[begin:end]), end
            if all(file_id in open_files and file_id not in taken for file_id in file_ids):
                taken.update(file_ids)
                packs.append(KnownPack(row, file_ids, uris[end - 1], done))
        return packs

    def _in_order_of_choice(self, rows: Indices) -> Indices:
        records = self.records.take(rows)
        is_strange = _is_strange(records, self._parent)
        sizes = pc.list_value_length(records.column("members")).to_numpy(zero_copy_only=False)
        ids = as_bytes(records.column("split_id")).copy().view("S16").reshape(-1)
        order = np.lexsort([ids, -sizes, is_strange, -records.numbers("generation")])
        return rows[order]

    def covering(self, split: Split) -> Indices | None:
        """Rows of `records` that cover exactly the range of a planned split, under whatever cut; None if none do."""
        low, high = self._within(self._done, split)
        if low == high:
            return None
        done = self._done
        if done.begin[low] == split.begin and done.end[low] == split.end and (done.last[low] or not split.last):
            return done.rows[low : low + 1]
        # The file's last range is covered only by records up to one that says so.
        return self._tile(low, high, split.begin, None if split.last else split.end)

    def cuts(self, split: Split) -> frozenset[Cut]:
        """What is done of the range of a planned split."""
        low, high = self._within(self._done, split)
        return frozenset(self._done.cuts(low, high, split.end)) if low < high else _NO_CUTS

    def next_generation(self, split: Split) -> int:
        """The generation of records to be made in the range: above any there that does not count as done, else 0."""
        if self._chosen is self._done:
            return 0
        low, high = self._within(self._chosen, split)
        if self.cuts(split) == frozenset(self._chosen.cuts(low, high, split.end)):
            return 0
        # Of a cut the chosen attempt has the highest.
        inside = self._chosen.end[low:high] <= (np.iinfo(np.int64).max if split.end is None else split.end)
        generations = self.records.numbers("generation")[self._chosen.rows[low:high][inside]]
        return 1 + int(generations.max())

    def _within(self, slices: _Slices, split: Split) -> tuple[int, int]:
        """The slice of what begins in the range; where the range ends, what begins there has to be empty."""
        code = self._codes.get(split.file.file_id)
        if code is None:
            return 0, 0
        low, high = slices.bounds[code : code + 2]
        begins = slices.begin[low:high]
        if split.end is not None:
            high = low + np.searchsorted(begins, split.end, side="right")
        return int(low + np.searchsorted(begins, split.begin)), int(high)

    def _tile(self, low: int, high: int, begin: int, end: int | None) -> Indices | None:
        cuts = list(self._done.cuts(low, high, None))
        tiling = tile(cuts, begin, end)
        if tiling is None:
            return None
        row_of = dict(zip(cuts, self._done.rows[low:high].tolist(), strict=True))
        return np.array([row_of[cut] for cut in tiling], np.int64)


@dataclass(frozen=True)
class _Slices:
    """Chosen records by file, begin, end and `last`: those of file `code` are [bounds[code], bounds[code + 1])."""

    rows: Indices
    bounds: Indices
    begin: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    last: Mask

    @classmethod
    def of(cls, records: RecordTable, rows: Indices, num_files: int) -> _Slices:
        bounds = np.searchsorted(records.numbers("file_id")[rows], np.arange(num_files + 1))
        begin, end, last = (records.numbers(name)[rows] for name in ("begin", "end", "last"))
        return cls(rows, bounds, begin, end, last)

    def cuts(self, low: int, high: int, end: int | None) -> Iterable[Cut]:
        """Of [low, high), those that end by `end`."""
        columns = (column[low:high].tolist() for column in (self.begin, self.end, self.last))
        return (cut for cut in zip(*columns, strict=True) if end is None or cut[1] <= end)

    @cached_property
    def is_tiling(self) -> Mask:
        """Of each file, whether all that is chosen of it is one tiling, (num_files,): nearly all that are done."""
        is_first = np.zeros(len(self.rows) + 1, np.bool_)
        is_first[self.bounds] = True
        is_final = is_first[1:]
        previous_end = np.concatenate([[0], self.end[:-1]])
        fits = (self.begin == np.where(is_first[:-1], 0, previous_end)) & (self.last == is_final)
        num_wrong = np.concatenate([[0], np.cumsum(~fits)])[self.bounds]
        is_tiling: Mask = (np.diff(num_wrong) == 0) & (np.diff(self.bounds) > 0)
        return is_tiling


def _in_order(records: RecordTable, parent: pa.FixedSizeBinaryArray | None) -> Indices:
    """Rows by file, range and `last`, and of the attempts of one range the chosen one first."""
    attempt = as_bytes(records.column("attempt")).view(">u8").reshape(-1)
    is_strange = _is_strange(records, parent)
    ranges = [records.numbers(name) for name in ("last", "end", "begin", "file_id")]
    return np.lexsort([attempt, is_strange, -records.numbers("generation"), *ranges])


def _is_strange(records: RecordTable, parent: pa.FixedSizeBinaryArray | None) -> Mask:
    """Which records the parent does not list, (N,)."""
    if parent is None or not len(parent):
        return np.ones(len(records), np.bool_)
    is_strange: Mask = ~pc.is_in(records.keys(), value_set=parent).to_numpy(zero_copy_only=False)
    return is_strange


def _first_of_each(records: RecordTable, rows: Indices) -> Mask:
    """Of rows in order, those that begin another range, (N,)."""
    differs = np.zeros(max(0, len(rows) - 1), np.bool_)
    for name in ("file_id", "begin", "end", "last"):
        values = records.numbers(name)[rows]
        differs |= values[1:] != values[:-1]
    return np.concatenate([np.ones(min(1, len(rows)), np.bool_), differs])
