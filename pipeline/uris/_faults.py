"""What object storage answers, told apart: what may pass and is asked again, and what a person must do.

S3 answers with a status and, in the body of the reply, a code; the reply to a HEAD has no body, so
its code is but the status, and `is_mute` says that it has to be asked for. Expired credentials,
wrong ones and missing rights all look like a 400 or a 403: only the code tells them apart.

No message shows a secret: of what the other side wrote, it holds codes and S3's own sentence.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    LoginError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    SSLError,
    SSOError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from pipeline.config import redact_uri
from pipeline.errors import ConfigError, CredentialsFault, StorageFault
from pipeline.uris._objects import NoBucketFault, changed


class GarbledReplyError(Exception):
    """A reply that S3 does not give: something else stands at the endpoint, or before it."""


class PastEndError(Exception):
    """A range that begins at or after the object's end."""


FAULTS = (
    OSError,
    BotoCoreError,
    ClientError,
    aiohttp.ClientError,
    ResponseParserError,
    GarbledReplyError,
    ValueError,  # botocore, of a number or a date in a reply that is none
    RecursionError,  # botocore, which asks for a bucket's region, where the answer to that is "elsewhere" as well
)
"""All that a request raises."""

OPTION_FAULTS = (OSError, BotoCoreError, ValueError, TypeError)
"""All that making a client raises."""

