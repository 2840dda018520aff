"""Which rows a search may answer with: an SQL expression over the columns that lie beside the codes.

DuckDB parses and evaluates it: pyarrow has no parser of text, and a grammar of our own, or a translation of
another parser's tree, would be a dialect that nobody knows. It sees one table of one batch of rows, no file,
no network and no other table, and its settings are locked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import UsageError

_SETTINGS: dict[str, Any] = {"enable_external_access": "false", "threads": 1, "lock_configuration": "true"}

_PLACE = "row_place_of_vecmill"


class Filter:
    """An expression as SQL has it after WHERE, such as "lang = 'de' AND year >= 2020"; null is no.

    Args:
        expression: of the columns `names`.
        names: what it may name.

    Attributes:
        names: as given.

    Raises:
        UsageError: it is empty, or no expression.
    """

    def __init__(self, expression: str, names: Sequence[str]) -> None:
        import duckdb  # a quarter of a second that a search without a filter need not wait for

        self._expression, self.names = expression, list(names)
        self._fault: type[Exception] = duckdb.Error
        try:
            self._parsed = duckdb.SQLExpression(expression)
        except (duckdb.Error, TypeError) as error:  # TypeError: no text, or none that is UTF-8
            raise self._refused(error) from None
        self._connection = duckdb.connect(":memory:", config=_SETTINGS)

    def masks(self, batches: Sequence[pa.RecordBatch]) -> list[npt.NDArray[np.bool_]]:
        """Which rows of each batch count, (N,) each.

        Raises:
            UsageError: the expression names another column, or cannot be evaluated.
        """
        rows = pa.Table.from_batches(batches).select(self.names)
        numbered = rows.append_column(_PLACE, pa.array(np.arange(rows.num_rows)))
        try:
            # A cursor is a connection of its own: threads may share a filter.
            found = self._connection.cursor().from_arrow(numbered).filter(self._parsed).project(_PLACE).to_arrow_table()
        except self._fault as error:
            raise self._refused(error) from None
        mask = np.zeros(rows.num_rows, bool)
        mask[found[_PLACE].to_numpy()] = True
        return np.split(mask, np.cumsum([batch.num_rows for batch in batches])[:-1])

    def _refused(self, error: Exception) -> UsageError:
        reason = " ".join(str(error).split())[:200]
        return UsageError(
            f"the filter {self._expression!r} cannot be used: {reason}; it is an expression of SQL over "
            f"{', '.join(self.names)} (kept columns are those of input.keep when the corpus was embedded)"
        )
