"""What one would use instead: faiss in memory, LanceDB, hnswlib, autofaiss.

All index the vectors of the same shards, under the same row addresses, with as many lists and threads as ours.
faiss reads the shards, trains, adds and writes its file. LanceDB needs the vectors in a table of its own first: that is
told apart, and is not in its seconds. Both train on more rows, and for longer, than ours does: each is there
as it comes, and with training as ours has it.

hnswlib is a graph: no lists, no codec, all vectors in memory. autofaiss chooses its index by itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.benchmark_peers import Unavailable
from jobs.index_benchmark.task import Built, Contestant, Searcher, Setting, Task, padded
from jobs.index_benchmark.vectors import blocks, folder_bytes, sample
from pipeline.index.codecs import Floats
from pipeline.index.recall import probe_levels
from pipeline.index.shards import Rows

# Rows that ours trains a list on, and for how long.
_OUR_SAMPLE, _OUR_ITERATIONS = 96, 8

# faiss' own bound; of more it draws.
_FAISS_SAMPLE = 256

_GRAPH_LINKS, _GRAPH_CONSTRUCTION = 16, 200
_GRAPH_EFFORTS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_MAX_GRAPH_ROWS = 300_000


@dataclass(frozen=True)
class Faiss:
    """IVF,SQ8 in one process."""

    name: str
    like_ours: bool = False

    @contextmanager
    def ready(self, task: Task, folder: Path) -> Iterator[Callable[[], Built]]:
        """As `Contestant.ready`."""
        faiss: Any = import_module("faiss")
        faiss.omp_set_num_threads(task.num_threads)
        snapshot, factory = task.snapshot(), f"IVF{task.nlist},SQ8"
        folder.mkdir()

        def build() -> Built:
            started = time.monotonic()
            index = faiss.index_factory(snapshot.dim, factory, faiss.METRIC_L2)
            told = f"{factory}, {index.cp.niter} iterations over at most {_FAISS_SAMPLE} rows a list"
            num_sample = _FAISS_SAMPLE * task.nlist
            if self.like_ours:
                index.cp.niter = _OUR_ITERATIONS
                index.cp.min_points_per_centroid = 1
                num_sample = task.num_sample
                told = f"{factory}, {_OUR_ITERATIONS} iterations over {num_sample:,} rows"
            index.train(sample(snapshot, num_sample).vectors)
            trained = time.monotonic()
            for addresses, vectors in blocks(snapshot):
                index.add_with_ids(vectors, addresses)
            faiss.write_index(index, str(folder / "index.faiss"))
            ended = time.monotonic()
            stages = {"train": trained - started, "add": ended - trained}
            return Built(ended - started, stages, {"file": folder_bytes(folder)}, told)

        yield build

    def open(self, task: Task, folder: Path) -> Searcher:
        """In memory."""
        faiss: Any = import_module("faiss")
        faiss.omp_set_num_threads(task.num_threads)
        return _FaissSearcher(faiss, faiss.read_index(str(folder / "index.faiss")), None)


class _FaissSearcher:
    """Of whatever index: autofaiss may choose lists, a graph, or neither."""

    def __init__(self, faiss: Any, index: Any, addresses: Rows | None) -> None:
        self._faiss, self._index, self._addresses = faiss, index, addresses
        self._parameter = ""
        self.efforts: Sequence[int] = (1,)
        self.reranks = (0,)
        if (ivf := faiss.try_extract_index_ivf(index)) is not None:
            self._parameter = "nprobe"
            self.efforts = probe_levels(ivf.nlist, only_all=False, up_to_all=True)
        elif hasattr(index, "hnsw"):
            self._parameter, self.efforts = "efSearch", _GRAPH_EFFORTS
        self.names = (self._parameter or "all", "")

    def search(self, queries: Floats, k: int, setting: Setting) -> Rows:
        """As `Searcher.search`."""
        if self._parameter:
            self._faiss.ParameterSpace().set_index_parameter(self._index, self._parameter, setting.effort)
        found = np.asarray(self._index.search(queries, k)[1], np.int64)
        return found if self._addresses is None else np.where(found < 0, -1, self._addresses[found])


@dataclass(frozen=True)
class LanceDb:
    """IVF_SQ on disk."""

    name: str
    like_ours: bool = False

    @contextmanager
    def ready(self, task: Task, folder: Path) -> Iterator[Callable[[], Built]]:
        """With the vectors in its table already."""
        lancedb, lance_index = _lance(task)
        snapshot = task.snapshot()
        item = pa.field("item", pa.float32())
        schema = pa.schema([pa.field("id", pa.int64()), pa.field("vector", pa.list_(item, snapshot.dim))])

        def batches() -> Iterator[pa.RecordBatch]:
            for addresses, vectors in blocks(snapshot):
                flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
                columns = [pa.array(addresses), pa.FixedSizeListArray.from_arrays(flat, snapshot.dim)]
                yield pa.record_batch(
                    [column.cast(field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
                )

        started = time.monotonic()
        table = lancedb.connect(str(folder)).create_table("vectors", batches(), schema=schema)
        ingest_s = time.monotonic() - started
        before = set(folder.rglob("*"))

        def build() -> Built:
            config = lance_index.IvfSq(distance_type="l2", num_partitions=task.nlist)
            if self.like_ours:
                config.max_iterations, config.sample_rate = _OUR_ITERATIONS, _OUR_SAMPLE
            started = time.monotonic()
            table.create_index("vector", config=config)
            table.wait_for_index([entry.name for entry in table.list_indices()])
            seconds = time.monotonic() - started
            num_bytes = sum(path.stat().st_size for path in set(folder.rglob("*")) - before if path.is_file())
            told = (
                f"IVF_SQ, {task.nlist} partitions, at most {config.max_iterations} iterations over "
                f"{config.sample_rate} rows a list"
            )
            return Built(seconds, {"(ingest)": ingest_s, "create_index": seconds}, {"files": num_bytes}, told)

        yield build

    def open(self, task: Task, folder: Path) -> Searcher:
        """On disk, what it holds of it in its own caches."""
        return _LanceSearcher(_lance(task)[0].connect(str(folder)).open_table("vectors"), task.nlist)


def _lance(task: Task) -> tuple[Any, Any]:
    # Read when it is first used.
    os.environ["LANCE_CPU_THREADS"] = str(task.num_threads)
    return import_module("lancedb"), import_module("lancedb.index")


class _LanceSearcher:
    names = ("nprobes", "refine_factor")

    def __init__(self, table: Any, nlist: int) -> None:
        self._table = table
        self.efforts = probe_levels(nlist, only_all=False, up_to_all=True)
        self.reranks = (0, 2, 4)
        """As its refine_factor: times k."""

    def search(self, queries: Floats, k: int, setting: Setting) -> Rows:
        """As `Searcher.search`; one after the other."""
        found = []
        for query in queries:
            asked = self._table.search(query).limit(k).nprobes(setting.effort).select(["id", "_distance"])
            if setting.rerank:
                asked = asked.refine_factor(setting.rerank)
            found.append(asked.to_arrow()["id"].to_numpy())
        return padded(found, k)


@dataclass(frozen=True)
class Hnswlib:
    """A graph over all vectors, in memory."""

    name: str

    @contextmanager
    def ready(self, task: Task, folder: Path) -> Iterator[Callable[[], Built]]:
        """As `Contestant.ready`."""
        hnswlib: Any = import_module("hnswlib")
        snapshot = task.snapshot()
        num_rows = snapshot.manifest.accounting.chunks
        if num_rows > _MAX_GRAPH_ROWS:
            raise Unavailable(f"takes too long over {num_rows:,} rows, at most {_MAX_GRAPH_ROWS:,}")
        folder.mkdir()

        def build() -> Built:
            started = time.monotonic()
            index = hnswlib.Index(space="ip", dim=snapshot.dim)
            index.init_index(num_rows, M=_GRAPH_LINKS, ef_construction=_GRAPH_CONSTRUCTION, random_seed=1)
            for addresses, vectors in blocks(snapshot):
                index.add_items(vectors, addresses, num_threads=task.num_threads)
            index.save_index(str(folder / "index.hnsw"))
            seconds = time.monotonic() - started
            told = f"M {_GRAPH_LINKS}, ef_construction {_GRAPH_CONSTRUCTION}"
            return Built(seconds, {"add": seconds}, {"file": folder_bytes(folder)}, told)

        yield build

    def open(self, task: Task, folder: Path) -> Searcher:
        """In memory."""
        index = import_module("hnswlib").Index(space="ip", dim=task.snapshot().dim)
        index.load_index(str(folder / "index.hnsw"))
        return _GraphSearcher(index, task.num_threads)


class _GraphSearcher:
    names = ("ef", "")
    efforts = _GRAPH_EFFORTS
    reranks = (0,)

    def __init__(self, index: Any, num_threads: int) -> None:
        self._index, self._num_threads = index, num_threads

    def search(self, queries: Floats, k: int, setting: Setting) -> Rows:
        """As `Searcher.search`."""
        self._index.set_ef(max(k, setting.effort))
        return np.asarray(self._index.knn_query(queries, k, num_threads=self._num_threads)[0], np.int64)


@dataclass(frozen=True)
class Autofaiss:
    """faiss with what autofaiss chooses for the number of rows."""

    name: str

    @contextmanager
    def ready(self, task: Task, folder: Path) -> Iterator[Callable[[], Built]]:
        """As `Contestant.ready`."""
        try:
            autofaiss: Any = import_module("autofaiss")
        except ModuleNotFoundError:
            raise Unavailable("not installed; it asks for numpy below 2, but runs: see pyproject.toml") from None
        faiss: Any = import_module("faiss")
        snapshot = task.snapshot()
        folder.mkdir()

        def build() -> Built:
            started = time.monotonic()
            vectors = np.concatenate([vectors for _, vectors in blocks(snapshot)])
            # Not on disk: with a numpy of today its own file of figures fails.
            index, infos = autofaiss.build_index(
                vectors, save_on_disk=False, metric_type="ip", nb_cores=task.num_threads, verbose=40
            )
            faiss.write_index(index, str(folder / "index.faiss"))
            seconds = time.monotonic() - started
            return Built(seconds, {}, {"file": folder_bytes(folder)}, str((infos or {}).get("index_key", "")))

        yield build

    def open(self, task: Task, folder: Path) -> Searcher:
        """In memory; its ids are places."""
        faiss: Any = import_module("faiss")
        faiss.omp_set_num_threads(task.num_threads)
        addresses = np.concatenate([addresses for addresses, _ in blocks(task.snapshot())])
        return _FaissSearcher(faiss, faiss.read_index(str(folder / "index.faiss")), addresses)


PEERS: dict[str, tuple[Contestant, ...]] = {
    "faiss": (Faiss("faiss"), Faiss("faiss, trained as ours", like_ours=True)),
    "lancedb": (LanceDb("LanceDB"), LanceDb("LanceDB, trained as ours", like_ours=True)),
    "hnswlib": (Hnswlib("hnswlib"),),
    "autofaiss": (Autofaiss("autofaiss"),),
}
"""By the name of their package; in the order in which they run."""
