"""A sample of the documents that are left to embed: read through the reader itself, spread over all of the input.

A small input is read whole, and its documents are counted. Of a larger one blocks are read, every
k-th of all: rows of Parquet, whose number its footers tell; bytes of plain lines, where a block holds
the lines that begin in it, so that documents a byte come out without a bias towards long lines; of
what can only be streamed, the beginnings of some files. The same input gives the same sample.
"""

from __future__ import annotations

import io
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Config, SplitBounds
from pipeline.estimate.ratios import Estimate, every_kth, ratio
from pipeline.flow.rows import Work
from pipeline.read import ReadSplit, read_split
from pipeline.schema import DOCUMENT_FIELDS
from pipeline.splits import Cut, InputFile, Split
from pipeline.splits.batches import open_arrow
from pipeline.splits.streams import Source, UndecodableError, open_source, open_text
from pipeline.uris import Storage

WHOLE_BYTES = 32 * 2**20
"""An input of up to so many bytes is read whole: it takes a second or two, and its documents are then counted."""

_BLOCK_BYTES = 2**17
_BLOCK_ROWS = 256
_NUM_BLOCKS = 64
_NUM_STREAMS = 16
_STREAM_ROWS = 512
_NUM_STREAMED = 8  # pieces of `_STREAM_ROWS`
# A row group is decoded up to the rows that are wanted; huge ones may take too long for all blocks.
_MOST_S = 20.0
_FEWEST_BLOCKS = 8

# Of a compressed file, to tell how far it is compressed.
_HEAD_BYTES = 2 * 2**20
_READ_BYTES = 2**16

_SEED = 20260101


@dataclass
class Sample:
    """Documents that were read, and how many there are.

    Attributes:
        documents: DOCUMENT_FIELDS of those that are none of the quarantine's.
        weights: how many documents of the input each stands for.
        blocks: which of the blocks that were read each is from.
        block_share: how many of all blocks were read.
        num_documents: in all that is left, quarantined ones included.
        is_whole: all that is left was read.
        reasons: quarantined documents of the sample, by reason.
        read_s: what reading them took.
        num_read: documents read, quarantined ones included.
    """

    documents: pa.Table
    weights: npt.NDArray[np.float64]
    blocks: npt.NDArray[np.int64]
    block_share: float
    num_documents: Estimate
    is_whole: bool
    reasons: dict[str, int] = field(default_factory=dict)
    read_s: float = 0.0
    num_read: int = 0


@dataclass
class _Block:
    """A part of the input, and what was found in it.

    Attributes:
        size: rows, or bytes of the input as it is stored.
    """

    size: float
    documents: pa.Table
    num_documents: int
    reasons: list[str]


@dataclass(frozen=True)
class _Part:
    """What was read of splits of one kind.

    Attributes:
        share: of the blocks that there are.
    """

    blocks: list[_Block]
    num_documents: Estimate
    share: float = 1.0

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        num_read = sum(block.num_documents for block in self.blocks)
        each = self.num_documents.value / num_read if num_read else 0.0
        return np.full(sum(block.documents.num_rows for block in self.blocks), each)


