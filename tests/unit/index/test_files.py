from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.errors import StoreError
from pipeline.index.description import FileRef
from pipeline.index.files import load_quantizer, put_once, put_quantizer, read_quantizer
from pipeline.index.quantizer import Quantizer, train
from pipeline.uris import Storage
from tests.vectors import clustered


def made(codec: str = "sq8", seed: int = 0) -> Quantizer:
    return train(clustered(400), 9, codec, "e" * 16, seed=seed)


@pytest.mark.parametrize("codec", ["float16", "sq8", "rabitq"])
def test_a_quantizer_comes_back_as_it_was(codec: str, tmp_path: Path) -> None:
    storage, quantizer = Storage(str(tmp_path)), made(codec)
    assert load_quantizer(storage, "i") is None
    _, ref = put_quantizer(storage, "i", quantizer)
    again = read_quantizer(storage, ref, quantizer.fingerprint)
    vectors = clustered(50, seed=3)
    lists = quantizer.nearest_lists(vectors, 1)[:, 0]
    assert (again.nearest_lists(vectors, 1)[:, 0] == lists).all()
    assert (again.encode(vectors, lists) == quantizer.encode(vectors, lists)).all()
    assert (again.parents == quantizer.parents).all()
    again.check_golden(quantizer.golden(), ref.file)
    table = pq.read_table(tmp_path / ref.file)
    assert table.column_names == ["list_id", "parent_id", "centroid"]


@pytest.mark.parametrize("codec", ["sq8", "rabitq"])
def test_who_trains_second_takes_what_lies_there(codec: str, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    first, ref = put_quantizer(storage, "i", made(codec))
    second, other_ref = put_quantizer(storage, "i", made(codec, seed=5))
    assert (second.fingerprint, other_ref) == (first.fingerprint, ref)
    found = load_quantizer(storage, "i")
    assert found is not None
    assert found[0].fingerprint == first.fingerprint


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert put_once(storage, "a", b"one") == b"one"
    assert put_once(storage, "a", b"two") == b"one"
    assert storage.read("a") == b"one"


def test_a_damaged_or_foreign_quantizer_is_named(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    quantizer, ref = put_quantizer(storage, "i", made())
    with pytest.raises(StoreError, match=rf"centroids.parquet holds the quantizer {quantizer.fingerprint}"):
        read_quantizer(storage, ref, "0" * 16)
    with pytest.raises(StoreError, match="missing from the store: .*gone"):
        read_quantizer(storage, FileRef(file="gone", size=1, checksum=""), quantizer.fingerprint)
    path = tmp_path / ref.file
    table = pq.read_table(path)
    metadata = replace(quantizer, encoder_fp="f" * 16).metadata() | {b"vecmill.arrays": b"{}"}
    foreign = replace(quantizer, centroids=quantizer.centroids * 2).metadata() | {b"vecmill.arrays": b"{}"}
    for changed in (metadata, foreign):
        pq.write_table(table.replace_schema_metadata(changed), path)
        with pytest.raises(StoreError, match="centroids.parquet"):
            read_quantizer(storage, ref, quantizer.fingerprint)
    pq.write_table(table.replace_schema_metadata(None), path)
    with pytest.raises(StoreError, match="is no quantizer"):
        load_quantizer(storage, "i")
    whole = path.read_bytes()
    page = slice(len(whole) // 4, len(whole) // 2)  # compressed: what raises is no error of Arrow's
    for damaged in (whole[:100], whole[: page.start] + bytes(page.stop - page.start) + whole[page.stop :]):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match="is no quantizer"):
            load_quantizer(storage, "i")
