"""DuckDB alone finds neighbours: the statement of the README, and the files as ordinary tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from pipeline.search import SearchableSnapshot
from tests.indexed import NLIST, QUERIES, VECTORS, brute_force, recall

Indexed = Callable[..., SearchableSnapshot]

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")

# Any codec, and no index: the embedding shards.
BY_SHARDS = """
WITH query AS (SELECT $query::FLOAT[16] AS vector)
SELECT doc_id, array_cosine_similarity(shards.vector::FLOAT[16], query.vector) AS score
FROM read_parquet($shards) AS shards, query
ORDER BY score DESC LIMIT $k
"""


@pytest.mark.parametrize("nprobe", [4, NLIST])
def test_the_statement_of_the_readme_finds_what_a_search_finds(nprobe: int, indexed: Indexed) -> None:
    snapshot = indexed("float16")
    [statement] = re.findall(r"^```sql\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for there, here in {
        "quickstart/store": snapshot.storage.uri,
        "FLOAT[384]": "FLOAT[16]",
        "LIMIT 4": f"LIMIT {nprobe}",
    }.items():
        assert there in statement
        statement = statement.replace(there, here)
    for row in (0, 7, 1400):
        found = duckdb.connect().execute(statement.replace("json.loads", f"d{row}")).fetchall()
        ours = snapshot.index.search(VECTORS[row : row + 1], 5, nprobe=nprobe)
        assert [doc_id for doc_id, _ in found] == ours.doc_ids[0]
        assert [score for _, score in found] == pytest.approx(ours.scores[0].tolist(), abs=1e-3)


def test_duckdb_alone_finds_neighbours_in_embedding_shards(indexed: Indexed) -> None:
    snapshot = indexed("sq8")
    found = [
        duckdb.connect().execute(BY_SHARDS, {"query": query.tolist(), "k": 5, "shards": snapshot.files()}).fetchall()
        for query in QUERIES[:5]
    ]
    assert recall([[doc_id for doc_id, _ in rows] for rows in found], brute_force(QUERIES[:5], 5)) == 1.0


def test_duckdb_and_pyarrow_read_parts_as_ordinary_tables(indexed: Indexed) -> None:
    import pyarrow.parquet as pq

    for codec in ("sq8", "rabitq", "float16"):
        snapshot = indexed(codec)
        parts = [snapshot.storage.full_uri(part.codes.file) for part in snapshot.index.description.parts]
        counted = (
            duckdb.connect()
            .execute(
                "SELECT lang, count(*) FROM read_parquet($parts) WHERE list_id IN (3, 4) GROUP BY lang ORDER BY lang",
                {"parts": parts},
            )
            .fetchall()
        )
        table = pq.read_table(parts, filters=[("list_id", "in", [3, 4])], columns=["lang"])
        assert sum(num for _, num in counted) == table.num_rows > 0
