"""verify, where and gc on object storage: the same answers, and what is deleted is gone."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import S3
from tests.corpus import Job, make_rows, put_files, run_command
from tests.embedded import Embedder


def test_a_store_on_s3_is_proved_searched_and_cleaned(s3: S3, tiny_model: Path, tmp_path: Path) -> None:
    job = Job.on_s3(tmp_path, s3.uri, s3.options, tiny_model, splits={"max_rows": 20})
    embedder = Embedder(job)
    [old] = embedder.publish({"a.jsonl": make_rows(5)})
    embedder.publish({"a.jsonl": make_rows(6, begin=50), "b.parquet": make_rows(30, begin=100)})
    deep = run_command("verify", job.config_path, "--deep", "--json")
    assert deep.code == 0, deep.err
    audit = json.loads(deep.out)
    assert (audit["rows"], audit["again"]["rows"], audit["other_files"]) == (36, 36, 1)
    place = json.loads(run_command("where", job.config_path, "d129", "--json").out)["places"][0]
    assert (place["input_file"], place["row"]) == ("b.parquet", 29)

    before = {info.name for info in job.store.list()}
    s3.requests.clear()
    assert run_command("gc", job.config_path, "--keep", "1").code == 0
    assert {method for method, _ in s3.requests} <= {"GET", "HEAD"}, "dry"
    cleaned = run_command("gc", job.config_path, "--keep", "1", "--delete", "--json")
    assert cleaned.code == 0, cleaned.err
    gone = before - {info.name for info in job.store.list()}
    assert old.shard.file in gone
    assert len(gone) == 4, "record, shard and two tables"
    assert run_command("verify", job.config_path).code == 0

    s3.is_denied = lambda method, target: (
        method == "GET" and old.shard.file.split("/")[0] in target and ".parq" in target
    )
    assert run_command("verify", job.config_path).code == 75, "storage that refuses is no finding"
    s3.is_denied = None
    put_files(job.store, {place["shard"]: b"x"})
    assert run_command("verify", job.config_path).code == 3
