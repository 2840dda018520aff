"""Packs from run to run: kept while their files are, given up when one changes, and every file in exactly one."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import SplitBounds, parse_config
from pipeline.known import KnownPack, KnownRecords
from pipeline.planning import Plan, Planner, packed
from pipeline.read import ReadSplit, read_split
from pipeline.snapshots.commit import publish
from pipeline.snapshots.journal import load_records, write_journal
from pipeline.snapshots.manifest import latest
from pipeline.snapshots.reader import Snapshot
from pipeline.snapshots.records import Member, Record, checksum, new_attempt, put_attempt, record_name
from pipeline.snapshots.table import file_keys
from pipeline.splits import InputFile, Split
from pipeline.uris import Storage
from tests.stores import ENCODER_FP, Killed, make_member, make_pack, make_record, publication, shard_data


@dataclass
class Corpus:
    """Files by URI, each of so many lines in one version, and a store of packs of up to `max_rows` rows."""

    root: Path
    max_rows: int = 4
    versions: dict[str, int] = field(default_factory=dict)
    num_lines: dict[str, int] = field(default_factory=dict)
    num_versions: int = 0

    def put(self, uri: str, num_lines: int = 1) -> None:
        """Write a file anew."""
        self.num_versions += 1
        self.versions[uri], self.num_lines[uri] = self.num_versions, num_lines
        lines = b"".join(b'{"text": "%d %d"}\n' % (self.num_versions, line) for line in range(num_lines))
        (self.root / "in").mkdir(parents=True, exist_ok=True)
        (self.root / "in" / uri).write_bytes(lines)

    def delete(self, uri: str) -> None:
        del self.versions[uri], self.num_lines[uri]
        (self.root / "in" / uri).unlink()

    @property
    def source(self) -> Storage:
        return Storage(str(self.root / "in"))

    @property
    def store(self) -> Storage:
        return Storage(str(self.root / "store"))

    def files(self) -> list[InputFile]:
        return [InputFile(i.name, i.size, i.identity, i.identity_kind) for i in self.source.list()]

    def planner(self, **changes: Any) -> Planner:
        config = parse_config(
            {
                "input": {"uri": self.source.uri, "text": "{text}"},
                "store": {"uri": self.store.uri},
                "encoder": {"model": "m"},
                "splits": {"max_rows": self.max_rows},
            }
        )
        values: dict[str, Any] = {"limit": None, "parent": latest(self.store)} | changes
        return Planner(config, source=self.source, encoder_fp=ENCODER_FP, store=self.store, **values)

    def work_off(self, plan: Plan, kill_after: int | None = None, *, journal: bool = False) -> list[Record]:
        """Record what is left, as the flow does; killed after so many records."""
        made: list[Record] = []
        config = self.planner().config
        for work in plan.work:
            pieces = read_split(self.source, work.split, config.input, pa.schema([]), config.splits, done=work.done)
            for piece in (piece for piece in pieces if piece.documents is not None):
                if kill_after is not None and len(made) >= kill_after:
                    raise Killed
                made.append(self.put_record(piece, plan.shard_fp, generation=work.generation))
        if journal:
            write_journal(self.store, new_attempt(), 0, made)
        return made

    def put_record(self, piece: ReadSplit, shard_fp: str, **changes: Any) -> Record:
        record = record_of(piece, shard_fp=shard_fp, **changes)
        assert piece.documents is not None
        quarantine = b"quarantine" if record.quarantine else None
        put_attempt(self.store, record, shard_data(piece.documents["doc_id"].to_pylist()), quarantine)
        return record

    def run(self, kill_after: int | None = None, **changes: Any) -> list[Record]:
        """A run to its end: what it recorded."""
        planner = self.planner(**changes)
        plan = planner.plan(self.files())
        made = self.work_off(plan, kill_after)
        plan = planner.plan(self.files())
        assert plan.work == []
        if planner.parent is None or not planner.is_current(plan, planner.parent):
            ids = {"files": plan.file_ids, "shard_fp": plan.shard_fp, "carried": plan.carried}
            publish(self.store, publication(planner.parent, plan.recorded, **ids))
        return made

    def snapshot(self) -> Snapshot:
        manifest = latest(self.store)
        assert manifest is not None
        return Snapshot(self.store, manifest)

    def packs(self) -> dict[str, frozenset[tuple[str, str]]]:
        """Shard -> (uri, identity) of its files."""
        snapshot = self.snapshot()
        names = dict(zip(snapshot.shards["ordinal"].to_pylist(), snapshot.shards["file"].to_pylist(), strict=True))
        found: dict[str, set[tuple[str, str]]] = {name: set() for name in names.values()}
        for row in snapshot.splits.to_pylist():
            found[names[row["ordinal"]]].add((row["file_uri"], row["identity"]))
        return {name: frozenset(files) for name, files in found.items()}

    def doc_ids(self) -> list[str]:
        ids: list[str] = self.snapshot().dataset().to_table(columns=["doc_id"])["doc_id"].to_pylist()
        return sorted(ids)


def record_of(piece: ReadSplit, **changes: Any) -> Record:
    split = piece.split
    assert split.end is not None
    members = tuple(
        Member(
            member.file.uri, member.file.file_id, member.file.identity, member.file.identity_kind, member.end or 0,
            member.row_begin, member.row_end, num, counted, 0, 0, num * 3,
        )
        for member, (num, counted) in zip(split.members, piece.member_counts, strict=True)
    )  # fmt: skip
    values: dict[str, Any] = {
        "file_id": split.file.file_id,
        "split_id": split.split_id,
        "identity": split.file.identity,
        "identity_kind": split.file.identity_kind,
        "row_begin": split.row_begin,
        "row_end": split.row_end,
        "num_documents": piece.num_documents,
        "num_counted": piece.num_counted,
        "num_tokens": 3 * piece.num_documents,
        "num_truncated": 0,
        "members": members or None,
    }
    record = make_record(split.file.uri, split.begin, split.end, last=bool(split.last), **(values | changes))
    assert piece.documents is not None
    data = shard_data(piece.documents["doc_id"].to_pylist())
    return replace(record, shard=replace(record.shard, size=len(data), checksum=checksum(data)))


def corpus(root: Path, num_files: int, max_rows: int = 4) -> Corpus:
    made = Corpus(root, max_rows)
    for number in range(num_files):
        made.put(f"{number:02}.jsonl")
    return made


def uris(records: list[Record]) -> list[list[str]]:
    return [[file.file_uri[:2] for file in record.members or (record,)] for record in records]


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    made = corpus(tmp_path, 10)
    assert uris(made.run()) == [["00", "01", "02", "03"], ["04", "05", "06", "07"], ["08", "09"]]
    splits = made.snapshot().splits
    assert splits.num_rows == 10
    assert splits["file_uri"].to_pylist() == sorted(made.versions)
    assert splits["begin"].to_pylist() == [0] * 10
    assert splits["end"].to_pylist() == [file.size for file in made.files()]
    assert splits["last"].to_pylist() == [True] * 10
    assert splits["ordinal"].to_pylist() == [0] * 4 + [1] * 4 + [2] * 2
    planner = made.planner()
    plan = planner.plan(made.files())
    assert (plan.work, len(plan.recorded), len(plan.carried)) == ([], 0, 10)
    assert planner.is_current(plan, planner.parent or pytest.fail("published"))


def test_one_file_added_is_one_shard(tmp_path: Path) -> None:
    made = corpus(tmp_path, 10)
    made.run()
    before = made.packs()
    made.put("05a.jsonl")
    assert uris(made.run()) == [["05"]]
    assert before.items() < made.packs().items()


def test_new_files_are_packed_by_uri(tmp_path: Path) -> None:
    made = corpus(tmp_path, 8)
    made.run()
    for uri in ("09.jsonl", "03a.jsonl", "00a.jsonl", "07a.jsonl", "04a.jsonl"):
        made.put(uri)
    found = [[file.file_uri for file in record.members or (record,)] for record in made.run()]
    assert found == [["00a.jsonl", "03a.jsonl", "04a.jsonl", "07a.jsonl"], ["09.jsonl"]]


@pytest.mark.parametrize("change", ["put", "delete"])
def test_a_pack_that_changed_or_lost_a_file_is_packed_anew_and_no_other(tmp_path: Path, change: str) -> None:
    made = corpus(tmp_path, 12)
    made.run()
    before = made.packs()
    getattr(made, change)("05.jsonl")
    plan = made.planner().plan(made.files())
    assert plan.num_repacked == 3
    assert uris(made.run()) == [["04", "05", "06", "07"] if change == "put" else ["04", "06", "07"]]
    assert len(before.items() & made.packs().items()) == 2
    assert len(made.packs()) == 3


def test_a_whole_pack_that_is_gone_takes_nobody_with_it(tmp_path: Path) -> None:
    made = corpus(tmp_path, 8)
    made.run()
    for uri in ("00.jsonl", "01.jsonl", "02.jsonl", "03.jsonl"):
        made.delete(uri)
    assert made.run() == []
    assert len(made.packs()) == 1


def test_a_run_that_was_killed_goes_on_with_the_same_packs(tmp_path: Path) -> None:
    made = corpus(tmp_path, 19)
    with pytest.raises(Killed):
        made.run(kill_after=2)
    assert uris(made.run()) == [["08", "09", "10", "11"], ["12", "13", "14", "15"], ["16", "17", "18"]]


def test_a_file_that_comes_before_the_resume_does_not_undo_what_is_recorded(tmp_path: Path) -> None:
    """It shifts all that would be packed after it, and must not."""
    made = corpus(tmp_path, 16)
    with pytest.raises(Killed):
        made.run(kill_after=3)
    made.put("00a.jsonl")
    assert uris(made.run()) == [["00"], ["12", "13", "14", "15"]]


def test_pieces_of_a_planned_pack_are_kept_one_by_one(tmp_path: Path) -> None:
    """The files hold more rows than their size told."""
    made = Corpus(tmp_path, 8)
    for number in range(8):
        made.put(f"{number:02}.jsonl", 4)
    with pytest.raises(Killed):
        made.run(kill_after=2)
    assert uris(made.run()) == [["04", "05"], ["06", "07"]]


def test_a_file_over_the_bounds_is_cut_by_itself_and_not_packed_again(tmp_path: Path) -> None:
    made = Corpus(tmp_path, 8)
    for number, num_lines in enumerate([1, 20, 1, 1]):
        made.put(f"{number:02}.jsonl", num_lines)
    with pytest.raises(Killed):
        made.run(kill_after=2)
    assert uris(made.run()) == [["01"], ["01"], ["02", "03"]]
    splits = made.snapshot().splits
    assert Counter(splits["file_uri"].to_pylist()) == {"00.jsonl": 1, "01.jsonl": 3, "02.jsonl": 1, "03.jsonl": 1}


def test_of_packs_with_files_in_common_one_is_chosen_by_the_records_alone(tmp_path: Path) -> None:
    """Two runs planned differently, and both left records: of one generation the larger pack counts."""
    made = corpus(tmp_path, 4)
    plan = made.planner().plan(made.files())
    made.work_off(plan)
    others = made.files()[1:]
    shorter = made.planner().plan(others)
    assert [[file.uri[:2] for file in work.split.files] for work in shorter.work] == [["01", "02", "03"]]
    made.work_off(shorter)
    [chosen] = made.planner().plan(made.files()).recorded
    assert uris([chosen]) == [["00", "01", "02", "03"]]
    [chosen] = made.planner().plan(others).recorded
    assert uris([chosen]) == [["01", "02", "03"]]


def test_packs_with_files_in_common_are_taken_in_one_order() -> None:
    """By generation, then the parent's, then the larger, then the least id: as attempts of one range are."""
    a, b, c, d = (make_member(uri) for uri in "abcd")
    large, one, other = make_pack(a, b, c), make_pack(a, b), make_pack(b, c)
    files = {member.file_id for member in (a, b, c, d)}

    def chosen(records: list[Record], parent: Record | None = None) -> Record:
        listed = None if parent is None else file_keys(pa.array([parent.shard.file]))
        [pack] = KnownRecords(records, listed).packs(files)
        return records[pack.row]

    assert chosen([one, large]) == chosen([large, one]) == large
    least = min(one, other, key=lambda pack: pack.split_id)
    assert chosen([one, other]) == chosen([other, one]) == least
    for listed in (one, other):
        assert chosen([large, one, other], parent=listed) == listed
    again = make_pack(b, c, generation=1)
    assert chosen([large, one, again], parent=one) == again
    files.remove(b.file_id)
    assert KnownRecords([large, one, other]).packs(files) == [], "all of its files are there, or it is none"


