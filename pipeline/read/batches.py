"""Arrow batches by what they take in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

# Rows made into documents at once.
BATCH_ROWS = 1024
# Unless one row is more: what is small in the file may be large in memory, and an Arrow string array ends at 2 GiB.
_BATCH_BYTES = 64 * 2**20


def halved(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in parts of up to `BATCH_ROWS`, that take up to 64 MiB once they are decoded, or are one row."""
    for begin in range(0, batch.num_rows, BATCH_ROWS):
        yield from _halved(batch.slice(begin, BATCH_ROWS))


def _halved(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    if batch.num_rows > 1 and num_bytes(batch) > _BATCH_BYTES:
        half = batch.num_rows // 2
        yield from _halved(batch.slice(0, half))
        yield from _halved(batch.slice(half))
    else:
        yield batch


def num_bytes(batch: pa.RecordBatch) -> int:
    """What the rows take once dictionaries are resolved."""
    return sum(_column_bytes(column) for column in batch.columns)


def _column_bytes(column: pa.Array) -> int:
    if not types.is_dictionary(column.type):
        return int(column.nbytes)
    # A string that the file holds once may be that of every row.
    if not (
        types.is_binary(column.dictionary.type)
        or types.is_string(column.dictionary.type)
        or types.is_large_string(column.dictionary.type)
        or types.is_large_binary(column.dictionary.type)
    ):
        return int(column.nbytes)
    return int(pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0)
