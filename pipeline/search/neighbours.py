"""What a search answers with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import UsageError


class Chunk(NamedTuple):
    """Which part of its document a row is: characters [char_begin, char_end).

    Of a row that is a whole document an index tells no characters: 0 and None.
    """

    chunk_index: int
    num_chunks: int
    char_begin: int
    char_end: int | None


@contextmanager
def one_piece(num_rows: int) -> Iterator[None]:
    """Say what to do where a column of so many rows has more than the 2 GiB that Arrow holds in one piece.

    Raises:
        UsageError: it has.
    """
    try:
        yield
    except pa.ArrowInvalid as error:
        raise UsageError(
            f"the columns of {num_rows:,} answers do not fit together ({' '.join(str(error).split())[:100]}); "
            "search with fewer queries at once, or a smaller k"
        ) from None


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The K nearest of each of Q queries, nearest first.

    K is the smaller of what was asked and the rows there are (under a filter: that pass it).

    Attributes:
        scores: (Q, K) float32: cosines in [-1, 1]; from an index without rerank, as its codes have them.
        addresses: (Q, K) int64: ordinal of the embedding shard << 32 | row of it.
        rows: the same Q x K rows, query after query: doc_id, chunk_index, kept columns, and where its corpus was
            chunked num_chunks, char_begin and char_end.
    """

    scores: npt.NDArray[np.float32]
    addresses: npt.NDArray[np.int64]
    rows: pa.Table

    @property
    def doc_ids(self) -> list[list[str]]:
        """Q lists of K."""
        return self._by_query(self.rows["doc_id"].to_pylist())

    @property
    def chunks(self) -> list[list[Chunk]]:
        """Q lists of K."""
        names = [name for name in Chunk._fields if name in self.rows.schema.names]
        if len(names) == len(Chunk._fields):
            columns = [self.rows[name].to_pylist() for name in names]
            return self._by_query([Chunk(*values) for values in zip(*columns, strict=True)])
        return self._by_query([Chunk(index, 1, 0, None) for index in self.rows["chunk_index"].to_pylist()])

    @property
    def kept(self) -> list[list[dict[str, Any]]]:
        """Q lists of K: the kept columns by name."""
        names = [name for name in self.rows.schema.names if name != "doc_id" and name not in Chunk._fields]
        return self._by_query(self.rows.select(names).to_pylist() if names else [{}] * self.rows.num_rows)

    def _by_query(self, values: list[Any]) -> list[list[Any]]:
        num_queries, k = self.scores.shape
        return [values[query * k : (query + 1) * k] for query in range(num_queries)]