def draw_sample(storage: Storage, work: Sequence[Work], config: Config, keep: pa.Schema) -> Sample:
    """Read a sample of what is left to do.

    Args:
        storage: rooted at the input.
        work: what is left (`pipeline.planning.Plan`).
        keep: the kept columns, as planned.

    Raises:
        EnvironmentFault: storage failed, or a file is another by now.
    """
    started = time.monotonic()
    reader = _Reader(storage, config, keep)
    # What is in a small file has nothing to do with what it is packed with.
    work = [replace(item, split=split) for item in work for split in item.split.members or (item.split,)]
    is_whole = sum(item.split.num_bytes for item in work) <= WHOLE_BYTES
    # What a byte holds differs by format: one estimate for each.
    groups: dict[tuple[str, str], list[Work]] = {}
    for item in work:
        groups.setdefault((_kind(item.split), item.split.format), []).append(item)
    made = [reader.whole(items) if is_whole else reader.part(kind, items) for (kind, _), items in groups.items()]
    blocks = [block for part in made for block in part.blocks]
    tables = [block.documents for block in blocks]
    reasons = [reason for block in blocks for reason in block.reasons]
    return Sample(
        documents=pa.concat_tables([pa.schema(DOCUMENT_FIELDS).empty_table(), *tables]),
        weights=np.concatenate([np.zeros(0), *(part.weights for part in made)]),
        blocks=np.repeat(np.arange(len(blocks)), [table.num_rows for table in tables]),
        block_share=min((part.share for part in made), default=1.0),
        num_documents=sum((part.num_documents for part in made), Estimate(0.0)),
        is_whole=is_whole,
        reasons={reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
        read_s=time.monotonic() - started,
        num_read=sum(block.num_documents for block in blocks),
    )


def _kind(split: Split) -> str:
    if split.unreadable is not None or split.end is None:
        return "streamed"
    return "rows" if split.in_rows else "bytes"


def _left(item: Work) -> float:
    """The share of a planned split that no record covers; 1 where its end is not known."""
    size = _size(item.split)
    return max(0.0, 1 - sum(end - begin for begin, end, _ in item.done) / size) if size > 0 else 1.0


@dataclass
class _Reader:
    storage: Storage
    config: Config
    keep: pa.Schema

    def whole(self, items: Sequence[Work]) -> _Part:
        """All that is left."""
        blocks = [self._block(self._pieces(item.split, self.config.splits, item.done)) for item in items]
        return _Part(blocks, Estimate(sum(block.num_documents for block in blocks)))

    def part(self, kind: str, items: Sequence[Work]) -> _Part:
        """A part of what is left, and an estimate of the number of its documents."""
        if kind == "streamed":
            return self._beginnings(items)
        parts = [part for item in items for part in _parts(item.split)]
        chosen = every_kth(np.ones(len(parts)), _NUM_BLOCKS, 0.5)
        blocks: list[_Block] = []
        started = time.monotonic()
        for index in np.random.default_rng(_SEED).permutation(chosen):
            if len(blocks) >= _FEWEST_BLOCKS and time.monotonic() - started > _MOST_S:
                break
            split = parts[index]
            blocks.append(self._block(self._pieces(split, self.config.splits), _size(split)))
        size_left = sum(_size(item.split) * _left(item) for item in items)
        share = len(blocks) / len(parts)
        if kind == "rows":
            return _Part(blocks, Estimate(size_left), share)
        return _Part(blocks, _per_size(blocks, share) * size_left, share)

    def _beginnings(self, items: Sequence[Work]) -> _Part:
        bounds = SplitBounds(max_rows=_STREAM_ROWS, max_bytes=self.config.splits.max_bytes)
        blocks: list[_Block] = []
        num_stored = 0.0
        for index in every_kth(np.ones(len(items)), _NUM_STREAMS, 0.5):
            split = items[index].split
            pieces = list(islice(self._pieces(split, bounds), _NUM_STREAMED))
            end = pieces[-1].split.end
            if pieces[-1].split.last or not end:
                size, end = float(split.file.size), max(1, end or 0)
            else:
                size = stored_bytes(self.storage, split, end)
            num_stored += size
            blocks += [self._block(iter([piece]), size * _size(piece.split) / end) for piece in pieces]
        total = sum(item.split.file.size for item in items)
        share = min(1.0, num_stored / max(1, total))
        return _Part(blocks, _per_size(blocks, share) * total, share)

    def _pieces(self, split: Split, bounds: SplitBounds, done: Collection[Cut] = ()) -> Iterator[ReadSplit]:
        return read_split(self.storage, split, self.config.input, self.keep, bounds, done=done)

    def _block(self, pieces: Iterator[ReadSplit], size: float = 0.0) -> _Block:
        tables, reasons, num_documents = [pa.schema(DOCUMENT_FIELDS).empty_table()], [], 0
        for piece in pieces:
            if piece.documents is None:
                continue  # recorded by an earlier run
            num_documents += piece.num_documents
            tables.append(piece.documents.select([each.name for each in DOCUMENT_FIELDS]))
            reasons += piece.quarantine["reason"].filter(pc.is_valid(piece.quarantine["row"])).to_pylist()
        return _Block(size, pa.concat_tables(tables), num_documents, reasons)


def _per_size(blocks: Sequence[_Block], share: float) -> Estimate:
    return ratio([block.num_documents for block in blocks], [block.size for block in blocks], share)


def _size(split: Split) -> int:
    return (split.end or 0) - split.begin


def _parts(split: Split) -> list[Split]:
    """A range in blocks of about equal size."""
    size, step = _size(split), _BLOCK_BYTES
    if split.in_rows:
        step = max(1, min(_BLOCK_ROWS, size * _BLOCK_BYTES // max(split.num_bytes, 1)))
    num = max(1, -(-size // step))
    edges = [split.begin + i * size // num for i in range(num + 1)]
    return [
        replace(split, begin=begin, end=end, last=bool(split.last) and end == split.end)
        for begin, end in pairwise(edges)
    ]


def stored_bytes(storage: Storage, split: Split, end: int) -> float:
    """How many bytes of a file, as it is stored, hold what is before `end`: rows of Arrow, bytes of decompressed text.

    Of text it is measured on the beginning, cut off: how far a decompressor has read of a whole file says little, it
    reads ahead. Of Arrow on as many batches.
    """
    file, compression = split.file, split.compression
    if split.in_rows:
        return _arrow_bytes(storage, file, end)
    if compression is None:
        return float(end)
    head = storage.read_range(file.uri, 0, _HEAD_BYTES, expect=file.info)
    reader = open_text(Source(io.BytesIO(head), storage.full_uri(file.uri)), compression)
    num_found = 0
    try:
        while data := reader.read(_READ_BYTES):
            num_found += len(data)
    except UndecodableError:
        pass  # where it was cut off
    return end * len(head) / num_found if num_found else float(file.size)


def _arrow_bytes(storage: Storage, file: InputFile, num_rows: int) -> float:
    num_read = 0
    with open_source(storage, file) as source:
        try:
            for batch in open_arrow(source).batches:
                num_read += batch.num_rows
                # What a buffer has read ahead is little beside the head.
                if num_read >= num_rows and source.tell() >= _HEAD_BYTES:
                    return float(source.tell() * num_rows / num_read)
        except UndecodableError:
            pass
    return float(file.size * num_rows / max(num_rows, num_read))
