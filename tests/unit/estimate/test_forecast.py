"""The whole of a plan without Ray: what is done already costs nothing, nothing is written, and time adds up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline import estimate
from pipeline.config import parse_config
from pipeline.errors import NotSupportedError
from pipeline.estimate import Forecast, forecast
from pipeline.estimate.advice import advice
from tests.corpus import Job, make_rows, put_files
from tests.embedded import Embedder, make_job
from tests.models import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def _forecast(job: Job, num_encoders: int | None = None, **changes: Any) -> Forecast:
    config = job.config | {key: job.config.get(key, {}) | value for key, value in changes.items()}
    return forecast(parse_config(config), num_encoders)


def _listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), os.stat(path).st_mtime_ns) for path in folder.rglob("*"))


def test_a_small_corpus_is_known_exactly(tmp_path: Path, model: Path) -> None:
    job = Job.local(tmp_path, model)
    put_files(job.corpus, {"a.parquet": make_rows(300), "b.jsonl.gz": make_rows(100, begin=300)})
    before = _listing(tmp_path)
    found = _forecast(job)
    assert (found.num_documents.value, found.num_documents.plus_minus) == (400, 0)
    assert (found.num_tokens.plus_minus, found.listed.num_files) == (0, 2)
    assert found.texts is not None
    assert found.num_tokens.value == pytest.approx(found.texts.lengths.sum())
    assert found.seconds is not None
    assert found.seconds.total.value > found.seconds.encode_s.value > 0
    assert _listing(tmp_path) == before


def test_what_a_snapshot_lists_is_not_paid_for_again(tmp_path: Path, model: Path) -> None:
    job = make_job(tmp_path, model)
    Embedder(job).publish({"a.parquet": make_rows(50)})
    before = _listing(tmp_path / "store")
    nothing = _forecast(job)
    assert (nothing.listed.num_files_done, nothing.listed.num_documents_done) == (1, 50)
    assert (nothing.listed.num_splits, nothing.num_documents.value, nothing.seconds) == (0, 0, None)
    put_files(job.corpus, {"b.parquet": make_rows(30, begin=50)})
    more = _forecast(job)
    assert (more.listed.num_files_done, more.listed.num_documents_done) == (1, 50)
    assert (more.num_documents.value, more.listed.num_splits) == (30, 2)
    assert _listing(tmp_path / "store") == before


def test_another_encoder_than_the_snapshots_is_refused_as_embed_does(tmp_path: Path, model: Path) -> None:
    job = make_job(tmp_path, model)
    Embedder(job).publish({"a.parquet": make_rows(5)})
    with pytest.raises(NotSupportedError, match="another encoder"):
        _forecast(job, encoder={"max_tokens": 20})


def test_encoders_share_the_work_but_not_the_start(tmp_path: Path, model: Path) -> None:
    job = Job.local(tmp_path, model)
    put_files(job.corpus, {"a.parquet": make_rows(300)})
    found = _forecast(job, 4)
    assert found.probe is not None
    assert found.seconds is not None
    assert found.seconds.num_encoders == 4
    alone_s = 300 * found.probe.seconds_per_sequence.value
    assert found.seconds.encode_s.value == pytest.approx(alone_s / 4)
    assert found.seconds.total.value > found.seconds.start_s >= estimate._START_S


def test_a_corpus_of_nothing_but_bad_rows_has_a_plan(tmp_path: Path, model: Path) -> None:
    job = Job.local(tmp_path, model)
    rows = [row | {"title": "", "body": None, "id": f"x{i}"} for i, row in enumerate(make_rows(20))]
    put_files(job.corpus, {"a.parquet": rows})
    found = _forecast(job, input={"text": "{title}{body}"})
    assert (found.num_documents.value, found.num_embedded.value, found.seconds) == (20, 0, None)
    [told] = [line for line in advice(found) if "20 documents read (100.00%) are empty" in line]
    assert "nothing is published" in told


def test_what_would_waste_money_is_told_with_the_way_out(tmp_path: Path, model: Path) -> None:
    job = Job.local(tmp_path, model)
    rows = make_rows(60, words=80)
    put_files(job.corpus, {"a.parquet": [*rows, *rows[:10]]})
    told = advice(_forecast(job))
    assert any("100% of the texts are longer than 48 tokens" in line and "overlong=chunk" in line for line in told)
    assert any(line.startswith("10 of 70 documents read have an id (id)") for line in told)
    assert any("10 of 70 documents read have the text of an earlier one" in line for line in told)


def test_a_sound_corpus_gets_no_advice(tmp_path: Path, model: Path) -> None:
    job = Job.local(tmp_path, model)
    put_files(job.corpus, {"a.parquet": [row | {"body": "of the time"} for row in make_rows(100)]})
    assert advice(_forecast(job, input={"text": "{id} {body}"}, store={"dtype": "float32"})) == []


def test_float32_is_told_where_it_costs(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.estimate import advice as module

    monkeypatch.setattr(module, "_SMALL_STORE_BYTES", 1000)
    job = Job.local(tmp_path, model)
    put_files(job.corpus, {"a.parquet": make_rows(100)})
    assert any("float16 takes half" in line for line in advice(_forecast(job, store={"dtype": "float32"})))
    assert not any("float16" in line for line in advice(_forecast(job)))


def test_many_tiny_files_are_told(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.estimate import advice as module

    job = Job.local(tmp_path, model)
    put_files(job.corpus, {f"{i}.jsonl": make_rows(1, begin=i) for i in range(5)})
    assert not any("files of" in line for line in advice(_forecast(job)))
    monkeypatch.setattr(module, "_MANY_FILES", 5)
    [told] = [line for line in advice(_forecast(job)) if "files of" in line]
    assert told.startswith("5 files of 0.")
    assert "merge them" in told
