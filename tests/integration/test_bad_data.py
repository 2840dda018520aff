"""Each kind of bad document and bad file has the fate that tests/bad_data.py states, and costs no other anything."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.bad_data import EMBEDDED, FILES, LINES, BadFile, BadLine, rows
from tests.corpus import Job, jsonl_bytes, parquet_bytes, put_files, run_command
from tests.integration.conftest import forbid_flow

RAISED = ("limits.max_quarantined_ratio=1", "limits.max_quarantined_files=1000")
GOOD = rows("good", 30)

pytestmark = pytest.mark.usefixtures("ray_in_process")


def _job(folder: Path, model: Path, files: dict[str, bytes]) -> Job:
    job = Job.local(folder, model, input={"text": "{text}", "keep": ["n"]})
    put_files(job.corpus, {"0.jsonl": jsonl_bytes(GOOD), **files})
    return job


def _accepted(job: Job) -> dict[str, Any]:
    """Refused first; with the limits raised nothing that is done is encoded again, and no good document is lost."""
    ran = job.embed()
    assert (ran.code, ran.out, job.manifests()) == (3, "", []), ran.err
    before = job.records()
    outcome = job.published(*RAISED)
    assert set(before) <= set(job.records())
    assert {row["id"] for row in GOOD} <= set(job.doc_ids())
    assert outcome["documents_in"] == outcome["embedded"] + outcome["quarantined"]
    assert outcome["files_in"] == outcome["files_read"] + outcome["files_quarantined"]
    return outcome


def _quarantine(job: Job) -> list[dict[str, Any]]:
    return [row for uri in job.snapshot().quarantine_files() for row in pq.read_table(uri).to_pylist()]


# -- documents -----------------------------------------------------------------


@pytest.fixture(scope="module")
def lines(ray_in_process: None, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, list[int]]:
    """All lines in one file, behind a good one; published. And the offset of each line."""
    offsets, data = [], b""
    for case in LINES:
        offsets.append(len(data))
        data += case.data + b"\n"
    job = _job(tmp_path_factory.mktemp("lines"), tiny_model, {"lines.jsonl": data})
    outcome = _accepted(job)
    assert outcome["documents_in"] == len(GOOD) + len(LINES)
    assert outcome["truncated"] >= 2, "ten megabytes, a million words"
    return job, offsets


@pytest.fixture(scope="module")
def fates(lines: tuple[Job, list[int]]) -> dict[str, str]:
    """Name -> what became of the line."""
    job, offsets = lines
    found = _quarantine(job)
    by_offset = {row["row"]: row["reason"] for row in found if row["row"] is not None}
    duplicates = Counter(row["doc_id"] for row in found if row["row"] is None and row["reason"] == "duplicate_id")
    ids = Counter(job.doc_ids())
    fates = {}
    for case, offset in zip(LINES, offsets, strict=True):
        doc_id = case.doc_id or case.name
        embedded = ids.pop(doc_id, 0)
        fates[case.name] = by_offset.pop(offset, EMBEDDED if embedded == 1 else f"embedded {embedded} times")
    assert by_offset == {}, "a row that is in no line"
    assert set(ids) == {row["id"] for row in GOOD}, "documents that are in no line"
    for case in LINES:
        if case.fate == "duplicate_id" and fates[case.name] == "embedded 0 times" and duplicates.total():
            fates[case.name] = "duplicate_id"
    assert duplicates == {"one letter": 1, "good 0": 1, "7": 1}
    return fates


@pytest.mark.parametrize("case", LINES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_line_has_its_fate(fates: dict[str, str], case: BadLine) -> None:
    assert fates[case.name] == case.fate


def test_there_are_as_many_kinds_as_promised() -> None:
    assert sum(case.fate != EMBEDDED for case in LINES) >= 30
    assert sum(case.fate.is_unreadable for case in FILES) >= 10
    for cases in (LINES, FILES):
        assert max(Counter(case.name for case in cases).values()) == 1


def test_quarantine_says_why_and_holds_no_text(lines: tuple[Job, list[int]]) -> None:
    for row in _quarantine(lines[0]):
        assert row["message"]
        assert "text" not in row


def test_status_tells_the_reasons(lines: tuple[Job, list[int]]) -> None:
    out = run_command("status", lines[0].store.uri).out
    wanted = Counter(case.fate for case in LINES if case.fate != EMBEDDED)
    told = [" ".join(line.split()) for line in out.splitlines()]
    for reason, num in wanted.items():
        assert f"{reason} {num} document{'s' * (num != 1)} in 1 file" in told


def test_a_run_again_finds_nothing_to_do(lines: tuple[Job, list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where rows were taken out for their ids."""
    forbid_flow(monkeypatch)
    assert lines[0].published(*RAISED)["published"] is False


