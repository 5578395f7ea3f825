"""Quota groups, allocation and device errors of every mounted btrfs.

Source: /sys/fs/btrfs/UUID/ (fs/btrfs/sysfs.c; btrfs-progs Documentation/ch-sysfs.rst): qgroups since Linux 5.9, their
state since 6.1, `mode` since 6.7, error_stats since 5.14, commit_stats since 6.0. Bytes. Subvolumes' paths come from
searches in the filesystem (CAP_SYS_ADMIN), which a helper process does, as they may read the disk.

A limit counts only if its bit in limit_flags is set. While the kernel calls its qgroups inconsistent their usage is
wrong: it is withheld then, and with it the ratios. btrfs returns ENOSPC while `df` shows room: its metadata fills up on
its own, once no room is left to allocate more for it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from agent.collector import Collector, Start, Yield
from agent.containers import LABELS as CONTAINER_LABELS
from agent.containers import Containers
from agent.errors import HostError, Malformed, Vanished
from agent.finding import Finding, Found
from agent.host import Host
from agent.metric import LabelSet, Metric, label
from agent.watermark import Tier, Watermark
from collectors.readers import btrfs
from collectors.readers.mountinfo import parse, visible

ROOT = "sys/fs/btrfs"
LINKS_EVERY = 300.0  # seconds between searches for paths while no qgroup comes or goes: subvolumes may be renamed
SEARCHES = 1000  # of one filesystem's subvolumes, with 64 KiB of them each: a bound

LABELS = ("uuid", "qgroup", "path", *CONTAINER_LABELS)
REFERENCED = Metric(
    "ullage_qgroup_referenced_bytes", "Bytes that the qgroup's subvolumes refer to, shared ones too.", LABELS
)
EXCLUSIVE = Metric("ullage_qgroup_exclusive_bytes", "Bytes that only this qgroup's subvolumes refer to.", LABELS)
REFERENCED_LIMIT = Metric("ullage_qgroup_referenced_limit_bytes", "Limit of the referenced bytes, if any.", LABELS)
EXCLUSIVE_LIMIT = Metric("ullage_qgroup_exclusive_limit_bytes", "Limit of the exclusive bytes, if any.", LABELS)
RESERVED = Metric(
    "ullage_qgroup_reserved_bytes", "Bytes reserved for writes under way, data and metadata together.", LABELS
)
STALE = Metric("ullage_qgroup_stale", "A qgroup whose subvolume is gone (1).", LABELS)

ENABLED = Metric("ullage_qgroups_enabled", "Whether quota is enabled on the btrfs.", ("uuid",))
INCONSISTENT = Metric(
    "ullage_qgroups_inconsistent", "Whether the qgroups' numbers are wrong until a rescan (1).", ("uuid",)
)
MODE = Metric("ullage_qgroups_mode", "How quota counts: qgroup, or squota (1).", ("uuid", "mode"))

BLOCKS = ("uuid", "type")
ALLOCATED = Metric("ullage_btrfs_allocated_bytes", "Bytes allocated to block groups.", BLOCKS)
USED = Metric("ullage_btrfs_used_bytes", "Bytes used inside allocated block groups.", BLOCKS)
PINNED = Metric("ullage_btrfs_pinned_bytes", "Bytes freed, but not before the next commit.", BLOCKS)
MAY_USE = Metric("ullage_btrfs_may_use_bytes", "Bytes promised to writes that are not on disk yet.", BLOCKS)
ALLOCATION = {"total_bytes": ALLOCATED, "bytes_used": USED, "bytes_pinned": PINNED, "bytes_may_use": MAY_USE}

DEVICE_ERRORS = Metric(
    "ullage_btrfs_device_errors_total",
    "Errors of a device since it was added or its counters were reset.",
    ("uuid", "devid", "error"),
    "counter",
)
COMMITS = Metric("ullage_btrfs_commits_total", "Transactions committed since the mount.", ("uuid",), "counter")
COMMIT_SECONDS = Metric(
    "ullage_btrfs_commit_seconds_total", "Seconds spent in commits since the mount.", ("uuid",), "counter"
)
COMMIT_LONGEST = Metric("ullage_btrfs_commit_longest_seconds", "The longest commit since the mount.", ("uuid",))

TIERS = (
    Tier("warning", "warning", 0.85, 0.80, hold=120.0),
    Tier("high", "warning", 0.92, 0.87, hold=60.0),
    Tier("critical", "critical", 0.98, 0.93, hold=30.0),
)
QGROUP_REFERENCED = Watermark(
    name="qgroup_referenced",
    summary="Referenced bytes of a btrfs qgroup against their limit.",
    used=REFERENCED,
    size=REFERENCED_LIMIT,
    target=("uuid", "qgroup"),
    tiers=TIERS,
)
QGROUP_EXCLUSIVE = Watermark(
    name="qgroup_exclusive",
    summary="Exclusive bytes of a btrfs qgroup against their limit.",
    used=EXCLUSIVE,
    size=EXCLUSIVE_LIMIT,
    target=("uuid", "qgroup"),
    tiers=TIERS,
)

IS_INCONSISTENT = Finding(
    "qgroup-inconsistent",
    "warning",
    "The qgroups of the btrfs {target} are inconsistent: their numbers are wrong, and no limit can be relied on.",
    "btrfs quota rescan -w {mount}",
)
DISAPPEARED = Finding(
    "qgroups-disappeared",
    "critical",
    "Quota was on on the btrfs {target} and is off now: every limit is gone. Docker up to 20.10 with the btrfs driver "
    "switches it off for the whole filesystem when its daemon stops.",
    "btrfs quota enable {mount}   # then set each limit again: btrfs qgroup limit SIZE PATH",
)
HAS_ERRORS = Finding(
    "btrfs-device-errors",
    "warning",
    "Device {devid} of the btrfs {uuid} has counted errors: {errors}.",
    "btrfs device stats {mount}; btrfs scrub start {mount}   # then replace the device, or reset with device stats -z",
)

_DOCKER = re.compile(r"(?:^|/)btrfs/subvolumes/(?P<id>[0-9a-f]{64})(?:-init)?$")


@dataclass(slots=True)
class _Links:
    """The subvolumes of one btrfs as last searched; `paths` is None where that was refused."""

    qgroups: tuple[str, ...]
    read_at: float
    paths: Mapping[int, bytes] | None


@dataclass(slots=True)
class Qgroups:
    """The running collector."""

    start: Start
    _containers: Containers = field(init=False)
    _links: dict[str, _Links] = field(default_factory=dict)
    _had_quota: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Prepare the names of containers."""
        self._containers = Containers(self.start.host, self.start.runtimes)

    def close(self) -> None:
        """Nothing is open."""

    def collect(self, host: Host) -> Iterator[Yield]:
        """Read every btrfs of the host."""
        uuids = [name for name in host.names(ROOT) if host.exists(f"{ROOT}/{name}/allocation")]
        mounts = _mounts(host)
        self._links = {uuid: links for uuid, links in self._links.items() if uuid in uuids}
        self._had_quota &= set(uuids)
        owners = self._owners(host)
        for uuid in uuids:
            mount = next((mounts[name] for name in _names(host, f"{ROOT}/{uuid}/devices") if name in mounts), "")
            with host.skipping():
                yield from _allocation(host, uuid)
            with host.skipping():
                yield from _devices(host, uuid, mount)
            with host.skipping():
                yield from _commits(host, uuid)
            with host.skipping():
                yield from self._quota(host, uuid, mount, owners)

    def _quota(self, host: Host, uuid: str, mount: str, owners: Mapping[str, str]) -> Iterator[Yield]:
        base = f"{ROOT}/{uuid}/qgroups"
        is_on = host.exists(base)
        yield ENABLED(int(is_on), uuid)
        if not is_on:
            if uuid in self._had_quota:
                yield DISAPPEARED(uuid, mount=mount or "MOUNTPOINT")
            return
        self._had_quota.add(uuid)
        is_inconsistent = bool(_optional(host, f"{base}/inconsistent"))
        yield INCONSISTENT(int(is_inconsistent), uuid)
        if is_inconsistent:
            yield IS_INCONSISTENT(uuid, mount=mount or "MOUNTPOINT")
        mode = "qgroup"  # there was no other before Linux 6.7, nor the file
        if host.exists(f"{base}/mode"):
            mode = label(host.read(f"{base}/mode").strip())
        yield MODE(1, uuid, mode)
        directories = tuple(name for name in host.names(base) if btrfs.parse_qgroup(name))
        paths = self._paths(host, uuid, mount, directories)
        for directory in directories:
            with host.skipping():
                yield from self._one(host, uuid, directory, paths, owners, is_known=not is_inconsistent)

    def _one(  # noqa: PLR0913
        self,
        host: Host,
        uuid: str,
        directory: str,
        paths: Mapping[int, bytes] | None,
        owners: Mapping[str, str],
        *,
        is_known: bool,
    ) -> Iterator[Yield]:
        base = f"{ROOT}/{uuid}/qgroups/{directory}"
        level, _, number = directory.partition("_")
        path = paths.get(int(number)) if paths is not None and level == "0" else None
        text = "" if path is None else label(b"/" + path)
        labels: LabelSet = (uuid, f"{level}/{number}", text, *self._container(path, owners))
        flags = host.read_int(f"{base}/limit_flags")
        referenced, exclusive = host.read_int(f"{base}/referenced"), host.read_int(f"{base}/exclusive")
        if is_known:
            yield REFERENCED(referenced, *labels)
            yield EXCLUSIVE(exclusive, *labels)
        if flags & btrfs.LIMIT_REFERENCED:
            yield REFERENCED_LIMIT(host.read_int(f"{base}/max_referenced"), *labels)
        if flags & btrfs.LIMIT_EXCLUSIVE:
            yield EXCLUSIVE_LIMIT(host.read_int(f"{base}/max_exclusive"), *labels)
        reserved = [host.read_int(f"{base}/{name}") for name in ("rsv_data", "rsv_meta_pertrans", "rsv_meta_prealloc")]
        yield RESERVED(sum(reserved), *labels)
        if paths is not None and level == "0" and path is None:
            yield STALE(1, *labels)

    def _container(self, path: bytes | None, owners: Mapping[str, str]) -> LabelSet:
        match = _DOCKER.search(path.decode("utf-8", "replace")) if path else None
        owner = owners.get(match["id"]) if match else None
        found = self._containers.lookup_id(owner) if owner else None
        return found.labels if found is not None else ("", "", "", "")

    def _owners(self, host: Host) -> dict[str, str]:
        """Return the containers' ids by the names of their writable layers, of Docker's btrfs driver."""
        owners = {}
        for root in self.start.runtimes.docker_roots:
            base = f"{host.resolve(root)}/image/btrfs/layerdb/mounts"
            for container in _names(host, base):
                with host.skipping():
                    owners[host.read(f"{base}/{container}/mount-id").decode("ascii", "replace").strip()] = container
        return owners

    def _paths(self, host: Host, uuid: str, mount: str, directories: tuple[str, ...]) -> Mapping[int, bytes] | None:
        now = time.monotonic()
        known = self._links.get(uuid)
        if known is None or known.qgroups != directories or now - known.read_at >= LINKS_EVERY:
            known = self._links[uuid] = _Links(directories, now, None)
            if mount:
                with host.skipping():
                    known.paths = _search(host, mount, uuid)
        return known.paths


