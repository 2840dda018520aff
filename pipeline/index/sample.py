"""A sample of the corpus to train on: rows drawn evenly over all shards, never the first ones.

Rows are drawn in short runs, without replacement, from all rows of the snapshot in one draw: a run is one
range read on object storage, and its rows, neighbours in their file, are no more alike than those of
one topic are anyhow. Runs of a shard that lie near each other are read together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.index.codecs import Floats
from pipeline.index.shards import Rows, Shard, read_vectors, row_addresses, unit
from pipeline.uris import Storage

_RUN_ROWS = 16

# What is read in vain rather than by one more request.
_MAX_GAP_BYTES = 256 * 2**10


class Sample(NamedTuple):
    """Unit vectors (N, D) and their row addresses (N,)."""

    vectors: Floats
    addresses: Rows


def plan_sample(shards: Sequence[Shard], num: int, seed: int) -> list[tuple[Shard, Rows]]:
    """Which rows of which shards are the sample, of `num` rows but for less than a run; all if there are fewer.

    The same snapshot, number and seed give the same rows.
    """
    starts = np.cumsum([0, *(shard.num_rows for shard in shards)])
    total = int(starts[-1])
    num_runs = -(-total // _RUN_ROWS)
    wanted = min(num_runs, -(-num // _RUN_ROWS))
    runs = np.sort(np.random.default_rng(seed).choice(num_runs, wanted, replace=False, shuffle=False))
    rows = (runs[:, None] * _RUN_ROWS + np.arange(_RUN_ROWS)).reshape(-1)
    rows = rows[rows < total]
    of_shard = np.searchsorted(starts, rows, side="right") - 1
    drawn = [(shard, rows[of_shard == index] - starts[index]) for index, shard in enumerate(shards)]
    return [(shard, found) for shard, found in drawn if len(found)]


def read_sample(storage: Storage, shard: Shard, rows: Rows) -> Sample:
    """The sample's part of one shard; `rows` ascending.

    Raises:
        StoreError: the shard is missing or damaged.
    """
    gap = max(1, _MAX_GAP_BYTES // shard.row_bytes)
    cuts = np.flatnonzero(np.diff(rows) > gap) + 1
    vectors = [
        read_vectors(storage, shard, int(some[0]), int(some[-1]) + 1)[some - some[0]] for some in np.split(rows, cuts)
    ]
    return Sample(unit(np.concatenate(vectors)), row_addresses(shard, rows))


def join_samples(samples: Iterable[Sample], num: int, dim: int) -> Sample:
    """The parts of several shards, `num` rows in all, in order, as one; what came is not held twice."""
    vectors, addresses = np.empty((num, dim), np.float32), np.empty(num, np.int64)
    begin = 0
    for sample in samples:
        end = begin + len(sample.addresses)
        vectors[begin:end], addresses[begin:end] = sample
        begin = end
    assert begin == num
    return Sample(vectors, addresses)


def read_rows(storage: Storage, shards: Sequence[Shard], addresses: Rows) -> Floats:
    """Unit vectors (N, D) at ascending row addresses.

    Raises:
        StoreError: a shard is missing or damaged.
    """
    of_ordinal = {shard.ordinal: shard for shard in shards}
    parts = [
        read_sample(storage, of_ordinal[ordinal], addresses[addresses >> 32 == ordinal] & 0xFFFFFFFF).vectors
        for ordinal in np.unique(addresses >> 32).tolist()
    ]
    return np.concatenate([np.zeros((0, shards[0].dim), np.float32), *parts])
