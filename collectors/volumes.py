"""Docker's volumes: how many on what filesystem, whether their mounts are there, snapshots that race with them.

Source: Docker's API (volumes, and events of type volume), else the directories DATA-ROOT/volumes/NAME; their opts.json;
DATA-ROOT/containers/ID/config.v2.json for those in use; /proc/1/mountinfo; for snapshots `zpool events -v`.
Docker mounts a local volume that has options on its directory while a container uses it. When somebody unmounts it
under a container, that one keeps its own mount, and Docker does not mount it again: the next container writes into the
directory below. A volume without options is a directory, and needs no mount.
"""

from __future__ import annotations

import contextlib
import posixpath
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agent import statefile
from agent.collector import Collector, Start, Yield
from agent.dockerapi import Api, DockerApi
from agent.errors import Denied, Malformed, Stuck, Unsupported, Vanished
from agent.finding import Finding, Found
from agent.host import Host
from agent.metric import LabelSet, Metric, label
from agent.privileges import Want
from collectors.dockerinfo import read_daemon
from collectors.readers import docker, zpool_events
from collectors.readers.docker import ACTIONS, Container, Options, Volume
from collectors.readers.mountinfo import Mount, carrier, parse, parse_visible
from collectors.readers.zpool_events import Snapshot
from collectors.volume_events import VERSION, Change, Feed, Kept, View, encode, load

FOR_ROOT = "Docker's socket and its volumes are for root alone"
FIRST_LIST = 2.0  # seconds that the first run waits for Docker, so that one run alone has its list
MISSING_FOR = 10.0  # seconds: Docker unmounts before it notes that the container has ended
RACE = 500_000_000  # nanoseconds between a volume's change and a snapshot
RACE_HELD = 600_000_000_000  # nanoseconds for which a race is told
ZPOOL = 5.0  # seconds for `zpool events`
GROUPS = 200  # of driver and filesystem with series of their own: a bound
NAMES_KEPT = 20_000
SHORT_ID = 12
REMOTE = ("9p", "afs", "autofs", "ceph", "cifs", "fuse", "glusterfs", "nfs", "smb")  # a look at them may hang
ALIASES = (("nfs", "nfs4"), ("cifs", "smb3"))

VOLUMES = Metric(
    "ullage_volumes",
    "Volumes by driver and the filesystem that they lie on; one that is not mounted now by what its options say.",
    ("driver", "filesystem"),
)
EVENTS = Metric("ullage_volume_events_total", "Events of volumes that Docker told.", ("action",), "counter")
MISSED = Metric(
    "ullage_volume_events_missed_total", "Volumes that came or went without an event told to us.", kind="counter"
)
CONNECTED = Metric("ullage_volume_events_connected", "Whether Docker tells us its events (1).")

MISSING = Finding(
    "volume-mount-missing",
    "warning",
    "The volume {target} is in use by the container {container}, but {problem}. Other containers that use the volume "
    "write elsewhere: into {mountpoint} as it is now.",
    "Stop all containers that use it together, so that Docker mounts it anew: IDS=$(docker ps --quiet --filter "
    "volume={volume}); docker stop $IDS. Save what was written into {mountpoint} meanwhile, then: docker start $IDS",
)
RACES = Finding(
    "volume-snapshot-race",
    "warning",
    "The snapshot {snapshot} was taken {milliseconds} ms {order} the volume {volume} was {action}: it may hold the "
    "volume half made or half removed, and what removes old snapshots may take the only whole one.",
    "Take and hold a snapshot of your own before the change: zfs snapshot {own} && zfs hold ullage {own}; give it free "
    "after it: zfs release ullage {own}. To keep the one that was taken: zfs hold ullage {held}",
)

ZpoolEvents = Callable[[Host], bytes | None]


def ask_zpool(host: Host) -> bytes | None:
    """Return what the host's `zpool events` says, None if it says nothing."""
    code, text = host.command("zpool", "events", "-v", "-H", deadline=ZPOOL, subject="zpool events")
    return text if code == 0 else None


class Race(NamedTuple):
    """A volume that came or went while a snapshot of its dataset was taken."""

    change: Change
    snapshot: Snapshot