_MISSING = (
    CredentialRetrievalError,
    LoginError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
_SILENT = (asyncio.TimeoutError, ReadTimeoutError, ConnectTimeoutError)
_UNREACHABLE = (BotoConnectionError, HTTPClientError, aiohttp.ClientError, asyncio.TimeoutError, ConnectionError)
_GARBLED = (ResponseParserError, GarbledReplyError, IncompleteReadError, FlexibleChecksumError, ValueError)

_EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
_WRONG_CODES = frozenset({"InvalidAccessKeyId", "InvalidSecurity", "InvalidToken", "SignatureDoesNotMatch"})
_NO_RIGHT_CODES = frozenset({"AccessDenied", "AccountProblem", "AllAccessDisabled", "InvalidPayer", "NotSignedUp"})
_CLOCK_CODES = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
_ELSEWHERE_CODES = frozenset(
    {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "TemporaryRedirect"}
)
# 409: another conditional put, or a delete, of the same key is under way; S3 asks to try again.
_TRANSIENT_STATUS = frozenset({409, 429, 500, 502, 503, 504})
_TRANSIENT_CODES = frozenset(
    {
        "ConditionalRequestConflict",
        "InternalError",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        # The request's own bytes were cut, or changed, on their way.
        "BadDigest",
        "IncompleteBody",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)


def code_of(error: BaseException | None) -> tuple[str, int]:
    """S3's code and the HTTP status, ("", 0) without an answer."""
    response = _answer(error)
    code = str(response.get("Error", {}).get("Code") or "")
    return code, int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _answer(error: BaseException | None) -> dict[str, Any]:
    for candidate in (error, error.__cause__ if error else None):  # s3fs keeps botocore's error as the cause
        if isinstance(candidate, ClientError):
            response: dict[str, Any] = candidate.response
            return response
    return {}


def described(error: BaseException | None) -> str:
    """A word for a log line: the code, the status, or the kind of error."""
    code, status = code_of(error)
    return code or str(status or type(error).__name__)


def is_mute(error: BaseException) -> bool:
    """Whether this refusal, the answer to a HEAD, does not tell its reason."""
    code, status = code_of(error)
    return status in (400, 403) and code in ("", str(status), "Bad Request", "Forbidden")


def is_silence(error: BaseException | None) -> bool:
    """Whether nobody answered."""
    return isinstance(error, _SILENT)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may be answered in a moment."""
    code, status = code_of(error)
    if code or status:
        return status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES
    if isinstance(error, ParamValidationError | PermissionError | FileNotFoundError):
        return False
    if isinstance(error, SSLError):  # a handshake may be cut; a certificate stays what it is
        return not isinstance(error.kwargs.get("error"), aiohttp.ClientConnectorCertificateError)
    return isinstance(error, _UNREACHABLE + _GARBLED)


def bad_options(error: BaseException, uri: str) -> Exception:
    """The fault of a client that could not be made."""
    if isinstance(error, _MISSING):
        return _missing(error, uri)
    return ConfigError(f"storage options or URI cannot be used: {uri}: {_said(error)}")


def fault(error: BaseException, uri: str, bucket: str, doing: str) -> Exception:
    """What a request raised, as what a person can act on; `doing` is the right it takes ("read")."""
    code, status = code_of(error)
    if code or status:
        return _refusal(code, status, uri, bucket, doing) or _failed(error, uri)
    if isinstance(error, RecursionError):
        return _elsewhere("PermanentRedirect", uri, bucket)
    if isinstance(error, _MISSING):
        return _missing(error, uri)
    if isinstance(error, ParamValidationError):
        return bad_options(error, uri)
    if isinstance(error, _UNREACHABLE) and not isinstance(error, FlexibleChecksumError):
        return StorageFault(
            f"storage of {uri} cannot be reached: {_said(error)}; check endpoint_url and the network, "
            "then run the same command again"
        )
    if isinstance(error, _GARBLED):
        return StorageFault(
            f"storage of {uri} gave a reply that cannot be read ({_said(error)}); check endpoint_url and what "
            "stands before it, then run the same command again"
        )
    return _failed(error, uri)


def _refusal(code: str, status: int, uri: str, bucket: str, doing: str) -> Exception | None:
    """An answer that is no failure of S3's."""
    if code == "NoSuchBucket":
        return NoBucketFault(f"no such bucket: {bucket} ({uri}); the same command goes on once it is there")
    if status == 416:
        return PastEndError()
    if status == 412:
        return changed(uri)
    if code in _EXPIRED_CODES:
        return _expired(code, uri)
    if code in _WRONG_CODES:
        return CredentialsFault(
            f"credentials for {uri} are wrong ({code}); correct storage_options, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, then run the same command again"
        )
    if code in _CLOCK_CODES:
        return StorageFault(
            f"the clock of this machine and that of the storage of {uri} are too far apart ({code}); "
            "set it right, then run the same command again"
        )
    if code in _ELSEWHERE_CODES or 300 <= status < 400:
        return _elsewhere(code or str(status), uri, bucket)
    if status in (401, 403) or code in _NO_RIGHT_CODES:
        return CredentialsFault(
            f"no right to {doing} {uri} ({code or status}); grant it or give other credentials, "
            "then run the same command again"
        )
    return FileNotFoundError(f"not found: {uri}") if status == 404 else None


def _missing(error: BaseException, uri: str) -> CredentialsFault:
    if isinstance(error, UnauthorizedSSOTokenError):
        return _expired(type(error).__name__, uri)
    return CredentialsFault(
        f"no credentials for {uri} ({type(error).__name__}); set storage_options, or AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, then run the same command again"
    )


def _expired(code: str, uri: str) -> CredentialsFault:
    return CredentialsFault(f"credentials for {uri} have expired ({code}); renew them, then run the same command again")


def _elsewhere(code: str, uri: str, bucket: str) -> ConfigError:
    return ConfigError(
        f"bucket {bucket} is in another region, or at another endpoint ({code}): {uri}; "
        "set region_name in client_kwargs, or endpoint_url, of storage_options"
    )


def _failed(error: BaseException, uri: str) -> StorageFault:
    return StorageFault(f"storage failed at {uri}: {_said(error)}; run the same command again")


def _said(error: BaseException) -> str:
    code, status = code_of(error)
    answered = f"{code or status}: {_answer(error).get('Error', {}).get('Message')}" if code or status else str(error)
    return redact_uri(" ".join(answered.split())) or type(error).__name__
