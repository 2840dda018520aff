"""The index job, from a config to a published index; the whole of it on this page.

    current    the snapshot, under the lease; what a gc has doomed of indexes goes first
    build      pipeline.index, its stages on Ray; Ray starts with the first task, so that a run with nothing to do
               needs none
    publish    a manifest of the same rows, with the index; unless an embed or a rollback came first

Run again after whatever ended it, it goes on by stage and part: records on storage decide what is left.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.config import Config, redact_uri
from pipeline.flow.context import DriverEnvironment
from pipeline.index.build import build
from pipeline.index.description import IndexDescription
from pipeline.index.prepare import Found, Item, Queries
from pipeline.logs import LogSettings, log_run
from pipeline.query_file import read_queries
from pipeline.signals import interruptible
from pipeline.snapshots.commit import publish_index
from pipeline.snapshots.gc import finish_indexes
from pipeline.snapshots.lease import Lease, new_run_id
from pipeline.snapshots.manifest import IndexRef, Manifest
from pipeline.snapshots.reader import snapshot_of
from pipeline.snapshots.store import open_store
from pipeline.uris import Storage

if TYPE_CHECKING:
    from pipeline.flow.index import IndexSession

log = logging.getLogger(__name__)


def index(config: Config, *, quiet: bool = True) -> dict[str, Any]:
    """Publish the index of the current snapshot, or find that it has this one already.

    Args:
        config: whose store, and what kind of index.
        quiet: keep Ray's own log off stderr.

    Returns:
        The outcome as `vecmill index` prints it: snapshot_id, published, what the index is, seconds.

    Raises:
        VecmillError: see pipeline.errors for what each subclass means and its exit code.
    """
    started = time.monotonic()
    with interruptible():
        store = Storage(config.store.uri, config.store.storage_options)
        open_store(store, None, create=False)
        given = config.index.queries
        texts = None if given is None else tuple(read_queries(given, config.input.storage_options).values())
        snapshot_of(store)  # a store without one is told before the lease
        run_id = new_run_id()
        log_run(run_id)
        with Lease(store, run_id) as lease:
            outcome = _Run(config, run_id, store, texts, lease, quiet).to_end()
    return outcome | {"seconds": round(time.monotonic() - started, 1)}


@dataclass(frozen=True)
class _Run:
    """One run under its lease."""

    config: Config
    run_id: str
    store: Storage
    texts: tuple[str, ...] | None
    """Of the queries given."""
    lease: Lease
    quiet: bool

    def to_end(self) -> dict[str, Any]:
        """Build what is left, publish."""
        snapshot = snapshot_of(self.store)
        manifest = snapshot.manifest
        finish_indexes(self.store, manifest)
        with ExitStack() as stack:
            queries = Queries(self.texts, lambda texts: self._encode(manifest, texts))
            built = build(snapshot, self.config.index, queries, run=_Tasks(self._connect, stack, self.lease))
        description = built.description
        ref = IndexRef(file=built.file.file, checksum=built.file.checksum, snapshot_id=description.snapshot_id)
        is_new = ref != manifest.index
        if is_new:
            files = [built.file.file, *(file.file for file in description.files())]
            manifest = publish_index(self.store, manifest, ref, files, self.run_id)
        return self._outcome(manifest, description, published=is_new)

    def _encode(self, manifest: Manifest, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Texts to vectors, as queries: by the snapshot's encoder, in this process."""
        from pipeline.search import QueryEncoder  # torch: not needed where documents are the queries

        config = self.config
        encoder = QueryEncoder(manifest, config.encoder, config.input.text, config.input.storage_options)
        return encoder.encode(texts)

    def _connect(self, stack: ExitStack) -> IndexSession:
        from pipeline.flow.index import Setting, index_session  # Ray is slow to import, and not needed to do nothing

        log.info("starting Ray")
        setting = Setting(self.run_id, DriverEnvironment(os.environ), LogSettings.current(self.run_id))
        return stack.enter_context(index_session(self.config.cluster, self.store, setting, quiet=self.quiet))

    def _outcome(self, manifest: Manifest, description: IndexDescription, *, published: bool) -> dict[str, Any]:
        counts = manifest.accounting.model_dump()
        # No run of this job embeds, or deletes.
        counts |= {"embedded": 0, "reused": counts["embedded"] + counts["reused"], "deleted": 0}
        return {
            "snapshot_id": manifest.snapshot_id,
            "published": published,
            **counts,
            **description.figures(),
            "run_id": self.run_id,
            "store_uri": redact_uri(self.store.uri),
        }


@dataclass
class _Tasks:
    """Runs stages on Ray, which is started for the first that has anything to do."""

    connect: Callable[[ExitStack], IndexSession]
    stack: ExitStack
    lease: Lease
    session: IndexSession | None = None

    def __call__(self, stage: str, call: Callable[[Item], Found], items: Sequence[Item]) -> Iterable[Found]:
        if not items:
            return ()
        self.session = self.session or self.connect(self.stack)
        return self.session.run(stage, call, items, self.lease.update)