def test_quarantined_documents_of_a_pack_are_tried_again_with_all_of_it(tmp_path: Path) -> None:
    made = corpus(tmp_path, 8)
    planner = made.planner()
    plan = planner.plan(made.files())
    for work in plan.work:
        [piece] = read_split(made.source, work.split, planner.config.input, pa.schema([]), planner.config.splits)
        is_first = work.split.file.uri == "00.jsonl"
        if is_first:
            assert piece.documents is not None
            piece = replace(piece, documents=piece.documents.slice(1))
        record = record_of(piece, shard_fp=plan.shard_fp, num_quarantined=int(is_first))
        assert record.members is not None
        members = (replace(record.members[0], num_quarantined=int(is_first)), *record.members[1:])
        record = replace(record, members=members)
        assert piece.documents is not None
        data = shard_data(piece.documents["doc_id"].to_pylist())
        put_attempt(made.store, record, data, b"quarantine" if record.quarantine else None)
    plan = planner.plan(made.files())
    ids = {"files": plan.file_ids, "shard_fp": plan.shard_fp, "carried": plan.carried}
    manifest = publish(made.store, publication(None, plan.recorded, **ids))
    assert (manifest.accounting.quarantined, manifest.accounting.documents_in) == (1, 8)
    again = made.planner(retry="r2").plan(made.files())
    assert [([file.uri[:2] for file in work.split.files], work.generation) for work in again.work] == [
        (["00", "01", "02", "03"], 1)
    ]
    assert again.num_repacked == 0
    recorded = made.work_off(again)
    retried = [replace(record, run_id="r2") for record in recorded]
    assert [record.generation for record in retried] == [1]
    # What was made to replace the parent's is taken, by whoever plans.
    [chosen] = made.planner().plan(made.files(), reopened=[file.file_id for file in made.files()[:4]]).recorded
    assert chosen.generation == 1


