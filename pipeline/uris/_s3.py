"""An S3 prefix as storage: what is asked of S3, and what is believed of its answers.

An answer is taken for S3's only if it looks like one: a captive portal, a proxy or a cache may
stand in between, and an HTML page read as a listing would be an empty bucket. A listing says
whether it goes on, a put gives an etag, a range is the range asked for, and of an object that was
expected the etag is compared too, should If-Match have got lost on the way.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa
from botocore.exceptions import ClientError

from pipeline.uris import _faults
from pipeline.uris._client import ask, open_filesystem
from pipeline.uris._faults import GarbledReplyError, PastEndError, code_of
from pipeline.uris._objects import ObjectInfo, changed

_T = TypeVar("_T")

_DELETE_BATCH = 1000  # S3's own bound


class S3Prefix:
    """The objects below `s3://bucket/prefix`."""

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        self._uri = uri
        self._bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._options = options

    def _key(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + name}

    def _run(self, name: str, doing: str, call: Callable[[Any], Awaitable[_T]], *, put_bytes: int | None = None) -> _T:
        """Run an operation of one request to its end, under the retry policy, with its faults translated."""
        uri = f"{self._uri}/{name}" if name else self._uri
        try:
            filesystem = open_filesystem(self._options)
        except _faults.OPTION_FAULTS as error:
            raise _faults.bad_options(error, uri) from error
        try:
            return ask(filesystem, call, uri, put_bytes)
        except _faults.FAULTS as error:
            raise _faults.fault(error, uri, self._bucket, doing) from error

    def _page(self, name: str, **request: Any) -> Mapping[str, Any]:
        async def call(fs: Any) -> Mapping[str, Any]:
            page: Mapping[str, Any] = await fs._call_s3("list_objects_v2", Bucket=self._bucket, **request)
            if _of_s3(page, "IsTruncated"):
                _of_s3(page, "NextContinuationToken")
            for item in page.get("Contents", ()):
                for field in ("Key", "Size", "ETag"):
                    _of_s3(item, field)
            return page

        return self._run(name, "list", call)

    def root_exists(self) -> bool:
        try:
            page = self._page("", Prefix=self._prefix, MaxKeys=1)
        except FileNotFoundError:
            return False
        return not self._prefix or bool(page.get("Contents"))

    def scan(self, prefix: str) -> Iterator[ObjectInfo]:
        below = f"{self._prefix}{prefix}/" if prefix else self._prefix
        token: dict[str, str] = {}
        while True:
            page = self._page(prefix, Prefix=below, **token)
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):  # what consoles put where a folder would be
                    name = item["Key"][len(self._prefix) :]
                    yield ObjectInfo(name, item["Size"], item["ETag"].strip('"'), "etag")
            if not page["IsTruncated"]:
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def stat(self, name: str) -> ObjectInfo:
        async def call(fs: Any) -> ObjectInfo:
            try:
                head = await fs._call_s3("head_object", **self._key(name))
            except OSError as error:
                if _faults.is_mute(error):
                    await self._raise_aloud(fs, name)
                raise
            return ObjectInfo(name, _of_s3(head, "ContentLength"), _of_s3(head, "ETag").strip('"'), "etag")

        return self._run(name, "read", call)

    async def _raise_aloud(self, fs: Any, name: str) -> None:
        """Raise the reason why HEAD was refused, which the reply to a GET of one byte tells."""
        try:
            response = await fs._call_s3("get_object", Range="bytes=0-0", **self._key(name))
        except OSError as error:
            if code_of(error)[1] != 416:  # an empty object, and it was let through
                raise
        else:
            response["Body"].close()

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
            response = await fs._call_s3("get_object", **request)
            async with response["Body"] as body:
                if expect is not None and _of_s3(response, "ETag").strip('"') != expect.identity:
                    raise changed(f"{self._uri}/{name}")
                if "Range" in request and not _of_s3(response, "ContentRange").startswith(f"bytes {begin}-"):
                    raise GarbledReplyError(f"range {response['ContentRange']} for {request['Range']}")
                data: bytes = await body.read()
            if len(data) != (_of_s3(response, "ContentLength") if expect is None or end is None else end - begin):
                raise GarbledReplyError(f"{len(data)} bytes for {request.get('Range', 'all of it')}")
            return data

        try:
            return self._run(name, "read", call)
        except PastEndError:
            return b""

    def open_raw(self, name: str, expect: ObjectInfo | None) -> io.RawIOBase:
        # Without an expectation: what it is now, so that one reader never sees two versions.
        return _RangeReader(self, name, expect or self.stat(name))

    def put(self, name: str, data: bytes | pa.Buffer) -> None:
        body = data if isinstance(data, bytes) else data.to_pybytes()
        self._run(name, "write", lambda fs: self._put(fs, name, body), put_bytes=len(body))

    async def _put(self, fs: Any, name: str, body: bytes, **condition: str) -> None:
        _of_s3(await fs._call_s3("put_object", Body=body, **condition, **self._key(name)), "ETag")

    def put_if_absent(self, name: str, data: bytes) -> bool:
        async def call(fs: Any) -> bool:
            try:
                await self._put(fs, name, data, IfNoneMatch="*")
            except OSError as error:
                if code_of(error)[1] == 412:  # also where an attempt of ours went through and its reply was lost
                    return False
                raise
            return True

        return self._run(name, "write", call, put_bytes=len(data))

    def delete(self, names: Iterable[str]) -> None:
        keys = [self._prefix + name for name in names]
        for begin in range(0, len(keys), _DELETE_BATCH):
            self._run("", "delete", functools.partial(_delete, self._bucket, keys[begin : begin + _DELETE_BATCH]))


async def _delete(bucket: str, keys: Sequence[str], fs: Any) -> None:
    batch = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
    reply = await fs._call_s3("delete_objects", Bucket=bucket, Delete=batch)
    for failed in reply.get("Errors", ()):  # within a reply that is a success, what a request for one would have met
        refused = {"Code": failed.get("Code"), "Message": f"{failed['Key']}: {failed.get('Message')}"}
        raise ClientError({"Error": refused}, "DeleteObjects")


def _of_s3(reply: Mapping[str, Any], field: str) -> Any:
    """A field that all of S3's replies to such a request have."""
    if field not in reply:
        raise GarbledReplyError(f"no {field} in it")
    return reply[field]


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
