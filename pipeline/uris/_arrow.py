"""A `Storage` as a file system for `pyarrow.dataset`: reads only, by the names a manifest lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa
import pyarrow.fs

if TYPE_CHECKING:
    from pipeline.uris import Storage


class StorageHandler(pa.fs.FileSystemHandler):  # type: ignore[misc]
    """Arrow's door to a storage; faults pass through it as they are."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorageHandler) and other._storage.uri == self._storage.uri

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._storage.uri)

    def get_type_name(self) -> str:
        return "vecmill"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pa.fs.FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> pa.fs.FileInfo:
        try:
            return pa.fs.FileInfo(path, pa.fs.FileType.File, size=self._storage.stat(path).size)
        except FileNotFoundError:
            return pa.fs.FileInfo(path, pa.fs.FileType.NotFound)

    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(self._storage.open_unbuffered(path), mode="r")

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(self._storage.open(path), mode="r")

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("this file system only reads what it is told by name")

    get_file_info_selector = create_dir = delete_dir = delete_dir_contents = _refuse
    delete_root_dir_contents = delete_file = move = copy_file = _refuse
    open_output_stream = open_append_stream = _refuse
