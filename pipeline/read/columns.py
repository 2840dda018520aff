"""Columns of a file -> columns of documents: text, ids, and kept columns in their types.

Each takes a column of B values, of Parquet (`_of_arrow`) or of parsed lines (`_of_json`), and gives
an array of B; a value that will not do is null there and noted in `faults`. A column is converted
as a whole; only if that fails, value by value, to find which row is at fault.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from pyarrow import types

from pipeline.read.documents import Fault, Faults

_FAILURES = (pa.ArrowException, TypeError, ValueError, OverflowError)
_LISTS = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)


def text_of_json(values: Sequence[object], name: str, faults: Faults) -> pa.Array:
    """The values of a column of the template as strings: numbers and booleans as Python writes them."""
    texts: list[str | None] = []
    for position, value in enumerate(values):
        if value is None or isinstance(value, str):
            texts.append(value)
        elif isinstance(value, bool | int | float):
            texts.append(str(value))
        else:
            texts.append(None)
            faults.setdefault(position, Fault("wrong_type", f"{name} is {_kind(value)}, not text"))
    return _string_array(texts, name, faults)


def ids_of_json(values: Sequence[object], name: str, faults: Faults) -> pa.Array:
    """The values of the id column as strings; an id is a string or a whole number."""
    texts: list[str | None] = []
    for position, value in enumerate(values):
        if value is None or isinstance(value, str):
            texts.append(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            texts.append(str(value))
        else:
            texts.append(None)
            faults.setdefault(position, Fault("wrong_type", f"the id {name} is {_kind(value)}"))
    return _string_array(texts, name, faults).cast(pa.string())


def text_of_arrow(column: pa.Array, name: str, faults: Faults) -> pa.Array:
    """A Parquet column of the template as large_string; other scalars as Python or Arrow writes them."""
    if isinstance(column, pa.ExtensionArray):  # a UUID is bytes, JSON a string
        column = column.storage
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_nested(column.type):
        for position in np.flatnonzero(column.is_valid()):
            faults.setdefault(int(position), Fault("wrong_type", f"{name} is {column.type}, not text"))
        return pa.nulls(len(column), pa.large_string())
    if types.is_boolean(column.type) or types.is_float64(column.type):
        # As in JSONL: the same row has the same content hash in either format.
        return pa.array([None if v is None else str(v) for v in column.to_pylist()], pa.large_string())
    if _is_bytes(column.type):
        return _decoded(column, name, faults)
    try:
        return column.cast(pa.string()).cast(pa.large_string())
    except _FAILURES:  # times of an unknown time zone, for one
        for position in np.flatnonzero(column.is_valid()):
            faults.setdefault(int(position), Fault("wrong_type", f"{name} is {column.type}, which is no text"))
        return pa.nulls(len(column), pa.large_string())


def ids_of_arrow(column: pa.Array, name: str, faults: Faults) -> pa.Array:
    """A Parquet id column as strings."""
    plain = column.type.value_type if types.is_dictionary(column.type) else column.type
    if not (types.is_null(plain) or types.is_integer(plain) or _is_bytes(plain)):
        for position in np.flatnonzero(column.is_valid()):
            faults.setdefault(int(position), Fault("wrong_type", f"the id {name} is {plain}"))
        return pa.nulls(len(column), pa.string())
    return text_of_arrow(column, name, faults).cast(pa.string())


def kept_of_arrow(column: pa.Array, field: pa.Field, faults: Faults) -> pa.Array:
    """A Parquet column as the kept column's type; rows that do not go are null, and faulty."""
    try:
        return _cast(column, field.type)
    except _FAILURES:
        pass
    kept = []
    for position in range(len(column)):
        one = column.slice(position, 1)
        try:
            # take copies: validation looks at the whole buffer under a slice of nested values
            kept.append(_cast(one.take(pa.array([0])), field.type))
        except _FAILURES as error:
            kept.append(pa.nulls(1, field.type))
            faults.setdefault(position, _fault(field, str(column.type), error))
    return pa.concat_arrays(kept)


