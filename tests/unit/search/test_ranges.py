from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import StoreError
from pipeline.search import ranges
from pipeline.search.ranges import Range, RangeReader, coalesce
from pipeline.uris import Storage

GAP, MOST = ranges._MAX_GAP_BYTES, ranges._MAX_REQUEST_BYTES


def test_near_ranges_of_one_object_are_one_request() -> None:
    near = [Range("a", 100, 200), Range("a", 0, 50), Range("a", 200 + GAP, 300 + GAP)]
    assert coalesce(near) == [(Range("a", 0, 300 + GAP), [1, 0, 2])]


def test_far_ranges_and_other_objects_are_requests_of_their_own() -> None:
    far = [Range("a", 0, 10), Range("a", 11 + GAP, 20 + GAP), Range("b", 0, 10)]
    assert coalesce(far) == [(one, [place]) for place, one in enumerate(far)]


def test_a_request_does_not_grow_without_bound() -> None:
    parts = [Range("a", begin, begin + MOST // 2) for begin in range(0, 4 * MOST, MOST // 2)]
    assert [one.end - one.begin for one, _ in coalesce(parts)] == [MOST] * 4


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 900), st.integers(0, 100)), max_size=12))
def test_each_range_gets_its_bytes_in_its_place(asked: list[tuple[str, int, int]]) -> None:
    import tempfile

    data = {name: bytes((seed + i) % 251 for i in range(1000)) for seed, name in enumerate("ab")}
    wanted = [Range(name, begin, begin + size) for name, begin, size in asked]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "_MAX_GAP_BYTES", 20)
        patch.setattr(ranges, "_MAX_REQUEST_BYTES", 150)
        for name, content in data.items():
            (Path(folder) / name).write_bytes(content)
        found = RangeReader(Storage(folder)).read(wanted)
    assert [bytes(one) for one in found] == [data[one.file][one.begin : one.end] for one in wanted]


def test_an_object_that_ends_early_or_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"12345")
    reader = RangeReader(Storage(str(tmp_path)))
    with pytest.raises(StoreError, match=f"damaged: {tmp_path}/part ends before byte 6"):
        reader.read([Range("part", 3, 6)])
    with pytest.raises(StoreError, match=f"missing from the store: {tmp_path}/other"):
        reader.read([Range("other", 3, 6)])
