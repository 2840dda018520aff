"""The one retry policy for object storage.

What is transient (see `pipeline.uris._faults`) is asked for again after a random wait below 0.2 s,
0.4 s, 0.8 s, ... and at most 4 s: exponential backoff with full jitter, so that many workers which
failed together do not come back together. It ends with the fault of the last attempt,

* after 16 attempts, which wait 23 s on average: a storage that refuses for ten seconds is survived;
* or where the next attempt would begin 25 s after the first, but not before the fourth one if
  storage did answer: a large transfer may take longer than that, and be cut at its end.

With the timeouts of `pipeline.uris._client` an endpoint that does not answer ends in about 30 s:
five connections of 5 s that nobody takes, or two requests of 15 s that nobody answers. Those
timeouts watch replies only: a body that nobody takes would be held out for ever. A put therefore
ends 15 s after the time that it would take at 64 KiB/s; a reply that trickles, after ten minutes.

No other layer retries. Those of s3fs, botocore and aiohttp are switched off, since layers multiply:
four attempts in each of three are 64 requests, at the very moment in which storage has too many.
Local storage is not retried at all: its kernel, and the network file system in it, do that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from pipeline.uris._faults import described, is_silence, is_transient

_T = TypeVar("_T")

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 16
_MIN_ATTEMPTS = 4
"""Unless storage is silent."""
_FIRST_WAIT_S = 0.2
_MAX_WAIT_S = 4
_TOTAL_S = 25
_REPLY_S = 600
_PUT_S = 15
_PUT_BYTES_PER_S = 64 * 2**10
"""The slowest that a put may be: slow lines are shared by many writers."""

_sleep = asyncio.sleep


async def retried(call: Callable[[], Awaitable[_T]], uri: str, put_bytes: int | None = None) -> _T:
    """The result of `call`, which is called again while it fails in a way that may pass.

    `put_bytes` is the size of the body that it sends, if it is a put.

    Cancelled, also while it waits, it ends at once.

    Raises:
        Exception: what the last attempt raised.
    """

    attempt_s = _REPLY_S if put_bytes is None else _PUT_S + put_bytes / _PUT_BYTES_PER_S

    async def attempt() -> _T:
        async with asyncio.timeout(attempt_s):
            return await call()

    def say(state: RetryCallState) -> None:
        # Once an operation, and only where it lasts: a fault or two is the daily weather of object storage.
        if state.attempt_number == _MIN_ATTEMPTS:
            log.info("storage fails at %s (%s); still trying", uri, described(_fault_of(state)))

    retrying = AsyncRetrying(
        sleep=_sleep,
        wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_MAX_WAIT_S),
        stop=_is_over,
        retry=retry_if_exception(is_transient),
        before_sleep=say,
        reraise=True,
    )
    result: _T = await retrying(attempt)
    return result


def _is_over(state: RetryCallState) -> bool:
    if state.attempt_number >= MAX_ATTEMPTS:
        return True
    is_late = (state.seconds_since_start or 0) + state.upcoming_sleep >= _TOTAL_S
    return is_late and (state.attempt_number >= _MIN_ATTEMPTS or is_silence(_fault_of(state)))


def _fault_of(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None
