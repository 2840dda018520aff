"""The lists of an index: read by range, checked, and held as long as there is room.

Two things of a row group are held apart: its codes with their addresses, which every probe needs, and its
other columns, which only the groups of winners (or, under a filter, of all that is probed) need. Those are
compressed Parquet: the part's footer says how to read them, and is read once.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.index.codecs import Codes
from pipeline.index.layout import REBUILD
from pipeline.index.parts import group_checksum
from pipeline.search.cache import Cache
from pipeline.search.directory import Directory, Ints
from pipeline.search.neighbours import one_piece
from pipeline.search.ranges import Range, RangeReader
from pipeline.uris import Storage

# A footer in memory takes so many times its bytes.
_FOOTER_FACTOR = 6

# Row groups whose answer columns are decoded at a time: a large batch of queries answers from all there are.
_MAX_ANSWERS = 512

_TYPES = {"doc_id": pa.string(), "chunk_index": pa.int32()}


class Group(NamedTuple):
    """Rows of a row group that are not deleted: codes (N, B), addresses (N,) and places (N,).

    A place is row group << 32 | row of it.
    """

    codes: Codes
    addresses: Ints
    places: Ints

    def where(self, mask: npt.NDArray[np.bool_]) -> Group:
        """The rows that pass a mask over all rows of the row group, deleted ones included."""
        kept = mask[self.places & 0xFFFFFFFF]
        return Group(self.codes[kept], self.addresses[kept], self.places[kept])


class Lists:
    """Row groups by number; any number of threads may share one.

    Args:
        reader: of the store.
        directory: of the index.
        answer_columns: the columns that answers are made of.
        max_bytes: held at most.
    """

    def __init__(
        self, reader: RangeReader, directory: Directory, answer_columns: Sequence[str], max_bytes: int
    ) -> None:
        self._reader = reader
        self.directory = directory
        self._columns = list(answer_columns)
        self._groups: Cache[Group] = Cache(max_bytes * 3 // 4)
        # Footers and decoded columns.
        self._answers: Cache[pa.RecordBatch] = Cache(max_bytes // 8)
        self._footers: Cache[pq.FileMetaData] = Cache(max_bytes // 8)

    @property
    def storage(self) -> Storage:
        """Of the store."""
        return self._reader.storage

    @property
    def num_bytes(self) -> int:
        """Held now."""
        return self._groups.num_bytes + self._answers.num_bytes + self._footers.num_bytes

    def groups(self, numbers: Sequence[int]) -> dict[int, Group]:
        """Row groups by number, in one round of requests.

        Raises:
            StoreError: a part is missing, or is not what the directory says.
        """
        held = {number: self._groups.get(number) for number in numbers}
        found = {number: group for number, group in held.items() if group is not None}
        missing = [number for number in held if number not in found]
        if missing:
            directory = self.directory
            ranges = [directory.codes_range(number) for number in missing]
            ranges += [directory.addresses_range(number) for number in missing]
            data = self._reader.read(ranges)
            for place, number in enumerate(missing):
                group = self._group(number, data[place], data[len(missing) + place])
                self._groups.put(number, group, sum(column.nbytes for column in group))
                found[number] = group
        return found

    def answers(self, numbers: Sequence[int]) -> dict[int, pa.RecordBatch]:
        """The other columns of row groups, deleted rows included, by number, in one round of requests.

        Raises:
            StoreError: a part is missing or damaged.
        """
        held = {number: self._answers.get(number) for number in numbers}
        found = {number: batch for number, batch in held.items() if batch is not None}
        missing = [number for number in held if number not in found]
        if missing:
            parts = {number: int(self.directory.part[number]) for number in missing}
            footers = {part: self._footers.get(part) for part in dict.fromkeys(parts.values())}
            unread = [part for part, footer in footers.items() if footer is None]
            ranges = [self.directory.answers_range(number) for number in missing]
            data = self._reader.read([*ranges, *(self.directory.footer_range(part) for part in unread)])
            for part, tail in zip(unread, data[len(missing) :], strict=True):
                footers[part] = self._footer(part, tail)
            for number, wanted, read in zip(missing, ranges, data[: len(missing)], strict=True):
                footer = footers[parts[number]]
                assert footer is not None
                batch = self._decode(number, footer, wanted, read)
                self._answers.put(number, batch, batch.nbytes)
                found[number] = batch
        return found

    def take(self, places: Ints) -> pa.Table:
        """The answer columns of rows (M,), each row group << 32 | row of it, in their order.

        Raises:
            StoreError: a part is missing or damaged.
            UsageError: a column of so many rows is more than Arrow holds in one piece.
        """
        if not len(places):
            return pa.table({name: pa.array([], _TYPES.get(name, pa.null())) for name in self._columns})
        numbers, which = np.unique(places >> 32, return_inverse=True)
        order = np.argsort(which, kind="stable")
        bounds = np.searchsorted(which[order], np.arange(len(numbers) + 1))
        rows = places[order] & 0xFFFFFFFF
        taken = []
        for begin in range(0, len(numbers), _MAX_ANSWERS):
            some = numbers[begin : begin + _MAX_ANSWERS].tolist()
            batches = self.answers(some)
            taken += [
                batches[number].take(pa.array(rows[bounds[one] : bounds[one + 1]]))
                for one, number in enumerate(some, begin)
            ]
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        with one_piece(len(places)):
            return pa.Table.from_batches([pa.concat_batches(taken).take(pa.array(back))])

    def _group(self, number: int, codes: memoryview, addresses: memoryview) -> Group:
        directory = self.directory
        if group_checksum(codes, addresses) != directory.checksum[number]:
            raise self._damaged(number)
        # Copies: what was read in one request is not held because one list of it is.
        made = Group(
            np.frombuffer(bytes(codes), np.uint8).reshape(-1, directory.code_bytes),
            np.frombuffer(bytes(addresses), "<i8").astype(np.int64, copy=False),
            np.arange(directory.num_rows[number]) + (number << 32),
        )
        deleted = directory.deleted.get(number)
        return made if deleted is None else made.where(np.isin(np.arange(len(made.places)), deleted, invert=True))

    def _damaged(self, number: int) -> StoreError:
        part = self.directory.parts[int(self.directory.part[number])]
        return StoreError(
            f"damaged: {self.storage.full_uri(part.codes.file)}, or {part.addresses.file} beside it, is not "
            f"what the index's directory says (list {self.directory.list_id[number]}); {REBUILD}"
        )

    def _footer(self, part: int, data: memoryview) -> pq.FileMetaData:
        ref = self.directory.parts[part]
        try:
            footer = pq.read_metadata(pa.BufferReader(data))
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(ref.codes.file, error) from None
        if (footer.num_rows, footer.num_row_groups) != (ref.num_rows, ref.num_groups):
            raise StoreError(f"{self.storage.full_uri(ref.codes.file)} is another file than the index names; {REBUILD}")
        self._footers.put(part, footer, _FOOTER_FACTOR * len(data))
        return footer

    def _decode(self, number: int, footer: pq.FileMetaData, wanted: Range, data: memoryview) -> pa.RecordBatch:
        window = _Window(data, wanted.begin, self.directory.parts[int(self.directory.part[number])].codes.size)
        try:
            file = pq.ParquetFile(window, metadata=footer, page_checksum_verification=True)
            row_group = int(self.directory.row_group[number])
            table = file.read_row_group(row_group, columns=self._columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(wanted.file, error) from None
        if table.num_rows != self.directory.num_rows[number]:
            raise self._damaged(number)
        return table.combine_chunks().to_batches()[0]

    def _unreadable(self, file: str, error: Exception) -> StoreError:
        reason = " ".join(str(error).split())[:100]
        return StoreError(f"damaged: {self.storage.full_uri(file)} cannot be read ({reason}); {REBUILD}")


class _Window(io.RawIOBase):
    """A file of which only the bytes `data`, from `begin` on, are at hand."""

    def __init__(self, data: memoryview, begin: int, size: int) -> None:
        self._data, self._begin, self._size, self._position = data, begin, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = (0, self._position, self._size)[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        begin = self._position - self._begin
        end = len(self._data) if size < 0 else begin + size
        if begin < 0 or end > len(self._data):
            raise OSError(f"bytes {self._position} to {self._begin + end} are not of this row group")
        self._position += end - begin
        return bytes(self._data[begin:end])
