"""Parquet: only what is needed is fetched; what cannot be decoded costs its own rows alone."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.read.batches as batches
import pipeline.read.parquet as parquet
import pipeline.splits.streams as streams
from pipeline.config import Input, SplitBounds
from pipeline.errors import ChangedError, InputError, StorageFault
from pipeline.read import ReadSplit, read_split
from pipeline.splits import Split, list_input, plan_file
from pipeline.splits.files import Clock
from pipeline.uris import Storage

LATER = Clock(now_ns=lambda: 2**62)


def _plan(path: Path, rows: int = 10_000) -> tuple[Storage, list[Split], SplitBounds]:
    storage, bounds = Storage(str(path.parent)), SplitBounds(max_rows=rows)
    [file] = list_input(storage, path.name, None, LATER)
    return storage, plan_file(storage, file, bounds, None, ["text"]), bounds


def _read(path: Path, rows: int = 10_000, keep: pa.Schema | None = None, **input: Any) -> list[ReadSplit]:
    storage, splits, bounds = _plan(path, rows)
    keep = keep if keep is not None else pa.schema([])
    config = Input(uri="x", keep=tuple(keep.names), **input)
    return [made for split in splits for made in read_split(storage, split, config, keep, bounds)]


def _column(made: list[ReadSplit], name: str) -> list[Any]:
    return [value for one in made if one.documents for value in one.documents[name].to_pylist()]


def _num_bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    read = streams.Source.read

    def counting(self: streams.Source, size: int = -1, /) -> bytes:
        data = read(self, size)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(streams.Source, "read", counting)
    return sizes


@pytest.mark.parametrize("rows", [10_000, 700])
def test_types_that_parquet_readers_give_for_text(tmp_path: Path, rows: int) -> None:
    texts = [f"text {i % 50}" for i in range(3000)]
    columns = {
        "string": pa.array(texts),
        "large": pa.array(texts, pa.large_string()),
        "view": pa.array(texts, pa.string_view()),
        "dictionary": pa.array(texts).dictionary_encode(),
        "binary": pa.array(texts, pa.large_binary()),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    for name in columns:
        made = _read(
            tmp_path / "a.parquet", rows, text=f"{{{name}}}", id=name, keep=pa.schema([("large", pa.string())])
        )
        assert _column(made, "text") == _column(made, "doc_id") == _column(made, "large") == texts


def test_derived_ids_are_rows_of_the_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"] * 25}), tmp_path / "a.parquet", row_group_size=10)
    made = _read(tmp_path / "a.parquet", rows=4)
    assert len(made) == 8
    assert _column(made, "doc_id") == [f"a.parquet#{i}" for i in range(25)]


def test_rows_that_are_no_documents(tmp_path: Path) -> None:
    texts = pa.array([b"a", None, b"\xff", b" ", b"b\x00"]).view(pa.string())
    pq.write_table(pa.table({"text": texts, "id": ["1", "2", "3", "4", None]}), tmp_path / "a.parquet")
    [made] = _read(tmp_path / "a.parquet", id="id")
    assert _column([made], "text") == ["a"]
    assert made.quarantine.select(["row", "doc_id", "reason"]).to_pylist() == [
        {"row": 1, "doc_id": "2", "reason": "empty_text"},
        {"row": 2, "doc_id": "3", "reason": "invalid_utf8"},
        {"row": 3, "doc_id": "4", "reason": "empty_text"},
        {"row": 4, "doc_id": None, "reason": "missing_id"},
    ]
    assert made.num_documents == made.num_counted == 5


def _spoil(path: Path, group: int, begin: float = 0.0) -> None:
    """Overwrite the text of a row group, from a part of it on."""
    chunk = pq.read_metadata(path).row_group(group).column(0)
    content = bytearray(path.read_bytes())
    num_bytes = int(chunk.total_compressed_size * (1 - begin))
    end = chunk.data_page_offset + chunk.total_compressed_size
    content[end - num_bytes : end] = b"\xff" * num_bytes
    path.write_bytes(content)


@pytest.mark.parametrize("rows", [10_000, 100, 30])
def test_a_row_group_that_cannot_be_decoded_costs_its_own_rows(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"text {i}" for i in range(300)]})
    pq.write_table(table, path, row_group_size=100, use_dictionary=False, compression="zstd")
    _spoil(path, 1)
    made = _read(path, rows)
    assert _column(made, "row") == [*range(100), *range(200, 300)]
    bad = [row for one in made for row in one.quarantine.to_pylist()]
    assert [row["row"] for row in bad] == list(range(100, 200))
    assert {row["reason"] for row in bad} == {"undecodable_row"}
    assert bad[0]["doc_id"] == "a.parquet#100"
    assert all(one.num_documents == one.num_counted for one in made)


@pytest.mark.parametrize("begins", [(), (0,), (3000, 6000), (15_000,)])
def test_a_cut_row_group_is_read_up_to_what_cannot_be_decoded(tmp_path: Path, begins: tuple[int, ...]) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"{random.Random(i).getrandbits(64)} {i}" for i in range(30_000)]
    pq.write_table(pa.table({"text": texts}), path, use_dictionary=False, data_page_size=10_000)
    _spoil(path, 0, begin=0.4)
    storage, [split], bounds = _plan(path, 3000)
    full = list(read_split(storage, split, Input(uri="x"), pa.schema([]), bounds))
    assert [(one.split.begin, one.split.end) for one in full] == [(i, i + 3000) for i in range(0, 30_000, 3000)]
    good = _column(full, "row")
    assert good == list(range(len(good)))
    assert 9000 < len(good) < 15_000
    bad = [row for one in full for row in one.quarantine.to_pylist()]
    assert [row["row"] for row in bad] == list(range(len(good), 30_000))
    assert len({row["message"] for row in bad}) == 1
    done = {(begin, begin + 3000, False) for begin in begins}
    again = list(read_split(storage, split, Input(uri="x"), pa.schema([]), bounds, done=done))
    for one, other in zip(again, full, strict=True):
        assert one.split == other.split
        is_done = one.split.begin in begins
        assert one.documents == (None if is_done else other.documents)
        assert is_done or one.quarantine == other.quarantine


def test_an_unreadable_file_is_one_row_in_quarantine(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    [made] = _read(tmp_path / "a.parquet")
    assert (made.num_documents, made.num_counted, made.num_quarantined, made.split.last) == (0, None, 0, True)
    assert made.quarantine.select(["row", "reason"]).to_pylist() == [{"row": None, "reason": "unreadable_file"}]


def test_only_columns_and_row_groups_of_the_split_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    columns = {"text": [f"{i:0100d}" for i in range(1000)], "other": [b"o" * 10_000] * 1000}
    pq.write_table(pa.table(columns), path, row_group_size=100, use_dictionary=False, compression="none")
    sizes = _num_bytes_read(monkeypatch)
    storage, splits, bounds = _plan(path, rows=200)
    assert len(splits) == 5
    footer_bytes = sum(sizes)
    assert footer_bytes <= 2**16
    [made] = read_split(storage, splits[2], Input(uri="x"), pa.schema([]), bounds)
    assert _column([made], "row") == list(range(400, 600))
    assert sum(sizes) - footer_bytes < 2**16 + 200 * 120


def test_a_large_row_group_is_fetched_once_and_no_further_than_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow writes 1 Mi rows a group: read once for each split, a file would cost the square of its size."""
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": [f"{i:01000d}" for i in range(20_000)]}), path, use_dictionary=False, compression="none"
    )
    monkeypatch.setattr(parquet, "REQUEST_BYTES", 2**16)
    storage, [split], bounds = _plan(path, rows=1000)
    sizes = _num_bytes_read(monkeypatch)
    made = list(read_split(storage, split, Input(uri="x"), pa.schema([]), bounds))
    assert [one.num_documents for one in made] == [1000] * 20
    assert _column(made, "row") == list(range(20_000))
    assert 20_000_000 < sum(sizes) < 21_000_000
    sizes.clear()
    done = {(begin, begin + 1000, begin == 19_000) for begin in range(0, 20_000, 1000) if begin not in (2000, 4000)}
    made = list(read_split(storage, split, Input(uri="x"), pa.schema([]), bounds, done=done))
    assert _column(made, "row") == [*range(2000, 3000), *range(4000, 5000)]
    assert sum(sizes) < 7_000_000


