from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Input, Limits
from pipeline.errors import LimitError
from pipeline.limits import LimitWatch, Totals, refuse_deletions, refuse_over_limits
from pipeline.snapshots.manifest import SPLITS_SCHEMA
from pipeline.snapshots.records import Record
from pipeline.splits import InputFile, Split
from tests.stores import make_member, make_pack, make_record

NO_SPLITS = SPLITS_SCHEMA.empty_table()


def splits(**documents: int) -> pa.Table:
    zeros = dict.fromkeys(SPLITS_SCHEMA.names, 0)
    words = dict.fromkeys(("split_id", "file_id", "identity", "identity_kind"), "x") | {
        "last": True, "quarantine_file": None, "quarantine_checksum": None,
    }  # fmt: skip
    rows = [zeros | words | {"file_uri": uri, "num_documents": num} for uri, num in documents.items()]
    return pa.Table.from_pylist(rows, SPLITS_SCHEMA)


def test_the_ratio_refuses_and_tells_the_reasons_and_the_way_out() -> None:
    record = make_record(end=100, num_quarantined=20)
    with pytest.raises(LimitError, match=r"20 of 100 .*empty_text 20.*raise the limit"):
        refuse_over_limits(Limits(), [record], NO_SPLITS)


def test_under_ten_documents_no_ratio_refuses() -> None:
    refuse_over_limits(Limits(), [make_record(end=10, num_quarantined=9)], NO_SPLITS)


def test_a_raised_limit_lets_the_same_pass() -> None:
    refuse_over_limits(Limits(max_quarantined_ratio=0.2), [make_record(end=100, num_quarantined=20)], NO_SPLITS)


def test_carried_splits_count_too() -> None:
    carried = splits(b=900)
    refuse_over_limits(Limits(max_quarantined_ratio=0.02), [make_record(end=100, num_quarantined=20)], carried)


def test_an_unreadable_file_is_named() -> None:
    record = make_record("broken.parquet", 0, 0, num_counted=None)
    with pytest.raises(LimitError, match=r"1 of the input files cannot be read \(broken.parquet\)"):
        refuse_over_limits(Limits(), [record], NO_SPLITS)
    refuse_over_limits(Limits(max_quarantined_files=1), [record], NO_SPLITS)


def test_an_unreadable_file_of_a_pack_is_named_and_no_other() -> None:
    record = make_pack(make_member("a"), make_member("broken", 0, num_counted=None), make_member("c"))
    totals = Totals.of([], NO_SPLITS)
    totals.add(record)
    assert totals.unreadable == Totals.of([record], NO_SPLITS).unreadable == {"broken"}


def test_too_many_deletions_are_refused_by_the_files_that_are_gone() -> None:
    before = splits(a=90, b=10, c=1)
    refuse_deletions(Limits(), before, [], splits(a=90, c=1))
    with pytest.raises(LimitError, match=r"90 of 101 documents would disappear .* from a, "):
        refuse_deletions(Limits(), before, [], splits(b=10, c=1))


def test_files_of_packs_count_as_deletions_by_themselves() -> None:
    pack = make_pack(make_member("a", 5), make_member("c", 40))
    refuse_deletions(Limits(), splits(a=5, b=10, c=40), [pack], splits(b=10))
    with pytest.raises(LimitError, match=r"50 of 105 documents would disappear .* from c, "):
        refuse_deletions(Limits(), splits(a=5, b=10, c=90), [pack], splits(b=10))


def test_a_file_that_shrank_counts_as_deletions() -> None:
    """An export that broke off overwrites the file it should have replaced."""
    with pytest.raises(LimitError, match=r"89 of 100 documents would disappear .* from a, "):
        refuse_deletions(Limits(), splits(a=90, b=10), [make_record("a", 0, 1)], splits(b=10))
    refuse_deletions(Limits(), splits(a=90, b=10), [make_record("a", 0, 85)], splits(b=10))


def test_duplicates_that_are_about_to_be_quarantined_count() -> None:
    record = make_record(end=100)
    with pytest.raises(LimitError, match=r"12 of 100 .*duplicate_id 12"):
        refuse_over_limits(Limits(), [record], NO_SPLITS, 12)
    refuse_over_limits(Limits(), [record], NO_SPLITS, 9)


# -- stopping early ------------------------------------------------------------

INPUT = Input(uri="in", id="id", text="{title}\n\n{body}")
LEAST = len('{"id":1,"body":2}\n')
PARQUET, LINES = ("parquet", None), ("jsonl", None)


def planned(uri: str, begin: int, end: int | None, kind: Any = PARQUET, *, size: int = 0, last: bool = True) -> Split:
    return Split(InputFile(uri, size or end or 0, "v1", "etag"), kind[0], kind[1], begin, end, last)


