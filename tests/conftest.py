"""Fixtures for all tests: an S3 server on loopback."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings

# A machine that is busy is no fault of what is tested.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_ACCESS_DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@dataclass
class S3:
    """A fresh bucket of a real S3 server on loopback; credentials travel in `options` alone."""

    bucket: str
    options: dict[str, Any]
    requests: list[tuple[str, str]] = field(default_factory=list)
    """(method, path with query) of all requests so far; clear it at will."""
    after_reply: list[Callable[[str, str], None]] = field(default_factory=list)
    """Called with each request once it was done; what it raises loses the reply (the client sees a 500)."""
    is_denied: Callable[[str, str], bool] | None = None
    """Asked of each request: whether it is refused for want of rights (403)."""
    answer: Callable[[str, str], tuple[str, dict[str, str], bytes] | None] | None = None
    """Asked of each request: the (status, headers, body) it gets without reaching the server; None lets it through."""

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}"


class _Gateway:
    """Stands before moto: counts requests, loses replies, and puts one object at a time.

    S3 decides a conditional put at once; moto looks first and stores later, and would let two win.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app = app
        self.put_lock = threading.Lock()
        self.buckets: dict[str, S3] = {}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        s3 = self.buckets.get(path.strip("/").split("/")[0])
        target = f"{path}?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else path
        if s3 is not None:
            s3.requests.append((method, target))
            if s3.is_denied is not None and s3.is_denied(method, target):
                body = b"" if method == "HEAD" else _ACCESS_DENIED
                start_response("403 Forbidden", [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
                return [body]
            canned = s3.answer(method, target) if s3.answer is not None else None
            if canned is not None:
                status, headers, body = canned
                start_response(status, list(({"Content-Length": str(len(body))} | headers).items()))
                return [body]
        if method != "PUT":
            reply = self.app(environ, start_response)
        else:
            with self.put_lock:
                reply = self.app(environ, start_response)
        for hook in list(s3.after_reply) if s3 is not None else []:
            try:
                hook(method, target)
            except ConnectionError:
                start_response("500 Internal Server Error", [("Content-Length", "0")])
                return [b""]
        return reply


@pytest.fixture(scope="session")
def s3_gateway() -> Iterator[tuple[_Gateway, str]]:
    """The server, and its endpoint URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    werkzeug_server = server._server
    assert werkzeug_server is not None
    gateway = _Gateway(werkzeug_server.app)
    werkzeug_server.app = gateway
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line a request, wherever a test fails
    yield gateway, f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_gateway: tuple[_Gateway, str]) -> Iterator[S3]:
    """A fresh bucket, with options for fsspec."""
    import boto3

    gateway, endpoint = s3_gateway
    region = {"region_name": "us-east-1"}
    options = {"key": "testing", "secret": "testing", "endpoint_url": endpoint, "client_kwargs": region}
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    client = boto3.client("s3", endpoint_url=endpoint, **keys, **region)
    client.create_bucket(Bucket=bucket)
    client.close()
    s3 = S3(bucket, options)
    gateway.buckets[bucket] = s3
    yield s3
    del gateway.buckets[bucket]
