"""`vecmill index` end to end: on Ray, on S3, killed, and what the other commands make of what it publishes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.config import Cluster
from pipeline.errors import EnvironmentFault, Interrupted, StoreError
from pipeline.flow.context import DriverEnvironment
from pipeline.flow.index import IndexSession, Setting, index_session
from pipeline.index.build import build
from pipeline.index.description import IndexDescription, read_description
from pipeline.index.files import read_file
from pipeline.index.layout import DIRECTORY_SCHEMA
from pipeline.index.merge import Merged
from pipeline.index.recall import read_groups
from pipeline.logs import LogSettings
from pipeline.snapshots.reader import Snapshot, open_snapshot
from pipeline.uris import Storage
from tests.corpus import Job, make_rows, put_files, run_command
from tests.snapshots import index_settings

if TYPE_CHECKING:
    from tests.conftest import S3

NUM_ROWS = 200
SETTINGS = ("index.codec=sq8", "index.nlist=8", "index.recall_target=0.5")
ROOT = str(Path(__file__).parents[2])


def several_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shard its own assign, and several merges: planned by the driver."""
    monkeypatch.setattr("pipeline.index.assign.GROUP_BYTES", 1)
    monkeypatch.setattr("pipeline.index.merge._MIN_PART_BYTES", 8_000)
    monkeypatch.setattr("pipeline.index.merge._MAX_PART_BYTES", 8_000)


