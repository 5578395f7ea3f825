"""The web server: ready pages over HTTP/1.1, with or without TLS; no client can keep it from the next one.

The standard library parses requests. Who may wait, and for how long, is decided in `agent.connections`; the loop that
accepts connections never waits for a client.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import io
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
import structlog

from agent import statuspage
from agent.connections import Connection, HeadTooLarge, Slots, Spares
from agent.errors import ConfigError, StartError
from agent.negotiation import CONTENT_TYPES, accepts_gzip, choose_form
from agent.status import Status
from agent.webconfig import WebConfig

BACKLOG = 512  # what the kernel holds while a burst of clients is let in; it takes no more than net.core.somaxconn
SEND_WITHIN = 30.0
STOP_WITHIN = 0.5
PAUSE = 0.1  # seconds before accept is tried again when the process has no descriptor left
AGAIN = 10.0  # times what it took to make a status, until it is made anew for whoever asks then
SPARES = 8  # descriptors for clients when collectors have taken all others

_TEXT = "text/plain; charset=utf-8"
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]*\]|[^\[\]:]*):(?P<port>\d{1,5})")
# the library ends a line at a lone CR, and takes folded ones: a proxy that does not would see another request than we
_HEAD = re.compile(rb"[^\r\n]+\r?\n(?:[\w!#$%&'*+.^`|~-]+:[^\r\n\0]*\r?\n)*\r?\n", re.ASCII)
_ANY = ("", "0.0.0.0", "::")  # noqa: S104  compared with, not bound to


class App(Protocol):
    """What the server asks of the agent."""

    lifecycle: bool  # whether POST /-/reload is allowed

    def metrics(self, form: Literal["text", "openmetrics"], *, gzip: bool) -> Sequence[bytes]:
        """Return the exposition in ready parts; joined they are the body."""
        ...

    def is_ready(self) -> bool:
        """Return whether the first round is complete."""
        ...

    def status(self, most: int | None = None) -> Status:
        """Return the status, with the `most` fullest watermark targets (None: all of them)."""
        ...

    def reload(self) -> None:
        """Load the configuration again; raises ConfigError and keeps the old one."""
        ...


class Answer(NamedTuple):
    """A response, ready to be sent; Content-Length and the like are added."""

    status: HTTPStatus
    content_type: str
    body: Sequence[bytes]
    headers: tuple[tuple[str, str], ...] = ()


class Request(BaseHTTPRequestHandler):
    """A request's line and headers, parsed by the standard library. `refusal` is set when they are malformed."""

    protocol_version = "HTTP/1.1"

    def __init__(self, head: bytes) -> None:
        self.rfile = io.BytesIO(head)
        self.raw_requestline = self.rfile.readline()
        self.refusal: HTTPStatus | None = None
        is_parsed = self.parse_request()
        is_sound = is_parsed and self.request_version != "HTTP/0.9" and not self.headers.defects
        if self.refusal is None and not (is_sound and _HEAD.fullmatch(head)):
            self.send_error(HTTPStatus.BAD_REQUEST)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Remember how the parser refuses the request."""
        self.refusal = HTTPStatus(code)
        self.close_connection = True

    def handle_expect_100(self) -> bool:
        """Ask for no body: the final answer follows at once, see RFC 9110, section 10.1.1."""
        return True

    @property
    def has_body(self) -> bool:
        """Whether a body follows. None is ever used, nor told apart from a next request: the connection ends."""
        return self.header("Content-Length") not in ("", "0") or "Transfer-Encoding" in self.headers

    def header(self, name: str) -> str:
        """Return a header's value, all of them joined if it is there more than once, "" if it is not."""
        return ", ".join(self.headers.get_all(name, ()))


