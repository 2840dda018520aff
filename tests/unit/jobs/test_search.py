"""Queries are read as they were written, a line each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import search
from pipeline.errors import UsageError


def test_only_a_newline_ends_a_query(tmp_path: Path) -> None:
    """JSON may hold U+2028 and its like as they are."""
    texts = ["one\u2028two", "a\u0085b\u2029c", "plain"]
    path = tmp_path / "queries.jsonl"
    lines = [json.dumps({"id": index, "text": text}, ensure_ascii=False) for index, text in enumerate(texts)]
    for end in ("\n", "\r\n"):
        path.write_bytes(end.join([*lines, "", ""]).encode())
        assert search._read_queries(path) == {str(index): text for index, text in enumerate(texts)}


@pytest.mark.parametrize("line", [b"{", b'{"id": 1}', b"\xff"])
def test_what_is_no_query_is_told(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_bytes(line)
    with pytest.raises(UsageError, match="queries.jsonl"):
        search._read_queries(path)
