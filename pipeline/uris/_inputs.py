"""What `input.uri` names: folders, files, globs, and lists of those, below one root."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

from fsspec.utils import glob_translate

from pipeline.config import redact_uri
from pipeline.errors import ConfigError, InputError
from pipeline.uris._addresses import Address, common_folder

if TYPE_CHECKING:
    from pipeline.uris import Storage

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class InputEntry:
    """One entry of `input.uri`: a folder, and what is taken of it.

    Attributes:
        uri: as it was given.
        folder: below the input's root; "" is the root itself.
        name: the one file in it.
        pattern: a glob over what is in it; a folder that matches is taken whole. With neither, all is taken.
    """

    uri: str
    folder: str = ""
    name: str | None = None
    pattern: str | None = None

    @property
    def file(self) -> str:
        """The one file, below the root."""
        return f"{self.folder}/{self.name}" if self.folder else str(self.name)

    def matches(self, name: str) -> bool:
        """Whether a name below the root is meant; those below hidden folders are the caller's to leave out."""
        if self.pattern is None:
            return self.name is None or name == self.file
        return _regex(self.pattern).match(self.within(name)) is not None

    def within(self, name: str) -> str:
        """A name below the root as one below the folder."""
        return name[len(self.folder) + 1 :] if self.folder else name


def _regex(pattern: str) -> re.Pattern[str]:
    translated: str = glob_translate(pattern)
    return re.compile(translated.removesuffix(r"\Z") + r"(?:/.*)?\Z", re.DOTALL)


def open_inputs(
    uris: Sequence[str], options: Mapping[str, Any] | None = None
) -> tuple[Storage, tuple[InputEntry, ...]]:
    """The input's root, which is the longest folder that all entries have in common, and the entries.

    A local name that is there counts as it is, whatever it holds; on the web a glob is none.

    Raises:
        InputError: entries have no folder in common.
        ConfigError: a glob that cannot be read.
        NotSupportedError, UsageError: as `Storage`.
    """
    from pipeline.uris import Storage

    found = [_entry(uri, options) for uri in uris]
    root = reduce(lambda one, other: _common(one, other, uris), [address for address, _, _ in found])
    entries = [
        InputEntry(uri, address.path[len(root.path) :].strip("/"), name, pattern)
        for uri, (address, name, pattern) in zip(uris, found, strict=True)
    ]
    return Storage(root.uri, options), tuple(entries)


def _common(one: Address, other: Address, uris: Sequence[str]) -> Address:
    common = common_folder(one, other)
    if common is None or (common.scheme and common.anchor.endswith(":/") and not common.path and one != other):
        raise InputError(
            f"input.uri: {redact_uri(one.uri)} and {redact_uri(other.uri)}, of {len(uris)} entries, have no folder in "
            "common to which document ids could be relative; give each its own store"
        )
    return common


def _entry(uri: str, options: Mapping[str, Any] | None) -> tuple[Address, str | None, str | None]:
    """Folder, name of the one file, glob."""
    from pipeline.uris import Storage, split_input_uri

    address = Address.parse(uri)
    if not _MAGIC.search(address.path) or address.is_web or (not address.anchor and Storage(address.uri).exists()):
        storage, name = split_input_uri(uri, options)
        return storage.address, name, None
    parts = address.path.split("/")
    num_plain = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
    pattern = "/".join(parts[num_plain:])
    try:
        _regex(pattern)
    except (re.error, ValueError) as error:
        raise ConfigError(f"input.uri: {redact_uri(uri)} is no glob: {error}") from None
    return address._replace(path="/".join(parts[:num_plain])), None, pattern
