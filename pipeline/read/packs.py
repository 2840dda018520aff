"""A planned pack of small files -> packs that become splits, and their documents.

Each member is read by the reader of its format, as if it stood alone. A piece ends before the
member that would put it over a bound. A member that alone is more than a split holds, which its
size did not tell, is no part of a pack: its splits are those that it would have had anyway.

On object storage members are read ahead in a few threads: a small file is one round trip, and a
thousand of them one after another would be half a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pyarrow as pa

from pipeline.config import SplitBounds
from pipeline.errors import ChangedError
from pipeline.parallel import map_ahead
from pipeline.read.documents import ReadSplit, killed_range
from pipeline.splits import Split, pack_of
from pipeline.splits.packs import row_keys

_THREADS = 16

Reader = Callable[[Split], Iterator[ReadSplit]]


@dataclass(frozen=True)
class Suspicion:
    """How a pack is read that has killed its process.

    Attributes:
        before: called with the number of each member before it is read.
        fatal: members that are not read any more.
        message: what is said of those.
    """

    before: Callable[[int], None]
    fatal: Collection[int]
    message: str


def read_pack(
    split: Split, read: Reader, keep: pa.Schema, bounds: SplitBounds, *, is_local: bool, suspicion: Suspicion | None
) -> Iterator[ReadSplit]:
    """The pieces of a planned pack, in order; rows are numbered as `pipeline.splits.packs` says.

    Args:
        read: reads the whole split of one file.
        keep: the kept columns with their types.
        is_local: whether members are read one after another, since nothing is gained by threads.
        suspicion: for a pack that has killed its process; then too members are read one after another.

    Raises:
        ChangedError: a member is another by now; its `file_uri` says which.
    """
    if suspicion is not None:
        begun = _under_suspicion(split, read, keep, suspicion)
    elif is_local:
        begun = (_begin(member, read) for member in split.members)
    else:
        begun = _ahead(split, read)
    piece = _Piece(0)
    for number, (first, rest) in enumerate(begun):
        made = _numbered(number, first)
        if first.split.last is False:
            if piece.members:
                yield piece.close()
            piece = _Piece(number + 1)
            yield made
            yield from (_numbered(number, more) for more in rest)
            continue
        if piece.members and not piece.fits(made, bounds):
            yield piece.close()
            piece = _Piece(number)
        piece.add(made)
    if piece.members:
        yield piece.close()


@dataclass
class _Piece:
    """Members that become one split, and where they begin in what was planned."""

    begin: int
    members: list[ReadSplit] = field(default_factory=list)
    num_rows: int = 0
    num_bytes: int = 0

    def fits(self, made: ReadSplit, bounds: SplitBounds) -> bool:
        rows, num_bytes = self.num_rows + made.num_documents, self.num_bytes + _num_bytes(made)
        return rows <= bounds.num_rows and num_bytes <= bounds.max_bytes

    def add(self, made: ReadSplit) -> None:
        self.members.append(made)
        self.num_rows += made.num_documents
        self.num_bytes += _num_bytes(made)

    def close(self) -> ReadSplit:
        if len(self.members) == 1:
            return self.members[0]
        counts = [(member.num_documents, member.num_counted) for member in self.members]
        known = [counted for _, counted in counts if counted is not None]
        return ReadSplit(
            pack_of([member.split for member in self.members], self.begin),
            pa.concat_tables([member.documents for member in self.members if member.documents is not None]),
            pa.concat_tables([member.quarantine for member in self.members]),
            sum(num for num, _ in counts),
            sum(known) if len(known) == len(counts) else None,
            tuple(counts),
        )


def _num_bytes(made: ReadSplit) -> int:
    text = made.documents["text"].nbytes if made.documents is not None else 0
    return max(made.split.num_bytes, text)


_Begun = tuple[ReadSplit, Iterator[ReadSplit]]


def _begin(member: Split, read: Reader) -> _Begun:
    """The first piece of a member, which is nearly always all of it, and the others."""
    pieces = _watched(member, read(member))
    return next(pieces), pieces


def _watched(member: Split, pieces: Iterator[ReadSplit]) -> Iterator[ReadSplit]:
    try:
        yield from pieces
    except ChangedError as error:
        error.file_uri = member.file.uri
        raise


def _under_suspicion(split: Split, read: Reader, keep: pa.Schema, suspicion: Suspicion) -> Iterator[_Begun]:
    for number, member in enumerate(split.members):
        if number in suspicion.fatal:
            yield killed_range(member, 0, keep, suspicion.message), iter(())
            continue
        suspicion.before(number)
        yield _begin(member, read)


def _ahead(split: Split, read: Reader) -> Iterator[_Begun]:
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from map_ahead(pool, lambda member: _begin(member, read), split.members, _THREADS)


def _numbered(number: int, made: ReadSplit) -> ReadSplit:
    documents = made.documents
    assert documents is not None, "what is done of a file keeps it out of a pack"
    return replace(made, documents=_with_keys(number, documents), quarantine=_with_keys(number, made.quarantine))


def _with_keys(number: int, table: pa.Table) -> pa.Table:
    index = table.schema.get_field_index("row")
    return table.set_column(index, table.schema.field(index), row_keys(number, table["row"]))
