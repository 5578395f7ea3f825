"""Docker's layers in its overlay2 graph driver: which images, containers and builds have them, and which nobody has.

Source: moby's daemon/graphdriver/overlay2, layer/filestore.go and layer/layer_store.go; below a data-root
  overlay2/ID/{diff,link,lower,work,merged,committed}, overlay2/l/
  image/overlay2/layerdb/sha256/CHAIN/{cache-id,size,…}; CHAIN-RANDOM-removing is one that is about to go
  image/overlay2/layerdb/mounts/CONTAINER/{mount-id,init-id}
  image/overlay2/layerdb/tmp/write-set-N of a layer that is being unpacked, and of those that never were finished
  image/overlay2/imagedb/content/sha256/IMAGE
  buildkit/snapshots.db
BuildKit's layers have ids of 25 characters; it has them in that file, or nowhere that we know: they are never orphans.
A layer that moves from BuildKit to the images is in both for a while, so BuildKit is asked first.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.errors import HostError, Malformed, Vanished
from agent.host import Host
from collectors.boltfile import read_whole
from collectors.layerlinks import Chain, Faults, affected, find_faults, read_chains, read_links, still_names
from collectors.readers import bolt, docker_layers
from collectors.stored import (
    TICK,
    BrokenLink,
    Layer,
    Look,
    Scan,
    State,
    Times,
    Unknown,
    directories,
    look_at,
    mounted_below,
    newest,
    times,
)

CONTENT = "diff"
_LAYER = re.compile(r"[0-9a-f]{64}(-init)?")
_BUILD = re.compile(r"[a-z0-9]{25}")
_CONTAINER = re.compile(r"[0-9a-f]{64}")
_REMOVING = re.compile(r"[0-9a-f]{64}-.+-removing")
PID_FILE = "run/docker.pid"  # which dockerd writes when it starts
LONGEST = 86400.0  # seconds that a layer is unpacked for at most, where nobody knows when the daemon has started
STARTING = (
    60.0  # seconds between the making of a layer and that of its write-set, of a container and its files: moments
)
_ID_MOST = 128  # bytes of a file with an id: 69 by Docker


class _WriteSet(NamedTuple):
    """Of a layer that is being unpacked, or was; seconds since the epoch."""

    path: str
    began: float
    changed: float


def _unpacked(strangers: Mapping[str, Look], unfinished: Iterable[_WriteSet]) -> set[str]:
    """Return the layers that may be being unpacked, for however long: those changed since such a work has begun."""
    since = min((each.began for each in unfinished), default=float("inf")) - STARTING
    return {name for name, seen in strangers.items() if seen.changed >= since}


@dataclass(slots=True)
class _References:
    """Who has which layers, as far as it could be read; `is_whole` is False where some of it could not."""

    images: dict[str, str] = field(default_factory=dict)  # chain ids by layer
    sizes: dict[str, int] = field(default_factory=dict)
    containers: dict[str, str] = field(default_factory=dict)  # ids by writable layer
    inits: set[str] = field(default_factory=set)  # the layers between a container's and its image's
    removing: set[str] = field(default_factory=set)
    builds: set[str] = field(default_factory=set)
    is_whole: bool = True
    unsettled: float = 0.0  # when a container's directory was made whose files come after it, or never

    def state(self, name: str) -> State | None:
        """Return what a layer is, None if nobody has it."""
        if name in self.images:
            return "image"
        if name in self.containers:
            return "container" if _CONTAINER.fullmatch(self.containers[name]) else "build"
        if name in self.inits:
            return "container"
        if name in self.removing:
            return "removing"
        return "build" if name in self.builds or _BUILD.fullmatch(name) else None


@dataclass(slots=True)
class DockerStore:
    """An overlay2 directory, and the database of images in the data-root `root`."""

    root: str
    path: str
    unknown: Unknown = field(default_factory=Unknown)
    is_live: bool | None = None
    pid_file: str = PID_FILE
    clock: Callable[[], float] = time.time
    runtime: str = "docker"
    driver: str = "overlay2"

    @property
    def _layerdb(self) -> str:
        return f"{self.root}/image/overlay2/layerdb"

    def signature(self, host: Host) -> Hashable:
        """Return what is another one whenever a new scan could find something else."""
        return self._watched(host), self.unknown.stamp(self.clock())

    def _watched(self, host: Host) -> Times:
        paths = [self.path, f"{self.path}/l", f"{self.root}/buildkit/snapshots.db", self.pid_file]
        return times(host, [*paths, *(f"{self._layerdb}/{each}" for each in ("sha256", "mounts", "tmp"))])

    def scan(self, host: Host, mounted: Collection[str], now: float) -> Scan:
        """Read what is there; see Store."""
        changed = newest(self._watched(host))
        links = read_links(host, self.path)
        names = [name for name in directories(host, self.path) if name != "l"]
        write_sets = list(self._write_sets(host))
        references = self._references(host)
        looks = look_at(host, self.path, names, CONTENT)
        chains = read_chains(host, self.path, looks)
        states = {name: references.state(name) for name in looks}
        strangers = {name: looks[name] for name in looks if states[name] is None and _LAYER.fullmatch(name)}
        unfinished = self._unfinished(host, write_sets, now)
        kept = mounted_below(self.path, mounted) | _unpacked(strangers, unfinished)
        orphans = self.unknown.judge(strangers, kept, now, is_known=references.is_whole)
        if now - changed < TICK or now - references.unsettled < STARTING:
            self.unknown.look_again(now)
        faults = find_faults(host, links, chains, looks)
        count = links.of()

        def layer(name: str, seen: Look) -> Layer:
            state = states[name]
            return Layer(
                name,
                state or ("orphan" if name in orphans else "incomplete"),
                f"{self.path}/{name}",
                CONTENT,
                seen.identity,
                seen.files + count[name],
                references.containers.get(name, "") if state == "container" else "",
                state is not None or (name not in kept and self.unknown.is_old(seen, now)),
                references.sizes.get(name),
                len(chains.get(name, Chain()).lowers or ()),
            )

        return Scan(
            tuple(layer(name, seen) for name, seen in looks.items()),
            faults.counts,
            tuple(self._broken(host, faults, chains, references)),
            faults.litter,
            tuple(each.path for each in write_sets if each not in unfinished),
            references.is_whole,
        )

    def _unfinished(self, host: Host, write_sets: Iterable[_WriteSet], now: float) -> list[_WriteSet]:
        """Return those that a daemon may be at work on. It may write to none of their files for hours."""
        started = float("-inf")  # unknown
        with contextlib.suppress(HostError):
            started = host.lstat(self.pid_file).st_mtime
        lasting = LONGEST if started == float("-inf") else float("inf")
        return [
            each
            for each in write_sets
            if now - each.changed < self.unknown.min_age or (each.began >= started and now - each.began < lasting)
        ]

    def _references(self, host: Host) -> _References:
        found = _References()
        for read in (self._read_builds, self._read_mounts, self._read_images):
            try:
                read(host, found)
            except HostError as error:
                host.skip(error)
                found.is_whole = False  # no layer is an orphan where there is no database of layers
        return found

    def _read_builds(self, host: Host, found: _References) -> None:
        path = f"{self.root}/buildkit/snapshots.db"
        if not host.exists(path):
            return
        try:
            for snapshot in bolt.parse_build_snapshots(read_whole(host, path)):
                found.builds |= {snapshot.key, snapshot.layer}
        except ValueError as error:
            raise Malformed(path, str(error)) from error

    def _read_mounts(self, host: Host, found: _References) -> None:
        base = f"{self._layerdb}/mounts"
        if not host.exists(base) and not host.listed(f"{self.root}/containers"):
            return  # the first container makes it
        for container in host.names(base):
            try:
                found.containers[self._written(host, f"{base}/{container}/mount-id")] = container
                found.inits.add(self._written(host, f"{base}/{container}/init-id"))
            except Vanished:
                with contextlib.suppress(Vanished):
                    found.unsettled = max(found.unsettled, host.lstat(f"{base}/{container}").st_ctime)

    def _read_images(self, host: Host, found: _References) -> None:
        base = f"{self._layerdb}/sha256"
        for chain in host.names(base):
            try:
                layer = self._id(host, f"{base}/{chain}/cache-id")
            except Vanished:
                continue  # it has gone since
            if _REMOVING.fullmatch(chain):
                found.removing.add(layer)
                continue
            found.images[layer] = f"sha256:{chain}"
            with host.skipping():
                found.sizes[layer] = host.read_int(f"{base}/{chain}/size")

    def _written(self, host: Host, path: str) -> str:
        """Return the id in a file that Docker makes before it writes into it: an empty one is not there yet."""
        if not host.read_start(path, 1) and self.clock() - host.lstat(path).st_ctime < STARTING:
            raise Vanished(path)
        return self._id(host, path)

    def _id(self, host: Host, path: str) -> str:
        text = host.read_start(path, _ID_MOST).decode("ascii", "replace").strip()
        if not text or len(text) == _ID_MOST:
            raise Malformed(path, "has no id in it")
        return text

    def _broken(
        self, host: Host, faults: Faults, chains: Mapping[str, Chain], references: _References
    ) -> Iterator[BrokenLink]:
        tops: Mapping[str, int] | None = None
        for broken in faults.broken:
            layers = affected(broken, chains, references.images, has_children=True)
            layers = [name for name in layers if self._is_image(host, references.images[name])]
            containers = [
                references.containers[name]
                for name in affected(broken, chains, references.containers, has_children=False)
                if not broken.link or still_names(host, f"{self.path}/{name}", broken)
            ]
            if not layers and not containers:
                continue
            if tops is None:
                tops = self._images_by_top(host)
            images = sum(tops.get(references.images[name], 0) for name in layers)
            yield BrokenLink(broken.layer, broken.link, broken.why, tuple(sorted(containers)), images)

    def _is_image(self, host: Host, chain: str) -> bool:
        """Return whether an image's layer is still there: Docker renames what it removes before it touches links."""
        return host.exists(f"{self._layerdb}/sha256/{chain.removeprefix('sha256:')}/cache-id")

    def _images_by_top(self, host: Host) -> dict[str, int]:
        """Return how many images there are by the chain id of their uppermost layer."""
        counts: dict[str, int] = {}
        base = f"{self.root}/image/overlay2/imagedb/content/sha256"
        for image in host.listed(base):
            with host.skipping():
                path = f"{base}/{image}"
                try:
                    top = docker_layers.parse_top_layer(host.read(path))
                except ValueError as error:
                    raise Malformed(path, str(error)) from error
                counts[top] = counts.get(top, 0) + 1
        return counts

    def _write_sets(self, host: Host) -> Iterator[_WriteSet]:
        base = f"{self._layerdb}/tmp"  # noqa: S108  not the system's
        for name in host.listed(base):
            if not name.startswith("write-set-"):
                continue
            path = f"{base}/{name}"
            with host.skipping(), contextlib.suppress(Vanished):
                began = host.lstat(path).st_mtime
                inside = [host.lstat(f"{path}/{each}").st_ctime for each in host.names(path)]
                yield _WriteSet(path, began, max([host.lstat(path).st_ctime, *inside]))
