"""What the record of a pack says of each of its files, from the rows that came of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from pipeline.flow.rows import Row
from pipeline.snapshots.records import Member
from pipeline.splits import Split
from pipeline.splits.packs import members_of


def recorded_members(row: Row, quarantine: pa.Table) -> tuple[Member, ...] | None:
    """The files of a pack with what became of their documents; None for another split.

    Args:
        row: with its embeddings, numbered as on their way through the flow.
        quarantine: of the split, told by file.
    """
    members = row.split.members
    if not members:
        return None
    of_row = members_of(row.split, row.documents["row"])
    tokens = np.bincount(of_row, row.documents["num_tokens"].to_numpy(), len(members))
    truncated = np.bincount(of_row, row.documents["truncated"].to_numpy(), len(members))
    quarantined = Counter(quarantine["input_file"].filter(quarantine["row"].is_valid()).to_pylist())
    return tuple(
        _member(member, counts, quarantined[member.file.uri], int(truncated[index]), int(tokens[index]))
        for index, (member, counts) in enumerate(zip(members, row.report.member_counts, strict=True))
    )


def _member(
    split: Split, counts: tuple[int, int | None], num_quarantined: int, num_truncated: int, num_tokens: int
) -> Member:
    assert split.end is not None, "it was read"
    return Member(
        file_uri=split.file.uri,
        file_id=split.file.file_id,
        identity=split.file.identity,
        identity_kind=split.file.identity_kind,
        end=split.end,
        row_begin=split.row_begin,
        row_end=split.row_end,
        num_documents=counts[0],
        num_counted=counts[1],
        num_quarantined=num_quarantined,
        num_truncated=num_truncated,
        num_tokens=num_tokens,
    )
