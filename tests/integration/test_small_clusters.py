"""Small clusters: big rows pass through two CPUs, logical GPUs hold encoders, and what cannot fit is refused.

Each with a Ray of its own, in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.corpus import Job, make_rows, put_files

_RUN = """
import sys
sys.path.insert(0, {root!r})
from tests.corpus import run_command

def run(*overrides):
    ran = run_command("embed", sys.argv[1], *overrides)
    found.append([ran.code, ran.out, ran.sentence])

import json, ray
found = []
quiet = dict(include_dashboard=False, log_to_driver=False)
{body}
print(json.dumps(found))
"""


def run_script(job: Job, body: str, timeout_s: float = 300) -> list[tuple[int, str, str]]:
    """Runs `body`, in which `run(*overrides)` is the embed command; (code, stdout, last line of stderr) of each."""
    script = _RUN.format(root=str(Path(__file__).parents[2]), body=body)
    done = subprocess.run(
        [sys.executable, "-c", script, job.config_path],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [(code, out, sentence) for code, out, sentence in json.loads(done.stdout.splitlines()[-1])]


def test_rows_of_20_mb_pass_through_two_cpus(tmp_path: Path, tiny_model: Path) -> None:
    """Ten of them, through an object store that holds only some: a pool that starves its readers would hang."""
    job = Job.local(tmp_path, tiny_model, input={"keep": ["blob"]}, splits={"max_rows": 20, "max_bytes": "64MiB"})
    job.config["cluster"] = {}
    rows: list[dict[str, Any]] = [{**row, "blob": f"{row['id']} " * 200_000} for row in make_rows(200)]
    for row in rows:
        row["blob"] = row["blob"][: 2**20]
    put_files(job.corpus, {f"{n}.parquet": rows[n * 20 : n * 20 + 20] for n in range(10)})
    body = """
ray.init(address="local", num_cpus=2, object_store_memory=160 * 2**20, **quiet)
run("cluster.encoders=8")
run()
"""
    too_many, whole = run_script(job, body)
    assert (too_many[0], too_many[1]) == (2, "")
    assert "8 encoders" in too_many[2]
    assert "cluster.encoders" in too_many[2]
    assert whole[0] == 0, whole
    assert json.loads(whole[1])["embedded"] == 200
    assert job.snapshot().splits["num_documents"].to_pylist() == [20] * 10
    table = job.snapshot().dataset().to_table(columns=["doc_id", "blob"])
    assert table["doc_id"].to_pylist() == [row["id"] for row in rows]
    assert table["blob"].to_pylist() == [row["blob"] for row in rows]


def test_one_cpu_is_too_few(tmp_path: Path, tiny_model: Path) -> None:
    """An encoder leaves no room for a reader: said before the flow, and nothing is published."""
    job = Job.local(tmp_path, tiny_model)
    put_files(job.corpus, {"a.jsonl": make_rows(3)})
    [(code, out, sentence)] = run_script(job, 'ray.init(address="local", num_cpus=1, **quiet)\nrun()')
    assert (code, out, job.manifests(), job.records()) == (2, "", [], [])
    assert sentence.startswith("vecmill: ")
    assert "the cluster has 1 CPUs" in sentence
    assert "add CPUs" in sentence


def test_a_local_store_is_refused_on_two_nodes(tmp_path: Path, tiny_model: Path) -> None:
    job = Job.local(tmp_path, tiny_model)
    put_files(job.corpus, {"a.jsonl": make_rows(3)})
    body = """
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
cluster.add_node(num_cpus=2)
cluster.wait_for_nodes()
run("cluster.address=" + cluster.address)
cluster.shutdown()
"""
    [(code, out, sentence)] = run_script(job, body)
    assert (code, out, job.manifests(), job.records()) == (2, "", [], [])
    assert "2 nodes" in sentence
    assert job.store.uri in sentence
    assert "object storage" in sentence


def test_two_logical_gpus_hold_two_encoders(tmp_path: Path, tiny_model: Path) -> None:
    """The same flow as without GPUs. The accelerators are Ray's bookkeeping; the forward is the CPU's."""
    job = Job.local(tmp_path, tiny_model, splits={"max_rows": 5})
    job.config["cluster"] = {}
    put_files(job.corpus, {"a.parquet": make_rows(40)})
    [(code, out, sentence)] = run_script(job, 'ray.init(address="local", num_cpus=2, num_gpus=2, **quiet)\nrun()')
    assert code == 0, sentence
    outcome = json.loads(out)
    assert (outcome["embedded"], outcome["encoders"], outcome["splits"]) == (40, 2, 8)


def test_a_cluster_that_does_not_answer_is_told_with_its_address(tmp_path: Path, tiny_model: Path) -> None:
    """Cron tries again (75): the cluster may come back."""
    job = Job.local(tmp_path, tiny_model)
    put_files(job.corpus, {"a.jsonl": make_rows(3)})
    [(code, out, sentence)] = run_script(job, 'run("cluster.address=127.0.0.1:1")')
    assert (code, out) == (75, ""), sentence
    assert "no Ray cluster answers at 127.0.0.1:1" in sentence
