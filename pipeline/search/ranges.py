"""Byte ranges of objects of a store, many at a time and few requests.

Ranges of one object that lie near each other become one request, up to a size that is worth a
connection of its own; on object storage requests go out together, so that whatever is asked for at
once takes one round trip.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from pipeline.errors import StoreError
from pipeline.index.layout import INDEXES, REBUILD
from pipeline.index.shards import RESTORE
from pipeline.uris import Storage

# Reading over such a gap is sooner done than another request; neighbouring lists are mostly nearer than that.
_MAX_GAP_BYTES = 32 * 2**10

_MAX_REQUEST_BYTES = 8 * 2**20

_MAX_REQUESTS = 32
"""At once."""


class Range(NamedTuple):
    """Bytes [begin, end) of an object of the store."""

    file: str
    begin: int
    end: int


class RangeReader:
    """Reads ranges; any number of threads may share one."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        # It starts no thread before it is used.
        self._requests = ThreadPoolExecutor(_MAX_REQUESTS, thread_name_prefix="ranges")

    def read(self, ranges: Sequence[Range]) -> list[memoryview]:
        """The bytes of each range, in their order.

        Raises:
            StoreError: an object is missing, or ends before a range does.
            EnvironmentFault: storage failed.
        """
        together = coalesce(ranges)
        if self.storage.is_local or len(together) == 1:
            found = [self._read(one) for one, _ in together]
        else:
            running: list[Future[memoryview]] = [self._requests.submit(self._read, one) for one, _ in together]
            try:
                found = [future.result() for future in running]
            finally:
                for future in running:
                    future.cancel()
        data: list[memoryview] = [memoryview(b"")] * len(ranges)
        for (one, places), read in zip(together, found, strict=True):
            for place in places:
                begin = ranges[place].begin - one.begin
                data[place] = read[begin : begin + ranges[place].end - ranges[place].begin]
        return data

    def _read(self, wanted: Range) -> memoryview:
        uri = partial(self.storage.full_uri, wanted.file)
        is_of_index = wanted.file.startswith(INDEXES)  # else an embedding shard, for the rerank
        try:
            data = self.storage.read_range(wanted.file, wanted.begin, wanted.end)
        except FileNotFoundError:
            way_out = "`vecmill index CONFIG` builds the index anew" if is_of_index else RESTORE
            raise StoreError(f"missing from the store: {uri()}, which the index needs; {way_out}") from None
        if len(data) != wanted.end - wanted.begin:
            way_out = REBUILD if is_of_index else RESTORE
            raise StoreError(f"damaged: {uri()} ends before byte {wanted.end}, which the index needs; {way_out}")
        return memoryview(data)


def coalesce(ranges: Iterable[Range]) -> list[tuple[Range, list[int]]]:
    """Requests that cover all ranges, each with the places of those that it covers."""
    found: list[tuple[Range, list[int]]] = []
    for place, wanted in sorted(enumerate(ranges), key=lambda one: one[1]):
        if found:
            last, places = found[-1]
            end = max(last.end, wanted.end)
            is_near = last.file == wanted.file and wanted.begin - last.end <= _MAX_GAP_BYTES
            if is_near and (end - last.begin <= _MAX_REQUEST_BYTES or wanted.begin < last.end):
                places.append(place)
                found[-1] = (last._replace(end=end), places)
                continue
        found.append((wanted, [place]))
    return found
