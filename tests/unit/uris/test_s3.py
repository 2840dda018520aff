"""What S3 answers, as what a person can act on, with the exit code that follows from it."""

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError, NoCredentialsError, ReadTimeoutError
from s3fs.errors import translate_boto_error

from pipeline.errors import ChangedError, ConfigError, CredentialsFault, StorageFault
from pipeline.uris import Storage
from pipeline.uris._s3 import _fault


@pytest.mark.parametrize(
    ("code", "status", "kind", "sentence"),
    [
        ("AccessDenied", 403, CredentialsFault, "no right to use s3://b/x (AccessDenied); grant it"),
        ("403", 403, CredentialsFault, "no right to use s3://b/x (403); grant it or give other credentials"),
        ("InvalidAccessKeyId", 403, CredentialsFault, "credentials for s3://b/x are missing, wrong or expired"),
        ("SignatureDoesNotMatch", 403, CredentialsFault, "credentials for s3://b/x are missing, wrong or expired"),
        ("ExpiredToken", 400, CredentialsFault, "credentials for s3://b/x are missing, wrong or expired"),
        ("NoSuchBucket", 404, FileNotFoundError, "no such bucket: b"),
        ("NoSuchKey", 404, FileNotFoundError, "not found: s3://b/x"),
        ("404", 404, FileNotFoundError, "not found: s3://b/x"),
        ("PreconditionFailed", 412, ChangedError, "changed since it was listed: s3://b/x"),
        ("SlowDown", 503, StorageFault, "storage failed at s3://b/x"),
        ("InternalError", 500, StorageFault, "storage failed at s3://b/x"),
    ],
)
def test_an_answer_of_s3(code: str, status: int, kind: type[Exception], sentence: str) -> None:
    response = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    fault = _fault(translate_boto_error(ClientError(response, "Operation")), "s3://b/x", "b")
    assert type(fault) is kind
    assert sentence in str(fault)


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (NoCredentialsError(), CredentialsFault, "set storage_options or AWS_ACCESS_KEY_ID"),
        (ReadTimeoutError(endpoint_url="http://h"), StorageFault, "storage of s3://b/x cannot be reached"),
        (ValueError("Invalid endpoint: h"), ConfigError, "cannot be used: s3://b/x: Invalid endpoint: h"),
    ],
)
def test_no_answer(error: Exception, kind: type[Exception], sentence: str) -> None:
    fault = _fault(error, "s3://b/x", "b")
    assert type(fault) is kind
    assert sentence in str(fault)


@pytest.mark.parametrize("options", [{"endpoint_url": "no url"}, {"no_such_option": 1}])
def test_options_that_cannot_be_used_are_a_config_error(options: dict[str, object]) -> None:
    """Found before any request."""
    with pytest.raises(ConfigError, match="s3://b/x"):
        Storage("s3://b/x", {"key": "k", "secret": "planted", **options}).list()


def test_a_bucket_name_that_cannot_be_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="Invalid bucket name"):
        Storage("s3://b ucket/x", {"key": "k", "secret": "s"}).list()
