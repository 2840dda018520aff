"""A range of a file -> splits of it and their documents, with ids and content hashes; a quarantine of what is none.

    documents   rows as columns -> documents: template, ids, hashes, quarantine
    columns     a file's columns -> text, ids, kept columns in their types
    fields      the columns that names of the config mean, of batches and of parsed lines
    parquet     a range of rows: row groups, or one large one that is cut while it streams
    arrow       a file of Arrow, cut while it streams; with parquet it shares `batches`
    lines       a range of bytes, or a compressed file, cut while it streams; for the three that follow
    jsonl       lines that are objects
    delimited   CSV and TSV: rows that may be several lines; a file is one range
    plain       lines that are documents, and files that are one each
    packs       many small files, each by its own reader

Rows never raise: what cannot be decoded is quarantined, with its reason. Storage does raise: a
store that did not answer must not look like a corpus that lost documents.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pyarrow as pa

from pipeline.config import Input, SplitBounds
from pipeline.read.arrow import read_arrow
from pipeline.read.delimited import read_csv
from pipeline.read.documents import ReadSplit, Target
from pipeline.read.jsonl import read_jsonl
from pipeline.read.packs import Suspicion, read_pack
from pipeline.read.parquet import read_parquet
from pipeline.read.plain import read_lines, read_text
from pipeline.splits import Cut, Split
from pipeline.uris import Storage

__all__ = ["ReadSplit", "Suspicion", "read_split"]

_READERS = {
    "parquet": read_parquet,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "tsv": read_csv,
    "text": read_text,
    "lines": read_lines,
    "arrow": read_arrow,
}


def read_split(
    storage: Storage,
    split: Split,
    input: Input,
    keep: pa.Schema,
    bounds: SplitBounds,
    *,
    done: Collection[Cut] = frozenset(),
    quarantine_text: bool = False,
    suspicion: Suspicion | None = None,
) -> Iterator[ReadSplit]:
    """The splits of a planned range, in order, with their documents; mostly it is one split as it is.

    They tile the range, none of them of more than `bounds.num_rows` rows. The same file, range and
    bounds are cut alike, whatever is `done`.

    Args:
        storage: rooted at the input.
        split: the range, from `pipeline.splits`.
        keep: the kept columns with their types, from `pipeline.splits.check_columns`.
        bounds: where the range is cut.
        done: splits that are done: yielded without documents, hardly read if that can be helped.
        quarantine_text: `store.quarantine_text`.
        suspicion: how to read a pack that has killed its process.

    Raises:
        EnvironmentFault: storage failed; ChangedError: the file is not the one that was listed.
        InputError: a file of Parquet, Arrow or CSV lacks a column that the config names.
    """
    if split.members:

        def read_member(member: Split) -> Iterator[ReadSplit]:
            return read_split(storage, member, input, keep, bounds, quarantine_text=quarantine_text)

        yield from read_pack(split, read_member, keep, bounds, is_local=storage.is_local, suspicion=suspicion)
        return
    target = Target(input, keep, split.file.uri, quarantine_text)
    yield from _READERS[split.format](storage, split, target, bounds, done)
