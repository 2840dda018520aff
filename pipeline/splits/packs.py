"""Packs: many small files in one split, and so in one embedding shard.

A shard a file would make 20,000 files of 1 kB 20,000 shards of one row, each a sort window of one
text. So small files are put together, by URI, up to the bounds of a split. The pack is the sort
window then, and what its rows say of themselves stays what it would be of the file alone.

A pack is whole files and nothing else: its id is made of theirs, and does not depend on who else
was there when it was planned. The reader cuts a planned pack between members, and each piece is a pack
of its own; one of a single file is the ordinary split of that file. A record of a pack therefore
stands while its files do, whatever is planned around it.

    small      a file under 1/16 of what one split holds, by bytes (lines: a kilobyte each) and by
               rows where they are known. A file that turns out to hold more than a split is
               cut by itself, as if it had not been packed: no shard is ever over the bounds
    planned    up to the bounds; of lines each file counts as one row or one for each 4 KiB. Shorter
               lines are more rows, and the reader makes several packs of that
    rows       are not unique among members: on its way through the flow a row is numbered
               (member + 1) << 43 | row, and told apart again where it is written (`told_by_file`)
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import SplitBounds
from pipeline.splits.files import InputFile
from pipeline.splits.plan import ASSUMED_LINE_BYTES, Split

# A changed file costs the documents of its pack, so that only files far below a split's bounds are packed.
_SMALL_SHARE = 16

# The longest that lines of a small file are on average taken for: a file of one document counts as one row.
_LONG_LINE_BYTES = 4 * 2**10

# A row is an offset below 8 TiB, members are at most as many as a shard has rows: 2**20.
_ROW_BITS = 43


def pack_of(members: Sequence[Split], member_begin: int = 0) -> Split:
    """The pack of whole files; of one file the file's own split.

    Args:
        members: each the split of a whole file, by URI.
        member_begin: where they begin among those of the pack that was planned.
    """
    first = members[0]
    if len(members) == 1:
        return first
    digest = hashlib.blake2b("".join(member.file.file_id for member in members).encode(), digest_size=16).hexdigest()
    size = sum(member.file.size for member in members)
    return Split(
        InputFile(first.file.uri, size, f"pack-{digest}", "version"),
        first.format,
        first.compression,
        0,
        len(members),
        True,
        num_bytes=sum(member.num_bytes for member in members),
        members=tuple(members),
        member_begin=member_begin,
    )


def pack_small_files(
    planned: Iterable[Split], bounds: SplitBounds, *, ends: Sequence[str] = (), alone: Collection[str] = ()
) -> list[Split]:
    """Planned splits with small files put together; all others as they are.

    Args:
        planned: by URI, the splits of a file in order.
        ends: URIs that end packs which are done: there a new one begins, so that what is planned again
            for want of a few packs gives those and no others.
        alone: ids of files that are not packed.
    """
    made: list[Split] = []
    pack: list[Split] = []
    rows = num_bytes = place = 0
    ends = sorted(ends)
    for splits in _by_file(planned):
        file = splits[0].file
        if len(splits) > 1 or file.file_id in alone or not is_small(splits[0], bounds):
            made += splits
            continue
        [split] = splits
        before = place
        while place < len(ends) and ends[place] < file.uri:
            place += 1
        fits = rows + _num_rows(split) <= bounds.num_rows and num_bytes + split.num_bytes <= bounds.max_bytes
        if pack and (place > before or not fits):
            made.append(pack_of(pack))
            pack, rows, num_bytes = [], 0, 0
        pack.append(split)
        rows, num_bytes = rows + _num_rows(split), num_bytes + split.num_bytes
    return [*made, pack_of(pack)] if pack else made


def is_small(split: Split, bounds: SplitBounds) -> bool:
    """Whether a planned split is all of a file that is worth a pack."""
    if split.begin != 0 or split.last is False or split.unreadable is not None:
        return False
    most = bounds.max_bytes if _tells_rows(split) else min(bounds.max_bytes, bounds.num_rows * ASSUMED_LINE_BYTES)
    rows = split.end or 0 if _tells_rows(split) else 0
    return split.num_bytes * _SMALL_SHARE <= most and rows * _SMALL_SHARE <= bounds.num_rows


def _by_file(planned: Iterable[Split]) -> Iterator[list[Split]]:
    for _, splits in groupby(planned, key=lambda split: split.file.uri):
        yield list(splits)


def _tells_rows(split: Split) -> bool:
    return split.in_rows and split.end is not None


def _num_rows(split: Split) -> int:
    return max(1, (split.end or 0) if _tells_rows(split) else split.num_bytes // _LONG_LINE_BYTES)


def row_keys(member: int, rows: pa.ChunkedArray) -> pa.ChunkedArray:
    """The rows of a planned pack's member, each with a number that no other row of the pack has; null stays null."""
    return pc.add(rows, pa.scalar((member + 1) << _ROW_BITS, pa.int64()))


def members_of(split: Split, rows: pa.ChunkedArray) -> np.ndarray:
    """Which of the split's members each row is of; rows as `row_keys` gives them, none of them null."""
    keys = rows.to_numpy()
    if not split.members:
        return np.zeros(len(keys), np.int64)
    members: np.ndarray = (keys >> _ROW_BITS) - 1 - split.member_begin
    return members


def told_by_file(split: Split, quarantine: pa.Table) -> pa.Table:
    """QUARANTINE_SCHEMA with rows as the files count them, each beside its own file; of any split."""
    keys = quarantine["row"]
    rows = pc.bit_wise_and(keys, pa.scalar(2**_ROW_BITS - 1, pa.int64()))
    told = quarantine.set_column(quarantine.schema.get_field_index("row"), quarantine.schema.field("row"), rows)
    if not split.members:
        return told
    is_row = keys.is_valid()
    uris = np.array(told["input_file"].to_pylist(), object)
    found = members_of(split, keys.filter(is_row))
    uris[is_row.to_numpy()] = [split.members[member].file.uri for member in found]
    field = quarantine.schema.field("input_file")
    return told.set_column(quarantine.schema.get_field_index("input_file"), field, pa.array(uris, field.type))
