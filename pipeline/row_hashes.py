"""Row hashes: what tells one row of a shard from every other, and whether it is still the same.

Kept values are hashed as JSON. Times go in as integers, at any depth: Python's own keep no
nanoseconds, and only the years 1 to 9999.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import pyarrow as pa


def row_hashes(rows: pa.Table, keep: pa.Table) -> list[bytes]:
    """blake2b-16 over content hash, chunk index, doc id and kept values, each with its name and type.

    Args:
        rows: content_hash, doc_id, chunk_index; without the latter all are documents, in one chunk each.
        keep: the kept columns of the same rows.
    """
    hashes = rows["content_hash"].to_pylist()
    doc_ids = rows["doc_id"].to_pylist()
    chunks = rows["chunk_index"].to_pylist() if "chunk_index" in rows.column_names else repeat(0)
    names = [f"{field.name}: {field.type}" for field in keep.schema]
    values = [_plain(column).to_pylist() for column in keep.columns]
    kept_rows: Iterator[tuple[Any, ...]] = zip(*values, strict=True) if values else repeat(())
    hashed = []
    for content_hash, chunk, doc_id, row in zip(hashes, chunks, doc_ids, kept_rows, strict=False):
        kept = list(zip(names, row, strict=True))
        rest = json.dumps([chunk, doc_id, kept], default=_json_value, sort_keys=True)
        hashed.append(hashlib.blake2b(content_hash + rest.encode(), digest_size=16).digest())
    return hashed


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times as integers."""
    integral = _integral(column.type)
    return column if integral == column.type else column.cast(integral)


def _integral(kind: pa.DataType) -> pa.DataType:
    """A type with integers for times."""
    types = pa.types
    if types.is_temporal(kind) and not types.is_interval(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    if types.is_dictionary(kind):
        value = _integral(kind.value_type)
        return kind if value == kind.value_type else value
    if types.is_struct(kind):
        return pa.struct([child.with_type(_integral(child.type)) for child in kind])
    if types.is_map(kind):
        key, item = (child.with_type(_integral(child.type)) for child in (kind.key_field, kind.item_field))
        return pa.map_(key, item, kind.keys_sorted)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        child = kind.value_field.with_type(_integral(kind.value_type))
        if types.is_fixed_size_list(kind):
            return pa.list_(child, kind.list_size)
        return pa.list_(child) if types.is_list(kind) else pa.large_list(child)
    return kind


def _json_value(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
