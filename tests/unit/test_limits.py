from __future__ import annotations

import pyarrow as pa
import pytest

from pipeline.config import Limits
from pipeline.errors import LimitError
from pipeline.limits import refuse_deletions, refuse_over_limits
from pipeline.snapshots.manifest import SPLITS_SCHEMA
from tests.stores import make_record

NO_SPLITS = SPLITS_SCHEMA.empty_table()


def splits(**documents: int) -> pa.Table:
    zeros = dict.fromkeys(SPLITS_SCHEMA.names, 0)
    words = dict.fromkeys(("split_id", "file_id", "identity", "identity_kind"), "x") | {
        "last": True, "quarantine_file": None, "quarantine_checksum": None,
    }  # fmt: skip
    rows = [zeros | words | {"file_uri": uri, "num_documents": num} for uri, num in documents.items()]
    return pa.Table.from_pylist(rows, SPLITS_SCHEMA)


def test_the_ratio_refuses_and_tells_the_reasons_and_the_way_out() -> None:
    record = make_record(end=100, num_quarantined=20)
    with pytest.raises(LimitError, match=r"20 of 100 .*empty_text 20.*raise the limit"):
        refuse_over_limits(Limits(), [record], NO_SPLITS)


def test_under_ten_documents_no_ratio_refuses() -> None:
    refuse_over_limits(Limits(), [make_record(end=10, num_quarantined=9)], NO_SPLITS)


def test_a_raised_limit_lets_the_same_pass() -> None:
    refuse_over_limits(Limits(max_quarantined_ratio=0.2), [make_record(end=100, num_quarantined=20)], NO_SPLITS)


def test_carried_splits_count_too() -> None:
    carried = splits(b=900)
    refuse_over_limits(Limits(max_quarantined_ratio=0.02), [make_record(end=100, num_quarantined=20)], carried)


def test_an_unreadable_file_is_named() -> None:
    record = make_record("broken.parquet", 0, 0, num_counted=None)
    with pytest.raises(LimitError, match=r"1 files cannot be read \(broken.parquet\)"):
        refuse_over_limits(Limits(), [record], NO_SPLITS)
    refuse_over_limits(Limits(max_quarantined_files=1), [record], NO_SPLITS)


def test_too_many_deletions_are_refused_by_the_files_that_are_gone() -> None:
    before = splits(a=90, b=10, c=1)
    refuse_deletions(Limits(), before, [], splits(a=90, c=1))
    with pytest.raises(LimitError, match=r"90 of 101 documents would disappear .* from a, "):
        refuse_deletions(Limits(), before, [], splits(b=10, c=1))


def test_a_file_that_shrank_counts_as_deletions() -> None:
    """An export that broke off overwrites the file it should have replaced."""
    with pytest.raises(LimitError, match=r"89 of 100 documents would disappear .* from a, "):
        refuse_deletions(Limits(), splits(a=90, b=10), [make_record("a", 0, 1)], splits(b=10))
    refuse_deletions(Limits(), splits(a=90, b=10), [make_record("a", 0, 85)], splits(b=10))
