"""What a name of the config means: a column, a field within one, a part of the path; the first that there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Input, SplitBounds
from pipeline.errors import InputError
from pipeline.read import read_split
from pipeline.splits import InputFile, check_columns, list_input, plan_files
from pipeline.splits.files import Clock
from pipeline.splits.names import MISSING, find_path, partitions, value_at
from pipeline.uris import Storage
from tests.formats import stream_bytes

LATER = Clock(now_ns=lambda: 2**62)


def _write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    elif path.suffix == ".txt":
        path.write_text(rows[0]["text"])
    else:
        table = pa.Table.from_pylist(rows, schema)
        pq.write_table(table, path) if path.suffix == ".parquet" else path.write_bytes(stream_bytes(table))


def _read(root: Path, **input: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Documents and quarantine of all files, by URI."""
    storage, config = Storage(str(root)), Input.model_validate({"uri": str(root), **input})
    splits, keep = plan_files(storage, list_input(storage, None, None, LATER), config, SplitBounds())
    made = [one for split in splits for one in read_split(storage, split, config, keep, SplitBounds())]
    assert all(one.num_documents == one.num_counted for one in made)
    documents = [row for one in made if one.documents is not None for row in one.documents.to_pylist()]
    return documents, [row for one in made for row in one.quarantine.to_pylist()]


# -- nested --------------------------------------------------------------------

NESTED: list[dict[str, Any]] = [
    {"meta": {"title": "one", "id": "a", "by": {"name": "x"}}},
    {"meta": {"title": None, "id": "b", "by": {"name": "y"}}},
    {"meta": {"title": "three", "id": "c", "by": None}},
    {"meta": None},
]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl"])
def test_nested_fields_in_text_id_and_keep(tmp_path: Path, name: str) -> None:
    """Null anywhere on the way is empty."""
    _write(tmp_path / name, NESTED)
    documents, bad = _read(tmp_path, text="{meta.title} by {meta.by.name}", id="meta.id", keep=["meta.by.name"])
    found = [(row["doc_id"], row["text"], row["meta.by.name"]) for row in documents]
    assert found == [("a", "one by x", "x"), ("b", " by y", "y"), ("c", "three by ", None)]
    assert [row["reason"] for row in bad] == ["missing_id"]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl"])
def test_a_column_of_just_that_name_wins(tmp_path: Path, name: str) -> None:
    _write(tmp_path / name, [{"meta.title": "flat", "meta": {"title": "nested"}, "a.b": {"c": "dotted"}}])
    assert [row["text"] for row in _read(tmp_path, text="{meta.title} {a.b.c}")[0]] == ["flat dotted"]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl"])
@pytest.mark.parametrize("missing", ["meta.titel", "mata.title", "meta.by.name.first", "meta."])
def test_a_missing_field_is_refused_as_a_missing_column_is(tmp_path: Path, name: str, missing: str) -> None:
    _write(tmp_path / name, NESTED[:1])
    with pytest.raises(InputError, match=rf"input\.text: no column {missing} in {name}; there are: meta"):
        _read(tmp_path, text=f"{{{missing}}}")


