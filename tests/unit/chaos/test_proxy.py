"""The proxy of the chaos harness does what it is told, at the moment it is told, and nothing else."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.chaos.proxy import Action, Exchange, Hold, Moment, Proxy, Trigger, Verdict, object_name

WAIT_S = 20


class _Store(BaseHTTPRequestHandler):
    """Keeps objects; a put with If-None-Match looks first and stores later, as moto does."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    looked: threading.Barrier

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{len(body)}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_there = self.path in self.objects
        if self.headers.get("If-None-Match"):
            # Two at once would both have looked before either stores.
            with contextlib.suppress(threading.BrokenBarrierError):
                self.looked.wait(0.2)
            if is_there:
                self._answer(412)
                return
        self.objects[self.path] = body
        self._answer(200)

    def do_GET(self) -> None:
        if "?" in self.path:
            self._answer(200, " ".join(sorted(self.objects)).encode())
        elif self.path in self.objects:
            self._answer(200, self.objects[self.path])
        else:
            self._answer(404)

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def objects() -> dict[str, bytes]:
    return {}


@pytest.fixture
def proxy(objects: dict[str, bytes]) -> Iterator[Proxy]:
    handler = type("Store", (_Store,), {"objects": objects, "looked": threading.Barrier(2)})
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    upstream.daemon_threads = True
    thread = threading.Thread(target=upstream.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    proxy = Proxy(("127.0.0.1", upstream.server_address[1])).start()
    yield proxy
    proxy.stop()
    upstream.shutdown()
    thread.join()
    upstream.server_close()


def ask(proxy: Proxy, method: str, target: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=WAIT_S)
    try:
        connection.request(method, target, body if method == "PUT" else None, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_without_triggers_all_passes_as_it_came(proxy: Proxy, objects: dict[str, bytes]) -> None:
    data = bytes(range(256)) * 1000
    assert ask(proxy, "PUT", "/bucket/a%20b", data) == (200, b"")
    assert objects == {"/bucket/a%20b": data}
    assert ask(proxy, "GET", "/bucket/a%20b") == (200, data)
    assert ask(proxy, "HEAD", "/bucket/a%20b") == (200, b"")
    assert ask(proxy, "GET", "/bucket/other") == (404, b"")
    assert [(e.method, e.name) for e in proxy.exchanges][:2] == [("PUT", "a b"), ("GET", "a b")]


def test_one_connection_serves_many_requests(proxy: Proxy) -> None:
    connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=WAIT_S)
    for number in range(3):
        connection.request("PUT", f"/bucket/{number}", b"x")
        assert connection.getresponse().read() == b""
    connection.request("HEAD", "/bucket/1")
    assert connection.getresponse().read() == b""
    connection.request("GET", "/bucket/2")
    assert connection.getresponse().read() == b"x"
    connection.close()


def test_a_trigger_fires_at_the_nth_match_and_no_other(proxy: Proxy) -> None:
    fired: list[str] = []
    trigger = Trigger("embeddings/.*", Moment.BEFORE, lambda exchange: fired.append(exchange.name), n=2)
    proxy.triggers = [trigger]
    for name in ("embeddings/1", "records/1", "embeddings/2", "embeddings/3", "more/embeddings/4"):
        ask(proxy, "PUT", f"/bucket/{name}", b"x")
    ask(proxy, "GET", "/bucket/embeddings/1")
    assert fired == ["embeddings/2"]
    assert (trigger.seen, trigger.fired) == (3, 1)


def test_a_trigger_that_is_not_ready_waits_for_the_next_match(proxy: Proxy) -> None:
    answers: Iterator[Verdict | int] = iter([Verdict.DISARM, Verdict.DISARM, 503, 503])
    proxy.triggers = [Trigger(".*", Moment.BEFORE, lambda exchange: next(answers))]
    assert [ask(proxy, "PUT", f"/bucket/{number}", b"x")[0] for number in range(4)] == [200, 200, 503, 200]


def test_a_trigger_may_ask_for_what_the_body_holds(proxy: Proxy) -> None:
    proxy.triggers = [Trigger("run", Moment.BEFORE, lambda exchange: 500, containing=b"finished")]
    assert ask(proxy, "PUT", "/bucket/run", b"running")[0] == 200
    assert ask(proxy, "PUT", "/bucket/run", b"finished")[0] == 500


def test_each_moment_sees_what_is_stored_by_then(proxy: Proxy, objects: dict[str, bytes]) -> None:
    seen: dict[Moment, tuple[bool, bool]] = {}
    replied = threading.Event()

    def note(moment: Moment) -> Action:
        def action(exchange: Exchange) -> None:
            seen[moment] = ("/bucket/a" in objects, exchange.reply is not None)
            if moment is Moment.AFTER:
                replied.set()

        return action

    proxy.triggers = [Trigger("a", moment, note(moment)) for moment in Moment]
    ask(proxy, "PUT", "/bucket/a", b"x")
    assert replied.wait(WAIT_S)
    assert seen == {Moment.BEFORE: (False, False), Moment.STORED: (True, True), Moment.AFTER: (True, True)}


def test_what_follows_upon_a_reply_waits_for_what_was_to_be_done_after_it(proxy: Proxy) -> None:
    """Else a driver that is killed after one put might have begun the next."""
    is_sent, seen = threading.Event(), []

    def act(exchange: Exchange) -> None:
        assert is_sent.wait(WAIT_S)
        time.sleep(0.05)  # long enough for the next request to be taken up, were it not kept
        seen.append([exchange.name for exchange in proxy.exchanges])

    proxy.triggers = [Trigger("a", Moment.AFTER, act)]
    ask(proxy, "PUT", "/bucket/a", b"x")
    connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=WAIT_S)
    connection.request("PUT", "/bucket/b", b"y")
    is_sent.set()
    assert connection.getresponse().status == 200
    connection.close()
    assert seen == [["a"]]


