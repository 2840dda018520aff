"""Each format gives the same documents, whatever it is compressed with; each odd row has a stated fate, and alone."""

from __future__ import annotations

import io
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

import pipeline.read.lines as lines_of
import pipeline.read.plain as plain
import pipeline.splits.delimited as delimited
from pipeline.config import Csv, Input, SplitBounds
from pipeline.errors import InputError
from pipeline.read import ReadSplit, read_split
from pipeline.splits import check_columns, limit_splits, list_input, plan_file
from pipeline.splits.files import Clock
from pipeline.splits.streams import UndecodableError
from pipeline.uris import Storage
from tests.formats import COMPRESS, delimited_bytes, file_bytes, jsonl_bytes, parquet_bytes, stream_bytes

LATER = Clock(now_ns=lambda: 2**62)
ROWS = [{"id": f"d{n}", "text": f'the "river" {n}, north', "lang": "de"} for n in range(40)]


def read(path: Path, *, rows: int = 10_000, limit: int | None = None, **input: Any) -> list[ReadSplit]:
    """The splits of one file, as a run reads it: columns checked, planned, read."""
    storage, bounds = Storage(str(path.parent)), SplitBounds(max_rows=rows)
    config = Input.model_validate({"uri": "x", **input})
    files = list_input(storage, path.name, config.format, LATER)
    keep = check_columns(storage, files, config)
    planned = plan_file(storage, files[0], bounds, config.format, config.columns)
    if limit is not None:
        planned = limit_splits(storage, files, bounds, limit, config)
    return [made for split in planned for made in read_split(storage, split, config, keep, bounds)]


def documents(made: list[ReadSplit]) -> list[dict[str, Any]]:
    return [row for one in made if one.documents is not None for row in one.documents.to_pylist()]


def quarantine(made: list[ReadSplit]) -> list[dict[str, Any]]:
    return [row for one in made for row in one.quarantine.to_pylist()]


TABLE = pa.Table.from_pylist(ROWS)
FILES = {
    "a.parquet": parquet_bytes(TABLE),
    "a.arrow": stream_bytes(TABLE),
    "b.arrow": file_bytes(TABLE),
    "a.feather": file_bytes(TABLE, "zstd"),
    **{f"a.jsonl{suffix}": pack(jsonl_bytes(ROWS)) for suffix, pack in COMPRESS.items()},
    **{f"a.csv{suffix}": pack(delimited_bytes(ROWS)) for suffix, pack in COMPRESS.items()},
    **{f"a.tsv{suffix}": pack(delimited_bytes(ROWS, "\t")) for suffix, pack in COMPRESS.items()},
}


@pytest.mark.parametrize("name", FILES)
def test_the_same_rows_give_the_same_documents_in_any_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    made = read(tmp_path / name, rows=15, id="id", keep=("lang",))
    found = [{"id": row["doc_id"], "text": row["text"], "lang": row["lang"]} for row in documents(made)]
    assert found == ROWS
    assert not quarantine(made)
    assert [one.num_documents for one in made] == [one.num_counted for one in made]
    assert all(one.num_documents <= 15 for one in made)
    assert [one.split.last for one in made] == [False] * (len(made) - 1) + [True]
    assert [one.split.begin for one in made] == [0, *(one.split.end for one in made[:-1])]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("limit", [1, 15, 22, 40])
def test_a_limit_is_exact_in_any_format(tmp_path: Path, name: str, limit: int) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    made = read(tmp_path / name, rows=15, limit=limit, id="id")
    assert [row["doc_id"] for row in documents(made)] == [row["id"] for row in ROWS[:limit]]
    assert made[-1].split.last is (limit == 40)


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_column_is_found_before_work_with_the_names_there_are(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    wrong: dict[str, Any] = {"text": "{titel}", "id": "url", "keep": ["year"]}
    for key, value in wrong.items():
        with pytest.raises(InputError, match=rf"input\.{key}: no column \w+ in {name}; there are: id, text, lang"):
            read(tmp_path / name, **{key: value})


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_line_is_a_document(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b"\xef\xbb\xbfone\r\n\n  \n two \nthree"))
    made = read(path, format="lines")
    # A mark is three bytes of the file, and no part of the text.
    assert [(row["doc_id"], row["text"]) for row in documents(made)] == [
        (f"{path.name}#0", "one"),
        (f"{path.name}#12", " two "),
        (f"{path.name}#18", "three"),
    ]
    assert (made[0].num_documents, made[0].num_counted) == (3, 3)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("text", ["one\n\ntwo\n", " \n", ""])