def _search(host: Host, mount: str, uuid: str) -> Mapping[int, bytes]:
    """Return the paths of all subvolumes. Raises HostError, Stuck among them."""
    links, first = [], btrfs.FIRST_SUBVOLUME
    for _ in range(SEARCHES):
        answer = host.ioctl(mount, btrfs.TREE_SEARCH_V2, btrfs.links_request(first), uuid)
        found, following = btrfs.parse_links(answer)
        links += found
        if following is None:
            break
        first = following
    else:
        raise Malformed(uuid, f"more subvolumes than {SEARCHES} searches find")
    directories = {}
    for link in links:
        place = link.parent, link.directory
        if link.directory != btrfs.FIRST_SUBVOLUME and place not in directories:
            try:
                answer = host.ioctl(mount, btrfs.INO_LOOKUP, btrfs.directory_request(*place), uuid)
            except Vanished:  # moved or deleted since
                continue
            directories[place] = btrfs.parse_directory(answer)
    return btrfs.subvolume_paths(links, directories)


def _mounts(host: Host) -> dict[str, str]:
    """Return by device name the host's mount point of each btrfs that we reach."""
    found: dict[str, str] = {}
    with host.skipping():
        mounts, _ = parse(host.read("proc/self/mountinfo"))
        for mount in visible(mounts):
            inside = mount.mountpoint == host.rootfs or mount.mountpoint.startswith(host.rootfs + "/")
            if mount.fstype == "btrfs" and inside:
                name = host.resolve(mount.source).rpartition("/")[2]
                point = mount.mountpoint[len(host.rootfs) :] or "/"
                found[name] = min(found.get(name, point), point, key=lambda each: (len(each), each))
    return found


