"""The files of an index: their Arrow schemas and names; a contract with readers (design, section 7).

    centroids.parquet            one row a list; the codec's parameters are in its metadata
    lists.parquet                the directory: one row for each row group of each part
    codes/part-<k>-<attempt>     list_id, code, kept columns, doc_id, chunk_index, row_hash
    addresses/part-<k>-<attempt> row_address, row groups and rows as in the codes part
    deleted.parquet, panel.parquet, index.json

A list may have any number of row groups in any number of parts, and a row may stand in two lists.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.schema import HASH

if TYPE_CHECKING:
    from pipeline.index.codecs import Codec

LIST_ID = pa.field("list_id", pa.int32(), nullable=False)
ROW_ADDRESS = pa.field("row_address", pa.int64(), nullable=False)  # ordinal << 32 | row
ADDRESS_BYTES = 8

DIRECTORY_SCHEMA = pa.schema(
    [
        LIST_ID,
        pa.field("part", pa.int32(), nullable=False),
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("num_rows", pa.int32(), nullable=False),
        pa.field("num_deleted", pa.int32(), nullable=False),
        # Bytes of the codes part: the whole row group, and the first of num_rows codes.
        pa.field("group_begin", pa.int64(), nullable=False),
        pa.field("group_end", pa.int64(), nullable=False),
        pa.field("code_begin", pa.int64(), nullable=False),
        # Byte of the addresses part: the first of num_rows addresses.
        pa.field("address_begin", pa.int64(), nullable=False),
        # crc32 over the codes, then the addresses. Four times as fast as the checksums of whole files: it is
        # paid for by whoever waits for an answer.
        pa.field("checksum", pa.uint32(), nullable=False),
    ]
)

ADDRESSES_SCHEMA = pa.schema([ROW_ADDRESS])

DELETED_SCHEMA = pa.schema(
    [
        LIST_ID,
        pa.field("part", pa.int32(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),  # row of the part
    ]
)


REBUILD = "delete it, then `vecmill index CONFIG` builds the index anew"
"""The way out of a file that is damaged: `vecmill index` finds what is missing, and reads nothing to find more."""


INDEXES = "indexes/"
"""Where the indexes of a store lie."""


def centroids_schema(dim: int) -> pa.Schema:
    """One row a list, list ids 0, 1, 2, ...; sorted by parent."""
    return pa.schema(
        [LIST_ID, pa.field("parent_id", pa.int32(), nullable=False), _vectors("centroid", dim, pa.float32())]
    )


def panel_schema(dim: int) -> pa.Schema:
    """One row a query; `neighbours` are its exact nearest, nearest first, with their cosines."""
    item = pa.field("element", pa.int64(), nullable=False)
    score = pa.field("element", pa.float32(), nullable=False)
    return pa.schema(
        [
            pa.field("query_id", pa.int32(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("is_published", pa.bool_(), nullable=False),  # else settings were chosen by it
            pa.field("text", pa.string()),
            pa.field("doc_id", pa.string()),  # of the document that is the query, and left out of its own answers
            _vectors("vector", dim, pa.float32()),
            pa.field("left_out", pa.list_(item), nullable=False),
            pa.field("neighbours", pa.list_(item), nullable=False),
            pa.field("scores", pa.list_(score), nullable=False),
        ]
    )


def rows_schema(codec: Codec, keep: pa.Schema) -> pa.Schema:
    """Rows on their way to a part: the columns of a codes part, codes as bytes, and the address.

    Raises:
        UsageError: a kept column has the name of a column of the index.
    """
    clashing = {"list_id", "code", "row_address"} & set(keep.names)
    if clashing:
        raise UsageError(
            f"input.keep: {sorted(clashing)[0]} is also the name of a column of the index; "
            "rename it in the corpus, or leave it out of input.keep"
        )
    fields = [
        LIST_ID,
        pa.field("code", pa.binary(codec.num_bytes), nullable=False),
        *keep,
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("chunk_index", pa.int32(), nullable=False),
        pa.field("row_hash", HASH, nullable=False),
        ROW_ADDRESS,
    ]
    return pa.schema(fields)


def codes_schema(codec: Codec, keep: pa.Schema) -> pa.Schema:
    """The schema of a codes part. With codec float16 `vector`, a list that any engine reads, is in place of `code`."""
    schema = rows_schema(codec, keep)
    schema = schema.remove(schema.get_field_index("row_address"))
    if codec.name == "float16":
        schema = schema.set(schema.get_field_index("code"), _vectors("vector", codec.dim, pa.float16()))
    return schema


def _vectors(name: str, dim: int, type_: pa.DataType) -> pa.Field:
    return pa.field(name, pa.list_(pa.field("element", type_, nullable=False), dim), nullable=False)


def index_folder(index_id: str) -> str:
    """Where an index lies in its store."""
    return f"{INDEXES}{index_id}"


def part_names(index_id: str, part: int, attempt: str) -> tuple[str, str]:
    """Where an attempt at a part puts its codes and its addresses."""
    folder = index_folder(index_id)
    return f"{folder}/codes/part-{part}-{attempt}.parquet", f"{folder}/addresses/part-{part}-{attempt}.parquet"


def digest(*parts: bytes) -> str:
    """16 hex digits over byte strings, each with its length."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()
