"""`vecmill embed` over many small files: few shards, and a change costs its own pack and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.corpus import Job, jsonl_bytes, make_rows, parquet_bytes, put_files, run_command
from tests.integration.conftest import forbid_flow

pytestmark = pytest.mark.usefixtures("ray_in_process")

NUM_FILES, PACK = 300, 100


def file(number: int, begin: int) -> tuple[str, bytes]:
    """One document: of Parquet every third."""
    rows = make_rows(1, begin=begin)
    return (
        (f"{number:03}.parquet", parquet_bytes(rows)) if number % 3 == 0 else (f"{number:03}.jsonl", jsonl_bytes(rows))
    )


def counts(outcome: dict[str, Any]) -> tuple[int, int, int, int]:
    return outcome["documents_in"], outcome["embedded"], outcome["reused"], outcome["files_read"]


def assert_sound(job: Job) -> None:
    ran = run_command("verify", job.store.uri)
    assert ran.code == 0, ran.out + ran.err


def test_a_night_with_small_files_embeds_what_changed(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job.local(tmp_path, tiny_model, splits={"max_rows": PACK})
    files = dict(file(number, number) for number in range(NUM_FILES))
    put_files(job.corpus, files)
    assert counts(job.published()) == (NUM_FILES, NUM_FILES, 0, NUM_FILES)
    first = job.snapshot()
    assert first.shards["num_rows"].to_pylist() == [PACK] * (NUM_FILES // PACK)
    assert first.splits["file_uri"].to_pylist() == sorted(files)
    assert sorted(job.doc_ids()) == sorted(f"d{number}" for number in range(NUM_FILES))
    assert_sound(job)

    with monkeypatch.context() as patch:
        forbid_flow(patch)
        assert not job.published()["published"]

    put_files(job.corpus, {"150a.jsonl": make_rows(1, begin=1000)})
    assert counts(job.published()) == (NUM_FILES + 1, 1, NUM_FILES, NUM_FILES + 1)
    second = job.snapshot().shards["file"].to_pylist()
    assert second[:-1] == first.shards["file"].to_pylist()
    assert job.snapshot().shards["num_rows"].to_pylist() == [PACK] * (NUM_FILES // PACK) + [1]
    assert_sound(job)

    put_files(job.corpus, {"007.jsonl": make_rows(1, begin=1001)})
    ran = job.embed()
    assert ran.code == 0, ran.err
    assert counts(ran.outcome) == (NUM_FILES + 1, PACK, NUM_FILES + 1 - PACK, NUM_FILES + 1)
    assert f"{PACK - 1} documents of files that did not change are embedded again" in ran.err
    third = job.snapshot().shards["file"].to_pylist()
    assert len(third) == len(second)
    assert set(second) - set(third) == {second[0]}
    assert "d1001" in job.doc_ids()
    assert "d7" not in job.doc_ids()
    assert_sound(job)

    job.corpus.delete(["299.jsonl"])
    outcome = job.published()
    assert counts(outcome) == (NUM_FILES, PACK - 1, NUM_FILES + 1 - PACK, NUM_FILES)
    assert outcome["deleted"] == 1
    assert len(job.snapshot().shards) == len(third)
    assert_sound(job)
    ran = run_command("where", job.config_path, "d150", "--json")
    assert ran.code == 0
    assert '"input_file": "150.parquet"' in ran.out


def test_one_bad_file_of_a_pack_is_a_bad_file(tmp_path: Path, tiny_model: Path) -> None:
    """And once it was mended, its documents are there."""
    job = Job.local(tmp_path, tiny_model, splits={"max_rows": PACK})
    put_files(job.corpus, dict(file(number, number) for number in range(20)) | {"005.jsonl.gz": b"no gzip"})
    ran = job.embed()
    assert ran.code == 3
    assert "1 of the input files cannot be read (005.jsonl.gz)" in ran.sentence
    outcome = job.published("limits.max_quarantined_files=1")
    assert (outcome["documents_in"], outcome["files_read"], outcome["files_quarantined"]) == (20, 20, 1)
    assert len(job.snapshot().shards) == 1
    assert_sound(job)
    assert not job.published("limits.max_quarantined_files=1")["published"]
    put_files(job.corpus, {"005.jsonl.gz": make_rows(2, begin=50)})
    outcome = job.published()
    assert (outcome["documents_in"], outcome["files_read"], outcome["files_quarantined"]) == (22, 21, 0)
    assert_sound(job)