class Costly:
    """Content that is the same for everybody: clients that ask all the time cost a small part of a core, not all of it.

    `make` is called by one of them at a time, while the others wait for what it makes.
    """

    def __init__(self, make: Callable[[], bytes], clock: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._clock = clock
        self._lock = threading.Lock()
        self._content = b""
        self._due = float("-inf")

    def get(self) -> bytes:
        """Return the content, made just now or not long ago for how long it takes."""
        with self._lock:
            began = self._clock()
            if began >= self._due:
                self._content = self._make()
                ended = self._clock()
                self._due = ended + AGAIN * (ended - began)
            return self._content


class Server:
    """Listens from when it is made, answers from `start` to `stop`."""

    def __init__(  # noqa: PLR0913  every bound is a test's to lower
        self,
        address: str,
        app: App,
        web: WebConfig | None = None,
        *,
        slots: int = 32,
        slots_per_peer: int = 8,
        request_deadline: float = 5.0,
        idle_deadline: float = 75.0,
        log: Any = None,
    ) -> None:
        """Bind `address`, which is `HOST:PORT`, `[IPV6]:PORT` or `:PORT`; raises ConfigError or StartError."""
        self._app = app
        self._web = web or WebConfig("")
        self._slots = Slots(slots, slots_per_peer)
        self._request_deadline = request_deadline
        self._idle_deadline = idle_deadline
        self._log = structlog.get_logger() if log is None else log
        self._is_stopping = False
        self._host, self._listener = _listen(address)
        self._spares = Spares(SPARES)
        self._status = Costly(lambda: msgspec.json.encode(app.status()))
        self._page = Costly(lambda: statuspage.render(app.status(statuspage.ROWS)))
        self._paused_page = Costly(lambda: statuspage.render(app.status(statuspage.ROWS), is_paused=True))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="web", daemon=True)
        self._routes: dict[str, tuple[tuple[str, ...], Callable[[Request], Answer]]] = {
            "/": (("GET", "HEAD"), self._answer_status_page),
            "/metrics": (("GET", "HEAD"), self._answer_metrics),
            "/api/v1/status": (("GET", "HEAD"), self._answer_status),
            "/-/healthy": (("GET", "HEAD"), self._answer_healthy),
            "/-/ready": (("GET", "HEAD"), self._answer_ready),
            "/-/reload": (("POST", "PUT"), self._answer_reload),
        }

    @property
    def url(self) -> str:
        """Where the server is, as this node's own browser would say."""
        scheme = "http" if self._web.context is None else "https"
        host = "localhost" if self._host in _ANY else self._host
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening, let answers that are on their way arrive, and close; returns within a second."""
        self._is_stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept; close alone would not
        if self._thread.is_alive():
            self._thread.join(STOP_WITHIN)
        self._listener.close()
        self._slots.clear(STOP_WITHIN)
        self._spares.close()

    def use(self, web: WebConfig) -> None:
        """Take over new certificates, users and headers. Open connections end after their next answer."""
        self._web = web

    # -- connections --

    def _accept(self) -> None:
        has_failed = False
        while not self._is_stopping:
            try:
                sock, address = self._listener.accept()
            except OSError as error:
                if self._is_stopping:
                    return
                if error.errno in (errno.EMFILE, errno.ENFILE) and self._spares.give():
                    continue
                if not has_failed:
                    self._log.error("connections not accepted", error=error.strerror)
                has_failed = True
                time.sleep(PAUSE)
            else:
                has_failed = False
                self._admit(Connection(sock, address[0], self._request_deadline))

    def _admit(self, connection: Connection) -> None:
        if not self._slots.enter(connection):
            connection.close()
            self._log.debug("connection refused", client=connection.address, reason="no slot")
            return
        try:
            threading.Thread(target=self._serve, args=(connection,), name="web-client", daemon=True).start()
        except RuntimeError as error:  # the limit of threads or processes is reached
            self._slots.leave(connection)
            connection.close()
            self._log.error("connection refused", client=connection.address, reason=str(error))

    def _serve(self, connection: Connection) -> None:
        web = self._web
        try:
            if web.context is not None:
                _check_certificate(web, connection.handshake(web.context))
            self._converse(connection, web)
        except OSError as error:  # whatever a client does to its connection is no error of ours
            self._log.debug("connection ended", client=connection.address, reason=str(error) or repr(error))
        except Exception:  # noqa: BLE001  a bug in one answer must not stop the others
            self._log.error("connection failed", client=connection.address, exc_info=True)
        finally:
            self._slots.leave(connection)
            connection.close()
            self._spares.refill()

    def _converse(self, connection: Connection, web: WebConfig) -> None:
        """Answer requests until one side has enough."""
        while True:
            try:
                head = connection.read_head()
            except HeadTooLarge:
                status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                connection.send([_head(_refused(status), {"Connection": "close"})], SEND_WITHIN)
                connection.linger()
                return
            if not head:
                return
            connection.work()
            request = Request(head)
            answer = self._answer(request)
            is_cut_short = request.refusal is not None or request.has_body
            is_last = is_cut_short or request.close_connection or web is not self._web or self._is_stopping
            self._send(connection, request, answer, is_last=is_last)
            if is_cut_short:
                connection.linger()
            if is_last or not connection.rest(self._idle_deadline):
                return

    def _send(self, connection: Connection, request: Request, answer: Answer, *, is_last: bool) -> None:
        extra = dict(self._web.headers)
        if is_last:
            extra["Connection"] = "close"
        elif request.request_version == "HTTP/1.0":
            extra["Connection"] = "keep-alive"
        is_head = request.refusal is None and request.command == "HEAD"
        connection.send([_head(answer, extra), *(() if is_head else answer.body)], SEND_WITHIN)
        self._log.debug("answered", client=connection.address, request=request.requestline, status=answer.status.value)

    # -- answers --

    def _answer(self, request: Request) -> Answer:
        if request.refusal is not None:
            return _refused(request.refusal)
        try:
            return self._refuse_stranger(request) or self._route(request)
        except Exception:  # noqa: BLE001  a bug in one answer must not stop the others
            self._log.error("request failed", request=request.requestline, exc_info=True)
            return _refused(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _refuse_stranger(self, request: Request) -> Answer | None:
        """Return the refusal of a client that is none of the users, if there are any."""
        users = self._web.users
        try:
            if users is None or users.admit(request.header("Authorization"), self._request_deadline):
                return None
        except TimeoutError:
            return _refused(
                HTTPStatus.SERVICE_UNAVAILABLE, "Too many passwords are being checked.", ("Retry-After", "1")
            )
        return _refused(HTTPStatus.UNAUTHORIZED, "", ("WWW-Authenticate", 'Basic realm="ullage", charset="UTF-8"'))

    def _route(self, request: Request) -> Answer:
        try:
            path = urllib.parse.urlsplit(request.path).path
        except ValueError:
            return _refused(HTTPStatus.BAD_REQUEST)
        if path not in self._routes:
            return _refused(HTTPStatus.NOT_FOUND)
        methods, function = self._routes[path]
        if request.command not in methods:
            allowed = ", ".join(methods)
            return _refused(HTTPStatus.METHOD_NOT_ALLOWED, f"Only {allowed} here.", ("Allow", allowed))
        return function(request)

    def _answer_metrics(self, request: Request) -> Answer:
        form = choose_form(request.header("Accept"))
        gzip = accepts_gzip(request.header("Accept-Encoding"))
        headers = (("Vary", "Accept, Accept-Encoding"), *((("Content-Encoding", "gzip"),) if gzip else ()))
        return Answer(HTTPStatus.OK, CONTENT_TYPES[form], self._app.metrics(form, gzip=gzip), headers)

    def _answer_healthy(self, _request: Request) -> Answer:
        return _text(HTTPStatus.OK, "Ullage is healthy.")

    def _answer_ready(self, _request: Request) -> Answer:
        if self._app.is_ready():
            return _text(HTTPStatus.OK, "Ullage is ready.")
        return _text(HTTPStatus.SERVICE_UNAVAILABLE, "Ullage is not ready: its first round is not complete.")

    def _answer_reload(self, _request: Request) -> Answer:
        if not self._app.lifecycle:
            return _text(HTTPStatus.FORBIDDEN, "Lifecycle API is not enabled.")
        try:
            self._app.reload()
        except ConfigError as error:
            return _text(HTTPStatus.BAD_REQUEST, str(error))
        return _text(HTTPStatus.OK, "Configuration reloaded.")

    def _answer_status(self, _request: Request) -> Answer:
        return Answer(HTTPStatus.OK, "application/json", [self._status.get()])

    def _answer_status_page(self, request: Request) -> Answer:
        is_paused = urllib.parse.urlsplit(request.path).query == statuspage.PAUSED
        headers = (
            ("Content-Security-Policy", statuspage.CONTENT_SECURITY_POLICY),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
        )
        return Answer(
            HTTPStatus.OK, "text/html; charset=utf-8", [(self._paused_page if is_paused else self._page).get()], headers
        )


def _listen(address: str) -> tuple[str, socket.socket]:
    """Return the host and a listening socket; no host, or `::`, is every address of both families."""
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65535:  # noqa: PLR2004
        raise ConfigError(f"--web.listen-address: {address!r}: expected HOST:PORT, such as 0.0.0.0:10940 or [::]:10940")
    host, port = match["host"].strip("[]"), int(match["port"])
    try:
        has_both = host in ("", "::") and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if ":" in host or has_both else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=has_both)
    except OSError as error:
        raise StartError(f"--web.listen-address {address}: {error.strerror or error}") from error
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by each connection
    return host, listener


def _check_certificate(web: WebConfig, secured: ssl.SSLSocket) -> None:
    if not web.admits(secured.getpeercert()):
        raise ConnectionRefusedError("the certificate has no name of client_allowed_sans")


def _head(answer: Answer, extra: dict[str, str]) -> bytes:
    """Return the status line and the headers."""
    headers = {
        "Date": email.utils.formatdate(usegmt=True),
        "Content-Type": answer.content_type,
        "Content-Length": str(sum(map(len, answer.body))),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        **dict(answer.headers),
        **extra,
    }
    lines = [f"HTTP/1.1 {answer.status.value} {answer.status.phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def _text(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> Answer:
    return Answer(status, _TEXT, [f"{text}\n".encode("utf-8", "replace")], headers)


def _refused(status: HTTPStatus, text: str = "", *headers: tuple[str, str]) -> Answer:
    return _text(status, text or f"{status.phrase}.", *headers)
