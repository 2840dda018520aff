"""The index of a store on S3 is that of a local one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pytest

from pipeline.index.build import build
from pipeline.index.files import read_file, read_quantizer
from pipeline.index.finished import Built
from pipeline.index.layout import DIRECTORY_SCHEMA
from pipeline.index.merge import Merged
from pipeline.index.recall import read_groups
from pipeline.uris import Storage
from tests.snapshots import index_settings, make_snapshot
from tests.vectors import clustered

if TYPE_CHECKING:
    from tests.conftest import S3

VECTORS = clustered(1500, 16)


def groups_of(storage: Storage, built: Built) -> list[tuple[int, bytes, list[int]]]:
    found = built.description
    directory = read_file(storage, found.lists, DIRECTORY_SCHEMA)
    groups = [
        (list_id, codes.tobytes(), rows.tolist())
        for part in found.parts
        for list_id, codes, rows in read_groups(storage, Merged(part, directory), found.num_code_bytes)
    ]
    return sorted(groups)


@pytest.mark.parametrize("codec", ["float16", "rabitq"])
def test_an_index_on_s3_is_that_of_a_local_store(codec: str, s3: S3, tmp_path: Path) -> None:
    storages = [Storage(str(tmp_path)), Storage(f"{s3.uri}/store", s3.options)]
    built = []
    for storage in storages:
        snapshot = make_snapshot(storage, np.array_split(VECTORS, 4))
        built.append(build(snapshot, index_settings(codec=codec, nlist=12)))
    one, other = (each.description for each in built)
    assert (one.index_id, one.quantizer_fp, one.measured, one.search) == (
        *(other.index_id, other.quantizer_fp, other.measured, other.search),
    )
    assert groups_of(storages[0], built[0]) == groups_of(storages[1], built[1])
    read_quantizer(storages[1], other.centroids, other.quantizer_fp).check_golden(other.golden, "s3")
    snapshot = make_snapshot(storages[1], np.array_split(VECTORS, 4))
    s3.requests.clear()
    assert build(snapshot, index_settings(codec=codec, nlist=12)).file == built[1].file
    assert "PUT" not in {method for method, _ in s3.requests}, "what is there is taken as it is"


def test_duckdb_alone_reads_the_lists_of_a_query(tmp_path: Path) -> None:
    snapshot = make_snapshot(Storage(str(tmp_path)), np.array_split(VECTORS, 4))
    found = build(snapshot, index_settings(codec="float16", nlist=12)).description
    codes = [snapshot.storage.full_uri(part.codes.file) for part in found.parts]
    centroids = snapshot.storage.full_uri(found.centroids.file)
    query = VECTORS[5].tolist()
    rows = (
        duckdb.connect()
        .execute(
            """
        WITH probed AS (
            SELECT list_id FROM read_parquet($1)
            ORDER BY array_distance(centroid::FLOAT[16], $2::FLOAT[16]) LIMIT 4
        )
        SELECT doc_id, array_cosine_similarity(vector::FLOAT[16], $2::FLOAT[16]) AS score
        FROM read_parquet($3) WHERE list_id IN (FROM probed) ORDER BY score DESC LIMIT 3
        """,
            [centroids, query, codes],
        )
        .fetchall()
    )
    assert rows[0][0] == "d5"
    exact = np.argsort(-(VECTORS @ VECTORS[5]))[:3]
    assert [doc_id for doc_id, _ in rows] == [f"d{row}" for row in exact]
