from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import pipeline.index.parts
from pipeline.errors import UsageError, VecmillError
from pipeline.index.codecs import Codec, Float16, Sq8
from pipeline.index.layout import DIRECTORY_SCHEMA, codes_schema, rows_schema
from pipeline.index.parts import Part, group_checksum, make_part
from pipeline.index.rabitq import Rabitq
from pipeline.snapshots.table import to_binary
from tests.vectors import clustered

DIM = 12
KEEP = pa.schema([("lang", pa.string()), ("year", pa.int32()), ("tags", pa.list_(pa.string()))])
VECTORS = clustered(60, DIM)


def codec_of(name: str) -> Codec:
    codecs: dict[str, Codec] = {
        "float16": Float16(DIM),
        "sq8": Sq8.train(VECTORS),
        "rabitq": Rabitq.train(DIM, 4, 0),
    }
    return codecs[name]


def rows_of(codec: Codec, list_ids: list[int], keep: pa.Schema = KEEP) -> pa.Table:
    num = len(list_ids)
    codes = codec.encode(VECTORS[:num], VECTORS[:num] * 0)
    kept: dict[str, Any] = {
        "lang": ["de", None, "en"] * num,
        "year": [2000 + row for row in range(num)],
        "tags": [["a", "b"], [], None] * num,
    }
    columns = {
        "list_id": list_ids,
        "code": to_binary(codes.tobytes(), codec.num_bytes),
        "doc_id": [f"d{row}" for row in range(num)],
        "chunk_index": [row % 2 for row in range(num)],
        "row_hash": [os.urandom(16) for _ in range(num)],
        "row_address": [(7 << 32) + row for row in range(num)],
    } | {name: kept[name][:num] for name in keep.names}
    schema = rows_schema(codec, keep)
    return pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema=schema)


def read_group(part: Part, codec: Codec, row: dict[str, Any]) -> tuple[bytes, bytes]:
    """Codes and addresses of a row of the directory, by byte range."""
    code_end = row["code_begin"] + row["num_rows"] * codec.num_bytes
    codes = bytes(memoryview(part.codes)[row["code_begin"] : code_end])
    addresses = memoryview(part.addresses)[row["address_begin"] : row["address_begin"] + 8 * row["num_rows"]]
    return codes, bytes(addresses)


@pytest.mark.parametrize("name", ["float16", "sq8", "rabitq"])
def test_codes_and_addresses_are_where_the_directory_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = codec_of(name)
    monkeypatch.setattr(pipeline.index.parts, "MAX_GROUP_BYTES", 10 * codec.num_bytes)
    list_ids = [2] * 3 + [5] * 25 + [6] * 10 + [90] * 11
    rows = rows_of(codec, list_ids)
    part = make_part(4, rows, codec, KEEP)
    assert part.directory.schema == DIRECTORY_SCHEMA
    directory = part.directory.to_pylist()
    assert [(row["list_id"], row["num_rows"]) for row in directory] == [
        (2, 3),
        *[(5, 10), (5, 10), (5, 5)],
        (6, 10),
        *[(90, 10), (90, 1)],
    ]
    assert {(row["part"], row["num_deleted"]) for row in directory} == {(4, 0)}
    assert [row["row_group"] for row in directory] == list(range(7))
    begin = 0
    for row in directory:
        codes, addresses = read_group(part, codec, row)
        some = rows.slice(begin, row["num_rows"])
        assert codes == b"".join(some["code"].to_pylist())
        assert np.frombuffer(addresses, "<i8").tolist() == some["row_address"].to_pylist()
        assert group_checksum(codes, addresses) == row["checksum"]
        begin += row["num_rows"]
    for one, other in itertools.pairwise(directory):
        assert one["group_begin"] < one["code_begin"] < one["group_end"] <= other["group_begin"]


@pytest.mark.parametrize("name", ["float16", "sq8", "rabitq"])
def test_a_part_is_an_ordinary_table_to_pyarrow_and_duckdb(name: str, tmp_path: Path) -> None:
    codec = codec_of(name)
    rows = rows_of(codec, [1] * 20 + [3] * 20)
    part = make_part(0, rows, codec, KEEP)
    path, addresses_path = tmp_path / "codes.parquet", tmp_path / "addresses.parquet"
    path.write_bytes(part.codes)
    addresses_path.write_bytes(part.addresses)

    table = pq.read_table(path)
    assert table.schema == codes_schema(codec, KEEP)
    for column in ("list_id", "lang", "year", "tags", "doc_id", "chunk_index", "row_hash"):
        assert table[column].to_pylist() == rows[column].to_pylist()
    found = ds.dataset(path).to_table(filter=(ds.field("list_id") == 3) & (ds.field("lang") == "en"))
    assert found["doc_id"].to_pylist() == [f"d{row}" for row in range(20, 40) if row % 3 == 2]
    assert pq.read_table(addresses_path)["row_address"].to_pylist() == rows["row_address"].to_pylist()

    column = "vector" if name == "float16" else "code"
    query = f"SELECT doc_id, lang, {column} FROM '{path}' WHERE list_id IN (3) ORDER BY doc_id LIMIT 1"
    row = duckdb.connect().execute(query).fetchone()
    assert row is not None
    assert row[:2] == ("d20", "en")
    if name == "float16":
        np.testing.assert_allclose(row[2], VECTORS[20], atol=1e-3)
    else:
        assert row[2] == rows["code"][20].as_py()
    joined = duckdb.connect().execute(f"SELECT count(*), min(row_address) >> 32 FROM '{addresses_path}'").fetchone()
    assert joined == (40, 7)


