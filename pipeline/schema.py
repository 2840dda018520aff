"""The Arrow schemas at each boundary between stages, and of the files that readers open.

    documents    what `read` makes of a split           one row a document
    sequences    what `tokens` makes of documents       one row a chunk
    embeddings   what `encode` makes of sequences       one row a chunk: the embedding shard
    quarantine   rows that could not be embedded        one row a document (or a file: neither doc_id nor row)

Shape letters, everywhere: B rows of a token batch, L its padded length, H hidden, D dim,
Q queries, N vectors, K neighbours.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

HASH = pa.binary(16)
"""blake2b with digest_size=16."""

DOCUMENT_FIELDS = (
    pa.field("doc_id", pa.string(), nullable=False),
    pa.field("row", pa.int64(), nullable=False),  # row of the file, or byte offset in its decompressed text
    pa.field("content_hash", HASH, nullable=False),
    pa.field("text", pa.string(), nullable=False),
)

SEQUENCE_FIELDS = (
    pa.field("content_hash", HASH, nullable=False),
    pa.field("row_hash", HASH, nullable=False),
    pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
    pa.field("doc_id", pa.string(), nullable=False),
    pa.field("chunk_index", pa.int32(), nullable=False),
    pa.field("num_chunks", pa.int32(), nullable=False),
    pa.field("char_begin", pa.int64(), nullable=False),
    pa.field("char_end", pa.int64(), nullable=False),
    pa.field("num_tokens", pa.int32(), nullable=False),
    pa.field("truncated", pa.bool_(), nullable=False),
    pa.field("row", pa.int64(), nullable=False),  # for quarantine; not written to the shard
)


def sequence_schema(keep: pa.Schema, *, with_text: bool) -> pa.Schema:
    """The schema of sequences: SEQUENCE_FIELDS, the kept columns, and the text where it is wanted later."""
    text = [pa.field("text", pa.string(), nullable=False)] if with_text else []
    return pa.schema([*SEQUENCE_FIELDS, *keep, *text])


def encoded_schema(sequences: pa.Schema, dim: int) -> pa.Schema:
    """The schema of embeddings on their way to `write`: sequences with `vector` float32 (N, D) for `input_ids`."""
    vector = pa.field("vector", pa.list_(pa.field("element", pa.float32(), nullable=False), dim), nullable=False)
    return sequences.set(sequences.get_field_index("input_ids"), vector)


Stage = Literal["read", "tokenize", "encode", "publish"]

Reason = Literal[
    "unreadable_file",  # the whole file is not what its name says, or is cut
    "undecodable_row",  # a row of Parquet that cannot be decoded, a line that is too long
    "invalid_json",  # a line that is no JSON
    "invalid_csv",  # a row that is no CSV, or has another number of values than the header
    "not_an_object",  # a line of JSON that is no object
    "invalid_utf8",  # bytes that are no text
    "wrong_type",  # a text, id or kept column that holds something else
    "missing_id",  # the id column is null or empty
    "empty_text",  # nothing but white space after the template
    "encode_failed",  # the encoder raised on this document
    "invalid_vector",  # NaN, infinite or zero
    "killed_process",  # it alone was in work when its process was killed, twice
    "duplicate_id",  # an earlier row, by file and row, has the same id
]

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string()),
        pa.field("input_file", pa.string(), nullable=False),
        pa.field("row", pa.int64()),  # null: not known; without a doc_id either, the file as a whole
        pa.field("content_hash", HASH),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("text", pa.string()),  # null unless store.quarantine_text
    ]
)


def embedding_schema(dim: int, dtype: str, keep: pa.Schema, *, keep_text: bool) -> pa.Schema:
    """The schema of an embedding shard; a contract with readers (design, section 5).

    Args:
        dim: D, the length of a vector.
        dtype: "float16" or "float32".
        keep: the kept columns with their types.
        keep_text: whether the shard carries the text.
    """
    item = pa.field("element", {"float16": pa.float16(), "float32": pa.float32()}[dtype], nullable=False)
    fields = [
        pa.field("content_hash", HASH, nullable=False),
        pa.field("row_hash", HASH, nullable=False),
        pa.field("vector", pa.list_(item, dim), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("chunk_index", pa.int32(), nullable=False),
        pa.field("num_chunks", pa.int32(), nullable=False),
        pa.field("char_begin", pa.int64(), nullable=False),
        pa.field("char_end", pa.int64(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        *keep,
    ]
    return pa.schema([*fields, pa.field("text", pa.string(), nullable=False)] if keep_text else fields)


RESERVED_COLUMNS = frozenset(
    [field.name for field in embedding_schema(1, "float32", pa.schema([]), keep_text=True)]
    + [field.name for field in (*DOCUMENT_FIELDS, *SEQUENCE_FIELDS)]
)
