"""What is refused although it could be published (exit 3): too much quarantined, unreadable or gone.

The work is kept: after the limit is raised the same command publishes without encoding again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Limits
from pipeline.errors import LimitError
from pipeline.snapshots.accounting import deleted_by_uri, documents_by_uri
from pipeline.snapshots.records import Record

# Under this many quarantined documents no ratio refuses: a small corpus would be refused for one.
_MIN_QUARANTINED_TO_REFUSE = 10

_KEPT = "nothing was published, the work is kept"
_AGAIN = "or raise the limit and run the same command again"


def refuse_over_limits(limits: Limits, records: Sequence[Record], carried_splits: pa.Table) -> None:
    """Refuse a snapshot of these new records and carried splits if too much of it is in quarantine.

    Raises:
        LimitError: over `max_quarantined_ratio` or `max_quarantined_files`.
    """
    num_quarantined = sum(record.num_quarantined for record in records) + _total(carried_splits, "num_quarantined")
    num_documents = sum(record.num_documents for record in records) + _total(carried_splits, "num_documents")
    ratio = num_quarantined / max(1, num_documents)
    if num_quarantined >= _MIN_QUARANTINED_TO_REFUSE and ratio > limits.max_quarantined_ratio:
        raise LimitError(
            f"{num_quarantined} of {num_documents} documents are in quarantine ({ratio:.2%}: {_reasons(records)}), "
            f"limits.max_quarantined_ratio is {limits.max_quarantined_ratio:.2%}; {_KEPT}: mend the input, {_AGAIN}"
        )
    unreadable = {record.file_uri for record in records if record.num_counted is None}
    unreadable.update(carried_splits.filter(pc.is_null(carried_splits["num_counted"]))["file_uri"].to_pylist())
    if len(unreadable) > limits.max_quarantined_files:
        some = ", ".join(sorted(unreadable)[:3])
        raise LimitError(
            f"{len(unreadable)} files cannot be read ({some}), limits.max_quarantined_files is "
            f"{limits.max_quarantined_files}; {_KEPT}: mend the files, {_AGAIN}"
        )


def refuse_deletions(
    limits: Limits, parent_splits: pa.Table, records: Iterable[Record], carried_splits: pa.Table
) -> None:
    """Refuse a snapshot in which too many of the parent's documents are gone: with their files, or out of them.

    Raises:
        LimitError: over `max_deleted_ratio`.
    """
    now = Counter(documents_by_uri(carried_splits))
    for record in records:
        now[record.file_uri] += record.num_documents
    gone = deleted_by_uri(documents_by_uri(parent_splits), now)
    num_gone, num_before = sum(gone.values()), _total(parent_splits, "num_documents")
    ratio = num_gone / max(1, num_before)
    if ratio > limits.max_deleted_ratio:
        raise LimitError(
            f"{num_gone} of {num_before} documents would disappear ({ratio:.2%}), most of them from "
            f"{max(gone, key=lambda uri: gone[uri])}, limits.max_deleted_ratio is "
            f"{limits.max_deleted_ratio:.2%}; {_KEPT}: "
            f"bring the files back, {_AGAIN}"
        )


def _total(splits: pa.Table, name: str) -> int:
    return int(pc.sum(splits[name], min_count=0).as_py())


def _reasons(records: Iterable[Record]) -> str:
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.reasons)
    return ", ".join(f"{reason} {count}" for reason, count in counts.most_common())
