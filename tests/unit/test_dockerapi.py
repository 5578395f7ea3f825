"""The client of Docker's API against servers that answer as they should, and as they should not."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

import pytest

from agent.dockerapi import ANSWER_MOST, DockerApi
from agent.errors import Failed, HostError, Stuck, Vanished

EVENT = {"Type": "volume", "Action": "create", "Actor": {"ID": "a"}, "timeNano": 5}


class Server(ThreadingUnixStreamServer):
    """A daemon of one's own making: `answers` by the last part of the path, bytes as they are."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, path: str) -> None:
        self.answers: dict[str, Any] = {"version": {"ApiVersion": "1.41"}, "volumes": {"Volumes": [{"Name": "a"}]}}
        self.asked: list[str] = []
        self.over = threading.Event()
        super().__init__(path, Handler)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        name = self.path.partition("?")[0].rpartition("/")[2]
        answer: Any = self.server.answers.get(name)
        if answer == "silent":
            self.server.over.wait()
        elif isinstance(answer, bytes):
            self.wfile.write(answer)
        elif callable(answer):
            with contextlib.suppress(OSError):  # the client has had enough
                answer(self)
        elif name == "events":
            self._stream(answer)
        else:
            self._send(404 if answer is None else 200, json.dumps(answer or {"message": "no such volume"}).encode())
        self.close_connection = True

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, events: list[Any]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in events:
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        if "until" in self.path:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.server.over.wait()

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def path() -> Iterator[str]:
    # a short path: a socket's may have 107 characters
    with tempfile.TemporaryDirectory(prefix="ullage-") as made:
        yield str(Path(made) / "docker.sock")


@pytest.fixture
def server(path: str) -> Iterator[Server]:
    with Server(path) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        yield made
        made.over.set()
        made.shutdown()
        thread.join()


@pytest.fixture
def make(path: str) -> Iterator[Callable[..., DockerApi]]:
    made: list[DockerApi] = []

    def connect(answer: float = 120.0) -> DockerApi:
        made.append(DockerApi(path, answer, silence=0.3))
        return made[-1]

    yield connect
    for api in made:
        api.close()


Make = Callable[..., DockerApi]


def test_volumes_and_one_of_them(server: Server, make: Make) -> None:
    api = make()
    server.answers["a"] = {"Name": "a"}
    assert api.volumes() == [{"Name": "a"}]
    assert api.volume("a") == {"Name": "a"}
    server.answers["volumes"] = {"Volumes": None}
    assert api.volumes() == []


def test_what_it_says_of_itself(server: Server, make: Make) -> None:
    server.answers["info"] = {"Driver": "overlay2"}
    assert make().info() == {"Driver": "overlay2"}
    server.answers["info"] = "silent"
    with pytest.raises(Stuck):
        make(0.3).info()


def test_times_are_asked_for_with_nine_digits(server: Server, make: Make) -> None:
    server.answers["events"] = [EVENT]
    assert list(make().volume_events(1795473853000000007, 1795473854000000000)) == [EVENT]
    assert "since=1795473853.000000007&until=1795473854.000000000&" in server.asked[-1]


def test_a_silence_ends_the_stream_and_is_no_error(server: Server, make: Make) -> None:
    server.answers["events"] = [EVENT, EVENT]
    assert list(make().volume_events(1)) == [EVENT, EVENT]


def test_a_silence_in_what_must_end_is_one(server: Server, make: Make) -> None:
    server.answers["events"] = "silent"
    with pytest.raises(Stuck):
        list(make().volume_events(1, 2))


@pytest.mark.parametrize("is_asked_between", [False, True])
def test_the_end_of_a_client_ends_its_stream(server: Server, path: str, *, is_asked_between: bool) -> None:
    server.answers |= {"events": [EVENT, EVENT], "a": {"Name": "a"}}
    api = DockerApi(path, answer=30, silence=1000)
    events = api.volume_events(1)
    assert next(events) == EVENT
    if is_asked_between:
        assert api.volume("a") == {"Name": "a"}
    assert next(events) == EVENT
    ended = threading.Event()

    def read() -> None:
        assert list(events) == []
        ended.set()

    thread = threading.Thread(target=read)
    thread.start()
    api.close()
    assert ended.wait(30)
    thread.join()


