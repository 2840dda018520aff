"""An S3 prefix as storage, over s3fs.

All goes through the generic request call of s3fs: its higher calls answer from listings they
remember, cut large puts into parts (a conditional put of parts is no precondition at the start),
and read ahead by 50 MB. Retries are botocore's alone, one layer, so that an endpoint that does
not answer ends in under half a minute; only a reply cut short in its body, which botocore does
not see, is asked for again here.
"""

from __future__ import annotations

import asyncio
import functools
import io
import json
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

import aiohttp
import pyarrow as pa
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from fsspec.asyn import sync

from pipeline.errors import ConfigError, CredentialsFault, StorageFault
from pipeline.uris._objects import ObjectInfo, changed

_T = TypeVar("_T")

_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 20
_ATTEMPTS = 4
_CONNECTIONS = 64  # botocore's 10 would throttle a pool of threads
_DELETE_BATCH = 1000  # S3's own bound

_CREDENTIALS = (
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
)
_CUT_BODY = (aiohttp.ClientError, HTTPClientError, IncompleteReadError, asyncio.TimeoutError, ConnectionResetError)
_FAULTS = (OSError, BotoCoreError, ClientError, aiohttp.ClientError, asyncio.TimeoutError, ValueError, TypeError)
_BAD_CREDENTIALS = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    }
)

_filesystems: dict[tuple[int, str], Any] = {}
_filesystems_lock = threading.Lock()


class S3Prefix:
    """The objects below `s3://bucket/prefix`."""

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        self._uri = uri
        self._bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._options = options

    def _key(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + name}

    def _run(self, name: str, call: Callable[[Any], Awaitable[_T]]) -> _T:
        """Run a coroutine of the file system to its end, with its faults translated."""
        uri = f"{self._uri}/{name}" if name else self._uri
        try:
            filesystem = _filesystem(self._options)
            return sync(filesystem.loop, call, filesystem)  # type: ignore[no-any-return]
        except _FAULTS as error:
            raise _fault(error, uri, self._bucket) from error

    def root_exists(self) -> bool:
        async def call(fs: Any) -> bool:
            page = await fs._call_s3("list_objects_v2", Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
            return not self._prefix or bool(page.get("Contents"))

        try:
            return self._run("", call)
        except FileNotFoundError:
            return False

    def list(self, prefix: str) -> list[ObjectInfo]:
        async def call(fs: Any) -> list[ObjectInfo]:
            found: list[ObjectInfo] = []
            below = f"{self._prefix}{prefix}/" if prefix else self._prefix
            token: dict[str, str] = {}
            while True:
                page = await fs._call_s3("list_objects_v2", Bucket=self._bucket, Prefix=below, **token)
                found.extend(
                    ObjectInfo(item["Key"][len(self._prefix) :], item["Size"], item["ETag"].strip('"'), "etag")
                    for item in page.get("Contents", ())
                    if not item["Key"].endswith("/")  # what consoles put where a folder would be
                )
                if not page.get("IsTruncated"):
                    return found
                token = {"ContinuationToken": page["NextContinuationToken"]}

        return self._run(prefix, call)

    def stat(self, name: str) -> ObjectInfo:
        async def call(fs: Any) -> ObjectInfo:
            head = await fs._call_s3("head_object", **self._key(name))
            return ObjectInfo(name, head["ContentLength"], head["ETag"].strip('"'), "etag")

        return self._run(name, call)

    def read(self, name: str, begin: int, end: int | None, expect: ObjectInfo | None) -> bytes:
        request = self._key(name)
        if expect is not None:
            end = expect.size if end is None else min(end, expect.size)
            if begin >= end:
                return b""
            request["IfMatch"] = f'"{expect.identity}"'
        if begin or end is not None:
            request["Range"] = f"bytes={begin}-{'' if end is None else end - 1}"

        async def call(fs: Any) -> bytes:
            for attempt in range(1, _ATTEMPTS + 1):
                response = await fs._call_s3("get_object", **request)
                try:
                    async with response["Body"] as body:
                        data: bytes = await body.read()
                except _CUT_BODY:
                    if attempt == _ATTEMPTS:
                        raise
                    await asyncio.sleep(0.1 * 2**attempt)
                    continue
                if len(data) == response["ContentLength"]:
                    return data
            raise StorageFault(f"storage gave only part of {self._uri}/{name}; run the same command again")

        try:
            return self._run(name, call)
        except _PastEndError:
            return b""

    def open_raw(self, name: str, expect: ObjectInfo | None) -> io.RawIOBase:
        # Without an expectation: what it is now, so that one reader never sees two versions.
        return _RangeReader(self, name, expect or self.stat(name))

    def put(self, name: str, data: bytes | pa.Buffer) -> None:
        body = data if isinstance(data, bytes) else data.to_pybytes()
        self._run(name, lambda fs: fs._call_s3("put_object", Body=body, **self._key(name)))

    def put_if_absent(self, name: str, data: bytes) -> bool:
        async def call(fs: Any) -> bool:
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    await fs._call_s3("put_object", Body=data, IfNoneMatch="*", **self._key(name))
                except OSError as error:
                    code, status = _code(error)
                    if code == "PreconditionFailed" or status == 412:
                        return False
                    # Others are at it, or a delete is under way: S3 asks to try again.
                    if not (code == "ConditionalRequestConflict" or status == 409) or attempt == _ATTEMPTS:
                        raise
                    await asyncio.sleep(0.1 * 2**attempt)
                else:
                    return True
            return False

        return self._run(name, call)

    def delete(self, names: Iterable[str]) -> None:
        keys = [self._prefix + name for name in names]
        for begin in range(0, len(keys), _DELETE_BATCH):
            batch = {"Objects": [{"Key": key} for key in keys[begin : begin + _DELETE_BATCH]], "Quiet": True}
            for failed in self._run("", functools.partial(_delete, bucket=self._bucket, batch=batch)):
                raise StorageFault(f"cannot delete s3://{self._bucket}/{failed['Key']}: {failed.get('Message')}")


async def _delete(fs: Any, *, bucket: str, batch: dict[str, Any]) -> list[dict[str, Any]]:
    reply = await fs._call_s3("delete_objects", Bucket=bucket, Delete=batch)
    return list(reply.get("Errors", ()))


class _RangeReader(io.RawIOBase):
    """A seekable reader of one version of an object: a request for each read."""

    def __init__(self, root: S3Prefix, name: str, info: ObjectInfo) -> None:
        self._object_root, self._object_name, self._info, self._position = root, name, info, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self._info.size)[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._position + len(view), self._info.size)
        if self._position >= end:
            return 0
        data = self._object_root.read(self._object_name, self._position, end, self._info)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


