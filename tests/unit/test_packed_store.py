"""Whatever looks at a store tells of a file in a pack what it would tell of it alone."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.cli import exit_code, vecmill
from pipeline.duplicates import coming_splits, find_duplicates, without_rows
from pipeline.snapshots.commit import publish
from pipeline.snapshots.manifest import SHARDS_SCHEMA, SPLITS_SCHEMA, latest, put_table
from pipeline.snapshots.overview import Quarantined, quarantine_by_reason
from pipeline.snapshots.reader import open_snapshot
from pipeline.snapshots.records import Record
from pipeline.uris import Storage
from pipeline.verify import encode_again, verify
from pipeline.where import find_document
from tests.corpus import Job, Row, jsonl_bytes, make_rows, parquet_bytes
from tests.embedded import Embedder, copied, make_job
from tests.models import make_model
from tests.stores import publication

BLANK = {"title": " ", "body": " "}
FILES: dict[str, list[Row] | bytes] = {
    "a.parquet": parquet_bytes([make_rows(1)[0], make_rows(1)[0] | BLANK | {"id": "blank"}, *make_rows(2, begin=1)]),
    "b.jsonl": b"{\n" + jsonl_bytes(make_rows(2, begin=10)),
    "c.parquet": parquet_bytes(make_rows(30, begin=100)),  # not small
    "d.jsonl.gz": make_rows(3, begin=20),
    "e.parquet": parquet_bytes([make_rows(1)[0] | BLANK | {"id": "blank too"}, *make_rows(3, begin=30)]),
    "f.jsonl": b"",
}
PACKED = ["a.parquet", "b.jsonl", "d.jsonl.gz", "e.parquet", "f.jsonl"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def embedded(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Embedder, list[Record]]:
    """Five files in one pack, and a sixth that lies between them by its name."""
    job = make_job(tmp_path_factory.mktemp("packed"), model, text="{title}{body}")
    job.config["splits"] = {"max_rows": 400}
    embedder = Embedder(job, packs=True)
    records = embedder.publish(FILES)
    assert sorted(len(record.members or ()) for record in records) == [0, 5]
    return job, embedder, records


@pytest.fixture
def store(embedded: tuple[Job, Embedder, list[Record]], tmp_path: Path) -> Storage:
    return copied(embedded[0].store, tmp_path / "copy")


def test_a_sound_pack_has_no_findings(store: Storage) -> None:
    audit = verify(store)
    assert audit.findings == []
    assert (audit.splits, audit.rows, audit.quarantined, audit.other_files) == (2, 41, 3, 0)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("num_tokens", r"tokens, d.jsonl.gz lists"),
        ("num_truncated", r"truncated rows, d.jsonl.gz lists"),
        ("num_quarantined", r"0 documents, d.jsonl.gz has 1 in quarantine"),
        ("end", r"records/\S+: end is \d+, the splits table has"),
        ("file_uri", r"records/\S+ is of 5 files"),
        ("begin", r"split_id \w+ is there twice"),
    ],
)
def test_what_the_table_says_of_a_file_of_a_pack_is_checked(store: Storage, column: str, expected: str) -> None:
    snapshot = open_snapshot(store.uri)
    rows = snapshot.splits.cast(SPLITS_SCHEMA).to_pylist()
    [row] = [row for row in rows if row["file_uri"] == "d.jsonl.gz"]
    row[column] = row[column] + (".x" if column == "file_uri" else 1)
    table = put_table(store, snapshot.manifest.splits.file, pa.Table.from_pylist(rows, SPLITS_SCHEMA))
    manifest = snapshot.manifest.model_copy(update={"splits": table})
    store.put("snapshots/00000000000000000001.json", manifest.to_json())
    findings = verify(store).findings
    assert any(re.search(expected, finding) for finding in findings), findings


def test_rows_of_another_file_are_told(store: Storage) -> None:
    """A quarantine file names the file of each of its rows."""
    snapshot = open_snapshot(store.uri)
    [name] = set(snapshot.splits["quarantine_file"].drop_null().to_pylist())
    table = pq.read_table(pa.BufferReader(store.read(name)))
    assert table.select(["input_file", "row"]).to_pylist() == [
        {"input_file": "a.parquet", "row": 1},
        {"input_file": "b.jsonl", "row": 0},
        {"input_file": "e.parquet", "row": 0},
    ]


@pytest.mark.parametrize(
    ("doc_id", "file", "row", "position"),
    [
        ("d0", "a.parquet", 0, 0),
        ("d2", "a.parquet", 3, 2),
        ("d10", "b.jsonl", None, 3),
        ("d105", "c.parquet", 5, 5),
        ("d22", "d.jsonl.gz", None, 7),
        ("d30", "e.parquet", 1, 8),
        ("d32", "e.parquet", 3, 10),
    ],
)
def test_where_tells_the_file_and_the_row(store: Storage, doc_id: str, file: str, row: int, position: int) -> None:
    [place] = find_document(store, doc_id).places
    assert (place["input_file"], place["row"], place["position"]) == (file, row, position)


def test_where_tells_what_is_in_quarantine(store: Storage) -> None:
    [place] = find_document(store, "blank too").places
    assert (place["input_file"], place["row"], place["reason"]) == ("e.parquet", 0, "empty_text")
    assert place["end"] == 4


def test_where_finds_derived_ids(model: Path, tmp_path: Path) -> None:
    job = make_job(tmp_path, model, id=None, text="{title}{body}")
    job.config["splits"] = {"max_rows": 400}
    Embedder(job, packs=True).publish(FILES)
    for file, row, position in (("a.parquet", 3, 2), ("e.parquet", 2, 9)):
        [place] = find_document(job.store, f"{file}#{row}").places
        assert (place["input_file"], place["row"], place["position"]) == (file, row, position)
    [place] = find_document(job.store, "e.parquet#0").places
    assert (place["input_file"], place["state"]) == ("e.parquet", "quarantined")
    [place] = find_document(job.store, "b.jsonl#0").places
    assert (place["input_file"], place["reason"]) == ("b.jsonl", "invalid_json")


def test_quarantine_is_counted_once_and_by_file(store: Storage) -> None:
    found = quarantine_by_reason(open_snapshot(store.uri))
    assert found == {"empty_text": Quarantined(2, 2), "invalid_json": Quarantined(1, 1)}
    assert len(open_snapshot(store.uri).quarantine_files()) == 1


def test_status_counts_splits(store: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(vecmill, ["status", store.uri, "--json"]) == 0
    assert '"splits": 2' in capsys.readouterr().out


def test_a_sample_of_a_pack_encoded_again_gives_the_same_vectors(
    embedded: tuple[Job, Embedder, list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.splits.files.SETTLED_S", 0)
    job, embedder, _ = embedded
    again = encode_again(open_snapshot(job.store.uri), embedder.config, num_rows=10**4)
    assert (again.findings, again.unchecked, again.rows) == ([], [], 41)


def test_a_document_taken_out_of_a_pack_is_told_by_its_file(
    embedded: tuple[Job, Embedder, list[Record]], store: Storage
) -> None:
    """Rows of Parquet have their numbers, also beside others that were in quarantine before."""
    [before] = [record for record in embedded[2] if record.members]
    after = without_rows(store, before, np.array([2, 4, 9]), run_id="now", with_text=False)
    assert after.quarantine is not None
    table = pq.read_table(pa.BufferReader(store.read(after.quarantine.file)))
    table = table.filter(pc.equal(table["reason"], "duplicate_id"))
    assert [tuple(row.values()) for row in table.select(["doc_id", "input_file", "row"]).to_pylist()] == [
        ("d2", "a.parquet", 3), ("d11", "b.jsonl", None), ("d31", "e.parquet", 2),
    ]  # fmt: skip
    assert [member.num_quarantined for member in after.members or ()] == [2, 2, 0, 2, 0]
    assert sum(member.num_tokens for member in after.members or ()) == after.num_tokens
    again = without_rows(store, after, np.array([7]), run_id="now", with_text=False)
    assert again.quarantine is not None
    last = pq.read_table(pa.BufferReader(store.read(again.quarantine.file))).slice(6).to_pylist()
    assert [(row["doc_id"], row["input_file"], row["row"]) for row in last] == [("d32", "e.parquet", 3)]
    # Published beside what is carried, it is sound.
    parent = latest(store)
    assert parent is not None
    [other] = [record for record in embedded[2] if not record.members]
    config = {"encoder": parent.encoder, "config": parent.config, "keep": parent.keep}
    fps = {"encoder_fp": parent.encoder_fp, "shard_fp": parent.shard_fp}
    publish(store, publication(parent, [again], carried=[other.file_id], **config, **fps))
    findings = verify(store).findings
    assert all("duplicate_id" in finding for finding in findings), "no earlier row holds those ids: they were not"


def test_files_of_packs_stand_in_order(embedded: tuple[Job, Embedder, list[Record]], store: Storage) -> None:
    """Whether they are new or carried."""
    snapshot = open_snapshot(store.uri)
    records = embedded[2]
    shards, splits = snapshot.shards.cast(SHARDS_SCHEMA), snapshot.splits.cast(SPLITS_SCHEMA)
    carried = coming_splits([], splits, shards)
    new = coming_splits(records, splits.slice(0, 0), shards.slice(0, 0))
    for name in ("file", "rank", "files"):
        assert carried[name].to_pylist() == new[name].to_pylist()
    assert new["rank"].to_pylist() == [0, 2]
    assert [[file["rank"] for file in files] if files else None for files in new["files"].to_pylist()] == [
        [0, 1, 3, 4, 5],
        None,
    ]
    assert [record.file_uri for record in records if record.split_id == new["split_id"][0].as_py()] == ["a.parquet"]
    assert find_duplicates(store, new, has_vanished=False).num == 0


def test_of_an_id_the_first_file_counts_also_between_the_files_of_a_pack(model: Path, tmp_path: Path) -> None:
    """Whatever is packed with what: else a file's place would depend on when it came."""
    job = make_job(tmp_path, model)
    job.config["splits"] = {"max_rows": 400}
    files = {
        "a.jsonl": make_rows(2),
        "b.parquet": make_rows(30, begin=50),
        "c.jsonl": [*make_rows(1), *make_rows(1, begin=50)],
    }
    records = Embedder(job, packs=True).publish(files)
    found = find_duplicates(
        job.store, coming_splits(records, SPLITS_SCHEMA.empty_table(), SHARDS_SCHEMA.empty_table()), has_vanished=True
    )
    [pack] = [record for record in records if record.members]
    assert {split_id: rows.tolist() for split_id, rows in found.rows.items()} == {pack.split_id: [2, 3]}
