"""Docker's API: the few calls that we make of it. Each has a time-out, and raises nothing but HostErrors.

Podman answers the same calls. The SDK is imported with the first client: 8 MiB that only a node with a socket pays.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any, Protocol

from agent.errors import Failed, HostError, Stuck, from_os

ANSWER = 10.0  # seconds for one answer
SILENCE = 60.0  # seconds without an event; there is no heartbeat, so only a new question tells whether anybody is there
SECOND = 1_000_000_000  # nanoseconds


class Api(Protocol):
    """What collectors ask of a Docker daemon; answers are the API's own JSON."""

    def info(self) -> Any:
        """Return what the daemon says of itself. It counts containers and runs `runc --version`: minutes apart."""
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


class DockerApi:
    """A client on one socket. For one thread, but for `close`."""

    def __init__(self, path: str, answer: float = ANSWER, silence: float = SILENCE) -> None:
        import docker  # noqa: PLC0415  see above

        class Client(docker.APIClient):  # type: ignore[misc]  # the SDK has no types
            def __init__(self, **options: Any) -> None:
                try:
                    super().__init__(**options)  # which asks for the version
                except Exception:
                    self.close()
                    raise

            # the SDK reads events without any time-out: a daemon that hangs would keep the thread for ever
            def send(self, request: Any, **options: Any) -> Any:
                options["timeout"] = options.get("timeout") or silence
                return super().send(request, **options)

        self._path = path
        self._answer = answer
        self._stream: Any = None
        with self._typed():
            self._reach()
            self._client = Client(base_url=f"unix://{path}", timeout=answer)
            # the SDK keeps a pool of connections for each URL, and `since` makes each a new one
            self._client.headers["Connection"] = "close"

    def info(self) -> Any:
        """Return what the daemon says of itself."""
        with self._typed():
            return self._client.info()

    def volumes(self) -> Any:
        """Return all volumes."""
        with self._typed():
            self._reach()
            return self._client.volumes()["Volumes"] or []

    def volume(self, name: str) -> Any:
        """Return one volume."""
        with self._typed():
            return self._client.inspect_volume(name)

    def volume_events(self, since: int, until: int | None = None) -> Iterator[Any]:
        """Yield what happened to volumes; see Api."""
        try:
            with self._typed():
                filters = {"type": "volume"}
                end = _seconds(until) if until is not None else None
                self._stream = self._client.events(since=_seconds(since), until=end, filters=filters, decode=True)
                yield from self._stream
        except Stuck:
            if until is not None:
                raise
        finally:
            self._end()

    def close(self) -> None:
        """End what is out, from any thread."""
        self._end()
        self._client.close()

    def _reach(self) -> None:
        # the SDK leaves a socket that cannot connect to the garbage collector
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(self._answer)
            probe.connect(self._path)

    def _end(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(OSError, AttributeError):  # it may have ended by itself, and have no socket left
                stream.close()

    @contextlib.contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise _typed(self._path, error) from error


def _seconds(nanoseconds: int) -> str:
    """Return a time as the API wants it: `1795473853.356112003`."""
    return f"{nanoseconds // SECOND}.{nanoseconds % SECOND:09d}"


def _typed(path: str, error: BaseException) -> HostError:
    """Return the HostError for what the SDK raised: what the system said lies at the end of a chain of exceptions."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TimeoutError):
            return Stuck(path, "Docker's API does not answer")
        if isinstance(cause, OSError) and isinstance(cause.errno, int):
            return from_os(path, cause)
        cause = cause.__cause__ or cause.__context__
    return Failed(path, f"Docker's API: {error}"[:500])
