"""verify: whatever of a snapshot is not as its manifest says is told, and only that."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import exit_code, vecmill
from pipeline.errors import StorageFault, StoreError
from pipeline.row_hashes import row_hashes
from pipeline.schema import QUARANTINE_SCHEMA
from pipeline.snapshots.manifest import Manifest, latest, manifest_name, put_table
from pipeline.snapshots.reader import Snapshot, open_snapshot
from pipeline.snapshots.records import Record, checksum
from pipeline.uris import Storage
from pipeline.verify import encode_again, verify
from pipeline.write import quarantine_bytes, shard_bytes
from tests.corpus import Job, jsonl_bytes, make_rows
from tests.embedded import Embedder, make_job
from tests.models import make_model

NUM_ROWS = 25 + 14


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Embedder]:
    """25 rows of Parquet in two splits, 15 lines of which the third is none; for reading only."""
    folder = tmp_path_factory.mktemp("verify")
    job = make_job(folder, make_model(folder / "model"))
    embedder = Embedder(job)
    lines = jsonl_bytes(make_rows(2, begin=25)) + b"{\n" + jsonl_bytes(make_rows(12, begin=27))
    embedder.publish({"a.parquet": make_rows(25), "b.jsonl": lines})
    return job, embedder


@pytest.fixture
def store(embedded: tuple[Job, Embedder], tmp_path: Path) -> Storage:
    """A copy that may be damaged."""
    shutil.copytree(embedded[0].store.uri, tmp_path / "store")
    return Storage(str(tmp_path / "store"))


@dataclass
class Damage:
    """A store about to be damaged."""

    storage: Storage

    @property
    def manifest(self) -> Manifest:
        found = latest(self.storage)
        assert found is not None
        return found

    @property
    def snapshot(self) -> Snapshot:
        return Snapshot(self.storage, self.manifest)

    def shard(self, index: int = 0) -> str:
        return str(self.snapshot.shards["file"][index].as_py())

    @property
    def quarantine(self) -> str:
        return str(self.snapshot.splits["quarantine_file"].drop_null()[0].as_py())

    def record(self, file: str) -> tuple[str, Record]:
        stem = Path(file).stem
        split_id, _, attempt = stem.partition("-")
        [name] = [i.name for i in self.storage.list("records") if split_id in i.name and attempt in i.name]
        return name, Record.from_json(self.storage.read(name))

    def change_manifest(self, **changes: Any) -> None:
        changed = self.manifest.model_copy(update=changes)
        self.storage.put(manifest_name(changed.snapshot_id), changed.to_json())

    def change_rows(self, table: str, index: int, **changes: Any) -> None:
        """Change a row of the "shards" or "splits" table, with its checksum in the manifest."""
        rows = getattr(self.snapshot, table)
        ref = getattr(self.manifest, table)
        values = rows.to_pylist()
        values[index] |= changes
        changed = put_table(self.storage, ref.file, pa.Table.from_pylist(values, rows.schema))
        self.change_manifest(**{table: changed})

    def change_record(self, file: str, **changes: Any) -> None:
        name, record = self.record(file)
        self.storage.put(name, dataclasses.replace(record, **changes).to_json())

    def change_shard(self, change: Callable[[pa.Table], pa.Table], index: int = 0) -> None:
        """Write a shard's rows anew, changed, as a fault of the writer would: table and record agree with the file."""
        name = self.shard(index)
        table = pq.read_table(pa.BufferReader(self.storage.read(name)))
        table = change(table)
        made = shard_bytes(table, table.schema.remove_metadata())
        self.storage.put(name, made.data)
        row = {"size": made.data.size, "checksum": checksum(made.data), "num_rows": made.num_rows}
        row |= {"vector_begin": made.vector_begin}
        self.change_rows("shards", index, **row)
        _, record = self.record(name)
        self.change_record(name, shard=dataclasses.replace(record.shard, **row))

    def change_quarantine(self, change: Callable[[pa.Table], pa.Table], drop: str | None = None) -> None:
        name = self.quarantine
        table = pq.read_table(pa.BufferReader(self.storage.read(name)))
        table = change(table.append_column("text", pa.nulls(table.num_rows, pa.string())).cast(QUARANTINE_SCHEMA))
        data = quarantine_bytes(table, with_text=False)
        if drop is not None:
            sink = pa.BufferOutputStream()
            pq.write_table(pq.read_table(pa.BufferReader(data)).drop_columns(drop), sink)
            data = sink.getvalue()
        self.storage.put(name, data)
        index = self.snapshot.splits["quarantine_file"].to_pylist().index(name)
        self.change_rows("splits", index, quarantine_checksum=checksum(data))
        _, record = self.record(name)
        assert record.quarantine is not None
        listed = dataclasses.replace(record.quarantine, checksum=checksum(data))
        self.change_record(name, quarantine=listed)


