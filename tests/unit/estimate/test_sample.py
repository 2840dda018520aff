"""Documents are counted where all is read, and estimated without bias where a part is, in every format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import Config, parse_config
from pipeline.estimate import sample as sampling
from pipeline.estimate.sample import Sample, draw_sample
from pipeline.flow.rows import Work
from pipeline.splits import InputFile, pack_small_files, plan_files
from pipeline.uris import Storage
from tests.corpus import Row, file_bytes, make_rows, put_files
from tests.formats import COMPRESS, delimited_bytes, jsonl_bytes, stream_bytes

NUM = 3000


def _rows() -> list[Row]:
    """Lines of very different lengths: long ones are met by more blocks than short ones."""
    rng = np.random.default_rng(3)
    return [
        row | {"body": "word " * int(length)}
        for row, length in zip(make_rows(NUM), rng.lognormal(3, 1.2, NUM), strict=True)
    ]


def _content(name: str, rows: list[Row]) -> bytes:
    suffix = f".{name.split('.')[-1]}"
    if name.endswith(".arrow"):
        return stream_bytes(pa.Table.from_pylist(rows))
    if ".csv" in name:
        return COMPRESS.get(suffix, bytes)(delimited_bytes(rows))
    return COMPRESS[suffix](jsonl_bytes(rows)) if suffix in COMPRESS else file_bytes(name, rows)


def _sample(folder: Path, files: dict[str, Any], *, done: bool = False) -> tuple[Sample, Config]:
    storage = Storage(str(folder / "in"))
    put_files(storage, files)
    raw = {"input": {"uri": storage.uri, "id": "id", "text": "{title}. {body}"}, "store": {"uri": str(folder / "s")}}
    config = parse_config(raw)
    listed = [InputFile(i.name, i.size, i.identity, i.identity_kind) for i in storage.list()]
    splits, keep = plan_files(storage, listed, config.input, config.splits)
    work = [Work(split, frozenset([(0, (split.end or 0) // 2, False)]) if done else frozenset()) for split in splits]
    return draw_sample(storage, work, config, keep), config


def test_what_is_packed_is_sampled_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack counts members, not bytes: taken for a range it would tell nothing of how many documents there are."""
    storage = Storage(str(tmp_path / "in"))
    put_files(storage, {f"{number:03}.jsonl": make_rows(3, begin=3 * number) for number in range(100)})
    config = parse_config({"input": {"uri": storage.uri, "text": "{body}"}, "store": {"uri": str(tmp_path / "s")}})
    listed = [InputFile(i.name, i.size, i.identity, i.identity_kind) for i in storage.list()]
    splits, keep = plan_files(storage, listed, config.input, config.splits)
    [pack] = pack_small_files(splits, config.splits)
    assert draw_sample(storage, [Work(pack)], config, keep).num_documents.value == 300
    monkeypatch.setattr(sampling, "WHOLE_BYTES", 0)
    assert draw_sample(storage, [Work(pack)], config, keep).num_documents.value == pytest.approx(300, rel=0.2)


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An input that is too large to be read whole, in small."""
    monkeypatch.setattr(sampling, "WHOLE_BYTES", 0)
    monkeypatch.setattr(sampling, "_BLOCK_BYTES", 4096)
    monkeypatch.setattr(sampling, "_BLOCK_ROWS", 16)
    monkeypatch.setattr(sampling, "_STREAM_ROWS", 50)


@pytest.mark.parametrize(
    "name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl.xz", "a.csv", "a.csv.gz", "a.arrow"]
)
def test_a_small_input_is_counted(tmp_path: Path, name: str) -> None:
    rows = _rows()
    found, _ = _sample(tmp_path, {name: _content(name, rows[:1000]), f"b/{name}": _content(name, rows[1000:])})
    assert found.is_whole
    assert (found.num_documents.value, found.num_documents.plus_minus) == (NUM, 0)
    assert sorted(found.documents["doc_id"].to_pylist()) == sorted(row["id"] for row in rows)
    assert set(found.weights.tolist()) == {1.0}


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize(
    "name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl.xz", "a.csv", "a.csv.gz", "a.arrow"]
)
def test_of_a_large_input_a_part_is_read(tmp_path: Path, name: str) -> None:
    """The number is within its bounds, which are told; the sample stands for all, and is the same each time."""
    rows = _rows()
    files = {name: _content(name, rows[:1000]), f"b/{name}": _content(name, rows[1000:])}
    found, _ = _sample(tmp_path, files)
    assert not found.is_whole
    assert 0 < found.num_read < 0.6 * NUM
    assert found.num_documents.value == pytest.approx(NUM, rel=0.15)
    assert abs(found.num_documents.value - NUM) <= max(1.5 * found.num_documents.plus_minus, 1e-6)
    assert found.weights.sum() == pytest.approx(found.num_documents.value)
    again, _ = _sample(tmp_path, files)
    assert again.documents.equals(found.documents)


@pytest.mark.usefixtures("in_parts")
def test_blocks_of_lines_lean_towards_no_length(tmp_path: Path) -> None:
    """A line drawn by a byte within it is a long one; a block holds the lines that begin in it."""
    rows = _rows()
    found, _ = _sample(tmp_path, {"a.jsonl": rows})
    truth = np.mean([len(f"{row['title']}. {row['body']}") for row in rows])
    mean = np.mean([len(text) for text in found.documents["text"].to_pylist()])
    assert mean == pytest.approx(truth, rel=0.15)


@pytest.mark.usefixtures("in_parts")
def test_a_sample_is_spread_over_all_files_and_positions(tmp_path: Path) -> None:
    rows = _rows()
    found, _ = _sample(tmp_path, {f"{i}.parquet": rows[i * 300 : (i + 1) * 300] for i in range(10)})
    numbers = np.array([int(doc_id[1:]) for doc_id in found.documents["doc_id"].to_pylist()])
    assert found.num_documents.value == NUM
    assert set((numbers // 300).tolist()) == set(range(10))


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_what_is_recorded_is_not_left(tmp_path: Path, name: str) -> None:
    """Of a planned split half of which an earlier run recorded, half is left."""
    found, _ = _sample(tmp_path, {name: make_rows(NUM)}, done=True)
    assert found.num_documents.value == pytest.approx(NUM / 2, rel=0.1)


def test_what_is_no_document_is_told_by_reason(tmp_path: Path) -> None:
    lines = b'{"id": 1, "title": "a", "body": "b"}\nno json\n{"id": null, "title": "a", "body": "b"}\n'
    found, _ = _sample(tmp_path, {"a.jsonl": lines})
    assert (found.num_documents.value, found.documents.num_rows) == (3, 1)
    assert found.reasons == {"invalid_json": 1, "missing_id": 1}


@pytest.mark.usefixtures("in_parts")
def test_a_file_that_cannot_be_read_costs_no_plan(tmp_path: Path) -> None:
    rows = make_rows(100)
    files = {"a.parquet": b"not Parquet", "b.jsonl.gz": b"not gzip", "c.jsonl": rows}
    found, _ = _sample(tmp_path, files)
    assert found.num_documents.value == pytest.approx(100, rel=0.1)
