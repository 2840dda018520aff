"""Queries to neighbours.

queries     texts -> unit vectors, by the snapshot's encoder
neighbours  what a search answers with
filters     which rows count: an SQL expression over kept columns
exact       every vector compared with every query

opening     a snapshot's index, checked
settings    lists to probe and depth of the rerank, from what is asked and what was measured
ranges      byte ranges in few requests
cache       what was read, bounded in bytes
directory   where lists lie
lists       lists read, checked and held
best        the best rows of each query while lists are scored
scan        queries against the lists they probe
rerank      exact cosines by the vectors of embedding shards
reader      search of an index: all of these composed
faiss_export  the index as one of faiss, for serving from memory

opened      what `pipeline.open` gives
"""

from __future__ import annotations

from pipeline.search.exact import MAX_EXACT_ROWS, exact_search, nearest_documents
from pipeline.search.neighbours import Chunk, Neighbours
from pipeline.search.opened import SearchableSnapshot
from pipeline.search.opening import open_index
from pipeline.search.queries import QueryEncoder
from pipeline.search.reader import IndexReader

__all__ = [
    "MAX_EXACT_ROWS",
    "Chunk",
    "IndexReader",
    "Neighbours",
    "QueryEncoder",
    "SearchableSnapshot",
    "exact_search",
    "nearest_documents",
    "open_index",
]
