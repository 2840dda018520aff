"""The vectors that all index: a snapshot as it is, or one of as many rows as asked for, made of it; in a scratch store.

Fewer rows than there are: drawn evenly over all shards. More: all of them, then again, each moved by noise to where a
neighbour of it could lie. A made vector is unit(real + g): g is Gaussian, its length the distance of some real
vector to one of its ten nearest, drawn anew for each (seeded). So lists, codes and files are of the sizes of real ones,
while in hundreds of dimensions noise has no neighbours of its own: recall on made rows means nothing, and is not told.

A made store is written shard by shard by the project's own writers, and published; no more than a shard is in memory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UsageError
from pipeline.index.codecs import Floats
from pipeline.index.sample import Sample, join_samples, plan_sample, read_sample
from pipeline.index.shards import Rows, Shard, read_vectors, row_addresses, shards_of, unit
from pipeline.row_hashes import row_hashes
from pipeline.schema import QUARANTINE_SCHEMA
from pipeline.search import exact_search
from pipeline.snapshots.commit import Publication, publish
from pipeline.snapshots.lease import new_run_id
from pipeline.snapshots.manifest import manifest_name
from pipeline.snapshots.reader import Snapshot, open_snapshot
from pipeline.snapshots.records import Record
from pipeline.snapshots.store import STORE_NAME, open_store
from pipeline.uris import Storage
from pipeline.write import make_attempt

_SEED = 7

# Real vectors whose distances to their nearest are what noise is as long as.
_NUM_MEASURED = 256
_NUM_NEAREST = 10


def blocks(snapshot: Snapshot) -> Iterator[tuple[Rows, Floats]]:
    """Row addresses (N,) and unit vectors (N, D) of each shard."""
    for shard in shards_of(snapshot):
        vectors = unit(read_vectors(snapshot.storage, shard, 0, shard.num_rows))
        yield row_addresses(shard, np.arange(shard.num_rows, dtype=np.int64)), vectors


def sample(snapshot: Snapshot, num: int) -> Sample:
    """About so many rows, drawn evenly over all shards, as the index build draws its own."""
    drawn = plan_sample(shards_of(snapshot), num, _SEED)
    parts = (read_sample(snapshot.storage, shard, rows) for shard, rows in drawn)
    return join_samples(parts, sum(len(rows) for _, rows in drawn), snapshot.dim)


def local_folder(snapshot: Snapshot) -> Path:
    """Where the snapshot's store lies.

    Raises:
        UsageError: on object storage.
    """
    if not snapshot.storage.is_local:
        raise UsageError(f"the benchmark needs a store on a local disk: {snapshot.storage.uri}; copy it to one")
    return Path(snapshot.storage.uri)


def link_store(snapshot: Snapshot, folder: Path) -> None:
    """The snapshot without its index as a store of its own; shards are hard links, or copies on another disk."""
    source, manifest = local_folder(snapshot), snapshot.manifest
    files = {STORE_NAME, manifest.shards.file, manifest.splits.file, *snapshot.shards["file"].to_pylist()}
    for name in files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, target)
        except OSError:
            shutil.copyfile(source / name, target)
    bare = manifest.model_copy(update={"index": None})
    Storage(str(folder)).put(manifest_name(manifest.snapshot_id), bare.to_json())


def make_rows(snapshot: Snapshot, folder: Path, num_rows: int) -> Snapshot:
    """A store in `folder` with so many rows made of the snapshot's, published; without texts.

    Args:
        snapshot: of real vectors.
        folder: empty, or not there.
        num_rows: of the store.
    """
    storage, manifest = Storage(str(folder)), snapshot.manifest
    open_store(storage, "made/", create=True)
    shards, random = shards_of(snapshot), np.random.default_rng(_SEED)
    total = sum(shard.num_rows for shard in shards)
    lengths = None if num_rows <= total else _neighbour_distances(snapshot, random)
    records: list[Record] = []
    for copy in range(-(-num_rows // total)):
        wanted = min(total, num_rows - copy * total)
        ends = np.cumsum([0, *(shard.num_rows for shard in shards)]) * wanted // total
        for shard, num in zip(shards, np.diff(ends).tolist(), strict=True):
            if num:
                rows = _made(snapshot, shard, copy, num, lengths if copy else None, random)
                records.append(_put(storage, snapshot, rows, len(records)))
    publication = Publication(
        run_id=new_run_id(),
        parent=None,
        files={record.file_id for record in records},
        records=records,
        carried=(),
        encoder=manifest.encoder,
        encoder_fp=manifest.encoder_fp,
        shard_fp=manifest.shard_fp,
        keep=manifest.keep,
        config=manifest.config,
        versions={},
    )
    publish(storage, publication)
    return open_snapshot(str(folder))


def _neighbour_distances(snapshot: Snapshot, random: np.random.Generator) -> Floats:
    """Distances (M,) of some vectors to their nearest ten."""
    found = sample(snapshot, 16 * _NUM_MEASURED).vectors
    some = found[random.choice(len(found), min(len(found), _NUM_MEASURED), replace=False)]
    cosines = exact_search(snapshot, some, _NUM_NEAREST + 1).scores[:, 1:]  # the first is the vector itself
    return np.sqrt(np.maximum(0, 2 - 2 * cosines)).reshape(-1)


def _made(
    snapshot: Snapshot, shard: Shard, copy: int, num: int, lengths: Floats | None, random: np.random.Generator
) -> pa.Table:
    """`num` rows of a shard under ids of their own, moved by noise of these lengths."""
    with snapshot.storage.open(shard.file) as source:
        table = pq.ParquetFile(source).read().combine_chunks()
    rows = np.sort(random.choice(shard.num_rows, num, replace=False))
    vectors = read_vectors(snapshot.storage, shard, 0, shard.num_rows)[rows]
    if lengths is not None:
        noise = random.standard_normal(vectors.shape, np.float32)
        noise *= (random.choice(lengths, num) / np.linalg.norm(noise, axis=1))[:, None]
        vectors += noise
    table = table.take(pa.array(rows)).drop_columns("text" if "text" in table.schema.names else [])
    # A chunk of a document becomes one of its own: of a document of which not all are drawn nothing is amiss then.
    chunks = zip(table["doc_id"].to_pylist(), table["chunk_index"].to_pylist(), strict=True)
    doc_ids = [f"{copy}/{chunk}/{doc_id}" for doc_id, chunk in chunks]
    of_vectors = pa.list_(pa.field("element", pa.float32(), nullable=False), shard.dim)
    flat = pa.array(unit(vectors).reshape(-1))
    made = {
        "content_hash": pa.array([_hash(doc_id) for doc_id in doc_ids], pa.binary(16)),
        "vector": pa.FixedSizeListArray.from_arrays(flat, type=of_vectors),
        "doc_id": pa.array(doc_ids),
        "chunk_index": pa.array(np.zeros(num, np.int32)),
        "num_chunks": pa.array(np.ones(num, np.int32)),
    }
    for name, values in made.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    hashes = row_hashes(table, table.select(list(snapshot.manifest.keep)))
    place = table.schema.get_field_index("row_hash")
    return table.set_column(place, "row_hash", pa.array(hashes, pa.binary(16)))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _put(storage: Storage, snapshot: Snapshot, rows: pa.Table, number: int) -> Record:
    """A shard of these rows with its record, as a split that is the whole of an input file."""
    manifest, split_id = snapshot.manifest, f"{number:032x}"
    fields = [field for field in snapshot.schema if field.name != "text"]
    made = make_attempt(
        (manifest.encoder_fp, manifest.shard_fp),
        split_id,
        rows,
        pa.schema(fields),
        QUARANTINE_SCHEMA.empty_table(),
        with_text=False,
    )
    record = Record(
        split_id=split_id,
        generation=0,
        run_id="made",
        encoder_fp=manifest.encoder_fp,
        shard_fp=manifest.shard_fp,
        file_uri=f"{number:08}.jsonl",
        file_id=split_id,
        identity=split_id,
        identity_kind="etag",
        begin=0,
        end=rows.num_rows,
        last=True,
        row_begin=None,
        row_end=None,
        num_documents=rows.num_rows,
        num_counted=rows.num_rows,
        num_quarantined=0,
        num_reused=0,
        num_padded_tokens=0,
        compute=snapshot.shards["compute"][0].as_py(),
        **made.fields,
    )
    return made.put(storage, record)


def folder_bytes(folder: Path) -> int:
    """Of all files below it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
