"""index.json: what an index is. Put last; what it does not list is not of the index.

File names are relative to the store, so that an index may list parts that an earlier one wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import StoreError
from pipeline.index.layout import REBUILD
from pipeline.snapshots.manifest import TableRef
from pipeline.snapshots.records import checksum
from pipeline.uris import Storage

FORMAT_VERSION = 1

PanelSource = Literal["queries", "words", "documents"]
"""Given queries; words of documents through the query encoder; documents, left out of their own results."""


class _Part(BaseModel):
    # Unknown keys of the same format version are additions that old readers may ignore.
    model_config = ConfigDict(frozen=True, extra="ignore")


class FileRef(_Part):
    """A file of the index."""

    file: str
    size: int
    """Bytes."""
    checksum: str


class PartRef(_Part):
    """A part; `part` is its number in the directory."""

    part: int
    codes: FileRef
    addresses: FileRef
    footer_begin: int
    """Byte of the codes file where its Parquet footer begins: all that is needed to read other columns."""
    num_rows: int
    num_groups: int
    quantizer_fp: str


class Recall(_Part):
    """Recall at one setting over the published half of the panel."""

    nprobe: int
    rerank: int
    """How many of the best by code are compared by their vectors; 0: none, the answer is by code."""
    read_ratio: float
    """Codes that a query reads, per row of the snapshot."""
    recall_at_10: float
    recall_at_100: float
    interval_at_10: tuple[float, float]
    """95 %, bootstrap over queries."""
    chosen_by: float
    """recall@10 over the other half, by which settings are chosen."""
    chosen_by_low: float
    """What that is above with 95 % confidence."""


class Measured(_Part):
    """How good the index is, and how that was found."""

    source: PanelSource
    num_queries: int
    """Of the published half."""
    num_choosing: int
    """Of the half that settings were chosen by."""
    table: tuple[Recall, ...]


class Settings(_Part):
    """How to search."""

    nprobe: int
    rerank: int


class IndexDescription(_Part):
    """The content of index.json."""

    format_version: int = FORMAT_VERSION
    index_id: str
    snapshot_id: int = Field(ge=1)
    """Of the snapshot served."""
    shards: TableRef
    """Its shards table, which row addresses are of: a snapshot that lists the same one has the same rows."""
    vector_dtype: Literal["float16", "float32"]
    """Of the vectors in its shards."""
    encoder_fp: str
    quantizer_fp: str
    metric: Literal["l2"]
    dim: int
    nlist: int
    num_rows: int
    """Of the snapshot; a row that stands in two lists counts once."""
    lists_per_row: int = 1
    codec: str
    num_code_bytes: int
    """B, of one code."""
    parameters: dict[str, Any]
    golden: dict[str, Any]
    """A code of list 0 and what it decodes to (`Quantizer.check_golden`)."""
    keep: dict[str, str]
    """Kept columns, and where documents were cut what tells a chunk's place; with their Arrow types."""
    centroids: FileRef
    lists: FileRef
    deleted: FileRef
    panel: FileRef
    parts: tuple[PartRef, ...]
    is_exact: bool
    """Whether every search reads every list: a small corpus."""
    measured: Measured
    recall_target: float
    search: Settings
    """The cheapest that met the target."""
    created_at: str
    versions: dict[str, str]

    @property
    def recall(self) -> Recall:
        """At the default settings."""
        chosen = (self.search.nprobe, self.search.rerank)
        return next(row for row in self.measured.table if (row.nprobe, row.rerank) == chosen)

    def figures(self) -> dict[str, Any]:
        """What a person wants to know of it, and how good it is at the default settings."""
        recall = self.recall
        return {
            "index_id": self.index_id,
            "codec": self.codec,
            "nlist": self.nlist,
            "num_rows": self.num_rows,
            "num_bytes": sum(part.codes.size + part.addresses.size for part in self.parts),
            "recall_at_10": recall.recall_at_10,
            "recall_interval": list(recall.interval_at_10),
            "recall_at_100": recall.recall_at_100,
            "queries": self.measured.source,
            "nprobe": recall.nprobe,
            "rerank": recall.rerank,
            "read_ratio": recall.read_ratio,
        }

    def files(self) -> Iterator[FileRef]:
        """All that it lists."""
        yield from (self.centroids, self.lists, self.deleted, self.panel)
        for part in self.parts:
            yield from (part.codes, part.addresses)

    def to_json(self) -> bytes:
        """As `read_description` reads it."""
        return orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_INDENT_2)


def read_description(storage: Storage, name: str, expected_checksum: str | None = None) -> IndexDescription:
    """The index.json of that name; a manifest's `index` tells name and checksum.

    Raises:
        StoreError: missing, damaged, newer than this reader, or no index.json.
    """
    uri = storage.full_uri(name)
    try:
        data = storage.read(name)
    except FileNotFoundError:
        raise StoreError(f"missing from the store: {uri}; `vecmill index CONFIG` builds the index anew") from None
    if expected_checksum is not None and checksum(data) != expected_checksum:
        raise StoreError(f"damaged: {uri} is not what its manifest names (checksum); {REBUILD}")
    return parse_description(data, uri)


def parse_description(data: bytes, uri: str) -> IndexDescription:
    """The index.json in `data`, which came from `uri`.

    Raises:
        StoreError: newer than this reader, or no index.json.
    """
    try:
        value = orjson.loads(data)
        version = value["format_version"]
        if version > FORMAT_VERSION:
            raise StoreError(f"{uri} has format {version}, this Vecmill reads {FORMAT_VERSION}; install a newer one")
        return IndexDescription.model_validate(value)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
        raise StoreError(f"{uri} is no index.json ({' '.join(str(error).split())[:200]})") from None
