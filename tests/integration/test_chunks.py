"""`overlong: chunk` end to end: long documents in windows, all of their text, and the books of documents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.corpus import Job, make_rows, put_files, run_command, texts_of
from tests.integration.conftest import forbid_flow

pytestmark = pytest.mark.usefixtures("ray_in_process")

PROMPT = "the text: "
ROWS = [row for number in range(40) for row in make_rows(1, begin=number, words=400 if number % 5 == 2 else 1)]
NAMELESS = {"id": None, "title": "A", "body": "row"}


@pytest.fixture(scope="module")
def job(ray_in_process: None, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = Job.local(
        tmp_path_factory.mktemp("chunks"),
        tiny_model,
        input={"keep": ["lang"]},
        store={"dtype": "float32", "keep_text": True},
        encoder={
            "compute": "float32",
            "prompt": PROMPT,
            "overlong": "chunk",
            "chunk": {"tokens": 32, "overlap_tokens": 8},
        },
        splits={"max_rows": 9},
    )
    job.config["input"]["text"] = "{title}. {body}"
    put_files(job.corpus, {"a.parquet": ROWS[:20], "b.jsonl": ROWS[20:30], "c.jsonl.gz": ROWS[30:]})
    outcome = job.published()
    assert {key: outcome[key] for key in ("documents_in", "embedded", "quarantined", "truncated")} == {
        "documents_in": 40,
        "embedded": 40,
        "quarantined": 0,
        "truncated": 0,
    }
    return job


def table_of(job: Job) -> pa.Table:
    return job.snapshot().dataset().to_table()


def test_windows_cover_each_document_and_none_is_over_the_limit(job: Job) -> None:
    rows = table_of(job).to_pylist()
    assert [row["doc_id"] for row in rows if row["chunk_index"] == 0] == [row["id"] for row in ROWS]
    for number, (row, text) in enumerate(zip(ROWS, texts_of(ROWS), strict=True)):
        chunks = [chunk for chunk in rows if chunk["doc_id"] == row["id"]]
        assert [chunk["chunk_index"] for chunk in chunks] == list(range(len(chunks)))
        assert {chunk["num_chunks"] for chunk in chunks} == {len(chunks)}
        assert (len(chunks) > 1) == (number % 5 == 2)
        covered = 0
        for chunk in chunks:
            assert not text[covered : chunk["char_begin"]].strip()
            covered = chunk["char_end"]
            assert chunk["text"] == text[chunk["char_begin"] : chunk["char_end"]]
            assert chunk["lang"] == row["lang"]
        assert covered == len(text)
    assert max(row["num_tokens"] for row in rows) <= 48
    assert not any(row["truncated"] for row in rows)
    assert job.snapshot().manifest.accounting.chunks == len(rows) > 200


def test_vectors_are_those_of_the_chunks_texts(job: Job, tiny_model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    table = table_of(job)
    model = SentenceTransformer(str(tiny_model), device="cpu")
    wanted = model.encode(table["text"].to_pylist(), prompt=PROMPT, normalize_embeddings=True)
    found = np.array(table["vector"].to_pylist(), np.float32)
    assert np.abs(found - wanted).max() <= 1e-5


def test_the_audit_finds_nothing_and_a_second_run_has_nothing_to_do(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = run_command("verify", job.config_path, "--deep")
    assert ran.code == 0, ran.out + ran.err
    before = [info.name for info in job.store.list() if not info.name.startswith("runs/")]
    with monkeypatch.context() as patch:
        forbid_flow(patch)
        assert not job.published()["published"]
    assert [info.name for info in job.store.list() if not info.name.startswith("runs/")] == before


def test_a_neighbour_shows_its_place(job: Job) -> None:
    chunk = next(row for row in table_of(job).to_pylist() if row["chunk_index"] == 3)
    ran = run_command("search", job.store.uri, "--query", PROMPT + chunk["text"], "-k", "1")
    assert ran.code == 0, ran.err
    assert f"{chunk['doc_id']}  [{chunk['char_begin']}:{chunk['char_end']}]" in ran.out


def test_a_file_more_is_embedded_alone_and_the_rest_reused_by_documents(job: Job) -> None:
    """Last: it changes the store that the others look at."""
    put_files(job.corpus, {"d.jsonl": [*make_rows(2, begin=90, words=300), NAMELESS]})
    outcome = job.published()
    assert {key: outcome[key] for key in ("documents_in", "embedded", "reused", "quarantined")} == {
        "documents_in": 43,
        "embedded": 2,
        "reused": 40,
        "quarantined": 1,
    }
    assert run_command("verify", job.store.uri).code == 0
