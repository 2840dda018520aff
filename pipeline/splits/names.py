"""What a name of the config means in a file: a column, a field within one, or a part of the file's path.

    title           the column, or a key of the line
    meta.title      a column of just that name if there is one, else the field title of meta
    lang            in a file lang=de/part-0.parquet without such a column: "de"

The first of these that there is counts, so that a path never changes what a file says itself. Path
parts are those below the input's root, `name=value` as Hive writes them, URL-decoded; in a text or
an id they stand as they are written (07 stays 07). As kept columns they are whole numbers (int32)
if those of all files are, else strings, which is what pyarrow makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import types

MISSING: Any = object()
"""What `value_at` gives where there is no such key."""

_NULL = "__HIVE_DEFAULT_PARTITION__"


@lru_cache(maxsize=1024)
def partitions(uri: str) -> Mapping[str, str | None]:
    """The values in the path of a file, by name; null where Hive writes that there was none."""
    pairs = (folder.split("=", 1) for folder in uri.split("/")[:-1] if "=" in folder[1:])
    return {unquote(name): None if value == _NULL else unquote(value) for name, value in pairs}


def partition_type(value: str | None) -> pa.DataType:
    """The type that a value has by itself."""
    if value is None:
        return pa.null()
    try:
        pa.array([value]).cast(pa.int32())
    except pa.ArrowInvalid:
        return pa.string()
    return pa.int32()


def find_path(fields: pa.Schema | pa.StructType, name: str) -> tuple[str, ...] | None:
    """The names that lead from the top to the column, or the field, that `name` means; None if there is none."""
    names = fields.names
    if name in names:
        return (name,)
    for head, rest in _heads(name):
        if head in names and names.count(head) == 1 and types.is_struct(fields.field(head).type):
            path = find_path(fields.field(head).type, rest)
            if path is not None:
                return (head, *path)
    return None


def type_at(fields: pa.Schema | pa.StructType, path: tuple[str, ...]) -> pa.DataType:
    """The type of what a path leads to."""
    type = fields.field(path[0]).type
    return type_at(type, path[1:]) if len(path) > 1 else type


def value_at(value: Mapping[str, Any], name: str) -> Any:
    """What a name means in an object of JSON: None where null is on the way, MISSING where nothing is there.

    Raises:
        TypeError: something other than an object is on the way; the message says where.
    """
    if name in value:
        return value[name]
    for head, rest in _heads(name):
        if head not in value:
            continue
        inner = value[head]
        if inner is None:
            return None
        if not isinstance(inner, dict):
            raise TypeError(f"{head} is no object, so that {name} is not in it")
        found = value_at(inner, rest)
        if found is not MISSING:
            return found
    return MISSING


def _heads(name: str) -> Iterator[tuple[str, str]]:
    """All ways to part a dotted name, the longest head first: a name may hold dots itself."""
    for i in range(len(name) - 2, 0, -1):
        if name[i] == ".":
            yield name[:i], name[i + 1 :]