def _names(host: Host, path: str) -> list[str]:
    try:
        return host.names(path)
    except Vanished:
        return []
    except HostError as error:
        host.skip(error)
        return []


def _optional(host: Host, path: str) -> int:
    try:
        return host.read_int(path)
    except Vanished:  # older kernels
        return 0


def _allocation(host: Host, uuid: str) -> Iterator[Yield]:
    for kind in ("data", "metadata", "system", "mixed", "data_metadata"):
        base = f"{ROOT}/{uuid}/allocation/{kind}"
        if host.exists(base):
            for name, metric in ALLOCATION.items():
                with host.skipping():
                    yield metric(host.read_int(f"{base}/{name}"), uuid, kind)


def _devices(host: Host, uuid: str, mount: str) -> Iterator[Yield]:
    for devid in _names(host, f"{ROOT}/{uuid}/devinfo"):
        try:
            errors = btrfs.parse_table(host.read(f"{ROOT}/{uuid}/devinfo/{devid}/error_stats"))
        except Vanished:  # Linux before 5.14
            continue
        for name, count in errors.items():
            yield DEVICE_ERRORS(count, uuid, devid, label(name.removesuffix("_errs")))
        counted = [f"{count} {name.removesuffix('_errs')}" for name, count in errors.items() if count]
        if counted:
            yield _errors_of(uuid, devid, ", ".join(counted), mount)


