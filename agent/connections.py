"""Connections: what one client may take of the agent's time and memory, so that no other client waits for it.

A connection has a thread and a slot. Every phase of it has an absolute deadline: a time-out per read would start anew
with each byte of a client that drips them. When slots run out, a connection that waits for its client gives way.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

Phase = Literal["waiting", "working", "sending"]

HEAD_LIMIT = 16 * 1024  # bytes of a request's line and headers together; one more read may fit
LINGER_LIMIT = 64 * 1024  # bytes read and dropped, so that a client sees our answer before the reset
LINGER_WITHIN = 1.0
STALLED_AFTER = 1.0  # a ready answer is sent in milliseconds; who takes longer may have to give way
GIVE_WAY_WITHIN = 0.5
_BUFFERS = 1024  # UIO_MAXIOV: what one sendmsg takes
_RECORD = 16 * 1024  # the largest TLS record
_CHUNK = 4 * 1024  # what one read allocates while it waits
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_HTTP_TO_HTTPS = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nThis port speaks HTTPS: use https:// here.\n"
)


class HeadTooLarge(Exception):
    """A request's line and headers are over HEAD_LIMIT."""


class Connection:
    """A client's socket. Its own thread uses it; only `cut` may be called from others."""

    def __init__(self, sock: socket.socket, address: str, head_within: float) -> None:
        self.address = address
        self.peer = peer_of(address)
        self.phase: Phase = "waiting"
        self.since = time.monotonic()
        self.is_cut = False
        self._socket = sock
        self._head_within = head_within
        self._until = self.since + head_within
        self._received = bytearray()

    def handshake(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Go over to TLS; the handshake and the first request's head share one deadline."""
        self._wait()
        socket.socket.recv(self._socket, 1, socket.MSG_PEEK)  # a silent client shall not cost a TLS state
        secured = context.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
        self._socket = secured
        self._wait()
        try:
            secured.do_handshake()
        except ssl.SSLError as error:
            if error.reason == "HTTP_REQUEST":
                socket.socket.send(secured, _HTTP_TO_HTTPS)
                self.linger()
            raise
        return secured

    def read_head(self) -> bytes:
        """Return the next request's line and headers; b"" when the client has closed instead.

        Raises HeadTooLarge; OSError when it does not come in time, or only in part.
        """
        while True:
            self._received = self._received.lstrip(b"\r\n")  # RFC 9112, 2.2: empty lines before it are ignored
            if match := _END_OF_HEAD.search(self._received):
                head = bytes(self._received[: match.end()])
                del self._received[: match.end()]
                return head
            if len(self._received) >= HEAD_LIMIT:
                raise HeadTooLarge
            self._wait()
            chunk = self._socket.recv(_CHUNK)
            if not chunk and self._received:
                raise ConnectionResetError("closed within a request")
            if not chunk:
                return b""
            self._received += chunk

    def work(self) -> None:
        """Say that the request is complete and its answer is being made."""
        self._enter("working")

    def send(self, parts: Sequence[bytes], within: float) -> None:
        """Send an answer's parts, joined by the kernel rather than by us; raises OSError when it takes too long."""
        self._enter("sending")
        self._until = self.since + within
        if isinstance(self._socket, ssl.SSLSocket):
            for block in _blocks(parts):
                left = memoryview(block)
                while left:
                    self._wait()
                    left = left[self._socket.send(left) :]
            return
        views = [memoryview(part) for part in parts]
        at = 0
        while at < len(views):
            self._wait()
            sent = self._socket.sendmsg(views[at : at + _BUFFERS])
            while at < len(views) and sent >= len(views[at]):
                sent -= len(views[at])
                at += 1
            if sent:
                views[at] = views[at][sent:]

    def rest(self, within: float) -> bool:
        """Wait for the next request's first byte; False when the client closes, or sends none in time."""
        self._enter("waiting")
        self._until = self.since + within
        if not self._received:
            try:
                self._wait()
                self._received += self._socket.recv(_CHUNK)
            except TimeoutError:
                return False
        self._until = time.monotonic() + self._head_within
        return bool(self._received)

    def linger(self) -> None:
        """Close our side and drop what the client still sends: closing over unread bytes resets the answer away."""
        self._enter("waiting")
        self._until = self.since + LINGER_WITHIN
        left = LINGER_LIMIT
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_WR)
            while left > 0:
                self._wait()
                dropped = socket.socket.recv(self._socket, _CHUNK)  # below TLS, if any
                if not dropped:
                    return
                left -= len(dropped)

    def cut(self) -> None:
        """Wake the connection's thread from any wait, with an error."""
        self.is_cut = True
        with contextlib.suppress(OSError):
            # the method of SSLSocket would take the TLS state away from under its thread
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def may_give_way(self, now: float) -> bool:
        """Return whether it waits for its client, and so may be cut for another's sake."""
        return self.phase == "waiting" or (self.phase == "sending" and now - self.since > STALLED_AFTER)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self.since = time.monotonic()

    def _wait(self) -> None:
        """Arm the socket for one more wait that ends at the phase's deadline."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if self.is_cut:
            raise ConnectionAbortedError("gave way to another client")
        self._socket.settimeout(left)


class Slots:
    """The connections that are open, bounded overall and per peer."""

    def __init__(self, limit: int, limit_per_peer: int) -> None:
        self._limit = limit
        self._limit_per_peer = limit_per_peer
        self._open: set[Connection] = set()
        self._changed = threading.Condition()

    def enter(self, newcomer: Connection) -> bool:
        """Take a slot, another's if there is none left; False when nobody may give way."""
        with self._changed:
            while rivals := self._rivals(newcomer):
                if not any(rival.is_cut for rival in rivals):
                    victim = self._victim(rivals)
                    if victim is None:
                        return False
                    victim.cut()
                if not self._changed.wait(GIVE_WAY_WITHIN):
                    return False
            self._open.add(newcomer)
            return True

    def leave(self, connection: Connection) -> None:
        """Give the slot back. To be called before the socket is closed: `cut` must not meet another's descriptor."""
        with self._changed:
            self._open.discard(connection)
            self._changed.notify_all()

    def clear(self, within: float) -> None:
        """Cut those that wait at once, the others after `within` seconds."""
        end = time.monotonic() + within
        with self._changed:
            for connection in self._open:
                if connection.phase == "waiting":
                    connection.cut()
            self._changed.wait_for(lambda: not self._open, end - time.monotonic())
            for connection in self._open:
                connection.cut()

    def _rivals(self, newcomer: Connection) -> list[Connection]:
        """Return those of which one must go before the newcomer may enter; none while there is room."""
        own = [connection for connection in self._open if connection.peer == newcomer.peer]
        if len(own) >= self._limit_per_peer:
            return own
        return list(self._open) if len(self._open) >= self._limit else []

    def _victim(self, rivals: Iterable[Connection]) -> Connection | None:
        """Return the one that waits longest among those of the peer that holds most."""
        now = time.monotonic()
        held = Counter(connection.peer for connection in self._open)
        waiting = [rival for rival in rivals if rival.may_give_way(now)]
        return min(waiting, key=lambda rival: (-held[rival.peer], rival.since), default=None)


class Spares:
    """Descriptors held for clients: where collectors have taken all others, one is given for a connection."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._held: list[int] = []
        self._lock = threading.Lock()
        self.refill()

    def refill(self) -> None:
        """Hold as many as wanted again, as far as they are to be had."""
        with self._lock, contextlib.suppress(OSError):
            while len(self._held) < self._count:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def give(self) -> bool:
        """Give one up; False when none is left."""
        with self._lock:
            if self._held:
                os.close(self._held.pop())
                return True
            return False

    def close(self) -> None:
        """Give up all, for good."""
        self._count = 0
        while self.give():
            pass


def peer_of(address: str) -> str:
    """Return whom an address belongs to: itself; for IPv6 its /64, which any one host may have to itself."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    return str(parsed.ipv4_mapped or parsed.packed[:8].hex())


def _blocks(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the parts with small ones joined: each block costs a TLS record, and a system call."""
    small = bytearray()
    for part in parts:
        if small and len(small) + len(part) > _RECORD:
            yield bytes(small)
            small.clear()
        if len(part) >= _RECORD:
            yield part
        else:
            small += part
    if small:
        yield bytes(small)
