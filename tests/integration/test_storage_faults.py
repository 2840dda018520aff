"""Object storage that fails, each fault in each operation: survived, or told in a sentence; and counted.

The gateway before the server answers in its place. Attempts are fewer here, and the waits between them short.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ChangedError, ConfigError, CredentialsFault, EnvironmentFault, StorageFault
from pipeline.uris import Storage, _retry

Answer = tuple[str, dict[str, str], bytes]

OPERATIONS: dict[str, tuple[str, Callable[[Storage], object]]] = {
    "list": ("GET", lambda storage: storage.list("folder")),
    "exists": ("GET", lambda storage: storage.exists()),
    "stat": ("HEAD", lambda storage: storage.stat("folder/x")),
    "read": ("GET", lambda storage: storage.read("folder/x")),
    "read_range": ("GET", lambda storage: storage.read_range("folder/x", 1, 3)),
    "put": ("PUT", lambda storage: storage.put("folder/y", b"new")),
    "put_if_absent": ("PUT", lambda storage: storage.put_if_absent("folder/z", b"new")),
    "delete": ("POST", lambda storage: storage.delete(["folder/x"])),
}
RIGHTS = {"list": "list", "exists": "list", "stat": "read", "read": "read", "read_range": "read", "delete": "delete"}


MAX_ATTEMPTS = 5


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_retry, "_MAX_WAIT_S", 0.01)
    monkeypatch.setattr(_retry, "MAX_ATTEMPTS", MAX_ATTEMPTS)


@pytest.fixture
def storage(s3: Any) -> Storage:
    storage = Storage(f"{s3.uri}/store", s3.options)
    storage.put("folder/x", b"12345")
    s3.requests.clear()
    return storage


def refusal(status: str, code: str) -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>said</Message></Error>".encode()
    return status, {"Content-Type": "application/xml"}, body


def as_s3(answer: Answer) -> Callable[[str, str], Answer]:
    """The answer to all; to a HEAD without a body, as HTTP has it."""
    return lambda method, target: (answer[0], {}, b"") if method == "HEAD" else answer


def first(num: int, answer: Callable[[str, str], Answer | None]) -> Callable[[str, str], Answer | None]:
    """The answer to the first requests only."""
    left = iter(range(num))
    return lambda method, target: answer(method, target) if next(left, None) is not None else None


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_makes_as_many_requests_as_the_policy_has_attempts(
    s3: Any, storage: Storage, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever the environment and the options ask of the layers below: they would multiply."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9")
    method, operation = OPERATIONS[name]
    own = {"config_kwargs": {"retries": {"total_max_attempts": 5}}}
    s3.answer = as_s3(refusal("503 Slow Down", "SlowDown"))
    with pytest.raises(StorageFault, match=r"storage failed at s3://.*(SlowDown|503): .*run the same command again"):
        operation(Storage(storage.uri, {**s3.options, **own}))
    assert [method for method, _ in s3.requests] == [method] * MAX_ATTEMPTS


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(
    "fault",
    [
        refusal("500 Internal Server Error", "InternalError"),
        ("502 Bad Gateway", {"Content-Type": "text/html"}, b"<html>a proxy"),
        refusal("503 Slow Down", "SlowDown"),
        ("504 Gateway Timeout", {}, b""),
        refusal("429 Too Many Requests", "TooManyRequests"),
        refusal("409 Conflict", "ConditionalRequestConflict"),
    ],
    ids=lambda fault: fault[0][:3],
)
def test_what_passes_is_survived(s3: Any, storage: Storage, name: str, fault: Answer) -> None:
    s3.answer = first(3, as_s3(fault))
    OPERATIONS[name][1](storage)
    assert len(s3.requests) == 4


@pytest.mark.parametrize("name", ["read", "read_range", "list", "put", "delete"])
def test_a_request_that_took_too_long_to_arrive_is_sent_again(s3: Any, storage: Storage, name: str) -> None:
    s3.answer = first(1, as_s3(refusal("400 Bad Request", "RequestTimeout")))
    OPERATIONS[name][1](storage)
    assert len(s3.requests) == 2


@pytest.mark.parametrize("name", ["list", "exists", "read", "read_range", "delete"])
def test_a_body_that_is_cut_is_asked_for_again(s3: Any, storage: Storage, name: str) -> None:
    cut = "206 Partial Content", {"Content-Length": "99", "Connection": "close"}, b"<?xml"
    s3.answer = first(3, lambda method, target: cut)
    OPERATIONS[name][1](storage)
    assert len(s3.requests) == 4


STRANGE = [b"", b"<html><body>Log in to the network</body></html>", b"<?xml version='1.0'?><Lis"]


@pytest.mark.parametrize("name", ["list", "exists", "stat", "read_range", "put", "put_if_absent"])
@pytest.mark.parametrize("body", STRANGE)
def test_what_s3_does_not_say_is_not_believed(s3: Any, storage: Storage, name: str, body: bytes) -> None:
    """A page of somebody else is no empty listing, no data of ours, and no put that was stored."""
    s3.answer = first(3, as_s3(("200 OK", {"Content-Type": "text/html"}, body)))
    assert OPERATIONS[name][1](storage) != []
    assert len(s3.requests) == 4


@pytest.mark.parametrize("body", STRANGE)
def test_a_page_that_stays_is_told(s3: Any, storage: Storage, body: bytes) -> None:
    s3.answer = as_s3(("200 OK", {"Content-Type": "text/html"}, body))
    for name in ("list", "put"):
        with pytest.raises(StorageFault, match=r"(a reply that cannot be read|storage failed).*run the same command"):
            OPERATIONS[name][1](storage)


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_does_not_pass_is_asked_for_once(s3: Any, storage: Storage, name: str) -> None:
    """And a HEAD twice: its reply has no room for the reason."""
    s3.answer = as_s3(refusal("403 Forbidden", "AccessDenied"))
    right = RIGHTS.get(name, "write")
    with pytest.raises(CredentialsFault, match=rf"no right to {right} s3://.* \(AccessDenied\); grant it") as caught:
        OPERATIONS[name][1](storage)
    assert caught.value.exit_code == 75
    assert [method for method, _ in s3.requests] == (["HEAD", "GET"] if name == "stat" else [OPERATIONS[name][0]])


@pytest.mark.parametrize("name", OPERATIONS)
def test_expired_credentials_are_told_from_missing_rights(s3: Any, storage: Storage, name: str) -> None:
    s3.answer = as_s3(refusal("400 Bad Request", "ExpiredToken"))
    with pytest.raises(CredentialsFault, match=r"credentials for s3://.* have expired \(ExpiredToken\); ren") as caught:
        OPERATIONS[name][1](storage)
    assert caught.value.exit_code == 75
    assert "testing" not in str(caught.value), "the key and the secret"
    # Of a HEAD also botocore asks why: whether the bucket is in another region.
    assert [method for method, _ in s3.requests] == (
        ["HEAD", "HEAD", "GET"] if name == "stat" else [OPERATIONS[name][0]]
    )


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_wrong_signature_is_told_from_both(s3: Any, storage: Storage, name: str) -> None:
    s3.answer = as_s3(refusal("403 Forbidden", "SignatureDoesNotMatch"))
    with pytest.raises(CredentialsFault, match=r"credentials for s3://.* are wrong \(SignatureDoesNotMatch\); correct"):
        OPERATIONS[name][1](storage)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_clock_that_is_off_is_told(s3: Any, storage: Storage, name: str) -> None:
    s3.answer = as_s3(refusal("403 Forbidden", "RequestTimeTooSkewed"))
    with pytest.raises(EnvironmentFault, match="the clock of this machine and that of the storage of s3://.*set it ri"):
        OPERATIONS[name][1](storage)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("told", [{}, {"x-amz-bucket-region": "eu-west-1"}], ids=["where", "not where"])
def test_a_bucket_of_another_region_is_told(s3: Any, storage: Storage, name: str, told: dict[str, str]) -> None:
    """Where botocore cannot follow by itself, as it cannot with an endpoint_url; asked where, S3 may tell or not."""
    status, headers, body = refusal("301 Moved Permanently", "PermanentRedirect")
    s3.answer = lambda method, target: (status, headers | told, b"" if method == "HEAD" else body)
    expected = "is in another region, or at another endpoint .*; set region_name in client_kwargs, or endpoint_url"
    with pytest.raises(ConfigError, match=expected):
        OPERATIONS[name][1](storage)


def test_a_bucket_that_went_away_is_resumable(s3: Any, storage: Storage) -> None:
    """Mid-run, in a write: no bug of ours, and no object that is merely absent."""
    s3.answer = as_s3(refusal("404 Not Found", "NoSuchBucket"))
    for name in ("put", "put_if_absent", "delete", "list", "read"):
        with pytest.raises(
            StorageFault, match="no such bucket: .*; the same command goes on once it is there"
        ) as caught:
            OPERATIONS[name][1](storage)
        assert caught.value.exit_code == 75
        assert isinstance(caught.value, FileNotFoundError)


def test_rights_to_some_of_a_batch_of_deletes_are_told(s3: Any, storage: Storage) -> None:
    refused = b"<DeleteResult><Error><Key>k</Key><Code>%s</Code><Message>m</Message></Error></DeleteResult>"
    s3.answer = lambda method, target: ("200 OK", {}, refused % b"AccessDenied")
    with pytest.raises(CredentialsFault, match="no right to delete s3://.*AccessDenied"):
        storage.delete(["folder/x"])
    assert len(s3.requests) == 1
    s3.answer = first(3, lambda method, target: ("200 OK", {}, refused % b"SlowDown"))
    storage.delete(["folder/x"])
    assert len(s3.requests) == 5
    s3.answer = None
    assert storage.list() == []


def test_a_conditional_put_that_failed_and_was_not_stored_is_won(s3: Any, storage: Storage) -> None:
    s3.answer = first(3, as_s3(refusal("503 Slow Down", "SlowDown")))
    assert storage.put_if_absent("new", b"mine") is True
    s3.answer = first(3, as_s3(refusal("409 Conflict", "ConditionalRequestConflict")))
    assert storage.put_if_absent("new", b"other") is False
    assert storage.read("new") == b"mine"


@pytest.mark.parametrize("name", ["HEAD", "list"])
def test_a_stale_answer_is_seen_through(s3: Any, storage: Storage, name: str) -> None:
    """A cache in between gives the etag of yesterday's object; what is read is today's, or nothing."""
    stale = storage.stat("folder/x")
    listing = (
        f"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>store/folder/x</Key><Size>5</Size>"
        f"<ETag>&quot;{stale.identity}&quot;</ETag></Contents></ListBucketResult>"
    )
    storage.put("folder/x", b"54321")

    def answer(method: str, target: str) -> Answer | None:
        if method == "HEAD":
            return "200 OK", {"ETag": f'"{stale.identity}"', "Content-Length": "5"}, b""
        return ("200 OK", {}, listing.encode()) if "list-type" in target else None

    s3.answer = answer
    found = storage.stat("folder/x") if name == "HEAD" else storage.list("folder")[0]
    assert found == stale, "the cache is believed until something is read"
    with pytest.raises(ChangedError, match="changed since it was listed: s3://.*/folder/x; run the same command again"):
        storage.read_range("folder/x", 0, 5, expect=found)
    with storage.open("folder/x") as reader, pytest.raises(ChangedError):
        reader.read()
    s3.answer = None
    assert storage.stat("folder/x") != stale, "nothing of ours remembers it"


def test_a_cache_that_drops_the_condition_is_seen_through(s3: Any, storage: Storage) -> None:
    """If-Match got lost on the way: the reply's own etag tells, and its range."""
    listed = storage.stat("folder/x")
    etag, body = {"ETag": '"another"', "Content-Range": "bytes 0-4/5"}, b"54321"
    s3.answer = lambda method, target: ("206 Partial Content", etag, body)
    with pytest.raises(ChangedError):
        storage.read_range("folder/x", 0, 5, expect=listed)
    same = {"ETag": f'"{listed.identity}"'}
    for headers in (same, same | {"Content-Range": "bytes 0-4/5"}):
        s3.answer = lambda method, target, headers=headers: ("200 OK", headers, b"12345")
        with pytest.raises(StorageFault, match="a reply that cannot be read"):
            storage.read_range("folder/x", 2, 4, expect=listed)


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[socket.socket]]]:
    """An endpoint that does `answer` with each connection; its URL, and the connections so far."""
    taken: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                taken.append(server.accept()[0])
            except OSError:
                return
            answer(taken[-1])

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", taken
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in taken:
                connection.close()


