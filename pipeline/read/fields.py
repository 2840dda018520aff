"""Rows of a file as columns that names are looked up in (`pipeline.splits.names`) -> `Rows` for `make_documents`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from pipeline.errors import InputError
from pipeline.read.columns import ids_of_arrow, ids_of_json, kept_of_arrow, kept_of_json, text_of_arrow, text_of_json
from pipeline.read.documents import Fault, Faults, Rows, Target
from pipeline.splits.names import MISSING, find_path, partitions, value_at


def check_names(target: Target, schema: pa.Schema, uri: str) -> None:
    """Refuse a file that has not all that the config names.

    Raises:
        InputError: a column is missing.
    """
    for name in target.input.columns:
        if find_path(schema, name) is None and name not in partitions(target.file_uri):
            there = ", ".join(dict.fromkeys([*schema.names, *partitions(target.file_uri)]))
            raise InputError(f"no column {name} in {uri}; there are: {there or 'none'}")


def rows_of_arrow(
    batch: pa.RecordBatch, numbers: np.ndarray, target: Target, faults: Faults, raw: Sequence[bytes] = ()
) -> Rows:
    """Rows of a batch that has the columns which `check_names` found; `numbers`, `faults` and `raw` as in `Rows`."""
    rows = Rows(numbers, {}, None, [], faults, raw)
    for name in target.input.text_columns:
        rows.text[name] = text_of_arrow(_column(batch, name, target), name, rows.faults)
    if target.input.id is not None:
        rows.ids = ids_of_arrow(_column(batch, target.input.id, target), target.input.id, rows.faults)
    for field in target.keep:
        rows.keep.append(kept_of_arrow(_column(batch, field.name, target), field, rows.faults))
    return rows


def _column(batch: pa.RecordBatch, name: str, target: Target) -> pa.Array:
    path = find_path(batch.schema, name)
    if path is None:
        return pa.array([partitions(target.file_uri).get(name)] * batch.num_rows, pa.string())
    # A null above makes what is below it null.
    return reduce(pc.struct_field, path[1:], batch.column(path[0]))


def rows_of_json(
    objects: Sequence[Mapping[str, Any]], numbers: np.ndarray, target: Target, faults: Faults, raw: Sequence[bytes]
) -> Rows:
    """Rows of parsed lines, an empty object for each that is in `faults` already."""
    rows = Rows(numbers, {}, None, [], faults, raw)
    for name in target.input.text_columns:
        rows.text[name] = text_of_json(_values(objects, name, target, faults), name, faults)
    if target.input.id is not None:
        rows.ids = ids_of_json(_values(objects, target.input.id, target, faults), target.input.id, faults)
    for field in target.keep:
        is_number = types.is_integer(field.type)
        rows.keep.append(kept_of_json(_values(objects, field.name, target, faults, is_number), field, faults))
    return rows


def _values(
    objects: Sequence[Mapping[str, Any]], name: str, target: Target, faults: Faults, is_number: bool = False
) -> list[object]:
    other: object = partitions(target.file_uri).get(name)
    if is_number and isinstance(other, str):
        with suppress(ValueError):
            other = int(other)
    values: list[object] = []
    for position, value in enumerate(objects):
        try:
            found = value_at(value, name)
            values.append(other if found is MISSING else found)
        except TypeError as error:
            values.append(None)
            faults.setdefault(position, Fault("wrong_type", str(error)))
    return values
