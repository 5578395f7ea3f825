"""containerd's snapshots in its overlayfs snapshotter, also those of Docker with containerd's image store.

Source: containerd's plugins/snapshots/overlay/overlay.go and core/snapshots/storage/bolt.go; below a root
  io.containerd.snapshotter.v1.overlayfs/snapshots/ID/{fs,work}, and there new-N (being made), rm-N (being removed)
  io.containerd.snapshotter.v1.overlayfs/metadata.db, which alone tells what a snapshot is; see readers/bolt.py
  io.containerd.content.v1.content/ingest/HASH of a download, and of those that never were finished
A snapshot's name is that of what was made for it: a container's id, `sha256:…` of an image's layer, 25 characters of
BuildKit's, `extract-…` while an image's layer is unpacked, `migration-…` while Docker copies one from its old store.
Where containerd's cache of layer contents is on, fs is a link into cache/: nobody counts what lies there.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from agent.errors import HostError, Malformed, Vanished
from agent.host import Host
from collectors.boltfile import read_whole
from collectors.readers import bolt
from collectors.readers.bolt import Snapshot
from collectors.stored import (
    TICK,
    Layer,
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

CONTENT = "fs"
SNAPSHOTTER = "io.containerd.snapshotter.v1.overlayfs"
_ID = re.compile(r"[1-9][0-9]{0,18}")
_BUILD = re.compile(r"[a-z0-9]{25}")
_UNPACKED = ("extract-", "migration-")
_INIT = re.compile(r"[0-9a-f]{64}-init(-key)?")  # Docker's, between a container's and its image's


@dataclass(slots=True)
class ContainerdStore:
    """The directory of an overlayfs snapshotter; `root` is that of the containerd that it belongs to."""

    root: str
    path: str
    runtime: str = "containerd"
    unknown: Unknown = field(default_factory=Unknown)
    is_live: bool | None = None
    clock: Callable[[], float] = time.time
    driver: str = "overlayfs"

    def signature(self, host: Host) -> Hashable:
        """Return what is another one whenever a new scan could find something else."""
        return self._watched(host), self.unknown.stamp(self.clock())

    def _watched(self, host: Host) -> Times:
        return times(host, [f"{self.path}/snapshots", f"{self.path}/metadata.db", self._ingest])

    @property
    def _ingest(self) -> str:
        return f"{self.root}/io.containerd.content.v1.content/ingest"

    def scan(self, host: Host, mounted: Collection[str], now: float) -> Scan:
        """Read what is there; see Store."""
        changed = newest(self._watched(host))
        base = f"{self.path}/snapshots"
        names = directories(host, base)
        snapshots = self._snapshots(host)
        looks = look_at(host, base, names, CONTENT)
        known = snapshots or {}
        strangers = {name: seen for name, seen in looks.items() if name not in known and _ID.fullmatch(name)}
        in_use = mounted_below(base, mounted)
        orphans = self.unknown.judge(strangers, in_use, now, is_known=snapshots is not None)
        if now - changed < TICK:
            self.unknown.look_again(now)
        if any(seen.is_elsewhere for seen in looks.values()):
            host.skip(Malformed(base, "layers have their files elsewhere: what the cache of them holds is not counted"))
        depths = _depths(known.values())
        layers = []
        for name, seen in looks.items():
            snapshot = known.get(name)
            state = "orphan" if name in orphans else _state(name, snapshot)
            is_writer = snapshot is not None and state == "container" and snapshot.kind == "active"
            layers.append(
                Layer(
                    name,
                    state,
                    f"{base}/{name}",
                    CONTENT,
                    seen.identity,
                    seen.files,
                    snapshot.name if snapshot is not None and is_writer else "",
                    not seen.is_elsewhere
                    and (
                        state != "incomplete"
                        or (snapshot is None and name not in in_use and self.unknown.is_old(seen, now))
                    ),
                    snapshot.size if snapshot is not None else None,
                    depths.get(snapshot.key, 0) if snapshot is not None else 0,
                )
            )
        write_sets = tuple(self._old_ingests(host, now))
        return Scan(tuple(layers), write_sets=write_sets, is_whole=snapshots is not None)

    def _snapshots(self, host: Host) -> dict[str, Snapshot] | None:
        """Return what containerd knows by the names of the directories; None where it cannot be read."""
        path = f"{self.path}/metadata.db"
        try:
            try:
                return {str(each.directory): each for each in bolt.parse_snapshots(read_whole(host, path))}
            except ValueError as error:
                raise Malformed(path, str(error)) from error
        except Vanished:
            return None  # containerd makes it with the first snapshot; where there is none, nobody knows any
        except HostError as error:
            host.skip(error)
            return None

    def _old_ingests(self, host: Host, now: float) -> Iterator[str]:
        for name in host.listed(self._ingest):
            path = f"{self._ingest}/{name}"
            with host.skipping(), contextlib.suppress(Vanished):
                # a download goes on in `data`, and `updatedat` is written anew from time to time
                inside = [host.lstat(f"{path}/{each}").st_ctime for each in host.names(path)]
                if now - max([host.lstat(path).st_ctime, *inside]) >= self.unknown.min_age:
                    yield path


def _state(name: str, snapshot: Snapshot | None) -> State:
    if snapshot is None:
        return "removing" if name.startswith("rm-") else "incomplete"
    if _BUILD.fullmatch(snapshot.name):
        return "build"
    if _INIT.fullmatch(snapshot.name):
        return "container"
    if snapshot.kind == "snapshot":
        return "container"  # of which it is a copy
    if snapshot.kind != "active":
        return "image"  # a view holds nothing of its own, and nobody writes to it
    return "incomplete" if snapshot.name.startswith(_UNPACKED) else "container"


def _depths(snapshots: Collection[Snapshot]) -> Mapping[str, int]:
    """Return how many snapshots are below each, by key. One that is below itself is taken for the lowest."""
    parents = {each.key: each.parent for each in snapshots}
    depths: dict[str, int] = {}
    for key in parents:
        way: dict[str, None] = {}
        at = key
        while at in parents and at not in depths and at not in way:
            way[at] = None
            at = parents[at]
        depth = depths.get(at, -1)
        for each in reversed(way):
            depth += 1
            depths[each] = depth
    return depths
