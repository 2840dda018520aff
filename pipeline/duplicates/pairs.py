"""Where hashes meet: (hash, place) pairs by bucket, in memory up to a bound, beyond it in files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import EnvironmentFault

MAX_PAIRS_IN_MEMORY = 2**22
"""Of 16 bytes."""
_NUM_BUCKETS = 256

Places = npt.NDArray[np.int64]
"""Rows of all shards of a snapshot one after another."""


class Pairs:
    """(hash, place) pairs by bucket; added by ascending place, which is their order in a bucket."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: list[npt.NDArray[np.uint64]] = []  # (N, 2)
        self._num_pending = 0
        self._is_spilt = False

    def add(self, hashes: npt.NDArray[np.uint64], places: Places) -> None:
        """Take the pairs of one shard."""
        self._pending.append(np.stack([hashes, places.astype(np.uint64)], axis=1))
        self._num_pending += len(hashes)
        if self._num_pending > MAX_PAIRS_IN_MEMORY:
            self._spill()

    def meetings(self) -> Iterator[Places]:
        """The places whose hash another has too, of one bucket after the other."""
        if not self._is_spilt:
            yield _meeting(self._taken())
            return
        self._spill()
        for bucket in range(_NUM_BUCKETS):
            path = self._folder / str(bucket)
            if path.exists():
                yield _meeting(np.fromfile(path, np.uint64).reshape(-1, 2))

    def _taken(self) -> npt.NDArray[np.uint64]:
        pairs = np.concatenate([np.empty((0, 2), np.uint64), *self._pending])
        self._pending, self._num_pending = [], 0
        return pairs

    def _spill(self) -> None:
        self._is_spilt = True
        pairs = self._taken()
        buckets = (pairs[:, 0] >> np.uint64(56)).astype(np.uint8)  # sorted by radix, as 8 bits are
        order = np.argsort(buckets, kind="stable")
        ends = np.cumsum(np.bincount(buckets, minlength=_NUM_BUCKETS))
        try:
            for bucket, part in enumerate(np.split(pairs[order], ends[:-1])):
                if len(part):
                    with (self._folder / str(bucket)).open("ab") as file:
                        file.write(part.tobytes())
        except OSError as error:
            raise EnvironmentFault(
                f"no room for temporary files in {tempfile.gettempdir()} ({os.strerror(error.errno or 0)}); finding "
                "duplicate ids takes 16 bytes a row: free some, or set TMPDIR, and run the same command again"
            ) from None


def _meeting(pairs: npt.NDArray[np.uint64]) -> Places:
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    same = pairs[1:, 0] == pairs[:-1, 0]
    meets = np.concatenate([same, [False]]) | np.concatenate([[False], same]) if len(pairs) else same
    places: Places = pairs[meets, 1].astype(np.int64)
    return places


def batched(parts: Iterator[Places], num: int) -> Iterator[Places]:
    """Whole parts together, up to `num` places or one part; fewer, larger batches read a shard again less often."""
    batch: list[Places] = []
    for part in parts:
        if batch and sum(map(len, batch)) + len(part) > num:
            yield np.concatenate(batch)
            batch = []
        if len(part):
            batch.append(part)
    if batch:
        yield np.concatenate(batch)
