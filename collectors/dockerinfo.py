"""What a Docker daemon says of its storage, asked in a thread of its own: a question can hang, and takes seconds.

And what its configuration says of that.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from agent.dockerapi import Api, DockerApi
from agent.errors import HostError, Malformed, Stuck, Vanished
from agent.host import Host
from collectors.readers.docker import Daemon, Info, parse_daemon, parse_info

ASK_EVERY = 300.0  # seconds: the daemon counts its containers for it, and runs `runc --version`
RETRY_EVERY = 30.0  # seconds after a failure
FIRST = 2.0  # seconds that a run waits for the first answer, so that one run alone has it
PID_FILE = "run/docker.pid"
DAEMON_JSON = "/etc/docker/daemon.json"
MOVE_TO_OVERLAY2 = (  # part of a remedy, which is formatted
    "docker save --output images.tar $(docker image ls --format '{{{{.Repository}}}}:{{{{.Tag}}}}'); set "
    f'"storage-driver": "overlay2" in {DAEMON_JSON}; systemctl restart docker; docker load --input images.tar   # '
    "containers are to be made anew"
)

Connect = Callable[[str], Api]
Signature = tuple[tuple[int, int, int], tuple[int, int, int] | None]


def read_daemon(host: Host, avoid: Collection[str] = ()) -> Daemon:
    """Return what daemon.json says, as an empty one where there is none. Raises a HostError if it cannot be read.

    Mount points to avoid are as in `Host.resolve`.
    """
    try:
        return parse_daemon(host.read_if_there(host.resolve(DAEMON_JSON, avoid)) or b"{}")
    except ValueError as error:
        raise Malformed(DAEMON_JSON, f"is not the JSON that we expect: {error}"[:500]) from error


@dataclass(slots=True)
class Informant:
    """One daemon. `connect` raises HostErrors."""

    socket: str
    connect: Connect = DockerApi
    clock: Callable[[], float] = time.monotonic
    first: float = FIRST
    _info: Info | None = None
    _ask_at: float = float("-inf")
    _signature: Signature | None = None
    _thread: threading.Thread | None = None
    _is_answered: threading.Event = field(default_factory=threading.Event)
    _errors: deque[HostError] = field(default_factory=lambda: deque(maxlen=10))

    def ask(self, host: Host) -> Info | None:
        """Return what the daemon said last, and ask anew if that is long ago, or the socket is another one.

        None while nothing is known: it is absent, or refuses. One that hangs is what it was before.
        """
        signature = self._sign(host)
        if signature != self._signature:  # a daemon that was started anew may have another storage driver
            self._info, self._signature, self._ask_at = None, signature, float("-inf")
            self._is_answered.clear()
        if signature is not None and self.clock() >= self._ask_at and not self._is_asking():
            self._ask_at = self.clock() + ASK_EVERY
            self._thread = threading.Thread(
                target=self._ask, args=(host.real(self.socket), signature), name="docker-info", daemon=True
            )
            self._thread.start()
            self._is_answered.wait(self.first)
        while self._errors:
            host.skip(self._errors.popleft())
        return self._info

    def _sign(self, host: Host) -> Signature | None:
        """Return what changes with the daemon. A socket may be systemd's, and the same for the next daemon."""
        found: Signature | None = None
        with host.skipping(), contextlib.suppress(Vanished):
            found = (socket := host.signature(self.socket)), None
            found = socket, host.signature(PID_FILE)
        return found

    def _is_asking(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _ask(self, path: str, signature: Signature) -> None:
        try:
            api = self.connect(path)
            try:
                info = parse_info(api.info(), api.version())
            finally:
                api.close()
            if self._signature == signature:
                self._info = info
        except HostError as error:
            self._fail(error)
        except ValueError as error:
            self._fail(Malformed(path, f"Docker's information: {error}"[:500]))
        self._is_answered.set()

    def _fail(self, error: HostError) -> None:
        self._ask_at = self.clock() + RETRY_EVERY
        self._errors.append(error)
        if not isinstance(error, Stuck):
            self._info = None

    def close(self) -> None:
        """Wait a little for a question that is out; a daemon that hangs keeps the thread until its time-out."""
        if self._thread is not None:
            self._thread.join(1.0)
