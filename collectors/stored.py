"""What a store of layers is made of: layers, links, and those that no runtime knows of from one scan to the next."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from agent.errors import Failed, HostError, Vanished
from agent.host import Host

State = Literal["image", "container", "build", "orphan", "removing", "incomplete"]
Why = Literal["dangling", "missing", "empty"]

MIN_AGE = 3600.0  # seconds for which nobody has changed an orphan: a pull unpacks for minutes before it is known
APART = 10.0  # seconds between the two scans that an orphan takes: doctor has these between its two readings
AGAIN = 300.0  # seconds between looks at what is mounted, or being unpacked, though no runtime knows it
MOST_LAYERS = 30_000  # of one store
TICK = 1.0  # seconds: a directory that changed just now may change again without another time


Times = tuple[tuple[int, int, int] | None, ...]  # signatures of files and directories


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's directory. `path` is the host's, `content` the subdirectory with its files (`diff`, `fs`).

    `identity` is inode and mtime (nanoseconds) of that subdirectory: another layer by the same name has another.
    `extras` are inodes that are in no subdirectory of it: files directly in its directory, and the links in `l/` that
    lead to it. `container` is the whole id of the container that writes to it; of what `ctr` has made it is the name.
    `is_settled` is False while somebody may still unpack into it, and where its files are not to be counted. `size` is
    bytes as the runtime noted them: for Docker the sum of its files' sizes, for containerd what it takes on the disk,
    for containers/storage the archive that it was unpacked from. `lowers` are below it.
    """

    name: str
    state: State
    path: str
    content: str
    identity: tuple[int, int]
    extras: int
    container: str = ""
    is_settled: bool = True
    size: int | None = None
    lowers: int = 0


@dataclass(frozen=True, slots=True)
class BrokenLink:
    """A link in `l/` that a layer in use needs: `layer` is whose it is, empty if nobody knows.

    `containers` are the whole ids of those that cannot start, `images` how many cannot be run. Where a layer's own
    `link` or `lower` is empty, `link` is empty as well.
    """

    layer: str
    link: str
    why: Why
    containers: tuple[str, ...]
    images: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What a store held. `links` counts live, dangling, missing and empty ones.

    `is_whole` is False where not all that the runtime knows could be read: then nobody can tell what is an orphan.
    `litter` are dangling links that no layer names; `write_sets` what interrupted pulls have left, as host paths.
    """

    layers: tuple[Layer, ...]
    links: Mapping[str, int] = field(default_factory=dict)
    broken: tuple[BrokenLink, ...] = ()
    litter: tuple[str, ...] = ()
    write_sets: tuple[str, ...] = ()
    is_whole: bool = True


class Store(Protocol):
    """A place of layers. `path` is its directory as the host knows it. `is_live` is None where nobody can tell.

    A store that is not live was left behind by another driver: what its runtime's files say of it is old.
    """

    @property
    def runtime(self) -> str:
        """What keeps it: docker, containerd, podman, cri-o or containers-storage."""
        ...

    @property
    def driver(self) -> str:
        """How the runtime calls it: overlay2, overlayfs or overlay."""
        ...

    @property
    def path(self) -> str:
        """The directory that its layers are in."""
        ...

    @property
    def is_live(self) -> bool | None:
        """Whether the runtime uses it now."""
        ...

    @property
    def unknown(self) -> Unknown:
        """What it remembers of layers that nobody knows, and how old an orphan must be."""
        ...

    def signature(self, host: Host) -> Hashable:
        """Return what is another one whenever a new scan could find something else. Costs a handful of stats."""
        ...

    def scan(self, host: Host, mounted: Collection[str], now: float) -> Scan:
        """Read what is there. `mounted` are the directories that overlay mounts use, `now` seconds since the epoch.

        Raises a HostError if its directory cannot be read. Where what the runtime knows cannot be read, no layer is
        called an orphan, and the error is counted.
        """
        ...


class Look(NamedTuple):
    """What a layer's directory is by itself. `changed` is when somebody last did, in seconds since the epoch.

    `is_elsewhere` is whether its content is no directory in it, but a link to one.
    """

    identity: tuple[int, int]
    files: int
    changed: float
    is_elsewhere: bool = False


def look(host: Host, path: str, content: str) -> Look | None:
    """Look at a layer's directory, not into its content; None if it is gone."""
    try:
        entries = host.entries(path)
        own = host.lstat(path)
        inside = host.lstat(f"{path}/{content}") if entries.get(content) else own
    except Vanished:
        return None
    files = sum(not is_directory for is_directory in entries.values())
    # a change of a time is a change of ctime: archives bring the times of their files, which may be to come
    changed = max(own.st_ctime, inside.st_ctime)
    return Look((inside.st_ino, inside.st_mtime_ns), files, changed, entries.get(content) is False)


