"""What is done is not done again, and what is not done is not taken for it, whatever runs left."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Input, SplitBounds, parse_config
from pipeline.flow.rows import Work
from pipeline.known import KnownRecords
from pipeline.planning import Plan, Planner, carried_files, left_to_do, without
from pipeline.read import read_split
from pipeline.snapshots.commit import publish
from pipeline.snapshots.records import Record
from pipeline.snapshots.table import RecordTable
from pipeline.splits import InputFile, Split, limit_splits, plan_file, split_id
from pipeline.uris import Storage
from tests.stores import ENCODER_FP, make_record, publication, put

LINES = b'{"text": "a"}\n' * 100


def _file(uri: str = "a.jsonl", identity: str = "v1", size: int = 1400) -> InputFile:
    return InputFile(uri, size, identity, "etag")


def _record(file: InputFile, begin: int, end: int, *, last: bool = False, **changes: Any) -> Record:
    ids = {"file_id": file.file_id, "split_id": split_id(file.file_id, begin, end), "identity": file.identity}
    return make_record(file.uri, begin, end, last=last, **ids, **changes)


def _split(file: InputFile, begin: int, end: int | None, *, last: bool | None = False) -> Split:
    return Split(file, "jsonl", None if end is not None else "gz", begin, end, last)


def _bounds(rows: int, num_bytes: int = 2**26) -> SplitBounds:
    return SplitBounds.model_validate({"max_rows": rows, "max_bytes": num_bytes})


def _covering(known: KnownRecords, split: Split) -> list[tuple[int, int]] | None:
    rows = known.covering(split)
    return None if rows is None else [(record.begin, record.end) for record in known.records.take(rows)]


def _has_no_quarantine(records: RecordTable) -> npt.NDArray[np.bool_]:
    return np.array([record.quarantine is None for record in records])


def test_a_file_that_the_parent_lists_whole_is_carried() -> None:
    whole, part, gone, anew = _file("a"), _file("b"), _file("c"), _file("d")
    rows = [(whole, False), (whole, True), (part, False), (gone, True), (anew, True)]
    columns = {"file_id": [file.file_id for file, _ in rows], "last": [last for _, last in rows]}
    parent = pa.table(columns | {"ordinal": range(len(rows))})
    files = [whole, part, _file("d", "v2"), _file("e")]
    carried = carried_files(parent, files)
    assert carried == {whole.file_id}
    assert without(files, carried) == files[1:]


@pytest.mark.parametrize(
    ("cuts", "covered"),
    [
        ([(100, 200)], [(100, 200)]),
        ([(100, 130), (130, 200)], [(100, 130), (130, 200)]),
        ([(100, 130), (100, 150), (130, 170), (150, 200)], [(100, 150), (150, 200)]),
        ([(0, 100), (100, 150), (150, 200), (200, 300)], [(100, 150), (150, 200)]),
        ([(100, 150), (151, 200)], None),
        ([(100, 150), (140, 200)], None),
        ([(100, 150), (150, 201)], None),
        ([(99, 200)], None),
        ([(0, 300)], None),
        ([], None),
    ],
)
def test_a_range_is_done_when_records_cover_exactly_it(
    cuts: list[tuple[int, int]], covered: list[tuple[int, int]] | None
) -> None:
    file = _file()
    known = KnownRecords([_record(file, *cut) for cut in cuts])
    assert _covering(known, _split(file, 100, 200)) == covered
    assert len(left_to_do([_split(file, 100, 200)], known)) == (covered is None)


def test_the_last_range_is_done_when_a_record_says_that_the_file_ends() -> None:
    file = _file()
    for split in (_split(file, 100, 200, last=True), _split(file, 100, None, last=None)):
        assert KnownRecords([_record(file, 100, 200)]).covering(split) is None
        known = KnownRecords([_record(file, 100, 150), _record(file, 150, 200, last=True)])
        assert _covering(known, split) == [(100, 150), (150, 200)]
    # A fault cut this stream short of where an earlier attempt read on: the file ends at either.
    known = KnownRecords([_record(file, 0, 90, last=True), _record(file, 0, 100)])
    assert _covering(known, _split(file, 0, None, last=None)) == [(0, 90)]


def test_an_empty_file_is_done_by_its_empty_split() -> None:
    file = _file(size=0)
    assert KnownRecords().covering(_split(file, 0, 0, last=True)) is None
    assert _covering(KnownRecords([_record(file, 0, 0, last=True)]), _split(file, 0, 0, last=True)) == [(0, 0)]


def test_what_is_recorded_of_a_range_goes_along_and_no_more() -> None:
    """With all of a large file along with each of its splits, planning would cost the square of it."""
    file, other = _file(), _file("b.jsonl")
    cuts = [(0, 100), (100, 150), (150, 180), (90, 120), (200, 300)]
    known = KnownRecords([*(_record(file, *cut) for cut in cuts), _record(other, 100, 120)])
    [work] = left_to_do([_split(file, 100, 200)], known)
    assert work.done == {(100, 150, False), (150, 180, False)}
    [work] = left_to_do([_split(file, 100, None, last=None)], known)
    assert work.done == {(100, 150, False), (150, 180, False), (200, 300, False)}


def test_a_file_with_a_new_identity_is_planned_anew() -> None:
    before, now = _file(identity="v1"), _file(identity="v2")
    known = KnownRecords([_record(before, 0, 1400, last=True)])
    assert known.tiling(before.file_id) is not None
    assert known.tiling(now.file_id) is None
    [work] = left_to_do([_split(now, 0, 1400, last=True)], known)
    assert work.done == frozenset()


def _corpus(root: Path) -> tuple[Storage, list[InputFile]]:
    """A row group over the bound, lines, and lines that are compressed; 100 documents each."""
    pq.write_table(pa.table({"text": ["a"] * 100}), root / "a.parquet")
    (root / "b.jsonl").write_bytes(LINES)
    with pa.output_stream(str(root / "c.jsonl.gz"), compression="gzip") as packed:
        packed.write(LINES)
    storage = Storage(str(root))
    return storage, [InputFile(i.name, i.size, i.identity, i.identity_kind) for i in storage.list()]


def _run(storage: Storage, splits: list[Split], bounds: SplitBounds, known: list[Record]) -> tuple[list[Record], int]:
    """What a run over the planned splits records, beside what is known, and how many of its splits were done."""
    made, num_done = list(known), 0
    for work in left_to_do(splits, KnownRecords(known)):
        for one in read_split(storage, work.split, Input(uri="x"), pa.schema([]), bounds, done=work.done):
            num_done += one.documents is None
            if one.documents is not None:
                assert one.split.end is not None
                made.append(_record(one.split.file, one.split.begin, one.split.end, last=bool(one.split.last)))
    return made, num_done


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_run_goes_on_within_a_range_of_which_a_part_is_recorded(tmp_path: Path, kind: int) -> None:
    storage, files = _corpus(tmp_path)
    bounds = _bounds(rows=10)
    planned = plan_file(storage, files[kind], bounds, None, ["text"])
    assert len(planned) == 1
    full, _ = _run(storage, planned, bounds, [])
    assert len(full) == 10
    kept = [full[i] for i in (0, 1, 4, 9)]
    again, num_done = _run(storage, planned, bounds, kept)
    assert num_done == 4
    assert sorted(record.split_id for record in again) == sorted(record.split_id for record in full)
    assert left_to_do(planned, KnownRecords(again)) == []
    assert KnownRecords(again).tiling(files[kind].file_id) is not None


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_what_an_older_cut_left_whole_is_not_done_again(tmp_path: Path, kind: int) -> None:
    storage, files = _corpus(tmp_path)
    older, _ = _run(storage, plan_file(storage, files[kind], _bounds(rows=7), None, ["text"]), _bounds(rows=7), [])
    assert len(older) == 15
    planned = plan_file(storage, files[kind], _bounds(rows=50), None, ["text"])
    assert left_to_do(planned, KnownRecords(older)) == []
    [work] = left_to_do(planned, KnownRecords(older[1:]))
    assert work.done == {(record.begin, record.end, record.last) for record in older[1:]}


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_limit_is_done_once_and_taken_over_by_a_full_run(tmp_path: Path, kind: int) -> None:
    storage, files = _corpus(tmp_path)
    bounds = _bounds(rows=10)
    limited = limit_splits(storage, [files[kind]], bounds, 25, Input(uri="x"))
    part, _ = _run(storage, limited, bounds, [])
    assert len(part) == 3
    assert left_to_do(limited, KnownRecords(part)) == []
    assert KnownRecords(part).tiling(files[kind].file_id) is None
    wider = limit_splits(storage, [files[kind]], bounds, 45, Input(uri="x"))
    more, num_done = _run(storage, wider, bounds, part)
    assert (len(more) - len(part), num_done) == (3, 2)
    full, num_done = _run(storage, plan_file(storage, files[kind], bounds, None, ["text"]), bounds, more)
    assert num_done == 4
    assert KnownRecords(full).tiling(files[kind].file_id) is not None


def test_a_limit_that_ends_where_a_stream_is_cut_does_not_end_the_file(tmp_path: Path) -> None:
    """The limit knows nothing of the fault behind its last document; whoever reads on must get to record it."""
    lines = b'{"text": "abc"}\n' * 2**12  # a decoder's block, so that none of them is lost with the fault
    packed = zlib.compressobj(wbits=31)
    (tmp_path / "c.jsonl.gz").write_bytes(packed.compress(lines) + packed.flush(zlib.Z_FULL_FLUSH))
    storage, bounds = Storage(str(tmp_path)), _bounds(rows=1000)
    [file] = [InputFile(i.name, i.size, i.identity, i.identity_kind) for i in storage.list()]
    part, _ = _run(storage, limit_splits(storage, [file], bounds, 2**12), bounds, [])
    assert (part[-1].begin, part[-1].end, part[-1].last) == (64_000, len(lines), False)
    full, num_done = _run(storage, plan_file(storage, file, bounds, None), bounds, part)
    assert num_done == 4
    assert (full[-1].begin, full[-1].end, full[-1].last) == (64_000, len(lines), True)
    assert KnownRecords(full).tiling(file.file_id) is not None


def test_work_survives_its_way_into_the_flow() -> None:
    work = Work(_split(_file(), 0, 200, last=True), frozenset({(0, 100, False), (100, 200, True)}))
    assert Work.from_batch(pa.Table.from_pylist([work.to_item()])) == [work]


def _planner(root: Path, *uris: str, **changes: Any) -> tuple[Planner, list[InputFile]]:
    """A planner over files of 100 lines each, cut into ranges of 700 bytes."""
    (root / "corpus").mkdir(exist_ok=True)
    for uri in uris:
        (root / "corpus" / uri).write_bytes(LINES)
    source = Storage(str(root / "corpus"))
    config = parse_config(
        {
            "input": {"uri": source.uri, "text": "{text}"},
            "store": {"uri": str(root / "store")},
            "encoder": {"model": "m"},
            "splits": {"max_bytes": 700},
        }
    )
    values: dict[str, Any] = {"limit": None, "parent": None} | changes
    planner = Planner(config, source=source, encoder_fp=ENCODER_FP, store=Storage(str(root / "store")), **values)
    return planner, [InputFile(i.name, i.size, i.identity, i.identity_kind) for i in source.list()]


def _put(planner: Planner, file: InputFile, begin: int, **changes: Any) -> Record:
    """Put the record of one of the two ranges of a file."""
    shard_fp = planner.config.shard_fingerprint({})
    ids = {"file_id": file.file_id, "split_id": split_id(file.file_id, begin, begin + 700), "identity": file.identity}
    values: dict[str, Any] = {"shard_fp": shard_fp, "num_documents": 50, "num_counted": 50, **ids} | changes
    return put(planner.store, make_record(file.uri, begin, begin + 700, last=begin == 700, **values))


def _published(planner: Planner, files: list[InputFile]) -> Planner:
    """The planner of the run after one that published what is recorded."""
    plan = planner.plan(files)
    assert plan.work == []
    ids = {"files": plan.file_ids, "shard_fp": plan.shard_fp, "limit": planner.limit}
    parent = publish(planner.store, publication(planner.parent, plan.recorded, carried=plan.carried, **ids))
    return replace(planner, parent=parent)


def _left(plan: Plan) -> list[tuple[str, int, int]]:
    return [(work.split.file.uri, work.split.begin, work.generation) for work in plan.work]


def test_quarantined_documents_are_tried_again_at_the_next_generation(tmp_path: Path) -> None:
    planner, files = _planner(tmp_path, "a.jsonl", "b.jsonl", "c.jsonl")
    a, b, c = files
    for file in files:
        for begin in (0, 700):
            _put(planner, file, begin, num_quarantined=2 if (file, begin) == (b, 700) else 0)
    planner = _published(planner, files)
    assert planner.plan(files).carried == {a.file_id, b.file_id, c.file_id}
    retrying = replace(planner, retry="r2")
    plan = retrying.plan(files)
    assert plan.carried == {a.file_id, c.file_id}, "a file whose records are all fine stays done"
    assert _left(plan) == [("b.jsonl", 700, 1)]
    assert len(plan.recorded) == 0
    # Still in quarantine after it: that run has tried it, and is done; the next tries again.
    made = _put(planner, b, 700, num_quarantined=1, generation=1, run_id="r2")
    plan = retrying.plan(files)
    assert plan.work == []
    assert made in plan.recorded
    assert not retrying.is_current(plan, planner.parent or pytest.fail("published"))
    assert _left(replace(planner, retry="r3").plan(files)) == [("b.jsonl", 700, 2)]
    # Whoever plans without that wish takes the retry over what the parent lists.
    assert made in planner.plan(files, reopened=[b.file_id]).recorded
    assert _left(replace(_published(retrying, files), retry="r3").plan(files)) == [("b.jsonl", 700, 2)]


def test_what_is_fine_of_a_range_is_not_tried_again_with_the_rest() -> None:
    file = _file()
    fine, bad = _record(file, 0, 100), _record(file, 100, 200, num_quarantined=1, generation=3)
    known = KnownRecords([fine, bad], is_done=_has_no_quarantine)
    [work] = left_to_do([_split(file, 0, None, last=None)], known)
    assert (work.done, work.generation) == (frozenset({(0, 100, False)}), 4)
    [work] = left_to_do([_split(file, 0, 300)], KnownRecords([fine, bad]))
    assert (work.done, work.generation) == (frozenset({(0, 100, False), (100, 200, False)}), 0)


def test_a_range_is_not_done_by_an_attempt_that_was_replaced() -> None:
    """Its clean first attempt held the documents that the second set aside."""
    file = _file()
    first, second = _record(file, 0, 100), _record(file, 0, 100, num_quarantined=1, generation=1)
    known = KnownRecords([first, second], is_done=_has_no_quarantine)
    [work] = left_to_do([_split(file, 0, 100)], known)
    assert (work.done, work.generation) == (frozenset(), 2)


def test_a_row_whose_id_is_taken_is_not_tried_again(tmp_path: Path) -> None:
    planner, files = _planner(tmp_path, "a.jsonl")
    _put(planner, files[0], 0, num_quarantined=1, reasons={"duplicate_id": 1})
    _put(planner, files[0], 700, num_quarantined=2, reasons={"duplicate_id": 1, "encode_failed": 1})
    assert _left(replace(planner, retry="r").plan(files)) == [("a.jsonl", 700, 1)]


def test_an_attempt_is_made_again_where_asked(tmp_path: Path) -> None:
    planner, files = _planner(tmp_path, "a.jsonl", "b.jsonl")
    records = [_put(planner, file, begin) for file in files for begin in (0, 700)]
    planner = _published(planner, files)
    again = {"reopened": [files[1].file_id], "redo": [records[3].attempt]}
    plan = planner.plan(files, **again)
    assert plan.carried == {files[0].file_id}
    assert _left(plan) == [("b.jsonl", 700, 1)]
    assert planner.carried_splits(plan)["split_id"].to_pylist() == [record.split_id for record in records[:2]]
    assert planner.carried_shards(plan)["file"].to_pylist() == [record.shard.file for record in records[:2]]
    made = _put(planner, files[1], 700, generation=1)
    plan = planner.plan(files, **again)
    assert (plan.work, list(plan.recorded)) == ([], [records[2], made])


def test_a_limited_snapshot_is_not_current_once_a_part_of_it_was_made_again(tmp_path: Path) -> None:
    planner, files = _planner(tmp_path, "a.jsonl", limit=100)
    record = _put(planner, files[0], 0)
    _put(planner, files[0], 700)
    planner = _published(planner, files)
    parent = planner.parent
    assert parent is not None
    assert planner.is_current(planner.plan(files), parent)
    _put(planner, files[0], 0, generation=1)
    assert not planner.is_current(planner.plan(files, redo=[record.attempt]), parent)
