"""Values become text, ids and kept values as they are, or a fault; a column is never half converted."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pytest

from pipeline.read.columns import (
    ids_of_arrow,
    ids_of_json,
    kept_of_arrow,
    kept_of_json,
    text_of_arrow,
    text_of_json,
)
from pipeline.read.documents import Faults

BAD_UTF8 = pa.array([b"ok", b"a\xffb", None, b"\xed\xa0\x80"])


def _reasons(faults: Faults) -> dict[int, str]:
    return {position: fault.reason for position, fault in faults.items()}


def test_json_text_is_strings_numbers_and_booleans() -> None:
    faults: Faults = {}
    made = text_of_json(["a", None, 1, 1.5, True, 10**30, [], {}, "\ud800"], "t", faults)
    assert made.to_pylist() == ["a", None, "1", "1.5", "True", str(10**30), None, None, None]
    assert _reasons(faults) == {6: "wrong_type", 7: "wrong_type", 8: "invalid_utf8"}


def test_json_ids_are_strings_and_whole_numbers() -> None:
    faults: Faults = {}
    made = ids_of_json(["a", 10**20, None, True, 1.0, []], "id", faults)
    assert made.to_pylist() == ["a", str(10**20), None, None, None, None]
    assert _reasons(faults) == dict.fromkeys((3, 4, 5), "wrong_type")


@pytest.mark.parametrize("type", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view()])
def test_every_kind_of_string_column_is_text(type: pa.DataType) -> None:
    values: list[Any] = ["ä", None, "b"]
    made = text_of_arrow(pa.array(values, pa.large_string()).cast(type), "t", {})
    assert made.type == pa.large_string()
    assert made.to_pylist() == values
    if not type.equals(pa.binary_view()) and not type.equals(pa.string_view()):
        encoded = pa.array(values, pa.large_string()).cast(type).dictionary_encode()
        assert text_of_arrow(encoded, "t", {}).to_pylist() == values
    assert ids_of_arrow(pa.array(values, pa.large_string()).cast(type), "t", {}).to_pylist() == values


@pytest.mark.parametrize("type", [pa.string(), pa.large_string(), pa.string_view(), pa.binary()])
def test_invalid_utf8_in_arrow_is_found_by_row(type: pa.DataType) -> None:
    column = BAD_UTF8.cast(pa.binary_view()).view(type) if type.equals(pa.string_view()) else _unchecked(type)
    faults: Faults = {}
    assert text_of_arrow(column, "t", faults).to_pylist() == ["ok", None, None, None]
    assert _reasons(faults) == {1: "invalid_utf8", 3: "invalid_utf8"}
    assert "byte 1" in faults[1].message


def _unchecked(type: pa.DataType) -> pa.Array:
    return BAD_UTF8.cast(pa.large_binary()).view(type) if type.equals(pa.large_string()) else BAD_UTF8.view(type)


def test_bytes_of_one_length_are_text_where_they_are_utf8() -> None:
    values = [b"abc", b"a\xffb", None, b"\xe2\x82\xac"]
    column = pa.array(values, pa.binary(3))
    for array in (column, column.dictionary_encode()):
        for read in (text_of_arrow, ids_of_arrow):
            faults: Faults = {}
            assert read(array, "t", faults).to_pylist() == ["abc", None, None, "€"]
            assert _reasons(faults) == {1: "invalid_utf8"}
    faults = {}
    assert text_of_arrow(pa.array([b"\xff" * 16, b"a" * 16], pa.uuid()), "t", faults).to_pylist() == [None, "a" * 16]
    assert _reasons(faults) == {0: "invalid_utf8"}


def test_a_column_that_cannot_be_written_as_text_is_quarantined_not_raised() -> None:
    faults: Faults = {}
    column = pa.array([0, None], pa.timestamp("ms", "Nowhere/X"))
    assert text_of_arrow(column, "t", faults).to_pylist() == [None, None]
    assert _reasons(faults) == {0: "wrong_type"}


def test_the_same_value_is_the_same_text_in_parquet_and_jsonl() -> None:
    for values in ([1, None, -5], [1.5, 1e16, 0.1, None], [True, False]):
        assert text_of_arrow(pa.array(values), "t", {}).equals(text_of_json(values, "t", {}))


def test_nested_arrow_text_and_odd_ids_are_faults() -> None:
    faults: Faults = {}
    text_of_arrow(pa.array([["a"], None]), "t", faults)
    assert _reasons(faults) == {0: "wrong_type"}
    ids_of_arrow(pa.array([None, 1.5]), "t", faults)
    assert _reasons(faults) == {0: "wrong_type", 1: "wrong_type"}
    assert ids_of_arrow(pa.array([7, None]), "t", {}).to_pylist() == ["7", None]


@pytest.mark.parametrize(
    ("type", "good", "made", "bad"),
    [
        (pa.int64(), [1, None, 2.0], [1, None, 2], ["5", 1.5, True, 2**63, [1], {}]),
        (pa.float64(), [1, 1.5, None], [1.0, 1.5, None], ["1.5", True, 2**70, []]),
        (pa.string(), ["a", None], ["a", None], [1, True, ["a"], {}]),
        (pa.bool_(), [True, None], [True, None], [1, "true"]),
        (pa.list_(pa.int64()), [[1], [], None], [[1], [], None], [1, ["a"], {}, [1.5]]),
        (pa.list_(pa.int64(), 2), [[1, None], None], [[1, None], None], [[1], [1, 2, 3], [1, "a"], 1]),
        (pa.large_list(pa.int64()), [[1], None], [[1], None], [1, ["a"], [1.5]]),
        (pa.list_(pa.field("element", pa.int64(), nullable=False)), [[1]], [[1]], [[None], [1, None]]),
        (
            pa.map_(pa.string(), pa.int64()),
            [{"a": 1, "b": None}, None],
            [[("a", 1), ("b", None)], None],
            [[], {"a": "b"}],
        ),
        (
            pa.list_(pa.timestamp("ms")),
            [["1970-01-01"], None],
            [[datetime(1970, 1, 1)], None],
            [["x"], [1], "1970-01-01"],
        ),
        (pa.struct([("x", pa.int64())]), [{"x": 1}, None], [{"x": 1}, None], [{"x": "a"}, {"y": 1}, [1]]),
        (pa.date32(), ["2020-01-02", None], [date(2020, 1, 2), None], ["no date", 5.5, 5]),
    ],
)
def test_kept_json_values_become_the_type_or_a_fault(
    type: pa.DataType, good: list[Any], made: list[Any], bad: list[Any]
) -> None:
    faults: Faults = {}
    column = kept_of_json([*good, *bad], pa.field("k", type), faults)
    assert column.type == type
    assert column.to_pylist() == [*made, *[None] * len(bad)]
    assert _reasons(faults) == {len(good) + i: "wrong_type" for i in range(len(bad))}


def test_a_lone_surrogate_in_a_kept_column_is_invalid_utf8() -> None:
    for value, type in (("\ud800", pa.string()), (["\ud800"], pa.list_(pa.string()))):
        faults: Faults = {}
        assert kept_of_json([value, None], pa.field("k", type), faults).to_pylist() == [None, None]
        assert _reasons(faults) == {0: "invalid_utf8"}


def test_kept_arrow_columns_are_cast() -> None:
    def cast(column: pa.Array, type: pa.DataType) -> list[Any]:
        return list(kept_of_arrow(column, pa.field("k", type), {}).to_pylist())

    assert cast(pa.array(["a", "b", "a"]).dictionary_encode(), pa.string()) == ["a", "b", "a"]
    assert cast(pa.array([1, None], pa.int8()), pa.int64()) == [1, None]
    assert cast(pa.nulls(2), pa.date32()) == [None, None]
    assert cast(pa.array([date(2020, 1, 2)]), pa.date32()) == [date(2020, 1, 2)]


def test_kept_arrow_values_that_do_not_fit_are_found_by_row() -> None:
    faults: Faults = {}
    made = kept_of_arrow(pa.array([1, 2**40, None]), pa.field("k", pa.int32()), faults)
    assert made.to_pylist() == [1, None, None]
    assert _reasons(faults) == {1: "wrong_type"}


def test_invalid_utf8_in_kept_arrow_columns_is_found_by_row() -> None:
    strings = BAD_UTF8.view(pa.string())
    nested = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3, 4], pa.int32()), strings)
    for column, type in ((strings, pa.string()), (nested, pa.list_(pa.string()))):
        faults: Faults = {}
        made = kept_of_arrow(column, pa.field("k", type), faults)
        assert _reasons(faults) == {1: "invalid_utf8", 3: "invalid_utf8"}
        made.validate(full=True)
