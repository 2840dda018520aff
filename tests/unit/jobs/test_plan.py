"""`vecmill plan`: its answer on stdout, errors as `embed` has them, and no store made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.corpus import Job, make_rows, put_files, run_command
from tests.models import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def test_figures_and_cost(tmp_path: Path, model: Path) -> None:
    job = Job.local(tmp_path, model)
    put_files(job.corpus, {"a.parquet": make_rows(200), "b.jsonl": make_rows(50, begin=200)})
    ran = run_command("plan", job.config_path, "--gpus", "2", "--price", "3600", "--json")
    assert ran.code == 0, ran.err
    figures = json.loads(ran.out)
    assert (figures["files"], figures["documents"], figures["documents_plus_minus"]) == (2, 250, 0)
    assert (figures["splits"], figures["encoders"], figures["device"]) == (1, 2, "cpu")
    assert figures["tokens_median"] <= figures["tokens_p90"] <= figures["tokens_p99"] <= figures["tokens_max"]
    assert figures["cost"] == pytest.approx(2 * figures["seconds"], abs=1)
    assert figures["store_bytes"] == 250 * 32 * 2
    assert not Path(job.store.uri).exists()


def test_a_person_reads_it_line_by_line(tmp_path: Path, model: Path) -> None:
    job = Job.local(tmp_path, model)
    put_files(job.corpus, {"a.parquet": make_rows(80, words=90)})
    ran = run_command("plan", job.config_path, "--price", "2.5")
    assert ran.code == 0, ran.err
    told = dict(line.split(None, 1) for line in ran.out.splitlines())
    assert told["documents"] == "80"
    assert "tokens/s in" in told["probe"]
    assert "with 1 encoder like that" in told["time"]
    assert "GPU hours" in told["cost"]
    assert "overlong=chunk" in told["!"]


def test_overrides_count(tmp_path: Path, model: Path) -> None:
    job = Job.local(tmp_path, model)
    put_files(job.corpus, {"a.parquet": make_rows(80)})
    ran = run_command("plan", job.config_path, "splits.max_rows=20", "--json")
    assert json.loads(ran.out)["splits"] == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input": {"uri": "/nowhere/at/all"}}, "no files at /nowhere/at/all"),
        ({"input": {"text": "{body} {headline}"}}, "no column headline"),
        ({"encoder": {"model": "/nowhere/model"}}, "/nowhere/model"),
        ({"store": {"uri": "IN/store"}}, "lies inside its input"),
    ],
)
def test_what_embed_refuses_is_refused(tmp_path: Path, model: Path, changes: dict[str, Any], words: str) -> None:
    job = Job.local(tmp_path, model)
    put_files(job.corpus, {"a.parquet": make_rows(10)})
    for section, values in changes.items():
        job.config[section] |= {key: value.replace("IN", job.corpus.uri) for key, value in values.items()}
    ran = run_command("plan", job.config_path)
    assert ran.code == 2
    assert words in ran.sentence
    assert ran.out == ""
