"""Text by template, ids, content hashes: alike for every format, and pinned."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import Input
from pipeline.read.documents import Fault, Rows, Target, make_documents, undecodable_rows
from pipeline.schema import DOCUMENT_FIELDS, QUARANTINE_SCHEMA


def _make(
    texts: dict[str, list[str | None]], ids: list[str | None] | None = None, **given: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    template = given.pop("template", "".join(f"{{{name}}}" for name in texts))
    num_rows = len(next(iter(texts.values())))
    input = Input(uri="x", text=template, id="id" if ids is not None else None)
    target = Target(input, pa.schema([]), "a.jsonl", given.pop("quarantine_text", False))
    columns = {name: pa.array(values, pa.large_string()) for name, values in texts.items()}
    id_array = None if ids is None else pa.array(ids, pa.string())
    rows = Rows(np.arange(num_rows) * 10, columns, id_array, [], given.pop("faults", {}), **given)
    documents, quarantine = make_documents(rows, target)
    assert documents.schema == pa.schema(DOCUMENT_FIELDS)
    assert quarantine.schema == QUARANTINE_SCHEMA
    return documents.to_pylist(), quarantine.to_pylist()


def test_template_joins_columns_and_a_null_column_is_empty() -> None:
    texts: dict[str, list[str | None]] = {"title": ["T", None, "ä"], "body": ["B", "C", None]}
    documents, _ = _make(texts, template="<{title}>\n\n{body}. {title}")
    assert [row["text"] for row in documents] == ["<T>\n\nB. T", "<>\n\nC. ", "<ä>\n\n. ä"]


def test_content_hash_is_of_the_text_after_the_template() -> None:
    [document], _ = _make({"a": ["x"], "b": ["é"]}, template="{a} {b}")
    assert document["content_hash"] == blake2b("x é".encode(), digest_size=16).digest()


def test_derived_ids_are_file_and_position() -> None:
    documents, _ = _make({"text": ["a", "b"]})
    assert [(row["doc_id"], row["row"]) for row in documents] == [("a.jsonl#0", 0), ("a.jsonl#10", 10)]


def test_white_space_is_no_text_and_nul_is() -> None:
    blank = ["", " \t\r\n", "\u00a0\u2003\u3000", None]
    documents, quarantine = _make({"text": ["a", *blank, "\x00", " b "]})
    assert [row["text"] for row in documents] == ["a", "\x00", " b "]
    assert [(row["row"], row["reason"], row["stage"]) for row in quarantine] == [
        (row, "empty_text", "read") for row in (10, 20, 30, 40)
    ]


def test_a_null_or_empty_id_is_missing() -> None:
    documents, quarantine = _make({"text": ["a", "b", "c"]}, ids=["x", None, ""])
    assert [row["doc_id"] for row in documents] == ["x"]
    assert [(row["doc_id"], row["row"], row["reason"]) for row in quarantine] == [
        (None, 10, "missing_id"),
        (None, 20, "missing_id"),
    ]


def test_the_first_fault_is_the_reason_and_the_id_is_told_if_there_is_one() -> None:
    faults = {1: Fault("wrong_type", "why")}
    documents, [bad] = _make({"text": ["a", None]}, ids=["x", "y"], faults=faults)
    assert len(documents) == 1
    assert bad == {
        "doc_id": "y",
        "input_file": "a.jsonl",
        "row": 10,
        "content_hash": None,
        "stage": "read",
        "reason": "wrong_type",
        "message": "why",
        "text": None,
    }


def test_quarantine_holds_text_only_if_asked() -> None:
    faults = {0: Fault("wrong_type", "why"), 1: Fault("invalid_json", "why")}
    _, bad = _make({"text": ["secret", None]}, faults=dict(faults), raw=[b"line", b"\xffraw\n"])
    assert [row["text"] for row in bad] == [None, None]
    _, bad = _make({"text": ["secret", None]}, faults=dict(faults), raw=[b"line", b"\xffraw\n"], quarantine_text=True)
    assert [row["text"] for row in bad] == ["secret", "\ufffdraw"]


def test_rows_that_cannot_be_decoded_are_named_where_names_are_known() -> None:
    for column, names in ((None, ["a#3", "a#4"]), ("id", [None, None])):
        target = Target(Input(uri="x", id=column), pa.schema([]), "a")
        table = undecodable_rows(target, 3, 5, "why")
        assert table["doc_id"].to_pylist() == names
        assert table["row"].to_pylist() == [3, 4]
