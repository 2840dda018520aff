"""A store of documents in chunks: books, audit, search, where and duplicates speak of documents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.search import answer_texts
from pipeline.config import EncoderSettings
from pipeline.duplicates import coming_splits, find_duplicates, without_rows
from pipeline.errors import StoreError, VecmillError
from pipeline.search import QueryEncoder, exact_search, nearest_documents
from pipeline.snapshots.commit import publish
from pipeline.snapshots.manifest import SHARDS_SCHEMA, SPLITS_SCHEMA, put_table, read_table
from pipeline.snapshots.reader import open_snapshot
from pipeline.snapshots.records import Record, ShardFile
from pipeline.snapshots.table import RecordTable
from pipeline.tokens import tokenize
from pipeline.uris import Storage
from pipeline.verify import encode_again, verify
from pipeline.where import find_document
from pipeline.write import make_attempt
from tests.corpus import Job, Row, make_rows
from tests.embedded import Embedder, make_job
from tests.stores import make_record, publication, put

ROWS = [row for number in range(12) for row in make_rows(1, begin=number, words=150 if number % 3 == 1 else 1)]
LONG = [row["id"] for row in ROWS[1::3]]


def chunking(folder: Path, model: Path) -> Job:
    job = make_job(folder, model)
    job.config["encoder"] = {"model": str(model), "overlong": "chunk", "compute": "float32"}
    return job


@pytest.fixture(scope="module")
def embedded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Embedder]:
    job = chunking(tmp_path_factory.mktemp("chunked"), tiny)
    embedder = Embedder(job)
    embedder.publish({"a.parquet": ROWS[:7], "b.jsonl": ROWS[7:]})
    return job, embedder


def table_of(job: Job) -> pa.Table:
    return open_snapshot(job.store.uri).dataset().to_table()


def test_the_books_count_documents_and_chunks_apart(embedded: tuple[Job, Embedder]) -> None:
    job, _ = embedded
    snapshot = open_snapshot(job.store.uri)
    found = snapshot.manifest.accounting
    assert (found.documents_in, found.embedded, found.truncated) == (12, 12, 0)
    assert found.chunks == table_of(job).num_rows > 20
    assert sum(snapshot.shards["num_documents"].to_pylist()) == 12
    assert snapshot.manifest.encoder["overlong"] == "chunk"


def test_the_audit_finds_nothing_and_every_chunk_again(
    embedded: tuple[Job, Embedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, embedder = embedded
    audit = verify(job.store)
    assert (audit.findings, audit.rows) == ([], table_of(job).num_rows)
    monkeypatch.setattr("pipeline.splits.files.SETTLED_S", 0)
    again = encode_again(open_snapshot(job.store.uri), embedder.config, num_rows=10**4)
    assert (again.findings, again.unchecked, again.rows) == ([], [], audit.rows)
    assert again.min_cosine > 0.9999


def test_search_shows_the_place_of_a_chunk(embedded: tuple[Job, Embedder]) -> None:
    job, embedder = embedded
    rows = table_of(job).to_pylist()
    chunk = next(row for row in rows if row["num_chunks"] > 2 and row["chunk_index"] == 2)
    texts = {row["id"]: f"{row['title']}. {row['body']}" for row in ROWS}
    text = texts[chunk["doc_id"]][chunk["char_begin"] : chunk["char_end"]]
    answers = list(answer_texts(open_snapshot(job.store.uri), embedder.config, [text, texts["d0"]], 1))
    assert [(answer["doc_id"], answer["chunk_index"]) for answer in answers] == [(chunk["doc_id"], 2), ("d0", 0)]
    assert (answers[0]["char_begin"], answers[0]["char_end"]) == (chunk["char_begin"], chunk["char_end"])
    assert "char_begin" not in answers[1]


def test_a_search_needs_no_chunker_of_the_same_version(
    embedded: tuple[Job, Embedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, embedder = embedded
    manifest = open_snapshot(job.store.uri).manifest
    queries = QueryEncoder(manifest, embedder.config.encoder.model_copy(update={"overlong": "truncate"})).encode(["x"])
    np.testing.assert_allclose(queries, QueryEncoder(manifest, embedder.config.encoder).encode(["x"]), atol=1e-6)


@pytest.mark.parametrize("change", [{"pooling": "cls"}, {"max_tokens": 20}, {"prompt": "to: "}, {"truncate_dim": 8}])
def test_a_query_encoder_whose_vectors_compare_to_nothing_is_refused(
    embedded: tuple[Job, Embedder], change: dict[str, Any]
) -> None:
    job, embedder = embedded
    manifest = open_snapshot(job.store.uri).manifest
    settings = EncoderSettings.model_validate({**job.config["encoder"], **change})
    with pytest.raises(StoreError, match=f"made by the encoder {manifest.encoder_fp} .*, this one is [0-9a-f]{{16}}"):
        QueryEncoder(manifest, settings)
    with pytest.raises(StoreError, match="input.text differ"):
        QueryEncoder(manifest, embedder.config.encoder, template="{title}")


def test_documents_are_ranked_by_their_nearest_chunk(embedded: tuple[Job, Embedder]) -> None:
    job, embedder = embedded
    snapshot = open_snapshot(job.store.uri)
    queries = QueryEncoder(snapshot.manifest, embedder.config.encoder).encode(["the river carries", "a letter"])
    all_rows = exact_search(snapshot, queries, 10**3)
    for index in range(len(queries)):
        best: dict[str, float] = {}
        for doc_id, score in zip(all_rows.doc_ids[index], all_rows.scores[index].tolist(), strict=True):
            best[doc_id] = max(score, best.get(doc_id, -1))
        ranked = sorted(best.items(), key=lambda item: -item[1])
        for k in range(1, 12):
            assert nearest_documents(snapshot, queries, k)[index] == pytest.approx(dict(ranked[:k]))
    assert [len(found) for found in nearest_documents(snapshot, queries, 50)] == [12, 12]


def test_where_shows_all_chunks_of_a_document(embedded: tuple[Job, Embedder]) -> None:
    job, _ = embedded
    [place] = find_document(job.store, LONG[1]).places
    rows = [row for row in table_of(job).to_pylist() if row["doc_id"] == LONG[1]]
    assert place["num_chunks"] == len(place["rows"]) == len(rows) > 1
    assert place["chars"] == [[row["char_begin"], row["char_end"]] for row in rows]
    assert place["row"] == int(LONG[1][1:])


def test_a_document_with_an_earlier_id_leaves_with_all_its_chunks(tiny: Path, tmp_path: Path) -> None:
    job = chunking(tmp_path, tiny)
    doubled: list[Row] = [*ROWS[:3], {**ROWS[4], "id": "d0"}, *ROWS[5:7]]
    [record] = Embedder(job).publish({"a.parquet": doubled})
    coming = coming_splits([record], SPLITS_SCHEMA.empty_table(), SHARDS_SCHEMA.empty_table())
    found = find_duplicates(job.store, coming, has_vanished=True)
    assert found.num == 1
    after = without_rows(job.store, record, found.rows[record.split_id], run_id="later", with_text=False)
    assert (after.num_quarantined, after.shard.num_documents) == (1, 5)
    snapshot = publish(job.store, publication_of(job, after))
    assert (snapshot.accounting.embedded, snapshot.accounting.quarantined) == (5, 1)
    assert verify(job.store).findings == []


def publication_of(job: Job, record: Record) -> Any:
    manifest = open_snapshot(job.store.uri).manifest
    same = {name: getattr(manifest, name) for name in ("encoder", "encoder_fp", "shard_fp", "keep", "config")}
    return publication(manifest, [record], **same)


def test_chunks_that_are_missing_are_told(embedded: tuple[Job, Embedder], tmp_path: Path) -> None:
    """The counts of documents are still right; the books, and record and table, agree with each other."""
    _, embedder = embedded
    copy = chunking(tmp_path, Path(embedder.config.encoder.model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.embedded.make_attempt", _without_last_chunk())
        Embedder(copy).publish({"a.parquet": ROWS[:7]})
    findings = verify(copy.store).findings
    assert [finding.partition(": ")[2] for finding in findings] == [
        "num_chunks is not how many there are in 1 rows, the first of them " + findings[0].rpartition(" ")[2]
    ]


def test_a_chunk_under_the_id_of_another_document_is_told(embedded: tuple[Job, Embedder], tmp_path: Path) -> None:
    _, embedder = embedded
    copy = chunking(tmp_path, Path(embedder.config.encoder.model))

    def make(fingerprints: Any, split_id: str, rows: pa.Table, *rest: Any, **options: Any) -> Any:
        ids = rows["doc_id"].to_pylist()
        ids[_last_chunk(rows)] = "another"
        place = rows.schema.get_field_index("doc_id")
        changed = rows.set_column(place, rows.schema.field(place), pa.array(ids, rows.schema.field(place).type))
        return make_attempt(fingerprints, split_id, changed, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.embedded.make_attempt", make)
        Embedder(copy).publish({"a.parquet": ROWS[:7]})
    assert "chunks are out of order" in "; ".join(verify(copy.store).findings)


def test_a_chunk_that_its_text_does_not_make_is_told(
    embedded: tuple[Job, Embedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, embedder = embedded
    monkeypatch.setattr("pipeline.splits.files.SETTLED_S", 0)
    monkeypatch.setattr(
        "pipeline.verify.again.tokenize",
        lambda documents, tokenizer, **options: tokenize(documents, replace(tokenizer, chunker=None), **options),
    )
    again = encode_again(open_snapshot(job.store.uri), embedder.config, num_rows=10**4)
    told = [finding for finding in again.findings if finding.endswith(", its text makes 1")]
    assert len(told) == again.rows - len(ROWS)


def _last_chunk(rows: pa.Table) -> int:
    return int(np.flatnonzero(rows["chunk_index"].to_numpy() > 0)[-1])


def _without_last_chunk() -> Any:
    def make(fingerprints: Any, split_id: str, rows: pa.Table, *rest: Any, **options: Any) -> Any:
        last = _last_chunk(rows)
        kept = pa.array(np.delete(np.arange(rows.num_rows), last))
        return make_attempt(fingerprints, split_id, rows.take(kept), *rest, **options)

    return make


# -- books and records --------------------------------------------------------


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def with_chunks(record: Record, num_documents: int) -> Record:
    """The same record, its rows being chunks of so many documents."""
    return replace(
        record, num_documents=num_documents, num_counted=num_documents, shard=shard_of(record, num_documents)
    )


def shard_of(record: Record, num_documents: int) -> ShardFile:
    return replace(record.shard, num_documents=num_documents)


def test_embedded_and_reused_are_documents_whatever_their_chunks(storage: Storage) -> None:
    first = with_chunks(put(storage, make_record("a", 0, 9)), 4)
    second = put(storage, make_record("b", 0, 3))
    one = publish(storage, publication(None, [first, second]))
    assert (one.accounting.documents_in, one.accounting.embedded, one.accounting.chunks) == (7, 7, 12)
    third = with_chunks(put(storage, make_record("c", 0, 8)), 2)
    two = publish(storage, publication(one, [third], carried=[first.file_id, second.file_id]))
    found = two.accounting
    assert (found.documents_in, found.embedded, found.reused, found.chunks) == (9, 2, 7, 20)


def test_a_shard_with_chunks_of_other_documents_is_refused(storage: Storage) -> None:
    record = with_chunks(put(storage, make_record("a", 0, 9)), 4)
    with pytest.raises(VecmillError, match="has not as many rows, or documents in chunks"):
        publish(storage, publication(None, [replace(record, shard=shard_of(record, 3))]))


def test_a_record_without_chunks_is_written_as_before_there_were_any() -> None:
    record = make_record()
    assert b"num_documents" not in record.to_json().partition(b'"shard":')[2].partition(b"}")[0]
    for one in (record, with_chunks(record, 2)):
        assert Record.from_json(one.to_json()) == one
        assert list(RecordTable.of([one])) == [one]


def test_a_table_from_before_there_were_chunks_is_read(storage: Storage) -> None:
    old = pa.schema([field for field in SHARDS_SCHEMA if field.name != "num_documents"])
    values = dict.fromkeys(old.names, 1) | {"file": "f", "checksum": "c", "compute": "float32", "deletes": None}
    ref = put_table(storage, "snapshots/x.parquet", pa.Table.from_pylist([values], old))
    assert read_table(storage, ref, SHARDS_SCHEMA)["num_documents"].to_pylist() == [None]


def test_a_table_without_a_column_that_it_always_had_is_refused(storage: Storage) -> None:
    bad = pa.schema([field for field in SHARDS_SCHEMA if field.name != "size"])
    ref = put_table(storage, "snapshots/x.parquet", bad.empty_table())
    with pytest.raises((StoreError, KeyError)):
        read_table(storage, ref, SHARDS_SCHEMA)
