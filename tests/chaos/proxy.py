"""A proxy between the command under test and an S3 server on loopback, where every fault and every kill begins.

    client -> Proxy (one thread a connection) -> S3 server (plain HTTP/1.1, path style)

Each request becomes an `Exchange`. At three moments (before it is forwarded; once the server has
answered, so that a put is stored; after the reply went out) the armed triggers that match it are
asked, in order. A trigger's action runs in the thread of the request, which waits for it: what it
kills is dead before the request goes on. What the action returns (`Verdict`) is done to the request.

Because a trigger counts requests by object name, "before the third shard is stored" is the same
moment in every run. HTTP itself is http.server's and http.client's; bytes pass as they came.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade", "server", "date"})
_BODIES: dict[int, bytes] = {
    500: b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>injected</Message></Error>",
    503: b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>injected</Message></Error>",
}
_TIMEOUT_S = 120.0


class Moment(StrEnum):
    """When a trigger is asked."""

    BEFORE = "before"
    """The request was read whole, and not forwarded."""
    STORED = "stored"
    """The server has answered, and the client knows nothing of it."""
    AFTER = "after"
    """The client has the reply."""


@dataclass
class Reply:
    """An answer of the server."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class Exchange:
    """One request, and what came of it so far."""

    number: int
    method: str
    target: str
    """Path and query, as sent."""
    name: str
    """Object name; of a listing its prefix. Both without the bucket."""
    is_listing: bool
    headers: dict[str, str]
    body: bytes
    reply: Reply | None = None
    """From `Moment.STORED` on."""
    answered_at: int | None = None
    """How many requests had been read when the server answered this one."""


class Verdict(StrEnum):
    """What becomes of a request; a status code instead answers with that error, without forwarding."""

    PASS = "pass"
    """Nothing is done to it."""
    DROP = "drop"
    """The connection is closed without an answer: before it is forwarded the request, then its reply, is lost."""
    CUT = "cut"
    """Of the reply half of the body goes out; before it is forwarded, as DROP after half of the request."""
    STALE = "stale"
    """The first answer that this target ever had is given once more, without forwarding."""
    DISARM = "disarm"
    """Not the request that is waited for: as PASS, and it is not counted as fired."""


Action = Callable[[Exchange], "Verdict | int | None"]


@dataclass
class Trigger:
    """What to do at the n-th request that matches.

    Attributes:
        pattern: full match of the object's name (a listing's prefix).
        moment: when.
        action: called in the request's thread; None is PASS.
        n: which of the matching requests is the first that fires; counted from 1.
        times: how often it fires; None: always.
        method: HTTP method; "" is any.
        containing: what the body must contain.
    """

    pattern: str
    moment: Moment
    action: Action
    n: int = 1
    times: int | None = 1
    method: str = "PUT"
    containing: bytes = b""
    seen: int = 0
    fired: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, exchange: Exchange) -> Verdict | int:
        """The verdict on an exchange that is at this trigger's moment."""
        if self.method not in ("", exchange.method) or not re.fullmatch(self.pattern, exchange.name):
            return Verdict.PASS
        if self.containing not in exchange.body:
            return Verdict.PASS
        with self._lock:
            self.seen += 1
            if self.seen < self.n or (self.times is not None and self.fired >= self.times):
                return Verdict.PASS
            self.fired += 1
        verdict = self.action(exchange)
        if verdict is Verdict.DISARM:
            with self._lock:
                self.fired -= 1
            return Verdict.PASS
        return Verdict.PASS if verdict is None else verdict


class Hold:
    """An action that keeps a request until it is let go.

    Args:
        before: done first.
    """

    def __init__(self, before: Action = lambda exchange: None) -> None:
        self.held = threading.Event()
        self._before = before
        self._let_go = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        self.held.set()
        self._before(exchange)
        self._let_go.wait()

    def let_go(self) -> None:
        """Let it, and all that come, through."""
        self._let_go.set()