@pytest.fixture(scope="module")
def embedded(ray_in_process: None, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A store with a snapshot of 200 documents in ten shards; for copying."""
    job = Job.local(tmp_path_factory.mktemp("embedded"), tiny_model, splits={"max_rows": 20})
    put_files(job.corpus, {"a.parquet": make_rows(NUM_ROWS)})
    job.published()
    return job


@pytest.fixture
def job(embedded: Job, tiny_model: Path, tmp_path: Path) -> Job:
    """A copy of its store."""
    job = Job.local(tmp_path, tiny_model, input={"uri": embedded.corpus.uri}, splits={"max_rows": 20})
    shutil.copytree(embedded.store.uri, job.store.uri)
    return job


def described(snapshot: Snapshot) -> IndexDescription:
    ref = snapshot.manifest.index
    assert ref is not None
    return read_description(snapshot.storage, ref.file, ref.checksum)


def groups_of(storage: Storage, found: IndexDescription) -> list[tuple[int, bytes, list[int]]]:
    """(list, codes, addresses) of all row groups."""
    directory = read_file(storage, found.lists, DIRECTORY_SCHEMA)
    return sorted(
        (list_id, codes.tobytes(), rows.tolist())
        for part in found.parts
        for list_id, codes, rows in read_groups(
            storage, Merged(part, directory.filter(_is_part(directory, part.part))), found.num_code_bytes
        )
    )


def _is_part(directory: Any, part: int) -> Any:
    import pyarrow.compute as pc

    return pc.equal(directory["part"], part)


def test_the_index_built_across_a_cluster_is_that_of_one_process(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several_tasks(monkeypatch)
    alone = tmp_path / "alone"
    shutil.copytree(job.store.uri, alone)
    expected = build(open_snapshot(str(alone)), index_settings(codec="sq8", nlist=8, recall_target=0.5)).description
    ran = run_command("index", job.config_path, *SETTINGS)
    assert ran.code == 0, ran.err
    found = described(job.snapshot())
    assert len(found.parts) > 1
    assert (found.quantizer_fp, found.measured, found.search) == (
        *(expected.quantizer_fp, expected.measured, expected.search),
    )
    assert groups_of(job.store, found) == groups_of(Storage(str(alone)), expected)
    ran = run_command("verify", job.store.uri, "--json")
    assert (ran.code, json.loads(ran.out)["index_rows"]) == (0, NUM_ROWS), ran.out
    ran = run_command("status", job.store.uri, "--json")
    shown = json.loads(ran.out)["index"]
    assert (shown["serves_snapshot"], shown["is_current"], shown["codec"], shown["queries"]) == (
        *(1, True, "sq8", "documents"),
    )
    job.store.delete([found.parts[0].codes.file])
    ran = run_command("verify", job.store.uri)
    assert ran.code == 3
    assert f"{found.parts[0].codes.file} is missing" in ran.out


def test_words_of_kept_texts_go_through_the_snapshots_encoder_and_an_embed_leaves_the_index_serving(
    ray_in_process: None, tiny_model: Path, tmp_path: Path
) -> None:
    job = Job.local(tmp_path, tiny_model, store={"keep_text": True}, index={"recall_target": 0.5})
    put_files(job.corpus, {"a.parquet": make_rows(60)})
    job.published()
    ran = run_command("index", job.config_path)
    assert (ran.code, ran.outcome["queries"]) == (0, "words"), ran.err
    put_files(job.corpus, {"b.parquet": make_rows(5, begin=60)})
    job.published()
    snapshot = job.snapshot()
    assert (snapshot.manifest.snapshot_id, described(snapshot).snapshot_id) == (3, 1)
    shown = json.loads(run_command("status", job.store.uri, "--json").out)["index"]
    assert (shown["serves_snapshot"], shown["is_current"]) == (1, False)
    assert run_command("verify", job.store.uri).code == 0
    ran = run_command("gc", job.store.uri, "--delete", "--keep", "1")
    assert ran.code == 0, ran.err
    assert run_command("verify", job.store.uri).code == 0, "gc took rows that the index serves"
    ran = run_command("index", job.config_path)
    assert (ran.code, ran.outcome["published"], ran.outcome["num_rows"]) == (0, True, 65), ran.err


def test_on_s3_through_the_real_command(ray_in_process: None, tiny_model: Path, s3: S3, tmp_path: Path) -> None:
    job = Job.on_s3(tmp_path, s3.uri, s3.options, tiny_model, splits={"max_rows": 20})
    put_files(job.corpus, {"a.parquet": make_rows(60)})
    job.published()
    ran = run_command("index", job.config_path, *SETTINGS)
    assert ran.code == 0, ran.err
    assert ran.outcome["num_rows"] == 60
    s3.requests.clear()
    ran = run_command("index", job.config_path, *SETTINGS)
    assert (ran.code, ran.outcome["published"]) == (0, False)
    written = {path for method, path in s3.requests if method == "PUT" and "/runs/" not in path}
    assert written == set()
    found = described(job.snapshot())
    ran = run_command("verify", job.config_path, "--json")
    assert (ran.code, json.loads(ran.out)["index_rows"]) == (0, 60), ran.out
    name = found.parts[0].addresses.file
    job.store.put(name, job.store.read(name)[:-4])
    ran = run_command("verify", job.config_path)
    assert ran.code == 3
    assert name in ran.out
    ran = run_command("index", job.config_path, *SETTINGS)
    assert (ran.code, ran.outcome["published"]) == (0, True), ran.err
    assert run_command("verify", job.config_path).code == 0


# -- tasks -------------------------------------------------------------------------


@pytest.fixture
def session(ray_in_process: None, by_value: None, tmp_path: Path) -> Iterator[IndexSession]:
    setting = Setting("run", DriverEnvironment({}), LogSettings.current("run"))
    with index_session(Cluster(), Storage(str(tmp_path)), setting, quiet=True) as session:
        yield session


def dies_at_first(marks: str, item: int) -> int:
    """Ends its own process, as the kernel ends one without memory, the first time that it sees an item."""
    mark = Path(marks, str(item))
    if item % 3 == 0 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * 10


def always_dies(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuses(item: int) -> None:
    raise StoreError(f"no {item}")


def waits(item: int) -> None:
    time.sleep(300)


def threads(item: int) -> set[int]:
    import numpy as np
    import threadpoolctl

    assert np.ones(1) @ np.ones(1)
    return {one["num_threads"] for one in threadpoolctl.threadpool_info() if one["user_api"] in ("blas", "openmp")}


def test_a_task_whose_process_is_killed_is_run_again_and_order_stays(session: IndexSession, tmp_path: Path) -> None:
    told: list[Any] = []
    found = session.run("assign", partial(dies_at_first, str(tmp_path)), list(range(12)), told.append)
    assert list(found) == [item * 10 for item in range(12)]
    assert told[-1] == {"stage": "assign", "tasks": 12, "tasks_done": 12}
    assert len(list(tmp_path.iterdir())) == 4


def test_a_task_that_always_dies_ends_the_run(session: IndexSession) -> None:
    with pytest.raises(EnvironmentFault, match=r"a task of the index build \(merge\) was lost 4 times"):
        list(session.run("merge", always_dies, [1], lambda told: None))


def test_what_a_task_raises_is_what_the_run_ends_with(session: IndexSession) -> None:
    with pytest.raises(StoreError, match=r"^no 1$"):
        list(session.run("merge", refuses, [1, 2], lambda told: None))


def test_a_task_uses_as_many_threads_as_it_has_cpus(session: IndexSession) -> None:
    """The shared Ray has four: four tasks get one each, one gets all."""
    for num, expected in ((4, 1), (1, 4)):
        for found in session.run("assign", threads, list(range(num)), lambda told: None):
            assert max(found) <= expected
            assert expected in found or os.cpu_count() or expected > 1


def test_a_signal_ends_the_wait(session: IndexSession) -> None:
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(Interrupted) as ended:
        list(session.run("assign", waits, [1, 2], lambda told: None))
    assert ended.value.exit_code == 143
    session.cancel()


# -- the driver killed ---------------------------------------------------------------


_KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import pipeline.index.assign, pipeline.index.merge
from pipeline.report import StageProgress
pipeline.index.assign.GROUP_BYTES = 1
pipeline.index.merge._MIN_PART_BYTES = pipeline.index.merge._MAX_PART_BYTES = 8_000
add = StageProgress.add
def counting(self):
    add(self)
    if {stages!r} and self.figures()["stage"] == {stages!r}[0] and self.figures()["tasks_done"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
StageProgress.add = counting
from jobs.cli import exit_code, vecmill
sys.exit(exit_code(vecmill, ["index", *sys.argv[1:]]))
"""


def run_driver(job: Job, *dies_in: str) -> subprocess.CompletedProcess[str]:
    """`vecmill index` in a process and with a Ray of its own, which dies after two tasks of a stage."""
    return subprocess.run(
        [sys.executable, "-c", _KILLED.format(root=ROOT, stages=dies_in), job.config_path, *SETTINGS],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        check=False,
    )


def work_of(job: Job, stage: str) -> set[str]:
    """Records of what is done."""
    names = {info.name for info in job.store.list("indexes") if f"/work/{stage}/" in info.name}
    return {name for name in names if not name.endswith((".arrows", "-near.parquet"))}


def test_a_driver_killed_in_each_stage_goes_on_and_does_nothing_twice(job: Job, tmp_path: Path) -> None:
    clean = tmp_path / "clean"
    shutil.copytree(job.store.uri, clean)
    expected = build(open_snapshot(str(clean)), index_settings(codec="sq8", nlist=8, recall_target=0.5)).description
    done: dict[str, set[str]] = {"assign": set(), "merge": set()}
    for stage in ("sample", "assign", "merge", "measure"):
        ran = run_driver(job, stage)
        assert ran.returncode == -signal.SIGKILL, ran.stderr
        assert job.snapshot().manifest.index is None
        time.sleep(3)  # workers may outlive the driver for a moment; what they still write counts
        for each, known in done.items():
            now = work_of(job, each)
            assert known <= now
            done[each] = now
    assert len(done["assign"]) == 10, "one of each shard, whatever was killed"
    ran = run_driver(job)
    assert ran.returncode == 0, ran.stderr
    assert {each: work_of(job, each) for each in done} == done
    found = described(job.snapshot())
    assert len(found.parts) == len(done["merge"]) > 1
    assert (found.quantizer_fp, found.measured) == (expected.quantizer_fp, expected.measured)
    assert sorted(row for _, _, rows in groups_of(job.store, found) for row in rows) == sorted(
        row for _, _, rows in groups_of(Storage(str(clean)), expected) for row in rows
    )