def test_a_file_is_a_document(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b"\xef\xbb\xbf" + text.encode() if text.strip() else text.encode()))
    [made] = read(path)
    assert [(row["doc_id"], row["text"]) for row in documents([made])] == [(f"{path.name}#0", text)] * bool(
        text.strip()
    )
    assert [row["reason"] for row in quarantine([made])] == ["empty_text"] * (not text.strip())
    assert (made.num_documents, made.num_counted) == (1, 1)
    assert (made.split.begin, made.split.end, made.split.last) == (0, 1, True)


def test_text_that_is_no_utf8_is_one_bad_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    [bad] = quarantine(read(tmp_path / "a.txt"))
    assert (bad["doc_id"], bad["reason"]) == ("a.txt#0", "invalid_utf8")


# -- streams that are cut ------------------------------------------------------

MANY = [{"id": f"d{n}", "text": f"river {n * 7919 % 100_003}"} for n in range(8_000)]


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "lines"])
@pytest.mark.parametrize("damage", ["cut", "junk", "members"])
def test_damaged_and_concatenated_streams(tmp_path: Path, suffix: str, kind: str, damage: str) -> None:
    data = delimited_bytes(MANY) if kind == "csv" else jsonl_bytes(MANY)
    packed = COMPRESS[suffix](data)
    if damage == "members":
        packed = (
            COMPRESS[suffix](data[: len(data) // 2]) + COMPRESS[suffix](b"") + COMPRESS[suffix](data[len(data) // 2 :])
        )
    path = tmp_path / f"a.{kind}{suffix}"
    path.write_bytes({"cut": packed[: len(packed) * 9 // 10], "junk": packed + b"junk!", "members": packed}[damage])
    made = read(path, format="lines" if kind == "lines" else None)
    assert made[-1].split.last
    if damage == "members":
        assert sum(one.num_counted or 0 for one in made) == len(documents(made)) == len(MANY)
        return
    assert made[-1].num_counted is None
    assert [row["reason"] for row in quarantine(made)] == ["unreadable_file"]
    # Of bzip2 a block is the least that can be read, and all of this is one.
    assert documents(made) or (suffix, damage) == (".bz2", "cut")


@pytest.mark.parametrize("suffix", [".bz2", ".xz"])
@pytest.mark.parametrize("content", [b"", b"text\n", b"BZh9", b"\xfd7zXZ\x00"])
def test_what_is_no_stream_is_an_unreadable_file(tmp_path: Path, suffix: str, content: bytes) -> None:
    for kind in ("jsonl", "csv", "txt"):
        (tmp_path / f"a.{kind}{suffix}").write_bytes(content)
        [made] = read(tmp_path / f"a.{kind}{suffix}")
        assert (made.num_documents, made.num_counted, made.split.last) == (0, None, True)
        assert [row["reason"] for row in quarantine([made])] == ["unreadable_file"]


def test_padding_between_streams_of_xz_is_none_of_the_text(tmp_path: Path) -> None:
    packed = lzma.compress(b"one\n") + b"\0" * 8 + lzma.compress(b"two\n") + b"\0" * 4
    (tmp_path / "a.xz").write_bytes(packed)
    assert [row["text"] for row in documents(read(tmp_path / "a.xz", format="lines"))] == ["one", "two"]


# -- CSV -----------------------------------------------------------------------

CSV_ROWS = [
    # row, its text or the reason why it is none
    (b'"two\nlines"', "two\nlines"),
    (b'"two\r\nlines, and a ""quote"""', 'two\r\nlines, and a "quote"'),
    (b'5" disk', '5" disk'),
    (b"a\x00b", "a\x00b"),
    (b"\x01\x1b[31m", "\x01\x1b[31m"),
    ("👩‍👩‍👧 עולם \u202e \u200b \u2028".encode(), "👩‍👩‍👧 עולם \u202e \u200b \u2028"),
    (b"", "empty_text"),
    (b'""', "empty_text"),
    (b'" \n "', "empty_text"),
    (b"caf\xe9", "invalid_utf8"),
    (b"\xed\xa0\x80", "invalid_utf8"),
    (b"one,two", "invalid_csv"),
    (b'"closed" and more', "invalid_csv"),
    (b"a\rb", "invalid_csv"),
]


@pytest.mark.parametrize(("value", "fate"), CSV_ROWS, ids=lambda value: repr(value))
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_row_of_csv_has_its_fate_and_costs_no_other(tmp_path: Path, value: bytes, fate: str, end: bytes) -> None:
    before = b"id,text" + end + b"a,one" + end
    (tmp_path / "a.csv").write_bytes(before + b"b," + value + end + end + b"c,three" + end)
    made = read(tmp_path / "a.csv")
    bad = quarantine(made)
    name = f"a.csv#{len(before)}"
    if bad:
        assert [(row["doc_id"], row["row"], row["reason"]) for row in bad] == [(name, len(before), fate)]
        assert bad[0]["message"]
    found = {row["doc_id"]: row["text"] for row in documents(made)}
    assert found.pop("a.csv#" + str(len(b"id,text" + end))) == "one"
    assert found.pop(name, fate) == fate
    assert list(found.values()) == ["three"]
    assert made[0].num_documents == made[0].num_counted == 3


def test_a_row_with_too_few_values_is_at_fault(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,text\na\nb,two\n")
    made = read(tmp_path / "a.csv")
    assert [row["message"] for row in quarantine(made)] == ["1 values where the header has 2"]
    assert [row["text"] for row in documents(made)] == ["two"]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-32", "shift_jis", "utf-8-sig"])
def test_another_encoding(tmp_path: Path, encoding: str) -> None:
    rows = [{"id": "a", "text": "über" if encoding == "cp1252" else "日本\n語", "x": "1"}, *ROWS_XY] * 3
    if encoding == "shift_jis":
        rows = [{**row, "text": row["text"].replace("ü", "u")} for row in rows]
    (tmp_path / "a.csv").write_bytes(delimited_bytes(rows, ";", encoding))
    made = read(tmp_path / "a.csv", csv={"encoding": encoding, "delimiter": ";"})
    assert [row["text"] for row in documents(made)] == [row["text"] for row in rows]
    assert made[0].num_counted == len(rows)


ROWS_XY = [{"id": "b", "text": "plain", "x": "2"}]


@pytest.mark.parametrize(
    ("encoding", "bad"),
    [("cp1252", b"\x81"), ("ascii", b"\xe9"), ("utf-16-le", b"\x00\xd8"), ("shift_jis", b"\xff"), ("gb18030", b"\xff")],
)
def test_bytes_that_are_none_of_the_encoding_cost_their_row(tmp_path: Path, encoding: str, bad: bytes) -> None:
    begin, end = "id,text\na,one\nb,x".encode(encoding), "y\nc,three\n".encode(encoding)
    (tmp_path / "a.csv").write_bytes(begin + bad + end)
    made = read(tmp_path / "a.csv", csv={"encoding": encoding})
    # In ids they are one byte, whatever stands for them on the way.
    assert [(row["doc_id"], row["text"]) for row in documents(made)] == [("a.csv#8", "one"), ("a.csv#20", "three")]
    assert [row["reason"] for row in quarantine(made)] == ["invalid_utf8"]


@pytest.mark.parametrize(("encoding", "cut"), [("utf-16-le", 1), ("utf-32", 3), ("shift_jis", 1)])
def test_a_file_that_ends_within_a_character_does_not_end_before_it(tmp_path: Path, encoding: str, cut: int) -> None:
    (tmp_path / "a.csv").write_bytes("id,text\na,one\nb,two 語".encode(encoding)[:-cut])
    made = read(tmp_path / "a.csv", csv={"encoding": encoding})
    assert [row["text"] for row in documents(made)] == ["one"]
    assert [(row["row"], row["reason"]) for row in quarantine(made)] == [(14, "invalid_utf8")]


def test_a_quote_that_is_not_closed_ends_the_file_there_and_loses_nothing_silently(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'id,text\na,one\nb,"two\nc,three\nd,four\n')
    made = read(tmp_path / "a.csv")
    assert [row["text"] for row in documents(made)] == ["one"]
    [bad] = quarantine(made)
    assert (bad["row"], bad["reason"], made[-1].num_counted) == (None, "unreadable_file", None)
    assert "row at byte 14 is not closed" in bad["message"]
    # Where no value holds a newline it is one row.
    made = read(tmp_path / "a.csv", csv={"multiline": False})
    assert [row["text"] for row in documents(made)] == ["one", "three", "four"]
    assert [(row["row"], row["reason"]) for row in quarantine(made)] == [(14, "invalid_csv")]
    made = read(tmp_path / "a.csv", csv={"quote": None})
    assert [row["text"] for row in documents(made)] == ["one", '"two', "three", "four"]


def test_a_quote_that_is_not_closed_holds_no_more_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "MAX_ROW_BYTES", 1000)

    class Endless(io.RawIOBase):
        left = b'id,text\na,one\nb,"two\n'
        num_bytes = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any, /) -> int:
            data = self.left[:100] or b"c,three\n"
            self.left = self.left[100:]
            self.num_bytes += len(data)
            assert self.num_bytes < 2000
            buffer[: len(data)] = data
            return len(data)

    rows = delimited.csv_rows(io.BufferedReader(Endless(), 100), delimited.Dialect(",", '"', multiline=True))
    assert [next(rows).offset, next(rows).offset] == [0, 8]
    with pytest.raises(UndecodableError, match="row at byte 14 is not closed"):
        next(rows)
    line: io.BufferedReader = io.BufferedReader(io.BytesIO(b"x" * 10**6), 100)
    with pytest.raises(UndecodableError, match="longer than 1000 bytes"):
        next(delimited.csv_rows(line, delimited.Dialect(",", '"', multiline=True)))
    assert line.tell() < 2000


@pytest.mark.parametrize("csv", [{}, {"multiline": False}, {"quote": None}])
def test_a_line_of_csv_over_the_bound_ends_the_file_and_its_parts_are_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, csv: dict[str, Any]
) -> None:
    monkeypatch.setattr(delimited, "MAX_ROW_BYTES", 1000)
    (tmp_path / "a.csv").write_bytes(b"id,text\na,one\nb," + b"x," * 1000 + b"\nc,three\n")
    made = read(tmp_path / "a.csv", csv=csv)
    assert [row["text"] for row in documents(made)] == ["one"]
    [bad] = quarantine(made)
    assert (bad["row"], bad["reason"], made[-1].num_counted) == (None, "unreadable_file", None)
    assert "line at byte 14 is longer than 1000 bytes" in bad["message"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_line_or_a_text_over_the_bound_is_in_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(lines_of, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(plain, "MAX_TEXT_BYTES", 5000)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b"one\n" + b"x" * 5000 + b"\nthree\n"))
    made = read(path, format="lines")
    assert [row["text"] for row in documents(made)] == ["one", "three"]
    [bad] = quarantine(made)
    assert (bad["row"], bad["reason"]) == (4, "undecodable_row")
    assert "5001 bytes" in bad["message"]
    assert made[0].num_counted == 3
    made = read(path)
    [bad] = quarantine(made)
    assert (documents(made), bad["row"], bad["reason"]) == ([], None, "unreadable_file")
    assert "more than 5000 bytes" in bad["message"]


def test_two_counts_that_differ_quarantine_the_file(tmp_path: Path) -> None:
    """What a parser and a count of newlines outside of quotes tell apart: nobody knows what a row is there."""
    (tmp_path / "a.csv").write_bytes(b'id,text,x\na,one,\nb,"two" or,"more\nc,three"\nd,four,\n')
    made = read(tmp_path / "a.csv")
    assert made[-1].num_counted is None
    assert [row["reason"] for row in quarantine(made)][-1] == "unreadable_file"
    assert "counted" in quarantine(made)[-1]["message"]


def test_csv_of_nothing_or_of_a_header_holds_no_document(tmp_path: Path) -> None:
    for content in (b"", b"id,text", b"id,text\r\n", b"\n\nid,text\n\n"):
        (tmp_path / "a.csv").write_bytes(content)
        [made] = read(tmp_path / "a.csv")
        assert (made.num_documents, made.num_counted, quarantine([made])) == (0, 0, [])
        assert (made.split.end, made.split.last) == (len(content), True)


def test_empty_values_and_kept_columns_of_csv(tmp_path: Path) -> None:
    """All are strings, an empty one too; read into the type that other files of the corpus have, if they have one."""
    (tmp_path / "a.csv").write_bytes(b"id,text,n\n,one,1\nb,two,\nc,three,x\n")
    made = read(tmp_path / "a.csv", id="id", keep=["n"])
    assert [(row["doc_id"], row["n"]) for row in documents(made)] == [("b", ""), ("c", "x")]
    assert [row["reason"] for row in quarantine(made)] == ["missing_id"]
    pq.write_table(pa.table({"id": ["p"], "text": ["four"], "n": [4]}), tmp_path / "b.parquet")
    storage, config = Storage(str(tmp_path)), Input(uri="x", id="id", keep=("n",))
    files = list_input(storage, None, None, LATER)
    keep = check_columns(storage, files, config)
    assert keep == pa.schema([("n", pa.int64())])
    [split] = plan_file(storage, files[0], SplitBounds(), None)
    [one] = read_split(storage, split, config, keep, SplitBounds())
    assert [(row["doc_id"], row["n"]) for row in documents([one])] == [("b", None)]
    assert [row["reason"] for row in quarantine([one])] == ["missing_id", "wrong_type"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delimiter": ";;"}, "input.csv.delimiter"),
        ({"delimiter": "\n"}, "input.csv.delimiter"),
        ({"quote": "«"}, "input.csv.quote"),
        ({"delimiter": '"'}, "both"),
        ({"encoding": "klingon"}, "input.csv.encoding"),
        ({"encoding": "rot13"}, "input.csv.encoding"),
    ],
)
def test_settings_of_csv_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        Csv.model_validate(settings)


# -- Arrow ---------------------------------------------------------------------


@pytest.mark.parametrize("packed", [stream_bytes, file_bytes])
def test_rows_of_arrow_are_numbered_across_batches(tmp_path: Path, packed: Callable[[pa.Table], bytes]) -> None:
    texts = [None if n % 9 == 4 else f"river {n}" for n in range(40)]
    (tmp_path / "a.arrow").write_bytes(packed(pa.table({"text": texts, "n": range(40)})))
    made = read(tmp_path / "a.arrow", rows=10)
    assert [row["doc_id"] for row in documents(made)] == [f"a.arrow#{n}" for n in range(40) if n % 9 != 4]
    assert [row["row"] for row in quarantine(made)] == [4, 13, 22, 31]
    assert {row["reason"] for row in quarantine(made)} == {"empty_text"}
    assert all(one.split.in_rows and one.split.begin == one.split.row_begin for one in made)


@pytest.mark.parametrize("packed", [stream_bytes, file_bytes])
def test_arrow_that_is_cut_keeps_what_came_before(tmp_path: Path, packed: Callable[[pa.Table], bytes]) -> None:
    data = packed(pa.table({"text": [f"river {n}" * 50 for n in range(400)]}))
    (tmp_path / "a.arrow").write_bytes(data[: len(data) * 2 // 3])
    made = read(tmp_path / "a.arrow")
    assert made[-1].num_counted is None
    assert [row["reason"] for row in quarantine(made)] == ["unreadable_file"]
    assert bool(documents(made)) is (packed is stream_bytes)  # the other format begins at its end


def test_arrow_strings_that_are_no_utf8_cost_their_row(tmp_path: Path) -> None:
    texts = pa.array([b"one", b"caf\xe9", b"three"], pa.binary()).view(pa.string())
    ids = pa.array([b"a", b"b", b"\xff"], pa.binary()).view(pa.string())
    (tmp_path / "a.arrow").write_bytes(stream_bytes(pa.table({"text": texts, "id": ids})))
    made = read(tmp_path / "a.arrow", id="id")
    assert [row["doc_id"] for row in documents(made)] == ["a"]
    assert [row["reason"] for row in quarantine(made)] == ["invalid_utf8"] * 2


def test_arrow_whose_offsets_lie_outside_of_its_data_is_not_followed_there(tmp_path: Path) -> None:
    texts = stream_bytes(pa.table({"text": ["abc", "defg"]}))
    good, bad = (np.array([0, 3, end], np.int32).tobytes() for end in (7, 10**6))
    outside = pa.DictionaryArray.from_arrays(pa.array([0, 7], pa.int8()), ["a"], safe=False)
    for packed in (texts.replace(good, bad), stream_bytes(pa.table({"text": outside}))):
        assert packed != texts
        (tmp_path / "a.arrow").write_bytes(packed)
        [made] = read(tmp_path / "a.arrow")
        assert (made.num_documents, made.num_counted) == (0, None)
        assert [row["reason"] for row in quarantine([made])] == ["unreadable_file"]


@pytest.mark.parametrize(
    "content", [b"", b"text\n" * 9, b"ARROW1", b"ARROW1\0\0", b"FEA1", b"\xff\xff\xff\xff\xff\xff\xff\x7f"]
)
def test_what_is_no_arrow_is_an_unreadable_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.arrow").write_bytes(content)
    [made] = read(tmp_path / "a.arrow")
    assert (made.num_documents, made.num_counted, made.split.last) == (0, None, True)
    assert [row["reason"] for row in quarantine([made])] == ["unreadable_file"]


def test_columns_that_are_not_wanted_are_not_looked_at(tmp_path: Path) -> None:
    table = pa.table({"image": [b"\0" * 1000] * 3, "text": ["one", "two", "three"], "tags": [["a"], [], None]})
    for packed in (stream_bytes, file_bytes):
        (tmp_path / "a.arrow").write_bytes(packed(table))
        assert [row["text"] for row in documents(read(tmp_path / "a.arrow"))] == ["one", "two", "three"]


# -- ids -----------------------------------------------------------------------

IDS: list[tuple[Any, str | None]] = [
    ("a", "a"),
    (" ", " "),
    ("", None),
    ("i" * 2**20, "i" * 2**20),
    ("\u200b", "\u200b"),
    ("a\x00b", "a\x00b"),
    ("\u202eabc", "\u202eabc"),
    ("👩‍👩‍👧", "👩‍👩‍👧"),
]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl", "a.csv"])
def test_ids_are_what_they_are_in_any_format(tmp_path: Path, name: str) -> None:
    """A million characters too: no bound of ours is under a string's own."""
    rows = [{"id": value, "text": f"river {n}"} for n, (value, _) in enumerate(IDS)]
    table = pa.Table.from_pylist(rows)
    packed = {
        "a.parquet": parquet_bytes(table),
        "a.arrow": stream_bytes(table),
        "a.jsonl": jsonl_bytes(rows),
        "a.csv": delimited_bytes(rows),
    }
    (tmp_path / name).write_bytes(packed[name])
    made = read(tmp_path / name, id="id")
    assert [row["doc_id"] for row in documents(made)] == [fate for _, fate in IDS if fate is not None]
    assert [row["reason"] for row in quarantine(made)] == ["missing_id"]
