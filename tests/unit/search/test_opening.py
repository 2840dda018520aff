"""An index that cannot be used, and files of one that were damaged: each is an error that names it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pytest

from pipeline.errors import StoreError
from pipeline.index.description import IndexDescription
from pipeline.search import SearchableSnapshot, open_index
from pipeline.search.lists import Lists
from pipeline.search.ranges import RangeReader
from pipeline.snapshots.manifest import put_table
from pipeline.uris import Storage
from tests.indexed import NLIST, QUERIES, VECTORS, make_indexed, rewritten
from tests.snapshots import make_snapshot

Indexed = Callable[..., SearchableSnapshot]


@pytest.fixture
def own(indexed: Indexed, tmp_path: Path) -> Callable[..., SearchableSnapshot]:
    """A copy of an indexed store, to be damaged."""

    def make(codec: str = "sq8", **options: Any) -> SearchableSnapshot:
        snapshot = indexed(codec, **options)
        shutil.copytree(snapshot.storage.uri, tmp_path / codec)
        return SearchableSnapshot(Storage(str(tmp_path / codec)), snapshot.manifest)

    return make


def test_a_snapshot_without_an_index_says_how_to_build_one(tmp_path: Path) -> None:
    snapshot = make_snapshot(Storage(str(tmp_path)), [VECTORS[:50]])
    with pytest.raises(StoreError, match="snapshot 1 of .* has no index; `vecmill index CONFIG` builds one"):
        open_index(snapshot)


def test_an_index_of_another_encoder_is_refused(own: Indexed) -> None:
    snapshot = own()
    manifest = snapshot.manifest.model_copy(update={"encoder_fp": "f" * 16})
    with pytest.raises(StoreError, match=r"is of the encoder e{16}, snapshot 1 of f{16}; `vecmill index CONFIG`"):
        open_index(SearchableSnapshot(snapshot.storage, manifest))


def test_an_index_of_an_older_snapshot_serves_that_one_and_says_so(own: Indexed) -> None:
    snapshot = own()
    table = put_table(snapshot.storage, "snapshots/2.shards.parquet", snapshot.shards.slice(0, 1))
    manifest = snapshot.manifest.model_copy(update={"snapshot_id": 2, "shards": table})
    newer = SearchableSnapshot(snapshot.storage, manifest)
    assert snapshot.is_index_current
    assert not newer.is_index_current
    assert newer.index.description.snapshot_id == 1
    same_rows = snapshot.manifest.shards.model_copy(update={"file": "snapshots/3.shards.parquet"})
    manifest = snapshot.manifest.model_copy(update={"snapshot_id": 3, "shards": same_rows})
    assert SearchableSnapshot(snapshot.storage, manifest).is_index_current, "of the same rows, in another table"
    assert newer.search(QUERIES, 5).doc_ids == snapshot.search(QUERIES, 5).doc_ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "has format 99, this Vecmill reads 1; install a newer one"),
        ({"quantizer_fp": "0" * 16}, "holds the quantizer"),
        ({"dim": 17}, "does not fit its centroids"),
        ({"codec": "float16"}, "does not fit its centroids"),
        ({"nlist": 19}, "does not fit its centroids"),
        ({"golden": {"code": "00" * 16, "decoded": [9.0] * 16}}, "decode here to other vectors"),
        ({"parts": ()}, "lists.parquet does not fit its index.json"),
    ],
)
def test_an_index_json_that_does_not_fit_is_refused(change: dict[str, Any], message: str, own: Indexed) -> None:
    changed = rewritten(own(), **change)
    with pytest.raises(StoreError, match=message):
        open_index(changed)


def test_a_part_of_another_quantizer_is_refused(own: Indexed) -> None:
    snapshot = own()
    parts = snapshot.index.description.parts
    stranger = parts[0].model_copy(update={"quantizer_fp": "0" * 16})
    with pytest.raises(StoreError, match="codes/part-0-.* was made with another quantizer"):
        open_index(rewritten(snapshot, parts=(stranger, *parts[1:])))


@pytest.mark.parametrize("name", ["index.json", "centroids.parquet", "lists.parquet", "deleted.parquet"])
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_a_damaged_file_of_the_index_is_named(name: str, damage: str, own: Indexed) -> None:
    snapshot = own()
    folder = Path(snapshot.storage.uri) / "indexes" / description_of(snapshot).index_id
    harm(folder / name, damage, 200)
    with pytest.raises(StoreError, match=name):
        open_index(snapshot)


@pytest.mark.parametrize("codec", ["float16", "sq8", "rabitq"])
@pytest.mark.parametrize("kind", ["codes", "addresses"])
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "foreign"])
def test_a_damaged_part_is_named_and_never_answered_from(damage: str, kind: str, codec: str, own: Indexed) -> None:
    snapshot = own(codec)
    part = description_of(snapshot).parts[0]
    path = Path(snapshot.storage.uri) / getattr(part, kind).file
    if damage == "foreign":  # of as many rows in as many lists, and another training
        other = make_indexed(path.parent / "other", codec, VECTORS[::-1].copy())
        theirs = other.index.description.parts[0]
        shutil.copy(Path(other.storage.uri) / getattr(theirs, kind).file, path)
    else:
        directory = snapshot.index.directory
        ranges = {"codes": directory.codes_range(7), "addresses": directory.addresses_range(7)}
        harm(path, damage, ranges[kind].begin + 3)
        snapshot = SearchableSnapshot(snapshot.storage, snapshot.manifest)
    with pytest.raises(StoreError, match=f"{kind}/part-0-"):
        open_index(snapshot).search(QUERIES, 10, nprobe=NLIST)


def test_damaged_answers_are_no_answers(own: Indexed) -> None:
    """The directory's checksum does not cover ids and kept columns: those of their pages do."""
    snapshot = own()
    index = snapshot.index
    path = Path(snapshot.storage.uri) / index.description.parts[0].codes.file
    data = bytearray(path.read_bytes())
    for group in range(len(index.directory.part)):
        _, begin, end = index.directory.answers_range(group)
        middle = (begin + end) // 2
        data[middle] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match="damaged: .*codes/part-0-.* cannot be read"):
        open_index(snapshot).search(QUERIES, 10)


