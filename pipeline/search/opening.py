"""From a snapshot to its index: what is read, in which order, and what is refused.

All that lies in the folder of index.json is asked for together with it, and so is the shards table: from
object storage that is one round trip (a second one where the snapshot is newer than its index).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.errors import StoreError
from pipeline.index.description import IndexDescription, read_description
from pipeline.index.files import read_file, read_quantizer
from pipeline.index.layout import DELETED_SCHEMA, DIRECTORY_SCHEMA, REBUILD
from pipeline.index.shards import Shard, shards_in
from pipeline.search.directory import make_directory
from pipeline.search.reader import IndexReader
from pipeline.snapshots.manifest import SHARDS_SCHEMA, read_table
from pipeline.snapshots.reader import Snapshot
from pipeline.uris import Storage

CACHE_BYTES = 256 * 2**20
"""Of lists that a reader holds."""


class ReadAhead(Storage):
    """A storage that has asked for some objects beforehand, all at once; those that are not there are missed later."""

    def __init__(self, storage: Storage, names: Sequence[str]) -> None:
        super().__init__(*storage.__reduce__()[1])
        self._ahead: dict[str, Future[bytes]] = {}
        if not self.is_local:
            with ThreadPoolExecutor(len(names)) as pool:
                self._ahead = {name: pool.submit(super(ReadAhead, self).read, name) for name in names}

    def read(self, name: str) -> bytes:
        """As `Storage.read`."""
        ahead = self._ahead.get(name)
        return super().read(name) if ahead is None else ahead.result()


def open_index(snapshot: Snapshot, *, cache_bytes: int = CACHE_BYTES) -> IndexReader:
    """The index that the snapshot's manifest names.

    Args:
        snapshot: which.
        cache_bytes: of lists, held at most.

    Raises:
        StoreError: there is none; or it is of another encoder, newer than this reader, missing or damaged.
    """
    manifest = snapshot.manifest
    if manifest.index is None:
        raise StoreError(
            f"snapshot {manifest.snapshot_id} of {snapshot.storage.uri} has no index; `vecmill index CONFIG` builds one"
        )
    name = manifest.index.file
    folder = name.rpartition("/")[0]
    # Only rabitq has a rotation: its name, which the centroids tell, would take a round trip to learn.
    beside = [f"{folder}/{file}.parquet" for file in ("centroids", "rotation", "lists", "deleted")]
    storage = ReadAhead(snapshot.storage, [name, *beside, manifest.shards.file])
    description = read_description(storage, name, manifest.index.checksum)
    if description.encoder_fp != manifest.encoder_fp:
        raise StoreError(
            f"the index of snapshot {description.snapshot_id} is of the encoder {description.encoder_fp}, snapshot "
            f"{manifest.snapshot_id} of {manifest.encoder_fp}; "
            "`vecmill index CONFIG` builds its own; --exact needs none"
        )
    quantizer = read_quantizer(storage, description.centroids, description.quantizer_fp)
    shape = (quantizer.nlist, quantizer.dim, quantizer.codec.name, quantizer.codec.num_bytes)
    told = (description.nlist, description.dim, description.codec, description.num_code_bytes)
    if shape != told or quantizer.encoder_fp != description.encoder_fp:
        raise StoreError(f"damaged: {storage.full_uri(name)} does not fit its centroids; {REBUILD}")
    quantizer.check_golden(description.golden, storage.full_uri(name))
    lists = read_file(storage, description.lists, DIRECTORY_SCHEMA)
    deleted = read_file(storage, description.deleted, DELETED_SCHEMA)
    directory = make_directory(lists, deleted, description, storage.full_uri(description.lists.file))
    return IndexReader(snapshot.storage, description, quantizer, directory, _shards(storage, description), cache_bytes)


def _shards(storage: Storage, description: IndexDescription) -> dict[int, Shard]:
    table = read_table(storage, description.shards, SHARDS_SCHEMA)
    return {shard.ordinal: shard for shard in shards_in(table, description.dim, description.vector_dtype)}
