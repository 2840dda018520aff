"""Rows sorted by list to one part: a codes file, an addresses file, and their rows of the directory.

Both are ordinary Parquet. `list_id`, the code and `row_address` are required, PLAIN, uncompressed,
without dictionary and one page in each row group, so that the codes of a list are one range of bytes,
and their addresses another; the directory says where, and readers need no footer. Offsets are counted
from the end of what was written (page headers vary), and the bytes found there are compared with what
was meant to be there.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import VecmillError
from pipeline.index.codecs import Codec
from pipeline.index.layout import ADDRESSES_SCHEMA, DIRECTORY_SCHEMA, codes_schema, rows_schema
from pipeline.snapshots.table import as_bytes

MAX_GROUP_BYTES = 8 * 2**20
"""Of codes in one row group; a longer list has several."""

MAX_PART_GROUPS = 1024
MAX_PART_BYTES = 2**30

# A page ends with its row group and nothing else: so many rows never fill what pyarrow counts in.
_MAX_GROUP_ROWS = 2**19

_PLAIN_COLUMNS = ("list_id", "code", "vector", "row_hash")
_COMPRESSION = "zstd"


class Part(NamedTuple):
    """One part, ready to be put; `directory` is DIRECTORY_SCHEMA, row groups in order."""

    codes: pa.Buffer
    addresses: pa.Buffer
    directory: pa.Table


def make_part(part: int, rows: pa.Table, codec: Codec, keep: pa.Schema) -> Part:
    """The part of that number from `rows` (layout.rows_schema), sorted by list_id.

    Raises:
        VecmillError: too many rows for one part, or a file that is not as promised; a bug.
    """
    rows = rows.select(rows_schema(codec, keep).names).combine_chunks()
    groups = list(_groups(_numbers(rows, "list_id"), codec.num_bytes))
    if len(groups) > MAX_PART_GROUPS:
        raise VecmillError(f"{len(groups)} row groups in an index part, at most {MAX_PART_GROUPS} fit. This is a bug.")
    codes = _write(rows, groups, codes_schema(codec, keep))
    addresses = _write(rows, groups, ADDRESSES_SCHEMA)
    if codes.size > MAX_PART_BYTES:
        raise VecmillError(f"an index part of {codes.size} bytes, at most {MAX_PART_BYTES} fit. This is a bug.")
    return Part(codes, addresses, _directory(part, rows, groups, codes, addresses))


class _Group(NamedTuple):
    list_id: int
    begin: int
    end: int


def _groups(list_ids: npt.NDArray[np.int64], num_bytes: int) -> Iterator[_Group]:
    """Row groups: a list each, a long one cut into several."""
    if not len(list_ids):
        return
    steps = np.diff(list_ids)
    if steps.min(initial=0) < 0:
        raise VecmillError("the rows of an index part are not sorted by list. This is a bug.")
    bounds = [0, *(np.flatnonzero(steps) + 1).tolist(), len(list_ids)]
    size = min(_MAX_GROUP_ROWS, max(1, MAX_GROUP_BYTES // num_bytes))
    for begin, end in itertools.pairwise(bounds):
        for some in range(begin, end, size):
            yield _Group(int(list_ids[begin]), some, min(some + size, end))


def _write(rows: pa.Table, groups: list[_Group], schema: pa.Schema) -> pa.Buffer:
    strings = [field.name for field in schema if pa.types.is_string(field.type) and field.name != "doc_id"]
    plain = {"vector": "vector.list.element"}
    compression = {
        plain.get(name, name): "NONE" if name in (*_PLAIN_COLUMNS, "row_address") else _COMPRESSION
        for name in schema.names
    }
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema,
        compression=compression,
        use_dictionary=strings or False,
        # One page a chunk: nothing but the row group ends a page.
        data_page_size=2**30,
        max_rows_per_page=2**30,
        write_batch_size=2**20,
        # What is answered with is compressed, and in no checksum of the directory.
        write_page_checksum=True,
        # Engines skip row groups by list; statistics on the rest would be most of the footer.
        write_statistics=["list_id"] if "list_id" in schema.names else False,
    ) as writer:
        for group in groups:
            writer.write_table(_typed(rows.slice(group.begin, group.end - group.begin), schema))
    return sink.getvalue()


def _typed(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        _vectors(rows["code"].chunk(0), field.type) if field.name == "vector" else rows[field.name] for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _vectors(codes: pa.FixedSizeBinaryArray, type_: pa.DataType) -> pa.FixedSizeListArray:
    """The same bytes, as lists of float16."""
    data = pa.py_buffer(as_bytes(codes).reshape(-1))
    values = pa.Array.from_buffers(type_.value_type, len(codes) * type_.list_size, [None, data])
    return pa.FixedSizeListArray.from_arrays(values, type=type_)


def _directory(part: int, rows: pa.Table, groups: list[_Group], codes: pa.Buffer, addresses: pa.Buffer) -> pa.Table:
    code_bytes = as_bytes(rows["code"].chunk(0)) if groups else np.zeros((0, 1), np.uint8)
    address_bytes = _numbers(rows, "row_address").astype("<i8", copy=False)
    of_codes, of_addresses = (pq.ParquetFile(pa.BufferReader(data)).metadata for data in (codes, addresses))
    found = []
    for number, group in enumerate(groups):
        row_group = of_codes.row_group(number)
        mine = code_bytes[group.begin : group.end].data
        own_addresses = address_bytes[group.begin : group.end].data
        chunks = [row_group.column(index) for index in range(row_group.num_columns)]
        starts = [
            chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
            for chunk in chunks
        ]
        found.append(
            {
                "list_id": group.list_id,
                "part": part,
                "row_group": number,
                "num_rows": group.end - group.begin,
                "num_deleted": 0,
                "group_begin": min(starts),
                "group_end": max(
                    start + chunk.total_compressed_size for start, chunk in zip(starts, chunks, strict=True)
                ),
                "code_begin": _find(codes, chunks[1], mine),
                "address_begin": _find(addresses, of_addresses.row_group(number).column(0), own_addresses),
                "checksum": group_checksum(mine, own_addresses),
            }
        )
    return pa.Table.from_pylist(found, DIRECTORY_SCHEMA)


def group_checksum(codes: bytes | memoryview, addresses: bytes | memoryview) -> int:
    """The directory's checksum of a row group, over the bytes of its codes, then of its addresses."""
    return zlib.crc32(addresses, zlib.crc32(codes))


def _find(data: pa.Buffer, chunk: pq.ColumnChunkMetaData, expected: memoryview) -> int:
    """Where the values of a column chunk begin; they are its last bytes."""
    begin = int(chunk.data_page_offset + chunk.total_compressed_size - expected.nbytes)
    # As bytes: views of other formats compare by value.
    is_there = memoryview(data).cast("B")[begin : begin + expected.nbytes] == expected.cast("B")
    if not is_there or chunk.compression != "UNCOMPRESSED":
        raise VecmillError(
            f"column {chunk.path_in_schema} of an index part is not plain and in one page. This is a bug."
        )
    return begin


def _numbers(rows: pa.Table, name: str) -> npt.NDArray[np.int64]:
    return np.asarray(rows[name].to_numpy())
