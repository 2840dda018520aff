from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import VecmillError
from pipeline.schema import HASH, QUARANTINE_SCHEMA, embedding_schema
from pipeline.write import quarantine_bytes, shard_bytes

DIM = 24
KEEP = pa.schema([pa.field("lang", pa.string()), pa.field("meta", pa.struct([("tags", pa.list_(pa.string()))]))])


def make_embeddings(num_rows: int) -> pa.Table:
    vectors = np.random.default_rng(7).normal(size=(num_rows, DIM)).astype(np.float32)
    vector = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.reshape(-1)), type=pa.list_(pa.field("element", pa.float32(), nullable=False), DIM)
    )
    columns = {
        "content_hash": pa.array([bytes([row % 256] * 16) for row in range(num_rows)], HASH),
        "row_hash": pa.array([bytes([row % 251] * 16) for row in range(num_rows)], HASH),
        "vector": vector,
        "doc_id": pa.array([f"d{row}" for row in range(num_rows)], pa.string()),
        "chunk_index": pa.array([0] * num_rows, pa.int32()),
        "num_chunks": pa.array([1] * num_rows, pa.int32()),
        "char_begin": pa.array([0] * num_rows, pa.int64()),
        "char_end": pa.array([9] * num_rows, pa.int64()),
        "num_tokens": pa.array([5] * num_rows, pa.int32()),
        "truncated": pa.array([False] * num_rows, pa.bool_()),
        "lang": pa.array([None] * num_rows, pa.string()),
        "meta": pa.array([{"tags": ["x"]}] * num_rows, KEEP.field("meta").type),
    }
    return pa.table(columns)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("num_rows", [1, 7, 50_000])
def test_one_vector_is_one_range_of_bytes(num_rows: int, dtype: str) -> None:
    """Rerank reads single vectors without opening the file; pages or compression in between would break it."""
    embeddings = make_embeddings(num_rows)
    shard = shard_bytes(embeddings, embedding_schema(DIM, dtype, KEEP, keep_text=False))
    expected = np.array(embeddings["vector"].combine_chunks().flatten()).reshape(-1, DIM).astype(dtype)
    found = np.frombuffer(shard.data, dtype, num_rows * DIM, shard.vector_begin).reshape(-1, DIM)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("num_rows", [0, 3])
def test_any_reader_sees_plain_arrow_of_the_promised_schema(num_rows: int) -> None:
    schema = embedding_schema(DIM, "float16", KEEP, keep_text=False)
    file = pq.ParquetFile(pa.BufferReader(shard_bytes(make_embeddings(num_rows), schema).data))
    assert file.schema_arrow.remove_metadata().equals(schema)
    assert file.metadata.num_row_groups == 1
    assert file.read()["doc_id"].to_pylist() == [f"d{row}" for row in range(num_rows)]


def test_hashes_and_vectors_are_plain_and_uncompressed() -> None:
    schema = embedding_schema(DIM, "float16", KEEP, keep_text=False)
    group = pq.ParquetFile(pa.BufferReader(shard_bytes(make_embeddings(100), schema).data)).metadata.row_group(0)
    for index in range(3):
        chunk = group.column(index)
        assert (chunk.compression, chunk.has_dictionary_page) == ("UNCOMPRESSED", False), chunk.path_in_schema


def test_more_rows_than_a_page_takes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.write.MAX_PAGE_BYTES", 100)
    with pytest.raises(VecmillError, match="bug"):
        shard_bytes(make_embeddings(10), embedding_schema(DIM, "float16", KEEP, keep_text=False))


@pytest.mark.parametrize("with_text", [False, True])
def test_a_quarantine_file_has_the_promised_schema_and_text_only_if_asked(with_text: bool) -> None:
    row = dict.fromkeys(QUARANTINE_SCHEMA.names) | {
        "input_file": "a.jsonl", "stage": "read", "reason": "invalid_json", "message": "no", "row": 3,
    }  # fmt: skip
    data = quarantine_bytes(pa.Table.from_pylist([row], QUARANTINE_SCHEMA), with_text=with_text)
    expected = row if with_text else {name: value for name, value in row.items() if name != "text"}
    assert pq.read_table(pa.BufferReader(data)).to_pylist() == [expected]
