"""Duplicate ids: the rows found are those a plain dict finds, and taking them out changes nothing else."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.duplicates import COMING_SCHEMA, Duplicates, coming_splits, find, find_duplicates, pairs, without_rows
from pipeline.errors import EnvironmentFault, StorageFault, StoreError
from pipeline.schema import QUARANTINE_SCHEMA, embedding_schema
from pipeline.snapshots.manifest import SHARDS_SCHEMA, SPLITS_SCHEMA
from pipeline.snapshots.records import (
    Record,
    checksum,
    record_name,
)
from pipeline.uris import Storage
from pipeline.write import make_attempt
from tests.stores import FaultyStorage, make_record, step_of

SCHEMA = embedding_schema(4, "float16", pa.schema([("lang", pa.string())]), keep_text=True)
DUPLICATE = "duplicate_id"


def embeddings(ids: Sequence[str], *, chunks: int = 1) -> pa.Table:
    """A row a chunk; what is in a row tells which it is."""
    ids = [doc_id for doc_id in ids for _ in range(chunks)]
    num = len(ids)
    vectors = np.random.default_rng(num).standard_normal((num, 4)).astype(np.float16)
    columns: dict[str, Any] = {
        "content_hash": [b"%16d" % row for row in range(num)],
        "row_hash": [b"%16d" % (row + 10**6) for row in range(num)],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=SCHEMA.field("vector").type),
        "doc_id": ids,
        "chunk_index": [row % chunks for row in range(num)],
        "num_chunks": [chunks] * num,
        "char_begin": [0] * num,
        "char_end": list(range(num)),
        "num_tokens": [row + 1 for row in range(num)],
        "truncated": [row % 3 == 0 for row in range(num)],
        "lang": [None if row % 2 else "en" for row in range(num)],
        "text": [f"text {row}" for row in range(num)],
    }
    return pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names}, schema=SCHEMA)


def quarantined(uri: str, rows: Sequence[tuple[str | None, int | None, str]]) -> pa.Table:
    """(doc_id, row, reason)."""
    values = [
        {"doc_id": doc_id, "input_file": uri, "row": row, "stage": "read", "reason": reason, "message": "m"}
        for doc_id, row, reason in rows
    ]
    return pa.Table.from_pylist(values, QUARANTINE_SCHEMA)


def put_split(
    store: Storage,
    uri: str,
    ids: Sequence[str],
    bad: Sequence[tuple[str | None, int | None, str]] = (),
    *,
    begin: int = 0,
    is_lines: bool = False,
    chunks: int = 1,
) -> Record:
    """A finished split as a writer leaves it; of Parquet, `bad` names the rows that are not in the shard."""
    table, num = embeddings(ids, chunks=chunks), len(ids) + len(bad)
    end = begin + num * (50 if is_lines else 1)
    record = make_record(uri, begin, end, num_documents=num, num_counted=num, num_quarantined=len(bad))
    fingerprints = (record.encoder_fp, record.shard_fp)
    made = make_attempt(fingerprints, record.split_id, table, SCHEMA, quarantined(uri, bad), with_text=False)
    record = replace(
        record,
        row_begin=None if is_lines and begin else begin,
        row_end=None if is_lines and begin else begin + num,
        **made.fields,
    )
    return made.put(store, record)


def coming(records: Sequence[Record], carried: Sequence[Record] = ()) -> pa.Table:
    rows = [
        {
            "split_id": record.split_id,
            "file": record.shard.file,
            "num_rows": record.shard.num_rows,
            "quarantine_file": record.quarantine.file if record.quarantine else None,
            "is_new": record not in carried,
        }
        for record in sorted(records, key=lambda record: (record.file_uri, record.begin))
    ]
    return pa.Table.from_pylist(rows, COMING_SCHEMA)


def found(duplicates: Duplicates) -> dict[str, list[int]]:
    return {split_id: rows.tolist() for split_id, rows in duplicates.rows.items()}


def table_of(store: Storage, record: Record) -> pa.Table:
    return pq.read_table(pa.BufferReader(store.read(record.shard.file)))


def quarantine_of(store: Storage, record: Record) -> list[dict[str, Any]]:
    if record.quarantine is None:
        return []
    return list(pq.read_table(pa.BufferReader(store.read(record.quarantine.file))).to_pylist())


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "store"))


# -- finding -------------------------------------------------------------------


def _meeting(ids: pa.Array) -> np.ndarray:
    """A hash of three values: nearly all ids meet."""
    return np.array([len(doc_id) % 3 for doc_id in ids.to_pylist()], np.uint64) << np.uint64(62)


def _one_bucket(ids: pa.Array) -> np.ndarray:
    return np.array([hash(doc_id) & 0xFFFF for doc_id in ids.to_pylist()], np.uint64)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[list[str]]], tuple[Storage, pa.Table]]:
    """Makes a store of shards with these ids, in this order."""
    folder = tmp_path_factory.mktemp("shards")
    numbers = iter(range(10**6))

    def make(ids: list[list[str]]) -> tuple[Storage, pa.Table]:
        store = Storage(str(folder / str(next(numbers))))
        return store, coming([put_split(store, f"{n:03}.jsonl", some) for n, some in enumerate(ids)])

    return make


_IDS = st.lists(
    st.lists(st.sampled_from([*"abcdefghij", "é", "日本", "", " a", "a "]) | st.text(max_size=4)), max_size=7
)


@settings(max_examples=60, deadline=None)
@given(ids=_IDS, bound=st.sampled_from([0, 1, 5, 2**22]), hashing=st.sampled_from([None, _meeting, _one_bucket]))
def test_the_later_row_loses_as_a_dict_tells(
    shards: Callable[[list[list[str]]], tuple[Storage, pa.Table]],
    ids: list[list[str]],
    bound: int,
    hashing: Callable[[pa.Array], np.ndarray] | None,
) -> None:
    """Whatever meets, and wherever the pairs lie: in memory, or in files by bucket."""
    store, table = shards(ids)
    seen: set[str] = set()
    wanted: dict[str, list[int]] = {}
    for split_id, some in zip(table["split_id"].to_pylist(), ids, strict=True):
        for row, doc_id in enumerate(some):
            if doc_id in seen:
                wanted.setdefault(split_id, []).append(row)
            seen.add(doc_id)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "MAX_PAIRS_IN_MEMORY", bound)
        patch.setattr(find, "_MAX_MEETING_ROWS", max(1, bound))
        if hashing is not None:
            patch.setattr(find, "_hashes", hashing)
        duplicates = find_duplicates(store, table, has_vanished=False)
    assert found(duplicates) == wanted
    assert duplicates.num == sum(map(len, wanted.values()))


def test_what_is_over_the_bound_goes_to_files_and_they_go_away(
    store: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    temporary, most = tmp_path / "tmp", []
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(pairs, "MAX_PAIRS_IN_MEMORY", 100)
    taken = pairs.Pairs._taken

    def watched(self: pairs.Pairs) -> np.ndarray:
        values = taken(self)
        most.append(len(values))
        return values

    monkeypatch.setattr(pairs.Pairs, "_taken", watched)
    records = [put_split(store, f"{n:02}", [f"d{n * 30 + i}" for i in range(40)]) for n in range(30)]
    assert find_duplicates(store, coming(records), has_vanished=False).num == 29 * 10
    assert max(most) <= 140, "more than the bound and a shard were held"
    assert len(most) > 5
    assert list(temporary.iterdir()) == []


def test_a_full_disk_is_the_environments_fault(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *args: object) -> None:
        raise OSError(28, "No space left on device")

    record = put_split(store, "a", ["x", "y"])
    monkeypatch.setattr(pairs, "MAX_PAIRS_IN_MEMORY", 1)
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(EnvironmentFault, match="No space left.*TMPDIR.*same command again"):
        find_duplicates(store, coming([record]), has_vanished=False)


def test_chunks_of_a_document_are_no_duplicates(store: Storage) -> None:
    first, second = put_split(store, "a", ["x", "y"], chunks=3), put_split(store, "b", ["z", "y"], chunks=2)
    assert found(find_duplicates(store, coming([first, second]), has_vanished=False)) == {second.split_id: [2]}


def test_a_new_row_before_a_carried_one_wins(store: Storage) -> None:
    """Rows of a snapshot are those of one clean run: who was embedded first does not matter."""
    old = put_split(store, "b", ["x"])
    new = put_split(store, "a", ["x"])
    assert found(find_duplicates(store, coming([old, new], [old]), has_vanished=False)) == {old.split_id: [0]}


def test_nothing_is_read_where_nothing_is_new(store: Storage) -> None:
    records = [put_split(store, "a", ["x"], [("y", 1, "empty_text")]), put_split(store, "b", ["x"])]
    table = coming(records, records)
    store.delete([record.shard.file for record in records])
    assert found(find_duplicates(store, table, has_vanished=True)) == {}
    store.delete([record.quarantine.file for record in records if record.quarantine])
    assert find_duplicates(store, table, has_vanished=False) == Duplicates()


def test_a_missing_and_a_damaged_shard_are_told(store: Storage) -> None:
    record = put_split(store, "a", ["x"])
    whole = store.read(record.shard.file)
    for damaged in (b"PAR1 or not", whole[:-60] + b"\xff" * 52 + whole[-8:]):
        store.put(record.shard.file, damaged)
        with pytest.raises(StoreError, match=r"damaged: .*no whole file of a split"):
            find_duplicates(store, coming([record]), has_vanished=False)
    store.delete([record.shard.file])
    with pytest.raises(StoreError, match=r"missing from the store: .*put it back"):
        find_duplicates(store, coming([record]), has_vanished=False)


def test_the_table_of_coming_splits_is_in_order_of_files(store: Storage) -> None:
    """Carried ones by their ordinals, new ones from their records; only quarantine that may hold duplicates."""
    carried = put_split(store, "b", ["x"], [(None, 1, "invalid_json")])
    new = [put_split(store, uri, ["x"], [("y", 1, reason)]) for uri, reason in (("c", DUPLICATE), ("a", "empty_text"))]
    shard = dict.fromkeys(SHARDS_SCHEMA.names) | {
        "ordinal": 7, "file": carried.shard.file, "size": 1, "checksum": "", "num_rows": 1, "vector_begin": 4,
        "compute": "",
    }  # fmt: skip
    assert carried.quarantine is not None
    split = {name: getattr(carried, name, None) for name in SPLITS_SCHEMA.names} | {
        "ordinal": 7, "quarantine_file": carried.quarantine.file,
    }  # fmt: skip
    table = coming_splits(
        new, pa.Table.from_pylist([split], SPLITS_SCHEMA), pa.Table.from_pylist([shard], SHARDS_SCHEMA)
    )
    assert table.schema == COMING_SCHEMA
    assert table["split_id"].to_pylist() == [new[1].split_id, carried.split_id, new[0].split_id]
    assert table["is_new"].to_pylist() == [True, False, True]
    assert table["num_rows"].to_pylist() == [1, 1, 1]
    assert new[0].quarantine is not None
    assert table["quarantine_file"].to_pylist() == [None, carried.quarantine.file, new[0].quarantine.file]


# -- coming back ---------------------------------------------------------------


def test_a_duplicate_comes_back_once_the_first_is_gone(store: Storage) -> None:
    first, second = put_split(store, "a", ["x", "y"]), put_split(store, "b", ["z"], [("x", 1, DUPLICATE)])
    both = coming([first, second], [second])
    assert find_duplicates(store, both, has_vanished=False).revived == frozenset()
    alone = coming([second], [second])
    assert find_duplicates(store, alone, has_vanished=True) == Duplicates({}, frozenset([second.split_id]))


def test_a_duplicate_comes_back_before_a_later_holder(store: Storage) -> None:
    """a.x is gone and c.x is new: b.x is the first now, as in one clean run."""
    lost, later = put_split(store, "b", ["z"], [("x", 1, DUPLICATE)]), put_split(store, "c", ["x"])
    duplicates = find_duplicates(store, coming([lost, later], [lost]), has_vanished=True)
    assert duplicates == Duplicates({}, frozenset([lost.split_id]))


def test_other_reasons_never_come_back(store: Storage) -> None:
    record = put_split(store, "b", ["z"], [("x", 1, "empty_text"), (None, 2, "missing_id")])
    assert find_duplicates(store, coming([record], [record]), has_vanished=True).revived == frozenset()


def test_a_duplicate_in_its_own_split_does_not_come_back(store: Storage) -> None:
    record = put_split(store, "b", ["x"], [("x", 1, DUPLICATE)])
    assert find_duplicates(store, coming([record]), has_vanished=True).revived == frozenset()


@settings(max_examples=40, deadline=None)
@given(
    held=st.lists(st.lists(st.sampled_from("abcdef"), unique=True, max_size=4), min_size=1, max_size=5),
    lost=st.lists(st.lists(st.sampled_from("abcdef"), unique=True, max_size=2), min_size=5, max_size=5),
    collide=st.booleans(),
)
def test_revived_as_a_loop_tells(
    tmp_path_factory: pytest.TempPathFactory, held: list[list[str]], lost: list[list[str]], collide: bool
) -> None:
    store = Storage(str(tmp_path_factory.mktemp("revived")))
    records = [
        put_split(store, f"{n}", ids, [(x, len(ids) + row, DUPLICATE) for row, x in enumerate(lost[n])])
        for n, ids in enumerate(held)
    ]
    wanted = {
        record.split_id
        for n, record in enumerate(records)
        if any(all(doc_id not in ids for ids in held[: n + 1]) for doc_id in lost[n])
    }
    with pytest.MonkeyPatch.context() as patch:
        if collide:
            patch.setattr(find, "_hashes", _meeting)
        assert find_duplicates(store, coming(records), has_vanished=True).revived == wanted


# -- taking out ----------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(data=st.data(), chunks=st.integers(1, 3))
def test_a_split_without_rows_is_the_split_filtered(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, chunks: int
) -> None:
    """Bytes of vectors, other columns, counts and row numbers; the books hold as before."""
    store = Storage(str(tmp_path_factory.mktemp("without")))
    num = data.draw(st.integers(1, 12))
    begin = data.draw(st.sampled_from([0, 40]))
    is_bad = data.draw(st.lists(st.booleans(), min_size=num, max_size=num))
    bad = [(None, begin + row, "empty_text") for row in range(num) if is_bad[row]]
    good = [begin + row for row in range(num) if not is_bad[row]]
    before = put_split(store, "a.parquet", [f"d{row}" for row in good], bad, begin=begin, chunks=chunks)
    losing = data.draw(st.sets(st.sampled_from(range(len(good))))) if good else set()
    rows = np.array(sorted(losing), np.int64) * chunks

    after = without_rows(store, before, rows, run_id="now", with_text=False)

    table = table_of(store, before)
    wanted = table.filter(pa.array([row // chunks not in losing for row in range(table.num_rows)], pa.bool_()))
    assert table_of(store, after).equals(wanted)
    assert table_of(store, after).schema == table.schema == SCHEMA
    data_after = store.read(after.shard.file)
    width = wanted.num_rows * 4 * 2
    vectors = wanted["vector"].combine_chunks().flatten().to_numpy().tobytes()
    assert data_after[after.shard.vector_begin : after.shard.vector_begin + width] == vectors
    assert (len(data_after), checksum(data_after)) == (after.shard.size, after.shard.checksum)
    assert after.num_documents == before.num_documents == after.shard.num_rows // chunks + after.num_quarantined
    assert after.num_tokens == sum(wanted["num_tokens"].to_pylist())
    assert after.num_truncated == sum(wanted["truncated"].to_pylist())
    assert (after.generation, after.run_id) == (before.generation + 1, "now")
    assert after.attempt != before.attempt
    assert after.reasons == dict(Counter([reason for *_, reason in bad] + [DUPLICATE] * len(losing)))
    told = [row for row in quarantine_of(store, after) if row["reason"] == DUPLICATE]
    assert [(row["doc_id"], row["row"]) for row in told] == [(f"d{good[n]}", good[n]) for n in sorted(losing)]
    assert [row["content_hash"] for row in told] == table["content_hash"].take(pa.array(rows)).to_pylist()
    assert {(row["input_file"], row["stage"]) for row in told} <= {("a.parquet", "publish")}
    assert Record.from_json(store.read(record_name(after))) == after
    assert Record.from_json(store.read(record_name(before))) == before, "the attempt before is as it was"


def test_of_lines_the_row_is_not_known(store: Storage) -> None:
    """A null rather than a guess; the id beside it tells it from a row about the file as a whole."""
    before = put_split(store, "a.jsonl", ["x", "y", "z"], [(None, 50, "invalid_json")], is_lines=True)
    after = without_rows(store, before, np.array([0, 2]), run_id="now", with_text=False)
    told = [(row["doc_id"], row["row"], row["reason"]) for row in quarantine_of(store, after)]
    assert told == [(None, 50, "invalid_json"), ("x", None, DUPLICATE), ("z", None, DUPLICATE)]
    assert (after.num_quarantined, after.num_documents) == (3, 4)
    again = without_rows(store, after, np.array([0]), run_id="now", with_text=False)
    assert (again.num_quarantined, again.shard.num_rows, again.generation) == (4, 0, 2)


def test_row_numbers_hold_after_a_second_time(store: Storage) -> None:
    before = put_split(store, "a.parquet", ["x", "y", "z"], [(None, 12, "empty_text")], begin=10)
    after = without_rows(store, before, np.array([1]), run_id="now", with_text=False)
    again = without_rows(store, after, np.array([1]), run_id="now", with_text=False)
    assert [row["row"] for row in quarantine_of(store, again)] == [12, 11, 13]


def test_text_is_quarantined_only_where_it_is_asked_for(store: Storage) -> None:
    before = put_split(store, "a.parquet", ["x", "y"])
    asked = without_rows(store, before, np.array([1]), run_id="now", with_text=True)
    assert [row["text"] for row in quarantine_of(store, asked)] == ["text 1"]
    assert (
        "text" not in quarantine_of(store, without_rows(store, before, np.array([1]), run_id="now", with_text=False))[0]
    )


def test_killed_anywhere_the_split_is_what_it_was(store: Storage) -> None:
    before = put_split(store, "a.parquet", ["x", "y"])
    for kill_at in ("shard", "quarantine", "record"):

        def die(name: str, kill_at: str = kill_at) -> None:
            if step_of(name) == kill_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            without_rows(FaultyStorage(store, die), before, np.array([1]), run_id="now", with_text=False)
        assert [info.name for info in store.list("records")] == [record_name(before)]
        assert checksum(store.read(before.shard.file)) == before.shard.checksum


def test_a_damaged_shard_is_not_written_again(store: Storage) -> None:
    before = put_split(store, "a.parquet", ["x", "y"])
    store.put(before.shard.file, b"other bytes")
    with pytest.raises(StoreError, match=r"damaged: .*checksum.*same command again"):
        without_rows(store, before, np.array([1]), run_id="now", with_text=False)


def test_a_storage_that_fails_is_not_taken_for_damage(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Arrow reads through keeps the fault that it is: exit 75, not a request to mend the store."""

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise StorageFault("the storage does not answer")

    record = put_split(store, "a", ["x"])
    whole = store.read(record.shard.file)
    monkeypatch.setattr(Storage, "open", lambda self, name: Failing(whole))
    with pytest.raises(StorageFault, match="does not answer"):
        find_duplicates(store, coming([record]), has_vanished=False)
