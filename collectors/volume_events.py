"""The volumes of one Docker daemon, followed by its events in a thread of its own, and the events that nobody told.

The daemon keeps 256 events of all kinds in memory (moby's daemon/events) and forgets them when it restarts. So the
volumes are listed again after each connection, each silence and every minute: one that came or went without an event
is an event missed. A volume that came and went in one gap leaves no trace.
Docker tells `create` also when a container starts with a volume that exists: only unknown ones are new.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from agent import statefile
from agent.dockerapi import Api
from agent.errors import HostError, Malformed
from collectors.readers.docker import Event, Volume, parse_event, parse_volume

LIST_EVERY = 60.0  # seconds
SETTLE = 0.5  # seconds: the event of a volume may come a little after the volume
PAUSES = 1.0, 30.0  # seconds between two connections, and at most
REMEMBERED = 512  # events: a ring of the daemon holds half of that
CHANGES = 1000  # a bound
VERSION = 1

Key = tuple[int, str, str]


class Kept(NamedTuple):
    """What outlives the agent: the last event's time, the events of that time, the names unless they were too many."""

    since: int
    seen: tuple[Key, ...]
    names: tuple[str, ...] | None


class Change(NamedTuple):
    """A volume that came or went, told by an event."""

    event: Event
    volume: Volume


class View(NamedTuple):
    """What is known now. `volumes` is None until the first list; `counts` are events by action."""

    is_connected: bool
    volumes: Mapping[str, Volume] | None
    counts: Mapping[str, int]
    missed: int
    changes: tuple[Change, ...]


