"""The client of object storage: one a process and options, and how a thread waits for it.

All requests go through the generic request call of s3fs: its higher calls answer from listings
they remember, cut large puts into parts (a conditional put of parts is no precondition at the
start), and read ahead by 50 MB. They run on the loop of fsspec's own thread.

Credentials. botocore renews those that can be renewed before they expire, in each process and
however long a run takes: of a role, a web identity, SSO, an instance, or a credential process that
tells when they expire. Those given as storage_options, in the environment, or as keys in a profile
are read once a process: when they expire, the run ends with a CredentialsFault (exit 75), and the
same command, started with new ones, goes on.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import aiohttp
from aiobotocore.httpsession import AIOHTTPSession

from pipeline.uris._retry import retried

_T = TypeVar("_T")

# They bound how long a silent endpoint is waited for (see _retry); config_kwargs may give others.
_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 15
"""Without a byte, once the request is sent."""
_CONNECTIONS = 64  # botocore's 10 would throttle a pool of threads


class _OneRequestSession(AIOHTTPSession):  # type: ignore[misc]
    """aiohttp too sends a request once more, where a connection was closed on it, and has no public word for that."""

    async def _get_session(self, proxy_url: str | None) -> aiohttp.ClientSession:
        session: aiohttp.ClientSession = await super()._get_session(proxy_url)
        session._retry_connection = False
        return session


_NO_RETRIES = {"retries": {"total_max_attempts": 1, "mode": "standard"}, "http_session_cls": _OneRequestSession}

_filesystems: dict[tuple[int, str], Any] = {}
_filesystems_lock = threading.Lock()


def open_filesystem(options: Mapping[str, Any]) -> Any:
    """The file system of these options: one a process, for making a client takes a third of a second."""
    import s3fs

    key = (os.getpid(), json.dumps(options, sort_keys=True, default=repr))
    with _filesystems_lock:
        if key not in _filesystems:
            config = {
                "connect_timeout": _CONNECT_TIMEOUT_S,
                "read_timeout": _READ_TIMEOUT_S,
                "max_pool_connections": _CONNECTIONS,
                **options.get("config_kwargs", {}),
                **_NO_RETRIES,
            }
            filesystem = s3fs.S3FileSystem(
                **{**options, "config_kwargs": config, "use_listings_cache": False, "skip_instance_cache": True}
            )
            filesystem.retries = 1  # attempts
            _wait_for(filesystem, filesystem.set_session)
            if filesystem.loop.get_exception_handler() is None:
                filesystem.loop.set_exception_handler(_pass_over)
            _filesystems[key] = filesystem
        return _filesystems[key]


def _pass_over(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """No traceback for what aiohttp leaves lying, of a connection that broke: who asked is told already."""
    if not isinstance(context.get("exception"), aiohttp.ClientError | ConnectionError):
        loop.default_exception_handler(context)


def ask(filesystem: Any, call: Callable[[Any], Awaitable[_T]], uri: str, put_bytes: int | None = None) -> _T:
    """The result of `call(filesystem)`, under the retry policy."""
    return _wait_for(filesystem, lambda: retried(lambda: call(filesystem), uri, put_bytes))


def _wait_for(filesystem: Any, call: Callable[[], Awaitable[_T]]) -> _T:
    """Run a coroutine to its end, on the file system's loop.

    What interrupts the wait (a signal, in the main thread) ends the coroutine too: nothing is asked
    or put behind the back of a run that is cleaning up. fsspec's own `sync` would let it go on.
    """
    task: asyncio.Task[Any] | None = None
    is_given_up = False

    async def run() -> _T:
        nonlocal task
        task = asyncio.current_task()
        if is_given_up:
            raise asyncio.CancelledError
        return await call()

    try:
        return asyncio.run_coroutine_threadsafe(run(), filesystem.loop).result()
    except BaseException:
        # A signal may come before there is a future to cancel, and before the coroutine began.
        is_given_up = True
        filesystem.loop.call_soon_threadsafe(lambda: task.cancel() if task is not None else None)
        raise
