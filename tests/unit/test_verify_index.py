"""verify of an index: whatever is not as it was built is told, with the file it is in; and only that."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.index.build import build
from pipeline.index.description import FileRef, IndexDescription
from pipeline.index.files import file_ref, read_quantizer
from pipeline.index.finished import Built
from pipeline.index.parts import make_part
from pipeline.snapshots.manifest import SHARDS_SCHEMA, Manifest, put_table
from pipeline.snapshots.reader import Snapshot
from pipeline.uris import Storage
from pipeline.verify.index import check_index
from tests.snapshots import index_settings, make_snapshot, with_index
from tests.vectors import clustered

VECTORS = clustered(300, 16)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.index.prepare.NUM_QUERIES", 30)
    monkeypatch.setattr("pipeline.index.merge._MIN_PART_BYTES", 12_000)
    monkeypatch.setattr("pipeline.index.merge._MAX_PART_BYTES", 12_000)


def built_in(folder: Path, *, lists_per_row: int = 1, **settings: Any) -> Damage:
    snapshot = make_snapshot(Storage(str(folder)), np.array_split(VECTORS, 3))
    how = index_settings(**({"codec": "sq8", "nlist": 8} | settings))
    return Damage(snapshot, build(snapshot, how, lists_per_row=lists_per_row))


class Damage:
    """An index about to be damaged."""

    def __init__(self, snapshot: Snapshot, built: Built) -> None:
        self.storage = snapshot.storage
        self.description = built.description
        self.manifest: Manifest = with_index(snapshot, built.file).manifest

    def findings(self) -> list[str]:
        return check_index(self.storage, self.manifest).findings

    def describe(self, **changes: Any) -> None:
        """Put another index.json, as the one that the manifest names."""
        self.description = self.description.model_copy(update=changes)
        assert self.manifest.index is not None
        data = self.description.to_json()
        self.storage.put(self.manifest.index.file, data)
        ref = self.manifest.index.model_copy(update={"checksum": file_ref(self.manifest.index.file, data).checksum})
        self.manifest = self.manifest.model_copy(update={"index": ref})

    def put(self, name: str, table: pa.Table, **options: Any) -> FileRef:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **options)
        self.storage.put(name, sink.getvalue())
        return file_ref(name, sink.getvalue())

    def change_directory(self, change: Callable[[dict[str, Any]], dict[str, Any]], row: int = 0) -> None:
        ref = self.description.lists
        table = pq.read_table(pa.BufferReader(self.storage.read(ref.file)))
        rows = table.to_pylist()
        rows[row] |= change(rows[row])
        self.describe(lists=self.put(ref.file, pa.Table.from_pylist(rows, table.schema)))

    def change_addresses(self, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], part: int = 0) -> None:
        """Write the addresses of a part anew, checksums and all, as a fault of the builder would."""
        refs = list(self.description.parts)
        codes = pq.read_table(pa.BufferReader(self.storage.read(refs[part].codes.file)))
        own = pq.read_table(pa.BufferReader(self.storage.read(refs[part].addresses.file)))["row_address"].to_numpy()
        rows = codes.append_column("row_address", pa.array(change(own.copy())))
        quantizer = read_quantizer(self.storage, self.description.centroids, self.description.quantizer_fp)
        keep = pa.schema([codes.schema.field(name) for name in self.description.keep])
        made = make_part(refs[part].part, rows, quantizer.codec, keep)
        self.storage.put(refs[part].codes.file, made.codes)
        self.storage.put(refs[part].addresses.file, made.addresses)
        refs[part] = refs[part].model_copy(
            update={
                "codes": file_ref(refs[part].codes.file, made.codes),
                "addresses": file_ref(refs[part].addresses.file, made.addresses),
            }
        )
        lists = pq.read_table(pa.BufferReader(self.storage.read(self.description.lists.file)))
        others = lists.filter(pa.compute.not_equal(lists["part"], refs[part].part))
        table = pa.concat_tables([others, made.directory.replace_schema_metadata(lists.schema.metadata)])
        self.describe(parts=tuple(refs), lists=self.put(self.description.lists.file, table))


@pytest.mark.parametrize("codec", ["float16", "sq8", "rabitq"])
@pytest.mark.parametrize("lists_per_row", [1, 2])
def test_an_index_as_it_was_built_is_sound(codec: str, lists_per_row: int, tmp_path: Path) -> None:
    index = built_in(tmp_path, codec=codec, lists_per_row=lists_per_row)
    checked = check_index(index.storage, index.manifest)
    assert checked.findings == []
    assert checked.num_rows == 300 * lists_per_row
    assert checked.num_bytes == sum(p.codes.size + p.addresses.size for p in index.description.parts)


def test_a_snapshot_without_an_index_has_no_findings(tmp_path: Path) -> None:
    snapshot = make_snapshot(Storage(str(tmp_path)), [VECTORS])
    assert check_index(snapshot.storage, snapshot.manifest).findings == []


FILES: dict[str, Callable[[IndexDescription], str]] = {
    "index.json": lambda found: f"indexes/{found.index_id}/index.json",
    "centroids": lambda found: found.centroids.file,
    "lists": lambda found: found.lists.file,
    "deleted": lambda found: found.deleted.file,
    "panel": lambda found: found.panel.file,
    "codes": lambda found: found.parts[1].codes.file,
    "addresses": lambda found: found.parts[1].addresses.file,
    "shards": lambda found: found.shards.file,
}


@pytest.mark.parametrize("which", list(FILES))
@pytest.mark.parametrize("how", ["missing", "cut", "changed", "foreign"])
def test_a_file_that_is_not_the_one_listed_is_named(which: str, how: str, tmp_path: Path) -> None:
    index = built_in(tmp_path / "one")
    name = FILES[which](index.description)
    data = index.storage.read(name)
    if how == "missing":
        index.storage.delete([name])
    elif how == "cut":
        index.storage.put(name, data[:-10])
    elif how == "changed":
        index.storage.put(name, data[:50] + bytes([data[50] ^ 1]) + data[51:])
    else:
        other = built_in(tmp_path / "other", nlist=9)
        foreign = other.storage.read(FILES[which](other.description))
        index.storage.put(name, foreign if foreign != data else foreign + b" ")
    findings = index.findings()
    assert findings
    assert any(name in finding for finding in findings), findings


def test_rows_that_are_missing_doubled_or_strangers_are_told(tmp_path: Path) -> None:
    for number, (change, told) in enumerate(
        {
            "doubled": (lambda own: np.concatenate([own[:1], own[:-1]]), "are not in the index 1 times"),
            "stranger": (lambda own: np.concatenate([[999 << 32], own[1:]]), "row 0 of shard 999, which the snapshot"),
            "swapped": (lambda own: own[np.r_[1, 0, 2 : len(own)]], "other rows than .* row_hash differs"),
        }.values()
    ):
        index = built_in(tmp_path / str(number))
        index.change_addresses(change)
        findings = "\n".join(index.findings())
        assert re.search(told, findings), findings


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda row: {"num_rows": row["num_rows"] - 1}, "rows, the directory says"),
        (lambda row: {"list_id": row["list_id"] + 1}, "has rows of other lists than"),
        (lambda row: {"code_begin": row["code_begin"] + 1}, "not where the directory says"),
        (lambda row: {"address_begin": row["address_begin"] + 8}, "not where the directory says"),
        (lambda row: {"checksum": row["checksum"] ^ 1}, "has another checksum than the directory says"),
        (lambda row: {"row_group": 77}, "does not list each row group of .* once"),
        (lambda row: {"part": 77}, "part 77 is none of the index"),
    ],
)
def test_a_directory_that_does_not_fit_its_files_is_told(
    change: Callable[[dict[str, Any]], dict[str, Any]], told: str, tmp_path: Path
) -> None:
    index = built_in(tmp_path)
    index.change_directory(change)
    findings = "\n".join(index.findings())
    assert re.search(told, findings), findings


def test_parts_of_another_quantizer_or_encoder_are_told(tmp_path: Path) -> None:
    index = built_in(tmp_path)
    first, *others = index.description.parts
    index.describe(parts=(first.model_copy(update={"quantizer_fp": "f" * 16}), *others), encoder_fp="0" * 16)
    findings = "\n".join(index.findings())
    assert f"{first.codes.file} was made with the quantizer {'f' * 16}" in findings
    assert "encoder_fp is 0000000000000000" in findings


def test_a_panel_whose_nearest_are_none_is_told(tmp_path: Path) -> None:
    index = built_in(tmp_path)
    ref = index.description.panel
    table = pq.read_table(pa.BufferReader(index.storage.read(ref.file)))
    for column, change, told in (
        ("scores", lambda values: [v - 0.01 for v in values], "query 0 have other scores"),
        ("neighbours", lambda values: [values[1], *values[1:]], "query 0 are there twice"),
        ("neighbours", lambda values: [999 << 32, *values[1:]], "names row 0 of shard 999"),
        ("neighbours", lambda values: values[::-1], "query 0 have other scores"),
    ):
        rows = table.to_pylist()
        rows[0][column] = change(rows[0][column])
        index.describe(panel=index.put(ref.file, pa.Table.from_pylist(rows, table.schema)))
        findings = "\n".join(index.findings())
        assert told in findings, findings
    index.describe(panel=index.put(ref.file, table.slice(2)))
    assert "has other queries than index.json says" in "\n".join(index.findings())


def test_an_index_of_an_older_snapshot_is_held_against_the_rows_it_is_of(tmp_path: Path) -> None:
    index = built_in(tmp_path)
    newer = put_table(index.storage, "snapshots/2.shards.parquet", SHARDS_SCHEMA.empty_table())
    index.manifest = index.manifest.model_copy(update={"snapshot_id": 2, "shards": newer})
    assert index.findings() == []
    Path(index.storage.uri, index.description.shards.file).unlink()
    assert index.description.shards.file in index.findings()[0]


def test_a_listed_file_that_gc_dooms_and_settings_below_the_target_are_told(tmp_path: Path) -> None:
    damage = built_in(tmp_path)
    assert damage.findings() == []
    centroids = damage.description.centroids.file
    damage.manifest = damage.manifest.model_copy(update={"victims": (centroids, "indexes/other/index.json")})
    assert damage.findings() == [f"{centroids} is listed, and among the victims of gc"]
    damage.manifest = damage.manifest.model_copy(update={"victims": None})
    damage.describe(search=damage.description.search.model_copy(update={"nprobe": 999}))
    [finding] = damage.findings()
    assert finding.endswith("nprobe 999 and rerank 0, its settings, were not measured to reach its recall_target 0.95")