def recorded(split: Split, begin: int, end: int, num: int, bad: int, **changes: Any) -> Record:
    """A record of part of a split, of so many documents."""
    changes = {"last": bool(split.last) and end == split.end} | changes
    record = make_record(split.file.uri, begin, end, num_documents=num, num_quarantined=bad, **changes)
    return replace(record, file_id=split.file.file_id)


def watch(*splits: Split, limits: Limits | None = None, settled: Totals | None = None) -> LimitWatch:
    return LimitWatch(limits or Limits(max_quarantined_ratio=0.1), settled or Totals(), splits, INPUT)


def test_rows_that_are_left_may_all_be_good() -> None:
    """100 bad rows of 2,000 that are planned pass at 10 %; 201 cannot, whatever comes."""
    split = planned("a", 0, 2000)
    watched = watch(split)
    for part in range(2):
        watched.add(recorded(split, part * 100, part * 100 + 100, 100, 100))
        watched.check()
    watched.add(recorded(split, 200, 201, 1, 1))
    with pytest.raises(
        LimitError, match=r"201 of 201 documents .* so far, and at most 1799 are .*the work is kept.*again"
    ):
        watched.check()


def test_a_split_that_comes_twice_counts_once() -> None:
    split = planned("a", 0, 2000)
    watched = watch(split)
    for _ in range(3):
        watched.add(recorded(split, 0, 150, 150, 150))
        watched.check()


def test_an_unreadable_file_too_many_ends_it_at_once() -> None:
    split = planned("broken.parquet", 0, 0)
    watched = watch(split, planned("a", 0, 10**6), planned("z.zst", 0, None, ("jsonl", "zst")))
    watched.check()
    watched.add(recorded(split, 0, 0, 0, 0, num_counted=None))
    with pytest.raises(LimitError, match=r"1 of the input files cannot be read \(broken.parquet\).*the work is kept"):
        watched.check()


def test_under_ten_documents_nothing_ends_it() -> None:
    split = planned("a", 0, 9)
    watched = watch(split)
    watched.add(recorded(split, 0, 9, 9, 9))
    watched.check()


def test_settled_documents_count_on_both_sides() -> None:
    split = planned("a", 0, 100)
    good = Totals(num_documents=1000)
    passing = watch(split, settled=good)
    passing.add(recorded(split, 0, 100, 100, 100))
    passing.check()
    hopeless = watch(split, settled=Totals(num_documents=1000, num_quarantined=110))
    hopeless.add(recorded(split, 0, 100, 100, 100))
    with pytest.raises(LimitError, match="210 of 1100"):
        hopeless.check()


@pytest.mark.parametrize(
    "silent",
    [
        planned("z.jsonl.zst", 0, None, ("jsonl", "zst"), size=10),
        planned("half.parquet", 0, 10, last=False),  # a run before recorded the rest: how many rows, nobody says
        planned("z.jsonl.gz", 0, None, ("jsonl", "gz"), size=1000),
    ],
    ids=lambda split: split.file.uri,
)
def test_what_may_still_come_without_a_bound_is_waited_for(silent: Split) -> None:
    split = planned("a", 0, 2000)
    watched = watch(split, silent)
    watched.add(recorded(split, 0, 2000, 2000, 2000))
    watched.check()


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_stream_that_came_to_its_end_is_known(compression: str) -> None:
    """But what an earlier run recorded of it may all be good."""
    size, end = 1000, 4000 * LEAST
    split = planned("z.jsonl", 0, None, ("jsonl", compression), size=size)
    watched = watch(split)
    watched.add(recorded(split, 0, 2000 * LEAST, 2000, 2000, last=False))
    watched.check()
    watched.add(recorded(split, 3000 * LEAST, end, 1000, 1000, last=True))
    with pytest.raises(LimitError, match="at most 1002 are still to come"):
        watched.check()


def test_bytes_that_are_left_are_few_lines() -> None:
    """The shortest good line has an id and a text; blank and bad ones only make it worse."""
    size = 40 * LEAST
    split = planned("a.jsonl", 0, size, LINES)
    for bad, passes in ((11, False), (4, True)):
        num = 20
        watched = watch(split, limits=Limits(max_quarantined_ratio=0.2))
        watched.add(recorded(split, 0, num * LEAST, num, bad))
        if passes:
            watched.check()
        else:
            with pytest.raises(LimitError, match="at most 21 are still to come"):
                watched.check()