def races(snapshots: Iterable[Snapshot], changes: Iterable[tuple[Change, str]]) -> list[Race]:
    """Return each pair of a snapshot and a change, given with the volume's dataset, that are 500 ms apart at most.

    A recursive snapshot is an event for each dataset; one of a parent alone holds nothing of the volume.
    """
    by_dataset: dict[str, list[Snapshot]] = {}
    for snapshot in snapshots:
        by_dataset.setdefault(snapshot.dataset, []).append(snapshot)
    return [
        Race(change, snapshot)
        for change, dataset in changes
        for snapshot in by_dataset.get(dataset, ())
        if abs(snapshot.time - change.event.time) <= RACE
    ]


@dataclass(slots=True)
class Volumes:
    """The running collector. `connect` makes a client of Docker's API; `zpool_events` gives ZFS's events as text."""

    start: Start
    connect: Callable[[str], Api] = DockerApi
    zpool_events: ZpoolEvents = ask_zpool
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], int] = time.time_ns
    _feeds: dict[str, Feed] = field(default_factory=dict)
    _kept: dict[str, Kept] = field(init=False)
    _keeper: statefile.Keeper = field(init=False)
    _files: dict[str, tuple[tuple[int, int, int], Any]] = field(default_factory=dict)
    _files_used: set[str] = field(default_factory=set)
    _missing: dict[str, float] = field(default_factory=dict)
    _datasets: dict[Change, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take up what the last agent kept."""
        path = self.start.state / "volumes.json" if self.start.state is not None else None
        self._kept = load(path) if path is not None else {}
        self._keeper = statefile.Keeper(path, VERSION, lambda: encode(self._kept))

    def close(self) -> None:
        """End the threads, and keep what they know."""
        for feed in self._feeds.values():
            feed.end()
        self._save()

    def collect(self, host: Host) -> Iterator[Yield]:
        """Tell what is known, without a question to Docker that could hang."""
        self._files_used = set()
        self._connect(host)
        views = [feed.view() for feed in self._feeds.values()]
        for feed in self._feeds.values():
            for error in feed.take_errors():
                host.skip(error)
        roots = self._roots(host, views)
        volumes = self._volumes(host, roots, views)
        self._save()
        yield CONNECTED(int(bool(views) and all(view.is_connected for view in views)))
        for action in ACTIONS:
            yield EVENTS(sum(view.counts.get(action, 0) for view in views), action)
        yield MISSED(sum(view.missed for view in views))
        points: dict[str, Mount] = {}
        with host.skipping():
            table = host.read("proc/1/mountinfo")
            _, malformed = parse(table)
            for _ in range(malformed):
                host.skip(Malformed("proc/1/mountinfo"))
            points = {mount.mountpoint: mount for mount in parse_visible(table)}
        if volumes is not None:
            yield from _groups(volumes, points)
            if points:
                yield from self._find_missing(host, roots, volumes, points)
        yield from self._find_races(host, [change for view in views for change in view.changes], points)
        self._files = {path: self._files[path] for path in self._files_used & self._files.keys()}

    def _connect(self, host: Host) -> None:
        """Start to follow each daemon whose socket is there for the first time."""
        for path in self.start.runtimes.docker_sockets:
            if path not in self._feeds and host.exists(found := host.resolve(path)):
                feed = self._feeds[path] = Feed(host.real(found), self.connect, self._kept.get(path), self.now)
                feed.begin()
                feed.is_settled.wait(FIRST_LIST)

    def _roots(self, host: Host, views: Iterable[View]) -> list[str]:
        """Return the data-roots: the usual ones, that of Docker's configuration, those of the volumes themselves."""
        roots = dict.fromkeys(self.start.runtimes.docker_roots)
        with host.skipping():
            configured = read_daemon(host).root
            roots |= {configured: None} if configured else {}
        for view in views:
            for volume in (view.volumes or {}).values():
                tail = f"/volumes/{volume.name}/_data"
                if volume.driver == "local" and volume.mountpoint.endswith(tail):
                    roots[volume.mountpoint.removesuffix(tail)] = None
        return host.resolve_all(roots)

    def _volumes(self, host: Host, roots: Iterable[str], views: Sequence[View]) -> list[Volume] | None:
        """Return all volumes: from Docker, or while it tells nothing the local ones from their directories."""
        told = [volume for view in views for volume in (view.volumes or {}).values()]
        if views and all(view.is_connected for view in views):
            return told
        denied, found, are_roots = None, list[Volume](), False
        for root in roots:
            try:
                found += self._directories(host, f"{root}/volumes")
                are_roots = True
            except Vanished:
                continue
            except Denied as error:
                denied = error
        if are_roots:
            return found + [volume for volume in told if volume.driver != "local"]
        if any(view.volumes is not None for view in views):
            return told
        if denied is not None:
            raise Unsupported(FOR_ROOT)
        if not views:
            raise Unsupported("there is neither Docker's socket nor its directory of volumes")
        return None

    def _directories(self, host: Host, path: str) -> Iterator[Volume]:
        for name in host.names(path):
            mountpoint = f"{path}/{name}/_data"
            if "_data" in host.listed(f"{path}/{name}"):  # no look at itself: what is mounted there may hang
                options = None
                with host.skipping():
                    options = self._read(host, f"{path}/{name}/opts.json", docker.parse_options)
                yield Volume(name, "local", mountpoint, options)

    def _read(self, host: Host, path: str, parse_file: Callable[[bytes], Any]) -> Any:
        """Return what a file says, None if there is none; it is read again only when it was written anew."""
        try:
            signature = host.signature(path)
            kept = self._files.get(path)
            if kept is None or kept[0] != signature:
                kept = self._files[path] = signature, parse_file(host.read(path))
        except Vanished:
            return None
        except ValueError as error:
            raise Malformed(path, f"is not the JSON that we expect: {error}"[:500]) from error
        self._files_used.add(path)
        return kept[1]

    def _find_missing(
        self, host: Host, roots: Iterable[str], volumes: Iterable[Volume], points: Mapping[str, Mount]
    ) -> Iterator[Found]:
        wanted = [each for each in volumes if each.driver == "local" and each.options and each.options.is_mount]
        users = self._users(host, roots) if wanted else {}
        now, before, self._missing = self.clock(), self._missing, {}
        for volume in wanted:
            if volume.name not in users or volume.options is None:
                continue
            with host.skipping():
                problem = _problem(host, volume.mountpoint, volume.options, points)
                if problem:
                    since = self._missing[volume.name] = before.get(volume.name, now)
                    if now - since >= MISSING_FOR:
                        yield MISSING(
                            label(volume.name),
                            container=users[volume.name][:SHORT_ID],
                            problem=label(problem, 1000),
                            mountpoint=label(volume.mountpoint, 1000),
                            volume=shlex.quote(label(volume.name)),
                        )

    def _users(self, host: Host, roots: Iterable[str]) -> dict[str, str]:
        """Return by volume a running container that uses it, as Docker's files and the kernel say."""
        users: dict[str, str] = {}
        for root in roots:
            names: list[str] = []
            with contextlib.suppress(Vanished), host.skipping():
                names = host.names(f"{root}/containers")
            for name in names:
                with host.skipping():
                    container = self._read(host, f"{root}/containers/{name}/config.v2.json", docker.parse_container)
                    if container is not None and container.volumes and _is_alive(host, container):
                        users |= dict.fromkeys(container.volumes, container.id)
        return users

    def _find_races(self, host: Host, changes: Iterable[Change], points: Mapping[str, Mount]) -> Iterator[Found]:
        oldest = self.now() - RACE_HELD
        recent = [change for change in changes if change.event.time >= oldest]
        # a volume that is gone, and its mount with it, is known by where it was when we heard of it
        self._datasets = {
            change: self._datasets[change] if change in self._datasets else _dataset(change.volume, points)
            for change in recent
        }
        on_zfs = [(change, self._datasets[change]) for change in recent if self._datasets[change]]
        text = None
        if on_zfs:
            with host.skipping():
                text = self.zpool_events(host)
        for change, snapshot in races(zpool_events.parse_snapshots(text or b""), on_zfs):
            offset = snapshot.time - change.event.time
            own = shlex.quote(label(f"{snapshot.dataset}@before-change"))
            yield RACES(
                label(f"{change.event.name} {snapshot.name}"),
                snapshot=label(snapshot.name),
                volume=label(change.event.name),
                milliseconds=abs(offset) // 1_000_000,
                order="before" if offset < 0 else "after",
                action="created" if change.event.action == "create" else "destroyed",
                own=own,
                held=shlex.quote(label(snapshot.name)),
            )

    def _save(self) -> None:
        kept = dict(self._kept)
        for path, feed in self._feeds.items():
            if (newest := feed.to_keep()) is not None:
                is_small = newest.names is None or len(newest.names) <= NAMES_KEPT
                kept[path] = newest if is_small else newest._replace(names=None)
        if kept != self._kept:
            self._kept = kept
            self._keeper.is_dirty = True
        self._keeper.save_if_needed()


def _groups(volumes: Iterable[Volume], points: Mapping[str, Mount]) -> Iterator[Yield]:
    """Count the volumes; drivers are few, but their names are anybody's."""
    counts: Counter[LabelSet] = Counter(
        (label(volume.driver), label(_filesystem(volume, points))) for volume in volumes
    )
    shown = counts if len(counts) <= GROUPS else dict(counts.most_common(GROUPS - 1))
    for labels, count in sorted(shown.items()):
        yield VOLUMES(count, *labels)
    if len(shown) < len(counts):
        yield VOLUMES(counts.total() - sum(shown.values()), "other", "other")


def _filesystem(volume: Volume, points: Mapping[str, Mount]) -> str:
    """Return the type of the filesystem, empty if nobody knows."""
    options = volume.options
    if volume.driver == "local" and options and options.is_mount and volume.mountpoint not in points:
        if not options.is_bind:
            return options.type
        found = carrier(points, posixpath.normpath(options.device))
    else:
        found = carrier(points, volume.mountpoint) if volume.mountpoint.startswith("/") else None
    return found.fstype if found is not None else ""


def _problem(host: Host, mountpoint: str, options: Options, points: Mapping[str, Mount]) -> str:
    """Return in words what is wrong with the mount of a volume in use, empty if nothing is."""
    mount = points.get(mountpoint)
    if mount is None:
        return "nothing is mounted on its directory"
    if options.is_bind:
        if _is_bound(host, options.device, mount, points):
            return ""
        return f"{mount.root} of {mount.source} is mounted on its directory instead of {options.device}"
    is_type = _is_type(mount.fstype, options.type)
    if is_type and _is_source(host, mount.source, options.device):
        return ""
    wanted = f"{options.type} of {options.device}"
    return f"{mount.fstype} of {mount.source} is mounted on its directory instead of {wanted}"


def _is_type(fstype: str, wanted: str) -> bool:
    is_alias = any(fstype in names and wanted in names for names in ALIASES)
    return not wanted or fstype == wanted or fstype.startswith(wanted + ".") or is_alias


def _is_source(host: Host, source: str, device: str) -> bool:
    if not device or source.rstrip("/") == device.rstrip("/"):
        return True
    # mount(8) writes a device where its links lead
    return device.startswith("/dev/") and host.resolve(source) == host.resolve(device)


def _is_bound(host: Host, device: str, mount: Mount, points: Mapping[str, Mount]) -> bool:
    """Return whether a mount shows the directory `device`; yes, if only a look that may hang could tell."""
    if _shows(mount, posixpath.normpath(device), points):
        return True
    remote = {point for point, each in points.items() if each.fstype.startswith(REMOTE)}
    try:
        return _shows(mount, host.resolve(device, remote), points)
    except Stuck:
        return True


def _shows(mount: Mount, path: str, points: Mapping[str, Mount]) -> bool:
    found = carrier(points, path)
    if found is None or found.device != mount.device:
        return False
    tail = path[len(found.mountpoint.rstrip("/")) :]
    return (found.root.rstrip("/") + tail).rstrip("/") == mount.root.rstrip("/")


def _is_alive(host: Host, container: Container) -> bool:
    """Return whether the process is that of the container: after a crash Docker's files say what no longer runs."""
    try:
        return container.id.encode("ascii", "replace") in host.read(f"proc/{container.pid}/cgroup")
    except Vanished:
        return False


def _dataset(volume: Volume, points: Mapping[str, Mount]) -> str:
    """Return the ZFS dataset that a volume lies on, empty if it lies on none."""
    options = volume.options
    if options and options.type == "zfs":
        return options.device
    path = posixpath.normpath(options.device) if options and options.is_bind else volume.mountpoint
    found = carrier(points, path) if path.startswith("/") else None
    return found.source if found is not None and found.fstype == "zfs" else ""


COLLECTOR = Collector(
    name="volumes",
    summary="Docker's volumes: their filesystems, their mounts, their events, and snapshots that race with them.",
    start=Volumes,
    interval=15.0,
    deadline=10.0,
    series_budget=300,
    metrics=(VOLUMES, EVENTS, MISSED, CONNECTED),
    findings=(MISSING, RACES),
    wants=(Want(capabilities=("DAC_OVERRIDE",), lost="all of it", reasons=(FOR_ROOT,)),),
)
