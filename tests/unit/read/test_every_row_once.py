"""Promise 2, as far as reading goes: for any file and any bounds, every row is in one split, once.

And no split is over the bound in rows, and cuts are the same at every attempt, whatever is done already.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config import Input, SplitBounds
from pipeline.read import ReadSplit, read_split
from pipeline.splits import Cut, limit_splits, list_input, plan_file
from pipeline.splits.files import Clock
from pipeline.uris import Storage

LATER = Clock(now_ns=lambda: 2**62)
INPUT = Input(uri="x")
LINES_INPUT = Input(uri="x", format="lines")
NO_KEEP = pa.schema([])
NOTHING: frozenset[Cut] = frozenset()

LINE = st.one_of(
    st.text(min_size=1, max_size=8).map(
        lambda text: b'{"text": "x%s"}' % text.encode("unicode_escape").replace(b"\\", b"_")
    ),
    st.sampled_from(["ä", "日本語", "🙂🙂", "\u2028", "a\u0085b"]).map(lambda text: f'{{"text": "{text}"}}'.encode()),
    st.sampled_from([b"", b" ", b"\t\r", b"\x0b\x0c"]),  # blank
    st.sampled_from([b"{", b"[1]", b"\xff\xfe", b'{"text": 1}', b'{"text": []}', b'{"text": " "}', b"\x00"]),
)
END = st.sampled_from([b"\n", b"\r\n"])
CSV_ROW = st.one_of(
    LINE.map(lambda line: b'"' + line.replace(b'"', b'""') + b'",x'),
    st.sampled_from(
        [b"", b'"a\nb","c\r\nd"', b'5" disk,x', b"one", b"a,b,c", b'"a" b,x', b"\xff,x", b'""', b"a\rb,x", b" "]
    ),
)
BOUNDS = st.builds(
    lambda rows, num_bytes: SplitBounds.model_validate({"max_rows": rows, "max_bytes": num_bytes}),
    st.integers(1, 12),
    st.integers(1, 200),
)


@st.composite
def jsonl(draw: st.DrawFn) -> bytes:
    lines = draw(st.lists(st.tuples(LINE, END), max_size=25))
    content = b"".join(line + end for line, end in lines) + draw(st.sampled_from([b"", b'{"text": "last"}', b" "]))
    return draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + content if content else b""


@st.composite
def csv_bytes(draw: st.DrawFn) -> bytes:
    rows = draw(st.lists(st.tuples(CSV_ROW, END), max_size=25))
    content = (
        b"text,x\n" + b"".join(row + end for row, end in rows) + draw(st.sampled_from([b"", b"last,x", b'"l\n",']))
    )
    return draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + content


def _arrow(texts: list[str], groups: list[int], *, is_file: bool) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"text": texts}, schema=pa.schema([("text", pa.string())]))
    with (pa.ipc.new_file if is_file else pa.ipc.new_stream)(sink, table.schema) as writer:
        begin = 0
        for rows in groups:
            for batch in table.slice(begin, rows).to_batches():
                writer.write_batch(batch)
            begin += rows
    return bytes(sink.getvalue())


def _rows_of(content: bytes) -> list[int]:
    """The offsets of the lines that are not blank: the oracle."""
    offsets, offset = [], 0
    for line in content.split(b"\n"):
        if (line.removeprefix(b"\xef\xbb\xbf") if offset == 0 else line).strip():
            offsets.append(offset)
        offset += len(line) + 1
    return offsets


def _parquet(texts: list[str], groups: list[int]) -> bytes:
    file = io.BytesIO()
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(file, schema) as writer:
        begin = 0
        for rows in groups:
            writer.write_table(
                pa.table({"text": texts[begin : begin + rows]}, schema=schema), row_group_size=max(rows, 1)
            )
            begin += rows
    return file.getvalue()


GROUPS = st.lists(st.integers(0, 30), max_size=6)
ANY_FILE = st.one_of(
    jsonl().map(lambda content: ("a.jsonl", content)),
    jsonl().map(lambda content: ("a.jsonl.gz", gzip.compress(content))),
    jsonl().map(lambda content: ("a.jsonl.zst", zstandard.compress(content))),
    GROUPS.map(lambda groups: ("a.parquet", _parquet([f"text {i}" for i in range(sum(groups))], groups))),
    csv_bytes().map(lambda content: ("a.csv", content)),
    csv_bytes().map(lambda content: ("a.csv.xz", lzma.compress(content))),
    st.tuples(GROUPS, st.booleans()).map(
        lambda drawn: ("a.arrow", _arrow([f"text {i}" for i in range(sum(drawn[0]))], drawn[0], is_file=drawn[1]))
    ),
    jsonl().map(lambda content: ("a.txt", content)),
    jsonl().map(lambda content: ("a.txt.bz2", bz2.compress(content))),
)


def _read(
    name: str, content: bytes, bounds: SplitBounds, limit: int | None = None, done: frozenset[Cut] = NOTHING
) -> list[ReadSplit]:
    with tempfile.TemporaryDirectory() as root:
        Path(root, name).write_bytes(content)
        storage, input = Storage(root), LINES_INPUT if ".txt" in name else INPUT
        files = list_input(storage, None, None, LATER)
        splits = plan_file(storage, files[0], bounds, input.format)
        if limit is not None:
            splits = limit_splits(storage, files, bounds, limit, input)
        return [made for split in splits for made in read_split(storage, split, input, NO_KEEP, bounds, done=done)]


def _ranges(made: list[ReadSplit]) -> list[tuple[int, int]]:
    return [(one.split.begin, one.split.end or 0) for one in made]


def _rows(made: list[ReadSplit]) -> Iterator[int]:
    for one in made:
        assert one.documents is not None
        documents, bad = one.documents["row"].to_pylist(), one.quarantine["row"].to_pylist()
        assert documents == sorted(documents)
        assert bad == sorted(bad)
        yield from sorted(documents + bad)


def _assert_each_once(made: list[ReadSplit], rows: list[int], end: int, bounds: SplitBounds) -> None:
    assert list(_rows(made)) == rows
    for one in made:
        assert one.documents is not None
        assert one.num_documents == one.num_counted == one.documents.num_rows + one.num_quarantined
        assert one.num_documents <= bounds.num_rows
    edges = [0] + [one.split.end for one in made]
    assert [one.split.begin for one in made] == edges[:-1]
    assert edges[-1] == end
    assert [one.split.last for one in made] == [False] * (len(made) - 1) + [True]


def _assert_bytes_within(made: list[ReadSplit], bounds: SplitBounds) -> None:
    for one in made:
        if one.num_documents > 1:
            assert one.split.end is not None
            assert one.split.end - one.split.begin <= bounds.max_bytes


@settings(max_examples=120, deadline=None)
@given(jsonl(), BOUNDS)
def test_plain_jsonl(content: bytes, bounds: SplitBounds) -> None:
    made = _read("a.jsonl", content, bounds)
    _assert_each_once(made, _rows_of(content), len(content), bounds)
    _assert_bytes_within(made, bounds)


@settings(max_examples=120, deadline=None)
@given(jsonl(), BOUNDS, st.lists(st.integers(0, 300), max_size=3), st.booleans())
def test_compressed_jsonl(content: bytes, bounds: SplitBounds, cuts: list[int], gz: bool) -> None:
    edges = [0, *sorted(cuts), len(content)]
    members = [content[begin:end] for begin, end in pairwise(edges)]
    members[-1] = content[edges[-2] :] if edges[-2] < len(content) else b""
    compress = gzip.compress if gz else zstandard.compress
    packed = b"".join(compress(member) for member in members)
    made = _read("a.jsonl.gz" if gz else "a.jsonl.zst", packed, bounds)
    _assert_each_once(made, _rows_of(content), len(content), bounds)
    _assert_bytes_within(made, bounds)
    rows = list(accumulate((one.num_documents for one in made), initial=0))
    assert [(one.split.row_begin, one.split.row_end) for one in made] == list(pairwise(rows))


@settings(max_examples=60, deadline=None)
@given(GROUPS, BOUNDS, st.integers(0, 3))
def test_parquet(groups: list[int], bounds: SplitBounds, num_bad: int) -> None:
    texts = [f"text {i}" if i >= num_bad else " " for i in range(sum(groups))]
    packed = _parquet(texts, groups)
    made = _read("a.parquet", packed, bounds)
    _assert_each_once(made, list(range(sum(groups))), sum(groups), bounds)
    found = [text for one in made if one.documents for text in one.documents["text"].to_pylist()]
    assert found == texts[num_bad:]


@settings(max_examples=60, deadline=None)
@given(GROUPS, BOUNDS, st.integers(0, 3), st.booleans())
def test_arrow(groups: list[int], bounds: SplitBounds, num_bad: int, is_file: bool) -> None:
    texts = [f"text {i}" if i >= num_bad else " " for i in range(sum(groups))]
    made = _read("a.arrow", _arrow(texts, groups, is_file=is_file), bounds)
    _assert_each_once(made, list(range(sum(groups))), sum(groups), bounds)
    found = [text for one in made if one.documents for text in one.documents["text"].to_pylist()]
    assert found == texts[num_bad:]


def _csv_rows(content: bytes) -> list[int]:
    """The offsets of the rows, for values that hold a newline only as CSV_ROW has it: the oracle."""
    offsets, offset = [], 0
    for line in re.split(
        rb"(?<=\n)", content.replace(b'"a\nb"', b'"a b"').replace(b"c\r\nd", b"c  d").replace(b"l\n", b"l ")
    ):
        if line.strip(b"\r\n"):
            offsets.append(offset)
        offset += len(line)
    return offsets[1:]


@settings(max_examples=120, deadline=None)
@given(csv_bytes(), BOUNDS, st.sampled_from(["a.csv", "a.csv.gz"]))
def test_csv(content: bytes, bounds: SplitBounds, name: str) -> None:
    made = _read(name, gzip.compress(content) if name.endswith("gz") else content, bounds)
    _assert_each_once(made, _csv_rows(content), len(content), bounds)
    _assert_bytes_within(made, bounds)


@settings(max_examples=120, deadline=None)
@given(jsonl(), BOUNDS, st.integers(1, 12), st.sampled_from(["a.jsonl", "a.jsonl.gz"]))
def test_a_limit_is_exact(content: bytes, bounds: SplitBounds, limit: int, name: str) -> None:
    packed = gzip.compress(content) if name.endswith("gz") else content
    made = _read(name, packed, bounds, limit)
    assert list(_rows(made)) == _rows_of(content)[:limit]
    if len(_rows_of(content)) > limit:
        assert not any(one.split.last for one in made)


@settings(max_examples=60, deadline=None)
@given(ANY_FILE, BOUNDS, st.integers(1, 40))
@example(
    ("a.arrow", _arrow([f"text {i}" for i in range(19)], [17, 2], is_file=False)),
    SplitBounds.model_validate({"max_rows": 2, "max_bytes": 22}),
    18,
)
def test_a_full_run_takes_over_what_a_limit_read(file: tuple[str, bytes], bounds: SplitBounds, limit: int) -> None:
    full, limited = _ranges(_read(*file, bounds)), _ranges(_read(*file, bounds, limit))
    assert limited[:-1] == full[: len(limited) - 1]
    assert limited[-1][0] == full[len(limited) - 1][0]
    assert limited[-1][1] <= full[len(limited) - 1][1]


@settings(max_examples=50, deadline=None)
@given(jsonl(), BOUNDS)
def test_cuts_of_a_stream_are_those_of_its_bytes_not_of_its_members(content: bytes, bounds: SplitBounds) -> None:
    first = _read("a.jsonl.gz", gzip.compress(content), bounds)
    again = _read("a.jsonl.gz", gzip.compress(content, 1) + gzip.compress(b""), bounds)
    assert _ranges(first) == _ranges(again)


@settings(max_examples=150, deadline=None)
@given(ANY_FILE, BOUNDS, st.sets(st.integers(0, 20)), st.none() | st.integers(1, 40))
def test_with_any_pieces_done_the_pieces_are_the_same(
    file: tuple[str, bytes], bounds: SplitBounds, done: set[int], limit: int | None
) -> None:
    full = _read(*file, bounds, limit)
    ranges = _ranges(full)
    again = _read(
        *file, bounds, limit, frozenset((*ranges[i], bool(full[i].split.last)) for i in done if i < len(ranges))
    )
    assert _ranges(again) == ranges
    for i, (one, other) in enumerate(zip(again, full, strict=True)):
        assert replace(one.split, file=other.split.file) == other.split
        assert (one.num_documents, one.num_counted) == (other.num_documents, other.num_counted)
        assert one.documents == (None if i in done else other.documents)
        assert i in done or one.quarantine == other.quarantine