def test_a_large_row_group_passes_through_memory_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"{i:01000d}" for i in range(50_000)]}), path, use_dictionary=False)
    monkeypatch.setattr(parquet, "REQUEST_BYTES", 2**16)
    storage, [split], bounds = _plan(path, rows=1000)
    before, most = pa.total_allocated_bytes(), 0
    for one in read_split(storage, split, Input(uri="x"), pa.schema([]), bounds):
        assert one.num_documents == 1000
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 10_000_000


def test_a_string_held_once_for_many_rows_is_decoded_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows at once would be an array of 2 GiB sooner than the file's size tells."""
    texts = ["a" * 1000, "b" * 1000, None] * 300
    table = pa.table({"body": pa.array(texts).dictionary_encode(), "n": range(900)})
    pq.write_table(table, tmp_path / "a.parquet")
    monkeypatch.setattr(batches, "_BATCH_BYTES", 20_000)
    keep = pa.schema([("body", pa.string()), ("n", pa.int64())])
    made = _read(tmp_path / "a.parquet", text="{body}", keep=keep)
    assert _column(made, "text") == _column(made, "body") == [text for text in texts if text]
    assert [made[0].num_documents, len(_column(made, "row"))] == [900, 600]
    [documents] = [one.documents for one in made]
    assert documents is not None
    assert max(chunk.nbytes for chunk in documents["text"].chunks) < 21_000


def test_huge_rows_pass_whole(tmp_path: Path) -> None:
    texts = ["x" * 30_000_000, "y" * 50_000_000, "z"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", use_dictionary=False)
    made = _read(tmp_path / "a.parquet")
    assert [len(text) for text in _column(made, "text")] == [30_000_000, 50_000_000, 1]


def test_faults_of_storage_are_raised_not_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"] * 100}), path)
    storage, [split], bounds = _plan(path)

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError("reset by peer")

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "open_unbuffered", lambda *_, **__: Failing(path.read_bytes()))
        with pytest.raises(StorageFault, match="reset by peer"):
            list(read_split(storage, split, Input(uri="x"), pa.schema([]), bounds))
    path.write_bytes(b"another")
    with pytest.raises(ChangedError):
        list(read_split(storage, split, Input(uri="x"), pa.schema([]), bounds))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no column text in .*; there are: body"):
        _read(tmp_path / "a.parquet")
