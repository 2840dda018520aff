"""Bad lines, bad streams and odd lines of JSONL: each is accounted for, none stops the rest."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard

import pipeline.read.jsonl as jsonl
import pipeline.read.lines as lines_of
from pipeline.config import Input, SplitBounds
from pipeline.errors import ChangedError, VecmillError
from pipeline.read import ReadSplit, read_split
from pipeline.splits import limit_splits, list_input, plan_file
from pipeline.splits.files import Clock
from pipeline.uris import Storage

LATER = Clock(now_ns=lambda: 2**62)
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstandard.compress}


def _read(path: Path, keep: pa.Schema | None = None, rows: int = 10_000, **input: Any) -> list[ReadSplit]:
    storage = Storage(str(path.parent))
    bounds = SplitBounds(max_rows=rows)
    [file] = list_input(storage, path.name, None, LATER)
    keep = keep if keep is not None else pa.schema([])
    config = Input(uri="x", keep=tuple(keep.names), **input)
    return [
        made
        for split in plan_file(storage, file, bounds, None)
        for made in read_split(storage, split, config, keep, bounds)
    ]


def _read_one(path: Path, content: bytes, **given: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    path.write_bytes(content)
    [made] = _read(path, **given)
    assert made.documents is not None
    assert made.num_documents == made.num_counted == made.documents.num_rows + made.num_quarantined
    return made.documents.to_pylist(), made.quarantine.to_pylist()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "invalid_json"),
        (b"hello", "invalid_json"),
        (b'{"text": NaN}', "invalid_json"),
        (b'{"text": ' + b"1" * 5000 + b"}", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"\x00\x00\x00", "invalid_json"),
        (b"[1]", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"null", "not_an_object"),
        (b'{"text": "\xff"}', "invalid_utf8"),
        (b'{"other": "\xff", "text": "a"}', "invalid_utf8"),
        (b'{"text": "\\ud800"}', "invalid_utf8"),
        (b'{"text": ["a"]}', "wrong_type"),
        (b'{"text": {"a": 1}}', "wrong_type"),
        (b"{}", "empty_text"),
        (b'{"text": null}', "empty_text"),
        (b'{"text": " \\n\\t "}', "empty_text"),
    ],
)
def test_a_bad_line_is_quarantined_alone(tmp_path: Path, line: bytes, reason: str) -> None:
    documents, [bad] = _read_one(tmp_path / "a.jsonl", b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    assert [row["text"] for row in documents] == ["a", "b"]
    assert (bad["row"], bad["doc_id"], bad["reason"], bad["text"]) == (14, "a.jsonl#14", reason, None)
    assert bad["message"]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"text": "a\\u0000b"}', "a\x00b"),
        (b'{"text": "\\ud83d\\ude42"}', "🙂"),
        (b'{"text": "first", "text": "last"}', "last"),
        (b'\t {"text": "a"}  \r', "a"),
        ('{"text": "a\u2028b\u0085c"}'.encode(), "a\u2028b\u0085c"),
        (b'{"text": "a", "other": "\\ud800"}', "a"),
        (b'{"text": 12345678901234567890123}', "12345678901234567890123"),
    ],
)
def test_an_odd_line_is_a_document(tmp_path: Path, line: bytes, text: str) -> None:
    documents, bad = _read_one(tmp_path / "a.jsonl", line + b"\n")
    assert [row["text"] for row in documents] == [text]
    assert not bad


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    documents, bad = _read_one(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n')
    assert [(row["text"], row["row"]) for row in documents] == [("a", 0)]
    assert [row["row"] for row in bad] == [17]


def test_huge_lines_pass_whole(tmp_path: Path) -> None:
    text = "x" * 70_000_000
    content = json.dumps({"text": text}).encode() + b'\n{"text": "b"}\n'
    (tmp_path / "a.jsonl").write_bytes(content)
    made = _read(tmp_path / "a.jsonl")
    texts = [row for one in made if one.documents for row in one.documents["text"].to_pylist()]
    assert [len(row) for row in texts] == [70_000_000, 1]
    assert sum(one.num_documents for one in made) == sum(one.num_counted or 0 for one in made) == 2


def test_a_byte_range_of_short_lines_is_cut_by_rows_between_its_own_ends(tmp_path: Path) -> None:
    """Rows of a shard must fit one page of Parquet, and bytes say nothing of rows."""
    content = b'{"text": "a"}\n' * 1000
    (tmp_path / "a.jsonl").write_bytes(content)
    storage = Storage(str(tmp_path))
    [file] = list_input(storage, None, None, LATER)
    bounds = SplitBounds.model_validate({"max_rows": 100, "max_bytes": 5000})
    first, second, third = plan_file(storage, file, bounds, None)
    assert (second.begin, second.end) == (4666, 9333)
    pieces = list(read_split(storage, second, Input(uri="x"), pa.schema([]), bounds))
    # 4666 and 9333 are within lines: the first piece begins and the last one ends there all the same.
    edges = [4666, 334 * 14 + 1400, 334 * 14 + 2800, 334 * 14 + 4200, 9333]
    assert [(one.split.begin, one.split.end) for one in pieces] == list(pairwise(edges))
    assert [one.num_documents for one in pieces] == [100, 100, 100, 33]
    assert not any(one.split.last for one in pieces)
    assert {(one.split.row_begin, one.split.row_end) for one in pieces} == {(None, None)}
    ends = [list(read_split(storage, split, Input(uri="x"), pa.schema([]), bounds))[-1] for split in (first, third)]
    assert [(one.split.end, one.split.last) for one in ends] == [(4666, False), (14_000, True)]


def test_a_range_within_the_bounds_is_one_split_though_its_last_line_runs_past_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' * 1000)
    storage, bounds = Storage(str(tmp_path)), SplitBounds.model_validate({"max_bytes": 1000})
    [file] = list_input(storage, None, None, LATER)
    splits = plan_file(storage, file, bounds, None)
    assert {split.end - split.begin for split in splits if split.end} == {1000}
    made = [one for split in splits for one in read_split(storage, split, Input(uri="x"), pa.schema([]), bounds)]
    assert [(one.split.begin, one.split.end) for one in made] == [(split.begin, split.end) for split in splits]


def test_lines_of_pieces_that_are_done_are_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' * 50)
    storage, bounds = Storage(str(tmp_path)), SplitBounds(max_rows=10)
    [file] = list_input(storage, None, None, LATER)
    [split] = plan_file(storage, file, bounds, None)
    parsed = []
    parse = jsonl._parsed

    def counting(line: Any) -> Any:
        parsed.append(line.offset)
        return parse(line)

    monkeypatch.setattr(jsonl, "_parsed", counting)
    made = list(
        read_split(
            storage,
            split,
            Input(uri="x"),
            pa.schema([]),
            bounds,
            done={(0, 140, False), (280, 420, False), (420, 560, True)},
        )
    )
    assert [one.documents is None for one in made] == [True, False, True, False, False]
    assert parsed == [*range(140, 280, 14), *range(420, 700, 14)]


def test_a_stream_with_an_end_is_read_no_further(tmp_path: Path) -> None:
    """What `--limit` plans; a fault behind its end is not met."""
    packed = gzip.compress(LINES)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(packed[: len(packed) // 2])
    storage, bounds = Storage(str(tmp_path)), SplitBounds(max_rows=100)
    [file] = list_input(storage, None, None, LATER)
    [split] = limit_splits(storage, [file], bounds, 250)
    assert split.end == LINES.index(b'{"text": "250 ')
    made = list(read_split(storage, split, Input(uri="x"), pa.schema([]), bounds))
    assert [one.num_counted for one in made] == [100, 100, 50]
    assert (made[-1].split.end, made[-1].split.last) == (split.end, False)


def test_a_line_over_the_bound_is_quarantined_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_of, "MAX_LINE_BYTES", 1000)
    content = b'{"text": "a"}\n{"text": "' + b"x" * 5000 + b'"}\n{"text": "b"}\n'
    for name, packed in (("a.jsonl", content), ("a.jsonl.gz", gzip.compress(content))):
        documents, [bad] = _read_one(tmp_path / name, packed)
        assert [(row["text"], row["row"]) for row in documents] == [("a", 0), ("b", 5027)]
        assert (bad["row"], bad["reason"]) == (14, "invalid_json")
        assert "5013 bytes" in bad["message"]


def test_ids_and_kept_columns(tmp_path: Path) -> None:
    keep = pa.schema([("n", pa.int64()), ("lang", pa.string())])
    lines = [
        b'{"id": 7, "text": "a", "n": 1, "lang": "de"}',
        b'{"id": "x", "text": "a"}',
        b'{"text": "a"}',
        b'{"id": 1.5, "text": "a"}',
        b'{"id": "y", "text": "a", "n": "one"}',
    ]
    documents, bad = _read_one(tmp_path / "a.jsonl", b"\n".join(lines), keep=keep, id="id")
    assert [(row["doc_id"], row["n"], row["lang"]) for row in documents] == [("7", 1, "de"), ("x", None, None)]
    assert [(row["doc_id"], row["reason"]) for row in bad] == [
        (None, "missing_id"),
        (None, "wrong_type"),
        ("y", "wrong_type"),
    ]


LINES = b"".join(b'{"text": "%d %d"}\n' % (i, random.Random(i).getrandbits(64)) for i in range(20_000))


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_cut_stream_keeps_what_came_before_and_is_a_quarantined_file(tmp_path: Path, compression: str) -> None:
    packed = COMPRESS[compression](LINES)
    path = tmp_path / f"a.jsonl.{compression}"
    path.write_bytes(packed[: len(packed) * 9 // 10])
    made = _read(path, rows=3000)
    *pieces, final = made
    assert all(one.num_counted == one.num_documents == 3000 and not one.split.last for one in pieces)
    assert len(pieces) >= 3
    assert final.split.last
    assert final.num_counted is None
    assert final.quarantine.select(["row", "reason"]).to_pylist() == [{"row": None, "reason": "unreadable_file"}]
    assert final.num_quarantined == 0
    assert final.documents is not None
    assert final.documents.num_rows == final.num_documents
    rows = [row for one in made if one.documents for row in one.documents["row"].to_pylist()]
    assert all(LINES[row - 1 : row + 1] == b"\n{" for row in rows[1:])
    assert final.split.end is not None
    assert LINES[final.split.end - 1 : final.split.end] == b"\n"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("content", [b"", b'{"text": "a"}\n', b"\x1f\x8b", b"\x28\xb5\x2f\xfd"])
def test_a_file_that_is_no_stream_is_one_piece_without_documents(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    [made] = _read(tmp_path / name)
    assert (made.split.begin, made.split.end, made.split.last) == (0, 0, True)
    assert (made.num_documents, made.num_counted, made.num_quarantined) == (0, None, 0)
    assert made.quarantine["reason"].to_pylist() == ["unreadable_file"]


def test_a_stream_is_read_no_further_than_its_pieces_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is a piece's: the first piece comes before the fault behind it is met."""
    packed = gzip.compress(LINES)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(packed[: len(packed) // 2] + b"\x00" * 1000)
    storage = Storage(str(tmp_path))
    [file] = list_input(storage, None, None, LATER)
    bounds = SplitBounds(max_rows=100)
    [split] = plan_file(storage, file, bounds, None)
    seen = []
    plain_lines = lines_of.plain_lines

    def lines(*args: Any) -> Iterator[Any]:
        for line in plain_lines(*args):
            seen.append(line)
            yield line

    monkeypatch.setattr(lines_of, "plain_lines", lines)
    pieces = read_split(storage, split, Input(uri="x"), pa.schema([]), bounds)
    next(pieces)
    assert len(seen) == 101
    next(pieces)
    assert len(seen) == 201


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_file_that_changed_is_a_fault_before_its_last_piece(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(LINES) if name.endswith("gz") else LINES)
    storage, bounds = Storage(str(tmp_path)), SplitBounds(max_rows=5000)
    [file] = list_input(storage, None, None, LATER)
    [split, *_] = plan_file(storage, file, bounds, None)
    with path.open("ab") as appended:
        appended.write(b"more")
    os.utime(path)
    with pytest.raises(ChangedError):
        list(read_split(storage, split, Input(uri="x"), pa.schema([]), bounds))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("lost", ["one", "rest"])
def test_a_reader_that_loses_a_line_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, lost: str
) -> None:
    """The count of newlines alone would agree with a reader that skipped bytes."""
    data = b"".join(b'{"text": "line %d"}\n' % number for number in range(20))
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    real = lines_of.plain_lines

    def lossy(reader: Any, offset: int, end: int | None) -> Any:
        for number, line in enumerate(real(reader, offset, end)):
            if number == 7 and lost == "rest":
                return
            if number != 7:
                yield line

    monkeypatch.setattr(lines_of, "plain_lines", lossy)
    with pytest.raises(VecmillError, match="gap"):
        _read(tmp_path / name)
