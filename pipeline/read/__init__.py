"""A split -> its documents, with ids and content hashes, and a quarantine of what is none.

    documents   rows as columns -> documents: template, ids, hashes, quarantine
    columns     a file's columns -> text, ids, kept columns in their types
    parquet     a range of rows
    jsonl       a byte range, or a compressed file that is cut while it streams

Rows never raise: what cannot be decoded is quarantined, with its reason. Storage does raise: a
store that did not answer must not look like a corpus that lost documents.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pyarrow as pa

from pipeline.config import Input, SplitBounds
from pipeline.read.documents import ReadSplit, Target
from pipeline.read.jsonl import read_range, read_stream
from pipeline.read.parquet import read_parquet
from pipeline.splits import Split
from pipeline.uris import Storage

__all__ = ["ReadSplit", "read_split"]


def read_split(
    storage: Storage,
    split: Split,
    input: Input,
    keep: pa.Schema,
    bounds: SplitBounds,
    *,
    done: Collection[tuple[int, int]] = frozenset(),
    quarantine_text: bool = False,
) -> Iterator[ReadSplit]:
    """The documents of a split: one `ReadSplit`, or of a streamed file many, in order.

    Args:
        storage: rooted at the input.
        keep: the kept columns with their types, from `pipeline.splits.check_columns`.
        bounds: where a streamed file is cut; the same bounds cut alike.
        done: ranges of a streamed file that are done: yielded without documents.
        quarantine_text: `store.quarantine_text`.

    Raises:
        EnvironmentFault: storage failed; ChangedError: the file is not the one that was listed.
        InputError: a Parquet file lacks a column that the config names.
    """
    target = Target(input, keep, split.file.uri, quarantine_text)
    if split.format == "parquet":
        yield read_parquet(storage, split, target)
    elif split.end is not None:
        yield read_range(storage, split, target)
    else:
        yield from read_stream(storage, split, target, bounds, done)
