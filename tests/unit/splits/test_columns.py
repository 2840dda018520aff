"""Columns are found missing, or of no use, before any work; kept ones get one type."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Input, SplitBounds
from pipeline.errors import InputError
from pipeline.read.columns import kept_of_arrow, kept_of_json
from pipeline.read.documents import Faults
from pipeline.schema import embedding_schema
from pipeline.splits import check_columns, list_input, plan_file, plan_files
from pipeline.splits.columns import canonical
from pipeline.splits.files import Clock
from pipeline.uris import Storage
from pipeline.write import shard_bytes

LATER = Clock(now_ns=lambda: 2**62)


def _check(root: Path, known: pa.Schema | None = None, **input: Any) -> pa.Schema:
    storage = Storage(str(root))
    return check_columns(storage, list_input(storage, None, None, LATER), Input(uri=str(root), **input), known)


def _jsonl(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _parquet(path: Path, **columns: pa.Array) -> None:
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize(
    ("input", "message"),
    [
        ({"text": "{titel}"}, r"input\.text: no column titel in a\.parquet; there are: title, body, n$"),
        ({"text": "{body}", "id": "url"}, r"input\.id: no column url"),
        ({"text": "{body}", "keep": ("lang",)}, r"input\.keep: no column lang"),
    ],
)
def test_a_missing_column_is_named_with_those_present(tmp_path: Path, input: dict[str, Any], message: str) -> None:
    _parquet(tmp_path / "a.parquet", title=pa.array(["a"]), body=pa.array(["b"]), n=pa.array([1]))
    with pytest.raises(InputError, match=message):
        _check(tmp_path, **input)
    (tmp_path / "a.parquet").unlink()
    _jsonl(tmp_path / "a.jsonl", {"title": "a"}, {"body": "b", "n": 1})
    with pytest.raises(InputError, match=message.replace("parquet", "jsonl")):
        _check(tmp_path, **input)


def test_every_parquet_file_is_checked(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet", text=pa.array(["a"]))
    _parquet(tmp_path / "b.parquet", body=pa.array(["a"]))
    with pytest.raises(InputError, match=r"no column text in b\.parquet; there are: body"):
        _check(tmp_path)


def test_nested_text_and_odd_ids_of_parquet_are_refused(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet", text=pa.array([["a"]]), body=pa.array(["b"]), x=pa.array([1.5]))
    with pytest.raises(InputError, match=r"\{text\} in a\.parquet is list"):
        _check(tmp_path)
    with pytest.raises(InputError, match=r"x in a\.parquet is double"):
        _check(tmp_path, text="{body}", id="x")


def test_types_of_kept_columns_in_parquet(tmp_path: Path) -> None:
    _parquet(
        tmp_path / "a.parquet",
        text=pa.array(["a"]),
        d=pa.array(["a"]).dictionary_encode(),
        v=pa.array(["a"], pa.string_view()),
        t=pa.array([0], pa.timestamp("us")),
        i=pa.array([1], pa.int32()),
        nothing=pa.nulls(1),
    )
    _parquet(
        tmp_path / "b.parquet",
        text=pa.array(["a"]),
        d=pa.array(["a"], pa.large_string()),
        v=pa.array(["a"]),
        t=pa.nulls(1),
        i=pa.array([2**40]),
        nothing=pa.nulls(1),
    )
    schema = _check(tmp_path, keep=("i", "d", "v", "t", "nothing"))
    assert schema.names == ["i", "d", "v", "t", "nothing"]
    assert schema.types == [pa.int64(), pa.string(), pa.string(), pa.timestamp("us"), pa.string()]


@pytest.mark.parametrize("other", [pa.array(["1"]), pa.array([1.5]), pa.array([True])])
def test_types_that_do_not_go_together_name_both_files(tmp_path: Path, other: pa.Array) -> None:
    _parquet(tmp_path / "a.parquet", text=pa.array(["a"]), n=pa.array([1]))
    _parquet(tmp_path / "b.parquet", text=pa.array(["a"]), n=other)
    with pytest.raises(InputError, match=r"n is int64 in a\.parquet and .* in b\.parquet"):
        _check(tmp_path, keep=("n",))


def test_types_of_kept_columns_in_jsonl_are_what_most_lines_hold(tmp_path: Path) -> None:
    row = {"text": "a", "i": 1, "f": 1.5, "s": "2020-01-01", "b": True, "l": ["a"], "o": {"x": 1}, "n": None}
    _jsonl(tmp_path / "a.jsonl", {**row, "f": 2, "s": 5}, row, [1], row)
    schema = _check(tmp_path, keep=("i", "f", "s", "b", "l", "o", "n"))
    nested = [pa.list_(pa.string()), pa.struct([("x", pa.int64())])]
    assert schema.types == [pa.int64(), pa.float64(), pa.string(), pa.bool_(), *nested, pa.string()]


@pytest.mark.parametrize("value", [{}, [{}], {"a": {"b": {}}}])
def test_objects_without_keys_are_refused_since_no_shard_could_hold_them(tmp_path: Path, value: object) -> None:
    _jsonl(tmp_path / "a.jsonl", {"text": "a", "o": value})
    with pytest.raises(InputError, match=r"input\.keep: o in a\.jsonl holds objects without keys"):
        _check(tmp_path, keep=("o",))


def test_types_of_the_snapshot_before_stay(tmp_path: Path) -> None:
    _jsonl(tmp_path / "a.jsonl", {"text": "a", "n": 1})
    known = pa.schema([("n", pa.float64())])
    assert _check(tmp_path, known, keep=("n",)) == known


@pytest.mark.parametrize("known", [pa.schema([]), pa.schema([("n", pa.float64())])])
def test_lines_of_a_corpus_that_was_seen_before_are_not_judged(tmp_path: Path, known: pa.Schema) -> None:
    """A nightly delta: one short file, of which a line may be broken, or every line lack a column."""
    (tmp_path / "a.jsonl").write_text('{"text": \n')
    _jsonl(tmp_path / "b.jsonl", {"text": "a"}, {"text": "b"})
    assert _check(tmp_path, known, keep=tuple(known.names)) == known
    storage, input = Storage(str(tmp_path)), Input(uri=str(tmp_path), id="id")
    for name in ("a.jsonl", "b.jsonl"):
        files = [file for file in list_input(storage, None, None, LATER) if file.uri == name]
        assert len(plan_files(storage, files, input, SplitBounds(), known)[0]) == 1
        with pytest.raises(InputError, match=r"JSONL|no column id"):
            plan_files(storage, files, input, SplitBounds())
    _parquet(tmp_path / "c.parquet", body=pa.array(["a"]))
    with pytest.raises(InputError, match=r"no column text in c\.parquet"):
        _check(tmp_path, known, keep=tuple(known.names))


# A type, a value of it in Arrow, and one in JSON if JSON has such values.
_NESTED: list[tuple[pa.DataType, Any, Any]] = [
    (pa.list_(pa.int64()), [1, 2], [1, 2]),
    (pa.list_(pa.field("element", pa.int64(), nullable=False)), [1, 2], [1, 2]),
    (pa.list_(pa.field("array", pa.large_string())), ["a"], ["a"]),
    (pa.large_list(pa.int64()), [1, 2], [1, 2]),
    (pa.list_(pa.float32(), 2), [1.0, 2.0], [1, 2.5]),
    (pa.struct([("l", pa.list_(pa.string())), ("t", pa.timestamp("s"))]), {"l": ["a"], "t": 0}, {"t": "2020-01-02"}),
    (pa.map_(pa.string(), pa.list_(pa.int64())), [("a", [1])], {"a": [1]}),
    (pa.map_(pa.field("k", pa.string(), nullable=False), pa.field("v", pa.date64())), [("a", 0)], None),
    (pa.timestamp("s"), 0, "2020-01-02T03:04:05"),
    (pa.timestamp("s", "Europe/Berlin"), 0, "2020-01-02T03:04:05Z"),
    (pa.list_(pa.timestamp("s")), [0], ["2020-01-02"]),
    (pa.date64(), 0, "2020-01-02"),
    (pa.time32("s"), 0, None),
    (pa.duration("s"), 0, None),
    (pa.list_(pa.dictionary(pa.int8(), pa.string())), ["a"], ["a"]),
]


def _shard_type(column: pa.Array, type: pa.DataType) -> pa.DataType:
    """What a shard gives back of a kept column k."""
    schema = embedding_schema(2, "float32", pa.schema([("k", type)]), keep_text=False)
    row = {"content_hash": bytes(16), "row_hash": bytes(16), "vector": [0.0, 1.0], "doc_id": "a", "truncated": False}
    row |= dict.fromkeys(("chunk_index", "num_chunks", "char_begin", "char_end", "num_tokens"), 0)
    rows = pa.Table.from_pylist([row] * len(column), schema=schema.remove(schema.get_field_index("k")))
    data = shard_bytes(rows.append_column("k", column), schema).data
    assert pq.read_table(pa.BufferReader(data))["k"].combine_chunks().equals(column)
    return pq.read_schema(pa.BufferReader(data)).field("k").type


@pytest.mark.parametrize(("type", "arrow", "json"), _NESTED, ids=str)
def test_kept_types_are_those_that_a_shard_gives_back(tmp_path: Path, type: pa.DataType, arrow: Any, json: Any) -> None:
    """Types are in the shard fingerprint: with others, the next run would find nothing of what this one made."""
    values = pa.array([arrow, None], type)
    _parquet(tmp_path / "a.parquet", text=pa.array(["a", "b"]), k=values)
    kept = _check(tmp_path, keep=("k",)).field("k")
    assert str(canonical("k", type)) == str(kept.type)
    assert str(canonical("k", kept.type)) == str(kept.type)
    faults: Faults = {}
    columns = [kept_of_arrow(values, kept, faults)]
    if json is not None:
        columns.append(kept_of_json([json, None], kept, faults))
    assert not faults
    for column in columns:
        assert column.is_valid().to_pylist() == [True, False]
        found = _shard_type(column, kept.type)
        assert (found, str(found)) == (kept.type, str(kept.type))
    for known in (type, found):
        assert str(_check(tmp_path, pa.schema([("k", known)]), keep=("k",)).field("k").type) == str(found)


def test_kept_types_of_jsonl_are_those_that_a_shard_gives_back(tmp_path: Path) -> None:
    _jsonl(tmp_path / "a.jsonl", {"text": "a", "k": [{"x": [1]}]})
    kept = _check(tmp_path, keep=("k",)).field("k")
    column = kept_of_json([[{"x": [1]}], None], kept, {})
    assert str(kept.type) == str(_shard_type(column, kept.type)) == "list<element: struct<x: list<element: int64>>>"


def test_kept_types_of_older_writers_are_those_that_a_shard_gives_back(tmp_path: Path) -> None:
    rows = pa.table({"text": ["a"], "k": [[1]]})
    pq.write_table(rows, tmp_path / "a.parquet", use_compliant_nested_type=False)
    assert str(_check(tmp_path, keep=("k",)).field("k").type) == "list<element: int64>"


def test_files_that_cannot_be_read_or_are_empty_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n \n")
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gz")
    (tmp_path / "c.parquet").write_bytes(b"no Parquet")
    assert _check(tmp_path, keep=("n",)).types == [pa.string()]
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'\xef\xbb\xbf{"text": "a", "n": 1}'))
    assert _check(tmp_path, keep=("n",)).types == [pa.int64()]


def test_what_is_no_jsonl_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\x00\xff just bytes\n[1]\n")
    with pytest.raises(InputError, match=r"no line of a\.jsonl is a JSON object"):
        _check(tmp_path)


def test_plan_files_is_plan_file_of_each_in_order(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"] * 30}), tmp_path / "b.parquet", row_group_size=10)
    _jsonl(tmp_path / "a.jsonl", {"text": "a"})
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}'))
    storage, bounds, input = Storage(str(tmp_path)), SplitBounds(max_rows=10), Input(uri=str(tmp_path))
    files = list_input(storage, None, None, LATER)
    splits, keep = plan_files(storage, files, input, bounds)
    assert splits == [split for file in files for split in plan_file(storage, file, bounds, None, ["text"])]
    assert len(splits) == 5
    assert keep == pa.schema([])
