"""`vecmill benchmark index`: rows made as promised, usage of other processes alone, the arithmetic of the table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from jobs import benchmark, index_benchmark
from jobs.benchmark_peers import Unavailable, parse_peers
from jobs.index_benchmark import PEER_NAMES, make_task
from jobs.index_benchmark.contest import Result, build_alone, compete
from jobs.index_benchmark.figures import figures_of, table_of
from jobs.index_benchmark.ours import Ours, bytes_by_kind
from jobs.index_benchmark.peers import PEERS, Faiss
from jobs.index_benchmark.task import Built, Searcher, Setting, Task
from jobs.index_benchmark.usage import Usage, UsageWatch
from jobs.index_benchmark.vectors import blocks, link_store, make_rows
from pipeline.config import load_config
from pipeline.errors import UsageError, VecmillError
from pipeline.search import SearchableSnapshot
from pipeline.snapshots.manifest import manifest_name
from pipeline.snapshots.reader import Snapshot, open_snapshot
from pipeline.uris import Storage
from tests.indexed import VECTORS, make_indexed, stored


@pytest.fixture
def snapshot(tmp_path: Path) -> SearchableSnapshot:
    """1,500 rows in two shards, with an index."""
    return make_indexed(tmp_path / "store")


def config_of(folder: Path, store: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"input": {"uri": str(folder / "in")}, "store": {"uri": store}}))
    return path


def vectors_of(snapshot: Snapshot) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.concatenate([vectors for _, vectors in blocks(snapshot)])


def test_fewer_rows_are_real_ones_from_all_shards(snapshot: SearchableSnapshot, tmp_path: Path) -> None:
    made = make_rows(snapshot, tmp_path / "made", 300)
    assert made.shards["num_rows"].to_pylist() == [200, 100]
    cosines = vectors_of(made) @ stored(VECTORS).T
    assert (cosines.max(1) > 0.99999).all()
    assert len(set(cosines.argmax(1).tolist())) == 300


def test_more_rows_lie_as_far_from_real_ones_as_neighbours_do(snapshot: SearchableSnapshot, tmp_path: Path) -> None:
    made = make_rows(snapshot, tmp_path / "made", 4000)
    real, found = stored(VECTORS), vectors_of(made)
    assert made.manifest.accounting.chunks == len(found) == 4000
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert ((found[:1500] @ real.T).max(1) > 0.99999).all()
    nearest = np.sort(real @ real.T, axis=1)[:, -11:-1]
    moved = (found[1500:3000] * real).sum(1)
    assert (moved < 0.9999).mean() > 0.9
    assert abs(float(moved.mean()) - float(nearest.mean())) < 0.02


def test_made_rows_have_ids_of_their_own_and_are_the_same_every_time(
    snapshot: SearchableSnapshot, tmp_path: Path
) -> None:
    made = make_rows(snapshot, tmp_path / "made", 2000)
    doc_ids = made.dataset().to_table(columns=["doc_id"])["doc_id"].to_pylist()
    assert len(set(doc_ids)) == 2000
    again = make_rows(snapshot, tmp_path / "again", 2000)
    assert np.array_equal(vectors_of(made), vectors_of(again))  # seeded


def test_a_scratch_store_has_the_rows_and_no_index_and_leaves_the_real_one_alone(
    snapshot: SearchableSnapshot, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    link_store(snapshot, tmp_path / "scratch")
    scratch = open_snapshot(str(tmp_path / "scratch"))
    assert scratch.manifest.index is None
    assert scratch.shards.equals(snapshot.shards)
    assert scratch.dataset().count_rows() == 1500
    assert {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()} == before


def test_a_store_on_object_storage_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = make_indexed(tmp_path / "store")
    monkeypatch.setattr(Storage, "is_local", False)
    with pytest.raises(UsageError, match="needs a store on a local disk"):
        link_store(snapshot, tmp_path / "scratch")


def test_made_rows_are_no_reason_to_publish_nothing(snapshot: SearchableSnapshot, tmp_path: Path) -> None:
    config = load_config(config_of(tmp_path, snapshot.storage.uri))
    assert make_task(config, None, tmp_path).config.index.recall_target == 0.95
    task = make_task(config, 2000, tmp_path)
    assert task.config.index.recall_target < 0.001
    assert task.snapshot().manifest.accounting.chunks == 2000
    assert task.config.store.uri == str(tmp_path / "made")


@pytest.mark.parametrize("peers", ["pinecone", "faiss,x"])
def test_an_unknown_peer_is_named(peers: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(benchmark.main, ["index", "config.yaml", "--peers", peers])
    assert result.exit_code == 2
    assert "there are faiss, lancedb, hnswlib, autofaiss" in result.stderr


def test_peers_come_in_our_order() -> None:
    assert parse_peers("hnswlib, faiss", PEER_NAMES) == ["faiss", "hnswlib"]
    assert parse_peers("", PEER_NAMES) == []
    assert list(PEERS) == parse_peers(",".join(PEERS), PEER_NAMES)


def test_bytes_by_kind_are_all_bytes_of_the_index(snapshot: SearchableSnapshot) -> None:
    description = snapshot.index.description
    kinds = bytes_by_kind(snapshot, description)
    assert sum(kinds.values()) == sum(file.size for file in description.files())
    assert 16 <= kinds["code"] / 1500 < 18  # of 16 dimensions, and a page header a list
    assert {"list_id", "code", "row_hash", "footers", "addresses", "centroids.parquet"} <= set(kinds)


_BUSY = """
import time
while time.process_time() < 0.4: pass
held = bytearray(b"x") * 2**25
print("done", flush=True)
input()
"""


def test_usage_is_of_the_tree_and_not_of_what_came_before() -> None:
    """A parent that waits for its child, which computes 0.4 s and holds 32 MiB."""
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {_BUSY!r}])"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        with UsageWatch(process.pid) as first:
            assert process.stdout.readline() == "done\n"
        with UsageWatch(process.pid) as second:
            pass
        process.communicate("\n")
    assert first.usage.cpu_s >= 0.35
    assert second.usage.cpu_s < 0.2
    assert 2**25 <= second.usage.peak_bytes < second.usage.peak_total_bytes
    assert second.usage.peak_process != "driver"


class _Stub:
    """Builds nothing, as told."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name = name
        self._error = error

    @contextmanager
    def ready(self, task: Task, folder: Path) -> Iterator[Callable[[], Built]]:
        """As `Contestant.ready`."""
        if isinstance(self._error, Unavailable | ModuleNotFoundError):
            raise self._error

        def build() -> Built:
            if self._error is not None:
                raise self._error
            folder.mkdir()
            return Built(1.0)

        yield build

    def open(self, task: Task, folder: Path) -> Searcher:
        """As `Contestant.open`."""
        raise NotImplementedError