def set_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def with_hashes(table: pa.Table) -> pa.Table:
    """Row hashes made anew, as a writer would that got wrong rows."""
    return set_column(table, "row_hash", row_hashes(table, table.select(["lang", "year"])))


def with_vector(table: pa.Table, row: int, values: Callable[[np.ndarray], np.ndarray]) -> pa.Table:
    vectors = table["vector"].to_pylist()
    vectors[row] = values(np.array(vectors[row], np.float16)).tolist()
    return set_column(table, "vector", vectors)


def truncate(d: Damage) -> None:
    d.storage.put(d.shard(), d.storage.read(d.shard())[:-10])


def flip(d: Damage) -> None:
    data = bytearray(d.storage.read(d.shard()))
    data[d.snapshot.shards["vector_begin"][0].as_py() + 41] ^= 0x40
    d.storage.put(d.shard(), bytes(data))


def flip_and_fix(d: Damage) -> None:
    """The largest bit of an exponent: what a fault of memory before the checksum would leave."""
    flip(d)
    new = checksum(d.storage.read(d.shard()))
    _, record = d.record(d.shard())
    d.change_record(d.shard(), shard=dataclasses.replace(record.shard, checksum=new))
    d.change_rows("shards", 0, checksum=new)


def swap(d: Damage) -> None:
    one, two = d.storage.read(d.shard(0)), d.storage.read(d.shard(1))
    d.storage.put(d.shard(0), two)
    d.storage.put(d.shard(1), one)


def double_id(d: Damage) -> None:
    """In another shard than the first row that has it."""

    def change(table: pa.Table) -> pa.Table:
        return with_hashes(set_column(table, "doc_id", ["d0", *table["doc_id"].to_pylist()[1:]]))

    d.change_shard(change, 1)


def in_both(d: Damage) -> None:
    """A derived id in quarantine and in the shard of one split."""
    splits = d.snapshot.splits
    index = splits["quarantine_file"].to_pylist().index(d.quarantine)
    ordinal = splits["ordinal"][index].as_py()
    place = d.snapshot.shards["ordinal"].to_pylist().index(ordinal)
    uri, row = "b.jsonl", []

    def take(table: pa.Table) -> pa.Table:
        row.append(table["row"][0].as_py())
        return set_column(table, "doc_id", [f"{uri}#{row[0]}"])

    d.change_quarantine(take)
    d.change_shard(
        lambda t: with_hashes(set_column(t, "doc_id", [f"{uri}#{row[0]}", *t["doc_id"].to_pylist()[1:]])), place
    )


def add_column(d: Damage) -> None:
    d.change_shard(lambda table: table.append_column("more", pa.array([1] * table.num_rows)))


def no_parquet(d: Damage) -> None:
    d.storage.put(d.shard(), b"x" * 9)
    d.change_rows("shards", 0, size=9, checksum=checksum(b"x" * 9))


