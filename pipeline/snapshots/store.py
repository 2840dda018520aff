"""store.json: what a store is of. Put once, by a conditional put, before anything else."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.config import redact_uri
from pipeline.errors import StorageFault, StoreError
from pipeline.uris import Storage

FORMAT_VERSION = 1
STORE_NAME = "store.json"


class StoreIdentity(BaseModel):
    """The content of store.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format_version: int = FORMAT_VERSION
    min_reader_version: int = FORMAT_VERSION
    """A reader of a lower version refuses the store."""
    store_id: str
    input_root: str
    """Without credentials."""
    created_at: str


def check_store(storage: Storage, input_root: str, read_uris: Sequence[str] = ()) -> bool:
    """Whether there is a store; what `open_store` would refuse is refused, without making one.

    Raises:
        StoreError: as `open_store`.
    """
    storage.check_store()
    for uri in read_uris or (input_root,):
        _refuse_nesting(storage.uri, redact_uri(uri))
    if _read(storage) is not None:
        open_store(storage, input_root, read_uris, create=False)
        return True
    try:
        storage.list("snapshots")
    except FileNotFoundError as error:
        raise _unmakeable(storage, error) from None
    return False


def open_store(
    storage: Storage, input_root: str | None, read_uris: Sequence[str] = (), *, create: bool
) -> StoreIdentity:
    """The identity of the store, made if `create` and there is none.

    Args:
        storage: rooted at the store.
        input_root: the normalized URI of the corpus (of a single file: the file's own); None: any.
        read_uris: what is looked into below it, which the store must not lie in; none: all of it.
        create: whether a store may be made; needs `input_root`.

    Raises:
        StoreError: there is no store, it is of another corpus or newer, or lies inside its input or the reverse.
    """
    storage.check_store()
    root = None if input_root is None else redact_uri(input_root)
    if root is not None:
        for uri in read_uris or (root,):
            _refuse_nesting(storage.uri, redact_uri(uri))
    identity = _read(storage)
    if identity is None:
        if not create or root is None:
            raise StoreError(f"no store at {storage.uri}; `vecmill embed CONFIG` makes one")
        identity = _create(storage, root)
    if root is not None and identity.input_root != root:
        raise StoreError(
            f"the store {storage.uri} is of the corpus {identity.input_root}, not of {root}; "
            "give input.uri as it was, or another store.uri"
        )
    return identity


def _unmakeable(storage: Storage, error: FileNotFoundError) -> StoreError:
    what = "folder" if storage.is_local else "bucket"
    return StoreError(f"{error}; make the {what}, or give another store.uri")


def _create(storage: Storage, root: str) -> StoreIdentity:
    created_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    identity = StoreIdentity(store_id=secrets.token_hex(16), input_root=root, created_at=created_at)
    fault: StorageFault | None = None
    try:
        storage.put_if_absent(STORE_NAME, orjson.dumps(identity.model_dump(), option=orjson.OPT_INDENT_2))
    except FileNotFoundError as error:
        raise _unmakeable(storage, error) from None
    except StorageFault as error:
        fault = error  # the put may have gone through all the same
    # Ours or another's that came first: what lies there now is the store's identity.
    found = _read(storage)
    if found is None:
        raise fault or StorageFault(f"put and not there: {storage.full_uri(STORE_NAME)}; run the same command again")
    return found


def _read(storage: Storage) -> StoreIdentity | None:
    uri = storage.full_uri(STORE_NAME)
    try:
        value = orjson.loads(storage.read(STORE_NAME))
        if value["min_reader_version"] > FORMAT_VERSION:
            raise StoreError(
                f"{uri} needs a reader of format {value['min_reader_version']}, "
                f"this Vecmill reads {FORMAT_VERSION}; install a newer one"
            )
        return StoreIdentity.model_validate(value)
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
        raise StoreError(f"{uri} is no store.json of Vecmill ({' '.join(str(error).split())[:200]})") from None


def _refuse_nesting(store_uri: str, input_root: str) -> None:
    store, corpus = (uri if "://" in uri else os.path.realpath(uri) for uri in (store_uri, input_root))
    for inner, outer, relation in ((store, corpus, "inside its input"), (corpus, store, "around its input")):
        if f"{inner}/".startswith(f"{outer.rstrip('/')}/"):
            raise StoreError(
                f"the store {store_uri} lies {relation} {input_root}: one run would read what another wrote; "
                "give a store.uri beside it"
            )
