"""The doctor that reads a running agent: a real one over HTTP and HTTPS, and servers that mean no good."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import bcrypt
import pytest

from agent.errors import ConfigError, Stuck, UllageError
from agent.statusclient import LIMIT, Trust, fetch
from tests.agent_process import Agent, running
from tests.certificates import Authority
from tests.unit.test_cli import ullage

Talk = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextmanager
def server(talk: Talk) -> Iterator[str]:
    """Have a server that reads a request and then says what it wants; yield its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):  # the client may have had enough
                    connection.recv(1 << 16)
                    talk(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(20)


def says(*parts: bytes) -> Talk:
    return lambda connection: connection.sendall(b"".join(parts))


def endless(connection: socket.socket) -> None:
    connection.sendall(OK + b"\r\n[")
    while True:
        connection.sendall(b" " * (1 << 20))


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("talk", "problem"),
    [
        (says(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"), "wants a user"),
        (says(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), "it is no Ullage agent"),
        (says(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"), "answered 500"),
        (says(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"), "answered 302"),
        (says(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n"), "answered 302"),
        (says(b""), "cannot be"),
        (says(b"\xff\xfe\x1b[2J"), "cannot be read"),
        (says(OK, b"Content-Length: 9999\r\n\r\n{"), "not as an Ullage agent"),
        (says(OK, b"Content-Length: x\r\n\r\n{"), "not as an Ullage agent"),
        (says(OK, b"\r\n<html>"), "not as an Ullage agent"),
        (says(OK, b"\r\n", b"[" * 100_000), "not as an Ullage agent"),
        (says(OK, b"\r\n", b'{"collectors": [{"name": 5}]}'), "not as an Ullage agent"),
        (says(OK, b"\r\n", b'{"collectors": [{"name": "x", "summary": "x", "state": "\\u001b"}]}'), "not as an"),
        (says(OK, b"Content-Encoding: gzip\r\n\r\n\x1f\x8b"), "not as an Ullage agent"),
        (endless, f"larger than {LIMIT >> 20} MiB"),
    ],
)
def test_what_is_no_status_is_an_error_in_words(talk: Talk, problem: str) -> None:
    with server(talk) as url, pytest.raises(UllageError) as raised:
        fetch(url)
    assert problem in str(raised.value)
    assert str(raised.value).startswith(url)


@pytest.mark.parametrize("talk", [drip, lambda _connection: time.sleep(10)])
def test_one_that_takes_its_time_is_left(talk: Talk) -> None:
    with server(talk) as url, pytest.raises(Stuck, match="no answer within"):
        fetch(url, seconds=1.0)


def test_nobody_there_is_said_with_the_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(UllageError, match="cannot be reached: Connection refused") as raised:
        fetch(f"http://user:se%20cret@127.0.0.1:{port}/prefix/")
    assert str(raised.value).startswith(f"http://127.0.0.1:{port}/prefix: ")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "node-1:10940",
        "ftp://x",
        "http://",
        "http://x:port",
        "http://x/?q",
        "http://x y",
        "http://x\x1b",
        "file:///x",
    ],
)
def test_what_is_no_url_is_refused_before_anything_is_asked(url: str) -> None:
    with pytest.raises(ConfigError, match="expected http"):
        fetch(url)


def test_files_of_trust_are_named_where_they_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("x")
    with pytest.raises(ConfigError, match=r"bad\.pem: cannot be used"):
        fetch("https://127.0.0.1:1", Trust(ca_file=str(tmp_path / "bad.pem")))
    with pytest.raises(ConfigError, match="absent"):
        fetch("https://127.0.0.1:1", Trust(cert_file=str(tmp_path / "absent")))


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return ullage("doctor", *arguments, environment={**os.environ, **environment})


def judged(agent: Agent, *arguments: str, **environment: str) -> int:
    """Ask twice what doctor says of an agent; return its exit code."""
    text, machine = doctor(*arguments, **environment), doctor("--json", *arguments, **environment)
    assert (text.stderr, machine.stderr) == ("", ""), agent.log
    document = json.loads(machine.stdout)
    assert document["agent"]["version"]
    assert f"{document['verdict']} (read from its agent)" in text.stdout
    assert "filesystem   up" in text.stdout
    assert document["seconds"] is None
    assert machine.returncode == ["clean", "warnings", "critical", "unknown"].index(document["verdict"])
    return machine.returncode


def test_an_agent_is_read_over_http(tmp_path: Path) -> None:
    with running(tmp_path) as agent:
        agent.wait_until_ready()
        assert judged(agent, f"--from={agent.url}") in (0, 1, 2)


def test_an_agent_is_read_over_https_by_its_users_alone(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("node", "IP:127.0.0.1")
    web = tmp_path / "web.yml"
    hashed = bcrypt.hashpw(b"p:w d", bcrypt.gensalt(4)).decode()
    web.write_text(f"tls_server_config: {{cert_file: {cert}, key_file: {key}}}\nbasic_auth_users: {{me: {hashed!r}}}\n")
    trusted = f"--from.ca-file={authority.certificate}"
    with running(tmp_path, f"--web.config.file={web}") as agent:
        agent.wait_for_log('"collector up" collector=filesystem')
        url = agent.url
        host = url.removeprefix("https://")
        assert judged(agent, trusted, f"--from=https://me:p%3Aw%20d@{host}") in (0, 1, 2, 3)
        (tmp_path / ".netrc").touch(0o600)
        (tmp_path / ".netrc").write_text('machine 127.0.0.1 login me password "p:w d"\n')
        assert judged(agent, trusted, f"--from={url}", HOME=str(tmp_path)) in (0, 1, 2, 3)
        for arguments, problem in (
            ((f"--from=https://me:wrong@{host}", trusted), "wants a user and a password"),
            ((f"--from=https://me:p%3Aw%20d@{host}",), "its certificate is not trusted"),
            ((f"--from={url}", trusted), "wants a user and a password"),
        ):
            refused = doctor(*arguments, HOME="/nonexistent")
            assert (refused.returncode, refused.stdout) == (3, "")
            assert problem in refused.stderr
            assert "wrong" not in refused.stderr
            assert "p%3A" not in refused.stderr


@pytest.mark.parametrize(
    "arguments", [("--from=http://127.0.0.1:1",), ("--from=nonsense",), ("--config.file=/nonexistent",)]
)
def test_what_cannot_be_judged_exits_with_3(arguments: tuple[str, ...]) -> None:
    answer = doctor(*arguments)
    assert (answer.returncode, answer.stdout) == (3, "")
    assert answer.stderr.startswith("ullage: ")


def test_advice_and_another_agent_exclude_each_other() -> None:
    assert doctor("--advise", "--from=http://x").returncode == 2


def test_what_a_server_says_of_itself_does_nothing_to_a_terminal() -> None:
    with server(says(b"HTTP/1.1 \x1b[2J\r\n\r\n")) as url:
        answer = doctor(f"--from={url}")
    assert answer.returncode == 3
    assert answer.stderr.rstrip("\n").isprintable()
