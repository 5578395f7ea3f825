"""Docker's API: the few calls that we make of it. Each has a deadline and a size, and raises nothing but HostErrors.

Podman answers the same calls. The SDK is imported with the first client: 8 MiB that only a node with a socket pays. Its
connections are ours: a daemon may hang, drip, or never come to an end.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any, Protocol

from agent.errors import Failed, HostError, Stuck, from_os

ANSWER = 10.0  # seconds for one answer
ANSWER_MOST = 8 << 20  # bytes of one answer, and between two events: 25,000 volumes
SILENCE = 60.0  # seconds without an event; there is no heartbeat, so only a new question tells whether anybody is there
SECOND = 1_000_000_000  # nanoseconds


class Api(Protocol):
    """What collectors ask of a Docker daemon; answers are the API's own JSON."""

    def info(self) -> Any:
        """Return what the daemon says of itself. It counts containers and runs `runc --version`: minutes apart."""
        ...

    def version(self) -> Any:
        """Return what the daemon said of its version and its parts' when the client was made."""
        ...

    def volumes(self) -> Any:
        """Return all volumes."""
        ...

    def volume(self, name: str) -> Any:
        """Return one volume."""
        ...

    def volume_events(self, since: int, until: int | None = None) -> Iterator[Any]:
        """Yield what happened to volumes from `since` on, in nanoseconds.

        Ends at `until`, if given, else after a silence or with the daemon.
        """
        ...

    def close(self) -> None:
        """End what is out, from any thread."""
        ...


