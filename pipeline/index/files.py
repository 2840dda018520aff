"""The small files of an index, put and read: quantizer, directory, deletions, panel.

Each is put under a name that is taken once (`put_once`). Who comes second takes over what lies there:
two builds of one index, or one that was killed and goes on, use the same quantizer whoever trained it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StorageFault, StoreError
from pipeline.index.codecs import Floats, make_codec
from pipeline.index.description import FileRef
from pipeline.index.layout import REBUILD, centroids_schema, index_folder
from pipeline.index.quantizer import Quantizer, parse_metadata
from pipeline.snapshots.records import checksum
from pipeline.uris import Storage

_ARRAYS_KEY = b"vecmill.arrays"


def put_once(storage: Storage, name: str, data: bytes) -> bytes:
    """What lies at that name afterwards: `data`, or what another put there before.

    Raises:
        EnvironmentFault: storage failed.
    """
    fault: StorageFault | None = None
    try:
        if storage.put_if_absent(name, data):
            return data
    except StorageFault as error:
        fault = error  # it may have gone through all the same
    try:
        return storage.read(name)
    except FileNotFoundError:
        raise fault or StorageFault(
            f"put and not there: {storage.full_uri(name)}; run the same command again"
        ) from None


def first_lost(sizes: Mapping[str, int], files: Iterable[FileRef]) -> str | None:
    """The first of these files that is missing, or cut, by the sizes of what is there."""
    return next((file.file for file in files if sizes.get(file.file) != file.size), None)


def file_ref(name: str, data: bytes | pa.Buffer) -> FileRef:
    """How index.json lists a file."""
    size = data.size if isinstance(data, pa.Buffer) else len(data)
    return FileRef(file=name, size=size, checksum=checksum(data))


def table_bytes(table: pa.Table) -> bytes:
    """A small table as Parquet."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def read_file(storage: Storage, ref: FileRef, schema: pa.Schema) -> pa.Table:
    """A small file that index.json lists, whole and checked; its schema metadata kept.

    Raises:
        StoreError: missing, or not what index.json names.
    """
    return _parse(_read_listed(storage, ref), storage.full_uri(ref.file), schema)


def put_quantizer(storage: Storage, index_id: str, quantizer: Quantizer) -> tuple[Quantizer, FileRef]:
    """The quantizer that the index has from now on, this one or one that was there, and its file."""
    files, there = {}, {}
    for name, values in quantizer.codec.arrays().items():
        files[name] = f"{index_folder(index_id)}/{name}.parquet"
        # Whoever's centroids are there first, they go with the arrays that were there first.
        there[name] = _read_array(
            storage, put_once(storage, files[name], table_bytes(_array_table(values))), files[name]
        )
    codec = make_codec(quantizer.codec.name, quantizer.codec.parameters(), there)
    quantizer = replace(quantizer, codec=codec)
    name = f"{index_folder(index_id)}/centroids.parquet"
    metadata = quantizer.metadata() | {_ARRAYS_KEY: orjson.dumps(files)}
    columns = [
        pa.array(np.arange(quantizer.nlist, dtype=np.int32)),
        pa.array(quantizer.parents),
        _vectors(quantizer.centroids),
    ]
    schema = centroids_schema(quantizer.dim)
    table = pa.Table.from_arrays(
        [column.cast(field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )
    data = put_once(storage, name, table_bytes(table.replace_schema_metadata(metadata)))
    return _read_quantizer(storage, data, storage.full_uri(name)), file_ref(name, data)


def load_quantizer(storage: Storage, index_id: str) -> tuple[Quantizer, FileRef] | None:
    """The quantizer of an index that is being built; None if there is none yet.

    Raises:
        StoreError: damaged.
    """
    name = f"{index_folder(index_id)}/centroids.parquet"
    try:
        data = storage.read(name)
    except FileNotFoundError:
        return None
    return _read_quantizer(storage, data, storage.full_uri(name)), file_ref(name, data)


def read_quantizer(storage: Storage, ref: FileRef, expected_fp: str) -> Quantizer:
    """The quantizer of an index that index.json describes.

    Raises:
        StoreError: missing, damaged, or another than expected.
    """
    uri = storage.full_uri(ref.file)
    quantizer = _read_quantizer(storage, _read_listed(storage, ref), uri)
    if quantizer.fingerprint != expected_fp:
        raise StoreError(
            f"{uri} holds the quantizer {quantizer.fingerprint}, the index is of {expected_fp}: it was "
            f"replaced; {REBUILD}"
        )
    return quantizer


def _read_listed(storage: Storage, ref: FileRef) -> bytes:
    """A file that index.json lists, whole and checked."""
    uri = storage.full_uri(ref.file)
    try:
        data = storage.read(ref.file)
    except FileNotFoundError:
        raise StoreError(
            f"missing from the store: {uri}, which an index.json names; `vecmill index CONFIG` builds the index anew"
        ) from None
    if checksum(data) != ref.checksum:
        raise StoreError(f"damaged: {uri} is not what its index.json names (checksum); {REBUILD}")
    return data


@contextmanager
def undamaged(uri: str, what: str = "file of an index") -> Iterator[None]:
    """While Parquet that is in memory is parsed: whatever it raises says that the file is damaged.

    Raises:
        StoreError: it is.
    """
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:  # storage's own faults are none
        reason = " ".join(str(error).split())[:100]
        raise StoreError(f"damaged: {uri} is no {what} ({reason}); {REBUILD}") from None


def _read_quantizer(storage: Storage, data: bytes, uri: str) -> Quantizer:
    what = "quantizer, or not the one that was put there"
    with undamaged(uri, what):
        table = pq.read_table(pa.BufferReader(data))
        told: dict[str, Any] = parse_metadata(table.schema.metadata)
        arrays = {
            name: _read_array(storage, storage.read(file), file)
            for name, file in orjson.loads(table.schema.metadata[_ARRAYS_KEY]).items()
        }
        codec = make_codec(told["codec"], told["parameters"], arrays)
        parents = table["parent_id"].to_numpy()
        quantizer = Quantizer(_values(table["centroid"]), parents, codec, told["encoder_fp"])
    if quantizer.fingerprint != told["fingerprint"]:
        raise StoreError(f"damaged: {uri} is no {what}; {REBUILD}")
    return quantizer


def _array_table(values: Floats) -> pa.Table:
    return pa.table({"values": _vectors(values)})


def _read_array(storage: Storage, data: bytes, file: str) -> Floats:
    with undamaged(storage.full_uri(file)):
        return _values(pq.read_table(pa.BufferReader(data))["values"])


def _vectors(values: Floats) -> pa.FixedSizeListArray:
    type_ = pa.list_(pa.field("element", pa.float32(), nullable=False), values.shape[1])
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), type=type_)


def _values(column: pa.ChunkedArray) -> Floats:
    flat = column.combine_chunks()
    return np.asarray(flat.flatten().to_numpy(), np.float32).reshape(len(flat), -1)


def _parse(data: bytes, uri: str, schema: pa.Schema) -> pa.Table:
    with undamaged(uri):
        table = pq.read_table(pa.BufferReader(data))
        return table.select(schema.names).cast(schema.with_metadata(table.schema.metadata))
