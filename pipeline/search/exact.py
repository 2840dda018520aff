"""Exact search over a snapshot.

Every vector is compared with every query, block by block: memory is a few shards' vectors and
one block of scores, whatever the corpus holds. Only the vectors are read, by one range read a
shard (see pipeline.write); ids are read for the winners alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.index.shards import Shard, plain, read_columns, read_stored, row_addresses, shards_of
from pipeline.parallel import map_ahead
from pipeline.search.filters import Filter
from pipeline.search.neighbours import Chunk, Neighbours, one_piece
from pipeline.search.queries import check_queries
from pipeline.snapshots.reader import Snapshot

# Scores held at once, Q x N of a block: 64 MiB of float32.
_MAX_SCORES = 16 * 2**20

# Shards read ahead: hides one round trip of object storage behind one matrix product.
_READ_AHEAD = 4

# Exact search over more rows is minutes: it has to be asked for.
MAX_EXACT_ROWS = 10**6


def exact_search(snapshot: Snapshot, queries: npt.NDArray[np.float32], k: int, where: str | None = None) -> Neighbours:
    """The exact nearest rows of the snapshot for each of `queries` (Q, D), unit norm.

    Args:
        snapshot: which.
        queries: as the snapshot's encoder makes them.
        k: neighbours of each.
        where: an expression of SQL over kept columns, doc_id and chunk_index, which all neighbours meet.

    Raises:
        UsageError: k below 1, queries that are no unit vectors of this dim, or an expression that cannot be used.
        StoreError: a shard of the snapshot is missing or damaged.
    """
    queries = check_queries(queries, k, snapshot.dim, "the snapshot")
    k = min(k, max(1, snapshot.manifest.accounting.chunks))
    row_filter = None if where is None else Filter(where, ["doc_id", "chunk_index", *snapshot.manifest.keep])
    best_scores = np.full((len(queries), 0), -np.inf, np.float32)
    best_addresses = np.zeros((len(queries), 0), np.int64)
    for shard, vectors in _stream_vectors(snapshot):
        rows = np.arange(len(vectors))
        if row_filter is not None:
            columns = read_columns(snapshot.storage, shard, row_filter.names).combine_chunks()
            rows = np.flatnonzero(row_filter.masks(columns.to_batches())[0])
            vectors = vectors[rows]
        step = max(1, _MAX_SCORES // max(1, len(queries)))
        for begin in range(0, len(vectors), step):
            block = vectors[begin : begin + step].astype(np.float32)  # (N, D)
            block /= np.linalg.norm(block, axis=1, keepdims=True)  # float16 keeps unit norm only within 1e-3
            scores = queries @ block.T  # (Q, N)
            addresses = row_addresses(shard, rows[begin : begin + step])
            best_scores, best_addresses = _merge(best_scores, best_addresses, scores, addresses, k)
    return Neighbours(np.clip(best_scores, -1, 1), best_addresses, _look_up(snapshot, best_addresses.reshape(-1)))


def nearest_documents(snapshot: Snapshot, queries: npt.NDArray[np.float32], k: int) -> list[dict[str, float]]:
    """The k nearest documents of each of `queries` (Q, D), nearest first, with the cosine of their nearest chunk.

    Raises:
        UsageError: k below 1, or queries of another dim.
        StoreError: a shard of the snapshot is missing or damaged.
    """
    num_rows = k
    while True:
        found = exact_search(snapshot, queries, num_rows)
        ranked: list[dict[str, float]] = []
        for doc_ids, scores in zip(found.doc_ids, found.scores, strict=True):
            best: dict[str, float] = {}
            for doc_id, score in zip(doc_ids, scores.tolist(), strict=True):
                best.setdefault(doc_id, score)
            ranked.append(dict(islice(best.items(), k)))
        if num_rows >= snapshot.manifest.accounting.chunks or all(len(best) == k for best in ranked):
            return ranked
        num_rows *= 2


def _merge(
    best_scores: npt.NDArray[np.float32],
    best_addresses: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    addresses: npt.NDArray[np.int64],
    k: int,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The k best of both, (Q, <= k), best first; ties by address, so that a search repeats itself."""
    if scores.shape[1] > k:
        kept = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        scores = np.take_along_axis(scores, kept, 1)
        block_addresses = addresses[kept]
    else:
        block_addresses = np.broadcast_to(addresses, scores.shape)
    all_scores = np.concatenate([best_scores, scores], 1)
    all_addresses = np.concatenate([best_addresses, block_addresses], 1)
    order = np.lexsort((all_addresses, -all_scores), axis=1)[:, :k]
    return np.take_along_axis(all_scores, order, 1), np.take_along_axis(all_addresses, order, 1)


def _stream_vectors(snapshot: Snapshot) -> Iterator[tuple[Shard, npt.NDArray[np.float16] | npt.NDArray[np.float32]]]:
    """Shards with their vectors (N, D), read ahead by a few."""
    shards = shards_of(snapshot)

    def read(shard: Shard) -> npt.NDArray[np.float16] | npt.NDArray[np.float32]:
        return read_stored(snapshot.storage, shard, 0, shard.num_rows)

    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        yield from zip(shards, map_ahead(pool, read, shards, _READ_AHEAD), strict=True)


def _look_up(snapshot: Snapshot, addresses: npt.NDArray[np.int64]) -> pa.Table:
    """The columns that answers are made of, of the rows at these addresses (M,), in their order."""
    names = ["doc_id", *Chunk._fields, *snapshot.manifest.keep]
    unique, inverse = np.unique(addresses, return_inverse=True)
    schema = pa.schema([plain(snapshot.schema.field(name)) for name in names])
    tables = [schema.empty_table()]
    for shard in shards_of(snapshot):
        rows = unique[unique >> 32 == shard.ordinal] & 0xFFFFFFFF
        if len(rows):
            tables.append(read_columns(snapshot.storage, shard, names).take(pa.array(rows)).cast(schema))
    with one_piece(len(addresses)):
        return pa.concat_tables(tables).take(pa.array(inverse.reshape(-1)))
