"""What no build writes yet, and readers take: delta parts, deletions, a list in several parts, a row in two lists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.index.assign import Work, assign
from pipeline.index.build import build
from pipeline.index.description import FileRef
from pipeline.index.files import file_ref, read_file, table_bytes
from pipeline.index.layout import DELETED_SCHEMA, DIRECTORY_SCHEMA, index_folder, panel_schema
from pipeline.index.merge import merge, plan_merges
from pipeline.index.panel import Truth, panel_table, parse_panel
from pipeline.index.shards import shards_of
from pipeline.search import SearchableSnapshot, open_index
from pipeline.snapshots.manifest import IndexRef, put_table
from pipeline.snapshots.reader import Snapshot
from pipeline.uris import Storage
from pipeline.verify.index import check_index
from tests.indexed import NLIST, QUERIES, VECTORS, brute_force, recall
from tests.snapshots import index_settings, make_snapshot, with_index

# Rows of three shards: the first night has the first two, the second night the first and the third.
FIRST, SECOND = 700, 1000


class Later:
    """A store after its second night: rows of a shard deleted, those of another in a delta part."""

    def __init__(self, folder: Path, codec: str, lists_per_row: int) -> None:
        self.storage = Storage(str(folder))
        whole = make_snapshot(self.storage, [VECTORS[:FIRST], VECTORS[FIRST:SECOND], VECTORS[SECOND:]])
        first_night = self._snapshot(whole, 1, [0, 1])
        built = build(first_night, index_settings(codec=codec, nlist=NLIST), lists_per_row=lists_per_row)
        self.old = built.description
        self.quantizer = open_index(with_index(first_night, built.file)).quantizer
        later = self._snapshot(whole, 2, [0, 2])
        _, gone, added = shards_of(whole)

        panel, truth = parse_panel(read_file(self.storage, self.old.panel, panel_schema(16)))
        work = Work(
            self.old.index_id, self.quantizer, panel, pa.schema([("lang", "string"), ("year", "int32")]), lists_per_row
        )
        record = assign(self.storage, work, [added])
        delta = [
            merge(self.storage, work, [record], replace(planned, part=planned.part + len(self.old.parts)))
            for planned in plan_merges(work, [record])
        ]
        deleted = self._deleted(gone.ordinal)
        lists = self._counted(read_file(self.storage, self.old.lists, DIRECTORY_SCHEMA), deleted)
        kept = [found >> 32 != gone.ordinal for found in truth.addresses]
        still = Truth(
            [found[some] for found, some in zip(truth.addresses, kept, strict=True)],
            [found[some] for found, some in zip(truth.scores, kept, strict=True)],
            truth.left_out,
        )
        self.description = self.old.model_copy(
            update={
                "snapshot_id": 2,
                "shards": later.manifest.shards,
                "num_rows": len(VECTORS) - (SECOND - FIRST),
                "parts": (*self.old.parts, *(part.ref for part in delta)),
                "lists": self._put("lists", pa.concat_tables([lists, *(part.directory for part in delta)])),
                "deleted": self._put("deleted", deleted),
                "panel": self._put("panel", panel_table(panel, still)),
            }
        )
        name = f"{index_folder(self.old.index_id)}/index-2.json"
        self.storage.put(name, self.description.to_json())
        ref = IndexRef(file=name, checksum=file_ref(name, self.description.to_json()).checksum, snapshot_id=2)
        self.manifest = later.manifest.model_copy(update={"index": ref})

    def _snapshot(self, whole: Snapshot, number: int, shards: list[int]) -> Snapshot:
        table = put_table(self.storage, f"snapshots/night-{number}.parquet", whole.shards.take(shards))
        return Snapshot(self.storage, whole.manifest.model_copy(update={"snapshot_id": number, "shards": table}))

    def _deleted(self, ordinal: int) -> pa.Table:
        rows = []
        for part in self.old.parts:
            addresses = self._read(part.addresses)["row_address"].to_numpy()
            lists = self._read(part.codes)["list_id"].to_numpy()
            for position in np.flatnonzero(addresses >> 32 == ordinal).tolist():
                rows.append({"list_id": int(lists[position]), "part": part.part, "position": position})
        return pa.Table.from_pylist(rows, DELETED_SCHEMA)

    def _counted(self, lists: pa.Table, deleted: pa.Table) -> pa.Table:
        rows = lists.to_pylist()
        for row in rows:
            row["num_deleted"] = sum(1 for one in deleted.to_pylist() if one["list_id"] == row["list_id"])
        return pa.Table.from_pylist(rows, DIRECTORY_SCHEMA)

    def _read(self, ref: FileRef) -> pa.Table:
        return pq.read_table(pa.BufferReader(self.storage.read(ref.file)))

    def _put(self, name: str, table: pa.Table) -> FileRef:
        data = table_bytes(table)
        self.storage.put(f"{index_folder(self.old.index_id)}/{name}-2.parquet", data)
        return file_ref(f"{index_folder(self.old.index_id)}/{name}-2.parquet", data)


@pytest.mark.parametrize("lists_per_row", [1, 2])
@pytest.mark.parametrize("codec", ["float16", "sq8", "rabitq"])
def test_deltas_and_deletions_are_searched_and_verified(codec: str, lists_per_row: int, tmp_path: Path) -> None:
    later = Later(tmp_path, codec, lists_per_row)
    checked = check_index(later.storage, later.manifest)
    assert checked.findings == []
    rows = np.concatenate([np.arange(FIRST), np.arange(SECOND, len(VECTORS))])
    assert checked.num_rows == len(rows) * lists_per_row

    index = SearchableSnapshot(later.storage, later.manifest).index
    parts_of_list = np.diff(index.directory.bounds)
    assert (parts_of_list[index.directory.list_id] > 1).any(), "a list in several parts"
    found = index.search(QUERIES, 10, nprobe=NLIST)
    assert recall(found.doc_ids, brute_force(QUERIES, 10, rows)) >= (1.0 if codec == "float16" else 0.9)
    assert all(len(set(row)) == 10 for row in found.doc_ids)
    everything = index.search(QUERIES[:1], len(VECTORS))
    assert sorted(everything.doc_ids[0]) == sorted(f"d{row}" for row in rows)
    assert index.to_faiss().ntotal == len(rows) * lists_per_row


def test_deletions_that_the_directory_does_not_count_are_told(tmp_path: Path) -> None:
    later = Later(tmp_path, "sq8", 1)
    lists = later._read(later.description.lists)
    wrong = lists.set_column(4, lists.schema.field("num_deleted"), pa.array([0] * len(lists), pa.int32()))
    assert lists.schema.names[4] == "num_deleted"
    description = later.description.model_copy(update={"lists": later._put("wrong", wrong)})
    name = f"{index_folder(later.old.index_id)}/index-3.json"
    later.storage.put(name, description.to_json())
    ref = IndexRef(file=name, checksum=file_ref(name, description.to_json()).checksum, snapshot_id=2)
    findings = check_index(later.storage, later.manifest.model_copy(update={"index": ref})).findings
    assert any("deleted rows, the directory says 0" in finding for finding in findings)
