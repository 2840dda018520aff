"""Queries are read as they were written, a line each; what answers them is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from jobs import search
from pipeline.errors import UsageError
from pipeline.query_file import read_queries
from pipeline.search import SearchableSnapshot
from pipeline.snapshots.manifest import Manifest, manifest_name, put_table
from tests.indexed import QUERIES, make_indexed


def test_only_a_newline_ends_a_query(tmp_path: Path) -> None:
    """JSON may hold U+2028 and its like as they are."""
    texts = ["one\u2028two", "a\u0085b\u2029c", "plain"]
    path = tmp_path / "queries.jsonl"
    lines = [json.dumps({"id": index, "text": text}, ensure_ascii=False) for index, text in enumerate(texts)]
    for end in ("\n", "\r\n"):
        path.write_bytes(end.join([*lines, "", ""]).encode())
        assert read_queries(str(path)) == {str(index): text for index, text in enumerate(texts)}


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b'{"id": 1}',
        b"\xff",
        b'{"id": 1, "text": "a \\ud800"}',
        pytest.param(b"[" * 200_000, id="deep"),
        pytest.param(b'{"id": %s, "text": ""}' % (b"1" * 5000), id="many digits"),
    ],
)
def test_what_is_no_query_is_told(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_bytes(line)
    with pytest.raises(UsageError, match="queries.jsonl"):
        read_queries(str(path))


class FakeEncoder:
    """Each text is the number of a query."""

    def __init__(self, manifest: Manifest) -> None:
        pass

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return QUERIES[[int(text) for text in texts]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SearchableSnapshot:
    return make_indexed(tmp_path_factory.mktemp("store"), "rabitq")


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "QueryEncoder", FakeEncoder)


def asked(snapshot: SearchableSnapshot, *arguments: str) -> Result:
    ran = CliRunner().invoke(search.main, [snapshot.storage.uri, *arguments])
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return ran


def test_the_index_answers_and_is_told_with_its_measured_recall(store: SearchableSnapshot) -> None:
    ran = asked(store, "--query", "3", "--query", "5", "-k", "4", "--json")
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    expected = store.search(QUERIES[[3, 5]], 4)
    assert [answer["doc_id"] for answer in found] == [doc_id for row in expected.doc_ids for doc_id in row]
    assert [answer["rank"] for answer in found] == [0, 1, 2, 3] * 2
    assert found[0]["kept"] == expected.kept[0][0]
    assert set(found[0]) == {"query_id", "query", "rank", "doc_id", "chunk_index", "score", "kept"}
    settings = store.index.description.search
    assert f"index of snapshot 1: nprobe {settings.nprobe} of 20, rerank {settings.rerank}, some " in ran.stderr
    assert f"{store.index.probing().query_bytes:,} bytes a query; recall@10" in ran.stderr
    assert "documents, on which recall is higher than on questions" in ran.stderr


def test_settings_and_filters_are_taken_from_the_command(store: SearchableSnapshot) -> None:
    ran = asked(store, "--query", "3", "--nprobe", "20", "--filter", "year = 2003", "--json", "-k", "3")
    years = [json.loads(line)["kept"]["year"] for line in ran.stdout.splitlines()]
    assert years == [2003] * 3
    assert "nprobe 20 of 20" in ran.stderr
    assert "recall@10" in asked(store, "--query", "3", "--recall", "0.5").stderr
    with pytest.raises(UsageError, match="recall must be above 0, and at most 1"):
        asked(store, "--query", "3", "--recall", "2")
    with pytest.raises(UsageError, match="expression of SQL over doc_id, chunk_index, lang, year"):
        asked(store, "--query", "3", "--filter", "nope = 1")


def test_exact_search_says_so(store: SearchableSnapshot) -> None:
    ran = asked(store, "--query", "3", "--exact", "-k", "2", "--json")
    assert "exact: all 1,500 vectors of snapshot 1" in ran.stderr
    expected = store.search(QUERIES[[3]], 2, exact=True).doc_ids[0]
    assert [json.loads(line)["doc_id"] for line in ran.stdout.splitlines()] == expected


def test_an_index_that_the_snapshot_has_outgrown_is_told(tmp_path: Path) -> None:
    older = make_indexed(tmp_path)
    table = put_table(older.storage, "snapshots/2.shards.parquet", older.shards.slice(0, 1))
    manifest = older.manifest.model_copy(update={"snapshot_id": 2, "shards": table})
    older.storage.put(manifest_name(2), manifest.to_json())
    ran = asked(older, "--query", "3")
    assert "index of snapshot 1" in ran.stderr
    assert "snapshot 2 has other rows" in ran.stderr
    assert "`vecmill index CONFIG`" in ran.stderr
    assert "other rows" not in asked(older, "--query", "3", "--exact").stderr


def test_a_store_without_an_index_is_searched_exactly(tmp_path: Path) -> None:
    plain = make_indexed(tmp_path)
    manifest = plain.manifest.model_copy(update={"snapshot_id": 2, "index": None})
    plain.storage.put(manifest_name(2), manifest.to_json())
    assert "exact: all 1,500 vectors of snapshot 2" in asked(plain, "--query", "3").stderr
    with pytest.raises(UsageError, match="snapshot 2 has no index"):
        asked(plain, "--query", "3", "--nprobe", "3")