def test_a_pack_is_made_again_where_asked(tmp_path: Path) -> None:
    made = corpus(tmp_path, 8)
    [first, _] = made.run()
    reopened = [file.file_id for file in made.files()[:4]]
    made.put("00a.jsonl")  # which would be packed with them
    plan = made.planner().plan(made.files(), reopened=reopened, redo=[first.attempt])
    [again, new] = plan.work
    assert (again.split.split_id, again.generation) == (first.split_id, 1)
    assert (new.split.file.uri, new.generation) == ("00a.jsonl", 0)
    assert len(plan.carried) == 4


def test_a_pack_of_which_a_file_is_cut_by_now_is_not_made_again() -> None:
    """As with bounds that are lower than those it was made under."""
    a, b = InputFile("a", 2000, "v1", "etag"), InputFile("b", 100, "v1", "etag")
    planned = [
        Split(a, "jsonl", None, 0, 1000, False, num_bytes=1000),
        Split(a, "jsonl", None, 1000, 2000, True, num_bytes=1000),
        Split(b, "jsonl", None, 0, 100, True, num_bytes=100),
    ]
    pack = KnownPack(0, (a.file_id, b.file_id), "b", is_done=False)
    bounds = SplitBounds.model_validate({"max_bytes": 1000})
    made = packed(planned, [pack], KnownRecords(), bounds)
    assert sorted(made, key=lambda split: (split.file.uri, split.begin)) == planned


