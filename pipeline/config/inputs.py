"""The section `input`: what is read, and how a row becomes a document."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.errors import ConfigError
from pipeline.schema import RESERVED_COLUMNS

_FIELD = re.compile(r"\{([^{}]*)\}")


class Section(BaseModel):
    """A section of the config."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Csv(Section):
    """How CSV and TSV are written. The first row names the columns."""

    delimiter: str | None = None
    """One character; None: a comma, of TSV a tab."""
    quote: str | None = '"'
    """One character around values that hold the delimiter; within them it stands twice. None: values have none."""
    encoding: str = "utf-8"
    """As Python names it. Bytes that are not of it quarantine their row."""
    multiline: bool = True
    """Whether newlines within quotes are part of the value. If none are, a quote that is not closed costs one row."""

    @model_validator(mode="after")
    def _usable(self) -> Csv:
        for name, value in (("delimiter", self.delimiter), ("quote", self.quote)):
            if value is not None and (len(value) != 1 or not value.isascii() or value in "\r\n\0"):
                raise ConfigError(f"input.csv.{name}: must be one ASCII character, and no newline, got {value!r}")
        if self.quote is not None and self.quote == self.delimiter:
            raise ConfigError(f"input.csv: delimiter and quote are both {self.quote!r}")
        try:
            is_known = "".encode(self.encoding) is not None  # refuses what is no encoding of text, such as rot13
        except LookupError:
            is_known = False
        if not is_known:
            raise ConfigError(
                f"input.csv.encoding: no encoding {self.encoding!r}; write it as Python does, such as cp1252"
            )
        return self


class Input(Section):
    """What is read."""

    uri: str | tuple[str, ...]
    """A folder, an object-storage prefix, one file, a glob of those, or a list of them."""
    format: Literal["parquet", "jsonl", "csv", "tsv", "text", "lines", "arrow"] | None = None
    """None: by suffix."""
    id: str | None = None
    """The column with the document's id; None: derived from file and position."""
    text: str = "{text}"
    """A template over columns; a null column is empty."""
    csv: Csv = Csv()
    keep: tuple[str, ...] = ()
    """Columns carried through to the shards, with their types."""
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False)

    @field_validator("uri")
    @classmethod
    def _not_empty(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or not all(value):
            raise ConfigError("input.uri is empty; give a folder, a prefix, a file, a glob, or a list of those")
        return value

    @model_validator(mode="after")
    def _usable(self) -> Input:
        if not self.text_columns:
            raise ConfigError(f"input.text: {self.text!r} names no column; write it as '{{title}} {{body}}'")
        for name in self.text_columns:
            if not name.strip():
                raise ConfigError(f"input.text: {self.text!r} has empty braces; name a column in them")
        for name in self.keep:
            if name in RESERVED_COLUMNS:
                raise ConfigError(
                    f"input.keep: {name} is the name of a column that every shard has; rename it in the input"
                )
        if len(set(self.keep)) < len(self.keep):
            raise ConfigError(f"input.keep names a column twice: {', '.join(self.keep)}")
        return self

    @property
    def uris(self) -> tuple[str, ...]:
        """All entries."""
        return (self.uri,) if isinstance(self.uri, str) else self.uri

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that the template names, in order, each once."""
        return tuple(dict.fromkeys(_FIELD.findall(self.text)))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the config names, each once: only those are read, and count as size."""
        return tuple(dict.fromkeys([*self.text_columns, *([self.id] if self.id else []), *self.keep]))
