"""Records: strict on read, and a file covered exactly once whatever the attempts and cuts."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StoreError, VecmillError
from pipeline.snapshots.records import Record, choose, parse_record_name, put_attempt, record_name, tile
from pipeline.uris import Storage
from tests.stores import FaultyStorage, make_member, make_pack, make_record, put, shard_data, tiling_of


def test_a_record_comes_back_as_it_was() -> None:
    record = make_record(num_quarantined=1)
    assert Record.from_json(record.to_json()) == record


def test_the_record_of_a_range_is_what_it_was_before_there_were_packs() -> None:
    """And is read as it was written then."""
    record = make_record()
    assert "members" not in orjson.loads(record.to_json())
    assert Record.from_json(record.to_json()).members is None
    pack = make_pack(make_member("a"), make_member("b", num_counted=None))
    assert Record.from_json(pack.to_json()) == pack


@pytest.mark.parametrize(
    "change",
    [
        {"begin": "0"},
        {"begin": -1},
        {"num_documents": 1.5},
        {"split_id": "x"},
        {"unknown": 1},
        {"last": 1},
        {"shard": {"file": "x"}},
    ],
)
def test_what_is_no_record_is_refused_by_name(change: dict[str, object]) -> None:
    value = orjson.loads(make_record().to_json()) | change
    with pytest.raises(StoreError, match=r"records/x is no record of a split \(" + next(iter(change))):
        Record.from_json(orjson.dumps(value), "records/x")
    with pytest.raises(StoreError, match="is no record"):
        Record.from_json(b'{"torn', "records/x")


def test_a_name_tells_split_generation_and_attempt() -> None:
    record = make_record(generation=12)
    assert parse_record_name(record_name(record)) == (record.split_id, 12, record.attempt)
    assert parse_record_name("records/a/b/cc/readme.txt") is None


def test_the_record_is_put_after_its_files(tmp_path: Path) -> None:
    order: list[str] = []
    record = make_record(num_quarantined=1)
    put(FaultyStorage(Storage(str(tmp_path)), order.append), record)
    assert record.quarantine is not None
    assert order == [record.shard.file, record.quarantine.file, record_name(record)]


def test_a_record_that_does_not_describe_its_files_is_not_put(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for shard, quarantine in ((b"other bytes", None), (shard_data([f"a.parquet#{row}" for row in range(3)]), b"q")):
        with pytest.raises(VecmillError, match="bug"):
            put_attempt(storage, make_record(), shard, quarantine)
    assert storage.list() == []


def test_the_attempt_that_counts() -> None:
    old = make_record(attempt="1" * 16, generation=0)
    low = make_record(attempt="2" * 16, generation=1)
    high = make_record(attempt="3" * 16, generation=1)
    assert choose([high, old, low]) is low
    assert choose([high, old, low], parent_attempt=high.attempt) is high
    assert choose([high, old, low], parent_attempt=old.attempt) is low, "a retry replaces what the parent lists"
    assert choose([high, old, low], parent_attempt="f" * 16) is low


SIZE = 12


@st.composite
def cuts(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Ranges as several runs with several bounds leave them: some cuts whole, some with holes."""
    found: set[tuple[int, int]] = set()
    for _ in range(draw(st.integers(0, 3))):
        inner = draw(st.sets(st.integers(1, SIZE - 1), max_size=5))
        edges = [0, *sorted(inner), SIZE]
        ranges = list(itertools.pairwise(edges))
        keep = draw(st.lists(st.booleans(), min_size=len(ranges), max_size=len(ranges)))
        found |= {range_ for range_, kept in zip(ranges, keep, strict=True) if kept or draw(st.booleans())}
    return sorted(found)


def _covers(ranges: list[tuple[int, int]], begin: int, end: int) -> bool:
    """Whether some of the ranges tile [begin, end): by reachability, written apart from `tile`."""
    reached = {begin}
    for _ in range(SIZE):
        reached |= {e for b, e in ranges if b in reached}
    return end in reached


@settings(deadline=None)  # a shared machine may stall for longer than any
@given(ranges=cuts(), seed=st.integers(0, 9), begin=st.integers(0, SIZE - 1), length=st.integers(1, SIZE))
def test_a_file_is_covered_exactly_once_or_not_done(
    ranges: list[tuple[int, int]], seed: int, begin: int, length: int
) -> None:
    records = [
        make_record(begin=b, end=e, last=e == SIZE, attempt=f"{attempt:016x}")
        for b, e in ranges
        for attempt in range(1 + (b + e + seed) % 2)
    ]
    random.Random(seed).shuffle(records)
    tiling = tiling_of(records)
    assert (tiling is not None) == _covers(ranges, 0, SIZE)
    if tiling is not None:
        assert [row for r in tiling for row in range(r.begin, r.end)] == list(range(SIZE))
        assert [record.last for record in tiling] == [False] * (len(tiling) - 1) + [True]
        assert all(record.attempt == f"{0:016x}" for record in tiling)
        assert tiling_of(reversed(records)) == tiling
    end = min(SIZE, begin + length)
    part = tile([(record.begin, record.end, record.last) for record in records], begin, end)
    assert (part is not None) == _covers(ranges, begin, end)
    if part is not None:
        assert [row for low, high, _ in part for row in range(low, high)] == list(range(begin, end))


def test_an_empty_file_is_done_by_one_empty_split() -> None:
    record = make_record(begin=0, end=0)
    assert tiling_of([record]) == [record]
    assert tiling_of([make_record(begin=0, end=0, last=False)]) is None
    assert tiling_of([]) is None


def test_an_empty_last_split_ends_a_file() -> None:
    """A streamed file may learn that it has ended only after its last row."""
    records = [make_record(begin=0, end=3, last=False), make_record(begin=3, end=3, last=True)]
    assert tiling_of(records) == records


def test_the_parents_attempt_stays() -> None:
    first, second = make_record(attempt="1" * 16), make_record(attempt="2" * 16)
    assert tiling_of([first, second], [second]) == [second]


@settings(deadline=None)
@given(attempts=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2**64 - 1), st.booleans()), min_size=1))
def test_of_many_records_the_attempt_is_chosen_as_of_few(attempts: list[tuple[int, int, bool]]) -> None:
    made = [make_record(generation=generation, attempt=f"{number:016x}") for generation, number, _ in attempts]
    records = list({record.attempt: record for record in made}.values())
    listed = [record for record, (*_, is_listed) in zip(made, attempts, strict=True) if is_listed][:1]
    listed = [record for record in listed if record in records]
    assert tiling_of(records, listed) == [choose(records, listed[0].attempt if listed else None)]


def test_records_of_two_files_are_not_mixed() -> None:
    begin, end = make_record("a", 0, 3, last=False), make_record("b", 3, 5)
    assert tiling_of([begin, end]) is None
    assert tiling_of([end, begin]) is None
    rest = make_record("a", 3, 5)
    assert tiling_of([begin, end, rest]) == [begin, rest]