def test_duckdb_alone_finds_neighbours_over_float16_lists(tmp_path: Path) -> None:
    codec = Float16(DIM)
    (tmp_path / "codes.parquet").write_bytes(make_part(0, rows_of(codec, [0] * 60), codec, KEEP).codes)
    found = (
        duckdb.connect()
        .execute(
            f"SELECT doc_id, array_cosine_similarity(vector::FLOAT[{DIM}], ?::FLOAT[{DIM}]) AS score "
            f"FROM '{tmp_path}/codes.parquet' ORDER BY score DESC LIMIT 5",
            [VECTORS[7].tolist()],
        )
        .fetchall()
    )
    exact = VECTORS[:60] @ VECTORS[7]
    assert [doc_id for doc_id, _ in found] == [f"d{row}" for row in np.argsort(-exact)[:5]]
    assert abs(found[0][1] - 1) < 1e-3


def test_what_has_to_be_plain_is_and_one_page_a_row_group(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Sq8.train(VECTORS)
    part = make_part(0, rows_of(codec, [0] * 30 + [1] * 30), codec, KEEP)
    metadata = pq.ParquetFile(pa.BufferReader(part.codes)).metadata
    for group in range(2):
        for index, width in ((0, 4), (1, codec.num_bytes)):
            column = metadata.row_group(group).column(index)
            assert column.compression == "UNCOMPRESSED"
            assert column.dictionary_page_offset is None
            assert "PLAIN" in column.encodings
            assert 0 < column.total_compressed_size - 30 * width < 100, "one page header, no more"
        assert metadata.row_group(group).column(0).statistics.min == group
    schema = pq.ParquetFile(pa.BufferReader(part.codes)).schema
    assert [schema.column(index).max_definition_level for index in (0, 1)] == [0, 0], "required"


def test_a_file_that_is_not_as_promised_is_not_let_out(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Sq8.train(VECTORS)
    monkeypatch.setattr(pipeline.index.parts, "_PLAIN_COLUMNS", ("list_id",))
    with pytest.raises(VecmillError, match="column code of an index part is not plain"):
        make_part(0, rows_of(codec, [0] * 60), codec, KEEP)


def test_rows_out_of_order_and_too_many_groups_are_refused() -> None:
    codec = Sq8.train(VECTORS)
    with pytest.raises(VecmillError, match="not sorted by list"):
        make_part(0, rows_of(codec, [1, 0]), codec, KEEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.index.parts, "MAX_PART_GROUPS", 2)
        with pytest.raises(VecmillError, match="3 row groups"):
            make_part(0, rows_of(codec, [0, 1, 2]), codec, KEEP)
        patch.setattr(pipeline.index.parts, "MAX_PART_BYTES", 100)
        with pytest.raises(VecmillError, match="bytes, at most 100 fit"):
            make_part(0, rows_of(codec, [0, 1]), codec, KEEP)


def test_a_row_in_two_lists_and_a_part_without_rows_are_carried() -> None:
    codec = Sq8.train(VECTORS)
    rows = rows_of(codec, [0, 0, 1, 1])
    rows = rows.take(pa.array([0, 1, 2, 3])).set_column(
        rows.schema.get_field_index("row_address"), rows.schema.field("row_address"), pa.array([5, 6, 5, 7])
    )
    part = make_part(0, rows, codec, KEEP)
    assert pq.read_table(pa.BufferReader(part.addresses))["row_address"].to_pylist() == [5, 6, 5, 7]
    empty = make_part(1, rows.slice(0, 0), codec, KEEP)
    assert empty.directory.num_rows == 0
    assert pq.read_table(pa.BufferReader(empty.codes)).num_rows == 0


def test_a_kept_column_with_the_name_of_the_index_own_is_refused_with_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"input\.keep: code is also the name of a column of the index"):
        rows_schema(Float16(DIM), pa.schema([("code", pa.string())]))
