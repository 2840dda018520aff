"""Columns are checked before any work: those that the config names must be there, and of use.

Kept columns get their types here, once for the whole corpus: of Parquet and Arrow the files' own, of
JSONL what most of the first lines hold, of paths what all of them allow; CSV and plain text have
nothing but text, which is read into the type that others have. They are types that Parquet gives
back as they are, since the next run takes them from a shard. A type is taken only once: given the
types of the snapshot before, new files are read into those, and lines are not looked at.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from pipeline.config import Input, SplitBounds
from pipeline.errors import InputError
from pipeline.splits.files import InputFile, file_format
from pipeline.splits.footers import Footer, read_head
from pipeline.splits.names import MISSING, partition_type, partitions, value_at
from pipeline.splits.plan import Split, plan_file, plan_parquet
from pipeline.splits.streams import UndecodableError, open_source, open_text
from pipeline.uris import Storage

_SAMPLE_BYTES = 2**20
_MAX_SAMPLED_FILES = 16
_MAX_LINE_BYTES = 2**30  # what the reader takes for a line
# Footers are small requests: what counts is how many are under way.
_NUM_THREADS = 16


def plan_files(
    storage: Storage,
    files: Sequence[InputFile],
    input: Input,
    bounds: SplitBounds,
    known: pa.Schema | None = None,
) -> tuple[list[Split], pa.Schema]:
    """`plan_file` of all files and `check_columns`, opening each file once at most.

    Returns the splits in the order of the files, and the kept columns. Errors as those two.

    Args:
        known: as `check_columns`.
    """
    kinds = [_kind(file, input) for file in files]
    headed = [file for file, kind in zip(files, kinds, strict=True) if kind != "jsonl"]
    lines = [file for file, kind in zip(files, kinds, strict=True) if kind == "jsonl"]
    planned: dict[str, list[Split]] = {}
    types_seen = _TypesSeen(input, known)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for file, footer in zip(headed, pool.map(lambda f: read_head(storage, f, input), headed), strict=True):
            types_seen.add_footer(file, footer)
            if _kind(file, input) == "parquet":
                planned[file.uri] = plan_parquet(file, footer, bounds)
    if known is None:
        _sample_jsonl(storage, lines, types_seen)
    types_seen.add_paths(files)
    for file in files:
        if file.uri not in planned:
            planned[file.uri] = plan_file(storage, file, bounds, input.format)
    return [split for file in files for split in planned[file.uri]], types_seen.schema()


def check_columns(
    storage: Storage, files: Sequence[InputFile], input: Input, known: pa.Schema | None = None
) -> pa.Schema:
    """The kept columns with their types, all columns that the config names having been found.

    Of Parquet each file's footer is read, of Arrow its schema, of CSV its header, of JSONL up to 1 MiB
    of the first file with lines. Files that cannot be read are passed over: the reader quarantines them.

    Args:
        known: the kept columns of the snapshot before, none of them maybe; their types stay if new
            files allow it. Lines are not sampled then: of a few new ones no judgement about columns
            can be made. One that lacks a column has a null there, one that is no JSON is quarantined.
            None: the corpus was not seen before.

    Raises:
        InputError: a column is missing, cannot be text or an id, or has types that do not go together.
        EnvironmentFault: storage failed, or a file is another by now.
    """
    return plan_files(storage, files, input, SplitBounds(), known)[1]


class _TypesSeen:
    """The types of kept columns, and who had them."""

    def __init__(self, input: Input, known: pa.Schema | None) -> None:
        self.input = input
        self._seen: dict[str, tuple[pa.DataType, str]] = {}
        for field in known if known is not None else ():
            self._seen[field.name] = (field.type, "the snapshot before")
        self.own: set[str] = set()  # kept columns that some file has itself

    def has(self, name: str) -> bool:
        return name in self._seen

    def schema(self) -> pa.Schema:
        # Nothing but nulls or empty files so far: text holds whatever comes.
        seen = {name: self._seen.get(name, (pa.string(), ""))[0] for name in self.input.keep}
        return pa.schema([pa.field(name, canonical(name, type)) for name, type in seen.items()])

    def add_footer(self, file: InputFile, footer: Footer) -> None:
        if footer.error is not None:
            return
        _require(self.input, file.uri, footer.names, [name for name, _ in footer.types])
        for name, type in footer.types:
            plain = _plain(type)
            if name in self.input.text_columns and types.is_nested(plain):
                raise InputError(f"input.text: {{{name}}} in {file.uri} is {type}; text is made of strings and numbers")
            if name == self.input.id and not (types.is_string(plain) or types.is_integer(plain)):
                raise InputError(f"input.id: {name} in {file.uri} is {type}; an id is a string or a whole number")
            if name in self.input.keep:
                self.own.add(name)
                if footer.is_typed:
                    self.add(name, plain, file.uri)

    def add(self, name: str, type: pa.DataType, uri: str) -> None:
        if types.is_null(type):
            return
        before, before_uri = self._seen.get(name, (type, uri))
        together = _together(before, type)
        if together is None:
            raise InputError(f"input.keep: {name} is {before} in {before_uri} and {type} in {uri}; make them one type")
        self._seen[name] = (together, before_uri if together == before else uri)

    def add_paths(self, files: Sequence[InputFile]) -> None:
        """Kept columns that paths hold and no file: strings hold whatever there is, whole numbers what is one."""
        for name in self.input.keep:
            if name in self.own:
                continue
            found = {partitions(file.uri)[name]: file.uri for file in files if name in partitions(file.uri)}
            kinds = {partition_type(value): uri for value, uri in found.items()}
            before = self._seen.get(name, (pa.null(), ""))[0]
            if pa.string() in kinds and not types.is_integer(before):
                kinds = {pa.string(): kinds[pa.string()]}
            if not types.is_string(before):
                for type, uri in kinds.items():
                    self.add(name, type, uri)


def canonical(name: str, type: pa.DataType) -> pa.DataType:
    """The type that a column of this name and type has once it is read back from Parquet.

    List items are called element there, seconds are milliseconds, date64 is date32. The types of kept
    columns are part of the shard fingerprint: the same corpus must have the same, whether they come
    from its files or from a shard.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(pa.schema([pa.field(name, type)]).empty_table(), sink)
    return pq.read_schema(pa.BufferReader(sink.getvalue())).remove_metadata().field(0).type


