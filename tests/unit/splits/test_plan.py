"""Cuts: bounded, deterministic, tiling; limits: exact."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Input, SplitBounds
from pipeline.errors import ChangedError
from pipeline.splits import InputFile, Split, limit_splits, list_input, plan_file, split_id
from pipeline.splits.files import Clock
from pipeline.splits.footers import read_footer
from pipeline.splits.plan import cut_rows
from pipeline.uris import Storage

LATER = Clock(now_ns=lambda: 2**62)


def _bounds(rows: int = 10_000, num_bytes: int = 2**26) -> SplitBounds:
    return SplitBounds.model_validate({"max_rows": rows, "max_bytes": num_bytes})


def _files(root: Path) -> tuple[Storage, list[InputFile]]:
    storage = Storage(str(root))
    return storage, list_input(storage, None, None, LATER)


def _parquet(path: Path, groups: list[int], width: int = 1) -> None:
    schema = pa.schema([("text", pa.string()), ("other", pa.binary())])
    with pq.ParquetWriter(path, schema, use_dictionary=False, compression="none") as writer:
        for rows in groups:
            values = {"text": ["t" * width] * rows, "other": [b"o" * 1000] * rows}
            writer.write_table(pa.table(values, schema=schema), row_group_size=max(rows, 1))


def _ranges(splits: list[Split]) -> list[tuple[int, int | None]]:
    return [(split.begin, split.end) for split in splits]


def test_row_groups_are_packed_up_to_the_bound_in_rows(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet", [4, 4, 4, 10, 3])
    storage, [file] = _files(tmp_path)
    splits = plan_file(storage, file, _bounds(rows=10), None)
    assert _ranges(splits) == [(0, 8), (8, 12), (12, 22), (22, 25)]
    assert [split.last for split in splits] == [False, False, False, True]
    footer = read_footer(storage, file)
    assert [cut_rows(footer, _bounds(rows=10), s.begin, s.end or 0) for s in splits] == [[r] for r in _ranges(splits)]


def test_a_row_group_over_the_bound_is_one_range_to_be_cut_into_equal_parts(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet", [2, 25, 2])
    storage, [file] = _files(tmp_path)
    bounds, footer = _bounds(rows=10), read_footer(storage, file)
    splits = plan_file(storage, file, bounds, None)
    assert _ranges(splits) == [(0, 2), (2, 27), (27, 29)]
    assert splits[1].num_bytes > 5 * splits[0].num_bytes
    assert cut_rows(footer, bounds, 2, 27) == [(2, 10), (10, 18), (18, 27)]
    # Of a part of the range, as --limit plans one, the same cuts: what was read of it can be taken over.
    assert cut_rows(footer, bounds, 2, 14) == [(2, 10), (10, 14)]
    assert cut_rows(footer, bounds, 12, 28) == [(12, 18), (18, 27), (27, 28)]


def test_bytes_bound_too_and_only_columns_that_are_read_count(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet", [100], width=100)
    storage, [file] = _files(tmp_path)
    text, both = read_footer(storage, file, ["text"]), read_footer(storage, file)
    assert len(cut_rows(text, _bounds(num_bytes=12_000), 0, 100)) == 1
    assert len(cut_rows(both, _bounds(num_bytes=12_000), 0, 100)) > 9
    assert cut_rows(text, _bounds(num_bytes=1), 0, 100) == [(i, i + 1) for i in range(100)]
    _parquet(tmp_path / "a.parquet", [10, 10], width=100)
    storage, [file] = _files(tmp_path)
    assert len(plan_file(storage, file, _bounds(num_bytes=12_000), None, ["text"])) == 1
    assert len(plan_file(storage, file, _bounds(num_bytes=12_000), None)) == 2


def test_empty_files_are_one_split_that_is_last(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet", [])
    (tmp_path / "b.jsonl").write_bytes(b"")
    storage, files = _files(tmp_path)
    for file in files:
        [split] = plan_file(storage, file, _bounds(), None)
        assert (split.begin, split.end, split.last) == (0, 0, True)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"this is no Parquet at all PAR1", b'{"text": "a"}\n' * 9])
def test_a_file_that_is_not_parquet_is_one_unreadable_split(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    storage, [file] = _files(tmp_path)
    [split] = plan_file(storage, file, _bounds(), None)
    assert (split.begin, split.end, split.last) == (0, 0, True)
    assert split.unreadable


def test_truncated_parquet_is_unreadable(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet", [100])
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:-100])
    storage, [file] = _files(tmp_path)
    assert plan_file(storage, file, _bounds(), None)[0].unreadable


def test_a_file_gone_or_changed_since_it_was_listed_is_a_fault_not_unreadable(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet", [100])
    storage, [file] = _files(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"another")
    with pytest.raises(ChangedError):
        plan_file(storage, file, _bounds(), None)
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(ChangedError, match="gone"):
        plan_file(storage, file, _bounds(), None)


def test_plain_jsonl_is_cut_by_bytes_without_being_opened() -> None:
    storage = Storage("/nowhere")
    file = InputFile("a.jsonl", 100, "x", "etag")
    splits = plan_file(storage, file, _bounds(num_bytes=30), None)
    assert _ranges(splits) == [(0, 25), (25, 50), (50, 75), (75, 100)]
    assert [split.last for split in splits] == [False, False, False, True]
    assert len(plan_file(storage, InputFile("a.jsonl", 100 * 2**20, "x", "etag"), _bounds(), None)) == 11


def test_compressed_jsonl_is_one_range_to_be_cut_while_it_streams() -> None:
    [split] = plan_file(Storage("/nowhere"), InputFile("a.jsonl.zst", 100, "x", "etag"), _bounds(), None)
    assert (split.begin, split.end, split.last, split.compression) == (0, None, None, "zst")
    with pytest.raises(ValueError, match="end of a.jsonl.zst is not known"):
        _ = split.split_id


def test_json_round_trip_and_ids() -> None:
    split = Split(InputFile("a", 1, "x", "etag"), "jsonl", "gz", 0, None, None, unreadable='"why"', num_bytes=7)
    assert Split.from_json(split.to_json()) == split
    ids = {split_id(file_id, begin, end) for file_id in "ab" for begin in (0, 1) for end in (1, 2)}
    assert len(ids) == 8
    assert {len(one) for one in ids} == {32}
    # In every store that exists: another hash would make all of them start anew.
    assert split_id("a", 0, 1) == "344da2f099aec5c8b5eb3c52dce381b0"


def _corpus(root: Path) -> tuple[Storage, list[InputFile]]:
    """Three files of 10 documents each: Parquet, JSONL with blank lines, compressed."""
    _parquet(root / "a.parquet", [4, 6])
    lines = "".join(f'{{"text": "{i}"}}\n' + "\n" * (i % 3) for i in range(10))
    (root / "b.jsonl").write_text(lines)
    (root / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return _files(root)


def test_a_limit_cuts_parquet_by_rows_and_stops(tmp_path: Path) -> None:
    storage, files = _corpus(tmp_path)
    [split] = limit_splits(storage, files, _bounds(), 7)
    assert (split.begin, split.end, split.last) == (0, 7, False)
    [split] = limit_splits(storage, files, _bounds(), 10)
    assert (split.end, split.last) == (10, True)


def test_a_limit_cuts_jsonl_after_the_line(tmp_path: Path) -> None:
    storage, files = _corpus(tmp_path)
    content = (tmp_path / "b.jsonl").read_bytes()
    split = limit_splits(storage, files, _bounds(), 14)[-1]
    assert split.file.uri == "b.jsonl"
    assert content[: split.end].count(b"{") == 4
    assert split.last is False
    streamed = limit_splits(storage, files, _bounds(), 25)
    assert [(s.file.uri, s.last) for s in streamed[1:]] == [("b.jsonl", True), ("c.jsonl.gz", False)]
    assert streamed[-1].end is not None
    assert content[: streamed[-1].end].count(b"{") == 5
    assert content[: streamed[-1].end].endswith(b'"4"}\n')


def test_a_limit_that_ends_with_the_file_is_the_whole_file(tmp_path: Path) -> None:
    lines = b'{"text": "a"}\n' * 10
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    storage, files = _files(tmp_path)
    splits = limit_splits(storage, files, _bounds(), 20)
    assert [(s.begin, s.end, s.last) for s in splits] == [(0, len(lines), True)] * 2


def test_a_limit_leaves_the_ranges_before_it_as_they_are(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet", [10, 10, 10])
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "a"}\n' * 100)
    storage, files = _files(tmp_path)
    bounds = _bounds(rows=10, num_bytes=300)
    for file, limit in ((files[0], 15), (files[1], 55)):
        full = plan_file(storage, file, bounds, None, ["text"])
        limited = limit_splits(storage, [file], bounds, limit, Input(uri="x"))
        assert 1 < len(limited) < len(full)
        assert limited[:-1] == full[: len(limited) - 1]


def test_a_limit_above_the_corpus_is_the_plan(tmp_path: Path) -> None:
    storage, files = _corpus(tmp_path)
    planned = [split for file in files for split in plan_file(storage, file, _bounds(), None)]
    assert limit_splits(storage, files, _bounds(), 10_000) == planned


def test_a_limit_goes_on_behind_a_file_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gz")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "a"}\n' * 5)
    storage, files = _files(tmp_path)
    assert [split.file.uri for split in limit_splits(storage, files, _bounds(), 3)] == ["a.jsonl.gz", "b.jsonl"]
