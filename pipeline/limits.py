"""What is refused although it could be published (exit 3): too much quarantined, unreadable or gone.

The work is kept: after the limit is raised the same command publishes without encoding again.
A run whose end is certain is not worth its GPUs: `LimitWatch` ends it as soon as nothing that is
still to come can bring it under the limits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Input, Limits
from pipeline.errors import LimitError
from pipeline.snapshots.accounting import deleted_by_uri, documents_by_uri
from pipeline.snapshots.records import Record
from pipeline.snapshots.table import RecordTable
from pipeline.splits import Split
from pipeline.splits.names import partitions

# Under this many quarantined documents no ratio refuses: a small corpus would be refused for one.
_MIN_QUARANTINED_TO_REFUSE = 10

# Deflate makes at most 1,032 bytes of one; the others have no such bound.
_MOST_EXPANSION = {None: 1, "gz": 1032, "zst": None, "bz2": None, "xz": None}

_KEPT = "nothing was published, the work is kept"
_AGAIN = "or raise the limit and run the same command again"


@dataclass
class Totals:
    """What limits are held against."""

    num_documents: int = 0
    num_quarantined: int = 0
    unreadable: set[str] = field(default_factory=set)
    """URIs of files that cannot be read to their end."""
    reasons: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, records: Iterable[Record], carried_splits: pa.Table) -> Totals:
        """Of a snapshot of these new records and carried splits."""
        table = RecordTable.of(records)
        reasons: Counter[str] = Counter()
        per_code = np.bincount(table.numbers("reasons"), minlength=len(table.values("reasons")))
        for text, num in zip(table.values("reasons"), per_code.tolist(), strict=True):
            reasons.update({reason: count * num for reason, count in orjson.loads(text).items() if num})
        unreadable: set[str] = set()
        for splits in (table.by_file(), carried_splits):
            unreadable.update(splits.filter(pc.is_null(splits["num_counted"]))["file_uri"].to_pylist())
        return cls(
            _total(table.table, "num_documents") + _total(carried_splits, "num_documents"),
            _total(table.table, "num_quarantined") + _total(carried_splits, "num_quarantined"),
            unreadable,
            reasons,
        )

    def add(self, record: Record) -> None:
        """Take one more record."""
        self.num_documents += record.num_documents
        self.num_quarantined += record.num_quarantined
        self.reasons.update(record.reasons)
        files = record.members or (record,)
        self.unreadable.update(file.file_uri for file in files if file.num_counted is None)

    def is_over(self, limits: Limits, num_left: int = 0) -> bool:
        """Whether too many documents are in quarantine, also if `num_left` good ones are still to come."""
        ratio = self.num_quarantined / max(1, self.num_documents + num_left)
        return self.num_quarantined >= _MIN_QUARANTINED_TO_REFUSE and ratio > limits.max_quarantined_ratio

    def refuse_files(self, limits: Limits) -> None:
        """Raise LimitError over `max_quarantined_files`."""
        if len(self.unreadable) > limits.max_quarantined_files:
            some = ", ".join(sorted(self.unreadable)[:3])
            raise LimitError(
                f"{len(self.unreadable)} of the input files cannot be read ({some}), limits.max_quarantined_files is "
                f"{limits.max_quarantined_files}; {_KEPT}: mend the files, {_AGAIN}"
            )

    def refusal(self, limits: Limits, so_far: str = "") -> LimitError:
        """The refusal of so many documents in quarantine."""
        ratio = self.num_quarantined / max(1, self.num_documents)
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common())
        return LimitError(
            f"{self.num_quarantined} of {self.num_documents} documents are in quarantine ({ratio:.2%}: {reasons})"
            f"{so_far}, limits.max_quarantined_ratio is {limits.max_quarantined_ratio:.2%}; "
            f"{_KEPT}: mend the input, {_AGAIN}"
        )


def refuse_over_limits(
    limits: Limits, records: Iterable[Record], carried_splits: pa.Table, num_duplicates: int = 0
) -> None:
    """Refuse a snapshot of these new records and carried splits if too much of it is in quarantine.

    Args:
        num_duplicates: of its documents that are about to be quarantined for their ids.

    Raises:
        LimitError: over `max_quarantined_ratio` or `max_quarantined_files`.
    """
    totals = Totals.of(records, carried_splits)
    totals.num_quarantined += num_duplicates
    totals.reasons += Counter({"duplicate_id": num_duplicates})
    if totals.is_over(limits):
        raise totals.refusal(limits)
    totals.refuse_files(limits)


def refuse_deletions(
    limits: Limits, parent_splits: pa.Table, records: Iterable[Record], carried_splits: pa.Table
) -> None:
    """Refuse a snapshot in which too many of the parent's documents are gone: with their files, or out of them.

    Raises:
        LimitError: over `max_deleted_ratio`.
    """
    now = Counter(documents_by_uri(carried_splits))
    now.update(documents_by_uri(RecordTable.of(records).by_file()))
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


class LimitWatch:
    """Watches one flow, and tells once its records can no longer be published.

    It never refuses what `refuse_over_limits` would let pass at the end: it takes all documents that
    may still come for good, and as many as can be. Of Parquet those are rows; of lines, the bytes
    that are left by the fewest that a good line takes; of compressed ones, until their end was seen,
    the most that they can unpack to. While a file is without such a bound (zstd, Arrow, CSV of another
    encoding, or Parquet whose end an earlier run recorded) it is silent about documents, and counts
    only files. What it cannot know is that a file will be rewritten before the end: it takes the input
    for what was listed. Once a file is found to be another, ask no more: what was recorded of it will
    not count.

    Args:
        limits: of the config.
        settled: of the carried splits and of the records of files that are done.
        planned: the splits that go into the flow.
        input: of the config.
    """

    def __init__(self, limits: Limits, settled: Totals, planned: Iterable[Split], input: Input) -> None:
        self._limits = limits
        self._totals = settled
        self._seen: set[str] = set()
        self._files: dict[str, _File] = {}
        least_line_bytes = _least_line_bytes(input)
        for split in chain.from_iterable(one.members or (one,) for one in planned):
            least = _least(split, input, least_line_bytes)
            file = self._files.setdefault(split.file.file_id, _File(least))
            if not split.in_rows:
                expansion = None if _is_transcoded(split, input) else _MOST_EXPANSION[split.compression]
                file.size = None if expansion is None else split.file.size * expansion
            elif split.last:
                file.size = split.end
        self._num_left = sum(file.num_left or 0 for file in self._files.values())
        self._num_unbounded = sum(file.num_left is None for file in self._files.values())

    def add(self, record: Record) -> None:
        """Take a record that the flow made; a split that comes twice counts once."""
        if record.split_id in self._seen:
            return
        self._seen.add(record.split_id)
        self._totals.add(record)
        for member in record.members or ():
            self._take(member.file_id, 0, member.end, is_last=True)
        if record.members is None:
            self._take(record.file_id, record.begin, record.end, is_last=record.last)

    def _take(self, file_id: str, begin: int, end: int, *, is_last: bool) -> None:
        file = self._files.get(file_id)
        if file is None:
            return
        before = file.num_left
        file.take(begin, end, is_last=is_last)
        after = file.num_left
        self._num_left += (after or 0) - (before or 0)
        self._num_unbounded += (after is None) - (before is None)

    def check(self) -> None:
        """Raise once the limits cannot be met any more, whatever the rest brings.

        Raises:
            LimitError: over `max_quarantined_ratio` or `max_quarantined_files`.
        """
        totals, limits = self._totals, self._limits
        totals.refuse_files(limits)
        if not self._num_unbounded and totals.is_over(limits, self._num_left):
            so_far = f" so far, and at most {self._num_left} are still to come" if self._num_left else ""
            raise totals.refusal(limits, so_far)


@dataclass(slots=True)
class _File:
    """How much of a file was not seen yet: also what earlier runs recorded, as that is not in the totals.

    Attributes:
        least: rows or bytes that a good document takes.
        size: rows or bytes that there are at most; None: not known.
        num_seen: rows or bytes of records.
        num_parts: that what is left may lie in.
    """

    least: int
    size: int | None = None
    num_seen: int = 0
    num_parts: int = 1

    def take(self, begin: int, end: int, *, is_last: bool) -> None:
        self.num_seen += end - begin
        self.num_parts += 1
        if is_last:
            self.size = end

    @property
    def num_left(self) -> int | None:
        """Good documents that may still come, at most."""
        if self.size is None:
            return None
        rest = self.size - self.num_seen
        # The last line of a part may run on into what is done: a part holds one more than its bytes tell.
        return (rest + self.num_parts * (self.least - 1)) // self.least if rest > 0 else 0


def _is_transcoded(split: Split, input: Input) -> bool:
    return split.format in ("csv", "tsv") and input.csv.encoding.lower() != "utf-8"


def _least(split: Split, input: Input, least_line_bytes: int) -> int:
    """The fewest rows, or bytes, that a good document takes; of lines and CSV that is a letter and its newline."""
    if split.in_rows:
        return 1
    if split.format != "jsonl":
        return 2
    return _least_line_bytes(input, partitions(split.file.uri)) if "=" in split.file.uri else least_line_bytes


def _least_line_bytes(input: Input, given: Mapping[str, object] = MappingProxyType({})) -> int:
    """The fewest bytes of a line of JSON that makes a good document, with its newline: {"id":1,"title":2}.

    Args:
        given: names that the file's path may stand for.
    """
    if not given.keys().isdisjoint(input.columns):
        return len("{}\n")
    names = set() if input.id is None else {input.id}
    literal = input.text
    for name in input.text_columns:
        literal = literal.replace(f"{{{name}}}", "")
    if not literal.strip() and names.isdisjoint(input.text_columns):
        # One column of the template must hold something. Escapes only make a name longer.
        names.add(min(input.text_columns, key=lambda name: len(name.rpartition(".")[2].encode())))
    # Of a nested name at least its last part.
    fields = sum(len(name.rpartition(".")[2].encode()) + len('"":1') for name in names)
    return len("{}\n") + fields + max(0, len(names) - 1)


def _total(splits: pa.Table, name: str) -> int:
    return int(pc.sum(splits[name], min_count=0).as_py())
