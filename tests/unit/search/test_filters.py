from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import UsageError
from pipeline.search.filters import Filter

ROWS = pa.record_batch({"lang": ["de", "en", None, "de"], "year": pa.array([1, 2, 3, 4], pa.int32()), "other": [0] * 4})


def mask(expression: str) -> list[list[bool]]:
    batches = [ROWS.slice(0, 1), ROWS.slice(1, 0), ROWS.slice(1)]
    return [found.tolist() for found in Filter(expression, ["lang", "year"]).masks(batches)]


def test_rows_of_all_tables_are_judged_each_in_its_place() -> None:
    assert mask("lang = 'de' OR year = 2") == [[True], [], [True, False, True]]
    assert mask("lang LIKE 'e%' AND year BETWEEN 1 AND 2") == [[False], [], [True, False, False]]


def test_null_is_no() -> None:
    assert mask("lang <> 'de'") == [[False], [], [True, False, False]]
    assert mask("NULL") == [[False], [], [False] * 3]


@pytest.mark.parametrize(
    "expression",
    ["", "lang =", "1 = 1) OR (1 = 1", "true; DROP TABLE x", "true LIMIT 1", "true, false", "nope = 1", "other = 0"],
)
def test_what_is_no_expression_over_the_columns_is_refused_with_their_names(expression: str) -> None:
    with pytest.raises(UsageError, match="cannot be used: .*expression of SQL over lang, year"):
        mask(expression)


@pytest.mark.parametrize("expression", ["count(*) > 1", "row_number() OVER () = 1", "CAST(lang AS INT) = 1"])
def test_what_cannot_be_judged_row_by_row_is_refused(expression: str) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        mask(expression)


def test_an_expression_reaches_no_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.csv"
    path.write_text("a\n1\n")
    with pytest.raises(UsageError, match="cannot be used"):
        mask(f"(SELECT count(*) FROM read_csv('{path}')) = 1")
    with pytest.raises(UsageError, match="cannot be used"):
        mask(f"(SELECT count(*) FROM '{path}') = 1")
