"""where: a document by its id, in whatever snapshot, embedded or quarantined, with the row it came from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import exit_code, vecmill
from pipeline.errors import StoreError, UsageError
from pipeline.snapshots.gc import collect
from pipeline.snapshots.reader import open_snapshot
from pipeline.uris import Storage
from pipeline.where import find_document
from tests.corpus import Job, jsonl_bytes, make_rows
from tests.embedded import Embedder, make_job
from tests.models import make_model


def bad_rows(num: int) -> bytes:
    """A Parquet file in which every fifth row has no text."""
    rows = [row | {"title": " ", "body": ""} if number % 5 == 0 else row for number, row in enumerate(make_rows(num))]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def own(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Ids of their own; two snapshots, of which the second has a file less."""
    job = make_job(tmp_path_factory.mktemp("own"), model, text="{title}{body}")
    embedder = Embedder(job)
    lines = jsonl_bytes(make_rows(3, begin=50)) + b'{"id": 5, "title": null}\n' + jsonl_bytes(make_rows(3, begin=60))
    embedder.publish({"a.parquet": bad_rows(30), "b.jsonl": lines, "c.jsonl": make_rows(4, begin=90)})
    job.corpus.delete(["c.jsonl"])
    embedder.publish({})
    return job


@pytest.fixture(scope="module")
def derived(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = make_job(tmp_path_factory.mktemp("derived"), model, id=None)
    Embedder(job).publish({"a.parquet": make_rows(30), "b.jsonl": jsonl_bytes(make_rows(2)) + b"{\n"})
    return job


@pytest.mark.parametrize("number", [1, 4, 6, 19, 21, 29])
def test_the_row_of_parquet_is_told_though_shards_do_not_keep_it(own: Job, number: int) -> None:
    [place] = find_document(own.store, f"d{number}").places
    begin = number // 15 * 15  # equal parts of up to 20 rows
    assert (place["input_file"], place["row"], place["state"]) == ("a.parquet", number, "embedded")
    assert (place["begin"], place["end"]) == (begin, begin + 15)
    snapshot = open_snapshot(own.store.uri)
    [address] = place["row_addresses"]
    file = dict(zip(snapshot.shards["ordinal"].to_pylist(), snapshot.shards["file"].to_pylist(), strict=True))
    assert file[address >> 32] == place["shard"]
    shard = pq.read_table(pa.BufferReader(own.store.read(place["shard"]))).slice(address & 0xFFFFFFFF, 1).to_pylist()[0]
    assert shard["doc_id"] == f"d{number}"
    assert place["content_hash"] == shard["content_hash"].hex()
    assert (place["num_tokens"], place["num_chunks"]) == ([shard["num_tokens"]], 1)


def test_of_lines_with_their_own_ids_the_range_and_the_position_are_told(own: Job) -> None:
    [place] = find_document(own.store, "d61").places
    assert (place["input_file"], place["row"], place["position"], place["rows"]) == ("b.jsonl", None, 4, [4])


def test_what_is_in_quarantine_is_told_with_its_reason(own: Job) -> None:
    found = find_document(own.store, "d5")
    [place] = found.places
    assert (place["state"], place["stage"], place["reason"], place["row"]) == ("quarantined", "read", "empty_text", 5)
    assert place["quarantine_file"].startswith("quarantine/")
    assert [snapshot["state"] for snapshot in found.snapshots] == ["quarantined"] * 2


def test_which_snapshots_hold_it(own: Job) -> None:
    def holders(doc_id: str) -> list[int]:
        return [snapshot["snapshot_id"] for snapshot in find_document(own.store, doc_id).snapshots]

    assert holders("d1") == [2, 1]
    assert holders("d90") == [1], "its file is gone since"


def test_a_derived_id_tells_its_row_and_opens_only_what_may_hold_it(
    derived: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = Storage.open

    def note(self: Storage, name: str) -> object:
        opened.append(name)
        return real(self, name)

    monkeypatch.setattr(Storage, "open", note)
    [place] = find_document(derived.store, "a.parquet#25").places
    assert (place["row"], place["position"], place["begin"]) == (25, 5, 20)
    assert set(opened) == {place["shard"]}
    second = len(jsonl_bytes(make_rows(1)))
    [line] = find_document(derived.store, f"b.jsonl#{second}").places
    assert (line["input_file"], line["row"], line["state"]) == ("b.jsonl", second, "embedded")
    third = len(jsonl_bytes(make_rows(2)))
    [bad] = find_document(derived.store, f"b.jsonl#{third}").places
    assert (bad["state"], bad["reason"]) == ("quarantined", "invalid_json")


def test_an_own_id_that_looks_derived_is_found_all_the_same(model: Path, tmp_path: Path) -> None:
    job = make_job(tmp_path, model)
    rows = make_rows(3)
    rows[1]["id"] = "a.jsonl#0"
    rows[2]["id"] = "z.jsonl#99"
    Embedder(job).publish({"a.jsonl": rows})
    [place] = find_document(job.store, "a.jsonl#0").places
    assert (place["position"], place["row"]) == (1, None), "it is not at byte 0"
    assert find_document(job.store, "z.jsonl#99").places[0]["position"] == 2


def test_not_found_and_not_readable(own: Job, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not found: 'nobody' .* of snapshots 2, 1"):
        find_document(own.store, "nobody")

    shutil.copytree(own.store.uri, tmp_path / "store")
    store = Storage(str(tmp_path / "store"))
    store.delete([find_document(store, "d1").places[0]["shard"]])
    with pytest.raises(StoreError, match="missing from the store: .*vecmill verify"):
        find_document(store, "d1")


def test_snapshots_that_gc_dropped_are_left_out(own: Job, tmp_path: Path) -> None:

    shutil.copytree(own.store.uri, tmp_path / "store")
    store = Storage(str(tmp_path / "store"))
    collect(store, "gc", keep=1, everything=False, ended_runs=set())
    assert [snapshot["snapshot_id"] for snapshot in find_document(store, "d1").snapshots] == [3, 2]
    with pytest.raises(UsageError, match="not found"):
        find_document(store, "d90")


def test_the_command(own: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(vecmill, ["where", own.store.uri, "d61"]) == 0
    told = capsys.readouterr().out
    assert "b.jsonl" in told
    assert "not known" in told
    assert exit_code(vecmill, ["where", own.config_path, "d1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["places"][0]["row"] == 1
    assert exit_code(vecmill, ["where", own.store.uri, "nobody"]) == 2
    assert "not found" in capsys.readouterr().err