def test_the_shortest_line_is_a_good_document() -> None:
    """Held against the reader: a line as short as is taken for possible is one, a shorter one is none."""
    from pipeline.limits import _least_line_bytes

    assert _least_line_bytes(INPUT) == LEAST
    assert _least_line_bytes(Input(uri="in", text="{a}")) == len('{"a":1}\n')
    assert _least_line_bytes(Input(uri="in", text="{a}", id="a")) == len('{"a":1}\n')
    assert _least_line_bytes(Input(uri="in", text="{a}.")) == len("{}\n")


_PIECES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.booleans()), min_size=1, max_size=12)


@settings(deadline=None)
@given(
    files=st.lists(st.tuples(st.sampled_from([PARQUET, LINES]), _PIECES), min_size=1, max_size=3),
    before=st.tuples(st.integers(0, 200), st.integers(0, 30)),
    ratio=st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.9]),
    max_files=st.integers(0, 2),
    skipped=st.integers(0, 3),
    order=st.randoms(use_true_random=False),
)
def test_it_never_refuses_what_the_end_would_let_pass(
    files: list[tuple[Any, list[tuple[int, int, bool]]]],
    before: tuple[int, int],
    ratio: float,
    max_files: int,
    skipped: int,
    order: Any,
) -> None:
    """Of good and bad documents of least size, in any order, some recorded by an earlier run: hopeless is hopeless."""
    limits = Limits(max_quarantined_ratio=ratio, max_quarantined_files=max_files)
    splits, records = [], []
    for number, (kind, pieces) in enumerate(files):
        ends, widths = [], []
        end = 0
        for good, bad, _ in pieces:
            # Bad lines may be as short as one byte and a newline.
            widths.append(good + bad if kind == PARQUET else good * LEAST + bad * 2)
            end += widths[-1]
            ends.append(end)
        for (good, bad, torn), end, width in zip(pieces, ends, widths, strict=True):
            split = planned(f"f{number}", end - width, end, kind, size=ends[-1], last=end == ends[-1])
            counted = None if torn and number % 2 else good + bad
            records.append(recorded(split, end - width, end, good + bad, bad, num_counted=counted))
            splits.append(split)
    known, todo = records[:skipped], records[skipped:]
    carried = splits_table(max(before), min(before))
    settled = Totals.of([], carried)
    watched = LimitWatch(limits, settled, splits[skipped:], INPUT)
    order.shuffle(todo)
    for record in todo:
        watched.add(record)
        try:
            watched.check()
        except LimitError:
            with pytest.raises(LimitError):
                refuse_over_limits(limits, [*known, *todo], carried)
            return
    if not skipped:
        refused = None
        try:
            refuse_over_limits(limits, records, carried)
        except LimitError as error:
            refused = error
        assert refused is None or any(kind == LINES for kind, _ in files), "at the end of Parquet nothing is unknown"


def splits_table(num_documents: int, num_quarantined: int) -> pa.Table:
    table = splits(carried=num_documents)
    at = table.schema.get_field_index("num_quarantined")
    return table.set_column(at, table.schema.field(at), pa.array([num_quarantined], pa.int64()))


def test_what_may_still_come_of_other_formats() -> None:
    """A text is one document, a row of CSV or a line takes two bytes; of what streams without a bound nobody knows."""
    bad = make_record("bad.jsonl", end=100, num_quarantined=20)
    for format, compression, input, most in (
        ("text", None, Input(uri="x"), 1),
        ("lines", None, Input(uri="x"), 50),
        ("csv", None, Input(uri="x"), 50),
        ("csv", None, Input.model_validate({"uri": "x", "csv": {"encoding": "cp1252"}}), None),
        ("csv", "bz2", Input(uri="x"), None),
        ("jsonl", "xz", Input(uri="x"), None),
        ("arrow", None, Input(uri="x"), None),
    ):
        end, last = {"text": (1, True), "lines": (100, True)}.get(format, (None, None))
        file = InputFile("a", 100, "x", "etag")
        planned = Split(file, format, compression, 0, end, last)  # type: ignore[arg-type]
        watch = LimitWatch(Limits(), Totals(), [planned], input)
        watch.add(bad)
        if most is None:
            watch.check()
            continue
        with pytest.raises(LimitError, match=f"at most {most} are still to come"):
            watch.check()


def test_a_line_may_be_shorter_where_names_are_nested_or_stand_in_its_path() -> None:
    from pipeline.limits import _least_line_bytes

    assert _least_line_bytes(Input(uri="in", text="{meta.title}", id="meta.id")) <= len('{"meta":{"title":1,"id":2}}\n')
    assert _least_line_bytes(Input(uri="in", text="{lang}"), {"lang": "de"}) == len("{}\n")
