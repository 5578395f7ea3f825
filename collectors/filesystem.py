"""Bytes and inodes of every real mount, and what is wrong with it.

Source: statvfs(3) and stat(2) of the mount point, by a helper process as both may hang; /proc/1/mountinfo (man 5
proc_pid_mountinfo); /sys/fs/ext4/DEVICE/errors_count (Documentation/ABI/testing/sysfs-fs-ext4).
btrfs reports no inodes: 0 of 0 means that there is no limit to know. The totals of XFS shrink as blocks fill. A mount
flag `rw` does not say that one can write: `emergency_ro` (ext4 since Linux 6.15 or so) and `ro` in the super options
say that one cannot, and a shut-down XFS still answers statvfs, but stat with EIO. In a container, statvfs says
read-only of what only the container sees so: its bind of the host's root.
"""

from __future__ import annotations

import errno
import os
import re
import select
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import mul

import msgspec

from agent.collector import Collector, Fact, Start, Yield
from agent.errors import HostError, Malformed, Stuck, Unreachable
from agent.host import Host, Space
from agent.metric import Family, LabelSet, Metric, label
from agent.privileges import Want
from agent.watermark import Prediction, Reserve, Tier, Watermark
from collectors.dockerinfo import read_daemon
from collectors.readers.mountinfo import Mount, by_device, carrying, one_per_device, parse, parse_visible

GIB = 1 << 30
LABELS = ("device", "mountpoint", "fstype")
SIZE = Metric("ullage_filesystem_size_bytes", "Size of the filesystem (statvfs f_blocks).", LABELS)
FREE = Metric("ullage_filesystem_free_bytes", "Bytes free, those reserved for root included (f_bfree).", LABELS)
AVAILABLE = Metric("ullage_filesystem_available_bytes", "Bytes that a container can still write (f_bavail).", LABELS)
FILES = Metric("ullage_filesystem_files", "Inodes of the filesystem; on XFS they shrink as blocks fill.", LABELS)
FILES_FREE = Metric("ullage_filesystem_files_free", "Inodes free (f_ffree).", LABELS)
LIMIT_KNOWN = Metric(
    "ullage_filesystem_inode_limit_known",
    "Whether the filesystem has a limit of inodes to know; btrfs has none.",
    LABELS,
)
READONLY = Metric(
    "ullage_filesystem_readonly", "Whether nothing can be written, by mount flag or forced by the kernel (1).", LABELS
)
SHUTDOWN = Metric("ullage_filesystem_shutdown", "Whether the kernel has shut the filesystem down (1).", LABELS)
ERRORS = Metric(
    "ullage_filesystem_errors", "Errors that ext4 has recorded since the last check (errors_count).", LABELS
)
STUCK = Metric("ullage_filesystem_stuck", "Whether the mount does not answer (1); its numbers are absent then.", LABELS)
ROLE = Metric(
    "ullage_filesystem_role", "Which of the mounts carries the storage of this role (1).", ("mountpoint", "role")
)

