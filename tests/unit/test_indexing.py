"""The index job without Ray: what is published, what is gone on with, and who gives way to whom."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import pipeline.indexing
from pipeline.config import Config
from pipeline.errors import ConflictError, LimitError, StoreError, UsageError
from pipeline.index.description import IndexDescription, read_description
from pipeline.indexing import index
from pipeline.snapshots.commit import publish_index
from pipeline.snapshots.lease import Lease, new_run_id, read_runs
from pipeline.snapshots.manifest import Manifest, latest, manifest_name, manifest_numbers
from pipeline.snapshots.reader import Snapshot
from pipeline.snapshots.store import open_store
from pipeline.uris import Storage
from tests.corpus import make_config, run_command
from tests.snapshots import make_snapshot
from tests.stores import Killed
from tests.vectors import clustered

VECTORS = clustered(400, 16)


class InProcess:
    """A session whose tasks run here; tells how many of each stage, and may do something before one."""

    def __init__(self) -> None:
        self.ran: dict[str, int] = {}
        self.before: Callable[[str], None] = lambda stage: None

    def run(
        self,
        stage: str,
        call: Callable[[Any], Any],
        items: Sequence[Any],
        tell: Callable[[Mapping[str, Any]], None],
    ) -> Iterator[Any]:
        for item in items:
            self.before(stage)
            found = call(item)
            self.ran[stage] = self.ran.get(stage, 0) + 1
            tell({"stage": stage})
            yield found


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    session = InProcess()
    monkeypatch.setattr(pipeline.indexing._Run, "_connect", lambda run, stack: session)
    return session


@pytest.fixture(autouse=True)
def _several_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.index.prepare.NUM_QUERIES", 40)
    monkeypatch.setattr("pipeline.index.assign.GROUP_BYTES", 1)
    monkeypatch.setattr("pipeline.index.merge._MIN_PART_BYTES", 12_000)
    monkeypatch.setattr("pipeline.index.merge._MAX_PART_BYTES", 12_000)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # processes are killed here, not machines


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    """A store with a snapshot of three shards."""
    storage = Storage(str(tmp_path / "store"))
    open_store(storage, "/corpus", create=True)
    publish_snapshot(storage)
    return storage


def publish_snapshot(storage: Storage, **changes: Any) -> Manifest:
    """The next manifest, of the same rows but for what is changed."""
    parent = latest(storage)
    if parent is None:
        manifest = make_snapshot(storage, np.array_split(VECTORS, 3)).manifest
    else:
        number = parent.snapshot_id + 1
        manifest = parent.model_copy(update={"snapshot_id": number, "parent_id": parent.snapshot_id, "kind": "embed"})
    manifest = manifest.model_copy(update={"commit_id": f"c{manifest.snapshot_id}"} | changes)
    assert storage.put_if_absent(manifest_name(manifest.snapshot_id), manifest.to_json())
    return manifest


def _embed(storage: Storage) -> None:
    publish_snapshot(storage)


def config_of(storage: Storage, **changes: Any) -> Config:
    return Config.model_validate(
        make_config("/corpus", storage.uri, "model", index={"codec": "sq8", "nlist": 8} | changes)
    )


def current(storage: Storage) -> Manifest:
    found = latest(storage)
    assert found is not None
    return found


def description_of(storage: Storage) -> IndexDescription:
    ref = current(storage).index
    assert ref is not None
    return read_description(storage, ref.file, ref.checksum)


def rows_of(storage: Storage) -> dict[int, list[int]]:
    """Row addresses by part."""
    return {
        part.part: pq.read_table(pa.BufferReader(storage.read(part.addresses.file)))["row_address"].to_pylist()
        for part in description_of(storage).parts
    }


def test_an_index_is_published_as_a_complete_manifest(store: Storage, session: InProcess) -> None:
    before = current(store)
    outcome = index(config_of(store))
    manifest = current(store)
    assert (outcome["snapshot_id"], outcome["published"], manifest.snapshot_id) == (2, True, 2)
    assert (manifest.kind, manifest.parent_id, manifest.run_id) == ("index", 1, outcome["run_id"])
    for name in ("shards", "splits", "encoder", "encoder_fp", "keep", "accounting", "config", "next_ordinal"):
        assert getattr(manifest, name) == getattr(before, name), name
    assert manifest.index is not None
    assert manifest.index.snapshot_id == 1
    found = description_of(store)
    assert found.shards == manifest.shards
    assert (outcome["codec"], outcome["nlist"], outcome["num_rows"], outcome["queries"]) == ("sq8", 8, 400, "documents")
    assert outcome["recall_at_10"] == found.recall.recall_at_10 >= 0.95
    assert [run.state for run in read_runs(store)] == ["finished"]


def test_a_second_run_has_nothing_to_do_and_needs_no_ray(
    store: Storage, session: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = index(config_of(store))
    monkeypatch.setattr(pipeline.indexing._Run, "_connect", lambda *args: pytest.fail("Ray was started"))
    publish_snapshot(store, kind="gc", victims=("x",))
    # A gc takes what a finished build leaves of its work.
    folder = description_of(store).index_id
    store.delete([info.name for info in store.list(f"indexes/{folder}/work")])
    again = index(config_of(store))
    assert (again["published"], again["snapshot_id"]) == (False, 3)
    assert {key: again[key] for key in ("index_id", "recall_at_10")} == {
        key: first[key] for key in ("index_id", "recall_at_10")
    }


def test_other_settings_are_another_index(store: Storage, session: InProcess) -> None:
    first = index(config_of(store))
    second = index(config_of(store, nlist=10))
    assert (second["published"], second["nlist"], second["snapshot_id"]) == (True, 10, 3)
    assert first["index_id"] != second["index_id"]
    back = index(config_of(store))
    assert (back["published"], back["index_id"]) == (True, first["index_id"]), "published anew, not built anew"


def count_puts(monkeypatch: pytest.MonkeyPatch, dies_at: int | None, *, after: bool = False) -> list[str]:
    """Names of what is put in indexes and snapshots, from here on; the process dies at one of them."""
    names: list[str] = []
    for method in ("put", "put_if_absent"):
        real = getattr(Storage, method)

        def put(self: Storage, name: str, data: bytes, real: Callable[..., Any] = real) -> Any:
            if name.startswith("runs/"):  # the lease of a process that lives on would stay held
                return real(self, name, data)
            names.append(name)
            if dies_at is None or len(names) <= dies_at:
                return real(self, name, data)
            if after and len(names) == dies_at + 1:
                real(self, name, data)
            raise Killed

        monkeypatch.setattr(Storage, method, put)
    return names


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_put_the_same_command_gives_what_a_clean_run_gives(
    after: bool, store: Storage, session: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = tmp_path / "fresh"
    shutil.copytree(store.uri, fresh)
    with monkeypatch.context() as patch:
        names = count_puts(patch, None)
        index(config_of(store))
    expected, clean = description_of(store), dict(session.ran)
    assert min(clean[stage] for stage in ("sample", "assign", "merge", "measure")) > 1
    for dies_at in range(len(names)):
        copy = Storage(str(tmp_path / f"store{dies_at}"))
        shutil.copytree(fresh, copy.uri)
        session.ran = {}
        with monkeypatch.context() as patch:
            count_puts(patch, dies_at, after=after)
            with pytest.raises(Killed):
                index(config_of(copy))
        is_published = current(copy).index is not None
        assert is_published == (after and dies_at == len(names) - 1)
        killed, session.ran = session.ran, {}
        assert index(config_of(copy))["published"] is not is_published
        found = description_of(copy)
        assert (found.index_id, found.quantizer_fp, found.measured) == (
            *(expected.index_id, expected.quantizer_fp, expected.measured),
        )
        assert rows_of(copy) == rows_of(store)
        for stage in ("assign", "merge"):
            # A task that put its record counts as done, though its process died before it could say so.
            done = killed.get(stage, 0) + (
                after and stage in names[dies_at] and names[dies_at].endswith(_RECORD[stage])
            )
            assert done + session.ran.get(stage, 0) == clean[stage], names[dies_at]
        shutil.rmtree(copy.uri)


_RECORD = {"assign": ".json", "merge": ".parquet"}


@pytest.mark.parametrize("stage", ["assign", "measure"])
def test_an_embed_that_publishes_meanwhile_wins(stage: str, store: Storage, session: InProcess) -> None:
    def embed_once(now: str) -> None:
        if now == stage and current(store).snapshot_id == 1:
            publish_snapshot(store)

    session.before = embed_once
    with pytest.raises(ConflictError, match=r"published snapshot 2 \(embed\) first; nothing was published here"):
        index(config_of(store))
    assert (current(store).snapshot_id, current(store).index) == (2, None)


def test_a_gc_that_comes_meanwhile_is_built_upon_unless_it_deletes_what_is_needed(
    store: Storage, session: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    doomed: list[str] = []

    def collect_once(stage: str) -> None:
        if stage == "measure" and current(store).kind != "gc":
            publish_snapshot(store, kind="gc", victims=("embeddings/x", *doomed))

    session.before = collect_once
    assert index(config_of(store))["snapshot_id"] == 3
    assert current(store).victims == ("embeddings/x",)
    doomed += [part.codes.file for part in description_of(store).parts]
    # The same index is found, and published on top of a manifest that has none.
    publish_snapshot(store, index=None)
    session.before = lambda stage: None
    number = current(store).snapshot_id

    def late(*args: Any) -> Manifest:
        publish_snapshot(store, kind="gc", victims=tuple(doomed))
        return publish_index(*args)

    monkeypatch.setattr("pipeline.indexing.publish_index", late)
    with pytest.raises(ConflictError, match="is deleting files of this run"):
        index(config_of(store))
    assert (current(store).snapshot_id, current(store).index) == (number + 1, None)


def test_what_a_killed_gc_has_doomed_is_not_gone_on_with(store: Storage, session: InProcess) -> None:
    """It would be deleted by the next gc, under the index that lists it."""
    index(config_of(store))
    names = [info.name for info in store.list("indexes")]
    publish_snapshot(store, kind="gc", index=None, victims=tuple(names))
    session.ran = {}
    assert index(config_of(store))["published"]
    assert set(session.ran) == {"sample", "assign", "merge", "measure"}
    listed = {file.file for file in description_of(store).files()}
    assert not {name for name in listed if "/part-" in name} & set(names)


def test_below_the_target_nothing_is_published_and_work_is_kept(
    store: Storage, session: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.index.choose._EXACT_BYTES", 0)
    with pytest.raises(LimitError, match="does not reach index.recall_target 1.0"):
        index(config_of(store, nlist=40, recall_target=1.0))
    assert current(store).snapshot_id == 1
    session.ran = {}
    outcome = index(config_of(store, nlist=40, recall_target=0.3))
    assert outcome["published"]
    assert set(session.ran) == {"measure"}


def test_an_index_that_lost_a_file_is_built_anew_beside_what_is_left(store: Storage, session: InProcess) -> None:
    first = index(config_of(store))
    lost = description_of(store).parts[1].codes.file
    store.delete([lost])
    session.ran = {}
    second = index(config_of(store))
    assert second["published"]
    assert second["index_id"] != first["index_id"]
    assert session.ran["merge"] > 1
    assert not store.exists(lost), "nothing that a manifest listed is written again"
    assert index(config_of(store))["published"] is False
    ref = current(store).index
    assert ref is not None
    store.delete([ref.file])
    assert index(config_of(store))["published"]


def test_given_queries_go_through_the_snapshots_encoder(
    store: Storage, session: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Encoder:
        def __init__(self, manifest: Manifest, *args: Any) -> None:
            seen.append(manifest.snapshot_id)

        def encode(self, texts: Sequence[str]) -> Any:
            seen.append(list(texts))
            return clustered(len(texts), 16, seed=5)

    monkeypatch.setattr("pipeline.search.QueryEncoder", Encoder)
    path = tmp_path / "queries.jsonl"
    path.write_text("".join(json.dumps({"id": n, "text": f"query {n}"}) + "\n" for n in range(20)))
    outcome = index(config_of(store, queries=str(path)))
    assert outcome["queries"] == "queries"
    assert seen == [1, [f"query {number}" for number in range(20)]]
    assert index(config_of(store, queries=str(path)))["published"] is False
    assert len(seen) == 2, "the encoder is not loaded to do nothing"


def test_queries_that_are_none_are_told_before_work(store: Storage, session: InProcess, tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    with pytest.raises(UsageError, match="queries cannot be read: .*queries.jsonl"):
        index(config_of(store, queries=str(path)))
    path.write_text('{"id": 1}\n')
    with pytest.raises(UsageError, match="queries.jsonl:1 is no query"):
        index(config_of(store, queries=str(path)))
    assert read_runs(store) == []


def test_of_two_at_once_one_is_told(store: Storage, session: InProcess) -> None:
    with Lease(store, new_run_id()), pytest.raises(ConflictError, match="holds the store"):
        index(config_of(store))
    assert manifest_numbers(store) == [1]


def test_a_store_that_is_none_or_has_no_snapshot(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "store"))
    with pytest.raises(StoreError, match="no store at"):
        index(config_of(storage))
    open_store(storage, "/corpus", create=True)
    with pytest.raises(StoreError, match="no snapshot yet"):
        index(config_of(storage))
    assert read_runs(storage) == []


def test_the_command_prints_one_json_line_and_ends_with_its_code(
    store: Storage, session: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(make_config("/corpus", store.uri, "model")))
    ran = run_command("index", str(config), "index.codec=sq8", "index.nlist=8")
    assert ran.code == 0, ran.err
    assert len(ran.out.splitlines()) == 1
    assert {"snapshot_id", "published", "documents_in", "embedded", "reused", "seconds"} <= ran.outcome.keys()
    assert "published the index as snapshot 2" in ran.err
    ran = run_command("index", str(config), "index.codec=sq8", "index.nlist=8")
    assert (ran.code, ran.outcome["published"]) == (0, False)
    assert "nothing to do: snapshot 2 has this index" in ran.err
    session.before = lambda stage: _embed(store)
    monkeypatch.setattr("pipeline.index.choose._EXACT_BYTES", 0)
    ran = run_command("index", str(config), "index.codec=sq8", "index.nlist=40", "index.recall_target=1.0")
    assert (ran.code, ran.out) == (3, "")
    assert "set index.nlist=80" in ran.sentence
    ran = run_command("index", str(config), "index.codec=sq8", "index.nlist=41", "index.recall_target=0.3")
    assert (ran.code, ran.out) == (4, "")
    ran = run_command("index", str(config), "index.nlist=1000")
    assert (ran.code, ran.out) == (2, "")
    assert "index.nlist must be from 1 to the number of rows, 400" in ran.sentence


def test_what_readers_open_is_the_pair_that_the_manifest_names(store: Storage, session: InProcess) -> None:
    index(config_of(store))
    found = description_of(store)
    assert found.shards == Snapshot(store, current(store)).manifest.shards