def test_under_a_limit_nothing_is_packed_and_a_full_run_takes_it_over(tmp_path: Path) -> None:
    made = corpus(tmp_path, 8)
    plan = made.planner(limit=3).plan(made.files())
    made.work_off(plan)
    assert [work.split.file.uri for work in plan.work] == ["00.jsonl", "01.jsonl", "02.jsonl"]
    assert uris(made.run()) == [["03", "04", "05", "06"], ["07"]]
    assert len(made.doc_ids()) == 8


def test_records_come_back_from_the_journal_and_from_one_without_packs(tmp_path: Path) -> None:
    made = corpus(tmp_path, 8)
    plan = made.planner().plan(made.files())
    records = made.work_off(plan, journal=True)
    made.store.delete([record_name(record) for record in records[1:]])  # a name is all that is asked of a record
    assert list(load_records(made.store, ENCODER_FP, plan.shard_fp)) == records[:1]
    assert Record.from_json(records[0].to_json()) == records[0]


OPERATION = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 29), st.sampled_from([0, 1, 1, 1, 2, 3, 9])),
    st.tuples(st.just("delete"), st.integers(0, 29), st.just(0)),
    st.tuples(st.just("kill"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("run"), st.just(0), st.just(0)),
)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 20), st.lists(OPERATION, max_size=12))
def test_any_history_leaves_every_file_in_one_pack_and_keeps_what_did_not_change(
    num_files: int, operations: list[tuple[str, int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = corpus(Path(folder), num_files)
        made.put("always.jsonl")
        for what, number, num_lines in [*operations, ("run", 0, 0)]:
            uri = f"{number:02}.jsonl"
            if what == "put":
                made.put(uri, num_lines)
            elif what == "delete" and uri in made.versions:
                made.delete(uri)
            elif what == "kill":
                try:
                    made.run(kill_after=number)
                except Killed:
                    continue
                check(made)
            elif what == "run":
                recorded = _recorded_now(made)
                before = made.packs() if latest(made.store) else {}
                again = {file for record in made.run() for file in _files_of(record)}
                check(made)
                now = frozenset((file.uri, file.identity) for file in made.files())
                kept = {name: files for name, files in before.items() if files <= now}
                assert kept.items() <= made.packs().items(), "an unchanged pack keeps its shard"
                assert again.isdisjoint(file for files in recorded if files <= now for file in files)
        assert made.run() == []


def _files_of(record: Record) -> list[tuple[str, str]]:
    return [(file.file_uri, file.identity) for file in record.members or (record,)]


def _recorded_now(made: Corpus) -> list[frozenset[tuple[str, str]]]:
    """The files of each whole piece that is recorded: of those that still are there nothing is to be done again."""
    records = load_records(made.store, ENCODER_FP, made.planner().config.shard_fingerprint({}))
    return [frozenset(_files_of(record)) for record in records if record.begin == 0 and record.last]


def check(made: Corpus) -> None:
    """Every document once, every file in one pack, none over the bound."""
    wanted = []
    for file in made.files():
        offset = 0
        for line in (made.root / "in" / file.uri).read_bytes().splitlines(keepends=True):
            wanted.append(f"{file.uri}#{offset}")
            offset += len(line)
    assert made.doc_ids() == sorted(wanted)
    snapshot = made.snapshot()
    assert max(snapshot.shards["num_rows"].to_pylist(), default=0) <= made.max_rows
    whole = snapshot.splits.filter(pc.equal(snapshot.splits["begin"], 0))
    assert sorted(whole["file_uri"].to_pylist()) == sorted(made.versions)
    assert snapshot.manifest.accounting.files_in == len(made.versions)
    assert snapshot.manifest.accounting.documents_in == len(wanted)
