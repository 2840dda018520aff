"""What planning needs of a file: its columns and, from the footer of a Parquet file, size by row group."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Input
from pipeline.splits.batches import open_arrow
from pipeline.splits.delimited import Dialect, csv_rows, open_csv
from pipeline.splits.files import InputFile, file_format
from pipeline.splits.names import find_path, type_at
from pipeline.splits.streams import UndecodableError, decoding, open_source
from pipeline.uris import Storage

# Of a CSV file, for its header.
_HEADER_BYTES = 2**16


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


def read_head(storage: Storage, file: InputFile, input: Input) -> Footer:
    """What a file of any format but JSONL says of its columns; of Parquet `read_footer`.

    Raises:
        EnvironmentFault: storage failed, or the file is another by now.
    """
    found = file_format(file.uri, input.format)
    assert found is not None
    kind, compression = found
    if kind == "parquet":
        return read_footer(storage, file, input.columns)
    if kind in ("text", "lines"):
        return _text_columns(["text"], input)
    with open_source(storage, file) as source:
        try:
            if kind == "arrow":
                schema = open_arrow(source).schema
                return Footer(tuple(schema.names), types_found(schema, input.columns))
            reader = open_csv(source, compression, input.csv, min(file.size, _HEADER_BYTES))
            header = next((row for row in csv_rows(reader, Dialect.of(kind, input.csv)) if not row.is_blank), None)
        except UndecodableError as error:
            return Footer(error=str(error))
    if header is None or header.values is None or not header.is_utf8:
        return Footer(error="no header")
    return _text_columns(header.values, input)


def _text_columns(names: Sequence[str], input: Input) -> Footer:
    """Of a format that has no types."""
    return Footer(tuple(names), tuple((name, pa.string()) for name in input.columns if name in names), is_typed=False)


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
