"""The directory of an index in memory: where the codes, addresses and answers of each list lie.

About 50 bytes a row group; with the centroids all that a search has to hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import StoreError
from pipeline.index.description import IndexDescription, PartRef
from pipeline.index.layout import ADDRESS_BYTES, REBUILD
from pipeline.search.ranges import Range

_ROW_HASH_BYTES = 16

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Directory:
    """Row groups by column (G,), sorted by list: those of list l are [bounds[l], bounds[l + 1])."""

    parts: dict[int, PartRef]
    code_bytes: int
    bounds: Ints
    list_id: Ints
    part: Ints
    row_group: Ints
    num_rows: Ints
    group_end: Ints
    code_begin: Ints
    address_begin: Ints
    checksum: Ints
    deleted: dict[int, Ints]
    """By row group, the rows that are deleted, where there are any."""

    def groups_of(self, list_ids: npt.NDArray[np.integer] | Sequence[int]) -> list[int]:
        """The row groups of lists (P,), in their order."""
        begin = self.bounds[list_ids]
        counts = self.bounds[np.asarray(list_ids) + 1] - begin
        groups: list[int] = (np.arange(counts.sum()) + np.repeat(begin - counts.cumsum() + counts, counts)).tolist()
        return groups

    def num_bytes_of(self, list_ids: npt.NDArray[np.integer]) -> Ints:
        """Of the codes of lists (P,)."""
        return np.asarray((self._ends[list_ids + 1] - self._ends[list_ids]) * self.code_bytes, np.int64)

    @cached_property
    def _ends(self) -> Ints:
        """Rows of the lists before each list."""
        return np.asarray(np.concatenate([[0], self.num_rows.cumsum()])[self.bounds], np.int64)

    def codes_range(self, group: int) -> Range:
        """Where its codes lie."""
        begin = int(self.code_begin[group])
        end = begin + int(self.num_rows[group]) * self.code_bytes
        return Range(self.parts[int(self.part[group])].codes.file, begin, end)

    def addresses_range(self, group: int) -> Range:
        """Where its row addresses lie."""
        begin = int(self.address_begin[group])
        return Range(
            self.parts[int(self.part[group])].addresses.file, begin, begin + ADDRESS_BYTES * int(self.num_rows[group])
        )

    def answers_range(self, group: int) -> Range:
        """Where its other columns lie: after the codes; the last, row_hash, is not read."""
        file, _, begin = self.codes_range(group)
        return Range(file, begin, int(self.group_end[group]) - _ROW_HASH_BYTES * int(self.num_rows[group]))

    def footer_range(self, part: int) -> Range:
        """Where the footer of a part lies."""
        ref = self.parts[part]
        return Range(ref.codes.file, ref.footer_begin, ref.codes.size)


def make_directory(lists: pa.Table, deleted: pa.Table, description: IndexDescription, uri: str) -> Directory:
    """The directory from lists.parquet and deleted.parquet.

    Raises:
        StoreError: it does not fit index.json, or names what is not there.
    """
    lists = lists.sort_by([("list_id", "ascending"), ("part", "ascending"), ("row_group", "ascending")])
    columns = {name: lists[name].to_numpy().astype(np.int64) for name in lists.schema.names}
    parts = {ref.part: ref for ref in description.parts}
    is_known = bool(np.isin(columns["part"], list(parts)).all())
    num_bytes = columns["num_rows"] * description.num_code_bytes
    is_inside = is_known and bool(
        ((columns["list_id"] >= 0) & (columns["list_id"] < description.nlist)).all()
        and ((columns["group_begin"] <= columns["code_begin"]) & (columns["num_rows"] >= 0)).all()
        and (columns["code_begin"] + num_bytes <= columns["group_end"]).all()
        and all(
            columns["group_end"][columns["part"] == part].max(initial=0) <= ref.footer_begin
            for part, ref in parts.items()
        )
    )
    strangers = [ref.codes.file for ref in description.parts if ref.quantizer_fp != description.quantizer_fp]
    if strangers:
        raise StoreError(f"{strangers[0]} was made with another quantizer than the index {uri}; {REBUILD}")
    if not is_inside or sum(ref.num_rows for ref in description.parts) != int(columns["num_rows"].sum()):
        raise StoreError(f"damaged: {uri} does not fit its index.json; {REBUILD}")
    return Directory(
        parts=parts,
        code_bytes=description.num_code_bytes,
        bounds=np.searchsorted(columns["list_id"], np.arange(description.nlist + 1)).astype(np.int64),
        deleted=_deleted_rows(columns, deleted, uri),
        **{
            name: columns[name]
            for name in (
                *("list_id", "part", "row_group", "num_rows", "group_end"),
                *("code_begin", "address_begin", "checksum"),
            )
        },
    )


def _deleted_rows(columns: dict[str, Ints], deleted: pa.Table, uri: str) -> dict[int, Ints]:
    """Positions are rows of a part; here they are rows of a row group."""
    found: dict[int, Ints] = {}
    parts = deleted["part"].to_numpy()
    for part in np.unique(parts).tolist():
        groups = np.flatnonzero(columns["part"] == part)
        groups = groups[np.argsort(columns["row_group"][groups])]
        starts = np.concatenate([[0], columns["num_rows"][groups].cumsum()])
        positions = np.sort(deleted["position"].to_numpy()[parts == part])
        place = np.searchsorted(starts, positions, side="right") - 1
        if len(positions) and (positions[0] < 0 or positions[-1] >= starts[-1]):
            raise StoreError(f"damaged: deleted.parquet names rows that {uri} does not have; {REBUILD}")
        for one in np.unique(place).tolist():
            found[int(groups[one])] = positions[place == one] - starts[one]
    return found
