"""Input files -> splits: what a listing finds, checked, and planned as ranges, the units of work.

    corpus    what input.uri names
    files     the files of a corpus and their identities
    streams   files as byte streams; storage's faults kept apart from a decoder's
    footers   what a Parquet footer says
    batches   files of Arrow, batch by batch
    delimited CSV and TSV, row by row
    names     what a name of the config means in a file
    plan      a file -> splits
    packs     many small files -> one split
    columns   the columns that the config names are there, and have types

All of it runs in the driver, before any work; `pipeline.read` then turns ranges into splits and their documents.
"""

from pipeline.splits.columns import check_columns, plan_files
from pipeline.splits.corpus import Corpus
from pipeline.splits.files import InputFile, file_format, is_streamed, list_input
from pipeline.splits.packs import pack_of, pack_small_files
from pipeline.splits.plan import Cut, Split, limit_splits, plan_file, split_id

__all__ = [
    "Corpus",
    "Cut",
    "InputFile",
    "Split",
    "check_columns",
    "file_format",
    "is_streamed",
    "limit_splits",
    "list_input",
    "pack_of",
    "pack_small_files",
    "plan_file",
    "plan_files",
    "split_id",
]
