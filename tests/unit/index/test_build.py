from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, LimitError, StorageFault, StoreError
from pipeline.index.build import build
from pipeline.index.description import read_description
from pipeline.index.files import read_file, read_quantizer
from pipeline.index.finished import Built
from pipeline.index.layout import DELETED_SCHEMA, DIRECTORY_SCHEMA
from pipeline.index.panel import parse_panel
from pipeline.index.prepare import Queries, in_process
from pipeline.index.shards import shards_of
from pipeline.snapshots.reader import Snapshot
from pipeline.uris import Storage
from tests.snapshots import index_settings, make_snapshot
from tests.vectors import clustered

VECTORS = clustered(1000, 16)


@pytest.fixture(autouse=True)
def _small_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.index.prepare.NUM_QUERIES", 60)


def snapshot_in(folder: Path, vectors: npt.NDArray[np.float32] = VECTORS, **how: Any) -> Snapshot:
    return make_snapshot(Storage(str(folder)), np.array_split(vectors, 3), **how)


def check_index(snapshot: Snapshot, built: Built) -> None:
    """Row addresses equal the snapshot's, each once (or as often as a row has lists); files are as index.json says."""
    storage = snapshot.storage
    found = read_description(storage, built.file.file, built.file.checksum)
    assert found == built.description
    quantizer = read_quantizer(storage, found.centroids, found.quantizer_fp)
    quantizer.check_golden(found.golden, built.file.file)
    directory = read_file(storage, found.lists, DIRECTORY_SCHEMA)
    assert read_file(storage, found.deleted, DELETED_SCHEMA).num_rows == 0
    expected = [(shard.ordinal << 32) + row for shard in shards_of(snapshot) for row in range(shard.num_rows)]
    addresses, num_groups = [], 0
    for part in found.parts:
        data = storage.read(part.codes.file)
        assert len(data) == part.codes.size
        addresses += pq.read_table(pa.BufferReader(storage.read(part.addresses.file)))["row_address"].to_pylist()
        mine = directory.filter(pa.compute.equal(directory["part"], part.part))
        assert sum(mine["num_rows"].to_pylist()) == part.num_rows == pq.read_metadata(pa.BufferReader(data)).num_rows
        num_groups += part.num_groups
    assert num_groups == directory.num_rows
    assert sorted(addresses) == sorted(expected * min(found.lists_per_row, found.nlist))
    panel, truth = parse_panel(pq.read_table(pa.BufferReader(storage.read(found.panel.file))))
    assert (
        len(panel) == len(truth.addresses) == found.measured.num_queries + found.measured.num_choosing
        or len(panel) == 1
    )


@pytest.mark.parametrize(
    ("codec", "lists_per_row"), [("auto", 1), ("float16", 2), ("sq8", 1), ("sq8", 2), ("rabitq", 1), ("rabitq", 2)]
)
def test_an_index_holds_each_row_and_its_json_tells_all(codec: str, lists_per_row: int, tmp_path: Path) -> None:
    snapshot = snapshot_in(tmp_path)
    nlist: Any = "auto" if codec == "auto" else 20
    built = build(snapshot, index_settings(codec=codec, nlist=nlist), lists_per_row=lists_per_row)
    check_index(snapshot, built)
    found = built.description
    assert built.file.file == f"indexes/{found.index_id}/index.json"
    assert found.codec == ("float16" if codec == "auto" else codec)
    assert found.measured.source == "documents"
    assert found.keep == {"lang": "string", "year": "int32"}
    chosen = next(
        row for row in found.measured.table if (row.nprobe, row.rerank) == (found.search.nprobe, found.search.rerank)
    )
    assert chosen.recall_at_10 >= 0.95


@pytest.mark.parametrize("num", [1, 2, 30])
@pytest.mark.parametrize("codec", ["auto", "sq8", "rabitq"])
def test_a_corpus_of_few_rows_is_indexed(num: int, codec: str, tmp_path: Path) -> None:
    snapshot = make_snapshot(Storage(str(tmp_path)), [VECTORS[:num]])
    check_index(snapshot, build(snapshot, index_settings(codec=codec)))


