"""A split written again without some of its documents, which go to its quarantine file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.duplicates.find import missing
from pipeline.duplicates.pairs import Places
from pipeline.errors import StoreError, VecmillError
from pipeline.schema import QUARANTINE_SCHEMA
from pipeline.snapshots.records import Record, checksum
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
    numbers = _row_numbers(record, quarantine, len(losing))
    losers = table.take(pa.array(rows))
    added = {
        "doc_id": losers["doc_id"],
        "input_file": [record.file_uri] * len(rows),
        "row": pa.nulls(len(rows), pa.int64()) if numbers is None else numbers[losing],
        "content_hash": losers["content_hash"],
        "stage": ["publish"] * len(rows),
        "reason": ["duplicate_id"] * len(rows),
        "message": ["an earlier row, by file and row, has the same id"] * len(rows),
        "text": losers["text"] if "text" in losers.schema.names else pa.nulls(len(rows), pa.string()),
    }
    quarantine = pa.concat_tables([quarantine, pa.table(added).cast(QUARANTINE_SCHEMA)])
    fingerprints, schema = (record.encoder_fp, record.shard_fp), table.schema.remove_metadata()
    made = make_attempt(fingerprints, record.split_id, embeddings, schema, quarantine, with_text=with_text)
    rewritten = replace(
        record,
        generation=record.generation + 1,
        run_id=run_id,
        num_quarantined=record.num_quarantined + len(rows),
        num_reused=min(record.num_reused, int(np.count_nonzero(~losing))),
        **made.fields,
    )
    return made.put(store, rewritten)


def _row_numbers(record: Record, quarantine: pa.Table, num_documents: int) -> Places | None:
    """The row of the input file of each document of a shard; None where nothing tells.

    Ranges of Parquet are rows, and a shard has them in order without those in quarantine. Ranges of
    lines are bytes: they are never as many as rows.
    """
    if record.row_begin is None or (record.begin, record.end) != (record.row_begin, record.row_end):
        return None
    numbers = np.setdiff1d(np.arange(record.begin, record.end), quarantine["row"].drop_null().to_numpy())
    if len(numbers) != num_documents:
        raise VecmillError(
            f"{record.shard.file} has {num_documents} documents, its quarantine file leaves {len(numbers)} rows "
            f"of {record.file_uri}. This is a bug."
        )
    return numbers


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
