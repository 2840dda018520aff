"""The corpus of a round, in two versions: 24 splits of a Parquet file and a compressed stream of JSON lines."""

from __future__ import annotations

import gzip
import io

import pyarrow as pa
import pyarrow.parquet as pq

from tests.corpus import Row, jsonl_bytes, make_rows

SPLIT_ROWS = 12
FILE_ROWS = 144
NUM_SPLITS = 2 * FILE_ROWS // SPLIT_ROWS


def corpus_files(version: int = 1) -> dict[str, bytes]:
    """Two files of 12 splits each, with three bad documents; version 2 has other texts of the same length."""
    rows = [*make_rows(FILE_ROWS, words=40), *make_rows(FILE_ROWS, begin=FILE_ROWS, words=40)]
    if version == 2:
        rows = [row | {"body": row["body"].replace("river", "water").replace("comet", "brook")} for row in rows]
    first: list[Row] = rows[:FILE_ROWS]
    first[5] = first[5] | {"id": ""}
    lines = jsonl_bytes(rows[FILE_ROWS:]).splitlines(keepends=True)
    lines[40] = b"{" + b"x" * (len(lines[40]) - 2) + b"\n"
    lines[90] = b"[" + b"1" * (len(lines[90]) - 3) + b"]\n"
    # Level 0: another text of the same length gives a file of the same size.
    return {
        "a.parquet": _parquet(first),
        "b.jsonl.gz": gzip.compress(b"".join(lines), compresslevel=0, mtime=0),
    }


def _parquet(rows: list[Row]) -> bytes:
    """Without compression: see above."""
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(rows), sink, row_group_size=SPLIT_ROWS, compression="NONE", use_dictionary=False
    )
    return sink.getvalue()