def _kind(file: InputFile, input: Input) -> str | None:
    found = file_format(file.uri, input.format)
    return found and found[0]


def _require(input: Input, uri: str, present: Sequence[str], found: Collection[str]) -> None:
    """Refuse a file that lacks what the config names; `found` are those names that its own columns satisfy."""
    for key, names in (("text", input.text_columns), ("id", (input.id,)), ("keep", input.keep)):
        for name in names:
            if name is not None and name not in found and name not in present and name not in partitions(uri):
                there = list(dict.fromkeys([*present, *partitions(uri)]))
                shown = ", ".join(there[:50]) + (", ..." if len(there) > 50 else "")
                raise InputError(f"input.{key}: no column {name} in {uri}; there are: {shown or 'none'}")
            if name is not None and present.count(name) > 1:
                raise InputError(f"input.{key}: {uri} has more than one column {name}")


def _plain(type: pa.DataType) -> pa.DataType:
    """The one type of all those that Parquet readers may give for the same column."""
    if types.is_dictionary(type):
        return _plain(type.value_type)
    if types.is_large_string(type) or types.is_string_view(type):
        return pa.string()
    if types.is_large_binary(type) or types.is_binary_view(type):
        return pa.binary()
    return type


def _together(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds all values of both; None if none does."""
    if types.is_integer(one) != types.is_integer(other):
        return None  # Arrow would take float64, which does not hold all of int64
    fields = [pa.schema([("column", one)]), pa.schema([("column", other)])]
    try:
        return pa.unify_schemas(fields, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None


def _sample_jsonl(storage: Storage, files: Sequence[InputFile], seen: _TypesSeen) -> None:
    num_lines = 0
    for file in files[:_MAX_SAMPLED_FILES]:
        lines = _first_lines(storage, file, seen.input.format)
        num_lines += len(lines)
        objects = [value for line in lines if isinstance(value := _parsed(line), dict)]
        if objects:
            values = {name: [_value(value, name) for value in objects] for name in seen.input.columns}
            found = [name for name in values if any(value is not MISSING for value in values[name])]
            _require(seen.input, file.uri, list(dict.fromkeys(name for value in objects for name in value)), found)
            for name in seen.input.keep:
                if name in found and not seen.has(name):
                    there = [value for value in values[name] if value is not MISSING]
                    seen.add(name, _json_type(name, file.uri, there), file.uri)
            seen.own.update(name for name in seen.input.keep if name in found)
            return
    if num_lines:
        raise InputError(f"no line of {files[0].uri} is a JSON object, nor of the files after it; is it JSONL?")


def _first_lines(storage: Storage, file: InputFile, format: str | None) -> list[bytes]:
    """Whole lines, about 1 MiB of them, at least one if there is one; none that are blank."""
    found = file_format(file.uri, format)
    lines: list[bytes] = []
    num_bytes = 0
    with open_source(storage, file) as source:
        try:
            reader = open_text(source, found and found[1], min(file.size, _SAMPLE_BYTES))
            while line := reader.readline(_MAX_LINE_BYTES):
                num_bytes += len(line)
                if num_bytes > _SAMPLE_BYTES and lines:
                    break
                if not line.isspace():
                    lines.append(line)
        except UndecodableError:
            pass  # the reader quarantines the file
    return lines


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def _value(value: dict[str, Any], name: str) -> Any:
    try:
        return value_at(value, name)
    except TypeError:  # the reader quarantines the line
        return MISSING


def _json_type(name: str, uri: str, values: Iterable[Any]) -> pa.DataType:
    """The type most values have; whole numbers among fractions are fractions."""
    present = [value for value in values if value is not None]
    kinds = Counter(type(value) for value in present)
    if kinds[float]:
        kinds[float] += kinds.pop(int, 0)
    if not present:
        return pa.null()
    kind = kinds.most_common(1)[0][0]
    scalars = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    if kind in scalars:
        return scalars[kind]
    try:
        found = pa.array([value for value in present if type(value) is kind]).type
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise InputError(f"input.keep: the values of {name} in {uri} have no common type: {error}") from None
    if _has_empty_struct(found):
        raise InputError(
            f"input.keep: {name} in {uri} holds objects without keys ({found}), which Parquet cannot store; "
            f"leave {name} out of input.keep"
        )
    return found


def _has_empty_struct(type: pa.DataType) -> bool:
    children = [type.field(i).type for i in range(type.num_fields)]
    return (types.is_struct(type) and not children) or any(map(_has_empty_struct, children))
