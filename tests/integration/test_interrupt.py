"""Whatever ends a run, and whenever: nothing half done is seen, and the same command goes on where it was.

The real command in its own process and process group, with its own Ray.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.corpus import Job, make_rows, put_files
from tests.models import minilm_path

NUM_DOCUMENTS = 288
NUM_SPLITS = 24
_MARK = "VECMILL_TEST_MARK"
_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


class Command:
    """`vecmill embed` in a process of its own; all processes that come of it can be told by a mark."""

    def __init__(self, job: Job, *, in_background: bool = False) -> None:
        self.mark = uuid.uuid4().hex
        self._err = job.folder / f"{self.mark}.err"
        with self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs.embed", job.config_path],
                stdout=subprocess.PIPE,
                stderr=err,
                env={**os.environ, _MARK: self.mark},
                start_new_session=True,
                # As a shell without job control starts what ends with "&".
                preexec_fn=_ignore_sigint if in_background else None,
            )

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_until(self, is_true: Callable[[], bool], timeout_s: float = 240) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_true():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.err}"
            assert time.monotonic() < deadline, self.err
            time.sleep(0.02)

    def wait(self, timeout_s: float = 240) -> tuple[int, str]:
        """Exit code and stdout."""
        out, _ = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out.decode()

    def left_over(self) -> list[str]:
        """Processes that came of it and are still there, apart from itself."""
        found = []
        for process in psutil.process_iter():
            try:
                name = " ".join(process.cmdline())[:100].strip()
                is_own = process.pid != self.process.pid and process.environ().get(_MARK) == self.mark
                # Ray's agents may outlive it by minutes, on a busy machine; they hold no work.
                if is_own and not name.startswith(_AGENTS):
                    found.append(name)
            except psutil.Error:
                pass
        return found

    def assert_all_gone(self, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while self.left_over() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert self.left_over() == []

    def end(self) -> None:
        """Whatever happened: leave no process."""
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self.mark:
                    process.kill()
            except psutil.Error:
                pass
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def _ignore_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """24 splits, each long enough that a signal finds the run in the middle."""
    job = Job.local(
        tmp_path, minilm_path(), splits={"max_rows": NUM_DOCUMENTS // NUM_SPLITS}, encoder={"compute": "float32"}
    )
    half = NUM_DOCUMENTS // 2
    put_files(
        job.corpus,
        {
            "a.parquet": make_rows(half, words=250),
            "b.jsonl.gz": make_rows(half, begin=half, words=250),
        },
    )
    return job


@pytest.fixture
def start(job: Job) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def begin(**options: Any) -> Command:
        started.append(Command(job, **options))
        return started[-1]

    yield begin
    for command in started:
        command.end()


def run_states(job: Job) -> list[str]:
    """What each run says of itself, oldest first."""
    names = [info.name for info in job.store.list("runs") if info.name.endswith("/run.json")]
    return [json.loads(job.store.read(name))["state"] for name in names]


def check_whole(job: Job, out: str) -> None:
    """One snapshot, no row lost or doubled."""
    outcome = json.loads(out.splitlines()[-1])
    assert outcome["published"]
    assert outcome["documents_in"] == outcome["embedded"] == NUM_DOCUMENTS
    assert len(job.manifests()) == 1
    assert job.doc_ids() == [row["id"] for row in make_rows(NUM_DOCUMENTS)]


def check_not_encoded_again(job: Job, records: list[str]) -> None:
    """What was recorded is what was published: no split has two attempts."""
    found = job.records()
    assert set(records) <= set(found)
    split_ids = [name.rpartition("/")[2].split("-")[0] for name in found]
    assert len(split_ids) == len(set(split_ids)), "splits were encoded again"
    published = {name.rpartition("/")[2] for name in job.snapshot().shards["file"].to_pylist()}
    for name in records:
        split_id, _, attempt = name.rpartition("/")[2].removesuffix(".json").split("-")
        assert f"{split_id}-{attempt}.parquet" in published


def test_killed_in_the_middle(job: Job, start: Callable[..., Command]) -> None:
    """kill -9: no handler runs, and no journal is written."""
    command = start()
    command.wait_until(lambda: bool(job.records()))
    command.process.kill()
    assert command.wait()[0] == -signal.SIGKILL
    # Workers may outlive the driver for a moment; what they still write counts.
    command.assert_all_gone(within_s=60)
    records = job.records()
    assert job.manifests() == []
    assert 0 < len(records) < NUM_SPLITS

    again = start()
    code, out = again.wait()
    assert code == 0, again.err
    check_whole(job, out)
    check_not_encoded_again(job, records)


def test_signals_and_a_second_driver(job: Job, start: Callable[..., Command]) -> None:
    """Ctrl-C, then SIGTERM, then another driver in its way: each time it goes on, and each ends with its own code."""
    records: list[str] = []
    # A job in the background has SIGINT ignored from its parent; kill -INT must end it all the same.
    for number, in_background in ((signal.SIGINT, True), (signal.SIGTERM, False)):
        command = start(in_background=in_background)
        known = len(records)
        command.wait_until(lambda known=known: len(job.records()) > known)  # type: ignore[misc]
        command.process.send_signal(number)
        sent = time.monotonic()
        code, out = command.wait()
        assert time.monotonic() - sent < 15
        assert (code, out) == (128 + number, ""), command.err
        assert "Traceback" not in command.err
        last = command.err.strip().splitlines()[-1]
        assert number.name in last
        assert "run the same command again to go on" in last
        assert run_states(job)[-1] == "interrupted"
        assert job.manifests() == []
        command.assert_all_gone(within_s=20)
        records = job.records()
        assert known < len(records) < NUM_SPLITS

    command = start()
    command.wait_until(lambda: len(job.records()) > len(records))
    second = start()
    code, out = second.wait(timeout_s=60)
    assert (code, out) == (4, "")
    [sentence] = [line for line in second.err.splitlines() if line.startswith("vecmill: ")]
    holder = sorted({info.name.split("/")[1] for info in job.store.list("runs")})[2]
    assert all(word in sentence for word in (holder, os.uname().nodename, f"pid {command.process.pid}")), sentence
    code, out = command.wait()
    assert code == 0, command.err
    check_whole(job, out)
    check_not_encoded_again(job, records)
    assert run_states(job)[:3] == ["interrupted", "interrupted", "finished"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_before_work(job: Job, start: Callable[..., Command], number: signal.Signals) -> None:
    """While Ray starts: it ends as it does in the middle, and leaves no process behind."""
    command = start()
    command.wait_until(
        lambda: "raylet" in " ".join(command.left_over()) or "gcs_server" in " ".join(command.left_over())
    )
    command.process.send_signal(number)
    code, out = command.wait(timeout_s=60)
    assert (code, out) == (128 + number, ""), command.err
    assert "Traceback" not in command.err
    assert "run the same command again to go on" in command.err
    assert (run_states(job), job.manifests()) == (["interrupted"], [])
    command.assert_all_gone(within_s=30)
