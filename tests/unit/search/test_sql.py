"""DuckDB alone finds neighbours: the statements of the README."""

from __future__ import annotations

from collections.abc import Callable

import duckdb

from pipeline.search import SearchableSnapshot
from tests.indexed import NLIST, QUERIES, brute_force, recall

Indexed = Callable[..., SearchableSnapshot]

# Codec float16: the lists of the nearest centroids, and the nearest of their rows.
BY_LISTS = """
WITH query AS (SELECT $query::FLOAT[16] AS vector),
probed AS (
    SELECT list_id FROM read_parquet($centroids), query
    ORDER BY array_distance(centroid::FLOAT[16], query.vector) LIMIT $nprobe
)
SELECT doc_id, array_cosine_similarity(codes.vector::FLOAT[16], query.vector) AS score
FROM read_parquet($codes) AS codes, query
WHERE list_id IN (SELECT list_id FROM probed)
ORDER BY score DESC LIMIT $k
"""

# Any codec, and no index: the embedding shards.
BY_SHARDS = """
WITH query AS (SELECT $query::FLOAT[16] AS vector)
SELECT doc_id, array_cosine_similarity(shards.vector::FLOAT[16], query.vector) AS score
FROM read_parquet($shards) AS shards, query
ORDER BY score DESC LIMIT $k
"""


def test_duckdb_alone_finds_neighbours_in_lists_of_float16(indexed: Indexed) -> None:
    snapshot = indexed("float16")
    description, full = snapshot.index.description, snapshot.storage.full_uri
    files = {
        "centroids": full(description.centroids.file),
        "codes": [full(part.codes.file) for part in description.parts],
    }
    for nprobe in (4, NLIST):
        found = [
            duckdb.execute(BY_LISTS, {"query": query.tolist(), "nprobe": nprobe, "k": 5, **files}).fetchall()
            for query in QUERIES[:5]
        ]
        ours = snapshot.index.search(QUERIES[:5], 5, nprobe=nprobe)
        assert [[doc_id for doc_id, _ in rows] for rows in found] == ours.doc_ids


def test_duckdb_alone_finds_neighbours_in_embedding_shards(indexed: Indexed) -> None:
    snapshot = indexed("sq8")
    found = [
        duckdb.execute(BY_SHARDS, {"query": query.tolist(), "k": 5, "shards": snapshot.files()}).fetchall()
        for query in QUERIES[:5]
    ]
    assert recall([[doc_id for doc_id, _ in rows] for rows in found], brute_force(QUERIES[:5], 5)) == 1.0


def test_duckdb_and_pyarrow_read_parts_as_ordinary_tables(indexed: Indexed) -> None:
    import pyarrow.parquet as pq

    for codec in ("sq8", "rabitq", "float16"):
        snapshot = indexed(codec)
        parts = [snapshot.storage.full_uri(part.codes.file) for part in snapshot.index.description.parts]
        counted = duckdb.execute(
            "SELECT lang, count(*) FROM read_parquet($parts) WHERE list_id IN (3, 4) GROUP BY lang ORDER BY lang",
            {"parts": parts},
        ).fetchall()
        table = pq.read_table(parts, filters=[("list_id", "in", [3, 4])], columns=["lang"])
        assert sum(num for _, num in counted) == table.num_rows > 0
