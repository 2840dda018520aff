"""Embedding shards to one intermediate file: each row's list and code, sorted by list; the v-slice of the shuffle.

The shuffle goes through storage, codes and not vectors. Lists are grouped into buckets, the same for all
intermediates, and the rows of a bucket are one run of bytes of the file: a merge of consecutive buckets reads
one range from each intermediate. In the same pass over the vectors the exact nearest rows of the panel's
queries are found (pipeline.index.nearest).

A record, put after the files, says that they are there and whole, what made them, and where each bucket
lies. Names are of the attempt: an assign that runs twice leaves two records, of which one is used.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import StoreError
from pipeline.index.description import FileRef
from pipeline.index.files import file_ref, read_file, table_bytes
from pipeline.index.layout import index_folder, rows_schema
from pipeline.index.nearest import NEAR_SCHEMA, Nearest
from pipeline.index.panel import Panel
from pipeline.index.quantizer import Lists, Quantizer
from pipeline.index.shards import Shard, read_columns, read_vectors, row_addresses, unit
from pipeline.parallel import map_ahead
from pipeline.snapshots.records import new_attempt
from pipeline.snapshots.table import to_binary
from pipeline.uris import Storage

# Few enough that a bucket of a small shard is more than its own header, many enough to cut parts by bytes.
_NUM_BUCKETS = 128

_MAX_BUCKET_LISTS = 512

# Records read at once: hides the round trips of object storage.
_READ_AHEAD = 16

# Of an assign: what is held at once of the shards, as they are stored.
GROUP_BYTES = 64 * 2**20


class Slice(BaseModel):
    """The rows of one bucket in an intermediate file: bytes [begin, end), one Arrow record batch."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    begin: int
    end: int
    num_rows: int
    checksum: int
    """crc32."""


class Intermediate(BaseModel):
    """The record of an assign."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    attempt: str
    quantizer_fp: str
    panel_fp: str
    ordinals: Annotated[tuple[int, ...], Field(min_length=1)]
    """Of the shards assigned, ascending."""
    num_rows: int
    """Of the shards; the file has that many times the lists a row is in."""
    lists_per_row: int
    file: str
    size: int
    buckets: tuple[Slice, ...]
    near: FileRef
    """The panel's exact nearest among these rows (NEAR_SCHEMA)."""


@dataclass(frozen=True, eq=False)
class Work:
    """What all assigns and merges of one index share.

    Attributes:
        index_id: names the folder.
        quantizer: the trained one.
        panel: the queries, with their floors.
        keep: the kept columns with their types.
        lists_per_row: 1, or 2: each row also stands in its second nearest list.
    """

    index_id: str
    quantizer: Quantizer
    panel: Panel
    keep: pa.Schema
    lists_per_row: int = 1

    @property
    def rows_schema(self) -> pa.Schema:
        """Of the rows in intermediates."""
        return rows_schema(self.quantizer.codec, self.keep)

    @property
    def folder(self) -> str:
        """Where records and intermediates lie; they are of no use once index.json is there."""
        return f"{index_folder(self.index_id)}/work"


def group_shards(shards: Sequence[Shard]) -> list[list[Shard]]:
    """Shards that one assign takes together, in order: about GROUP_BYTES of files, so that merges read few.

    Of files, not of vectors: kept columns are held with them.
    """
    groups: list[list[Shard]] = []
    room = 0
    for shard in sorted(shards, key=lambda shard: shard.ordinal):
        if not groups or shard.size > room:
            groups.append([])
            room = GROUP_BYTES
        groups[-1].append(shard)
        room -= shard.size
    return groups


