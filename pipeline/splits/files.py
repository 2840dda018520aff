"""The files of a corpus: what a listing finds, in which format, known by which identity.

A file is known by its URI relative to the input and by its identity (an etag, or size and
times), so that a file which is written anew is a new file. Times alone are weak: a file written
twice within one tick of the clock looks unchanged. Such a file is listed only after its identity
has stood for two seconds (git's rule for racy files, waiting instead of hashing).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.errors import ChangedError, InputError, NotSupportedError
from pipeline.uris import ObjectInfo, Storage

log = logging.getLogger(__name__)

Format = Literal["parquet", "jsonl"]
Compression = Literal["gz", "zst"]

_FORMATS: dict[str, Format] = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gz", ".zst": "zst"}
# Formats to come. To skip them silently would publish a part of the corpus as the whole.
_LATER = (".csv", ".tsv", ".txt", ".bz2", ".xz", ".arrow")

SETTLED_S = 2.0
"""A weak identity counts only once it has stood this long."""
_SETTLE_ROUNDS = 15


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of the corpus as it was listed.

    Attributes:
        uri: relative to the input's root, "/"-separated.
        size: bytes.
        identity, identity_kind: as `pipeline.uris.ObjectInfo` has them.
    """

    uri: str
    size: int
    identity: str
    identity_kind: Literal["etag", "stat", "version"]

    @property
    def file_id(self) -> str:
        """32 hex digits over URI and identity: another identity is another file."""
        return hashlib.blake2b(f"{self.uri}\0{self.identity}".encode(), digest_size=16).hexdigest()

    @property
    def info(self) -> ObjectInfo:
        """As storage expects it, to refuse the file once it is another."""
        return ObjectInfo(self.uri, self.size, self.identity, self.identity_kind)


def file_format(uri: str, format: str | None) -> tuple[Format, Compression | None] | None:
    """Format and compression by suffix; `format` of the config overrides the former.

    None: the suffix says nothing Vecmill reads.

    Raises:
        NotSupportedError: a format that is to come.
    """
    name = uri.lower()
    compression = next((_COMPRESSIONS[suffix] for suffix in _COMPRESSIONS if name.endswith(suffix)), None)
    stem = name.removesuffix(f".{compression}")
    if format == "parquet":
        return "parquet", None
    if format == "jsonl":
        return "jsonl", compression
    found = next((_FORMATS[suffix] for suffix in _FORMATS if stem.endswith(suffix)), None)
    if found == "jsonl":
        return "jsonl", compression
    if found == "parquet" and compression is None:
        return "parquet", None
    if stem.endswith(_LATER):
        suffix = next(suffix for suffix in _LATER if stem.endswith(suffix))
        raise NotSupportedError(f"{suffix} files: {uri}; .parquet, .jsonl, .jsonl.gz and .jsonl.zst are")
    return None


@dataclass(frozen=True)
class Clock:
    """Time as `list_input` sees it; tests bring their own."""

    now_ns: Callable[[], int] = field(default=time.time_ns)
    sleep: Callable[[float], None] = field(default=time.sleep)


def list_input(storage: Storage, name: str | None, format: str | None, clock: Clock | None = None) -> list[InputFile]:
    """The files of the corpus, by URI.

    Args:
        storage: rooted at the input.
        name: the one file to read; None: all below the root that are not hidden (`_x`, `.x`).
        format: `input.format`: every file is taken for it; None: by suffix, others are left alone.
        clock: for tests.

    Raises:
        InputError: there is nothing to read, or a file's name is no UTF-8.
        NotSupportedError: a file in a format that is to come.
        ChangedError: a file is being written all the while.
    """
    if name is not None:
        return _single(storage, name, format, clock or Clock())
    listed = storage.list()
    visible = [info for info in listed if not _hidden(info.name)]
    chosen = [info for info in visible if file_format(info.name, format) is not None]
    if not chosen:
        raise InputError(_nothing(storage, listed, visible))
    if len(chosen) < len(visible):
        left = [info.name for info in visible if file_format(info.name, format) is None]
        log.warning("%d files are neither .parquet nor .jsonl and are not read: %s", len(left), _some(left))
    return sorted(_settled(storage, chosen, clock or Clock()), key=lambda file: file.uri)


def _single(storage: Storage, name: str, format: str | None, clock: Clock) -> list[InputFile]:
    uri = storage.full_uri(name)
    try:
        info = storage.stat(name)
    except FileNotFoundError:
        raise InputError(f"input not found: {uri}") from None
    if file_format(name, format) is None:
        raise InputError(f"{uri} is neither .parquet nor .jsonl; input.format says what it is")
    return _settled(storage, [info], clock)


def _hidden(name: str) -> bool:
    return any(part.startswith(("_", ".")) for part in name.split("/"))


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(_printable, names[:3])) + (", ..." if len(names) > 3 else "")


def _printable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def _refuse_odd_name(storage: Storage, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:  # a local name may be any bytes; ids, records and columns are UTF-8
        uri = _printable(storage.full_uri(name))
        raise InputError(f"the name of an input file is not UTF-8: {uri}; rename it") from None


def _nothing(storage: Storage, listed: Sequence[ObjectInfo], visible: Sequence[ObjectInfo]) -> str:
    if not listed:
        return f"no files at {storage.uri}; input.uri is a folder or prefix of .parquet or .jsonl files, or one file"
    if not visible:
        return f"only hidden files at {storage.uri}: {_some([info.name for info in listed])}"
    found = _some([info.name for info in visible])
    return f"no .parquet or .jsonl in {len(visible)} files at {storage.uri}: {found}; input.format tells what they are"


def _settled(storage: Storage, infos: Sequence[ObjectInfo], clock: Clock) -> list[InputFile]:
    """The files once each weak identity among them has stood for `SETTLED_S`."""
    for info in infos:
        _refuse_odd_name(storage, info.name)
    settled = [info for info in infos if not _young(info, clock)]
    waiting = [info for info in infos if _young(info, clock)]
    for _ in range(_SETTLE_ROUNDS):
        if not waiting:
            break
        clock.sleep(SETTLED_S)
        again = [_stat_again(storage, info) for info in waiting]
        settled += [new for new, old in zip(again, waiting, strict=True) if new == old]
        waiting = [new for new, old in zip(again, waiting, strict=True) if new != old]
    if waiting:
        raise ChangedError(f"still being written: {storage.full_uri(waiting[0].name)}; run again when it is complete")
    return [InputFile(info.name, info.size, info.identity, info.identity_kind) for info in settled]


def _stat_again(storage: Storage, info: ObjectInfo) -> ObjectInfo:
    try:
        return storage.stat(info.name)
    except FileNotFoundError:
        raise ChangedError(f"listed and gone a moment later: {storage.full_uri(info.name)}; run again") from None


def _young(info: ObjectInfo, clock: Clock) -> bool:
    if info.identity_kind != "stat":
        return False
    ctime_ns = int(info.identity.rsplit("-", 1)[1])
    return clock.now_ns() - ctime_ns < SETTLED_S * 1e9