@pytest.mark.parametrize("codec", ["auto", "sq8", "rabitq"])
def test_rows_that_are_all_equal_are_indexed(codec: str, tmp_path: Path) -> None:
    snapshot = snapshot_in(tmp_path, np.repeat(VECTORS[:1], 900, 0))
    built = build(snapshot, index_settings(codec=codec, nlist=4))
    check_index(snapshot, built)
    assert built.description.measured.table[-1].recall_at_10 == 1.0


def test_duplicate_vectors_are_no_loss_of_recall(tmp_path: Path) -> None:
    snapshot = snapshot_in(tmp_path, np.repeat(VECTORS[:40], 30, 0))
    built = build(snapshot, index_settings(codec="sq8", nlist=10))
    check_index(snapshot, built)
    assert built.description.measured.table[-1].recall_at_10 > 0.99


def test_vectors_of_more_than_4096_values_are_indexed(tmp_path: Path) -> None:
    snapshot = make_snapshot(Storage(str(tmp_path)), [clustered(40, 5000)])
    for codec in ("auto", "sq8"):
        check_index(snapshot, build(snapshot, index_settings(codec=codec)))


def test_an_empty_snapshot_is_refused_with_a_sentence(tmp_path: Path) -> None:
    empty = make_snapshot(Storage(str(tmp_path)), [VECTORS[:0]])
    with pytest.raises(InputError, match="the snapshot has no rows"):
        build(empty, index_settings())


