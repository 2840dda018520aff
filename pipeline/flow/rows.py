"""A Ray row is a split: how a split's documents travel between stages as one row.

A row holds two JSON strings and two nested Arrow lists (offsets + values):

    split        str                the Split, as planned or as the reader cut it
    report       str                a SplitReport: what happened to it so far
    documents    list<struct<...>>  sequences after read, embeddings after encode; one element a chunk
    quarantine   list<struct<...>>  QUARANTINE_SCHEMA

Packing and unpacking copy nothing: `flatten` gives back the child array of the list.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from pipeline.flow.ledger import FIRST_TRIAL, Trial
from pipeline.schema import QUARANTINE_SCHEMA
from pipeline.snapshots.records import Record
from pipeline.splits import Cut, Split

Status = Literal["ok", "done", "failed"]


@dataclass(frozen=True, slots=True)
class SplitReport:
    """What happened to one split so far; small enough for the driver to read for each."""

    status: Status = "ok"
    """done: recorded by an earlier run, nothing made; failed: see `error`."""
    error: str = ""
    exit_code: int = 0
    changed: bool = False
    """failed because the input is no longer what was listed: plan it again."""
    changed_uri: str = ""
    """Of a pack the file that it was."""
    num_documents: int = 0
    num_counted: int | None = 0
    member_counts: tuple[tuple[int, int | None], ...] = ()
    """Of a pack both counts of each member."""
    num_padded_tokens: int = 0
    compute: str = ""
    generation: int = 0
    """Of the record that the split gets."""
    trial: Trial = FIRST_TRIAL
    """The attempt that it is part of."""
    read_s: float = 0.0
    encode_s: float = 0.0
    encoder_peak_bytes: int = 0
    """The most memory that its encoder has taken so far."""
    write_s: float = 0.0

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SplitReport:
        """The report that `to_json` wrote."""
        value: dict[str, Any] = json.loads(text)
        counts = tuple((num, counted) for num, counted in value["member_counts"])
        return cls(**{**value, "trial": Trial(**value["trial"]), "member_counts": counts})


@dataclass(frozen=True)
class Row:
    """One split on its way, unpacked."""

    split: Split
    report: SplitReport
    documents: pa.Table
    quarantine: pa.Table = field(default_factory=QUARANTINE_SCHEMA.empty_table)

    def pack(self) -> pa.Table:
        """As a table of one row."""
        return pa.table(
            {
                "split": [self.split.to_json()],
                "report": [self.report.to_json()],
                "documents": _nest(self.documents),
                "quarantine": _nest(self.quarantine),
            }
        )

    @classmethod
    def unpack(cls, table: pa.Table) -> Row:
        """The row of a table of one row (see `pack`)."""
        return cls(
            split=Split.from_json(table.column("split")[0].as_py()),
            report=SplitReport.from_json(table.column("report")[0].as_py()),
            documents=_flatten(table.column("documents")),
            quarantine=_flatten(table.column("quarantine")),
        )


@dataclass(frozen=True, slots=True)
class Work:
    """What goes into the flow: a planned split, and which splits of it are recorded."""

    split: Split
    done: frozenset[Cut] = frozenset()
    generation: int = 0
    """Of the records to be made: above those that are there where quarantined documents are tried again."""

    trial: Trial = FIRST_TRIAL

    def to_item(self) -> dict[str, Any]:
        """As a row of the source."""
        return {
            "split": self.split.to_json(),
            "done": json.dumps(sorted(self.done)),
            "generation": self.generation,
            "trial": json.dumps(dataclasses.asdict(self.trial)),
        }

    @classmethod
    def from_batch(cls, batch: pa.Table) -> list[Work]:
        """Of the rows of a source batch."""
        return [
            cls(
                Split.from_json(row["split"]),
                frozenset((begin, end, last) for begin, end, last in json.loads(row["done"])),
                row["generation"],
                Trial(**json.loads(row["trial"])),
            )
            for row in batch.to_pylist()
        ]


@dataclass(frozen=True, slots=True)
class Written:
    """What comes out of the flow: what happened to a split, and its record if it has one now."""

    split: Split
    report: SplitReport
    record: Record | None

    def pack(self) -> pa.Table:
        """As a table of one row."""
        return pa.table(
            {
                "split": [self.split.to_json()],
                "report": [self.report.to_json()],
                "record": [self.record.to_json().decode() if self.record else ""],
            }
        )

    @classmethod
    def unpack(cls, row: Mapping[str, str]) -> Written:
        """Of one row as a mapping."""
        return cls(
            Split.from_json(row["split"]),
            SplitReport.from_json(row["report"]),
            Record.from_json(row["record"]) if row["record"] else None,
        )


def _nest(table: pa.Table) -> pa.Array:
    struct = table.combine_chunks().to_struct_array()
    children = struct.combine_chunks() if isinstance(struct, pa.ChunkedArray) else struct
    return pa.ListArray.from_arrays(pa.array([0, len(children)], pa.int32()), children)


def _flatten(column: pa.ChunkedArray) -> pa.Table:
    # .flatten(), not .values: the latter ignores the offset of a sliced block.
    children = column.chunk(0).flatten()
    return pa.Table.from_arrays(children.flatten(), schema=pa.schema(list(children.type)))