FS_TYPES_EXCLUDE = (
    "^(autofs|binfmt_misc|bpf|cgroup2?|configfs|debugfs|devpts|devtmpfs|efivarfs|erofs|fuse\\.lxcfs|fusectl|hugetlbfs"
    "|iso9660|mqueue|nsfs|proc|pstore|ramfs|rpc_pipefs|securityfs|selinuxfs|squashfs|sysfs|tracefs)$"
)
# Pseudo filesystems, and what runtimes and the kubelet mount for one container: its root, its shm, its secrets. These
# lie on a filesystem that is shown already, or in its memory.
MOUNT_POINTS_EXCLUDE = (
    "^/(dev|proc|sys|run/credentials|run/netns|run/docker/netns)($|/)"
    "|/overlay2?/[^/]+/merged$"
    "|/(devicemapper/mnt|zfs/graph|rootfs/[^/]+)/[0-9a-f]{64}(-init)?(/rootfs)?$"
    "|/containers/[0-9a-f]{64}/(mounts/)?shm$"
    "|/io\\.containerd\\.runtime\\.v[12]\\.(task|linux)/[^/]+/[^/]+/rootfs$"
    "|/io\\.containerd\\.grpc\\.v1\\.cri[^/]*/sandboxes/[^/]+/"
    "|/overlay-containers/[^/]+/userdata/"
    "|/pods/[^/]+/(volume-subpaths/|volumes/kubernetes\\.io~(secret|projected|configmap|downward-api|empty-dir)/)"
    "|/executor/[^/]+/rootfs$"
)
ROOTS: dict[str, tuple[str, ...]] = {
    "docker": (),
    "containerd": (),
    "containers_storage": (),
    "kubelet": ("/var/lib/kubelet",),
    "container_logs": ("/var/log/pods", "/var/log/containers"),
}
OURS, HOSTS = "proc/self/mountinfo", "proc/1/mountinfo"
_FORCED = {"emergency_ro", "shutdown"}  # super options
TABLES_EVERY = 60.0  # seconds between readings of the mount tables, if no change is told
ROLES_EVERY = 300.0  # seconds between looks for the roots, if no mount changes

