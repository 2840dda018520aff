"""Exact cosines of some rows, from the vectors of the embedding shards, each read by range."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pipeline.errors import StoreError
from pipeline.index.codecs import Floats
from pipeline.index.shards import RESTORE, Shard
from pipeline.search.directory import Ints
from pipeline.search.ranges import Range, RangeReader

# Vectors at hand together.
_BLOCK_BYTES = 32 * 2**20

# float16 keeps unit norm within 1e-3: what is farther off is no vector.
_MAX_NORM_ERROR = 1e-2


def exact_scores(
    reader: RangeReader,
    shards: Mapping[int, Shard],
    queries: Floats,
    query: npt.NDArray[np.int32],
    addresses: Ints,
) -> Floats:
    """Cosines (M,) of queries (Q, D) and rows, by pairs: `query` (M,) and row addresses (M,).

    Raises:
        StoreError: a shard is missing, damaged, or not of the snapshot.
    """
    wanted, which = np.unique(addresses, return_inverse=True)
    order = np.argsort(which, kind="stable")
    scores = np.empty(len(addresses), np.float32)
    row_bytes = max((shard.row_bytes for shard in shards.values()), default=1)
    step = max(1, _BLOCK_BYTES // row_bytes)
    for begin in range(0, len(wanted), step):
        vectors = read_vectors(reader, shards, wanted[begin : begin + step])
        pairs = order[slice(*np.searchsorted(which[order], [begin, begin + step]))]
        for some in np.array_split(pairs, max(1, len(pairs) // step)):
            rows = vectors[which[some] - begin]
            scores[some] = np.einsum("nd,nd->n", queries[query[some]], rows)
    return scores


def read_vectors(reader: RangeReader, shards: Mapping[int, Shard], addresses: Ints) -> Floats:
    """Unit vectors (N, D) at row addresses, in one round of requests.

    Raises:
        StoreError: as `exact_scores`.
    """
    ranges = []
    for address in addresses.tolist():
        shard, row = shards.get(address >> 32), address & 0xFFFFFFFF
        if shard is None or row >= shard.num_rows:
            raise StoreError(
                f"the index names row {row} of shard {address >> 32}, which its snapshot does not have; "
                "delete its index.json, then `vecmill index CONFIG` builds the index anew"
            )
        begin = shard.vector_begin + row * shard.row_bytes
        ranges.append(Range(shard.file, begin, begin + shard.row_bytes))
    of_all = next(iter(shards.values()))  # dim and dtype are the snapshot's
    dtype = np.dtype(of_all.dtype).newbyteorder("<")
    vectors = np.frombuffer(b"".join(reader.read(ranges)), dtype).reshape(-1, of_all.dim).astype(np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.abs(norms[:, 0] - 1) < _MAX_NORM_ERROR))
    if len(bad):
        raise StoreError(
            f"embedding shard {ranges[bad[0]].file} was damaged: row {int(addresses[bad[0]]) & 0xFFFFFFFF} is no "
            f"vector; {RESTORE}"
        )
    return np.asarray(vectors / norms, np.float32)
