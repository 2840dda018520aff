"""The README's commands, run as they stand, in order.

`make test` is what runs this; `ray job submit` is run by test_cluster.py, against a cluster.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.compute as pc
import pytest

import pipeline
from pipeline.snapshots.reader import open_snapshot

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ELSEWHERE = ("make test", "ray job submit")


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(ELSEWHERE)]


def run(command: str) -> subprocess.CompletedProcess[str]:
    # The environment that runs the tests, wherever it lies.
    here = command.replace(".venv/bin/", f"{Path(sys.executable).parent}/").replace(
        "make ", f"make VENV={Path(sys.executable).parents[1]} "
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    return subprocess.run(here, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def ran() -> dict[str, subprocess.CompletedProcess[str]]:
    return {command: run(command) for command in commands()}


def test_every_command_works(ran: dict[str, subprocess.CompletedProcess[str]]) -> None:
    assert ran
    for command, done in ran.items():
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"


def test_the_quickstart_answers_with_the_right_functions(ran: dict[str, subprocess.CompletedProcess[str]]) -> None:
    answers = ran["make quickstart"].stdout
    for question, module in [("parse JSON", "json."), ("run a command", "subprocess."), ("hash of a file", "hashlib.")]:
        top = re.search(rf"{question}.*\n +\S+  (\S+)", answers)
        assert top, answers
        assert top[1].startswith(module), answers


def test_ray_is_quiet_unless_asked(ran: dict[str, subprocess.CompletedProcess[str]]) -> None:
    """Nothing of Ray's own on stderr; its loggers, raylet and core worker are told by these words."""
    noise = re.compile(r"\(raylet\)|core_worker|logging\.cc|streaming_executor|pid=\d|Deprecat|Progress bars|ray\.data")
    assert not noise.search(ran["make quickstart"].stderr), ran["make quickstart"].stderr


def test_a_second_embed_finds_nothing_to_do(ran: dict[str, subprocess.CompletedProcess[str]]) -> None:
    done = next(done for command, done in ran.items() if " embed " in command)
    assert "nothing to do" in done.stderr
    assert '"published": false' in done.stdout


def test_the_python_of_the_readme_reads_the_store(
    ran: dict[str, subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    [block] = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(compile(block, "README.md", "exec"), {})  # noqa: S102  # our own README
    first = open_snapshot("quickstart/store").dataset().head(1, columns=["doc_id"])["doc_id"][0].as_py()
    cells = re.findall(rf"│ {re.escape(first)} +[│┆]", capsys.readouterr().out)
    assert len(cells) == 2  # once by DuckDB, once by Polars


def test_the_sql_of_the_readme_finds_what_search_finds(
    ran: dict[str, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    [statement] = re.findall(r"^```sql\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(ROOT)
    found = duckdb.connect().execute(statement).fetchall()
    snapshot = pipeline.open("quickstart/store")
    row = snapshot.dataset().to_table(filter=pc.field("doc_id") == "json.loads", columns=["vector"])["vector"][0]
    ours = snapshot.search(np.array([row.as_py()], np.float32), 5)
    assert [doc_id for doc_id, _ in found] == ours.doc_ids[0]
    assert found[0][0] == "json.loads"


def test_the_map_names_every_module() -> None:
    listed = set(re.findall(r"`((?:pipeline|jobs|configs)/[\w/.]*)`", README))
    there = {f"pipeline/{path.name}" for path in (ROOT / "pipeline").glob("*.py") if path.name != "__init__.py"}
    there |= {f"pipeline/{path.parent.name}/" for path in (ROOT / "pipeline").glob("*/__init__.py")}
    assert there <= listed, sorted(there - listed)
    assert listed - {"jobs/", "jobs/benchmark.md", "configs/"} <= there, sorted(listed - there)
