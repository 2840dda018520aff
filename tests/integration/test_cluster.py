"""A job submitted to a running cluster, with input and store on S3."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.quickstart import find_model
from pipeline.snapshots.reader import open_snapshot
from pipeline.uris import Storage

if TYPE_CHECKING:
    from tests.conftest import S3

ROOT = Path(__file__).parents[2]
NUM_DOCUMENTS = 60


def _environment() -> dict[str, str]:
    """No AWS setting at all: what workers know of S3 must come from the config. `python` is this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "RAY_AUTH_MODE": "disabled"}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def job_server(tmp_path: Path) -> Iterator[str]:
    """The URL of a Ray head on loopback; ended by its pid, so that no other Ray here is touched."""
    port, dashboard, agent, client = (_free_port() for _ in range(4))
    command = ["ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=4", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir=/tmp/vecmill-{port}"]
    # Not the default: another Ray on this machine has it, and without its agent a head runs no jobs.
    command += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
    head = subprocess.Popen(
        command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    url = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for(f"{url}/api/version", head)
        yield url
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(120):
        assert process.poll() is None, "the Ray head ended"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"no answer from {url}")


def test_the_submit_command_of_the_readme_embeds_from_s3_to_s3(job_server: str, s3: S3, tmp_path: Path) -> None:
    rows = [
        {"url": f"u{i}", "title": f"Title {i}", "body": f"Body number {i}, of some length.", "lang": "en"}
        for i in range(NUM_DOCUMENTS)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    Storage(f"{s3.uri}/docs", s3.options).put("a.parquet", sink.getvalue())
    for path in sorted(find_model().rglob("*")):  # the model from object storage too: fetched once per node
        if path.is_file():
            Storage(f"{s3.uri}/model", s3.options).put(path.relative_to(find_model()).as_posix(), path.read_bytes())
    command = re.search(r"^ray job submit .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert command is not None
    options = json.dumps(s3.options)
    overrides = [
        f"input.uri={s3.uri}/docs",
        f"store.uri={s3.uri}/vectors",
        f"encoder.model={s3.uri}/model",
        f"input.storage_options={options}",
        f"store.storage_options={options}",
    ]
    environment = _environment() | {"RAY_API_SERVER_ADDRESS": job_server, "RAY_ADDRESS": job_server}
    for _ in range(30):
        done = subprocess.run(
            [*shlex.split(command[0]), *overrides],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if "No available agent" not in done.stderr:  # the head answers before it can run jobs
            break
        time.sleep(1)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    outcome = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"snapshot_id"')))
    assert (outcome["published"], outcome["documents_in"], outcome["embedded"]) == (True, NUM_DOCUMENTS, NUM_DOCUMENTS)
    table = open_snapshot(f"{s3.uri}/vectors", s3.options).dataset().to_table(columns=["doc_id", "lang"])
    assert table.to_pylist() == [{"doc_id": f"u{i}", "lang": "en"} for i in range(NUM_DOCUMENTS)]
