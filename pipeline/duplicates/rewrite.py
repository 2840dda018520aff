"""A split written again without some of its documents, which go to its quarantine file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.duplicates.find import missing
from pipeline.duplicates.pairs import Places
from pipeline.errors import StoreError, VecmillError
from pipeline.schema import QUARANTINE_SCHEMA
from pipeline.snapshots.records import Member, Record, checksum
from pipeline.snapshots.table import RecordTable
from pipeline.uris import Storage
from pipeline.write import make_attempt


def without_rows(store: Storage, record: Record, rows: Places, *, run_id: str, with_text: bool) -> Record:
    """Write a split again without some of its documents, which go to its quarantine file; its new record.

    An attempt of its own, a generation up, its record put last: killed anywhere, the split is what it
    was or what it becomes. The other rows are the same to the bit. In quarantine a row of Parquet has
    its number; of lines the shard does not keep where they were, so `row` is null there beside the id.

    Args:
        rows: of the shard, ascending; of a document in chunks its first. From `Duplicates.rows`.
        run_id: the run that does it.
        with_text: `store.quarantine_text`; the text is there only if the shard has it.

    Raises:
        StoreError: a file of the record is missing or damaged.
    """
    table = _read_table(store, record.shard.file, record.shard.checksum)
    document = np.cumsum(table["chunk_index"].to_numpy() == 0) - 1  # of each row
    losing = np.zeros(int(document[-1]) + 1 if len(document) else 0, bool)
    losing[document[rows]] = True
    embeddings = table.filter(pa.array(~losing[document]))
    quarantine = QUARANTINE_SCHEMA.empty_table()
    if record.quarantine is not None:
        quarantine = _quarantine_of(_read_table(store, record.quarantine.file, record.quarantine.checksum))
    files = RecordTable.of([record]).by_file().to_pylist()
    file_of = _file_of_each(record, files, len(losing))
    numbers = np.concatenate(
        [_row_numbers(file, quarantine, int((file_of == i).sum())) for i, file in enumerate(files)]
    )
    losers = table.take(pa.array(rows))
    uris = [files[i]["file_uri"] for i in file_of[losing]]
    quarantine = pa.concat_tables([quarantine, _quarantined(losers, uris, numbers[losing])])
    fingerprints, schema = (record.encoder_fp, record.shard_fp), table.schema.remove_metadata()
    made = make_attempt(fingerprints, record.split_id, embeddings, schema, quarantine, with_text=with_text)
    rewritten = replace(
        record,
        generation=record.generation + 1,
        run_id=run_id,
        num_quarantined=record.num_quarantined + len(rows),
        num_reused=min(record.num_reused, int(np.count_nonzero(~losing))),
        members=_members_without(record, table, file_of[document], losing[document]),
        **made.fields,
    )
    return made.put(store, rewritten)


def _quarantined(losers: pa.Table, uris: list[str], numbers: Places) -> pa.Table:
    """Rows of a shard as QUARANTINE_SCHEMA, with their input files and the rows there."""
    num = losers.num_rows
    columns = {
        "doc_id": losers["doc_id"],
        "input_file": uris,
        "row": pa.array(numbers, pa.int64(), mask=numbers < 0),
        "content_hash": losers["content_hash"],
        "stage": ["publish"] * num,
        "reason": ["duplicate_id"] * num,
        "message": ["an earlier row, by file and row, has the same id"] * num,
        "text": losers["text"] if "text" in losers.schema.names else pa.nulls(num, pa.string()),
    }
    return pa.table(columns).cast(QUARANTINE_SCHEMA)


def _file_of_each(record: Record, files: list[dict[str, Any]], num_documents: int) -> Places:
    """The file of each document of a shard, which has them file by file."""
    if len(files) == 1:
        return np.zeros(num_documents, np.int64)
    file_of = np.repeat(np.arange(len(files)), [file["num_documents"] - file["num_quarantined"] for file in files])
    if len(file_of) != num_documents:
        raise VecmillError(
            f"{record.shard.file} has {num_documents} documents, its record {len(file_of)}. This is a bug."
        )
    return file_of


def _row_numbers(file: dict[str, Any], quarantine: pa.Table, num_documents: int) -> Places:
    """The row of the input file of each of its documents in a shard; -1 where nothing tells.

    Ranges of Parquet are rows, and a shard has them in order without those in quarantine. Ranges of
    lines are bytes: they are never as many as rows.
    """
    if file["row_begin"] is None or (file["begin"], file["end"]) != (file["row_begin"], file["row_end"]):
        return np.full(num_documents, -1, np.int64)
    bad = quarantine.filter(pc.equal(quarantine["input_file"], file["file_uri"]))["row"].drop_null().to_numpy()
    numbers: Places = np.setdiff1d(np.arange(file["begin"], file["end"]), bad)
    if len(numbers) != num_documents:
        raise VecmillError(
            f"a shard has {num_documents} documents of {file['file_uri']}, its quarantine file leaves {len(numbers)} "
            "rows. This is a bug."
        )
    return numbers


def _members_without(
    record: Record, table: pa.Table, file_of: Places, is_lost: npt.NDArray[np.bool_]
) -> tuple[Member, ...] | None:
    """The files of a pack without the rows that are lost; file and loss of each row of the shard."""
    if record.members is None:
        return None
    num = len(record.members)
    lost = np.bincount(file_of[is_lost & (table["chunk_index"].to_numpy() == 0)], minlength=num)
    kept = [np.bincount(file_of, table[name].to_numpy() * ~is_lost, num) for name in ("truncated", "num_tokens")]
    return tuple(
        replace(
            member,
            num_quarantined=member.num_quarantined + int(lost[i]),
            num_truncated=int(kept[0][i]),
            num_tokens=int(kept[1][i]),
        )
        for i, member in enumerate(record.members)
    )


def _quarantine_of(table: pa.Table) -> pa.Table:
    if "text" not in table.schema.names:
        table = table.append_column("text", pa.nulls(table.num_rows, pa.string()))
    return table.select(QUARANTINE_SCHEMA.names).cast(QUARANTINE_SCHEMA)


def _read_table(store: Storage, name: str, expected: str) -> pa.Table:
    try:
        data = store.read(name)
    except FileNotFoundError:
        raise missing(store, name) from None
    if checksum(data) != expected:
        raise StoreError(
            f"damaged: {store.full_uri(name)} is not the file that its record names (checksum); put it back, or "
            "delete the record of this split id below records/, then run the same command again"
        )
    return pq.read_table(pa.BufferReader(data))
