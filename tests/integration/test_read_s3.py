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
from pipeline.splits import Split, list_input, pack_small_files, plan_files
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


def test_small_files_are_planned_by_their_listing_and_read_by_a_request_each(s3: Any) -> None:
    """Of lines one file is looked at, for its columns; none is opened twice to be read."""
    storage, num_files = Storage(f"{s3.uri}/in", s3.options), 60
    for number in range(num_files):
        storage.put(f"{number:02}.jsonl", b'{"text": "t%d", "n": %d}\n' % (number, number))
    s3.requests.clear()
    planned, keep = _plan(storage)
    [pack] = pack_small_files(planned, BOUNDS)
    assert [method for method, target in s3.requests if ".jsonl" in target] == ["GET"]
    s3.requests.clear()
    [made] = read_split(storage, pack, INPUT, keep, BOUNDS)
    assert made.documents is not None
    assert made.documents["n"].to_pylist() == list(range(num_files))
    assert len(s3.requests) == num_files
    storage.put("40.jsonl", b"{}\n")
    with pytest.raises(ChangedError, match=r"40\.jsonl") as caught:
        list(read_split(storage, pack, INPUT, keep, BOUNDS))
    assert caught.value.file_uri == "40.jsonl"
