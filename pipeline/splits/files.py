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
from typing import Literal, cast

from pipeline.errors import ChangedError, InputError
from pipeline.uris import InputEntry, ObjectInfo, Storage

log = logging.getLogger(__name__)

Format = Literal["parquet", "jsonl", "csv", "tsv", "text", "lines", "arrow"]
Compression = Literal["gz", "zst", "bz2", "xz"]

_FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gz", ".zst": "zst", ".bz2": "bz2", ".xz": "xz"}
# They have compression of their own, within.
_NEVER_COMPRESSED: tuple[Format, ...] = ("parquet", "arrow")
_READ = ".parquet, .jsonl, .csv, .tsv, .txt or .arrow"
# What Hugging Face's save_to_disk writes beside the data.
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")

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

    None: the suffix says nothing Vecmill reads. `lines` is never told by a suffix: .txt is a document a file.
    """
    name = uri.lower()
    compression = next((_COMPRESSIONS[suffix] for suffix in _COMPRESSIONS if name.endswith(suffix)), None)
    stem = name.removesuffix(f".{compression}")
    found = cast(Format | None, format) or next((_FORMATS[each] for each in _FORMATS if stem.endswith(each)), None)
    if found is None or (compression is not None and found in _NEVER_COMPRESSED):
        return (found, None) if found is not None and format is not None else None
    return found, compression


def is_streamed(format: Format, compression: Compression | None) -> bool:
    """Whether a file is planned as one range without a known end, which the reader cuts while it streams."""
    return format in ("csv", "tsv", "arrow") or (compression is not None and format in ("jsonl", "lines"))


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
        ChangedError: a file is being written all the while.
    """
    folder, _, file = (name or "").rpartition("/")
    return list_entries(storage, [InputEntry(storage.full_uri(name or ""), folder, file or None)], format, clock)


def list_entries(
    storage: Storage, entries: Sequence[InputEntry], format: str | None, clock: Clock | None = None
) -> list[InputFile]:
    """The files that any of the entries names, by URI, each once; arguments and errors as `list_input`."""
    found: dict[str, ObjectInfo] = {}
    left: list[str] = []
    for entry in entries:
        if entry.name is not None:
            found[entry.file] = _single(storage, entry.file, format)
            continue
        listed = [info for info in storage.list(entry.folder) if entry.matches(info.name)]
        visible = [info for info in listed if not _hidden(entry.within(info.name))]
        chosen = [info for info in visible if file_format(info.name, format) is not None]
        if not chosen:
            raise InputError(_nothing(_shown(storage, entry), listed, visible))
        found |= {info.name: info for info in chosen}
        left += [info.name for info in visible if file_format(info.name, format) is None]
    left = [name for name in left if name.rpartition("/")[2] not in _DESCRIPTIONS]
    if left:
        log.warning("%d files are not %s and are not read: %s", len(left), _READ, _some(left))
    return sorted(_settled(storage, list(found.values()), clock or Clock()), key=lambda file: file.uri)


def _shown(storage: Storage, entry: InputEntry) -> str:
    name = entry.folder if entry.pattern is None else f"{entry.folder}/{entry.pattern}"
    return storage.full_uri(name.strip("/"))


def _single(storage: Storage, name: str, format: str | None) -> ObjectInfo:
    uri = storage.full_uri(name)
    try:
        info = storage.stat(name)
    except FileNotFoundError:
        raise InputError(f"input not found: {uri}") from None
    if file_format(name, format) is None:
        raise InputError(f"{uri} is not {_READ}; input.format says what it is")
    return info


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


def _nothing(uri: str, listed: Sequence[ObjectInfo], visible: Sequence[ObjectInfo]) -> str:
    if not listed:
        return f"no files at {uri}; input.uri is a folder or prefix of {_READ} files, or one file"
    if not visible:
        return f"only hidden files at {uri}: {_some([info.name for info in listed])}"
    found = _some([info.name for info in visible])
    return f"no {_READ} in {len(visible)} files at {uri}: {found}; input.format tells what they are"


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
