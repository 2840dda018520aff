"""Manifests: complete, strict about what is newer, and damaged tables are never read."""

from __future__ import annotations

from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import StoreError
from pipeline.snapshots.accounting import documents_by_uri
from pipeline.snapshots.commit import publish
from pipeline.snapshots.manifest import (
    SHARDS_SCHEMA,
    SPLITS_SCHEMA,
    in_memory,
    latest,
    manifest_name,
    put_table,
    read_manifest,
    read_table,
)
from pipeline.uris import Storage
from tests.stores import make_record, publication, put


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def test_the_highest_number_is_current(storage: Storage) -> None:
    assert latest(storage) is None
    manifest = publish(storage, publication(None, [put(storage, make_record())]))
    for number in (2, 11, 9):
        copy = manifest.model_copy(update={"snapshot_id": number})
        storage.put(manifest_name(number), copy.to_json())
    storage.put("snapshots/99.json", b"not one of ours")
    current = latest(storage)
    assert current is not None
    assert current.snapshot_id == 11
    assert read_manifest(storage, 1) == manifest


def test_additions_are_ignored_and_newer_formats_refused(storage: Storage) -> None:
    publish(storage, publication(None, [put(storage, make_record())]))
    value = orjson.loads(storage.read(manifest_name(1)))
    storage.put(manifest_name(1), orjson.dumps(value | {"added": 1}))
    assert read_manifest(storage, 1).snapshot_id == 1
    storage.put(manifest_name(1), orjson.dumps({"format_version": 2, "all": "new"}))
    with pytest.raises(StoreError, match="has format 2, this Vecmill reads 1"):
        latest(storage)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"format_version": 1}', b'{"format_version": "x"}'])
def test_what_is_no_manifest_is_named(storage: Storage, data: bytes) -> None:
    storage.put(manifest_name(3), data)
    with pytest.raises(StoreError, match=f"{manifest_name(3)} is no manifest"):
        latest(storage)


def test_a_copied_manifest_is_refused(storage: Storage) -> None:
    manifest = publish(storage, publication(None, [put(storage, make_record())]))
    storage.put(manifest_name(2), manifest.to_json())
    with pytest.raises(StoreError, match="manifest of snapshot 1"):
        latest(storage)


def test_a_damaged_or_missing_table_is_named(storage: Storage) -> None:
    ref = put_table(storage, "snapshots/x.parquet", SHARDS_SCHEMA.empty_table())
    assert read_table(storage, ref, SHARDS_SCHEMA).equals(in_memory(SHARDS_SCHEMA).empty_table())
    put_table(storage, ref.file, pa.table({"other": [1]}))
    with pytest.raises(StoreError, match=r"damaged: .*snapshots/x\.parquet"):
        read_table(storage, ref, SHARDS_SCHEMA)
    storage.delete([ref.file])
    with pytest.raises(StoreError, match=r"missing from the store: .*snapshots/x\.parquet"):
        read_table(storage, ref, SHARDS_SCHEMA)


def test_a_table_of_many_row_groups_is_one(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has dictionaries of its own; a million splits are some of them."""
    monkeypatch.setattr("pipeline.snapshots.manifest._ROW_GROUP", 2)
    records = [put(storage, make_record(uri)) for uri in "abcde"]
    manifest = publish(storage, publication(None, records))
    splits = read_table(storage, manifest.splits, SPLITS_SCHEMA)
    assert documents_by_uri(splits) == dict.fromkeys("abcde", 3)
    with storage.open(manifest.splits.file) as source:
        file = pq.ParquetFile(source)
        assert file.metadata.num_row_groups == 3
        assert file.schema_arrow.equals(SPLITS_SCHEMA), "plain columns, for whoever reads it"
    carried = [record.file_id for record in records[:4]]
    assert publish(storage, publication(manifest, [], carried=carried)).accounting.documents_in == 12
