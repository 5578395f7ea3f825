from __future__ import annotations

import base64
import contextlib
import gzip
import http.client
import json
import os
import resource
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import bcrypt
import pytest

from agent.errors import ConfigError, StartError
from agent.server import SPARES, Costly, Server
from agent.status import Agent, CollectorStatus, Status
from agent.webconfig import WebConfig, load
from tests.certificates import Authority

PLAIN = [b"# TYPE ullage_x gauge\n", b'ullage_x{a="1"} 1\n', b"", b'ullage_x{a="2"} 2\n']
GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
WAIT = 60.0


class App:
    """What the server serves in these tests; each test bends what it needs."""

    def __init__(self) -> None:
        self.lifecycle = False
        self.ready = True
        self.body: Sequence[bytes] = PLAIN
        self.shown = Status(agent=Agent(node="n1"))
        self.refusal: Exception | None = None
        self.reloads = 0
        self.gate = threading.Event()  # metrics wait for it
        self.gate.set()
        self.asked = threading.Semaphore(0)

    def metrics(self, form: Literal["text", "openmetrics"], *, gzip: bool) -> Sequence[bytes]:
        self.asked.release()
        assert self.gate.wait(WAIT)
        body = [*self.body, b"# EOF\n"] if form == "openmetrics" else self.body
        return [compressed(b"".join(body))] if gzip else body

    def is_ready(self) -> bool:
        return self.ready

    def status(self, most: int | None = None) -> Status:
        assert most is None or most > 0
        return self.shown

    def reload(self) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.reloads += 1


def compressed(body: bytes) -> bytes:
    return gzip.compress(body)


