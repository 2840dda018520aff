"""A snapshot as its readers see it: exactly the files that the manifest names.

Never glob a store: files of attempts that do not count lie beside the current ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.snapshots.manifest import (
    SHARDS_SCHEMA,
    SPLITS_SCHEMA,
    Manifest,
    latest,
    manifest_numbers,
    read_manifest,
    read_table,
)
from pipeline.snapshots.store import open_store
from pipeline.uris import Storage


class Snapshot:
    """One snapshot of a store; its tables are read when they are first asked for."""

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self.storage = storage
        self.manifest = manifest

    @cached_property
    def shards(self) -> pa.Table:
        """The embedding shards, one a row (SHARDS_SCHEMA)."""
        return read_table(self.storage, self.manifest.shards, SHARDS_SCHEMA)

    @cached_property
    def splits(self) -> pa.Table:
        """The splits, by input file and begin, one a row (SPLITS_SCHEMA); a pack has a row for each of its files."""
        return read_table(self.storage, self.manifest.splits, SPLITS_SCHEMA)

    def files(self) -> list[str]:
        """Full URIs of the embedding shards, for other engines; in the order of `shards`."""
        return [self.storage.full_uri(name) for name in self.shards["file"].to_pylist()]

    def quarantine_files(self) -> list[str]:
        """Full URIs of the quarantine files."""
        listed = dict.fromkeys(self.splits["quarantine_file"].drop_null().to_pylist())  # the files of a pack share one
        return [self.storage.full_uri(name) for name in listed]

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the rows; reads one shard's footer."""
        if not self.shards.num_rows:
            raise StoreError(f"snapshot {self.manifest.snapshot_id} of {self.storage.uri} has no embedding shards")
        with self.storage.open(self.shards["file"][0].as_py()) as source:
            return pq.read_schema(source)

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return int(self.schema.field("vector").type.list_size)

    @property
    def dtype(self) -> Literal["float16", "float32"]:
        """What vectors are stored as."""
        return "float16" if self.schema.field("vector").type.value_type == pa.float16() else "float32"

    def dataset(self) -> ds.Dataset:
        """A pyarrow dataset of exactly the current rows."""
        file_format = ds.ParquetFileFormat()
        filesystem = self.storage.arrow_filesystem()
        shards = self.shards.filter(pa.compute.greater(self.shards["num_rows"], 0))
        fragments = [
            file_format.make_fragment(self.storage.arrow_path(name), filesystem=filesystem)
            for name in shards["file"].to_pylist()
        ]
        return ds.FileSystemDataset(fragments, self.schema, file_format, filesystem)


def open_snapshot(uri: str, storage_options: Mapping[str, Any] | None = None, *, number: int | None = None) -> Snapshot:
    """The current snapshot of a store, or the one of that number.

    Raises:
        StoreError: no store, no snapshot yet, no such snapshot, or a format newer than this reader.
    """
    storage = Storage(uri, storage_options)
    with ThreadPoolExecutor(1) as pool:  # store.json beside the listing of manifests: one round trip less
        listing = pool.submit(manifest_numbers, storage)
        open_store(storage, None, create=False)
        numbers = listing.result()
    return snapshot_of(storage, number=number if number is not None or not numbers else numbers[-1])


def snapshot_of(storage: Storage, *, number: int | None = None) -> Snapshot:
    """The same of a store that is open.

    Raises:
        StoreError: no snapshot yet, no such snapshot, or a format newer than this reader.
    """
    try:
        manifest = latest(storage) if number is None else read_manifest(storage, number)
    except FileNotFoundError:
        raise StoreError(f"no snapshot {number} in {storage.uri}") from None
    if manifest is None:
        raise StoreError(f"no snapshot yet in {storage.uri}; `vecmill embed CONFIG` publishes one")
    return Snapshot(storage, manifest)
