"""The manifest of a snapshot and its tables, against each other: what `publish` proved, proved again.

Unlike there, the listing of the input and the parent are gone, and nothing ends at the first fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from pipeline.config import Config
from pipeline.errors import VecmillError
from pipeline.model import encoder_fingerprint
from pipeline.snapshots.manifest import Manifest, manifest_name

_PLACE = re.compile(
    r"(?P<kind>embeddings|quarantine)/(?P<fps>[0-9a-f]{16}/[0-9a-f]{16})/(?P<xx>[0-9a-f]{2})/"
    r"(?P<split_id>[0-9a-f]{32})-[0-9a-f]{16}\.parquet"
)


def check_books(manifest: Manifest, shards: pa.Table, splits: pa.Table) -> list[str]:
    """Findings; `shards` are SHARDS_SCHEMA, `splits` SPLITS_SCHEMA."""
    findings = [
        *_fingerprints(manifest),
        *_uniqueness(manifest, shards, splits),
        *_tilings(manifest, splits),
        *_counts(manifest, shards, splits),
        *_names(manifest, shards, splits),
    ]
    doomed = frozenset(manifest.victims or ())
    listed = [*shards["file"].to_pylist(), *splits["quarantine_file"].drop_null().to_pylist()]
    listed += [manifest.shards.file, manifest.splits.file]
    return findings + [f"{name} is listed, and among the victims of gc" for name in listed if name in doomed]


def _fingerprints(manifest: Manifest) -> Iterator[str]:
    name = manifest_name(manifest.snapshot_id)
    found = encoder_fingerprint(manifest.encoder)
    if found != manifest.encoder_fp:
        yield f"{name}: the encoder spelled out there has the fingerprint {found}, not {manifest.encoder_fp}"
    try:
        config = Config.model_validate(manifest.config)
    except (ValidationError, VecmillError) as error:
        yield f"{name}: its config is none: {' '.join(str(error).split())[:200]}"
        return
    found = config.shard_fingerprint(manifest.keep)
    if found != manifest.shard_fp:
        yield f"{name}: the config spelled out there has the shard fingerprint {found}, not {manifest.shard_fp}"


def _uniqueness(manifest: Manifest, shards: pa.Table, splits: pa.Table) -> Iterator[str]:
    for table, file, column in (
        (shards, manifest.shards.file, "ordinal"),
        (shards, manifest.shards.file, "file"),
        (_splits_once(splits), manifest.splits.file, "split_id"),
        (_splits_once(splits), manifest.splits.file, "ordinal"),
    ):
        counts = pc.value_counts(table[column].combine_chunks())
        for value in counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist():
            yield f"{file}: {column} {value} is there twice"
    ordinals = shards["ordinal"].to_numpy()
    for ordinal in ordinals[(ordinals < 0) | (ordinals >= manifest.next_ordinal)]:
        yield f"{manifest.shards.file}: ordinal {ordinal} is not below next_ordinal {manifest.next_ordinal}"
    for ordinal in np.setxor1d(ordinals, splits["ordinal"].to_numpy()):
        yield f"{manifest.splits.file}: ordinal {ordinal} is in one of the two tables only"


def _splits_once(splits: pa.Table) -> pa.Table:
    """split_id and ordinal of each split: of a pack, which has a row for each of its files, whole ones all, once."""
    found = splits.group_by(["split_id", "ordinal"]).aggregate(
        [("last", "min"), ("begin", "max"), ("file_id", "count")]
    )
    is_pack = pc.and_(found["last_min"], pc.equal(found["begin_max"], 0))
    is_wrong = pc.and_(pc.greater(found["file_id_count"], 1), pc.invert(is_pack))
    once = found.select(["split_id", "ordinal"])
    return pa.concat_tables([once, once.filter(is_wrong)])


def _tilings(manifest: Manifest, splits: pa.Table) -> Iterator[str]:
    """Each file once, each from 0 to its end without gap or overlap."""
    file = manifest.splits.file
    versions = splits.group_by("file_uri").aggregate([("file_id", "count_distinct")])
    for uri in versions.filter(pc.greater(versions["file_id_count_distinct"], 1))["file_uri"].to_pylist():
        yield f"{file}: two versions of {uri}"
    splits = splits.sort_by([("file_uri", "ascending"), ("begin", "ascending"), ("end", "ascending")])
    uris = np.array(splits["file_uri"].to_pylist(), dtype=object)
    if not len(uris):
        return
    begin, end, last = (splits[name].to_numpy() for name in ("begin", "end", "last"))
    is_first = np.concatenate([[True], uris[1:] != uris[:-1]])
    is_final = np.concatenate([is_first[1:], [True]])
    gaps = np.where(is_first, begin != 0, begin != np.concatenate([[0], end[:-1]]))
    wrong_end = (last & ~is_final) if manifest.limit is not None else (last != is_final)
    for index in np.flatnonzero(gaps | wrong_end | (end < begin)):
        yield f"{file}: the splits of {uris[index]} do not cover it once: at [{begin[index]}, {end[index]})"


def _counts(manifest: Manifest, shards: pa.Table, splits: pa.Table) -> Iterator[str]:
    agree = pc.fill_null(pc.equal(splits["num_documents"], splits["num_counted"]), True)
    for row in splits.filter(pc.invert(agree)).to_pylist():
        yield (
            f"{manifest.splits.file}: split {row['split_id']} of {row['file_uri']} has {row['num_documents']} "
            f"documents as read, {row['num_counted']} as counted"
        )
    books = manifest.accounting
    uncounted = set(splits.filter(pc.is_null(splits["num_counted"]))["file_id"].to_pylist())
    wanted = {
        "documents_in": _sum(pc.coalesce(splits["num_counted"], splits["num_documents"])),
        "quarantined": _sum(splits["num_quarantined"]),
        "truncated": _sum(splits["num_truncated"]),
        "tokens": _sum(splits["num_tokens"]),
        "chunks": _sum(shards["num_rows"]),
        "files_quarantined": len(uncounted),
        "files_in": len(set(splits["file_id"].to_pylist())),
    }
    name = manifest_name(manifest.snapshot_id)
    for key, value in wanted.items():
        if getattr(books, key) != value:
            yield f"{name}: accounting.{key} is {getattr(books, key)}, the tables have {value}"
    if books.documents_in != books.embedded + books.reused + books.quarantined:
        yield f"{name}: documents_in is not embedded + reused + quarantined: {books!r}"
    if books.files_in != books.files_read + books.files_quarantined:
        yield f"{name}: files_in is not files_read + files_quarantined: {books!r}"


def _names(manifest: Manifest, shards: pa.Table, splits: pa.Table) -> Iterator[str]:
    """Each file lies where its split and the manifest's fingerprints say."""
    fps = f"{manifest.encoder_fp}/{manifest.shard_fp}"
    files = dict(zip(shards["ordinal"].to_pylist(), shards["file"].to_pylist(), strict=True))
    columns = (splits[name].to_pylist() for name in ("split_id", "ordinal", "quarantine_file"))
    for split_id, ordinal, quarantine_file in dict.fromkeys(zip(*columns, strict=True)):
        for kind, name in (("embeddings", files.get(ordinal)), ("quarantine", quarantine_file)):
            if name is None:
                continue
            match = _PLACE.fullmatch(name)
            if match is None or match["kind"] != kind or match["xx"] != match["split_id"][:2]:
                yield f"{name} is no name of a file in {kind}/"
            elif match["fps"] != fps:
                yield f"{name} is of other fingerprints than its snapshot, {fps}"
            elif match["split_id"] != split_id:
                yield f"{name} is listed as a file of another split, {split_id}"


def _sum(column: pa.ChunkedArray) -> int:
    return int(pc.sum(column).as_py() or 0)
