"""Queries to neighbours.

queries     texts -> unit vectors, by the snapshot's encoder
neighbours  what a search answers with
exact       every vector compared with every query
"""

from __future__ import annotations

from pipeline.search.exact import MAX_EXACT_ROWS, exact_search, nearest_documents
from pipeline.search.neighbours import Chunk, Neighbours
from pipeline.search.queries import QueryEncoder

__all__ = ["MAX_EXACT_ROWS", "Chunk", "Neighbours", "QueryEncoder", "exact_search", "nearest_documents"]
