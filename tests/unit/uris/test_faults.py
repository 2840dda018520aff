"""What object storage answers: what is asked again, and what a person reads, with its exit code."""

from __future__ import annotations

import pickle

import aiohttp
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    FlexibleChecksumError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
    UnauthorizedSSOTokenError,
)
from botocore.parsers import ResponseParserError
from s3fs.errors import translate_boto_error

from pipeline.errors import ChangedError, ConfigError, CredentialsFault, EnvironmentFault, StorageFault
from pipeline.uris._faults import GarbledReplyError, PastEndError, bad_options, fault, is_mute, is_transient
from pipeline.uris._objects import NoBucketFault


def answer(code: str, status: int) -> Exception:
    """As it comes out of s3fs."""
    response = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    translated: Exception = translate_boto_error(ClientError(response, "Operation"))
    return translated


@pytest.mark.parametrize(
    ("code", "status", "kind", "sentence"),
    [
        ("AccessDenied", 403, CredentialsFault, "no right to read s3://b/x (AccessDenied); grant it"),
        ("403", 403, CredentialsFault, "no right to read s3://b/x (403); grant it or give other credentials"),
        ("AccessDenied", 0, CredentialsFault, "no right to read s3://b/x (AccessDenied)"),
        ("InvalidAccessKeyId", 403, CredentialsFault, "credentials for s3://b/x are wrong (InvalidAccessKeyId)"),
        ("SignatureDoesNotMatch", 403, CredentialsFault, "credentials for s3://b/x are wrong (SignatureDoesNotMatch)"),
        ("ExpiredToken", 400, CredentialsFault, "credentials for s3://b/x have expired (ExpiredToken); renew them"),
        ("RequestTimeTooSkewed", 403, StorageFault, "the clock of this machine and that of the storage of s3://b/x"),
        ("PermanentRedirect", 301, ConfigError, "bucket b is in another region, or at another endpoint"),
        ("301", 301, ConfigError, "set region_name in client_kwargs, or endpoint_url, of storage_options"),
        ("AuthorizationHeaderMalformed", 400, ConfigError, "bucket b is in another region"),
        ("NoSuchBucket", 404, NoBucketFault, "no such bucket: b (s3://b/x); the same command goes on once it is"),
        ("NoSuchKey", 404, FileNotFoundError, "not found: s3://b/x"),
        ("404", 404, FileNotFoundError, "not found: s3://b/x"),
        ("PreconditionFailed", 412, ChangedError, "changed since it was listed: s3://b/x"),
        ("InvalidRange", 416, PastEndError, ""),
        (
            "InvalidRequest",
            400,
            StorageFault,
            "storage failed at s3://b/x: InvalidRequest: m; run the same command again",
        ),
    ],
)
def test_a_refusal_is_told_at_once(code: str, status: int, kind: type[Exception], sentence: str) -> None:
    assert not is_transient(answer(code, status))
    told = fault(answer(code, status), "s3://b/x", "b", "read")
    assert type(told) is kind
    assert sentence in str(told)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("InternalError", 500),
        ("502", 502),
        ("ServiceUnavailable", 503),
        ("SlowDown", 503),
        ("504", 504),
        ("429", 429),
        ("SlowDown", 429),
        ("RequestTimeout", 400),
        ("Throttling", 400),
        ("SlowDown", 0),  # of one key in a batch of deletes
        ("ConditionalRequestConflict", 409),
        ("IncompleteBody", 400),
    ],
)
def test_an_answer_that_may_pass_is_asked_for_again(code: str, status: int) -> None:
    assert is_transient(answer(code, status))
    told = fault(answer(code, status), "s3://b/x", "b", "read")
    assert type(told) is StorageFault
    assert f"storage failed at s3://b/x: {code}: m; run the same command again" in str(told)


_URL = {"endpoint_url": "http://user:planted@h"}


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConnectTimeoutError(**_URL), "storage of s3://b/x cannot be reached"),
        (ReadTimeoutError(**_URL), "storage of s3://b/x cannot be reached"),
        (EndpointConnectionError(**_URL), "storage of s3://b/x cannot be reached"),
        (ResponseStreamingError(error="cut"), "storage of s3://b/x cannot be reached"),
        (SSLError(error=aiohttp.ClientError("cut"), **_URL), "storage of s3://b/x cannot be reached"),
        (TimeoutError(), "storage of s3://b/x cannot be reached: TimeoutError; check"),
        (ConnectionResetError("reset"), "storage of s3://b/x cannot be reached: reset"),
        (aiohttp.ClientPayloadError("cut"), "storage of s3://b/x cannot be reached: cut"),
        (IncompleteReadError(actual_bytes=1, expected_bytes=2), "a reply that cannot be read (1 read, but"),
        (ResponseParserError("no XML"), "a reply that cannot be read (no XML)"),
        (ValueError("no number"), "a reply that cannot be read (no number)"),
        (FlexibleChecksumError(error_msg="sum"), "a reply that cannot be read (sum)"),
        (GarbledReplyError("no ETag in it"), "a reply that cannot be read (no ETag in it)"),
    ],
)
def test_no_answer_or_half_of_one_is_asked_for_again(error: Exception, sentence: str) -> None:
    assert is_transient(error)
    told = fault(error, "s3://b/x", "b", "read")
    assert type(told) is StorageFault
    assert sentence in str(told)
    assert "planted" not in str(told)


def test_a_certificate_that_is_refused_is_not_asked_for_again() -> None:
    class Refused(aiohttp.ClientConnectorCertificateError):
        def __init__(self) -> None: ...

        def __str__(self) -> str:
            return "self-signed"

    assert not is_transient(SSLError(error=Refused(), **_URL))


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (NoCredentialsError(), CredentialsFault, "no credentials for s3://b/x (NoCredentialsError); set storage_opt"),
        (CredentialRetrievalError(provider="p", error_msg="planted"), CredentialsFault, "(CredentialRetrievalError)"),
        (UnauthorizedSSOTokenError(), CredentialsFault, "credentials for s3://b/x have expired (UnauthorizedSSO"),
        (ParamValidationError(report="Invalid bucket name"), ConfigError, "cannot be used: s3://b/x: "),
    ],
)
def test_what_no_storage_was_asked_is_not_asked_again(error: Exception, kind: type[Exception], sentence: str) -> None:
    assert not is_transient(error)
    for told in (fault(error, "s3://b/x", "b", "read"), bad_options(error, "s3://b/x")):
        assert type(told) is kind
        assert sentence in str(told)
        assert "planted" not in str(told)


def test_a_missing_bucket_is_absent_and_resumable() -> None:
    """Who asks whether something is there hears no; a split that meets it mid-run is no bug of ours (exit 75)."""
    told = fault(answer("NoSuchBucket", 404), "s3://b/x", "b", "write")
    assert isinstance(told, FileNotFoundError)
    assert isinstance(told, EnvironmentFault)
    assert told.exit_code == 75
    assert str(pickle.loads(pickle.dumps(told))) == str(told)  # noqa: S301


def test_only_a_refusal_without_a_code_is_mute() -> None:
    assert is_mute(answer("400", 400))
    assert is_mute(answer("403", 403))
    assert not is_mute(answer("AccessDenied", 403))
    assert not is_mute(answer("404", 404))
