"""Rows -> documents: text by template, ids, content hashes; what is no document goes to quarantine.

All formats bring their rows here as columns (`pipeline.read.fields`), with what is wrong with a
row noted by its position; `make_documents` puts the rest together. The first thing
found wrong with a row is its reason. Nothing is repaired: a text that is not quite a text is
quarantined, since its vector would stand for something that nobody wrote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Input
from pipeline.schema import DOCUMENT_FIELDS, HASH, QUARANTINE_SCHEMA, Reason
from pipeline.splits import Split

_FIELD = re.compile(r"\{([^{}]*)\}")  # as in pipeline.config: literal text between columns


class Fault(NamedTuple):
    """Why a row is no document."""

    reason: Reason
    message: str


_UNPARSED = ("invalid_json", "invalid_csv", "not_an_object", "invalid_utf8")  # there the text is the line itself

Faults = dict[int, Fault]
"""By position in the batch."""


@dataclass
class Rows:
    """B rows of one file as columns, each an array of B.

    Attributes:
        numbers: int64: rows of the file, or byte offsets in it.
        text: the template's columns, large_string; null where a row has none.
        ids: string; None if ids are derived.
        keep: the kept columns, of their final types.
        faults: rows that are no documents, by position.
        raw: the lines as they are in the file, where rows are lines.
    """

    numbers: np.ndarray
    text: dict[str, pa.Array]
    ids: pa.Array | None
    keep: list[pa.Array]
    faults: Faults
    raw: Sequence[bytes] = field(default=())


@dataclass(frozen=True)
class Target:
    """What documents are made for: the config's words on them, and where they come from.

    Attributes:
        keep: the kept columns with their types (`pipeline.splits.check_columns`).
        quarantine_text: `store.quarantine_text`.
    """

    input: Input
    keep: pa.Schema
    file_uri: str
    quarantine_text: bool = False

    @property
    def schema(self) -> pa.Schema:
        """DOCUMENT_FIELDS and the kept columns."""
        return pa.schema([*DOCUMENT_FIELDS, *self.keep])


@dataclass(frozen=True)
class ReadSplit:
    """A split as it was read.

    Attributes:
        split: with its final range, `last`, and rows where they are known.
        documents: DOCUMENT_FIELDS and the kept columns, in the order of the input; None for a
            split that is done already.
        quarantine: QUARANTINE_SCHEMA; a row whose `row` is null stands for the whole file and is
            no document.
        num_documents: those and the quarantined ones.
        num_counted: the same, counted apart from them (Parquet: the footer; lines: newlines; CSV:
            newlines outside of quotes; Arrow: what batches say; text: the file); None if the file could
            not be read to its end.
        member_counts: of a pack both counts of each member.
    """

    split: Split
    documents: pa.Table | None
    quarantine: pa.Table
    num_documents: int
    num_counted: int | None
    member_counts: tuple[tuple[int, int | None], ...] = ()

    @property
    def num_quarantined(self) -> int:
        """Documents in quarantine; `num_documents` less the rows of `documents`, if those were made."""
        return int(self.quarantine.num_rows - self.quarantine["row"].null_count)


def make_documents(rows: Rows, target: Target) -> tuple[pa.Table, pa.Table]:
    """The documents of the rows, and the quarantine of those that are none; in order."""
    text = _join(target.input.text, rows.text, len(rows.numbers))
    blank = pc.or_(pc.equal(pc.binary_length(text), 0), pc.utf8_is_space(text))
    for position in np.flatnonzero(blank.to_numpy(zero_copy_only=False)):
        rows.faults.setdefault(int(position), Fault("empty_text", "nothing but white space after the template"))
    ids = rows.ids
    if ids is None:
        ids = _derived_ids(target.file_uri, rows.numbers)
    else:
        for position in np.flatnonzero(pc.equal(pc.binary_length(ids.fill_null("")), 0)):
            message = f"{target.input.id} is null or empty"
            rows.faults.setdefault(int(position), Fault("missing_id", message))
    good = np.ones(len(rows.numbers), dtype=bool)
    good[list(rows.faults)] = False
    mask = pa.array(good)
    text, columns = text.filter(mask), [ids, pa.array(rows.numbers), *rows.keep]
    ids, numbers, *keep = (column.filter(mask) for column in columns)
    arrays = [ids, numbers, _hashes(text), text.cast(pa.string()), *keep]
    documents = pa.Table.from_arrays(arrays, schema=target.schema)
    return documents, _quarantine(rows, target, columns[0])


def quarantined_file(file_uri: str, message: str) -> pa.Table:
    """One row for a file that cannot be read (on)."""
    return _quarantine_table([(None, file_uri, None, Fault("unreadable_file", message), None)])


def killed_range(split: Split, begin: int, keep: pa.Schema, message: str) -> ReadSplit:
    """The rest of a planned split from `begin` on, where reading it kills its process: one row for all of it."""
    streamed = split.end is None  # nobody knows where it ends, and nobody will
    rest = replace(split, begin=begin, end=begin if streamed else split.end, last=streamed or split.last)
    documents = pa.schema([*DOCUMENT_FIELDS, *keep]).empty_table()
    quarantine = _quarantine_table([(None, split.file.uri, None, Fault("killed_process", message), None)])
    return ReadSplit(replace(rest, row_begin=None, row_end=None), documents, quarantine, 0, None)


def undecodable_rows(target: Target, begin: int, end: int, message: str) -> pa.Table:
    """A row for each row [begin, end) of a Parquet file that cannot be decoded."""
    derived = target.input.id is None
    fault = Fault("undecodable_row", message)
    names = (f"{target.file_uri}#{row}" if derived else None for row in range(begin, end))
    return _quarantine_table(
        [(name, target.file_uri, row, fault, None) for name, row in zip(names, range(begin, end), strict=True)]
    )


@lru_cache(maxsize=16)
def _template(text: str) -> tuple[str, ...]:
    """Literal, column, literal, ..., literal."""
    return tuple(_FIELD.split(text))


def _join(template: str, columns: Mapping[str, pa.Array], num_rows: int) -> pa.Array:
    parts = _template(template)
    pieces = [columns[part] if i % 2 else pa.scalar(part, pa.large_string()) for i, part in enumerate(parts)]
    if len(parts) == 3 and not parts[0] and not parts[2]:
        return pieces[1].fill_null("")
    joined = pc.binary_join_element_wise(
        *pieces, pa.scalar("", pa.large_string()), null_handling="replace", null_replacement=""
    )
    assert len(joined) == num_rows
    return joined


def _derived_ids(file_uri: str, numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(f"{file_uri}#", pa.array(numbers).cast(pa.string()), "")


def _hashes(text: pa.Array) -> pa.Array:
    encoded = text.cast(pa.large_binary()).to_pylist()
    return pa.array([blake2b(value, digest_size=16).digest() for value in encoded], HASH)


_QuarantineRow = tuple[str | None, str, int | None, Fault, str | None]


def _quarantine(rows: Rows, target: Target, ids: pa.Array) -> pa.Table:
    if not rows.faults:
        return QUARANTINE_SCHEMA.empty_table()
    text = _join(target.input.text, rows.text, len(rows.numbers)) if target.quarantine_text else None
    made: list[_QuarantineRow] = []
    for position in sorted(rows.faults):
        shown = text[position].as_py() if text is not None else None
        if text is not None and rows.raw and rows.faults[position].reason in _UNPARSED:
            shown = rows.raw[position].decode(errors="replace").rstrip("\r\n")
        doc_id = ids[position].as_py() or None
        made.append((doc_id, target.file_uri, int(rows.numbers[position]), rows.faults[position], shown))
    return _quarantine_table(made)


def _quarantine_table(rows: Sequence[_QuarantineRow]) -> pa.Table:
    values = {
        "doc_id": [row[0] for row in rows],
        "input_file": [row[1] for row in rows],
        "row": [row[2] for row in rows],
        "content_hash": [None] * len(rows),
        "stage": ["read"] * len(rows),
        "reason": [row[3].reason for row in rows],
        "message": [row[3].message for row in rows],
        "text": [row[4] for row in rows],
    }
    return pa.Table.from_pydict(values, schema=QUARANTINE_SCHEMA)
