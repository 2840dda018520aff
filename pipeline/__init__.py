"""Vecmill: a sharded text corpus in, normalized sentence embeddings in Parquet out.

The modules read in the order the data takes; the README has a line for each. For readers of a
store:

    import pipeline

    snapshot = pipeline.open("s3://corpus-vectors/docs")
    snapshot.dataset()   # a pyarrow dataset of exactly the current rows
    snapshot.files()     # the same as file URIs, for DuckDB, Polars or Spark
    snapshot.search("how do I ...", k=5).doc_ids

Shape letters: B rows of a token batch, L its padded length, H hidden, D dim, Q queries, N vectors,
K neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.search import SearchableSnapshot

__all__ = ["open"]


def open(uri: str, storage_options: Mapping[str, Any] | None = None) -> SearchableSnapshot:
    """The current snapshot of the store at `uri`.

    Raises:
        StoreError: no store, no snapshot yet, or a format newer than this reader.
    """
    from pipeline.search.opened import open_searchable  # workers import this package without reading a store

    return open_searchable(uri, storage_options)
