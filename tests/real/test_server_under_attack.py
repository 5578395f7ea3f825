"""The server under attack: scrapes answer and memory stays, whatever other clients of the network do.

900 clients say nothing (to a TLS port: not even the handshake) and 100 drip a request, a byte a second. They come from
other loopback addresses, and come back within a second when they are cut off.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import random
import re
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.certificates import Authority

SILENT, DRIPPING, SCRAPES = 900, 100, 12
OTHER = "127.0.0.62"  # no other client's address
GROWTH = 4 * 1024  # KiB
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: ullage\r\nX-Slow: " + b"x" * 1000
PROGRAM = """
import sys, threading
from agent import log, status
from agent.server import Server
from agent.webconfig import load

log.configure()

BODY = [b'ullage_x{n="%d"} 1\\n' % n for n in range(10_000)]

class App:
    lifecycle = False
    def metrics(self, form, *, gzip): return BODY
    def is_ready(self): return True
    def status(self, most=None): return status.Status()
    def reload(self): pass

server = Server("127.0.0.1:0", App(), load(sys.argv[1]) if len(sys.argv) > 1 else None)
server.start()
print(server.port, flush=True)
threading.Event().wait()
"""


class Target:
    """The server in a process of its own."""

    def __init__(self, arguments: list[str], tls: ssl.SSLContext | None) -> None:
        environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}  # as the agent has it, see agent.daemon.calm_malloc
        command = [sys.executable, "-c", PROGRAM, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        self.tls = tls
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def scrape(self) -> int:
        """Return the length of a scrape's body."""
        url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/metrics"
        with urllib.request.urlopen(url, timeout=5, context=self.tls) as answer:
            return len(answer.read())

    def ask(self, path: str) -> int:
        """Return the length of an answer's body, as a client at another address than the scraper's."""
        of = ("127.0.0.1", self.port)
        if self.tls is None:
            connection = http.client.HTTPConnection(*of, timeout=5, source_address=(OTHER, 0))
        else:
            connection = http.client.HTTPSConnection(*of, timeout=5, source_address=(OTHER, 0), context=self.tls)
        with contextlib.closing(connection):
            connection.request("GET", path)
            return len(connection.getresponse().read())

    def look(self, key: str) -> int:
        """Return a number of /proc/PID/status: VmRSS in KiB, Threads."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(rf"^{key}:\s+(\d+)", text, re.MULTILINE)
        assert match is not None
        return int(match[1])

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


class Attackers:
    """Clients from 127.0.0.2 on, that never finish a request and come back when they are cut off."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._addresses = itertools.cycle(f"127.0.0.{n}" for n in range(2, 62))
        self._stop = threading.Event()
        self._sockets: dict[int, socket.socket] = {}
        self.are_complete = threading.Event()
        self._thread = threading.Thread(target=self._attack)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for sock in self._sockets.values():
            sock.close()

    def _attack(self) -> None:
        for progress in itertools.count():
            for number in range(SILENT + DRIPPING):
                if self._stop.is_set():
                    return
                sock = self._sockets.get(number)
                if sock is None or not self._go_on(sock, number, progress):
                    if sock is not None:
                        sock.close()
                    with contextlib.suppress(OSError):
                        self._sockets[number] = self._connect(number)
            self.are_complete.set()
            self._stop.wait(1.0)

    def _go_on(self, sock: socket.socket, number: int, progress: int) -> bool:
        """Send one more byte, or see that the connection is still there."""
        try:
            if number < SILENT:
                return sock.recv(1) != b""
            at = progress % len(REQUEST)
            sock.send(REQUEST[at : at + 1])
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return True

    def _connect(self, number: int) -> socket.socket:
        address = next(self._addresses)
        sock: socket.socket = socket.create_connection(("127.0.0.1", self._target.port), 1, source_address=(address, 0))
        if self._target.tls is not None and number >= SILENT:
            sock = self._target.tls.wrap_socket(sock)
        sock.settimeout(0)
        return sock


@pytest.fixture(params=["http", "https"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    arguments, tls = [], None
    if request.param == "https":
        certificate, key = Authority(tmp_path).issue("server", "IP:127.0.0.1")
        config = tmp_path / "web.yml"
        config.write_text(f"tls_server_config: {{cert_file: {certificate}, key_file: {key}}}\n")
        arguments, tls = [str(config)], ssl.create_default_context(cafile=str(tmp_path / "authority.crt"))
        tls.check_hostname = False
    target = Target(arguments, tls)
    with target.process:
        try:
            yield target
        finally:
            target.process.terminate()


@pytest.fixture(autouse=True)
def _enough_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * (SILENT + DRIPPING))), hard))


@contextlib.contextmanager
def asking_for_the_status(target: Target) -> Iterator[list[int]]:
    """Have a client that asks for the status without a pause; gives the lengths of what it got."""
    answers: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        for path in itertools.cycle(("/", "/api/v1/status")):
            if stop.is_set():
                return
            # one of many, it may be cut off
            with contextlib.suppress(OSError, http.client.HTTPException):
                answers.append(target.ask(path))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_every_scrape_answers_and_memory_stays(target: Target) -> None:
    threads, descriptors = target.look("Threads"), target.descriptors()
    for _ in range(3):
        length = target.scrape()
        for path in ("/", "/api/v1/status"):
            target.ask(path)
    memory = peak = target.look("VmRSS")
    lengths = []
    with Attackers(target) as attackers, asking_for_the_status(target) as answers:
        assert attackers.are_complete.wait(15)
        for _ in range(SCRAPES):
            lengths.append(target.scrape())
            peak = max(peak, target.look("VmRSS"))
            time.sleep(random.uniform(0.2, 0.4))  # so as to meet every moment of the attackers' round
    assert lengths == [length] * SCRAPES
    assert len(answers) > SCRAPES
    assert peak - memory <= GROWTH
    end = time.monotonic() + 60
    while (target.look("Threads"), target.descriptors()) != (threads, descriptors) and time.monotonic() < end:
        time.sleep(0.1)
    assert (target.look("Threads"), target.descriptors()) == (threads, descriptors)