@pytest.mark.parametrize("is_same_connection", [True, False])
def test_what_a_client_sent_that_was_killed_after_a_put_is_not_stored(
    proxy: Proxy, objects: dict[str, bytes], is_same_connection: bool
) -> None:
    """Else the put after it would be there, and the kill would have been later than its name says."""
    is_gone = threading.Event()
    proxy.triggers = [Trigger("a", Moment.AFTER, lambda exchange: None if is_gone.wait(WAIT_S) else 500)]
    connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=WAIT_S)
    connection.request("PUT", "/bucket/a", b"x")
    connection.getresponse().read()
    second = connection
    if not is_same_connection:
        second = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=WAIT_S)
    second.request("PUT", "/bucket/b", b"y")
    time.sleep(0.05)  # long enough to be taken up, and kept
    second.close()
    connection.close()
    is_gone.set()
    assert ask(proxy, "PUT", "/bucket/c", b"z")[0] == 200
    time.sleep(0.05)
    assert sorted(objects) == ["/bucket/a", "/bucket/c"]


@pytest.mark.parametrize("verdict", [Verdict.DROP, Verdict.CUT])
def test_lost_before_it_is_forwarded_nothing_is_stored(
    proxy: Proxy, objects: dict[str, bytes], verdict: Verdict
) -> None:
    proxy.triggers = [Trigger("a", Moment.BEFORE, lambda exchange: verdict)]
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        ask(proxy, "PUT", "/bucket/a", b"x")
    assert objects == {}


def test_a_lost_reply_leaves_what_was_stored(proxy: Proxy, objects: dict[str, bytes]) -> None:
    proxy.triggers = [Trigger("a", Moment.STORED, lambda exchange: Verdict.DROP)]
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        ask(proxy, "PUT", "/bucket/a", b"x")
    assert objects == {"/bucket/a": b"x"}