def test_a_peer_that_fails_is_left_out_with_its_reason_and_ours_is_not(
    snapshot: SearchableSnapshot, tmp_path: Path
) -> None:
    task = make_task(load_config(config_of(tmp_path, snapshot.storage.uri)), None, tmp_path)
    absent = _Stub("absent", ModuleNotFoundError(name="nowhere"))
    assert build_alone(absent, task, tmp_path / "a") == "nowhere is not installed: pip install 'vecmill[bench]'"
    assert build_alone(_Stub("slow", Unavailable("too slow")), task, tmp_path / "b") == "too slow"
    assert build_alone(_Stub("broken", ValueError("no\nlines")), task, tmp_path / "c") == "ValueError: no"
    found = build_alone(_Stub("fine"), task, tmp_path / "d")
    assert isinstance(found, tuple)
    assert found[0].seconds == 1.0
    with pytest.raises(VecmillError, match="ours: ValueError"):
        compete(task, [_Stub("ours", ValueError("x"))], 1)


def test_faiss_builds_and_answers_with_row_addresses(snapshot: SearchableSnapshot, tmp_path: Path) -> None:
    task = Task(load_config(config_of(tmp_path, snapshot.storage.uri)), 20, 1500, 1)
    for peer in (Faiss("faiss"), Faiss("like ours", like_ours=True)):
        folder = tmp_path / peer.name
        with peer.ready(task, folder) as build:
            built = build()
        assert built.files["file"] >= 1500 * 16
        searcher = peer.open(task, folder)
        found = searcher.search(stored(VECTORS)[:5], 3, Setting(20))
        addresses = np.concatenate([addresses for addresses, _ in blocks(snapshot)])
        assert found[:, 0].tolist() == addresses[:5].tolist()


def results() -> list[Result]:
    told = {
        **{"codec": "sq8", "code_bytes": 16, "nlist": 20, "nprobe": 4, "rerank": 0, "recall_at_10": 0.96},
        **{"recall_interval": [0.95, 0.97], "read_ratio": 0.08, "queries": "documents"},
    }
    ours, faiss = Result("ours"), Result("faiss")
    for wall, cpu, other_wall, other_cpu in ((10, 20, 5, 10), (30, 20, 10, 5), (12, 24, 12, 12)):
        built = Built(wall, {"assign": wall / 2}, {"code": 1600, "addresses": 800}, "sq8, 20 lists", told)
        ours.builds.append((built, Usage(cpu, {"workers": cpu}, 2**20 * wall, "ray::assign", 2**21 * wall)))
        faiss.builds.append((Built(other_wall, {}, {"file": 1700}, "IVF20,SQ8"), Usage(other_cpu)))
    return [ours, faiss, Result("LanceDB", skipped="lancedb is not installed")]


def test_ratios_are_of_the_same_round_and_their_median() -> None:
    ours, faiss, lance = figures_of(results(), 100)
    assert faiss["ours_wall"]["median"] == pytest.approx(2)  # 2, 3, 1: not 12 / 10
    assert faiss["ours_cpu"]["median"] == pytest.approx(2)
    assert ours["bytes_per_vector"] == 24
    assert ours["bytes_per_vector_by_kind"] == {"code": 16, "addresses": 8}
    assert ours["peak_uss_bytes"] == 30 * 2**20
    assert ours["stages_s"] == {"assign": 6.0}
    assert lance == {"name": "LanceDB", "skipped": "lancedb is not installed"}
    json.dumps([ours, faiss, lance])


def test_recall_is_told_of_real_rows_alone() -> None:
    rows = figures_of(results(), 100)
    table = table_of(rows, is_made=False)
    assert table.splitlines()[2].split()[:5] == ["faiss", "10.0", "10.0", "2.00", "[1.50"]
    assert "LanceDB" + " " * 20 + "skipped: lancedb is not installed" in table
    assert "recall@10 0.9600 [0.950 0.970] on documents" in table
    assert "a code of sq8 is 16 B" in table
    assert "0.9600" not in table_of(rows, is_made=True)


def test_ours_is_the_first_and_of_the_name_by_which_it_is_known() -> None:
    assert Ours().name == "ours"
    assert index_benchmark.index.name == "index"


def test_the_scratch_store_keeps_the_number_of_the_snapshot(snapshot: SearchableSnapshot, tmp_path: Path) -> None:
    link_store(snapshot, tmp_path / "scratch")
    assert Storage(str(tmp_path / "scratch")).exists(manifest_name(snapshot.manifest.snapshot_id))