def _errors_of(uuid: str, devid: str, errors: str, mount: str) -> Found:
    return HAS_ERRORS(f"{uuid}/{devid}", uuid=uuid, devid=devid, errors=errors, mount=mount or "MOUNTPOINT")


def _commits(host: Host, uuid: str) -> Iterator[Yield]:
    path = f"{ROOT}/{uuid}/commit_stats"
    if not host.exists(path):  # Linux before 6.0
        return
    stats = btrfs.parse_table(host.read(path))
    if "commits" in stats:
        yield COMMITS(stats["commits"], uuid)
    if "total_commit_ms" in stats:
        yield COMMIT_SECONDS(stats["total_commit_ms"] / 1000, uuid)
    if "max_commit_ms" in stats:
        yield COMMIT_LONGEST(stats["max_commit_ms"] / 1000, uuid)


def _needs(host: Host) -> str | None:
    return None if host.glob(f"{ROOT}/*/allocation") else "no btrfs is mounted"


COLLECTOR = Collector(
    name="qgroup",
    summary="Btrfs: quota groups and their limits, allocation, device errors.",
    start=Qgroups,
    interval=30.0,
    deadline=20.0,
    series_budget=40_000,
    metrics=(
        *(REFERENCED, EXCLUSIVE, REFERENCED_LIMIT, EXCLUSIVE_LIMIT, RESERVED, STALE),
        *(ENABLED, INCONSISTENT, MODE, *ALLOCATION.values()),
        *(DEVICE_ERRORS, COMMITS, COMMIT_SECONDS, COMMIT_LONGEST),
    ),
    watermarks=(QGROUP_REFERENCED, QGROUP_EXCLUSIVE),
    findings=(IS_INCONSISTENT, DISAPPEARED, HAS_ERRORS),
    needs=_needs,
)