def kept_of_json(values: Sequence[object], field: pa.Field, faults: Faults) -> pa.Array:
    """Values of JSON as the kept column's type; rows that do not go are null, and faulty."""
    fitting: list[object] = []
    for position, value in enumerate(values):
        fits = _fits(value, field.type)
        fitting.append(value if fits else None)
        if not fits:
            faults.setdefault(position, Fault("wrong_type", f"{field.name} is {_kind(value)}, not {field.type}"))
    try:
        return pa.array(fitting, field.type)
    except _FAILURES:
        pass
    kept = []
    for position, value in enumerate(fitting):
        try:
            kept.append(_converted(value, field.type))
        except _FAILURES as error:
            kept.append(pa.nulls(1, field.type))
            faults.setdefault(position, _fault(field, _kind(value), error))
    return pa.concat_arrays(kept)


def _string_array(texts: list[str | None], name: str, faults: Faults) -> pa.Array:
    try:
        return pa.array(texts, pa.large_string())
    except UnicodeEncodeError:  # a lone surrogate: JSON can spell what UTF-8 cannot
        for position, text in enumerate(texts):
            try:
                (text or "").encode()
            except UnicodeEncodeError:
                texts[position] = None
                faults.setdefault(position, Fault("invalid_utf8", f"{name} holds a lone surrogate"))
        return pa.array(texts, pa.large_string())


def _is_bytes(type: pa.DataType) -> bool:
    kinds = (types.is_string, types.is_large_string, types.is_string_view)
    return any(is_kind(type) for is_kind in kinds) or _is_binary(type)


def _is_binary(type: pa.DataType) -> bool:
    kinds = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(is_kind(type) for is_kind in kinds)


def _decoded(column: pa.Array, name: str, faults: Faults) -> pa.Array:
    """As large_string, every value checked: Arrow reads Parquet strings without looking at them."""
    if not _is_binary(column.type):
        column = column.cast(pa.large_string())
    column = column.cast(pa.large_binary())
    try:
        return column.cast(pa.large_string())
    except pa.ArrowInvalid:
        texts: list[str | None] = []
        for position, value in enumerate(column.to_pylist()):
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError as error:
                texts.append(None)
                faults.setdefault(position, Fault("invalid_utf8", f"{name} is no UTF-8 from its byte {error.start} on"))
        return pa.array(texts, pa.large_string())


def _cast(column: pa.Array, type: pa.DataType) -> pa.Array:
    cast = column.cast(type)
    cast.validate(full=True)
    return cast


def _converted(value: object, type: pa.DataType) -> pa.Array:
    try:
        return pa.array([value], type)
    except UnicodeEncodeError:
        raise
    except _FAILURES:
        # A date of Parquet is a string in JSON: Arrow parses those, though not on the way in.
        return pa.array([value]).cast(type)


def _fits(value: object, type: pa.DataType) -> bool:
    """Whether Arrow takes the value for what it is: it drops unknown keys, cuts 1.5 to 1, takes true for 1.0."""
    if value is None:
        return True
    if types.is_struct(type):
        return (
            isinstance(value, dict)
            and value.keys() <= {child.name for child in type}
            and all(_fits_child(value.get(child.name), child) for child in type)
        )
    if types.is_map(type):
        return isinstance(value, dict) and all(
            _fits(key, type.key_type) and _fits_child(item, type.item_field) for key, item in value.items()
        )
    if any(is_kind(type) for is_kind in _LISTS):
        if not isinstance(value, list) or len(value) != getattr(type, "list_size", len(value)):
            return False
        return all(_fits_child(item, type.value_field) for item in value)
    if isinstance(value, bool) or types.is_boolean(type):
        return isinstance(value, bool) and types.is_boolean(type)
    if types.is_integer(type):
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if types.is_floating(type):
        return isinstance(value, int | float)
    return isinstance(value, str)  # of dates and the like too: JSON has no others


def _fits_child(value: object, field: pa.Field) -> bool:
    return _fits(value, field.type) and (value is not None or field.nullable)


def _fault(field: pa.Field, found: str, error: Exception) -> Fault:
    if isinstance(error, UnicodeError) or "UTF8" in str(error) or "UTF-8" in str(error):
        return Fault("invalid_utf8", f"{field.name} is no UTF-8")
    return Fault("wrong_type", f"{field.name} is {found}, and its value is no {field.type}")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", float: "a fraction"}
    return names.get(type(value), "a whole number" if isinstance(value, int) else "null")