def delay(seconds: float) -> Action:
    """An action that keeps a request for a while."""
    return lambda exchange: time.sleep(seconds)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: Proxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed in the middle is what this is for."""


class Proxy:
    """Listens on loopback from `start` to `stop`; `triggers` may be changed at any time.

    Args:
        upstream: host and port of the S3 server.
    """

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.bucket: str | None = None
        """The bucket in which things happen; what others still ask of an earlier one passes unseen. None: any."""
        self.triggers: list[Trigger] = []
        self.exchanges: list[Exchange] = []
        """All requests in the order in which they were read; their bodies are let go once they are answered."""
        self.faults: Counter[str] = Counter()
        """How often each verdict was carried out."""
        self.first_replies: dict[tuple[str, str], Reply] = {}
        self._put_lock = threading.Lock()
        self._gate = threading.Lock()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> Proxy:
        """Serve from now on."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close the socket; requests that are held end with their clients."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def clear(self) -> None:
        """Forget triggers, requests, faults and remembered replies."""
        with self._lock:
            self.triggers, self.exchanges, self.first_replies = [], [], {}
            self.faults = Counter()

    @contextlib.contextmanager
    def nothing_else(self) -> Iterator[None]:
        """No other request is taken up meanwhile: what follows upon a reply comes after what follows upon this."""
        if any(trigger.moment is Moment.AFTER for trigger in self.triggers):
            with self._gate:
                yield
        else:
            yield

    def wait_for_others(self) -> None:
        """Return once there is nothing that goes before all else."""
        with self._gate:
            pass

    def opened(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Exchange:
        """A new exchange."""
        bucket, name, is_listing = object_name(method, target)
        with self._lock:
            exchange = Exchange(len(self.exchanges), method, target, name, is_listing, headers, body)
            if self.bucket in (None, bucket):
                self.exchanges.append(exchange)
            else:
                exchange.number = -1
        return exchange

    def answered(self, exchange: Exchange, reply: Reply) -> None:
        """Note the answer."""
        with self._lock:
            exchange.reply, exchange.answered_at = reply, len(self.exchanges)

    def ask(self, moment: Moment, exchange: Exchange) -> Verdict | int:
        """The verdict of the first trigger that has one; all that match are asked until then."""
        for trigger in list(self.triggers) if exchange.number >= 0 else []:
            if trigger.moment is moment:
                verdict = trigger.ask(exchange)
                if verdict is not Verdict.PASS:
                    with self._lock:
                        self.faults[str(verdict)] += 1
                    return verdict
        return Verdict.PASS

    def forward(self, exchange: Exchange) -> Reply:
        """The server's answer. Puts go one at a time: moto looks first and stores later, and would let two win."""
        if exchange.method != "PUT":
            return self._forward(exchange)
        with self._put_lock:
            return self._forward(exchange)

    def _forward(self, exchange: Exchange) -> Reply:
        connection = http.client.HTTPConnection(*self.upstream, timeout=_TIMEOUT_S)
        try:
            # The host that the client signed for stays; the server does not check it.
            connection.request(exchange.method, exchange.target, exchange.body or None, exchange.headers)
            response = connection.getresponse()
            headers = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP]
            reply = Reply(response.status, headers, response.read())
        finally:
            connection.close()
        if exchange.method == "HEAD" or exchange.is_listing:
            with self._lock:
                self.first_replies.setdefault((exchange.method, exchange.target), reply)
        return reply


def object_name(method: str, target: str) -> tuple[str, str, bool]:
    """Bucket and name that a request is about, and whether it lists what lies below that name."""
    parts = urlsplit(target)
    bucket, _, name = unquote(parts.path).lstrip("/").partition("/")
    query = parse_qs(parts.query, keep_blank_values=True)
    if method == "GET" and not name and "list-type" in query:
        return bucket, query.get("prefix", [""])[0], True
    return bucket, name, False


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: what happened is in `Proxy.exchanges`."""

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _serve(self) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            self.send_error(501, "bodies come with their length")
            self.close_connection = True
            return
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # its client died in the middle
            self.close_connection = True
            return
        proxy = self.server.proxy
        proxy.wait_for_others()
        if self._is_client_gone():
            self.close_connection = True  # killed after an earlier request; this one might or might not have come
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("expect", "connection")}
        exchange = proxy.opened(self.command, self.path, headers, body)
        verdict = proxy.ask(Moment.BEFORE, exchange)
        if isinstance(verdict, Verdict) and verdict in (Verdict.DROP, Verdict.CUT):
            self._close()
            return
        if verdict is Verdict.STALE:
            reply = proxy.first_replies.get((exchange.method, exchange.target)) or proxy.forward(exchange)
        elif verdict is Verdict.PASS:
            try:
                reply = proxy.forward(exchange)
            except (OSError, http.client.HTTPException):
                self._close()
                return
        else:
            reply = Reply(int(verdict), [("Content-Type", "application/xml")], _BODIES.get(int(verdict), b""))
        proxy.answered(exchange, reply)
        after = proxy.ask(Moment.STORED, exchange)
        if after is Verdict.DROP:
            self._close()
            return
        if isinstance(after, int):
            reply = Reply(after, [("Content-Type", "application/xml")], _BODIES.get(after, b""))
        with proxy.nothing_else():
            self._send(reply, is_cut=after is Verdict.CUT)
            proxy.ask(Moment.AFTER, exchange)
        exchange.body = b""

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve  # noqa: N815

    def _send(self, reply: Reply, *, is_cut: bool) -> None:
        self.send_response_only(reply.status)
        has_body = self.command != "HEAD" and reply.status not in (204, 304)
        for name, value in reply.headers:
            if name.lower() != "content-length" or not has_body:
                self.send_header(name, value)
        if has_body:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if has_body:
            self.wfile.write(reply.body[: len(reply.body) // 2] if is_cut else reply.body)
        self.wfile.flush()
        if is_cut:
            self._close()

    def _is_client_gone(self) -> bool:
        try:
            return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _close(self) -> None:
        """End the connection as a machine that went away does."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
