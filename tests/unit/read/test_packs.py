"""Reading a pack: each member as if alone, cut only between them, whatever one of them turns out to be."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config import Input, SplitBounds
from pipeline.errors import ChangedError
from pipeline.read import ReadSplit, Suspicion, read_split
from pipeline.splits import Split, list_input, pack_of, plan_files
from pipeline.splits.files import Clock
from pipeline.splits.packs import members_of, told_by_file
from pipeline.uris import Storage
from tests.corpus import parquet_bytes

LATER = Clock(now_ns=lambda: 2**62)
INPUT = Input(uri="x", text="{title}")


def bounds(rows: int, num_bytes: int = 2**26) -> SplitBounds:
    return SplitBounds.model_validate({"max_rows": rows, "max_bytes": num_bytes})


def text(*titles: str) -> bytes:
    return b"".join(b'{"title": "%s"}\n' % title.encode() for title in titles)


def pack(root: Path, files: Mapping[str, bytes]) -> tuple[Storage, Split]:
    for name, content in files.items():
        (root / name).write_bytes(content)
    storage = Storage(str(root))
    planned, _ = plan_files(storage, list_input(storage, None, None, LATER), INPUT, bounds(1000))
    return storage, pack_of(planned)


def read(storage: Storage, split: Split, limits: SplitBounds, suspicion: Suspicion | None = None) -> list[ReadSplit]:
    return list(read_split(storage, split, INPUT, pa.schema([]), limits, suspicion=suspicion))


def ids(pieces: list[ReadSplit]) -> list[list[str]]:
    return [piece.documents["doc_id"].to_pylist() for piece in pieces if piece.documents is not None]


MIXED = {
    "a.jsonl": text("a", "b"),
    "b.parquet": parquet_bytes([{"title": "c"}, {"title": " "}]),
    "c.jsonl.gz": gzip.compress(text("e")),
    "d.jsonl": b"",
    "e.jsonl": b"no json\n" + text("f"),
    "f.csv": b"title\ng\nh\n",
}


def test_a_pack_of_any_formats_is_one_split(tmp_path: Path) -> None:
    [piece] = read(*pack(tmp_path, MIXED), bounds(100))
    assert ids([piece])[0] == [
        "a.jsonl#0",
        "a.jsonl#15",
        "b.parquet#0",
        "c.jsonl.gz#0",
        "e.jsonl#8",
        "f.csv#6",
        "f.csv#8",
    ]
    assert [file.uri for file in piece.split.files] == sorted(MIXED)
    assert piece.member_counts == ((2, 2), (2, 2), (1, 1), (0, 0), (2, 2), (2, 2))
    assert (piece.num_documents, piece.num_counted, piece.num_quarantined) == (9, 9, 2)
    assert [(member.begin, member.end, member.last) for member in piece.split.members] == [
        (0, 30, True), (0, 2, True), (0, 15, True), (0, 0, True), (0, 23, True), (0, 10, True),
    ]  # fmt: skip
    assert piece.documents is not None
    assert members_of(piece.split, piece.documents["row"]).tolist() == [0, 0, 1, 2, 4, 5, 5]
    told = told_by_file(piece.split, piece.quarantine).select(["input_file", "row", "reason"]).to_pylist()
    assert [tuple(row.values()) for row in told] == [("b.parquet", 1, "empty_text"), ("e.jsonl", 0, "invalid_json")]


def test_it_is_cut_between_members_and_each_piece_is_a_pack_of_its_own(tmp_path: Path) -> None:
    files = {f"{n}.jsonl": text(*"abc"[: n % 3 + 1]) for n in range(6)}
    storage, planned = pack(tmp_path, files)
    pieces = read(storage, planned, bounds(4))
    assert [[file.uri[0] for file in piece.split.files] for piece in pieces] == [["0", "1"], ["2", "3"], ["4"], ["5"]]
    assert [piece.num_documents for piece in pieces] == [3, 4, 2, 3]
    first, second, *singles = pieces
    assert second.split == pack_of(second.split.members, member_begin=2)
    assert [(one.split.begin, one.split.end, one.split.last) for one in (first, second)] == [(0, 2, True)] * 2
    assert [single.split.file.uri for single in singles] == ["4.jsonl", "5.jsonl"]
    assert [single.split.members for single in singles] == [(), ()], "alone it is the split it would have been anyway"
    assert [[p.split.split_id for p in read(storage, planned, bounds(4))] for _ in range(2)] == [
        [p.split.split_id for p in pieces]
    ] * 2


def test_a_member_that_holds_more_than_a_split_leaves_the_pack(tmp_path: Path) -> None:
    files = {"a.jsonl": text("a"), "b.jsonl": text(*"abcde"), "c.jsonl": text("c"), "d.jsonl": text("d")}
    storage, planned = pack(tmp_path, files)
    pieces = read(storage, planned, bounds(2))
    assert [piece.num_documents for piece in pieces] == [1, 2, 2, 1, 2]
    assert [piece.split.file.uri for piece in pieces[:4]] == ["a.jsonl", "b.jsonl", "b.jsonl", "b.jsonl"]
    alone = read(storage, planned.members[1], bounds(2))
    assert [piece.split for piece in pieces[1:4]] == [piece.split for piece in alone]
    assert pieces[-1].split.files == (planned.files[2], planned.files[3])
    rows = [row for piece in pieces if piece.documents is not None for row in piece.documents["row"].to_pylist()]
    assert len(set(rows)) == 8, "the ledger knows documents by their row"


def test_bytes_cut_a_pack_too(tmp_path: Path) -> None:
    files = {f"{n}.jsonl": text("x" * 100) for n in range(6)}
    pieces = read(*pack(tmp_path, files), bounds(100, 250))
    assert [len(piece.split.files) for piece in pieces] == [2, 2, 2]


def test_a_member_that_cannot_be_read_is_quarantined_and_the_others_are_read(tmp_path: Path) -> None:
    files = {"a.jsonl": text("a"), "b.jsonl.gz": gzip.compress(text(*"bcdef"))[:-12], "c.jsonl": text("c")}
    [piece] = read(*pack(tmp_path, files), bounds(100))
    assert ids([piece])[0][0] == "a.jsonl#0"
    assert ids([piece])[0][-1] == "c.jsonl#0"
    assert piece.num_counted is None
    assert [counted for _, counted in piece.member_counts] == [1, None, 1]
    told = told_by_file(piece.split, piece.quarantine)
    assert told.select(["input_file", "row", "reason"]).to_pylist() == [
        {"input_file": "b.jsonl.gz", "row": None, "reason": "unreadable_file"}
    ]


def test_a_member_that_was_rewritten_is_named(tmp_path: Path) -> None:
    storage, planned = pack(tmp_path, {f"{n}.jsonl": text("a") for n in range(5)})
    (tmp_path / "3.jsonl").write_bytes(text("other"))
    with pytest.raises(ChangedError) as caught:
        read(storage, planned, bounds(100))
    assert caught.value.file_uri == "3.jsonl"


def test_members_are_read_ahead_on_object_storage_and_come_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, planned = pack(tmp_path, {f"{n:03}.jsonl": text(f"t{n}") for n in range(100)})
    here = read(storage, planned, bounds(30))
    monkeypatch.setattr(Storage, "is_local", False)
    monkeypatch.setattr(Storage, "open_unbuffered", _open)
    there = read(storage, planned, bounds(30))
    assert ids(there) == ids(here)
    assert [piece.split for piece in there] == [piece.split for piece in here]


def _open(self: Storage, name: str, *, expect: object = None) -> object:
    return Path(self.uri, name).open("rb")


def test_under_suspicion_each_member_is_marked_and_a_fatal_one_left_out(tmp_path: Path) -> None:
    storage, planned = pack(tmp_path, {f"{n}.jsonl": text(f"t{n}") for n in range(4)})
    marked: list[int] = []
    [piece] = read(storage, planned, bounds(100), Suspicion(marked.append, [1, 2], "it kills"))
    assert marked == [0, 3]
    assert ids([piece]) == [["0.jsonl#0", "3.jsonl#0"]]
    assert [counted for _, counted in piece.member_counts] == [1, None, None, 1]
    told = told_by_file(piece.split, piece.quarantine)
    assert told.select(["input_file", "row", "reason", "message"]).to_pylist() == [
        {"input_file": f"{n}.jsonl", "row": None, "reason": "killed_process", "message": "it kills"} for n in (1, 2)
    ]
