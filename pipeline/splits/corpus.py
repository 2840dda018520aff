"""The corpus: what `input.uri` names, as one root and the files below it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from pipeline.config import Input, redact_uri
from pipeline.errors import InputError
from pipeline.splits.files import Clock, InputFile, list_entries
from pipeline.uris import InputEntry, Storage, open_inputs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Where the input is.

    Attributes:
        source: rooted at the longest folder that all entries have in common; document ids are relative to it.
        entries: of `input.uri`, below it.
        format: `input.format`.
    """

    source: Storage
    entries: tuple[InputEntry, ...]
    format: str | None

    @classmethod
    def open(cls, input: Input) -> Corpus:
        """That of a config.

        Raises:
            InputError: the entries have no folder in common.
            NotSupportedError, UsageError: as `Storage`.
        """
        source, entries = open_inputs(input.uris, input.storage_options)
        if len(entries) > 1:
            where = redact_uri(source.uri)
            log.info("document ids are relative to %s, which all %d entries of input.uri lie in", where, len(entries))
        return cls(source, entries, input.format)

    @property
    def root(self) -> str:
        """Its URI, as a store remembers it: of a single file the file's own."""
        if len(self.entries) == 1 and self.entries[0].name is not None:
            return self.source.full_uri(self.entries[0].file)
        return self.source.uri

    @property
    def read_uris(self) -> tuple[str, ...]:
        """The folders and files that are looked into; nothing else below the root is."""
        return tuple(self.source.full_uri(one.folder if one.name is None else one.file) for one in self.entries)

    def list(self, clock: Clock | None = None) -> list[InputFile]:
        """The files as they are now, by URI; one that several entries name counts once.

        Raises:
            InputError: an entry names nothing that can be read, or a file's name is no UTF-8.
            ChangedError: a file is being written all the while.
        """
        try:
            return list_entries(self.source, self.entries, self.format, clock)
        except FileNotFoundError as error:
            raise InputError(f"{error}; give input.uri a bucket that there is") from None
