"""Documents that kill the process they are in, for real: found, quarantined, and nobody else with them.

Real Ray, real kills: a subclass of a stage, shipped to the workers by value, kills its own process
with SIGKILL where a marked document is in work, as a segfault in the tokenizer or the model would.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.flow.drive
import pipeline.flow.embed
import pipeline.flow.stages
from pipeline.flow.context import FlowContext
from pipeline.flow.stages import EncodeStage, ReadStage
from tests.corpus import Job, make_rows, put_files, texts_of

MARK = "killer"
WORD = "would"
"""Has a token of its own, and is in no other document."""


def note_and_kill(path: str) -> None:
    """Leave a line, and end this process as the kernel ends one without memory."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    os.kill(os.getpid(), signal.SIGKILL)


class KillingEncode(EncodeStage):
    """Its forward pass ends the process over the ids of a marked text."""

    deaths = ""
    marks: tuple[int, ...] = ()

    def __init__(self, context: FlowContext, num_threads: int | None) -> None:
        super().__init__(context, num_threads)
        encoder: Any = self._encoder
        forward, marks, deaths = encoder._forward, type(self).marks, type(self).deaths

        def checked(ids: Any, mask: Any) -> Any:
            if np.isin(ids, marks).any():
                note_and_kill(deaths)
            return forward(ids, mask)

        encoder._forward = checked


class RaisingEncode(KillingEncode):
    """The same, and the pass raises where that one kills."""

    def __init__(self, context: FlowContext, num_threads: int | None) -> None:
        super().__init__(context, num_threads)
        encoder: Any = self._encoder
        killing, marks = encoder._forward, type(self).marks

        def checked(ids: Any, mask: Any) -> Any:
            if np.isin(ids, marks).any():
                raise ValueError("no vector for this")
            return killing(ids, mask)

        encoder._forward = checked


class KillingRead(ReadStage):
    """Its tokenizer ends the process over a marked text; or its reader, over a marked file."""

    deaths = ""
    file = ""

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        stages: Any = pipeline.flow.stages
        deaths, file = type(self).deaths, type(self).file
        if not hasattr(stages, "real_tokenize"):
            stages.real_tokenize, stages.real_read_split = stages.tokenize, stages.read_split

        def tokenize(documents: pa.Table, *args: Any, **options: Any) -> Any:
            if any(MARK in text for text in documents["text"].to_pylist()):
                note_and_kill(deaths)
            return stages.real_tokenize(documents, *args, **options)

        def read_split(storage: Any, split: Any, *args: Any, **options: Any) -> Any:
            if split.file.uri == file:
                note_and_kill(deaths)
            return stages.real_read_split(storage, split, *args, **options)

        stages.tokenize, stages.read_split = tokenize, read_split
        yield from super().__call__(batch)


Install = Callable[[type[KillingEncode], Path], None]