@pytest.mark.parametrize("name", OPERATIONS)
def test_connections_that_are_closed_are_made_again_and_counted(
    s3: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(lambda connection: connection.close()) as (url, taken):
        with pytest.raises(StorageFault, match="cannot be reached: .*; check endpoint_url and the network"):
            OPERATIONS[name][1](Storage("s3://bucket/store", {**s3.options, "endpoint_url": url}))
        assert len(taken) == MAX_ATTEMPTS
    assert [record for record in caplog.records if record.name == "asyncio"] == [], "no traceback of what is told"


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_endpoint_that_never_answers_is_told(s3: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Silence gets no fourth attempt once its time is over; here there is none from the start."""
    monkeypatch.setattr(_retry, "_TOTAL_S", 0)
    monkeypatch.setattr(_retry, "_PUT_S", 0.2)
    options = {**s3.options, "config_kwargs": {"read_timeout": 0.2}}
    with listening(lambda connection: None) as (url, taken):
        storage = Storage("s3://bucket/store", {**options, "endpoint_url": url})
        with pytest.raises(StorageFault, match="cannot be reached: .*; check endpoint_url and the network"):
            OPERATIONS[name][1](storage)
        assert len(taken) == 1


def test_credentials_that_tell_when_they_expire_are_renewed(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a credential process: asked anew in the same process, before they expire."""
    answer = {"Version": 1, "AccessKeyId": "testing", "SecretAccessKey": "testing", "SessionToken": "t"}
    answer["Expiration"] = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()  # botocore renews at 10 minutes
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    (tmp_path / "process.py").write_text(
        "import pathlib, sys\n"
        "here = pathlib.Path(sys.argv[0]).parent\n"
        "(here / 'asked').open('a').write('.')\n"
        "print((here / 'answer.json').read_text())\n"
    )
    process = f"credential_process = {sys.executable} {tmp_path / 'process.py'}"
    (tmp_path / "config").write_text(f"[profile renewed]\n{process}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    options = {key: value for key, value in s3.options.items() if key not in ("key", "secret")}
    storage = Storage(s3.uri, {**options, "profile": "renewed"})
    storage.put("x", b"1")
    asked = (tmp_path / "asked").stat().st_size
    storage.put("x", b"2")
    assert (tmp_path / "asked").stat().st_size > asked