def test_something_other_than_an_object_on_the_way_is_that_lines_fault(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", [*NESTED[:1], {"meta": "a string"}, {"meta": [1]}, {}, {"meta": {}}])
    documents, bad = _read(tmp_path, text="{meta.title}")
    assert [row["text"] for row in documents] == ["one"]
    assert [row["reason"] for row in bad] == ["wrong_type", "wrong_type", "empty_text", "empty_text"]


def test_lists_and_maps_are_no_way(tmp_path: Path) -> None:
    schema = pa.schema([("l", pa.list_(pa.struct([("x", pa.string())]))), ("m", pa.map_(pa.string(), pa.string()))])
    _write(tmp_path / "a.parquet", [{"l": [{"x": "a"}], "m": [("x", "a")]}], schema)
    for name in ("l.x", "m.x", "l.list.element.x", "m.key_value.key"):
        with pytest.raises(InputError, match=f"no column {name}"):
            _read(tmp_path, text=f"{{{name}}}")


def test_a_name_is_looked_up_longest_first() -> None:
    struct = pa.schema([("a", pa.struct([("b.c", pa.string()), ("b", pa.struct([("c", pa.string())]))]))])
    assert find_path(struct, "a.b.c") == ("a", "b.c")
    assert find_path(struct, "a.b") == ("a", "b")
    assert find_path(struct, "b") is None
    assert value_at({"a": {"b.c": 1, "b": {"c": 2}}}, "a.b.c") == 1
    assert value_at({"a": {"b": {"c": 2}}}, "a.b.c") == 2
    assert value_at({"a": {}}, "a.b") is MISSING
    assert value_at({"a": None}, "a.b") is None


# -- parts of the path ---------------------------------------------------------


def test_parts_of_a_path() -> None:
    assert partitions("lang=de/year=2024/part=1.parquet") == {"lang": "de", "year": "2024"}
    assert partitions("a%3Db=c%2Fd%20e/x=/y=__HIVE_DEFAULT_PARTITION__/f") == {"a=b": "c/d e", "x": "", "y": None}
    assert partitions("=x/plain/a.jsonl") == {}


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "jsonl", "csv", "txt"])
def test_parts_of_the_path_in_text_id_and_keep(tmp_path: Path, suffix: str) -> None:
    """In a text and an id as they are written; kept ones are whole numbers if all are."""
    _write(tmp_path / f"lang=de/month=07/a.{suffix}", [{"text": "one"}])
    _write(tmp_path / f"lang=pt%2Fbr/month=11/b.{suffix}", [{"text": "two"}])
    documents, bad = _read(tmp_path, text="{lang} {month}: {text}", id="month", keep=["lang", "month"])
    assert [(row["doc_id"], row["text"], row["lang"], row["month"]) for row in documents] == [
        ("07", "de 07: one", "de", 7),
        ("11", "pt/br 11: two", "pt/br", 11),
    ]
    assert not bad


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "jsonl", "csv"])
def test_a_column_of_the_files_own_wins(tmp_path: Path, suffix: str) -> None:
    _write(tmp_path / f"lang=de/a.{suffix}", [{"text": "one", "lang": "en"}])
    documents, _ = _read(tmp_path, text="{lang} {text}", keep=["lang"])
    assert [(row["text"], row["lang"]) for row in documents] == [("en one", "en")]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "txt"])
def test_kept_parts_of_paths_have_one_type_over_the_corpus(tmp_path: Path, suffix: str) -> None:
    for value in ("2024", "07", "__HIVE_DEFAULT_PARTITION__"):
        _write(tmp_path / f"y={value}/a.{suffix}", [{"text": "one"}])
    assert [row["y"] for row in _read(tmp_path, keep=["y"])[0]] == [7, 2024, None]
    _write(tmp_path / f"y={2**40}/a.{suffix}", [{"text": "one"}])
    assert [row["y"] for row in _read(tmp_path, keep=["y"])[0]] == ["07", str(2**40), "2024", None]
    _write(tmp_path / f"y=unknown/a.{suffix}", [{"text": "one"}])
    assert [row["y"] for row in _read(tmp_path, keep=["y"])[0]] == ["07", str(2**40), "2024", None, "unknown"]


def test_new_files_go_with_the_type_that_the_snapshot_before_has(tmp_path: Path) -> None:
    storage, config = Storage(str(tmp_path)), Input(uri="x", keep=("y",))
    numbers, texts = (pa.schema([("y", type)]) for type in (pa.int32(), pa.string()))
    new = [InputFile("y=2024/a.txt", 1, "x", "etag")]
    assert check_columns(storage, new, config, texts) == texts
    assert check_columns(storage, new, config, numbers) == numbers
    with pytest.raises(InputError, match=r"input\.keep: y is int32 in the snapshot before and string in y=x/a\.txt"):
        check_columns(storage, [InputFile("y=x/a.txt", 1, "x", "etag")], config, numbers)


def test_parts_of_the_path_that_are_not_named_shape_nothing(tmp_path: Path) -> None:
    for folder in ("lang=de", "plain"):
        _write(tmp_path / folder / "a.jsonl", [{"text": "one"}])
    one, other = _read(tmp_path)[0]
    assert {**one, "doc_id": ""} == {**other, "doc_id": ""}


def test_a_part_that_is_missing_is_told_with_those_there_are(tmp_path: Path) -> None:
    _write(tmp_path / "lang=de/a.parquet", [{"text": "one"}])
    _write(tmp_path / "b.parquet", [{"text": "two"}])
    with pytest.raises(InputError, match=r"input\.keep: no column lang in b\.parquet; there are: text"):
        _read(tmp_path, keep=["lang"])
    with pytest.raises(InputError, match=r"no column year in .*; there are: text"):
        _read(tmp_path, keep=["year"])