@pytest.mark.parametrize(
    ("name", "answer", "error"),
    [
        ("version", "silent", Stuck),
        ("version", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", HostError),
        ("version", b"\0\xff garbage\r\n\r\n", HostError),
        ("version", [], Failed),
        ("volumes", "silent", Stuck),
        ("volumes", [], Failed),
        ("volumes", {}, Failed),
        ("volumes", b"HTTP/1.1 500 no\r\nContent-Length: 0\r\n\r\n", Failed),
        ("volumes", b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n[[[[[[[", Failed),
    ],
)
def test_each_failure_is_a_typed_error(
    server: Server, make: Make, name: str, answer: object, error: type[HostError]
) -> None:
    server.answers[name] = answer
    with pytest.raises(error):
        make(120.0 if error is Failed else 0.3).volumes()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def drip(start: bytes, drop: bytes) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.wfile.write(start)
        while not handler.server.over.wait(0.02):
            handler.wfile.write(drop)

    return answer


def pour(start: bytes, gush: bytes) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.wfile.write(start)
        while not handler.server.over.is_set():
            handler.wfile.write(gush)

    return answer


@pytest.mark.parametrize("name", ["version", "volumes", "a"])
@pytest.mark.parametrize(
    "answer",
    [drip(b"", b"H"), drip(HEAD, b"X: y\r\n"), drip(HEAD + b"\r\n", b" "), drip(CHUNKED, b"1\r\n \r\n")],
    ids=["line", "headers", "body", "chunks"],
)
def test_an_answer_that_drips_has_one_deadline(server: Server, make: Make, name: str, answer: object) -> None:
    server.answers[name] = answer
    with pytest.raises(Stuck):
        make(0.3).volumes() if name == "volumes" else make(0.3).volume("a")


@pytest.mark.parametrize(
    "answer",
    [
        pour(HEAD + b"\r\n[", b"0," * (1 << 15)),
        pour(CHUNKED, b"10000\r\n" + b" " * 65536 + b"\r\n"),
        pour(b"HTTP/1.1 500 no\r\nContent-Length: 999999999999\r\n\r\n", b" " * 65536),
    ],
    ids=["promised", "chunked", "refusal"],
)
def test_gigabytes_are_not_read_to_their_end(server: Server, path: str, answer: object) -> None:
    server.answers["containers"] = server.answers["json"] = answer
    api = DockerApi(path, answer=60)
    tracemalloc.start()
    try:
        with pytest.raises(Failed, match=f"more than {ANSWER_MOST} bytes"):
            api.containers()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * ANSWER_MOST  # the server's share with it


def test_an_answer_that_unpacks_to_any_size_is_refused(server: Server, make: Make) -> None:
    server.answers["volumes"] = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}"
    with pytest.raises(Failed, match="encoded"):
        make().volumes()


def test_events_that_must_end_and_stop_in_the_middle_are_an_error(server: Server, make: Make) -> None:
    line = json.dumps(EVENT).encode() + b"\n"
    server.answers["events"] = drip(CHUNKED + b"%x\r\n%s\r\n" % (len(line), line), b"")
    events = make().volume_events(1, 2)
    assert next(events) == EVENT
    with pytest.raises(Stuck):
        next(events)


def test_an_event_that_never_ends_is_given_up(server: Server, path: str) -> None:
    server.answers["events"] = pour(CHUNKED, b"10000\r\n" + b"x" * 65536 + b"\r\n")
    with pytest.raises(Failed, match=f"more than {ANSWER_MOST} bytes"):
        list(DockerApi(path, silence=60).volume_events(1))


def test_events_without_an_end_are_told_one_by_one(server: Server, path: str) -> None:
    event = EVENT | {"Padding": "x" * 60_000}
    line = json.dumps(event).encode() + b"\n"
    server.answers["events"] = pour(CHUNKED, b"%x\r\n%s\r\n" % (len(line), line))
    api = DockerApi(path)
    events = api.volume_events(1)
    most = 2 * ANSWER_MOST // len(line)
    assert all(each == event for each in itertools.islice(events, most))
    api.close()
    with contextlib.suppress(Failed):  # cut in the middle of one
        assert all(each == event for each in events)


def test_an_event_that_drips_is_a_silence(server: Server, make: Make) -> None:
    server.answers["events"] = drip(CHUNKED, b"1\r\n \r\n")
    assert list(make().volume_events(1)) == []


def test_what_is_not_there_is_typed_too(server: Server, make: Make) -> None:
    with pytest.raises(Failed, match="no such volume"):
        make().volume("gone")
    assert server.asked[-1].endswith("/volumes/gone")


def test_no_socket_and_nobody_behind_it(path: str, make: Make) -> None:
    with pytest.raises(Vanished):
        make()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path)
        with pytest.raises(Failed, match="refused"):
            make()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_socket_that_we_may_not_use_is_denied(server: Server, path: str) -> None:
    assert server.asked == []
    script = (
        "import docker, os, sys; from agent.dockerapi import DockerApi; from agent.errors import Denied\n"
        "os.setuid(65534)\n"
        "try: DockerApi(sys.argv[1])\nexcept Denied: print('denied')"
    )
    os.chmod(Path(path).parent, 0o755)
    os.chmod(path, 0o600)
    done = subprocess.run([sys.executable, "-c", script, path], check=True, capture_output=True, text=True)
    assert done.stdout == "denied\n"
