"""Duplicate ids: found over all rows of a coming snapshot, and taken out of their shards.

Only where `input.id` is a column: derived ids hold the file and the row. Of the rows with one id the
first counts, by file, then row; the others belong in quarantine as `duplicate_id`. That is a matter
of the input alone: whatever was embedded first, and however often it was killed, the same row stays.

    ids        of every shard, one column read by range; hashed to 64 bits
    buckets    (hash, place) pairs, by the hash's first byte; in memory up to a bound, else in files
    meetings   within a sorted bucket; only those rows are read again, and compared as strings

Memory: 64 MB of pairs, three times that while they are put in order; then a bucket (1/256 of 16
bytes a row), the ids of a few shards, and 8 bytes for each duplicate.

A row in quarantine as a duplicate comes back once no row before it holds its id: `revived` tells
the splits that must be read again. No other row is looked at a second time.
"""

from pipeline.duplicates.coming import COMING_SCHEMA, SEGMENTS_SCHEMA, coming_splits, in_order
from pipeline.duplicates.find import Duplicates, find_duplicates
from pipeline.duplicates.rewrite import without_rows

__all__ = [
    "COMING_SCHEMA",
    "SEGMENTS_SCHEMA",
    "Duplicates",
    "coming_splits",
    "find_duplicates",
    "in_order",
    "without_rows",
]
