"""Bad documents and bad files as data, each with what becomes of it: read by tests/integration/test_bad_data.py.

A fate is one of

    EMBEDDED                 as it is, under its id
    a Reason                 quarantined for it (pipeline.schema)
    (for files) Fate         rows embedded, quarantined by reason, and whether the file counts as unreadable
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import zstandard

EMBEDDED = "embedded"


@dataclass(frozen=True)
class BadLine:
    """A line of JSONL with the columns id, text and the kept column n (whole numbers)."""

    name: str
    data: bytes
    fate: str
    doc_id: str | None = None
    """What it is embedded under; None: its name."""


def line(name: str, fate: str, **values: Any) -> BadLine:
    """A line that JSON can spell, under its name as id unless it has another."""
    given = {"id": name, "text": "a river", "n": 1} | values
    kept = {key: value for key, value in given.items() if value is not ...}
    return BadLine(name, json.dumps(kept, ensure_ascii=False).encode(), fate)


def raw(name: str, fate: str, text: bytes) -> BadLine:
    """A line whose text is written as given, between the quotes."""
    return BadLine(name, b'{"id": "%s", "text": %s, "n": 1}' % (name.encode(), text), fate)


_DEEP = 100_000

LINES = [
    # text that is unusual, and text all the same
    line("right-to-left", EMBEDDED, text="שלום עולם \u202e العربية"),
    line("emoji with joiners", EMBEDDED, text="👩‍👩‍👧‍👦 🏳️‍🌈"),
    line("zero-width only", EMBEDDED, text="\u200b\u200d\ufeff"),
    line("combining marks", EMBEDDED, text="Z" + "\u0335\u0321" * 200),
    line("noncharacters", EMBEDDED, text="\uffff \ufdd0 \U0010ffff"),
    line("private use", EMBEDDED, text="\ue000"),
    line("line separators", EMBEDDED, text="a\u2028b\u2029c\u0085d"),
    line("only punctuation", EMBEDDED, text="?!"),
    line("one letter", EMBEDDED, text="x"),
    line("ten megabytes", EMBEDDED, text="river " * 99 + "x" * 10_000_000),
    line("a million words", EMBEDDED, text="word " * 1_000_000),
    raw("NUL", EMBEDDED, rb'"a\u0000b"'),
    raw("control characters", EMBEDDED, rb'"\u0001\u001b[31m\u007f"'),
    raw("an escaped pair of surrogates", EMBEDDED, rb'"\ud83d\ude00"'),
    raw("a number as text", EMBEDDED, b"42"),
    raw("a fraction as text", EMBEDDED, b"1e-7"),
    raw("a number beyond floats", EMBEDDED, b"1e999"),
    raw("a boolean as text", EMBEDDED, b"true"),
    # JSON that is unusual
    BadLine("a key twice", b'{"id": "a key twice", "text": "first", "text": "last", "n": 1}', EMBEDDED),
    BadLine("white space around", b' \t {"id": "white space around", "text": "x", "n": 1}\r', EMBEDDED),
    line("unknown keys", EMBEDDED, other={"deep": [[[[[]]]]]}),
    BadLine("a whole number as id", b'{"id": 7, "text": "x", "n": 1}', EMBEDDED, "7"),
    BadLine("a huge number as id", b'{"id": 123456789012345678901234567890, "text": "x"}', EMBEDDED,
            "123456789012345678901234567890"),
    BadLine("an id of spaces", b'{"id": " ", "text": "x"}', EMBEDDED, " "),
    BadLine("a long id", b'{"id": "%s", "text": "x"}' % (b"i" * 10_000), EMBEDDED, "i" * 10_000),
    line("a null kept column", EMBEDDED, n=None),
    line("no kept column", EMBEDDED, n=...),
    # no text
    line("null text", "empty_text", text=None),
    line("no text", "empty_text", text=...),
    line("empty text", "empty_text", text=""),
    line("blank text", "empty_text", text=" \t\r\n"),
    line("wide and unbreakable blanks", "empty_text", text="\u3000\u00a0\u2003"),
    # not decodable
    raw("a lone byte of Latin-1", "invalid_utf8", b'"caf\xe9"'),
    raw("an overlong encoding", "invalid_utf8", b'"\xc0\xaf"'),
    raw("a surrogate in UTF-8", "invalid_utf8", b'"\xed\xa0\x80"'),
    raw("a cut sequence", "invalid_utf8", b'"\xf0\x9f\x98"'),
    raw("a lone surrogate", "invalid_utf8", rb'"\ud800"'),
    BadLine("a lone surrogate as id", rb'{"id": "\udfff", "text": "x"}', "invalid_utf8"),
    # no JSON
    BadLine("a torn line", b'{"id": "torn", "text": "x', "invalid_json"),
    BadLine("two objects", b'{"id": "1st", "text": "x"} {"id": "2nd", "text": "y"}', "invalid_json"),
    BadLine("a comma too many", b'{"id": "comma", "text": "x",}', "invalid_json"),
    BadLine("single quotes", b"{'id': 'quotes', 'text': 'x'}", "invalid_json"),
    BadLine("plain text", b"the river runs", "invalid_json"),
    BadLine("a merge conflict", b"<<<<<<< HEAD", "invalid_json"),
    BadLine("a lone NUL", b"\x00", "invalid_json"),
    raw("a bare tab in a string", "invalid_json", b'"a\tb"'),
    raw("an unknown escape", "invalid_json", rb'"\x41"'),
    raw("NaN", "invalid_json", b"NaN"),
    raw("Infinity", "invalid_json", b"-Infinity"),
    raw("a number of 5,000 digits", "invalid_json", b"9" * 5000),
    BadLine("nested too deeply", b'{"id": "deep", "text": "x", "o": %s%s}' % (b"[" * _DEEP, b"]" * _DEEP),
            "invalid_json"),
    # another thing
    BadLine("a list", b'["a", "list"]', "not_an_object"),
    BadLine("a string", b'"text"', "not_an_object"),
    BadLine("a number", b"3", "not_an_object"),
    BadLine("null", b"null", "not_an_object"),
    line("an object as text", "wrong_type", text={"en": "x"}),
    line("a list as text", "wrong_type", text=["x"]),
    line("a boolean as id", "wrong_type", id=True),
    line("a fraction as id", "wrong_type", id=1.5),
    line("a list as id", "wrong_type", id=["x"]),
    line("a string in a kept column of numbers", "wrong_type", n="MCM"),
    line("a fraction in a kept column of numbers", "wrong_type", n=1.5),
    line("a number beyond a kept column", "wrong_type", n=2**64),
    line("no id", "missing_id", id=...),
    line("a null id", "missing_id", id=None),
    line("an empty id", "missing_id", id=""),
    # ids that are not theirs
    line("the id of an earlier line", "duplicate_id", id="one letter"),
    line("the id of another file", "duplicate_id", id="good 0"),
    line("the id of an earlier line as a number", "duplicate_id", id=7),
]  # fmt: skip


@dataclass(frozen=True)
class Fate:
    """What becomes of a file."""

    embedded: int | None = 0
    """None: those before the fault."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Documents in quarantine by reason."""
    is_unreadable: bool = False
    """Whether the file counts as quarantined, with a row that says why."""


