"""The retry policy: how often, how long, what ends it."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from pipeline.uris import _retry
from pipeline.uris._retry import MAX_ATTEMPTS, retried

SILENCE = ReadTimeoutError(endpoint_url="http://h")


def refusal(status: int) -> ClientError:
    return ClientError({"Error": {"Code": str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Operation")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited, without waiting."""
    waited: list[float] = []

    async def note(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(_retry, "_sleep", note)
    return waited


class Storage:
    """Fails with what it is told, in turn, then answers."""

    def __init__(self, *faults: Exception) -> None:
        self.faults, self.num_asked = list(faults), 0

    async def ask(self) -> str:
        self.num_asked += 1
        if self.faults:
            raise self.faults.pop(0)
        return "answer"


def test_what_may_pass_is_asked_for_until_it_has(waits: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    storage = Storage(*[refusal(503)] * (MAX_ATTEMPTS - 1))
    assert asyncio.run(retried(storage.ask, "s3://b/x")) == "answer"
    assert storage.num_asked == MAX_ATTEMPTS
    assert [record.getMessage() for record in caplog.records] == ["storage fails at s3://b/x (503); still trying"]


def test_it_ends_with_the_last_fault(waits: list[float]) -> None:
    storage = Storage(*[refusal(503)] * (MAX_ATTEMPTS - 1), refusal(500), refusal(503))
    with pytest.raises(ClientError, match="500"):
        asyncio.run(retried(storage.ask, "s3://b/x"))
    assert storage.num_asked == MAX_ATTEMPTS


def test_what_does_not_pass_is_asked_for_once(waits: list[float]) -> None:
    storage = Storage(refusal(403))
    with pytest.raises(ClientError, match="403"):
        asyncio.run(retried(storage.ask, "s3://b/x"))
    assert (storage.num_asked, waits) == (1, [])


def test_waits_are_random_below_a_bound_that_doubles(waits: list[float]) -> None:
    """Full jitter: between nothing and the bound, so that those who failed together do not return together."""
    for _ in range(50):
        asyncio.run(retried(Storage(*[refusal(503)] * (MAX_ATTEMPTS - 1)).ask, "s3://b/x"))
    rounds = [waits[begin : begin + MAX_ATTEMPTS - 1] for begin in range(0, len(waits), MAX_ATTEMPTS - 1)]
    for number, column in enumerate(zip(*rounds, strict=True)):
        bound = min(4, 0.2 * 2**number)
        assert max(column) <= bound
        assert min(column) < bound / 4 < bound * 3 / 4 < max(column)
    # Long enough for a storage that refuses for ten seconds.
    assert min(map(sum, rounds)) > 10


@pytest.mark.parametrize(
    ("fault", "num_attempts", "elapsed_s", "over"),
    [
        (refusal(503), MAX_ATTEMPTS, 1, True),
        (refusal(503), MAX_ATTEMPTS - 1, 20, False),
        (refusal(503), 4, 24.5, True),  # the wait of a second counts
        (refusal(503), 3, 100, False),  # a large transfer that is cut at its end
        (SILENCE, 1, 15, False),
        (SILENCE, 2, 30, True),
    ],
)
def test_it_is_bounded_in_attempts_and_in_time(
    fault: Exception, num_attempts: int, elapsed_s: float, over: bool
) -> None:
    outcome = SimpleNamespace(exception=lambda: fault)
    state: Any = SimpleNamespace(
        attempt_number=num_attempts, seconds_since_start=elapsed_s, upcoming_sleep=1, outcome=outcome
    )
    assert _retry._is_over(state) is over


@pytest.mark.parametrize(("put_bytes", "bound"), [(None, "_REPLY_S"), (0, "_PUT_S")])
def test_an_attempt_that_never_ends_is_ended(
    waits: list[float], monkeypatch: pytest.MonkeyPatch, put_bytes: int | None, bound: str
) -> None:
    """Also a put whose body nobody takes: no timeout of the layers below watches it."""
    monkeypatch.setattr(_retry, bound, 0)
    with pytest.raises(TimeoutError):
        asyncio.run(retried(asyncio.Event().wait, "s3://b/x", put_bytes))
    assert len(waits) == MAX_ATTEMPTS - 1


def test_cancelled_it_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(*[refusal(503)] * 3)
    asleep = asyncio.Event()

    async def sleep_for_ever(_: float) -> None:
        asleep.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(_retry, "_sleep", sleep_for_ever)

    async def cancel() -> None:
        task = asyncio.create_task(retried(storage.ask, "s3://b/x"))
        await asleep.wait()
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())
    assert storage.num_asked == 1


def test_operations_of_one_loop_do_not_share_their_counts(waits: list[float]) -> None:
    storages = [Storage(*[refusal(503)] * number) for number in range(MAX_ATTEMPTS)]

    async def together() -> list[str]:
        return await asyncio.gather(*[retried(storage.ask, "s3://b/x") for storage in storages])

    assert asyncio.run(together()) == ["answer"] * MAX_ATTEMPTS
    assert [storage.num_asked for storage in storages] == list(range(1, MAX_ATTEMPTS + 1))