class _Stream(socket.socket):
    """A socket whose reads have one deadline together, and a size: a time-out for each begins anew with each byte."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self.grant(seconds)
        self.settimeout(seconds)
        try:
            self.connect(path)
        except BaseException:
            self.close()
            raise

    def grant(self, seconds: float) -> None:
        """Begin anew: so long may it take, and ANSWER_MOST bytes, until the next call of this."""
        self._until = time.monotonic() + seconds
        self._left = ANSWER_MOST

    def recv_into(self, *arguments: Any) -> int:
        """Read, as http.client does it."""
        if self._left <= 0:
            raise OSError(errno.EMSGSIZE, f"Docker's API: an answer of more than {ANSWER_MOST} bytes")
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)
        count = super().recv_into(*arguments)
        self._left -= count
        return count

    def end(self) -> None:
        """Close it now: `close` would wait for whoever holds an answer that was not read to its end."""
        if (descriptor := self.detach()) >= 0:
            os.close(descriptor)


class DockerApi:
    """A client on one socket, with a connection for each question. For one thread, but for `close`."""

    def __init__(self, path: str, answer: float = ANSWER, silence: float = SILENCE) -> None:
        self._path = path
        self._answer = answer
        self._silence = silence
        self._within = answer
        self._stream: _Stream | None = None  # of the question that is asked now
        self._open: set[_Stream] = set()  # a volume may be asked for between two events
        self._is_closed = False
        with self._asking(answer):
            import docker  # noqa: PLC0415  see above

            with contextlib.closing(self._client_of(docker.constants.MINIMUM_DOCKER_API_VERSION)) as client:
                self._version = client.version(api_version=False)
            self._client = self._client_of(self._version["ApiVersion"])

    def info(self) -> Any:
        """Return what the daemon says of itself."""
        with self._asking(self._answer):
            return self._client.info()

    def version(self) -> Any:
        """Return what the daemon said of its version and its parts'; it is not asked again."""
        return self._version

    def containers(self) -> Any:
        """Return all containers, running or not."""
        with self._asking(self._answer):
            return self._client.containers(all=True)

    def volumes(self) -> Any:
        """Return all volumes."""
        with self._asking(self._answer):
            return self._client.volumes()["Volumes"] or []

    def volume(self, name: str) -> Any:
        """Return one volume."""
        with self._asking(self._answer):
            return self._client.inspect_volume(name)

    def volume_events(self, since: int, until: int | None = None) -> Iterator[Any]:
        """Yield what happened to volumes; see Api."""
        try:
            with self._asking(self._silence):
                for line in self._events(since, until):
                    yield json.loads(line)
                    if self._stream is not None:
                        self._stream.grant(self._silence)
        except (Stuck, _Ended):
            if until is not None:
                raise

    def _events(self, since: int, until: int | None) -> Iterator[bytes]:
        """Yield events, a line for each. The SDK's own method takes whatever breaks the stream for its end."""
        asked = {"since": _seconds(since), "until": _seconds(until) if until is not None else None}
        url = f"{self._client.base_url}/v{self._client.api_version}/events"
        response = self._client.get(url, params={**asked, "filters": '{"type":["volume"]}'}, stream=True)
        response.raise_for_status()
        return (line for line in response.iter_lines(chunk_size=None) if line.strip())

    def close(self) -> None:
        """End what is out, from any thread."""
        self._is_closed = True
        for stream in list(self._open):
            _cut(stream)
        self._client.close()

    def _connect(self) -> _Stream:
        self._stream = stream = _Stream(self._path, self._within)
        self._open.add(stream)
        if self._is_closed:  # meanwhile, so that nobody else cuts it
            _cut(stream)
        return stream

    def _client_of(self, version: str) -> Any:
        """Return a client of the SDK whose connections are `_Stream`s."""
        import docker  # noqa: PLC0415  see above
        from docker.transport import unixconn  # noqa: PLC0415

        api = self

        class Connection(unixconn.UnixHTTPConnection):  # type: ignore[misc]  # the SDK has no types
            def connect(self) -> None:
                self.sock = api._connect()

        class Pool(unixconn.UnixHTTPConnectionPool):  # type: ignore[misc]  # the SDK has no types
            def _new_conn(self) -> Connection:
                return Connection(self.base_url, self.socket_path, self.timeout)

        class Adapter(docker.transport.UnixHTTPAdapter):  # type: ignore[misc]  # the SDK has no types
            def get_connection(self, url: str, proxies: object = None) -> Pool:  # noqa: ARG002
                return Pool(url, self.socket_path, self.timeout)

        class Client(docker.APIClient):  # type: ignore[misc]  # the SDK has no types
            def send(self, request: Any, **options: Any) -> Any:
                response = super().send(request, **(options | {"stream": True}))
                if "Content-Encoding" in response.headers:  # nobody asked for it, and what it unpacks to has no size
                    raise OSError(errno.EPROTO, "Docker's API: an answer that is encoded")
                return response

        client = Client(base_url=f"unix://{self._path}", version=version, timeout=self._answer)
        client.mount("http+docker://", Adapter(f"http+unix://{self._path}", self._answer))
        client.headers.update({"Connection": "close", "Accept-Encoding": "identity"})
        return client

    @contextlib.contextmanager
    def _asking(self, seconds: float) -> Iterator[None]:
        """Have one question, and its answer, within so many seconds."""
        before, self._stream, self._within = self._stream, None, seconds
        try:
            yield
        except Exception as error:
            raise _typed(self._path, error) from error
        finally:
            stream, self._stream = self._stream, before
            if stream is not None:
                self._open.discard(stream)
                stream.end()


def _cut(stream: _Stream) -> None:
    """Wake whoever reads it, with its end."""
    with contextlib.suppress(OSError):  # it has ended by itself
        stream.shutdown(socket.SHUT_RDWR)


class _Ended(Failed):
    """The daemon ended in the middle of its answer."""


def _seconds(nanoseconds: int) -> str:
    """Return a time as the API wants it: `1795473853.356112003`."""
    return f"{nanoseconds // SECOND}.{nanoseconds % SECOND:09d}"


def _typed(path: str, error: BaseException) -> HostError:
    """Return the HostError for what the SDK raised: what the system said lies at the end of a chain of exceptions."""
    from requests.exceptions import ChunkedEncodingError  # noqa: PLC0415  the SDK has imported it

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TimeoutError):
            return Stuck(path, "Docker's API does not answer")
        if isinstance(cause, OSError) and isinstance(cause.errno, int):
            return from_os(path, cause)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, ChunkedEncodingError):
        return _Ended(path, "Docker's API: the daemon ended")
    return Failed(path, f"Docker's API: {error}"[:500])
