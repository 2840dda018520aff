"""One corpus of every format and layout, named by globs and folders on S3: embedded whole, proved, and done once."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from tests.conftest import S3
from tests.corpus import Job, run_command
from tests.formats import delimited_bytes, file_bytes, jsonl_bytes, parquet_bytes, stream_bytes
from tests.integration.conftest import forbid_flow

pytestmark = pytest.mark.usefixtures("ray_in_process")

NUM_ROWS = 20


def _rows(name: str) -> list[dict[str, str]]:
    return [{"text": f'the "river" {n} of {name},\nin two lines'} for n in range(NUM_ROWS)]


def _table(name: str) -> pa.Table:
    return pa.Table.from_pylist(_rows(name))


FILES = {
    "lang=en/a.parquet": parquet_bytes(_table("a")),
    "lang=en/b.jsonl": jsonl_bytes(_rows("b")),
    "lang=en/c.jsonl.xz": lzma.compress(jsonl_bytes(_rows("c"))),
    "lang=en/d.jsonl.bz2": bz2.compress(jsonl_bytes(_rows("d"))),
    "lang=en/e.csv": delimited_bytes(_rows("e")),
    "lang=en/f.csv.gz": gzip.compress(delimited_bytes(_rows("f"))),
    "lang=en/g.tsv.xz": lzma.compress(delimited_bytes(_rows("g"), "\t")),
    "lang=en/h.feather": file_bytes(_table("h"), "lz4"),
    # as Hugging Face's save_to_disk writes it, and as a repository of its hub holds it
    "lang=de/saved/train/data-00000-of-00001.arrow": stream_bytes(_table("saved")),
    "lang=de/saved/train/dataset_info.json": b"{}",
    "lang=de/saved/train/state.json": b"{}",
    "lang=de/saved/dataset_dict.json": b"{}",
    "lang=de/hub/data/train-00000-of-00001.parquet": parquet_bytes(_table("hub")),
    "lang=de/one.txt": b"one document\n\nof several lines",
    "lang=de/two.txt.bz2": bz2.compress(b"another"),
    "lang=fr/unread.csv": b"no,such,columns",
}
PER_LANGUAGE = {"en": 8 * NUM_ROWS, "de": 2 * NUM_ROWS + 2}


def test_every_format_in_one_corpus(s3: S3, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job.on_s3(tmp_path, s3.uri, s3.options, tiny_model, splits={"max_rows": 7}, encoder={"compute": "float32"})
    job.config["input"] |= {
        "uri": [f"{job.corpus.uri}/lang=en/*.*", f"{job.corpus.uri}/lang=de/"],
        "id": None,
        "text": "{lang}: {text}",
        "keep": ["lang"],
    }
    for name, data in FILES.items():
        job.corpus.put(name, data)
    outcome = job.published()
    num = sum(PER_LANGUAGE.values())
    assert (outcome["documents_in"], outcome["embedded"], outcome["quarantined"]) == (num, num, 0)
    assert (outcome["files_in"], outcome["files_read"]) == (12, 12)
    table = job.snapshot().dataset().to_table(columns=["doc_id", "lang"])
    assert Counter(table["lang"].to_pylist()) == PER_LANGUAGE
    assert len(set(table["doc_id"].to_pylist())) == num
    assert {"lang=de/one.txt#0", "lang=en/h.feather#19"} <= set(table["doc_id"].to_pylist())
    ran = run_command("verify", job.config_path, "--deep")
    assert ran.code == 0, ran.out
    forbid_flow(monkeypatch)
    assert job.published()["published"] is False