class Counting:
    """Runs tasks one after the other, and tells how many of each stage."""

    def __init__(self, fail_at: str | None = None) -> None:
        self.ran: dict[str, int] = {}
        self.fail_at = fail_at

    def __call__(self, stage: str, call: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        for number, item in enumerate(items):
            if stage == self.fail_at and number == len(items) - 1:
                raise StorageFault("killed")
            self.ran[stage] = self.ran.get(stage, 0) + 1
            yield call(item)


@pytest.mark.parametrize("stage", ["sample", "assign", "merge", "measure"])
def test_a_run_that_was_killed_goes_on_and_finishes_nothing_twice(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.index.assign.GROUP_BYTES", 1)
    monkeypatch.setattr("pipeline.index.merge._MIN_PART_BYTES", 20_000)
    monkeypatch.setattr("pipeline.index.merge._MAX_PART_BYTES", 20_000)
    settings = index_settings(codec="sq8", nlist=20)
    clean = Counting()
    expected = build(snapshot_in(tmp_path / "clean"), settings, run=clean).description
    assert min(clean.ran.values()) > 1
    snapshot = snapshot_in(tmp_path / "killed")
    killed, second = Counting(fail_at=stage), Counting()
    with pytest.raises(StorageFault):
        build(snapshot, settings, run=killed)
    built = build(snapshot, settings, run=second)
    check_index(snapshot, built)
    assert built.description.measured == expected.measured
    for done in ("assign", "merge"):
        assert killed.ran.get(done, 0) + second.ran.get(done, 0) == clean.ran[done]
    third = Counting()
    again = build(snapshot, settings, run=third)
    assert (again.file, third.ran) == (built.file, {}), "what is there is taken as it is"


@pytest.mark.parametrize("kind", ["codes", "addresses"])
@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_a_part_that_was_damaged_before_it_was_measured_is_told_and_its_deletion_the_way_out(
    kind: str, damage: str, tmp_path: Path
) -> None:
    snapshot = snapshot_in(tmp_path)
    settings = index_settings(codec="sq8", nlist=20)
    with pytest.raises(StorageFault):
        build(snapshot, settings, run=Counting(fail_at="measure"))
    [path] = tmp_path.glob(f"indexes/*/{kind}/part-0-*")
    data = bytearray(path.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data if damage == "changed" else data[:-9])
    again = Counting()
    if damage == "changed":  # found by its checksum alone
        with pytest.raises(StoreError, match=f"damaged: .*{kind}/part-0-.*; delete it, then `vecmill index CONFIG`"):
            build(snapshot, settings, run=again)
        assert "merge" not in again.ran
        path.unlink()
    built = build(snapshot, settings, run=again)
    check_index(snapshot, built)
    assert again.ran["merge"] == 1
    assert "assign" not in again.ran


@pytest.mark.parametrize("name", ["centroids.parquet", "rotation.parquet", "work/panel.parquet"])
@pytest.mark.parametrize("damage", ["cut", "empty"])
def test_what_a_killed_build_trained_is_named_if_damaged_and_its_deletion_the_way_out(
    damage: str, name: str, tmp_path: Path
) -> None:
    snapshot, settings = snapshot_in(tmp_path), index_settings(codec="rabitq", nlist=20)
    with pytest.raises(StorageFault):
        build(snapshot, settings, run=Counting(fail_at="measure"))
    [path] = tmp_path.glob(f"indexes/*/{name}")
    path.write_bytes(path.read_bytes()[:200] if damage == "cut" else b"")
    with pytest.raises(StoreError, match=f"damaged: .*({name}|centroids.parquet).*; delete it, then `vecmill index"):
        build(snapshot, settings)
    path.unlink()
    if name == "rotation.parquet":
        (path.parent / "centroids.parquet").unlink()
    check_index(snapshot, build(snapshot, settings))


def test_a_refused_index_is_published_once_the_target_is_lower_without_new_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.index.choose._EXACT_BYTES", 0)
    snapshot = snapshot_in(tmp_path, clustered(1000, 16, spread=2))
    with pytest.raises(LimitError, match="does not reach index.recall_target 1.0"):
        build(snapshot, index_settings(codec="sq8", nlist=30, recall_target=1.0))
    assert not [info.name for info in snapshot.storage.scan("indexes") if info.name.endswith("index.json")]
    run = Counting()
    first = build(snapshot, index_settings(codec="sq8", nlist=30, recall_target=0.3), run=run)
    assert set(run.ran) == {"measure"}
    other = build(snapshot, index_settings(codec="sq8", nlist=30, recall_target=0.4), run=run)
    assert set(run.ran) == {"measure"}
    assert other.description.parts == first.description.parts
    assert other.file.file != first.file.file, "an index.json that was put is never put again"
    assert build(snapshot, index_settings(codec="sq8", nlist=30, recall_target=0.3)).file == first.file


def test_no_object_is_put_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = snapshot_in(tmp_path)
    put: list[str] = []
    for method in ("put", "put_if_absent"):
        real = getattr(Storage, method)

        def spy(self: Storage, name: str, data: bytes, real: Callable[..., Any] = real) -> Any:
            put.append(name)
            return real(self, name, data)

        monkeypatch.setattr(Storage, method, spy)
    built = build(snapshot, index_settings(codec="rabitq", nlist=10))
    assert len(set(put)) == len(put)
    assert put[-1] == built.file.file, "index.json comes last"


def test_work_files_that_were_changed_are_found_before_anything_is_published(tmp_path: Path) -> None:
    snapshot = snapshot_in(tmp_path)

    def lose_a_shard(stage: str, call: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        found = list(in_process(stage, call, items))
        if stage == "merge":
            ref = found[0].ref
            object.__setattr__(found[0], "ref", ref.model_copy(update={"num_rows": ref.num_rows - 1}))
        return found

    with pytest.raises(StoreError, match=r"1000 rows of the snapshot, 999 in the parts"):
        build(snapshot, index_settings(), run=lose_a_shard)


def test_recall_of_given_queries_is_told_as_such(tmp_path: Path) -> None:
    snapshot = snapshot_in(tmp_path, texts=True)
    given = Queries(("a", "b", "c"), lambda texts: clustered(len(texts), 16, seed=3))
    measured = build(snapshot, index_settings(codec="sq8", nlist=10), given).description.measured
    assert (measured.source, measured.num_queries, measured.num_choosing) == ("queries", 1, 2)
    words = build(snapshot, index_settings(), Queries(None, lambda texts: clustered(len(texts), 16, seed=3)))
    assert words.description.measured.source == "words"


def test_a_kept_shard_whose_ids_are_gone_is_named(tmp_path: Path) -> None:
    snapshot = snapshot_in(tmp_path)
    name = shards_of(snapshot)[1].file
    (tmp_path / name).unlink()
    with pytest.raises(StoreError, match=f"{name} is missing from the store"):
        build(snapshot, index_settings())


def test_a_kept_column_that_is_dictionary_encoded_is_kept_as_what_it_stands_for(tmp_path: Path) -> None:
    snapshot = snapshot_in(tmp_path, lang=pa.dictionary(pa.int32(), pa.string()))
    assert pa.types.is_dictionary(snapshot.schema.field("lang").type)
    built = build(snapshot, index_settings())
    (part,) = built.description.parts
    rows = pq.read_table(pa.BufferReader(snapshot.storage.read(part.codes.file)))
    assert rows.schema.field("lang").type == pa.string()
    numbers = [int(doc_id[1:]) for doc_id in rows["doc_id"].to_pylist()]
    assert rows["lang"].to_pylist() == [("de", "en", None)[number % 3] for number in numbers]


def test_names_that_gc_has_doomed_are_not_put_again(tmp_path: Path) -> None:
    """Whoever comes next deletes them once more: what was built there would be gone."""
    snapshot = snapshot_in(tmp_path)
    settings = index_settings(codec="sq8", nlist=20)
    first = build(snapshot, settings)
    victims = tuple(info.name for info in snapshot.storage.scan("indexes"))
    for name in victims:
        (tmp_path / name).unlink()
    doomed = Snapshot(snapshot.storage, snapshot.manifest.model_copy(update={"victims": victims}))
    second = build(doomed, settings)
    assert second.description.index_id != first.description.index_id
    names = {second.file.file, *(file.file for file in second.description.files())}
    assert names.isdisjoint(victims)
    check_index(doomed, second)


def test_an_index_of_equal_rows_whose_table_is_gone_is_built_anew(tmp_path: Path) -> None:
    snapshot = snapshot_in(tmp_path)
    settings = index_settings(codec="sq8", nlist=20)
    first = build(snapshot, settings)
    table = snapshot.manifest.shards
    other = table.model_copy(update={"file": "snapshots/2.shards.parquet"})
    (tmp_path / table.file).rename(tmp_path / other.file)
    second = build(Snapshot(snapshot.storage, snapshot.manifest.model_copy(update={"shards": other})), settings)
    assert second.description.shards == other
    assert second.file.file != first.file.file


@pytest.mark.parametrize("end", ["gone", "cut"])
@pytest.mark.parametrize("suffix", ["-near.parquet", ".arrows"])
def test_an_intermediate_that_lost_a_file_is_assigned_again(suffix: str, end: str, tmp_path: Path) -> None:
    snapshot = snapshot_in(tmp_path)
    settings = index_settings(codec="sq8", nlist=20)
    with pytest.raises(StorageFault):
        build(snapshot, settings, run=Counting(fail_at="measure"))
    [path] = tmp_path.glob(f"indexes/*/work/assign/*{suffix}")
    data = path.read_bytes()
    path.unlink()
    if end == "cut":
        path.write_bytes(data[:-9])
    again = Counting()
    check_index(snapshot, build(snapshot, settings, run=again))
    assert again.ran["assign"] == 1


def test_a_directory_left_by_a_killed_build_is_not_taken_without_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = snapshot_in(tmp_path)
    settings = index_settings(codec="sq8", nlist=20)

    def killed(*_: object) -> None:
        raise StorageFault("killed")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.index.build._put_description", killed)
        with pytest.raises(StorageFault):
            build(snapshot, settings)
    [path] = tmp_path.glob("indexes/*/codes/part-0-*")
    path.unlink()
    with pytest.raises(StoreError, match=r"missing or cut: .*codes/part-0-.*lists\.parquet names; delete that"):
        build(snapshot, settings)
    next(tmp_path.glob("indexes/*/lists.parquet")).unlink()
    check_index(snapshot, build(snapshot, settings))


@pytest.mark.parametrize("codec", ["float16", "sq8"])
def test_where_all_rows_are_of_the_querys_document_only_what_reads_all_counts(codec: str, tmp_path: Path) -> None:
    snapshot = make_snapshot(Storage(str(tmp_path)), [clustered(600, 16)], num_chunks=600)
    built = build(snapshot, index_settings(codec=codec, nlist=20, recall_target=1.0))
    assert built.description.search.nprobe == 20
    assert all(row.recall_at_10 == (row.read_ratio >= 1) for row in built.description.measured.table)