@dataclass(slots=True)
class Feed:
    """The thread, and what it knows. `connect` raises HostErrors; `now` is the time in nanoseconds after the epoch."""

    socket: str
    connect: Callable[[str], Api]
    kept: Kept | None = None
    now: Callable[[], int] = time.time_ns
    settle: float = SETTLE
    list_every: float = LIST_EVERY
    is_settled: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread = field(init=False)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _api: Api | None = None
    _is_connected: bool = False
    _is_listed: bool = False
    _volumes: dict[str, Volume] | None = None
    _since: int | None = None
    _seen: OrderedDict[Key, None] = field(default_factory=OrderedDict)
    _counts: Counter[str] = field(default_factory=Counter)
    _missed: int = 0
    _changes: deque[Change] = field(default_factory=lambda: deque(maxlen=CHANGES))
    _errors: deque[HostError] = field(default_factory=lambda: deque(maxlen=10))

    def __post_init__(self) -> None:
        """Take up what was kept."""
        self._thread = threading.Thread(target=self._live, name="docker-volumes", daemon=True)
        if self.kept is not None:
            self._since = self.kept.since
            self._seen.update(dict.fromkeys(self.kept.seen))
            if self.kept.names is not None:
                self._volumes = {name: Volume(name, "") for name in self.kept.names}

    def begin(self) -> None:
        """Start to follow."""
        self._thread.start()

    def end(self) -> None:
        """Stop following; a thread that waits for the daemon ends with its time-out."""
        self._stop.set()
        api = self._api
        if api is not None:
            api.close()
        self._thread.join(1.0)

    def view(self) -> View:
        """Return what is known now."""
        with self._lock:
            volumes = dict(self._volumes) if self._is_listed and self._volumes is not None else None
            return View(self._is_connected, volumes, dict(self._counts), self._missed, tuple(self._changes))

    def to_keep(self) -> Kept | None:
        """Return what the next agent needs, None if nothing is known yet."""
        with self._lock:
            if self._since is None:
                return self.kept
            seen = tuple(key for key in self._seen if key[0] == self._since)
            return Kept(self._since, seen, tuple(sorted(self._volumes)) if self._volumes is not None else None)

    def take_errors(self) -> list[HostError]:
        """Return what was refused since the last call."""
        found = []
        while self._errors:
            found.append(self._errors.popleft())
        return found

    def _live(self) -> None:
        pause, longest = PAUSES
        while not self._stop.is_set():
            try:
                self._api = self.connect(self.socket)
                try:
                    while not self._stop.is_set():
                        self._sync(self._api)
                        pause = PAUSES[0]
                        self._follow(self._api)
                        self._stop.wait(pause)  # a stream that ends at once costs no core
                finally:
                    api, self._api = self._api, None
                    api.close()
            except HostError as error:
                if not self._stop.is_set():
                    self._errors.append(error)
            self._is_connected = False
            self.is_settled.set()
            self._stop.wait(pause)
            pause = min(2 * pause, longest)

    def _sync(self, api: Api) -> None:
        """List the volumes, have the events told that we do not know, and count what neither tells the other."""
        began = self.now()
        # a clock that was set back must not make us wait for it
        self._since = min(self._since or began, began)
        listed = {volume.name: volume for volume in self._parsed(api.volumes())}
        is_first = self._volumes is None
        if is_first:
            self._volumes = dict(listed)
        recent = self._replay(api, listed, began, is_first=is_first)
        if self._differing(listed, recent):
            self._stop.wait(self.settle)
            recent |= self._replay(api, listed, began, is_first=is_first)
        missed = self._differing(listed, recent)
        known = self._volumes or {}
        with self._lock:
            # what happened while the list was made is told by its event, the rest by the list
            gone = {name for name, is_there in recent.items() if not is_there}
            came = {name: known[name] for name, is_there in recent.items() if is_there and name in known}
            self._volumes = came | {name: volume for name, volume in listed.items() if name not in gone}
            self._missed += len(missed)
            self._is_listed = self._is_connected = True
        self.is_settled.set()

    def _differing(self, listed: Mapping[str, Volume], recent: Mapping[str, bool]) -> set[str]:
        return (listed.keys() ^ (self._volumes or {}).keys()) - recent.keys()

    def _replay(self, api: Api, listed: Mapping[str, Volume], began: int, *, is_first: bool) -> dict[str, bool]:
        """Apply the events up to now; return by name, for those since `began`, whether the volume is there."""
        recent = {}
        for answer in api.volume_events(self._since or 0, self.now()):
            event = self._event(answer)
            if event is not None and self._is_new(event):
                self._apply(event, listed.get, is_baseline=is_first)
                if event.time >= began and event.action in ("create", "destroy"):
                    recent[event.name] = event.action == "create"
        return recent

    def _follow(self, api: Api) -> None:
        """Take events as they come, until the daemon has been silent, the list is old, or the daemon ends."""
        began = time.monotonic()
        for answer in api.volume_events(self._since or 0):
            event = self._event(answer)
            if event is not None and self._is_new(event):
                self._apply(event, lambda name: self._described(api, name), is_baseline=False)
            if self._stop.is_set() or time.monotonic() - began >= self.list_every:
                return

    def _event(self, answer: object) -> Event | None:
        try:
            return parse_event(answer)
        except ValueError as error:
            self._errors.append(Malformed(self.socket, f"an event of Docker: {error}"[:500]))
            return None

    def _parsed(self, answers: object) -> Iterable[Volume]:
        if not isinstance(answers, list):
            raise Malformed(self.socket, "expected a list of volumes")
        for answer in answers:
            try:
                yield parse_volume(answer)
            except ValueError as error:
                self._errors.append(Malformed(self.socket, f"a volume of Docker: {error}"[:500]))

    def _described(self, api: Api, name: str) -> Volume | None:
        try:
            return parse_volume(api.volume(name))
        except (HostError, ValueError):
            return None  # gone already, or told by the next list

    def _is_new(self, event: Event) -> bool:
        """Remember an event; return whether it was not told before."""
        key = event.time, event.action, event.name
        with self._lock:
            if key in self._seen:
                return False
            self._seen[key] = None
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
            self._since = event.time
            self._counts[event.action] += 1
        return True

    def _apply(self, event: Event, describe: Callable[[str], Volume | None], *, is_baseline: bool) -> None:
        """Have a volume come or go. A baseline is a first list: what went before it was never known."""
        known = self._volumes
        assert known is not None
        if event.action == "create" and event.name not in known:
            volume = describe(event.name) or Volume(event.name, event.driver)
            with self._lock:
                known[event.name] = volume
                self._changes.append(Change(event, volume))
        elif event.action == "destroy":
            with self._lock:
                volume_gone = known.pop(event.name, None)
                if volume_gone is None and not is_baseline:
                    self._missed += 1  # it came without an event
                self._changes.append(Change(event, volume_gone or Volume(event.name, event.driver)))


def load(path: Path) -> dict[str, Kept]:
    """Return what was kept by socket."""
    return statefile.load(path, VERSION, _decode) or {}


def _decode(data: Any) -> dict[str, Kept]:
    return {
        str(socket): Kept(
            int(kept["since"]),
            tuple((int(at), str(action), str(name)) for at, action, name in kept["seen"]),
            tuple(map(str, kept["names"])) if kept["names"] is not None else None,
        )
        for socket, kept in data["daemons"].items()
    }


def encode(kept: Mapping[str, Kept]) -> Mapping[str, Any]:
    """Return what the file holds of what is known by socket."""
    return {"daemons": {socket: each._asdict() for socket, each in kept.items()}}