def bucket_bounds(nlist: int) -> npt.NDArray[np.int64]:
    """Lists [bounds[b], bounds[b + 1]) are bucket b."""
    num = min(nlist, max(_NUM_BUCKETS, -(-nlist // _MAX_BUCKET_LISTS)))
    return np.asarray(np.arange(num + 1) * nlist // num, np.int64)


def assign(storage: Storage, work: Work, shards: Sequence[Shard]) -> Intermediate:
    """Assign and encode shards, put the intermediate, the panel's nearest and, last, the record; the record again.

    Raises:
        StoreError: a shard is missing or damaged.
        EnvironmentFault: storage failed.
    """
    nearest = Nearest(work.panel.vectors, work.panel.floors)
    tables = [_assign_shard(storage, work, shard, nearest) for shard in shards]
    rows = pa.concat_tables(tables).combine_chunks()
    lists = np.asarray(rows["list_id"].to_numpy())
    order = np.argsort(lists, kind="stable")
    rows, lists = rows.take(pa.array(order)).combine_chunks(), lists[order]

    attempt = new_attempt()
    name = f"{work.folder}/assign/{shards[0].ordinal}-{attempt}"
    sink = pa.BufferOutputStream()
    buckets = list(_write_buckets(sink, rows, np.searchsorted(lists, bucket_bounds(work.quantizer.nlist))))
    data = sink.getvalue()
    near = table_bytes(nearest.table())
    record = Intermediate(
        attempt=attempt,
        quantizer_fp=work.quantizer.fingerprint,
        panel_fp=work.panel.fingerprint,
        ordinals=tuple(shard.ordinal for shard in shards),
        num_rows=sum(shard.num_rows for shard in shards),
        lists_per_row=work.lists_per_row,
        file=f"{name}.arrows",
        size=data.size,
        buckets=tuple(buckets),
        near=file_ref(f"{name}-near.parquet", near),
    )
    storage.put(record.file, data)
    storage.put(record.near.file, near)
    storage.put(f"{name}.json", record.model_dump_json().encode())
    return record


def _assign_shard(storage: Storage, work: Work, shard: Shard, nearest: Nearest) -> pa.Table:
    quantizer, num_copies = work.quantizer, work.lists_per_row
    stored = read_vectors(storage, shard, 0, shard.num_rows)
    vectors = unit(stored)
    columns = read_columns(storage, shard, ["row_hash", "doc_id", "chunk_index", *work.keep.names])
    addresses = row_addresses(shard, np.arange(shard.num_rows, dtype=np.int64))
    nearest.add(vectors, addresses, work.panel.left_out_of(columns["doc_id"]))

    found = quantizer.nearest_lists(vectors, num_copies)
    lists: Lists = found.reshape(-1)
    if found.shape[1] > 1:
        every = np.repeat(np.arange(shard.num_rows), found.shape[1])
        vectors, stored, addresses, columns = vectors[every], stored[every], addresses[every], columns.take(every)
    # What the store keeps is kept to the bit.
    codes = quantizer.encode(stored if quantizer.codec.name == "float16" else vectors, lists)
    made = {
        "list_id": pa.array(lists),
        "code": to_binary(codes.tobytes(), quantizer.codec.num_bytes),
        "row_address": pa.array(addresses),
    }
    schema = work.rows_schema
    typed = [made[field.name] if field.name in made else columns[field.name].cast(field.type) for field in schema]
    return pa.Table.from_arrays(typed, schema=schema)


def _write_buckets(sink: pa.NativeFile, rows: pa.Table, bounds: npt.NDArray[np.int64]) -> Iterator[Slice]:
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        at = sink.tell()
        checksum = 0
        if end > begin:
            # Arrow writes of a slice only what is in it.
            (batch,) = rows.slice(begin, end - begin).to_batches()
            message = batch.serialize()
            checksum = zlib.crc32(message)
            sink.write(message)
        yield Slice(begin=at, end=sink.tell(), num_rows=end - begin, checksum=checksum)


def parse_intermediate(data: bytes, name: str) -> Intermediate:
    """The record in `data`, which came from `name`.

    Raises:
        StoreError: it is no record of this version.
    """
    try:
        return Intermediate.model_validate_json(data)
    except ValidationError as error:
        raise StoreError(
            f"{name} is no record of the index build ({' '.join(str(error).split())[:100]}); delete it, then run the "
            "same command again"
        ) from None


def finished(storage: Storage, work: Work, groups: Sequence[Sequence[Shard]]) -> dict[int, Intermediate]:
    """What an earlier run of the same build has assigned: by group, its record (of several the least attempt).

    A group that has lost a file, or part of one, is assigned again.
    """
    sizes = {info.name: info.size for info in storage.scan(f"{work.folder}/assign")}
    names = sorted(name for name in sizes if name.endswith(".json"))
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        found_data = map_ahead(pool, storage.read, names, _READ_AHEAD)
        records = [
            parse_intermediate(data, storage.full_uri(name)) for name, data in zip(names, found_data, strict=True)
        ]
    found: dict[int, Intermediate] = {}
    for index, group in enumerate(groups):
        ordinals = tuple(shard.ordinal for shard in group)
        mine = [
            record
            for record in records
            if record.ordinals == ordinals
            and is_of(record, work)
            and (sizes.get(record.file), sizes.get(record.near.file)) == (record.size, record.near.size)
        ]
        if mine:
            found[index] = min(mine, key=lambda record: record.attempt)
    return found


def is_of(record: Intermediate, work: Work) -> bool:
    """Whether an intermediate was made with this quantizer and panel, and in as many lists a row."""
    made_with = (record.quantizer_fp, record.panel_fp, record.lists_per_row)
    return made_with == (work.quantizer.fingerprint, work.panel.fingerprint, work.lists_per_row)


def read_near(storage: Storage, record: Intermediate) -> pa.Table:
    """The panel's exact nearest among the rows of an intermediate (NEAR_SCHEMA)."""
    return read_file(storage, record.near, NEAR_SCHEMA)