class _PastEndError(Exception):
    """A range that begins at or after the object's end."""


def _filesystem(options: Mapping[str, Any]) -> Any:
    """One file system a process and options: making a client takes a third of a second."""
    import s3fs

    key = (os.getpid(), json.dumps(options, sort_keys=True, default=repr))
    with _filesystems_lock:
        if key not in _filesystems:
            config = {
                "connect_timeout": _CONNECT_TIMEOUT_S,
                "read_timeout": _READ_TIMEOUT_S,
                "max_pool_connections": _CONNECTIONS,
                "retries": {"total_max_attempts": _ATTEMPTS, "mode": "standard"},
                **options.get("config_kwargs", {}),
            }
            filesystem = s3fs.S3FileSystem(
                **{**options, "config_kwargs": config, "use_listings_cache": False, "skip_instance_cache": True}
            )
            filesystem.retries = 1
            _filesystems[key] = filesystem
        return _filesystems[key]


def _code(error: BaseException) -> tuple[str, int]:
    """S3's error code and the HTTP status; s3fs keeps botocore's error as the cause."""
    for candidate in (error, error.__cause__):
        if isinstance(candidate, ClientError):
            response: Any = candidate.response
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(response.get("Error", {}).get("Code", "")), int(status)
    return "", 0


def _fault(error: BaseException, uri: str, bucket: str) -> Exception:
    """A fault of s3fs or botocore, as what a person can act on."""
    code, status = _code(error)
    if code == "NoSuchBucket":
        return FileNotFoundError(f"no such bucket: {bucket} ({uri})")
    if isinstance(error, ValueError | TypeError | ParamValidationError):
        return ConfigError(f"storage options or URI cannot be used: {uri}: {' '.join(str(error).split())}")
    if status == 416:
        return _PastEndError()
    if status == 412:
        return changed(uri)
    if isinstance(error, _CREDENTIALS) or code in _BAD_CREDENTIALS:
        return CredentialsFault(
            f"credentials for {uri} are missing, wrong or expired ({code or type(error).__name__}); "
            "set storage_options or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, then run the same command again"
        )
    if status in (401, 403) or isinstance(error, PermissionError):
        return CredentialsFault(
            f"no right to use {uri} ({code or status}); grant it or give other credentials, then run again"
        )
    if status == 404 or isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"not found: {uri}")
    if isinstance(error, BotoConnectionError | HTTPClientError | aiohttp.ClientConnectionError | asyncio.TimeoutError):
        return StorageFault(
            f"storage of {uri} cannot be reached: {error}; check endpoint_url and the network, "
            "then run the same command again"
        )
    return StorageFault(f"storage failed at {uri}: {error}; run the same command again")