def look_at(host: Host, path: str, names: Iterable[str], content: str) -> dict[str, Look]:
    """Look at these layers of a store's directory; those that are gone are left out."""
    return {name: seen for name in names if (seen := look(host, f"{path}/{name}", content)) is not None}


def directories(host: Host, path: str) -> list[str]:
    """Return the names of the directories in a store's directory, sorted. Raises Failed if they are too many."""
    found = sorted(name for name, is_directory in host.entries(path).items() if is_directory)
    if len(found) > MOST_LAYERS:
        raise Failed(path, f"has more than {MOST_LAYERS} layers")
    return found


def mounted_below(path: str, mounted: Collection[str]) -> set[str]:
    """Return the names of a store's directories that overlay mounts use."""
    start = path.rstrip("/") + "/"
    return {each[len(start) :].partition("/")[0] for each in mounted if each.startswith(start)}


@dataclass(slots=True)
class Unknown:
    """Layers that their runtime does not know, from scan to scan: orphans once they are old, and were seen twice.

    `due` is when a scan finds something else even if no file changes, in seconds since the epoch. `since` is when each
    was first seen to be unknown, by name and inode.
    """

    min_age: float = MIN_AGE
    apart: float = APART
    due: float | None = None
    since: Mapping[tuple[str, int], float] = field(default_factory=dict)
    _turn: Iterator[int] = field(default_factory=itertools.count)

    def judge(self, looks: Mapping[str, Look], kept: Collection[str], now: float, *, is_known: bool) -> set[str]:
        """Return which of these unknown layers are orphans; those in `kept` never are, nor any if not `is_known`.

        `is_known` says that all that the runtime knows could be read.
        """
        self.due = None
        if not is_known:
            self.look_again(now + self.apart)
            return set()
        before, orphans = self.since, set()
        after: dict[tuple[str, int], float] = {}
        self.since = after
        for name, seen in looks.items():
            key = name, seen.identity[0]
            since = after[key] = min(before.get(key, now), now)
            due = max(since + self.apart, seen.changed + self.min_age)
            if name in kept:
                self.look_again(max(due, now + AGAIN))  # what keeps it may end without a trace in the store
            elif since < now and now >= due:
                orphans.add(name)
            else:
                self.look_again(due)
        return orphans

    def look_again(self, at: float) -> None:
        """Have a scan at a time, if none is to come before it."""
        self.due = at if self.due is None else min(self.due, at)

    def stamp(self, now: float) -> int | None:
        """Return another number each time while a scan is due, and None before."""
        return next(self._turn) if self.due is not None and now >= self.due else None

    def is_old(self, seen: Look, now: float) -> bool:
        """Return whether nobody has changed a layer for long enough."""
        return now - seen.changed >= self.min_age


def newest(found: Times) -> float:
    """Return when the last of them has changed, in seconds since the epoch."""
    return max((each[1] for each in found if each is not None), default=0) / 1e9


def times(host: Host, paths: Collection[str]) -> Times:
    """Return the signatures of files and directories; None for what is not there, or is refused."""
    found: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            found.append(host.signature(path))
        except HostError:
            found.append(None)
    return tuple(found)