def cross(d: Damage) -> None:
    d.change_rows("splits", 0, ordinal=1)
    d.change_rows("splits", 1, ordinal=0)


DAMAGES: dict[str, tuple[Callable[[Damage], object], str]] = {
    "a shard is gone": (lambda d: d.storage.delete([d.shard()]), r"embeddings/\S+ is missing"),
    "a shard is cut": (truncate, r"embeddings/\S+ has \d+ bytes, \d+ are listed"),
    "a byte is flipped": (flip, r"embeddings/\S+ is damaged"),
    "a byte is flipped, the checksums fit": (flip_and_fix, r"embeddings/\S+: the vector is not .* in 1 rows"),
    "two shards are swapped": (swap, r"embeddings/\S+ (has \d+ bytes|is damaged)"),
    "a vector is zero": (
        lambda d: d.change_shard(lambda t: with_vector(t, 3, lambda v: v * 0)),
        r"embeddings/\S+: the vector is not of unit norm in 1 rows, the first of them 3",
    ),
    "a vector is NaN": (
        lambda d: d.change_shard(lambda t: with_vector(t, 3, lambda v: v * np.float16(np.nan))),
        r"embeddings/\S+: the vector is not finite in 1 rows",
    ),
    "a vector is too long": (
        lambda d: d.change_shard(lambda t: with_vector(t, 0, lambda v: v * np.float16(1.01))),
        r"not of unit norm",
    ),
    "a kept value is changed": (
        lambda d: d.change_shard(lambda t: set_column(t, "lang", ["xx"] * t.num_rows)),
        r"embeddings/\S+: row_hash is not that of the row in 20 rows",
    ),
    "an id is changed": (
        lambda d: d.change_shard(lambda t: set_column(t, "doc_id", ["q", *t["doc_id"].to_pylist()[1:]])),
        r"row_hash is not that of the row in 1 rows",
    ),
    "an id is there twice": (double_id, r"embeddings/\S+: 1 documents have an id that an earlier row has"),
    "a row is gone": (
        lambda d: d.change_shard(lambda t: t.slice(1)),
        r"embeddings/\S+: 19 documents, its split has 20",
    ),
    "the shard has other rows than listed": (
        lambda d: d.change_rows("shards", 0, num_rows=7),
        r"embeddings/\S+ has 20 rows, 7 are listed",
    ),
    "chunks are out of order": (
        lambda d: d.change_shard(lambda t: with_hashes(set_column(t, "chunk_index", [0, 2, *[0] * 18]))),
        r"embeddings/\S+: chunks are out of order in 1 rows, the first of them 1",
    ),
    "a chunk is beyond its document": (
        lambda d: d.change_shard(lambda t: set_column(t, "num_chunks", [0] * t.num_rows)),
        r"chunks are out of order in 20 rows",
    ),
    "tokens are others": (
        lambda d: d.change_shard(lambda t: set_column(t, "num_tokens", [1] * t.num_rows)),
        r"embeddings/\S+: 20 tokens, its split lists",
    ),
    "truncation is another": (
        lambda d: d.change_shard(lambda t: set_column(t, "truncated", [True] * t.num_rows)),
        r"embeddings/\S+: 20 truncated rows, its split lists",
    ),
    "a shard has another column": (add_column, r"embeddings/\S+ has other columns"),
    "a shard is no Parquet": (
        no_parquet,
        r"embeddings/\S+ cannot be read as Parquet",
    ),
    "vector_begin is elsewhere": (
        lambda d: d.change_rows("shards", 0, vector_begin=d.snapshot.shards["vector_begin"][0].as_py() + 2),
        r"embeddings/\S+: vector_begin \d+ is not where",
    ),
    "a quarantine file is gone": (lambda d: d.storage.delete([d.quarantine]), r"quarantine/\S+ is missing"),
    "a quarantine file is changed": (
        lambda d: d.storage.put(d.quarantine, d.storage.read(d.quarantine) + b"x"),
        r"quarantine/\S+ is damaged",
    ),
    "a quarantined row is gone": (
        lambda d: d.change_quarantine(lambda t: t.slice(1)),
        r"quarantine/\S+: 0 documents, its split has 1",
    ),
    "a reason of nobody's": (
        lambda d: d.change_quarantine(lambda t: set_column(t, "reason", ["bad"])),
        r"quarantine/\S+: 'bad' is no reason",
    ),
    "a stage of nobody's": (
        lambda d: d.change_quarantine(lambda t: set_column(t, "stage", ["bad"])),
        r"quarantine/\S+: 'bad' is no stage",
    ),
    "quarantine of another file": (
        lambda d: d.change_quarantine(lambda t: set_column(t, "input_file", ["z"])),
        r"quarantine/\S+: speaks of z",
    ),
    "a duplicate of nothing": (
        lambda d: d.change_quarantine(
            lambda t: set_column(set_column(t, "reason", ["duplicate_id"]), "doc_id", ["nobody"])
        ),
        r"in quarantine as duplicate_id, and no earlier row has its id",
    ),
    "a row is in quarantine twice": (
        lambda d: d.change_quarantine(lambda t: pa.concat_tables([t, t])),
        r"quarantine/\S+: a row is there twice",
    ),
    "a quarantine file of other columns": (
        lambda d: d.change_quarantine(lambda t: t, drop="stage"),
        r"quarantine/\S+ has other columns than a quarantine file",
    ),
    "a record of another quarantine file": (
        lambda d: d.change_rows("splits", 2, quarantine_checksum="0" * 32),
        r"records/\S+ speaks of another quarantine file",
    ),
    "in quarantine and in the shard": (in_both, r"quarantine/\S+: b.jsonl#\d+ is in quarantine, and in the shard"),
    "quarantine is not listed": (
        lambda d: d.change_rows("splits", 2, quarantine_file=None, quarantine_checksum=None),
        r"lacks its quarantine file",
    ),
    "a record is gone": (
        lambda d: d.storage.delete([d.record(d.shard())[0]]),
        r"embeddings/\S+ is listed, and its attempt has no record",
    ),
    "a record is none": (
        lambda d: d.storage.put(d.record(d.shard())[0], b"{}"),
        r"records/\S+ is no record",
    ),
    "a record counts otherwise": (
        lambda d: d.change_record(d.shard(), num_documents=19),
        r"records/\S+: num_documents is 19, the splits table has 20",
    ),
    "a record's reasons are others": (
        lambda d: d.change_record(d.quarantine, reasons={"empty_text": 1}),
        r"records/\S+: reasons are",
    ),
    "a record of another shard": (
        lambda d: d.change_record(d.shard(), compute="float16"),
        r"records/\S+ speaks of another shard",
    ),
    "a table is gone": (lambda d: d.storage.delete([d.manifest.shards.file]), r"missing from the store: \S+shards"),
    "a table is damaged": (
        lambda d: d.storage.put(d.manifest.splits.file, b"x"),
        r"damaged: \S+splits.parquet is not the table",
    ),
    "a table has fewer rows": (
        lambda d: d.change_manifest(splits=d.manifest.splits.model_copy(update={"num": 9})),
        r"snapshots/\S+ has 3 rows, its manifest says 9",
    ),
    "the manifest is none": (lambda d: d.storage.put(manifest_name(1), b"{}"), r"is no manifest"),
    "an equation is off": (
        lambda d: d.change_manifest(accounting=d.manifest.accounting.model_copy(update={"embedded": 3})),
        r"documents_in is not embedded \+ reused \+ quarantined",
    ),
    "files do not add up": (
        lambda d: d.change_manifest(accounting=d.manifest.accounting.model_copy(update={"files_read": 1})),
        r"files_in is not files_read \+ files_quarantined",
    ),
    "a count is not the tables'": (
        lambda d: d.change_manifest(accounting=d.manifest.accounting.model_copy(update={"tokens": 3})),
        r"accounting.tokens is 3",
    ),
    "a gap in a file": (
        lambda d: d.change_rows("splits", 1, begin=21),
        r"splits of a.parquet do not cover it once: at \[21, 25\)",
    ),
    "a file without its end": (
        lambda d: d.change_rows("splits", 1, last=False),
        r"splits of a.parquet do not cover it once",
    ),
    "two versions of a file": (
        lambda d: d.change_rows("splits", 1, file_id="0" * 32),
        r"two versions of a.parquet",
    ),
    "counted otherwise": (
        lambda d: d.change_rows("splits", 0, num_counted=21),
        r"20 documents as read, 21 as counted",
    ),
    "an ordinal twice": (lambda d: d.change_rows("shards", 1, ordinal=0), r"ordinal 0 is there twice"),
    "an ordinal not given yet": (lambda d: d.change_manifest(next_ordinal=2), r"ordinal 2 is not below next_ordinal 2"),
    "an ordinal of nothing": (
        lambda d: d.change_rows("splits", 0, ordinal=77),
        r"ordinal 77 is in one of the two tables only",
    ),
    "a shard listed twice": (
        lambda d: d.change_rows("shards", 1, file=d.shard(0)),
        r"file embeddings/\S+ is there twice",
    ),
    "another encoder": (
        lambda d: d.change_manifest(encoder=d.manifest.encoder | {"pooling": "cls"}),
        r"the encoder spelled out there has the fingerprint",
    ),
    "another config": (
        lambda d: d.change_manifest(config=d.manifest.config | {"store": {"uri": "x", "dtype": "float32"}}),
        r"has the shard fingerprint",
    ),
    "a config that is none": (lambda d: d.change_manifest(config={}), r"snapshots/\S+: its config is none"),
    "a shard elsewhere": (
        lambda d: d.change_rows("shards", 0, file="embeddings/x.parquet"),
        r"embeddings/x.parquet is no name of a file in embeddings/",
    ),
    "files of other fingerprints": (lambda d: d.change_manifest(shard_fp="0" * 16), r"is of other fingerprints"),
    "a shard of another split": (
        cross,
        r"is listed as a file of another split",
    ),
    "a victim of gc is listed": (
        lambda d: d.change_manifest(victims=(d.shard(),)),
        r"embeddings/\S+ is listed, and among the victims",
    ),
}