@dataclass(frozen=True)
class BadFile:
    """A file of rows {id, text, n}."""

    name: str
    file: str
    data: Callable[[], bytes]
    fate: Fate


NUM_ROWS = 60
_UNREADABLE = Fate(is_unreadable=True)


def rows(name: str, num: int = NUM_ROWS) -> list[dict[str, Any]]:
    """Good rows; ids hold the name."""
    return [{"id": f"{name} {row}", "text": f"the river {row} of {name}", "n": row} for row in range(num)]


def _parquet(name: str, num: int = NUM_ROWS, **options: Any) -> bytes:
    sink = io.BytesIO()
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("n", pa.int64())])
    pq.write_table(pa.Table.from_pylist(rows(name, num), schema), sink, row_group_size=20, **options)
    return sink.getvalue()


def _lines(name: str, num: int = NUM_ROWS) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows(name, num))


def _corrupt_group() -> bytes:
    """The pages of the second of three row groups overwritten; footer and page headers' sizes as they were."""
    data = bytearray(_parquet("corrupt group", compression="zstd"))
    column = pq.ParquetFile(io.BytesIO(bytes(data))).metadata.row_group(1).column(1)
    begin = column.dictionary_page_offset or column.data_page_offset
    data[begin : begin + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    return bytes(data)


def _with_strings(name: str, ids: list[bytes | None], texts: list[bytes | None]) -> bytes:
    """Strings as other writers may leave them: Parquet's own are not looked at by Arrow."""
    sink = io.BytesIO()
    columns = [pa.array(values, pa.binary()).view(pa.string()) for values in (ids, texts)]
    pq.write_table(pa.table({"id": columns[0], "text": columns[1], "n": pa.nulls(len(ids), pa.int64())}), sink)
    return sink.getvalue()


def _feather() -> bytes:
    sink = io.BytesIO()
    pa.feather.write_feather(pa.Table.from_pylist(rows("feather")), sink)
    return sink.getvalue()


def _csv(name: str, end: str = "") -> bytes:
    lines = [f'{row["id"]},"{row["text"]}{end}",{row["n"]}' for row in rows(name)]
    return "".join(f"{line}\n" for line in ["id,text,n", *lines]).encode()


def _stream(name: str) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows(name))
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=20)
    return bytes(sink.getvalue())


