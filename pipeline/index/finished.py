"""What earlier runs have built of an aim, and whether it is whole.

An index that lacks a file, or has one of another size, is left where it is and built anew under the name of
another attempt: nothing that a manifest can list is ever written twice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.errors import StoreError
from pipeline.index.description import FileRef, IndexDescription, read_description
from pipeline.index.files import file_ref, first_lost, load_quantizer
from pipeline.index.layout import index_folder
from pipeline.index.prepare import Aim
from pipeline.snapshots.manifest import IndexRef
from pipeline.uris import Storage

log = logging.getLogger(__name__)

_MAX_ATTEMPTS = 8


@dataclass(frozen=True)
class Built:
    """A finished index: its index.json as a manifest lists it, and what is in it."""

    file: FileRef
    description: IndexDescription


def description_names(index_id: str, target: float) -> tuple[str, str]:
    """The name of index.json; and that of one with another recall target than what is there, of the same files."""
    folder = index_folder(index_id)
    return f"{folder}/index.json", f"{folder}/index-{target}.json"


def find(aim: Aim, target: float) -> tuple[Aim, Built | None]:
    """The aim under the first name at which nothing is damaged; and the index, if it lies there with this target.

    Raises:
        StoreError: there are too many damaged ones.
    """
    storage, named = aim.snapshot.storage, aim.snapshot.manifest.index
    attempts = [replace(aim, attempt=attempt) for attempt in range(_MAX_ATTEMPTS)]
    # The one that readers have comes first: those before it may be gone altogether.
    current = [one for one in attempts if named and named.file.startswith(f"{index_folder(one.index_id)}/")]
    doomed = {"/".join(name.split("/")[:2]) for name in aim.snapshot.manifest.victims or ()}
    for one in dict.fromkeys([*current, *attempts]):
        folder = index_folder(one.index_id)
        if folder in doomed and one not in current:
            continue  # gc, or whoever comes next, deletes those names once more
        sizes = {info.name: info.size for info in storage.scan(folder)}
        names = [name for name in sizes if name.startswith(f"{folder}/index") and name.endswith(".json")]
        if named and one in current and named.file not in names:
            names.append(named.file)
        try:
            found = [_read(storage, name, named) for name in names]
            _check_whole(storage, one.index_id, sizes, found)
        except StoreError as error:
            log.warning("%s; the index is built anew", error)
            continue
        wanted = description_names(one.index_id, target)
        fit = (built for built in found if built.file.file in wanted and built.description.recall_target == target)
        return one, next(fit, None)
    raise StoreError(
        f"{_MAX_ATTEMPTS} indexes of these rows are damaged, the last in {storage.full_uri(folder)}; delete their "
        "folders, then run the same command again"
    )


def _check_whole(storage: Storage, index_id: str, sizes: Mapping[str, int], found: Sequence[Built]) -> None:
    for built in found:
        if lost := first_lost(sizes, built.description.files()):
            raise StoreError(f"missing or cut: {storage.full_uri(lost)}, which {built.file.file} names")
    for table in {built.description.shards.file for built in found}:
        # Of another snapshot of the same rows, perhaps, and gc may have taken it.
        try:
            storage.stat(table)
        except FileNotFoundError:
            raise StoreError(f"missing: {storage.full_uri(table)}, which {index_id} was built of") from None
    if found:
        load_quantizer(storage, index_id)


def _read(storage: Storage, name: str, named: IndexRef | None) -> Built:
    expected = named.checksum if named and named.file == name else None
    description = read_description(storage, name, expected)
    return Built(file_ref(name, storage.read(name)), description)
