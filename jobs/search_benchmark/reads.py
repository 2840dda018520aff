"""What only ours is asked: bytes and requests of a query, codes read, and many queries at once against one by one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jobs.index_benchmark.ours import OurSearcher
from jobs.index_benchmark.task import Setting
from jobs.search_benchmark.queries import Questions
from pipeline.search import SearchableSnapshot, open_index
from pipeline.search.opened import open_searchable
from pipeline.uris import ObjectInfo, Storage

_NUM_COUNTED = 200
_NUM_BATCH = 10_000


class CountingStorage(Storage):
    """A storage that counts what is read of it by range."""

    num_reads = 0
    num_bytes = 0

    def read_range(self, name: str, begin: int, end: int, *, expect: ObjectInfo | None = None) -> bytes:
        """As `Storage.read_range`."""
        self.num_reads += 1
        self.num_bytes += end - begin
        return super().read_range(name, begin, end, expect=expect)


def costs_of(store: Path, questions: Questions, setting: Setting) -> Mapping[str, Any]:
    """Of one query with nothing cached; and of 10^4 at once, warm.

    `bytes_per_query`, `reads_per_query` (ranges of a file, those near each other as one), `codes_read_ratio`,
    `batch_queries`, `batch_s`, `one_by_one_s` (of as many) and `batch_speedup`.
    """
    opened = open_searchable(str(store))
    counting = CountingStorage(opened.storage.uri)
    snapshot = SearchableSnapshot(counting, opened.manifest)
    cold, some = OurSearcher(open_index(snapshot, cache_bytes=0)), questions.vectors[:_NUM_COUNTED]
    counting.num_reads = counting.num_bytes = 0
    for place in range(len(some)):
        cold.search(some[place : place + 1], questions.num_asked, setting)
    return {
        "bytes_per_query": round(counting.num_bytes / len(some)),
        "reads_per_query": round(counting.num_reads / len(some), 1),
        "codes_read_ratio": codes_read_ratio(cold, some, setting),
        **_batch(OurSearcher(opened.index), questions, setting),
    }


def codes_read_ratio(searcher: OurSearcher, queries: Any, setting: Setting) -> float:
    """Share of the codes that a query reads, on average."""
    reader = searcher.reader
    sizes = np.zeros(reader.description.nlist, np.int64)
    np.add.at(sizes, reader.directory.list_id, reader.directory.num_rows)
    probed = reader.quantizer.nearest_lists(queries, setting.effort)
    return round(float(sizes[probed].sum(1).mean() / sizes.sum()), 5)


def _batch(searcher: OurSearcher, questions: Questions, setting: Setting) -> Mapping[str, Any]:
    queries = np.resize(questions.vectors, (_NUM_BATCH, questions.vectors.shape[1]))
    searcher.search(queries[: len(questions.vectors)], questions.num_asked, setting)  # what is cached, is
    started = time.perf_counter()
    for place in range(len(questions.vectors)):
        searcher.search(queries[place : place + 1], questions.num_asked, setting)
    one_by_one_s = (time.perf_counter() - started) * _NUM_BATCH / len(questions.vectors)
    started = time.perf_counter()
    searcher.search(queries, questions.num_asked, setting)
    batch_s = time.perf_counter() - started
    return {
        "batch_queries": _NUM_BATCH,
        "batch_s": round(batch_s, 2),
        "one_by_one_s": round(one_by_one_s, 2),
        "batch_speedup": round(one_by_one_s / batch_s, 2),
    }