def _bad_crc() -> bytes:
    data = bytearray(gzip.compress(_lines("bad crc")))
    data[-8] ^= 0xFF
    return bytes(data)


def _wrong_footer() -> bytes:
    data = bytearray(_parquet("wrong footer"))
    length = int.from_bytes(data[-8:-4], "little")
    data[-8 - length : -8] = b"\xff" * length
    return bytes(data)


FILES = [
    # not what the name says
    BadFile("text as Parquet", "text.parquet", lambda: b"this is text\n" * 50, _UNREADABLE),
    BadFile("lines as Parquet", "lines.parquet", lambda: _lines("x"), _UNREADABLE),
    BadFile("Arrow's own format as Parquet", "feather.parquet", _feather, _UNREADABLE),
    BadFile("an empty Parquet file", "empty.parquet", lambda: b"", _UNREADABLE),
    BadFile("the magic bytes of Parquet alone", "magic.parquet", lambda: b"PAR1", _UNREADABLE),
    BadFile("Parquet without its footer", "cut.parquet", lambda: _parquet("cut")[:-200], _UNREADABLE),
    BadFile("Parquet without its beginning", "tail.parquet", lambda: _parquet("tail")[-60:], _UNREADABLE),
    BadFile("Parquet with a footer of other bytes", "footer.parquet", _wrong_footer, _UNREADABLE),
    BadFile("Parquet with a footer longer than itself", "long.parquet",
            lambda: _parquet("long")[:-8] + b"\xff\xff\xff\x7fPAR1", _UNREADABLE),
    BadFile("encrypted Parquet", "encrypted.parquet", lambda: _parquet("enc")[:-4] + b"PARE", _UNREADABLE),
    BadFile("text as gzip", "text.jsonl.gz", lambda: b"this is text\n" * 50, _UNREADABLE),
    BadFile("an empty gzip file", "empty.jsonl.gz", lambda: b"", _UNREADABLE),
    BadFile("the header of gzip alone", "header.jsonl.gz", lambda: gzip.compress(_lines("h"))[:10], _UNREADABLE),
    BadFile("text as zstd", "text.jsonl.zst", lambda: b"this is text\n" * 50, _UNREADABLE),
    BadFile("an empty zstd file", "empty.jsonl.zst", lambda: b"", _UNREADABLE),
    BadFile("cut zstd", "cut.jsonl.zst", lambda: zstandard.compress(_lines("z"))[:-20], _UNREADABLE),
    BadFile("text as bzip2", "text.jsonl.bz2", lambda: b"this is text\n" * 50, _UNREADABLE),
    BadFile("text as xz", "text.csv.xz", lambda: b"id,text,n\n" * 50, _UNREADABLE),
    BadFile("an empty xz file", "empty.csv.xz", lambda: b"", _UNREADABLE),
    BadFile("text as Arrow", "text.arrow", lambda: b"this is text\n" * 50, _UNREADABLE),
    BadFile("Parquet as Arrow", "parquet.arrow", lambda: _parquet("x"), _UNREADABLE),
    BadFile("an empty Arrow file", "empty.arrow", lambda: b"", _UNREADABLE),
    BadFile("Feather without its footer", "cut.feather", lambda: _feather()[:-50], _UNREADABLE),
    BadFile("CSV whose header has no end", "header.csv", lambda: b'"id,text,n\n' + b"a,b,1\n" * 9, _UNREADABLE),
    # what comes before the fault is whole, and embedded
    BadFile("a stream of Arrow that is cut", "cut.arrow", lambda: _stream("cut Arrow")[:-100],
            Fate(40, is_unreadable=True)),
    BadFile("a quote of CSV that is not closed", "quote.csv", lambda: _csv("quote") + b'q,"open,1\nr,more,2\n',
            Fate(NUM_ROWS, is_unreadable=True)),
    BadFile("cut xz", "cut.jsonl.xz", lambda: lzma.compress(_lines("cut xz", 3000))[:-200],
            Fate(embedded=None, is_unreadable=True)),
    BadFile("xz with other bytes behind it", "trailing.jsonl.xz", lambda: lzma.compress(_lines("xz")) + b"junk!",
            Fate(NUM_ROWS, is_unreadable=True)),
    BadFile("bzip2 with other bytes behind it", "trailing.jsonl.bz2", lambda: bz2.compress(_lines("bz")) + b"junk!",
            Fate(NUM_ROWS, is_unreadable=True)),
    BadFile("cut gzip", "cut.jsonl.gz", lambda: gzip.compress(_lines("cut gzip", 3000))[:-200],
            Fate(embedded=None, is_unreadable=True)),
    BadFile("gzip with other bytes behind it", "trailing.jsonl.gz",
            lambda: gzip.compress(_lines("trailing")) + b"junk!", Fate(embedded=None, is_unreadable=True)),
    BadFile("gzip with a wrong checksum", "crc.jsonl.gz", _bad_crc, Fate(embedded=None, is_unreadable=True)),
    # the smallest level that can be named
    BadFile("a corrupt row group in the middle", "group.parquet", _corrupt_group,
            Fate(40, {"undecodable_row": 20})),
    BadFile("Parquet strings that are no UTF-8", "utf8.parquet",
            lambda: _with_strings("utf8", [b"u0", b"\xff", b"u2"], [b"caf\xe9", b"x", b"fine"]),
            Fate(1, {"invalid_utf8": 2})),
    BadFile("Parquet with nulls", "nulls.parquet",
            lambda: _with_strings("nulls", [b"n0", None, b"", b"n3"], [None, b"x", b"y", b"z"]),
            Fate(1, {"empty_text": 1, "missing_id": 2})),
    BadFile("Parquet with an id twice", "twice.parquet",
            lambda: _with_strings("twice", [b"t", b"t", b"t1"], [b"x", b"y", b"z"]), Fate(2, {"duplicate_id": 1})),
    BadFile("lines in UTF-16", "utf16.jsonl", lambda: '{"id": "a", "text": "x"}\n'.encode("utf-16-le") * 3,
            Fate(0, {"invalid_json": 4})),
    BadFile("lines in UTF-16 with a mark", "utf16bom.jsonl", lambda: '{"id": "a", "text": "x"}\n'.encode("utf-16"),
            Fate(0, {"invalid_utf8": 1, "invalid_json": 1})),
    BadFile("bytes of gzip as plain lines", "plain.jsonl", lambda: b"\x1f\x8b\x08" + b"\xf0" * 99 + b"\n\xff",
            Fate(0, {"invalid_utf8": 2})),
    BadFile("one JSON document over many lines", "pretty.jsonl",
            lambda: json.dumps(rows("pretty", 1), indent=1).encode(), Fate(0, {"invalid_json": 7})),
    BadFile("rows of CSV that are none", "rows.csv",
            lambda: _csv("rows of csv") + b'a,b\na,b,1,2\n"a" a,b,1\nx1,caf\xe9,1\nx2,,1\n,b,1\nx3,b,many\n',
            Fate(NUM_ROWS, {"invalid_csv": 3, "invalid_utf8": 1, "empty_text": 1, "missing_id": 1, "wrong_type": 1})),
    # unusual, and read as it is
    BadFile("CSV with newlines in its values", "newlines.csv", lambda: _csv("newlines", end="\nand\r\nmore"),
            Fate(NUM_ROWS)),
    BadFile("CSV of a header alone", "header only.csv", lambda: b"id,text,n\n", Fate()),
    BadFile("CSV of nothing", "nothing.csv", lambda: b"", Fate()),
    BadFile("a stream of Arrow", "stream.arrow", lambda: _stream("stream"), Fate(NUM_ROWS)),
    BadFile("Feather", "feather.feather", _feather, Fate(NUM_ROWS)),
    BadFile("several streams of xz", "streams.jsonl.xz",
            lambda: lzma.compress(_lines("streams")) + lzma.compress(b"") + b"\0\0\0\0", Fate(NUM_ROWS)),
    BadFile("several streams of bzip2", "streams.jsonl.bz2",
            lambda: bz2.compress(_lines("streams b")) + bz2.compress(b""), Fate(NUM_ROWS)),
    BadFile("lines after a byte order mark", "bom.jsonl", lambda: b"\xef\xbb\xbf" + _lines("bom"), Fate(NUM_ROWS)),
    BadFile("lines that end as Windows has it", "crlf.jsonl", lambda: _lines("crlf").replace(b"\n", b"\r\n"),
            Fate(NUM_ROWS)),
    BadFile("no newline at the end", "end.jsonl", lambda: _lines("end")[:-1], Fate(NUM_ROWS)),
    BadFile("blank lines", "blank.jsonl", lambda: _lines("blank").replace(b"\n", b"\n \n\n"), Fate(NUM_ROWS)),
    BadFile("no lines", "nothing.jsonl", lambda: b"", Fate()),
    BadFile("blank lines only", "blanks.jsonl", lambda: b"\n\n  \n", Fate()),
    BadFile("several gzip members", "members.jsonl.gz",
            lambda: gzip.compress(_lines("members")) + gzip.compress(b""), Fate(NUM_ROWS)),
    BadFile("gzip of nothing", "none.jsonl.gz", lambda: gzip.compress(b""), Fate()),
    BadFile("Parquet without rows", "rows.parquet", lambda: _parquet("rows", 0), Fate()),
    BadFile("a folder named as a file", "folder.parquet/part.parquet", lambda: _parquet("folder"), Fate(NUM_ROWS)),
    BadFile("a name that must be quoted", "a b%20#c?é.jsonl", lambda: _lines("quoted"), Fate(NUM_ROWS)),
]  # fmt: skip