class Log:
    """Keeps what would be logged."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, dict[str, object]]] = []
        self.ended = threading.Semaphore(0)

    def debug(self, event: str, **_: object) -> None:
        if event == "connection ended":
            self.ended.release()

    def error(self, event: str, **facts: object) -> None:
        self.errors.append((event, facts))


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def log() -> Log:
    return Log()


Serve = Callable[..., Server]


@pytest.fixture
def serve(app: App, log: Log) -> Iterator[Serve]:
    servers = []

    def start(web: WebConfig | None = None, **bounds: Any) -> Server:
        server = Server("127.0.0.1:0", app, web, log=log, **bounds)
        servers.append(server)
        server.start()
        return server

    yield start
    app.gate.set()
    for server in servers:
        server.stop()
    assert log.errors == []


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve()


class Reply:
    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.body = answer.read()


def ask(server: Server, path: str, method: str = "GET", tls: ssl.SSLContext | None = None, **headers: str) -> Reply:
    with contextlib.closing(connection_to(server, tls)) as connection:
        return ask_on(connection, path, method, **headers)


def connection_to(server: Server, tls: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    if tls is not None:
        return http.client.HTTPSConnection("127.0.0.1", server.port, timeout=WAIT, context=tls)
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT)


def ask_on(connection: http.client.HTTPConnection, path: str, method: str = "GET", **headers: str) -> Reply:
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    return Reply(connection.getresponse())


def dial(server: Server, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), WAIT, source_address=(source, 0))


def exchange(server: Server, sent: bytes) -> bytes:
    """Send bytes as they are and return all that comes until the server closes."""
    with dial(server) as sock:
        sock.sendall(sent)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def can_send(sock: socket.socket, data: bytes) -> bool:
    try:
        sock.sendall(data)
    except ConnectionError:
        return False
    return True


def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# -- what is served --


def test_metrics_are_the_parts_joined(server: Server) -> None:
    reply = ask(server, "/metrics")
    assert (reply.status, reply.body) == (200, b"".join(PLAIN))
    assert reply.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert reply.headers["Vary"] == "Accept, Accept-Encoding"


def test_openmetrics_where_it_is_preferred(server: Server) -> None:
    reply = ask(server, "/metrics", Accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert reply.headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert reply.body.endswith(b"# EOF\n")


def test_gzip_where_it_is_allowed(server: Server) -> None:
    reply = ask(server, "/metrics", Accept_Encoding="gzip")
    assert reply.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(reply.body) == b"".join(PLAIN)


def test_a_query_changes_nothing(server: Server) -> None:
    assert ask(server, "/metrics?collect[]=x").body == b"".join(PLAIN)


@pytest.mark.parametrize("path", ["/metrics", "/", "/api/v1/status", "/-/healthy", "/-/ready"])
def test_head_has_the_headers_of_get_and_no_body(server: Server, path: str) -> None:
    got, head = ask(server, path), ask(server, path, "HEAD")
    assert got.headers["Content-Length"] == str(len(got.body))
    del got.headers["Date"], head.headers["Date"]
    assert (head.status, head.headers.items(), head.body) == (200, got.headers.items(), b"")


def test_healthy_whether_ready_or_not(app: App, server: Server) -> None:
    app.ready = False
    assert ask(server, "/-/healthy").status == 200


def test_ready_only_after_the_first_round(app: App, server: Server) -> None:
    app.ready = False
    assert ask(server, "/-/ready").status == 503
    app.ready = True
    assert ask(server, "/-/ready").status == 200


def test_the_status_is_json(app: App, server: Server) -> None:
    app.shown = Status(collectors=[CollectorStatus("x", "X.", "up", age_seconds=float("nan"), errors={"x": 1})])
    reply = ask(server, "/api/v1/status")
    assert reply.headers["Content-Type"] == "application/json"
    (shown,) = json.loads(reply.body)["collectors"]
    assert (shown["name"], shown["age_seconds"], shown["errors"]) == ("x", None, {"x": 1})


def test_clients_that_ask_for_a_status_all_the_time_get_the_same_one_for_a_while() -> None:
    now, made = 0.0, 0

    def make() -> bytes:
        nonlocal now, made
        now, made = now + 0.5, made + 1
        return b"%d" % made

    status = Costly(make, lambda: now)
    assert status.get() == b"1"
    now += 9.9 * 0.5
    assert status.get() == b"1"
    now += 0.1 * 0.5
    assert status.get() == b"2"


def test_a_status_that_cannot_be_made_is_tried_again() -> None:
    def make() -> bytes:
        if not left:
            return b"fine"
        raise left.pop()

    left = [RuntimeError("x")]
    status = Costly(make)
    with pytest.raises(RuntimeError):
        status.get()
    assert status.get() == b"fine"


def test_the_status_page_may_run_and_load_nothing(server: Server) -> None:
    reply = ask(server, "/")
    assert b"n1" in reply.body
    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
    assert reply.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert reply.headers["X-Frame-Options"] == "DENY"
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/nope", "/metrics/", "/../metrics", "//metrics", "/favicon.ico", "*"])
def test_nothing_else_is_found(server: Server, path: str) -> None:
    expected = 200 if path == "//metrics" else 404  # http.server takes two slashes for one
    assert ask(server, path).status == expected


@pytest.mark.parametrize(
    "path",
    [
        "/-/reload/../../metrics/..%2f-/reload",
        "/metrics/../-/reload",
        "/metrics/..;/-/reload",
        "/%2d/reload",
        "/-/reload%00",
        "/-/reload/",
        "/./-/reload",
        "/-\\reload",
        "//evil.example/-/reload",
        "http://evil.example/metrics/../-/reload",
        "file:///etc/passwd",
        "/etc/passwd",
    ],
)
def test_no_path_leads_anywhere_else(app: App, server: Server, path: str) -> None:
    app.lifecycle = True
    assert (ask(server, path, "POST").status, app.reloads) == (404, 0)


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b"Host: evil.example\r\n",
        b"Host: a\r\nHost: b\r\n",
        b'Host: "><script>\r\nX-Forwarded-Host: evil.example\r\n',
    ],
)
@pytest.mark.parametrize("path", [b"/", b"/metrics", b"/api/v1/status", b"/nope", b"http://evil.example/-/reload"])
def test_who_the_client_thinks_we_are_is_in_no_answer(server: Server, host: bytes, path: bytes) -> None:
    answer = exchange(server, b"GET " + path + b" HTTP/1.1\r\n" + host + b"Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 ")
    assert b"evil" not in answer
    assert b"<script" not in answer
    assert b"Location:" not in answer


def test_a_client_that_sends_no_more_is_answered(app: App, server: Server) -> None:
    app.body = [b"x" * 1_000_000] * 3
    with dial(server) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.endswith(b"\r\n\r\n" + b"".join(app.body))


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\nX: "])
def test_a_client_that_ends_before_its_request_is_let_go(server: Server, sent: bytes) -> None:
    with dial(server) as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        assert is_closed(sock)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"])
def test_reading_is_all_that_is_allowed(server: Server, method: str) -> None:
    reply = ask(server, "/metrics", method)
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD")


def test_a_bug_is_logged_and_not_shown(app: App, log: Log, server: Server) -> None:
    app.shown = None  # type: ignore[assignment]  # the bug
    with contextlib.closing(connection_to(server)) as connection:
        reply = ask_on(connection, "/")
        assert (reply.status, reply.body) == (500, b"Internal Server Error.\n")
        assert ask_on(connection, "/metrics").status == 200
    assert [(event, facts["exc_info"]) for event, facts in log.errors] == [("request failed", True)]
    log.errors.clear()


# -- reload --


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_reload_is_forbidden_unless_enabled(app: App, server: Server, method: str) -> None:
    reply = ask(server, "/-/reload", method)
    assert (reply.status, reply.body, app.reloads) == (403, b"Lifecycle API is not enabled.\n", 0)


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_reload_reloads(app: App, server: Server, method: str) -> None:
    app.lifecycle = True
    assert (ask(server, "/-/reload", method).status, app.reloads) == (200, 1)


def test_reload_by_get_is_refused(app: App, server: Server) -> None:
    app.lifecycle = True
    reply = ask(server, "/-/reload")
    assert (reply.status, reply.headers["Allow"], app.reloads) == (405, "POST, PUT", 0)


def test_a_failed_reload_says_why(app: App, server: Server) -> None:
    app.lifecycle = True
    app.refusal = ConfigError("ullage.yml: colectors: unknown key; did you mean 'collectors'?")
    reply = ask(server, "/-/reload", "POST")
    assert (reply.status, reply.body.decode()) == (400, f"{app.refusal}\n")


# -- HTTP --


def test_a_connection_serves_many_requests(server: Server) -> None:
    with contextlib.closing(connection_to(server)) as connection:
        connection.connect()
        first = connection.sock
        for _ in range(3):
            assert ask_on(connection, "/metrics").status == 200
        assert connection.sock is first


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    requests = (
        b"GET /-/healthy HTTP/1.1\r\n\r\n",
        b"GET /nope HTTP/1.1\r\n\r\n\r\n",
        b"GET /-/ready HTTP/1.1\r\nConnection: close\r\n\r\n",
    )
    answers = exchange(server, b"".join(requests))
    statuses = [line.split()[1] for line in answers.splitlines() if line.startswith(b"HTTP/1.1")]
    assert statuses == [b"200", b"404", b"200"]


def test_http_1_0_closes_unless_asked(server: Server) -> None:
    assert exchange(server, b"GET /-/healthy HTTP/1.0\r\n\r\n").count(b"HTTP/1.1 200") == 1
    kept = b"GET /-/healthy HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    answers = exchange(server, kept + b"GET /-/healthy HTTP/1.0\r\n\r\n")
    assert answers.count(b"HTTP/1.1 200") == 2
    assert b"Connection: keep-alive" in answers


def test_a_body_is_never_taken_for_a_request(app: App, server: Server) -> None:
    app.lifecycle = True
    body = b"POST /-/reload HTTP/1.1\r\n\r\n"
    for header in (
        b"Content-Length: %d" % len(body),
        b"Transfer-Encoding: chunked",
        b"Content-Length: 0\r\nContent-Length: 9",
        b"Content-Length: 0\r\nTransfer-Encoding: chunked",
        b"Content-Length: 0\r\ntransfer-encoding: xchunked",
        b"Transfer-Encoding:",
        b"Content-Length: +0",
        b"Content-Length: 0, 0",
        b"Content-Length: -1",
        b"Content-Length: 0x0",
        b"X: a\r\r\nContent-Length: %d" % len(body),
        b"X: a\rContent-Length: %d" % len(body),
        b"X:\r\n Content-Length: %d" % len(body),
        b"\0Content-Length: %d" % len(body),
    ):
        answers = exchange(server, b"GET /-/healthy HTTP/1.1\r\n" + header + b"\r\n\r\n" + body)
        assert answers.count(b"HTTP/1.1 ") == 1
        assert b"Connection: close" in answers
    assert app.reloads == 0


def test_a_client_that_waits_to_send_its_body_is_answered_at_once(app: App, server: Server) -> None:
    app.lifecycle = True
    request = b"POST /-/reload HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    assert exchange(server, request).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431),
        (b"GET /\r\n\r\n", 400),
        (b"GET  /\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b" \r\n\r\n", 400),
        (b"GET / HTTP/1.x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded: first\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length : 5\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX:\r\n\tfolded: later\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nFrom x\r\nContent-Length: 5\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: a\rContent-Length: 5\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: a\r\r\nContent-Length: 5\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: \0\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"\xff\xfe\x00 /\xff HTTP/1.1\r\nConnection: close\r\n\r\n", 404),
    ],
)
def test_malformed_requests_are_refused(server: Server, head: bytes, status: int) -> None:
    answer = exchange(server, head)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1 ") == 1


def test_what_is_sent_after_a_refusal_does_not_reset_the_answer_away(server: Server) -> None:
    assert exchange(server, b"GET / HTTP/1.1\r\nX: " + b"x" * 60_000).startswith(b"HTTP/1.1 431 ")


def test_a_body_that_is_not_read_does_not_reset_the_answer_away(server: Server) -> None:
    request = b"POST /-/healthy HTTP/1.1\r\nContent-Length: 50000\r\n\r\n" + b"x" * 50_000
    assert exchange(server, request).endswith(b"\r\n\r\nOnly GET, HEAD here.\n")


def test_a_client_that_leaves_while_it_is_answered_is_no_error(app: App, log: Log, server: Server) -> None:
    app.body = [b"x" * 1_000_000] * 30
    with dial(server) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset when closed
        sock.sendall(GET)
        assert sock.recv(10)
    assert log.ended.acquire(timeout=WAIT)
    app.body = PLAIN
    assert ask(server, "/metrics").body == b"".join(PLAIN)


MANY = [b"%d," % number for number in range(200_000)]
LARGE = [b"%d," % number * 300_000 for number in range(20)]


@pytest.mark.parametrize("body", [MANY, LARGE], ids=["many", "large"])
def test_a_large_answer_arrives_whole(app: App, server: Server, body: list[bytes]) -> None:
    app.body = body
    assert ask(server, "/metrics").body == b"".join(body)


# -- who may wait for how long --


def test_a_head_that_drips_is_cut_off(serve: Serve) -> None:
    server = serve(request_deadline=0.5)
    with dial(server) as sock:
        assert until(lambda: not can_send(sock, b"x"))


def test_a_silent_client_is_cut_off(serve: Serve) -> None:
    with dial(serve(request_deadline=0.2)) as sock:
        assert is_closed(sock)


def test_a_resting_connection_is_closed_after_its_own_deadline(serve: Serve) -> None:
    with dial(serve(request_deadline=60.0, idle_deadline=0.2)) as sock:
        sock.sendall(GET)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.endswith(PLAIN[-1])


def test_a_request_that_begins_late_on_a_kept_connection_has_a_deadline_too(serve: Serve) -> None:
    with dial(serve(request_deadline=0.5, idle_deadline=60.0)) as sock:
        sock.sendall(GET)
        assert sock.recv(65536)
        sock.sendall(b"GET ")
        assert is_closed(sock)


def test_a_newcomer_gets_the_place_of_the_one_that_waits_longest(serve: Serve) -> None:
    server = serve(slots=3)
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(dial(server, f"127.0.1.{number}")) for number in range(3)]
        assert ask(server, "/metrics").status == 200
        assert is_closed(waiting[0])
        waiting[2].sendall(GET)
        assert waiting[2].recv(10) == b"HTTP/1.1 2"


def test_the_peer_that_holds_most_gives_way_first(serve: Serve) -> None:
    server = serve(slots=3)
    with dial(server, "127.0.1.1") as oldest, dial(server, "127.0.1.2") as one, dial(server, "127.0.1.2") as other:
        assert ask(server, "/metrics").status == 200
        assert is_closed(one)
        for kept in (oldest, other):
            kept.sendall(GET)
            assert kept.recv(10) == b"HTTP/1.1 2"


def test_a_peer_over_its_own_bound_loses_its_own(serve: Serve) -> None:
    server = serve(slots=10, slots_per_peer=2)
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(dial(server, "127.0.1.1"))
        own = [stack.enter_context(dial(server, "127.0.1.2")) for _ in range(3)]
        assert is_closed(own[0])
        for kept in (other, own[1], own[2]):
            kept.sendall(GET)
            assert kept.recv(10) == b"HTTP/1.1 2"


def test_nobody_who_is_being_answered_gives_way(app: App, serve: Serve) -> None:
    server = serve(slots=2)
    app.gate.clear()
    with dial(server) as one, dial(server) as other:
        for sock in (one, other):
            sock.sendall(GET)
            assert app.asked.acquire(timeout=WAIT)
        with dial(server) as newcomer:
            assert is_closed(newcomer)
        app.gate.set()
        for sock in (one, other):
            assert sock.recv(10) == b"HTTP/1.1 2"


def test_a_client_that_does_not_read_its_answer_gives_way(app: App, serve: Serve) -> None:
    server = serve(slots=1)
    app.body = [b"x" * 1_000_000] * 30
    with dial(server, "127.0.1.1") as sock:
        sock.sendall(GET)
        assert app.asked.acquire(timeout=WAIT)
        assert until(lambda: is_answered(server))


def is_answered(server: Server) -> bool:
    try:
        return ask(server, "/-/healthy").status == 200
    except (ConnectionError, http.client.BadStatusLine):
        return False


def test_slots_and_threads_are_given_back(serve: Serve) -> None:
    server = serve(slots=4)
    before = threading.active_count()
    for _ in range(20):
        dial(server).close()
        assert ask(server, "/metrics").status == 200
    assert until(lambda: threading.active_count() <= before)


def test_without_descriptors_clients_get_those_held_for_them_and_the_next_waits(log: Log, server: Server) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as opened:
        clients = [opened.enter_context(socket.socket()) for _ in range(SPARES + 1)]
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, before[1]))
        try:
            for number, client in enumerate(clients):
                client.settimeout(WAIT)
                client.bind((f"127.0.1.{number + 1}", 0))
                client.connect(("127.0.0.1", server.port))
                client.sendall(GET)
            for client in clients[:-1]:
                assert client.recv(10) == b"HTTP/1.1 2"
            assert until(lambda: bool(log.errors))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert clients[-1].recv(10) == b"HTTP/1.1 2"
    assert log.errors == [("connections not accepted", {"error": "Too many open files"})]
    log.errors.clear()


def test_descriptors_are_held_for_clients_again_when_they_are_gone(serve: Serve) -> None:
    server = serve()
    held = list(server._spares._held)
    assert len(held) == SPARES
    assert server._spares.give()
    assert ask(server, "/metrics").status == 200
    assert until(lambda: len(server._spares._held) == SPARES)
    server.stop()
    assert server._spares._held == []


def test_without_threads_a_client_is_refused_and_the_server_goes_on(log: Log, server: Server) -> None:
    threading.stack_size(1 << 46)  # more than there is address space
    try:
        with dial(server) as sock:
            assert is_closed(sock)
        assert until(lambda: bool(log.errors))  # it is told after the connection is closed
    finally:
        threading.stack_size(0)
    assert [event for event, _ in log.errors] == ["connection refused"]
    log.errors.clear()
    assert ask(server, "/metrics").status == 200


def test_a_bug_in_sending_ends_only_its_connection(app: App, log: Log, server: Server) -> None:
    app.body = ["no bytes"]  # type: ignore[list-item]
    with dial(server) as sock:
        sock.sendall(GET)
        assert is_closed(sock)
    assert [(event, facts["exc_info"]) for event, facts in log.errors] == [("connection failed", True)]
    log.errors.clear()
    assert ask(server, "/-/healthy").status == 200


# -- start and stop --


def test_stop_ends_connections_that_wait_and_lets_answers_arrive(app: App, serve: Serve) -> None:
    server = serve()
    with dial(server) as silent, dial(server) as dripping, dial(server) as asking:
        dripping.sendall(b"GET /")
        app.gate.clear()
        asking.sendall(GET)
        assert app.asked.acquire(timeout=WAIT)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert is_closed(silent)
        assert is_closed(dripping)
        app.gate.set()
        answer = b"".join(iter(lambda: asking.recv(65536), b""))
        stopping.join(WAIT)
    assert answer.endswith(PLAIN[-1])
    with pytest.raises(ConnectionRefusedError):
        dial(server)


def test_stop_waits_for_nobody_for_long(app: App, serve: Serve) -> None:
    server = serve()
    app.gate.clear()
    with dial(server) as asking:
        asking.sendall(GET)
        assert app.asked.acquire(timeout=WAIT)
        server.stop()
        assert is_closed(asking)


def test_a_server_that_was_never_started_can_be_stopped(app: App) -> None:
    server = Server("127.0.0.1:0", app)
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        dial(server)


@pytest.mark.parametrize(
    ("address", "reached", "url"),
    [
        ("127.0.0.1:0", "127.0.0.1", "http://127.0.0.1:{}"),
        ("0.0.0.0:0", "127.0.0.1", "http://localhost:{}"),
        (":0", "127.0.0.1", "http://localhost:{}"),
        ("[::]:0", "127.0.0.1", "http://localhost:{}"),
        ("[::]:0", "::1", "http://localhost:{}"),
        ("[::1]:0", "::1", "http://[::1]:{}"),
        ("localhost:0", "localhost", "http://localhost:{}"),
    ],
)
def test_addresses_are_as_prometheus_has_them(app: App, address: str, reached: str, url: str) -> None:
    if ":" in reached and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    server = Server(address, app)
    server.start()
    try:
        assert server.url == url.format(server.port)
        with socket.create_connection((reached, server.port), WAIT) as sock:
            sock.sendall(GET)
            assert sock.recv(10) == b"HTTP/1.1 2"
    finally:
        server.stop()


@pytest.mark.parametrize(
    "address", ["", "10940", "localhost", "127.0.0.1:", "::1:10940", "x:99999", "a:b:1", "http://x:1"]
)
def test_a_malformed_address_is_a_bad_configuration(app: App, address: str) -> None:
    with pytest.raises(ConfigError, match=r"--web.listen-address: .*expected HOST:PORT"):
        Server(address, app)


def test_an_address_in_use_is_named(app: App, server: Server) -> None:
    with pytest.raises(StartError, match=f"--web.listen-address 127.0.0.1:{server.port}: Address already in use"):
        Server(f"127.0.0.1:{server.port}", app)


# -- the web configuration --


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def web_config(directory: Path, authority: Authority, *lines: str, name: str = "server") -> WebConfig:
    certificate, key = authority.issue(name, "IP:127.0.0.1", f"DNS:{name}")
    file = directory / f"{name}.yml"
    settings = (f"cert_file: {certificate}", f"key_file: {key}", *lines)
    file.write_text("tls_server_config:\n" + "".join(f"  {line}\n" for line in settings))
    return load(str(file))


def client_tls(authority: Authority, certificate: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    tls = ssl.create_default_context(cafile=str(authority.certificate))
    if certificate is not None:
        tls.load_cert_chain(*certificate)
    return tls


def name_of(server: Server, tls: ssl.SSLContext) -> object:
    """Return the name on the certificate that the server shows."""
    with dial(server) as sock, tls.wrap_socket(sock, server_hostname="127.0.0.1") as secured:
        return dict(secured.getpeercert()["subjectAltName"])["DNS"]  # type: ignore[index, arg-type]


def test_scrapes_over_tls(app: App, serve: Serve, authority: Authority, tmp_path: Path) -> None:
    app.body = [b"%d," % number for number in range(100_000)] + [b"x" * 100_000]
    server = serve(web_config(tmp_path, authority))
    assert server.url == f"https://127.0.0.1:{server.port}"
    with contextlib.closing(connection_to(server, client_tls(authority))) as connection:
        for _ in range(3):
            assert ask_on(connection, "/metrics").body == b"".join(app.body)


def test_a_silent_tls_client_keeps_nobody_waiting(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    server = serve(web_config(tmp_path, authority))
    with dial(server), dial(server) as half:
        half.sendall(b"\x16\x03\x01")  # the beginning of a handshake
        assert ask(server, "/metrics", tls=client_tls(authority)).status == 200


def test_a_handshake_has_a_deadline(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    server = serve(web_config(tmp_path, authority), request_deadline=0.2)
    with dial(server) as sock:
        sock.sendall(b"\x16\x03\x01")
        assert is_closed(sock)


@pytest.mark.parametrize(
    "sent",
    [
        b"\0" * 1000,
        bytes(range(256)) * 4,
        b"\x16\x03\x01\xff\xff" + b"\x01\xff\xff\xff" * 5000,  # a ClientHello of 16 MiB
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",  # one that is cut
        b"\x15\x03\x03\x00\x02\x02\x28",  # an alert
        b"\x80\x2e\x01\x00\x02",  # SSL 2
    ],
)
def test_what_is_no_handshake_ends_its_connection_alone(
    serve: Serve, authority: Authority, tmp_path: Path, sent: bytes
) -> None:
    server = serve(web_config(tmp_path, authority), request_deadline=0.5)
    with dial(server) as sock:
        sock.sendall(sent)
        while not is_closed(sock):  # after an alert, if OpenSSL sends one
            pass
    assert ask(server, "/metrics", tls=client_tls(authority)).status == 200


def test_a_client_that_speaks_http_to_the_tls_port_is_told(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    answer = exchange(serve(web_config(tmp_path, authority)), GET)
    assert answer.startswith(b"HTTP/1.0 400 ")
    assert b"https://" in answer


def test_tls_below_the_minimum_is_refused(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    server = serve(web_config(tmp_path, authority, "min_version: TLS13"))
    tls = client_tls(authority)
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        ask(server, "/metrics", tls=tls)


def test_a_client_certificate_is_demanded_and_verified(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    lines = ("client_auth_type: RequireAndVerifyClientCert", f"client_ca_file: {authority.certificate}")
    server = serve(web_config(tmp_path, authority, *lines))
    stranger = Authority(tmp_path, "stranger").issue("mallory")
    assert ask(server, "/metrics", tls=client_tls(authority, authority.issue("client"))).status == 200
    for certificate in (None, stranger):
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            ask(server, "/metrics", tls=client_tls(authority, certificate))


def test_a_client_certificate_that_is_optional_is_verified_if_given(
    serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    lines = ("client_auth_type: VerifyClientCertIfGiven", f"client_ca_file: {authority.certificate}")
    server = serve(web_config(tmp_path, authority, *lines))
    stranger = Authority(tmp_path, "stranger").issue("mallory")
    assert ask(server, "/metrics", tls=client_tls(authority)).status == 200
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        ask(server, "/metrics", tls=client_tls(authority, stranger))


@pytest.mark.parametrize(
    "san", ["DNS:prometheus", "IP:10.1.2.3", "IP:2001:db8::1", "email:ops@example.net", "URI:spiffe://x/prometheus"]
)
def test_only_certificates_with_an_allowed_name_are_let_in(
    serve: Serve, authority: Authority, tmp_path: Path, san: str
) -> None:
    lines = (
        "client_auth_type: RequireAndVerifyClientCert",
        f"client_ca_file: {authority.certificate}",
        "client_allowed_sans: [prometheus, 10.1.2.3, '2001:db8:0::1', ops@example.net, 'spiffe://x/prometheus']",
    )
    server = serve(web_config(tmp_path, authority, *lines))
    assert ask(server, "/metrics", tls=client_tls(authority, authority.issue("client", san))).status == 200
    for sans in ((), ("DNS:prometheus.example.net", "IP:10.1.2.4")):
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            ask(server, "/metrics", tls=client_tls(authority, authority.issue("prometheus", *sans)))


def test_a_new_certificate_is_shown_to_new_connections_and_old_ones_end(
    serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    tls = client_tls(authority)
    server = serve(web_config(tmp_path, authority, name="before"))
    assert name_of(server, tls) == "before"
    with contextlib.closing(connection_to(server, tls)) as kept:
        assert "Connection" not in ask_on(kept, "/metrics").headers
        server.use(web_config(tmp_path, authority, name="after"))
        assert ask_on(kept, "/metrics").headers["Connection"] == "close"
    assert name_of(server, tls) == "after"


def users_config(directory: Path, **passwords: str) -> WebConfig:
    file = directory / "users.yml"
    hashes = {user: bcrypt.hashpw(word.encode(), bcrypt.gensalt(4)).decode() for user, word in passwords.items()}
    file.write_text("basic_auth_users:\n" + "".join(f"  {user}: {stored}\n" for user, stored in hashes.items()))
    return load(str(file))


def basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode()


@pytest.mark.parametrize("path", ["/metrics", "/", "/api/v1/status", "/-/healthy", "/-/ready", "/-/reload", "/nope"])
def test_without_a_password_every_path_is_closed(serve: Serve, tmp_path: Path, path: str) -> None:
    reply = ask(serve(users_config(tmp_path, alice="sesame")), path)
    assert reply.status == 401
    assert reply.headers["WWW-Authenticate"].startswith("Basic ")


def test_users_are_let_in_by_their_passwords(serve: Serve, tmp_path: Path) -> None:
    server = serve(users_config(tmp_path, alice="sesame", bob="öffne:dich"))
    for credentials in ("alice:sesame", "bob:öffne:dich", "alice:sesame"):
        assert ask(server, "/metrics", Authorization=basic(credentials)).status == 200
    for credentials in ("alice:öffne:dich", "bob:sesame", "eve:sesame", "alice:", ":sesame", "alice"):
        assert ask(server, "/metrics", Authorization=basic(credentials)).status == 401


def test_a_password_that_waits_too_long_for_its_check_may_come_again(serve: Serve, tmp_path: Path) -> None:
    web = users_config(tmp_path, alice="sesame")
    assert web.users is not None
    server = serve(web, request_deadline=0.5)
    with web.users._turn:
        reply = ask(server, "/metrics", Authorization=basic("alice:sesame"))
    assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
    assert ask(server, "/metrics", Authorization=basic("alice:sesame")).status == 200


def test_users_that_are_taken_away_are_out_at_once(serve: Serve, tmp_path: Path) -> None:
    server = serve(users_config(tmp_path, alice="sesame"))
    with contextlib.closing(connection_to(server)) as kept:
        assert ask_on(kept, "/metrics", Authorization=basic("alice:sesame")).status == 200
        server.use(users_config(tmp_path, bob="other"))
        assert ask_on(kept, "/metrics", Authorization=basic("alice:sesame")).status == 401


def test_configured_headers_are_in_every_answer_and_win(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "web.yml"
    file.write_text(
        "http_server_config:\n  headers:\n    X-Frame-Options: sameorigin\n    Strict-Transport-Security: max-age=1\n"
    )
    server = serve(load(str(file)))
    for path in ("/", "/metrics", "/nope"):
        headers = ask(server, path).headers
        assert headers.get_all("X-Frame-Options") == ["sameorigin"]
        assert headers["Strict-Transport-Security"] == "max-age=1"


def test_urllib_reads_it_as_any_client_would(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=WAIT) as answer:
        assert answer.read() == b"".join(PLAIN)
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        urllib.request.urlopen(f"{server.url}/nope", timeout=WAIT)
    refused.value.close()