def test_no_flipped_bit_changes_an_answer(own: Indexed) -> None:
    index = own().index
    lists = Lists(RangeReader(index.lists.storage), index.directory, ["doc_id", "lang", "year"], 0)
    expected = lists.answers([0])[0]
    file, begin, end = index.directory.answers_range(0)
    with open(index.lists.storage.full_uri(file), "r+b") as part:
        for at in range(begin, end, 3):
            part.seek(at)
            byte = part.read(1)[0]
            write(part, at, byte ^ 1)
            with suppress(StoreError):
                assert lists.answers([0])[0] == expected
            write(part, at, byte)
    assert lists.answers([0])[0] == expected


def test_a_damaged_vector_is_named(own: Indexed) -> None:
    snapshot = own("rabitq")
    path = Path(snapshot.storage.uri) / snapshot.shards["file"][0].as_py()
    begin = snapshot.shards["vector_begin"][0].as_py()
    data = bytearray(path.read_bytes())
    data[begin : begin + 32 * 1000] = bytes(32 * 1000)
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match=r"00.parquet was damaged: row \d+ is no vector"):
        open_index(snapshot).search(QUERIES, 10)
    harm(path, "cut", begin + 10)
    with pytest.raises(StoreError, match="00.parquet ends before"):
        open_index(snapshot).search(QUERIES, 10)
    harm(path, "gone", 0)
    with pytest.raises(StoreError, match="missing from the store: .*00.parquet"):
        open_index(snapshot).search(QUERIES, 10)


def test_an_address_that_the_snapshot_does_not_have_is_told(own: Indexed) -> None:
    snapshot = own("rabitq")
    index = open_index(snapshot)
    del index._shards[3]
    with pytest.raises(StoreError, match="of shard 3, which its snapshot does not have"):
        index.search(QUERIES, 10)


def description_of(snapshot: SearchableSnapshot) -> IndexDescription:
    assert snapshot.manifest.index is not None
    return IndexDescription.model_validate(orjson.loads(snapshot.storage.read(snapshot.manifest.index.file)))


def write(file: BinaryIO, at: int, byte: int) -> None:
    file.seek(at)
    file.write(bytes([byte]))
    file.flush()


def harm(path: Path, damage: str, at: int) -> None:
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:at])
    else:
        data = bytearray(path.read_bytes())
        data[at] ^= 0xFF
        path.write_bytes(bytes(data))
