"""Each bad file has the fate that tests/bad_data.py states, as far as reading decides it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config import Input, SplitBounds
from pipeline.read import read_split
from pipeline.splits import check_columns, list_input, plan_file
from pipeline.splits.files import Clock
from pipeline.uris import Storage
from tests.bad_data import FILES, BadFile

LATER = Clock(now_ns=lambda: 2**62)
KEEP = pa.schema([("n", pa.int64())])


@pytest.mark.parametrize("case", FILES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_file_has_its_fate(tmp_path: Path, case: BadFile) -> None:
    """Before work too: none of them ends a run that knows its columns."""
    path = tmp_path / case.file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(case.data())
    storage, input, bounds = Storage(str(tmp_path)), Input(uri="x", id="id", keep=("n",)), SplitBounds()
    [file] = list_input(storage, None, None, LATER)
    assert check_columns(storage, [file], input, KEEP) == KEEP
    planned = plan_file(storage, file, bounds, None, input.columns)
    made = [one for split in planned for one in read_split(storage, split, input, KEEP, bounds)]
    rows = [row for one in made for row in one.quarantine.to_pylist()]
    whole = [row for row in rows if row["row"] is None and row["doc_id"] is None]
    assert [row["reason"] for row in whole] == ["unreadable_file"] * case.fate.is_unreadable
    assert [one.num_counted is None for one in made] == [False] * (len(made) - 1) + [case.fate.is_unreadable]
    fate = Counter(case.fate.reasons)
    num_twice = fate.pop("duplicate_id", 0)  # found at the end, over all files
    assert Counter(row["reason"] for row in rows if row not in whole) == fate
    num_documents = sum(one.documents.num_rows for one in made if one.documents is not None)
    if case.fate.embedded is not None:
        assert num_documents == case.fate.embedded + num_twice