# -- files ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(ray_in_process: None, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """All files beside a good one; published."""
    job = _job(tmp_path_factory.mktemp("files"), tiny_model, {case.file: case.data() for case in FILES})
    outcome = _accepted(job)
    assert outcome["files_in"] == len(FILES) + 1
    assert outcome["files_quarantined"] == sum(case.fate.is_unreadable for case in FILES)
    return job


@pytest.fixture(scope="module")
def by_file(files: Job) -> tuple[dict[str, int], dict[str, list[dict[str, Any]]]]:
    """URI -> rows embedded, and rows in quarantine."""
    splits = files.snapshot().splits.to_pylist()
    embedded: Counter[str] = Counter()
    for split in splits:
        embedded[split["file_uri"]] += split["num_documents"] - split["num_quarantined"]
    quarantine = defaultdict(list)
    for row in _quarantine(files):
        quarantine[row["input_file"]].append(row)
    return embedded, quarantine


@pytest.mark.parametrize("case", FILES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_file_has_its_fate(by_file: tuple[dict[str, int], dict[str, list[dict[str, Any]]]], case: BadFile) -> None:
    embedded, quarantine = by_file
    found, fate = quarantine[case.file], case.fate
    whole = [row for row in found if row["row"] is None and row["doc_id"] is None]
    assert [row["reason"] for row in whole] == ["unreadable_file"] * fate.is_unreadable
    assert Counter(row["reason"] for row in found if row not in whole) == fate.reasons
    if fate.embedded is not None:
        assert embedded[case.file] == fate.embedded


def test_rows_are_named_by_their_numbers(by_file: tuple[dict[str, int], dict[str, list[dict[str, Any]]]]) -> None:
    """Of Parquet also where one was taken out for its id."""
    _, quarantine = by_file
    assert [row["row"] for row in quarantine["group.parquet"]] == list(range(20, 40))
    assert [(row["row"], row["doc_id"]) for row in quarantine["twice.parquet"]] == [(1, "t")]


# -- limits --------------------------------------------------------------------


def test_after_a_refusal_a_raised_limit_publishes_without_a_flow(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused at its last record, all being recorded; bad lines, and rows whose ids are not theirs."""
    bad = [{"id": f"bad {n}", "text": "", "n": n} for n in range(12)]
    job = _job(tmp_path, tiny_model, {"0.jsonl": jsonl_bytes([*GOOD, *bad, *GOOD[:3]])})
    ran = job.embed()
    assert (ran.code, job.manifests()) == (3, [])
    assert "12 of 45" in ran.sentence
    records = job.records()
    forbid_flow(monkeypatch)
    ran = job.embed("limits.max_quarantined_ratio=0.3")
    assert (ran.code, ran.out) == (3, "")
    assert "15 of 45" in ran.sentence
    assert "duplicate_id 3" in ran.sentence
    assert job.records() == records
    outcome = job.published("limits.max_quarantined_ratio=0.4")
    assert (outcome["documents_in"], outcome["embedded"], outcome["quarantined"]) == (45, 30, 15)


# -- ids that come and go ------------------------------------------------------


def _texts(job: Job) -> list[tuple[str, int]]:
    table = job.snapshot().dataset().to_table(columns=["doc_id", "n"])
    return sorted(zip(table["doc_id"].to_pylist(), table["n"].to_pylist(), strict=True))


def test_of_an_id_the_first_row_counts_whatever_was_there_before(tmp_path: Path, tiny_model: Path) -> None:
    """A first that vanishes, and one that comes before what is carried: each snapshot is that of one clean run."""
    twice = [{"id": "x", "text": "in b", "n": 2}, {"id": "y", "text": "in b too", "n": 3}]
    first = jsonl_bytes([{"id": "x", "text": "in a", "n": 1}, {"id": "z", "text": "in a too", "n": 4}])
    job = _job(tmp_path, tiny_model, {"a.jsonl": first, "b.parquet": parquet_bytes(twice)})
    good = [(row["id"], row["n"]) for row in GOOD]
    outcome = job.published()
    assert (outcome["embedded"], outcome["quarantined"]) == (33, 1)
    assert _texts(job) == sorted([*good, ("x", 1), ("y", 3), ("z", 4)])

    job.corpus.delete(["a.jsonl"])
    outcome = job.published("limits.max_deleted_ratio=0.5")
    assert (outcome["documents_in"], outcome["quarantined"]) == (32, 0)
    assert _texts(job) == sorted([*good, ("x", 2), ("y", 3)])

    put_files(job.corpus, {"a.jsonl": jsonl_bytes([{"id": "x", "text": "in a again", "n": 7}])})
    outcome = job.published()
    assert (outcome["documents_in"], outcome["quarantined"]) == (33, 1)
    assert _texts(job) == sorted([*good, ("x", 7), ("y", 3)])
    [row] = _quarantine(job)
    assert (row["doc_id"], row["input_file"], row["row"]) == ("x", "b.parquet", 0)
    assert job.published()["published"] is False
