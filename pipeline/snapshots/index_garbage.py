"""What lies in `indexes/` and is needed by nobody; told by names, and by the index.json of each kept snapshot.

A folder is named by the rows it is of, then by what it is made of them:

    named by a kept snapshot      kept, without what its index.json does not list: work, attempts that lost
    of rows that are kept         kept, for an interrupted or a refused build will go on with it; unless asked for
    of other rows                 garbage

Deleted is, of all folders, first what a build would take for finished, then what it would take for done, then the
rest: so that whatever a kill leaves is never taken for more than it is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

import orjson

from pipeline.snapshots.manifest import IndexRef
from pipeline.uris import Storage

_NAME = re.compile(r"indexes/(?P<index_id>(?P<rows_fp>[0-9a-f]{16})-[0-9a-f]{16})/(?P<rest>.+)")

# What index.json lists, or nobody.
_LISTED = ("codes/", "addresses/", "work/")

# Of what deletes first: each stage of a build finds what is there by these.
_ORDER = (
    re.compile(r"index[^/]*\.json"),
    re.compile(r"(lists|centroids|panel|deleted)\.parquet"),
    re.compile(r"work/(assign/[^/]+\.json|merge/[^/]+)"),
)


def find_index_garbage(
    storage: Storage,
    names: Iterable[str],
    kept: Iterable[IndexRef],
    kept_rows: Collection[str],
    *,
    everything: bool,
) -> list[str]:
    """What of these may be deleted, in the order in which it has to be.

    Args:
        storage: rooted at the store.
        names: of all objects in `indexes/`.
        kept: the indexes that kept snapshots name.
        kept_rows: the `rows_fp` of kept snapshots.
        everything: whether work that was never published is garbage too.
    """
    listed: dict[str, set[str]] = {}
    unknown: set[str] = set()
    for file in sorted({ref.file for ref in kept}):
        folder = file.rpartition("/")[0]
        found = _listed_in(storage, file)
        if found is None:  # then nothing of its folder is known to be garbage
            unknown.add(folder)
        listed.setdefault(folder, set()).update(found or ())
    garbage = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        folder = f"indexes/{match['index_id']}"
        if folder in listed:
            is_garbage = folder not in unknown and match["rest"].startswith(_LISTED) and name not in listed[folder]
        else:
            is_garbage = everything or match["rows_fp"] not in kept_rows
        if is_garbage:
            garbage.append(name)
    return sorted(garbage, key=lambda name: (_rank(name), name))


def in_steps(names: Iterable[str]) -> Iterator[list[str]]:
    """The names in lists, of which one has to be deleted before the next is begun."""
    for _, some in groupby(sorted(names, key=_rank), key=_rank):
        yield list(some)


def _rank(name: str) -> int:
    match = _NAME.fullmatch(name)
    rest = match["rest"] if match else ""
    return next((rank for rank, pattern in enumerate(_ORDER) if pattern.fullmatch(rest)), len(_ORDER))


def _listed_in(storage: Storage, name: str) -> set[str] | None:
    """All files that an index.json names; None: it is not there, or none."""
    try:
        return set(_files(orjson.loads(storage.read(name))))
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None


def _files(value: Mapping[str, Any] | list[Any] | Any) -> Iterator[str]:
    """The values of all keys `file`, at any depth: this layer knows no more of index.json."""
    if isinstance(value, Mapping):
        if isinstance(value.get("file"), str):
            yield value["file"]
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _files(one)
