"""A snapshot as `pipeline.open` gives it: its files, and answers to queries."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import UsageError
from pipeline.search.exact import MAX_EXACT_ROWS, exact_search
from pipeline.search.neighbours import Neighbours
from pipeline.search.opening import open_index
from pipeline.search.queries import QueryEncoder
from pipeline.search.reader import IndexReader
from pipeline.snapshots.manifest import Manifest
from pipeline.snapshots.reader import Snapshot, open_snapshot
from pipeline.uris import Storage


class SearchableSnapshot(Snapshot):
    """A snapshot that answers queries; index and encoder are opened when they are first needed. Threads may share it.

    Args:
        storage: of the store.
        manifest: of the snapshot.
        make_encoder: of the snapshot's queries; without one, its config tells the model.
    """

    def __init__(
        self, storage: Storage, manifest: Manifest, make_encoder: Callable[[Manifest], QueryEncoder] = QueryEncoder
    ) -> None:
        super().__init__(storage, manifest)
        self._make_encoder = make_encoder
        self._encoder: QueryEncoder | None = None
        self._index: IndexReader | None = None
        self._opening = threading.Lock()
        self._encoding = threading.Lock()

    def __reduce__(
        self,
    ) -> tuple[type[SearchableSnapshot], tuple[Storage, Manifest, Callable[[Manifest], QueryEncoder]]]:
        return type(self), (self.storage, self.manifest, self._make_encoder)

    @property
    def index(self) -> IndexReader:
        """The index that the manifest names, which may serve an older snapshot: `index.description.snapshot_id`.

        Raises:
            StoreError: there is none, or it cannot be used.
        """
        with self._opening:
            if self._index is None:
                self._index = open_index(self)
            return self._index

    @property
    def is_index_current(self) -> bool:
        """Whether the index serves the rows of this very snapshot, and not of an older one."""
        # Not by name: a snapshot of the same rows may list them in another table.
        return self.index.description.shards.checksum == self.manifest.shards.checksum

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Queries to unit vectors (Q, D).

        Raises:
            UsageError: a query is empty, or cannot be encoded.
            ModelError: the snapshot's model is not to be had.
        """
        with self._encoding:  # a tokenizer is of one thread at a time
            if self._encoder is None:
                self._encoder = self._make_encoder(self.manifest)
            return self._encoder.encode(texts)

    def search(
        self,
        queries: str | Sequence[str] | npt.NDArray[np.float32],
        k: int = 10,
        *,
        nprobe: int | None = None,
        recall: float | None = None,
        where: str | None = None,
        exact: bool = False,
    ) -> Neighbours:
        """The nearest rows for each query: by the index if the manifest names one, else exactly.

        Args:
            queries: texts, or unit vectors (Q, D) as the snapshot's encoder makes them.
            k: neighbours of each.
            nprobe: lists of the index to probe; None: as its settings say.
            recall: recall@10 to reach, as measured when the index was built.
            where: an expression of SQL over kept columns, doc_id and chunk_index, which all neighbours meet.
            exact: compare with every vector of this snapshot, also where that takes minutes.

        Raises:
            UsageError: an argument that cannot be used.
            StoreError: a file is missing or damaged; or the index is of another encoder, or newer than this reader.
            EnvironmentFault: storage failed.
        """
        by_index = self.manifest.index is not None and not exact
        if not by_index and (nprobe is not None or recall is not None):
            reason = "with an exact search" if exact else f"snapshot {self.manifest.snapshot_id} has no index"
            raise UsageError(f"nprobe and recall are settings of an index: {reason}; leave them out")
        num_rows = self.manifest.accounting.chunks
        if not by_index and not exact and num_rows > MAX_EXACT_ROWS:
            raise UsageError(
                f"exact search over {num_rows:,} vectors takes minutes; build an index (`vecmill index CONFIG`), "
                "or ask for it with --exact"
            )
        reader = self.index if by_index else None
        if isinstance(queries, np.ndarray):
            vectors = queries
        else:
            vectors = self.encode([queries] if isinstance(queries, str) else queries)
        if reader is None:
            return exact_search(self, vectors, k, where)
        return reader.search(vectors, k, nprobe=nprobe, recall=recall, where=where)


def open_searchable(uri: str, storage_options: Mapping[str, Any] | None = None) -> SearchableSnapshot:
    """The current snapshot of the store at `uri`.

    Raises:
        StoreError: no store, no snapshot yet, or a format newer than this reader.
    """
    found = open_snapshot(uri, storage_options)
    return SearchableSnapshot(found.storage, found.manifest)
