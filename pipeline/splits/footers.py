"""What planning needs of a file: its columns and, from the footer of a Parquet file, size by row group."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.splits.files import InputFile
from pipeline.splits.names import find_path, type_at
from pipeline.splits.streams import UndecodableError, decoding, open_source
from pipeline.uris import Storage


@dataclass(frozen=True, slots=True)
class Footer:
    """Of one file; of other formats than Parquet without row groups.

    Attributes:
        names: its columns, in order.
        types: by name, the types of those asked for that it has (`pipeline.splits.names`).
        group_rows, group_bytes: by row group; bytes are uncompressed, of the columns asked for.
        error: why it cannot be read, in which case all else is empty.
        is_typed: whether its types are the file's own: of CSV and plain text they are string, for want of others.
    """

    names: tuple[str, ...] = ()
    types: tuple[tuple[str, pa.DataType], ...] = ()
    group_rows: tuple[int, ...] = ()
    group_bytes: tuple[int, ...] = ()
    error: str | None = None
    is_typed: bool = True


def read_footer(storage: Storage, file: InputFile, columns: Collection[str] = ()) -> Footer:
    """The footer of a Parquet file; sizes count all columns if none are named.

    A file that is not Parquet gives a `Footer` with its error.

    Raises:
        EnvironmentFault: storage failed, or the file is another by now.
    """
    with open_source(storage, file) as source:
        try:
            with decoding(source):
                return footer_of(pq.read_metadata(pa.PythonFile(source, mode="r")), columns)
        except UndecodableError as error:
            return Footer(error=str(error))


def footer_of(metadata: pq.FileMetaData, columns: Collection[str] = ()) -> Footer:
    """What `metadata` says; sizes count all columns if none are named.

    Raises:
        ArrowInvalid, OSError: its schema is none that Arrow knows.
    """
    schema = metadata.schema.to_arrow_schema()
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    wanted = [i for i, path in enumerate(paths) if not columns or any(_within(path, name) for name in columns)]
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return Footer(
        names=tuple(schema.names),
        types=types_found(schema, columns),
        group_rows=tuple(group.num_rows for group in groups),
        group_bytes=tuple(sum(group.column(i).total_uncompressed_size for i in wanted) for group in groups),
    )


def types_found(schema: pa.Schema, columns: Collection[str]) -> tuple[tuple[str, pa.DataType], ...]:
    """The types of those of the columns that the schema has."""
    paths = ((name, find_path(schema, name)) for name in columns if schema.names.count(name) < 2)
    return tuple((name, type_at(schema, path)) for name, path in paths if path is not None)


def _within(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")
