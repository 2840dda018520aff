"""Reading from a real S3 server: every row once, and never a mixture of two files."""

from __future__ import annotations

import gzip
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Input, SplitBounds
from pipeline.errors import ChangedError
from pipeline.read import read_split
from pipeline.splits import Split, list_input, plan_files
from pipeline.uris import Storage

INPUT = Input(uri="x", keep=("n",))
BOUNDS = SplitBounds.model_validate({"max_bytes": 40_000, "max_rows": 900})
NUM_ROWS = 5000


@pytest.fixture
def corpus(s3: Any) -> Storage:
    storage = Storage(f"{s3.uri}/in", s3.options)
    table = pa.table({"text": [f"t{i}" for i in range(NUM_ROWS)], "n": range(NUM_ROWS)})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=700)
    lines = b"".join(b'{"text": "t%d", "n": %d}\n' % (i, i) for i in range(NUM_ROWS))
    storage.put("a.parquet", file.getvalue())
    storage.put("b.jsonl", lines)
    storage.put("c.jsonl.gz", gzip.compress(lines[:50_000]) + gzip.compress(lines[50_000:]))
    return storage


def _plan(storage: Storage) -> tuple[list[Split], pa.Schema]:
    return plan_files(storage, list_input(storage, None, None), INPUT, BOUNDS)


def test_every_row_once(corpus: Storage) -> None:
    splits, keep = _plan(corpus)
    found: dict[str, list[int]] = {}
    for split in splits:
        for made in read_split(corpus, split, INPUT, keep, BOUNDS):
            assert made.documents is not None
            assert made.num_documents == made.num_counted == made.documents.num_rows
            found.setdefault(split.file.uri, []).extend(made.documents["n"].to_pylist())
    assert found == {key: list(range(NUM_ROWS)) for key in ("a.parquet", "b.jsonl", "c.jsonl.gz")}


@pytest.mark.parametrize("name", ["a.parquet", "b.jsonl", "c.jsonl.gz"])
def test_a_file_put_anew_is_refused(corpus: Storage, name: str) -> None:
    splits, keep = _plan(corpus)
    corpus.put(name, corpus.read(name) + b"\n")
    split = next(split for split in splits if split.file.uri == name)
    with pytest.raises(ChangedError, match=name):
        list(read_split(corpus, split, INPUT, keep, BOUNDS))
