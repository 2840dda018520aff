"""Small files are planned together up to the bounds, by URI; a pack is its files and nothing else."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import SplitBounds
from pipeline.schema import QUARANTINE_SCHEMA
from pipeline.splits import InputFile, Split, pack_of, pack_small_files
from pipeline.splits.packs import is_small, members_of, row_keys, told_by_file


def bounds(rows: int, num_bytes: int = 2**26) -> SplitBounds:
    return SplitBounds.model_validate({"max_rows": rows, "max_bytes": num_bytes})


def lines(uri: str, size: int = 1000, identity: str = "v1") -> Split:
    return Split(InputFile(uri, size, identity, "etag"), "jsonl", None, 0, size, True, num_bytes=size)


def parquet(uri: str, rows: int, num_bytes: int = 1000) -> Split:
    return Split(InputFile(uri, num_bytes, "v1", "etag"), "parquet", None, 0, rows, True, num_bytes=num_bytes)


def uris(splits: list[Split]) -> list[list[str]]:
    return [[file.uri for file in split.files] for split in splits]


def test_twenty_thousand_files_of_a_kilobyte_are_twenty_splits() -> None:
    planned = [lines(f"{number:05}.jsonl", 1024) for number in range(20_000)]
    made = pack_small_files(planned, bounds(1000))
    assert [len(split.members) for split in made] == [1000] * 20
    assert [file for split in made for file in split.files] == [split.file for split in planned]


def test_rows_that_are_known_fill_a_pack() -> None:
    made = pack_small_files([parquet(f"{n}.parquet", 5) for n in range(10)], bounds(100))
    assert [len(split.members) for split in made] == [10]
    made = pack_small_files([parquet(f"{n:02}.parquet", 5) for n in range(50)], bounds(100))
    assert [len(split.members) for split in made] == [20, 20, 10]


def test_bytes_fill_a_pack_too() -> None:
    made = pack_small_files([lines(f"{n}", 4000) for n in range(10)], bounds(10_000, 64_000))
    assert len(made) == 1
    made = pack_small_files([lines(f"{n:02}", 4000) for n in range(20)], bounds(10_000, 64_000))
    assert [len(split.members) for split in made] == [16, 4]


def test_what_is_not_small_stays_as_it_was() -> None:
    """File ids and split ids of corpora of large files are those of before."""
    large, unreadable = lines("b", 64_001), Split(InputFile("c", 9, "v1", "etag"), "parquet", None, 0, 0, True)
    unreadable = Split(**{name: getattr(unreadable, name) for name in unreadable.__slots__} | {"unreadable": "cut"})
    ranges = [
        Split(InputFile("d", 9, "v1", "etag"), "jsonl", None, 0, 4, False),
        Split(InputFile("d", 9, "v1", "etag"), "jsonl", None, 4, 9, True),
    ]
    known = lines("e")
    planned = [large, unreadable, *ranges, known]
    assert pack_small_files(planned, bounds(1000), alone=[known.file.file_id]) == planned
    assert not is_small(parquet("x", 63), bounds(1000))
    assert is_small(parquet("x", 62), bounds(1000))


def test_a_file_alone_is_no_pack() -> None:
    one, large = lines("a"), lines("b", 10**6)
    assert pack_small_files([one, large], bounds(1000)) == [large, one]
    assert pack_of([one]) == one


def test_the_id_of_a_pack_is_that_of_its_files() -> None:
    a, b, changed = lines("a"), lines("b"), lines("b", identity="v2")
    ids = {pack_of(members).split_id for members in ([a, b], [a, changed], [a, b, lines("c")], [b, lines("c")])}
    assert len(ids) == 4
    assert pack_of([a, b]).split_id == pack_of([a, b], member_begin=7).split_id, "not of what it was planned with"
    assert pack_of([a, b]).file.file_id not in (a.file.file_id, b.file.file_id)


def test_a_pack_survives_its_way_into_the_flow() -> None:
    pack = pack_of([lines("a"), parquet("b", 3)], member_begin=4)
    assert Split.from_json(pack.to_json()) == pack


@settings(deadline=None)
@given(st.lists(st.sampled_from([3, 7, 10]), min_size=70, max_size=120), st.data())
def test_packs_that_are_done_leave_the_others_as_they_were(sizes: list[int], data: st.DataObject) -> None:
    """A run that was killed goes on with the packs that it had planned."""
    planned = [parquet(f"{number:03}", size) for number, size in enumerate(sizes)]
    made = pack_small_files(planned, bounds(160))
    assert sorted(file.uri for split in made for file in split.files) == [split.file.uri for split in planned]
    for split in made:
        assert sum(member.end or 0 for member in split.members) <= 160
    packs = [split for split in made if split.members]
    done = [pack for pack in packs if data.draw(st.booleans())]
    done_uris = {file.uri for pack in done for file in pack.files}
    left = [split for split in planned if split.file.uri not in done_uris]
    again = pack_small_files(left, bounds(160), ends=[pack.files[-1].uri for pack in done])
    assert sorted(split.split_id for split in again) == sorted(s.split_id for s in made if s not in done)


def test_files_that_come_between_packs_do_not_stay_alone() -> None:
    """Boundaries are at ends of packs that are done, not around each file of theirs."""
    planned = [lines(f"{number:03}x") for number in range(100)]
    made = pack_small_files(planned, bounds(1000), ends=["049"])
    assert [len(split.members) for split in made] == [49, 51]


def test_rows_are_told_apart_and_told_by_file() -> None:
    pack = pack_of([lines("a"), lines("b"), lines("c")], member_begin=5)
    rows = [row_keys(5 + member, pa.chunked_array([[0, 17, None]], pa.int64())) for member in range(3)]
    keys = pa.chunked_array([chunk for column in rows for chunk in column.chunks])
    assert len(set(keys.drop_null().to_pylist())) == 6
    assert members_of(pack, keys.drop_null()).tolist() == [0, 0, 1, 1, 2, 2]
    files = [uri for uri in "abc" for _ in range(3)]
    blank = dict.fromkeys(QUARANTINE_SCHEMA.names) | {"stage": "read", "reason": "empty_text", "message": ""}
    named = [blank | {"row": key, "input_file": "a"} for key in keys.to_pylist()]
    for row, uri in zip(named, files, strict=True):
        row["input_file"] = uri if row["row"] is None else "a"  # of a file as a whole its reader said which
    told = told_by_file(pack, pa.Table.from_pylist(named, QUARANTINE_SCHEMA))
    assert told["input_file"].to_pylist() == files
    assert told["row"].to_pylist() == [0, 17, None] * 3
    assert told.schema == QUARANTINE_SCHEMA


def test_rows_of_other_splits_are_told_as_they_are() -> None:
    row = dict.fromkeys(QUARANTINE_SCHEMA.names) | {"input_file": "a", "stage": "s", "reason": "r", "message": "m"}
    table = pa.Table.from_pylist([row | {"row": 2**40}, row], QUARANTINE_SCHEMA)
    assert told_by_file(lines("a"), table) == table
    keyed = table.set_column(2, "row", row_keys(3, table["row"]))
    assert told_by_file(lines("a"), keyed)["row"].to_pylist() == [2**40, None], "a file that left its pack"