def test_a_sound_snapshot_has_no_findings(store: Storage) -> None:
    audit = verify(store)
    assert audit.findings == []
    counts = (audit.snapshot_id, audit.splits, audit.rows, audit.quarantined, audit.other_files)
    assert counts == (1, 3, NUM_ROWS, 1, 0)


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_told(store: Storage, what: str) -> None:
    damage, expected = DAMAGES[what]
    damage(Damage(store))
    findings = verify(store).findings
    assert any(re.search(expected, finding) for finding in findings), findings


def test_all_findings_are_told_not_only_the_first(store: Storage) -> None:
    d = Damage(store)
    truncate(d)
    store.delete([d.shard(1), d.quarantine])
    findings = verify(store).findings
    assert len(findings) == 3
    assert len({finding.split()[0] for finding in findings}) == 3


def test_orphans_are_no_fault(store: Storage) -> None:
    """Attempts that do not count lie beside the current ones."""
    name = Damage(store).shard()
    store.put(name.replace(name[-24:-8], "0" * 16), b"of a writer that was killed")
    audit = verify(store)
    assert (audit.findings, audit.other_files) == ([], 1)


def test_storage_that_does_not_answer_is_no_finding(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    shard, read = Damage(store).shard(), Storage.read

    def refuse(self: Storage, name: str) -> bytes:
        if name == shard:
            raise StorageFault("timeout")
        return read(self, name)

    monkeypatch.setattr(Storage, "read", refuse)
    with pytest.raises(StorageFault):
        verify(store)


def test_what_cannot_be_verified(store: Storage, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no snapshot 7"):
        verify(store, 7)
    with pytest.raises(StoreError, match="no store at"):
        verify(Storage(str(tmp_path / "nothing")))
    newer = store.read(manifest_name(1)).replace(b'"format_version": 1', b'"format_version": 2')
    store.put(manifest_name(1), newer)
    with pytest.raises(StoreError, match="install a newer one"):
        verify(store)


def test_the_command(store: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(vecmill, ["verify", store.uri]) == 0
    assert "3 splits, 39 rows" in capsys.readouterr().out
    truncate(Damage(store))
    assert exit_code(vecmill, ["verify", store.uri]) == 3
    told = capsys.readouterr()
    assert "bytes, " in told.out
    assert "1 findings" in told.err
    assert exit_code(vecmill, ["verify", store.uri, "--deep"]) == 2


# --- deep ---


@pytest.fixture
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.splits.files.SETTLED_S", 0)


@pytest.mark.usefixtures("_settled")
def test_a_sample_encoded_again_gives_the_same_vectors(embedded: tuple[Job, Embedder]) -> None:
    job, embedder = embedded
    again = encode_again(open_snapshot(job.store.uri), embedder.config, num_rows=10**4)
    assert (again.findings, again.unchecked, again.rows) == ([], [], NUM_ROWS)
    assert again.min_cosine > 0.9999


@pytest.mark.usefixtures("_settled")
def test_vectors_of_other_texts_are_told(embedded: tuple[Job, Embedder], store: Storage) -> None:
    """Sound by themselves: only the input tells."""

    def change(table: pa.Table) -> pa.Table:
        vectors = table["vector"].to_pylist()
        return set_column(table, "vector", [*vectors[1:], vectors[0]])

    def forge(table: pa.Table) -> pa.Table:
        hashes = [b"?" * 16, *table["content_hash"].to_pylist()[1:]]
        ids = [*table["doc_id"].to_pylist()[:-1], "stranger"]
        return with_hashes(set_column(set_column(table, "content_hash", hashes), "doc_id", ids))

    Damage(store).change_shard(change, 0)
    Damage(store).change_shard(forge, 1)
    assert verify(store).findings == []
    again = encode_again(open_snapshot(store.uri), embedded[1].config, num_rows=10**4)
    found = " ".join(again.findings)
    assert "has cosine" in found
    assert "is of another text" in found
    assert "stranger, is not in a.parquet" in found


@pytest.mark.usefixtures("_settled")
def test_a_file_that_changed_since_is_not_checked_and_no_fault(embedded: tuple[Job, Embedder], tmp_path: Path) -> None:
    job = make_job(tmp_path, Path(embedded[0].config["encoder"]["model"]))
    embedder = Embedder(job)
    embedder.publish({"a.jsonl": make_rows(5), "b.jsonl.gz": make_rows(45, begin=5), "c.jsonl": make_rows(3, begin=90)})
    job.corpus.put("a.jsonl", jsonl_bytes(make_rows(5, begin=70)))
    job.corpus.delete(["c.jsonl"])
    again = encode_again(open_snapshot(job.store.uri), embedder.config)
    assert again.findings == []
    assert again.rows == 45, "streams are read again too, from their begin"
    assert [line.split()[0] for line in again.unchecked] == ["a.jsonl", "c.jsonl"]
    assert "cannot be checked: changed since" in again.unchecked[0]


def test_deep_wants_the_config_that_embedded_it(embedded: tuple[Job, Embedder]) -> None:
    job, embedder = embedded
    other = embedder.config.input.model_copy(update={"text": "{body}"})
    with pytest.raises(StoreError, match="was made with the fingerprints"):
        encode_again(open_snapshot(job.store.uri), embedder.config.model_copy(update={"input": other}))