def test_a_cut_reply_says_its_length_and_gives_half(proxy: Proxy, objects: dict[str, bytes]) -> None:
    objects["/bucket/a"] = b"x" * 1000
    proxy.triggers = [Trigger("a", Moment.STORED, lambda exchange: Verdict.CUT, method="GET")]
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(proxy, "GET", "/bucket/a")
    assert (len(caught.value.partial), caught.value.expected) == (500, 500)
    assert ask(proxy, "GET", "/bucket/a") == (200, b"x" * 1000)


def test_an_error_before_and_after_it_was_stored(proxy: Proxy, objects: dict[str, bytes]) -> None:
    proxy.triggers = [
        Trigger("before", Moment.BEFORE, lambda exchange: 503),
        Trigger("stored", Moment.STORED, lambda exchange: 500),
    ]
    status, body = ask(proxy, "PUT", "/bucket/before", b"x")
    assert (status, b"SlowDown" in body) == (503, True)
    assert ask(proxy, "PUT", "/bucket/stored", b"x")[0] == 500
    assert objects == {"/bucket/stored": b"x"}
    assert proxy.faults == {"503": 1, "500": 1}


def test_a_held_request_is_stored_once_it_is_let_go(proxy: Proxy, objects: dict[str, bytes]) -> None:
    hold = Hold()
    proxy.triggers = [Trigger("a", Moment.BEFORE, hold)]
    answers: list[tuple[int, bytes]] = []
    client = threading.Thread(target=lambda: answers.append(ask(proxy, "PUT", "/bucket/a", b"x")))
    client.start()
    assert hold.held.wait(WAIT_S)
    assert ask(proxy, "PUT", "/bucket/b", b"y")[0] == 200  # others go on
    assert objects == {"/bucket/b": b"y"}
    hold.let_go()
    client.join(WAIT_S)
    assert answers == [(200, b"")]
    assert objects["/bucket/a"] == b"x"


def test_a_stale_listing_and_head_are_the_first_ones_once(proxy: Proxy, objects: dict[str, bytes]) -> None:
    listing = "/bucket?list-type=2&prefix=in%2F"
    assert ask(proxy, "GET", listing) == (200, b"")
    objects["/bucket/in/a"] = b"x"
    proxy.triggers = [Trigger("in/", Moment.BEFORE, lambda exchange: Verdict.STALE, method="GET")]
    assert [ask(proxy, "GET", listing)[1] for _ in range(2)] == [b"", b"/bucket/in/a"]


def test_of_two_conditional_puts_at_once_one_wins(proxy: Proxy, objects: dict[str, bytes]) -> None:
    answers: list[int] = []

    def put(body: bytes) -> None:
        answers.append(ask(proxy, "PUT", "/bucket/a", body, **{"If-None-Match": "*"})[0])

    clients = [threading.Thread(target=put, args=(body,)) for body in (b"x", b"y")]
    for client in clients:
        client.start()
    for client in clients:
        client.join(WAIT_S)
    assert sorted(answers) == [200, 412]
    assert objects["/bucket/a"] in (b"x", b"y")


def test_other_buckets_pass_unseen(proxy: Proxy, objects: dict[str, bytes]) -> None:
    proxy.bucket = "this"
    proxy.triggers = [Trigger(".*", Moment.BEFORE, lambda exchange: 503, times=None)]
    assert ask(proxy, "PUT", "/other/a", b"x")[0] == 200
    assert ask(proxy, "PUT", "/this/a", b"x")[0] == 503
    assert [exchange.target for exchange in proxy.exchanges] == ["/this/a"]
    assert objects == {"/other/a": b"x"}


def test_names_of_objects_and_listings() -> None:
    assert object_name("PUT", "/bucket/in/a%20b.parquet") == ("bucket", "in/a b.parquet", False)
    assert object_name("GET", "/bucket?list-type=2&prefix=store%2Fruns%2F&encoding-type=url") == (
        "bucket",
        "store/runs/",
        True,
    )
    assert object_name("GET", "/bucket/?list-type=2&prefix=") == ("bucket", "", True)