TIERS = (Tier("warning", "warning", 0.80, 0.75, hold=120.0), Tier("critical", "critical", 0.90, 0.85, hold=60.0))
INODES = Watermark(
    name="inodes",
    summary="Inodes used of those there are, for each filesystem that has a limit.",
    used=FILES - FILES_FREE,
    size=FILES,
    target=("mountpoint",),
    tiers=TIERS,
    prediction=Prediction(),
    where=(READONLY, 0.0),
)
BYTES = Watermark(
    name="filesystem_bytes",
    summary="Bytes used of those that containers can use.",
    used=SIZE - FREE,
    size=SIZE - FREE + AVAILABLE,
    target=("mountpoint",),
    tiers=TIERS,
    prediction=Prediction(),
    where=(READONLY, 0.0),
    available=AVAILABLE,
    reserve=Reserve.of(10 * GIB, TIERS),
)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which mounts are shown, by regular expressions; `roots` adds paths to the roles that are known."""

    mount_points_include: str = ""
    mount_points_exclude: str = MOUNT_POINTS_EXCLUDE
    fs_types_exclude: str = FS_TYPES_EXCLUDE
    roots: dict[str, tuple[str, ...]] = {}

    def __post_init__(self) -> None:
        """Refuse what is no regular expression, and roles that nobody knows."""
        for key in ("mount_points_include", "mount_points_exclude", "fs_types_exclude"):
            try:
                re.compile(getattr(self, key))
            except re.error as error:
                raise ValueError(f"a regular expression for {key}; {error}") from error
        if unknown := sorted(set(self.roots) - set(ROOTS)):
            raise ValueError(f"roots of the roles {', '.join(sorted(ROOTS))}; {unknown[0]!r} is none")


@dataclass(frozen=True, slots=True)
class Target:
    """A mount to be measured: its labels, where we reach it (a path below the host's root), what mountinfo says.

    `is_seen_writable` tells that our own mount of it is not read-only: then statvfs says so of the filesystem.
    """

    labels: LabelSet
    device: str
    path: str
    fstype: str
    is_read_only: bool
    is_seen_writable: bool
    is_shut_down: bool
    ext4_errors: str | None


@dataclass(slots=True)
class _Tables:
    """The host's mount table and our own view of it, read again when the kernel says that one has changed."""

    descriptors: list[int]
    poller: select.poll
    read_at: float = float("-inf")

    @classmethod
    def open(cls, host: Host) -> _Tables:
        tables = cls([], select.poll())
        for path in (OURS, HOSTS):
            with host.skipping():
                descriptor = host.open(path)
                tables.descriptors.append(descriptor)
                # poll(2) tells of mounts and remounts by POLLPRI, man 5 proc_pid_mounts
                tables.poller.register(descriptor, select.POLLPRI)
        return tables

    def have_changed(self) -> bool:
        """Return whether to read again: a change was told, or a minute is over; not all super options are told of."""
        has_event = bool(self.poller.poll(0))
        return has_event or time.monotonic() - self.read_at > TABLES_EVERY

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


class Filesystems:
    """The running collector. Label sets stay the same objects while the mounts do, which makes rendering cheap."""

    def __init__(self, start: Start) -> None:
        settings: Settings = start.settings
        self._include = re.compile(settings.mount_points_include)
        self._exclude = re.compile(settings.mount_points_exclude or "$^")
        self._exclude_types = re.compile(settings.fs_types_exclude or "$^")
        runtimes = start.runtimes
        own = {
            "docker": runtimes.docker_roots,
            "containerd": runtimes.containerd_roots,
            "containers_storage": runtimes.containers_storage_roots,
        }
        self._roots = {
            role: (*paths, *own.get(role, ()), *settings.roots.get(role, ())) for role, paths in ROOTS.items()
        }
        self._tables = _Tables.open(start.host)
        self._texts: tuple[bytes, bytes] | None = None
        self._visible: Sequence[Mount] = []
        self._shown: dict[str, str] = {}  # device: mount point
        self._targets: list[Target] = []
        self._labels: tuple[LabelSet, ...] = ()  # of the targets
        self._points = start.host.points(())
        self._errors: dict[LabelSet, int] = {}
        self._stuck: frozenset[str] = frozenset()  # devices
        self._resolved: dict[tuple[str, str], str] = {}  # role and root: where it lies
        self._roles: tuple[LabelSet, ...] = ()
        self._roles_at = float("-inf")
        self._kept: dict[Metric, tuple[LabelSet, ...]] = {}

    def close(self) -> None:
        """Let go of the mount tables."""
        self._tables.close()

    def collect(self, host: Host) -> Iterator[Yield]:
        """Measure all mounts."""
        if self._tables.have_changed():
            self._read_tables(host)
        answers = host.measure(self._points)
        if self._read_errors(host):  # an error may have made a filesystem read-only, of which no event tells
            self._read_tables(host)
            answers = host.measure(self._points)
        alive, spaces, stuck = self._targets, [answer for answer in answers if type(answer) is Space], []
        if len(spaces) < len(answers):
            refusals = [(t, answer) for t, answer in zip(alive, answers, strict=True) if isinstance(answer, HostError)]
            for _, refusal in refusals:
                host.skip(refusal)
            stuck = [target for target, refusal in refusals if isinstance(refusal, Stuck)]
            alive = [target for target, answer in zip(alive, answers, strict=True) if type(answer) is Space]
        yield from self._families(alive, spaces, stuck)
        self._find_roles(host, frozenset(target.device for target in stuck))
        yield Family(ROLE, self._roles, [1] * len(self._roles))

    def _read_errors(self, host: Host) -> bool:
        """Read what ext4 has counted; return whether there are more errors than in the last round."""
        before, self._errors = self._errors, {}
        for target in self._targets:
            if target.ext4_errors is not None:
                with host.skipping():
                    self._errors[target.labels] = host.read_int(target.ext4_errors)
        return any(count > before.get(labels, count) for labels, count in self._errors.items())

    def _families(self, alive: Sequence[Target], spaces: Sequence[Space], stuck: Sequence[Target]) -> Iterator[Family]:
        labels = self._labels if len(alive) == len(self._labels) else tuple(target.labels for target in alive)
        both = labels + tuple(target.labels for target in stuck)
        columns = zip(*spaces, strict=True) if spaces else [()] * len(Space._fields)
        refused, _, unit, blocks, free, available, files, files_free, _, flags, _ = columns
        shut_down = [t.is_shut_down or number == errno.EIO for t, number in zip(alive, refused, strict=True)]
        read_only = [
            int(target.is_read_only or is_down or (target.is_seen_writable and flag & os.ST_RDONLY))
            for target, is_down, flag in zip(alive, shut_down, flags, strict=True)
        ]
        yield self._family(STUCK, both, [0] * len(alive) + [1] * len(stuck))
        yield self._family(READONLY, both, read_only + [int(target.is_read_only) for target in stuck])
        yield self._family(SIZE, labels, list(map(mul, unit, blocks)))
        yield self._family(FREE, labels, list(map(mul, unit, free)))
        yield self._family(AVAILABLE, labels, list(map(mul, unit, available)))
        yield self._family(LIMIT_KNOWN, labels, list(map(int, map(bool, files))))
        yield self._family(SHUTDOWN, labels, list(map(int, shut_down)))
        limited = labels if all(files) else tuple(compress(labels, files))
        yield self._family(FILES, limited, list(compress(files, files)))
        yield self._family(FILES_FREE, limited, list(compress(files_free, files)))
        counted = tuple(each for each in labels if each in self._errors) if self._errors else ()
        yield self._family(ERRORS, counted, [self._errors[each] for each in counted])

    def _family(self, metric: Metric, labelsets: tuple[LabelSet, ...], values: list[int]) -> Family:
        """Return a family with the label sets of the last round where they are equal: as the same object."""
        kept = self._kept.get(metric)
        if kept != labelsets:
            kept = self._kept[metric] = labelsets
        return Family(metric, kept, values)

    def _read_tables(self, host: Host) -> None:
        """Find out what is mounted on the host, and where we reach it in our own view."""
        if not host.exists(OURS):
            return
        ours = host.read(OURS)
        try:
            hosts = host.read(HOSTS)
        except HostError:  # hidden by hidepid: then our own view is all there is
            hosts = ours
        self._tables.read_at = time.monotonic()
        if (ours, hosts) == self._texts:
            return
        _, malformed = parse(ours)
        reached = _below(parse_visible(ours), host.rootfs)
        if hosts != ours:
            _, malformed = parse(hosts)
            self._visible = parse_visible(hosts)
        elif host.rootfs:
            # process 1 is that of our own container: the flags are those of our binds, not of the host's mounts
            self._visible = [mount._replace(options=()) for mount in reached]
        else:
            self._visible = reached
        for _ in range(malformed):
            host.skip(Malformed(HOSTS))
        chosen = one_per_device(mount for mount in self._visible if self._is_wanted(mount))
        self._shown = {mount.device: mount.mountpoint for mount in chosen}
        self._targets = list(_targets(host, chosen, self._visible, reached))
        self._labels = tuple(target.labels for target in self._targets)
        paths = [target.path for target in self._targets]
        # only XFS shows a shutdown in nothing but stat
        self._points = host.points(paths, [target.path for target in self._targets if target.fstype == "xfs"])
        self._roles_at = float("-inf")
        self._texts = (ours, hosts)

    def _is_wanted(self, mount: Mount) -> bool:
        # a look at an autofs mount point would mount what it stands for
        return (
            mount.fstype != "autofs"
            and not self._exclude_types.search(mount.fstype)
            and bool(self._include.search(mount.mountpoint))
            and not self._exclude.search(mount.mountpoint)
        )

    def _find_roles(self, host: Host, stuck: frozenset[str]) -> None:
        """Find which mounts carry the known roots, without a look at what hangs: there the last finding stays."""
        now = time.monotonic()
        if now - self._roles_at < ROLES_EVERY and stuck == self._stuck:
            return
        self._roles_at, self._stuck = now, stuck
        # a look below an autofs would mount what it stands for
        avoid = {mount.mountpoint for mount in self._visible if mount.device in stuck or mount.fstype == "autofs"}
        if "/" not in avoid:
            self._resolve_roots(host, avoid)
        found: dict[LabelSet, None] = {}
        for (role, _), resolved in self._resolved.items():
            carrier = carrying(self._visible, resolved)
            if carrier is not None:
                found[label(self._shown.get(carrier.device, carrier.mountpoint)), role] = None
        self._roles = tuple(found)

    def _resolve_roots(self, host: Host, avoid: Collection[str]) -> None:
        before, self._resolved = self._resolved, {}
        roots = [(role, path) for role, paths in self._roots.items() for path in paths]
        for root in roots + [("docker", path) for path in _docker_roots(host, avoid)]:
            try:
                resolved = host.resolve(root[1], avoid)
                if host.exists(resolved):
                    self._resolved[root] = resolved
            except HostError as error:
                host.skip(error)
                if isinstance(error, Stuck) and root in before:
                    self._resolved[root] = before[root]


def _docker_roots(host: Host, avoid: Collection[str]) -> list[str]:
    """Return the data-root that Docker's configuration names, if any."""
    with host.skipping():
        root = read_daemon(host, avoid).root
        return [root] if root else []
    return []


def _below(mounts: Iterable[Mount], rootfs: str) -> list[Mount]:
    """Return those of our own mounts that lie below the host's root, with the host's paths."""
    return [
        mount._replace(mountpoint=mount.mountpoint[len(rootfs) :] or "/")
        for mount in mounts
        if mount.mountpoint == rootfs or mount.mountpoint.startswith(rootfs + "/")
    ]


def _targets(
    host: Host, chosen: Iterable[Mount], mounts: Iterable[Mount], reached: Iterable[Mount]
) -> Iterator[Target]:
    """Yield what is to be measured of the chosen mounts, given all of the host and all that we reach."""
    on_device, ours = by_device(mounts), by_device(reached)
    told = set()
    for mount in chosen:
        if mount.device not in ours:
            host.skip(Unreachable(mount.mountpoint))
            continue
        labels = label(mount.source), label(mount.mountpoint), label(mount.fstype)
        if labels in told:  # somebody named two mounts so that they differ in no character that a label may hold
            host.skip(Malformed(mount.mountpoint, "has the name of another mount"))
            continue
        told.add(labels)
        our = min(ours[mount.device], key=lambda each: (each.mountpoint != mount.mountpoint, len(each.mountpoint)))
        # what is mounted read-only at one place may be written at another, as on nodes with an image for their system
        is_read_only = all("ro" in each.options for each in on_device[mount.device])
        yield Target(
            labels,
            mount.device,
            our.mountpoint,
            mount.fstype,
            is_read_only or mount.super_options[0] == "ro" or not _FORCED.isdisjoint(mount.super_options),
            "ro" not in our.options,
            "shutdown" in mount.super_options,
            _ext4_errors(host, mount),
        )


def _ext4_errors(host: Host, mount: Mount) -> str | None:
    if mount.fstype != "ext4":
        return None
    name = host.resolve(f"sys/dev/block/{mount.device}").rpartition("/")[2]
    path = f"sys/fs/ext4/{name}/errors_count"
    return path if host.exists(path) else None


COLLECTOR = Collector(
    name="filesystem",
    summary="Bytes, inodes and state of every real mount, and which of them carry container storage.",
    start=Filesystems,
    interval=10.0,
    deadline=8.0,
    series_budget=20_000,
    metrics=(SIZE, FREE, AVAILABLE, FILES, FILES_FREE, LIMIT_KNOWN, READONLY, SHUTDOWN, ERRORS, STUCK, ROLE),
    watermarks=(INODES, BYTES),
    settings=Settings,
    facts=(Fact("Filesystem roles", ROLE),),
    wants=(
        Want(
            capabilities=("DAC_READ_SEARCH",),
            lost="mounts below directories that are closed to root's own permissions, such as those of a database's "
            "user",
        ),
    ),
)