@pytest.fixture
def install(by_value: None, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Install:
    """Puts an encode stage into the flow that minds WORD."""

    def put(base: type[KillingEncode], deaths: Path) -> None:
        from pipeline.config import EncoderSettings
        from pipeline.model import describe_model
        from pipeline.tokens import load_tokenizer

        tokenizer = load_tokenizer(tiny_model, describe_model(tiny_model, EncoderSettings(model=str(tiny_model))))
        plain = set(np.concatenate(tokenizer.query_ids(texts_of(make_rows(100)))).tolist())
        marks = set(tokenizer.query_ids([WORD])[0].tolist()) - plain
        assert marks, "the word has no token of its own"
        stage = type("Stage", (base,), {"deaths": str(deaths), "marks": tuple(marks)})
        monkeypatch.setattr(pipeline.flow.drive, "run_flow", partial(pipeline.flow.embed.run_flow, encode_stage=stage))

    return put


def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def vectors(job: Job) -> dict[str, Any]:
    table = job.snapshot().dataset().to_table()
    return dict(zip(table["doc_id"].to_pylist(), table["vector"].to_pylist(), strict=True))


def quarantined(job: Job) -> list[tuple[str, str, str]]:
    found = [pq.read_table(path).to_pylist() for path in job.snapshot().quarantine_files()]
    return sorted(((row["doc_id"], row["stage"], row["reason"]) for rows in found for row in rows), key=str)


def test_two_documents_that_kill_their_encoder(
    ray_in_process: None, tiny_model: Path, tmp_path: Path, install: Install
) -> None:
    """Two of 60, in one split: at most three deaths each besides the two that convict it."""
    rows = make_rows(60)
    clean = Job.local(tmp_path / "clean", tiny_model, splits={"max_rows": 10}, encoder={"compute": "float32"})
    put_files(clean.corpus, {"a.parquet": rows})
    clean.published()
    job = Job.local(
        tmp_path / "job", tiny_model, splits={"max_rows": 10}, encoder={"compute": "float32", "token_budget": 64}
    )
    for number in (13, 17):
        rows[number] = {**rows[number], "title": f"{WORD} {number}"}
    put_files(job.corpus, {"a.parquet": rows})
    install(KillingEncode, tmp_path / "deaths")
    outcome = job.published("limits.max_quarantined_ratio=0.1")
    assert (outcome["documents_in"], outcome["embedded"], outcome["quarantined"]) == (60, 58, 2)
    guilty = sorted(rows[number]["id"] for number in (13, 17))
    assert quarantined(job) == [(doc_id, "encode", "killed_process") for doc_id in guilty]
    assert 4 <= num_lines(tmp_path / "deaths") <= 10
    expected, found = vectors(clean), vectors(job)
    assert set(found) == set(expected) - set(guilty)
    for doc_id, vector in found.items():
        np.testing.assert_allclose(vector, expected[doc_id], atol=2e-3)


def test_a_document_that_kills_its_tokenizer_and_a_file_that_kills_its_reader(
    ray_in_process: None, tiny_model: Path, tmp_path: Path, by_value: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one is quarantined alone; of the other nothing smaller than the file can be named."""
    job = Job.local(tmp_path, tiny_model, splits={"max_rows": 10})
    rows = make_rows(30)
    rows[4] = {**rows[4], "title": f"a {MARK} of tokenizers"}
    put_files(job.corpus, {"a.parquet": rows[:20], "b.jsonl": rows[20:25], "c.jsonl.gz": rows[25:]})
    stage = type("Stage", (KillingRead,), {"deaths": str(tmp_path / "deaths"), "file": "b.jsonl"})
    monkeypatch.setattr(pipeline.flow.embed, "ReadStage", stage)
    limits = ("limits.max_quarantined_ratio=0.1", "limits.max_quarantined_files=1")
    outcome = job.published(*limits)
    assert (outcome["documents_in"], outcome["embedded"], outcome["quarantined"]) == (25, 24, 1)
    assert (outcome["files_in"], outcome["files_read"], outcome["files_quarantined"]) == (3, 2, 1)
    assert quarantined(job) == sorted(
        [(rows[4]["id"], "tokenize", "killed_process"), (None, "read", "killed_process")], key=str
    )
    assert num_lines(tmp_path / "deaths") <= 5 + 3


def test_quarantined_documents_are_tried_again_after_a_fix(
    ray_in_process: None, tiny_model: Path, tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only on request, and only the splits they are in."""
    job = Job.local(tmp_path, tiny_model, splits={"max_rows": 10})
    rows = make_rows(30)
    rows[13] = {**rows[13], "title": f"{WORD} 13"}
    put_files(job.corpus, {"a.parquet": rows[:20], "b.parquet": rows[20:]})
    with monkeypatch.context():
        install(RaisingEncode, tmp_path / "deaths")
        assert job.published()["quarantined"] == 1
        assert quarantined(job) == [(rows[13]["id"], "encode", "encode_failed")]
        records = set(job.records())
    monkeypatch.setattr(pipeline.flow.drive, "run_flow", pipeline.flow.embed.run_flow)
    assert not job.published()["published"]
    again = job.published("--retry-quarantined")
    assert (again["published"], again["documents_in"], again["quarantined"]) == (True, 30, 0)
    assert (again["embedded"], again["reused"]) == (10, 20), "of a.parquet too, one split is as it was"
    assert len(set(job.records()) - records) == 1, "one split of three was made again"
    assert sorted(job.doc_ids()) == sorted(row["id"] for row in rows)
    assert not job.published("--retry-quarantined")["published"]
