"""Ours: `vecmill index` from a started Ray, driver and workers together."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from jobs.index_benchmark.task import Built, Searcher, Setting, Task
from jobs.index_benchmark.vectors import link_store
from pipeline.config import Config
from pipeline.index.codecs import Floats
from pipeline.index.description import IndexDescription, Settings
from pipeline.index.recall import RERANK_DEPTHS, probe_levels
from pipeline.index.shards import Rows
from pipeline.search import IndexReader, SearchableSnapshot
from pipeline.search.opened import open_searchable

OURS = "ours"


class Ours:
    """The index job; each build is of a store of its own, whose shards are hard links."""

    name = OURS

    @contextmanager
    def ready(self, task: Task, folder: Path) -> Iterator[Callable[[], Built]]:
        """Ray runs; what its workers import, they import in the build."""
        from pipeline.flow.cluster import connected
        from pipeline.indexing import index

        link_store(task.snapshot(), folder)
        config = with_store(task.config, folder)

        def build() -> Built:
            stages, told_by = _Stages(), logging.getLogger("pipeline.index.build")
            told_by.addHandler(stages)
            told_by.setLevel(logging.INFO)
            started = time.monotonic()
            outcome = index(config)
            seconds = time.monotonic() - started
            snapshot = open_searchable(str(folder))
            description = snapshot.index.description
            told = ("codec", "nlist", "nprobe", "rerank", "recall_at_10", "recall_interval", "read_ratio", "queries")
            return Built(
                seconds,
                stages.seconds | {"other": seconds - sum(stages.seconds.values())},
                bytes_by_kind(snapshot, description),
                f"{description.codec}, {description.nlist} lists",
                {"code_bytes": description.num_code_bytes} | {name: outcome[name] for name in told},
            )

        with connected(config.cluster):
            yield build

    def open(self, task: Task, folder: Path) -> Searcher:
        """The published index of a store."""
        return OurSearcher(open_searchable(str(folder)).index)


def with_store(config: Config, folder: Path) -> Config:
    """The config, of a store in this folder."""
    store = config.store.model_copy(update={"uri": str(folder), "storage_options": {}})
    return config.model_copy(update={"store": store})


class _Stages(logging.Handler):
    """Collects what the build logs of its stages."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == "%s: %.1f s" and isinstance(record.args, tuple):
            stage, seconds = record.args
            self.seconds[str(stage)] = float(str(seconds))


def bytes_by_kind(snapshot: SearchableSnapshot, description: IndexDescription) -> Mapping[str, int]:
    """Bytes of an index by what they are; of the codes files by column, what is in none is their footers."""
    kinds: Counter[str] = Counter()
    for part in description.parts:
        with snapshot.storage.open(part.codes.file) as source:
            metadata = pq.ParquetFile(source).metadata
        columns = Counter[str]()
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            for index in range(row_group.num_columns):
                column = row_group.column(index)
                columns[column.path_in_schema.partition(".")[0]] += column.total_compressed_size
        kinds += columns
        kinds["footers"] += part.codes.size - columns.total()
        kinds["addresses"] += part.addresses.size
    for name in ("centroids", "lists", "deleted", "panel"):
        kinds[f"{name}.parquet"] += getattr(description, name).size
    return dict(kinds)


class OurSearcher:
    """The index as its readers search it."""

    names = ("nprobe", "rerank")

    def __init__(self, reader: IndexReader) -> None:
        self.reader = reader
        description = self.reader.description
        self.efforts = probe_levels(description.nlist, only_all=description.is_exact, up_to_all=True)
        self.reranks = RERANK_DEPTHS if description.codec != "float16" else (0,)

    def search(self, queries: Floats, k: int, setting: Setting) -> Rows:
        """As `Searcher.search`."""
        wanted = Settings(nprobe=setting.effort, rerank=setting.rerank)
        if self.reader.description.search != wanted:
            self.reader.description = self.reader.description.model_copy(update={"search": wanted})
        return self.reader.search(queries, k).addresses
