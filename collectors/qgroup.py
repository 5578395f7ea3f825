"""Quota groups, allocation and device errors of every mounted btrfs.

Source: /sys/fs/btrfs/UUID/ (fs/btrfs/sysfs.c; btrfs-progs Documentation/ch-sysfs.rst): qgroups since Linux 5.9, their
state since 6.1, `mode` since 6.7, error_stats since 5.14, commit_stats since 6.0. Bytes. Subvolumes' paths, a rescan's
state (both CAP_SYS_ADMIN) and the devices' sizes are ioctls: a helper process does them, as they may read the disk.
So is a look into the quota tree (CAP_SYS_ADMIN): 1 ms for 500 qgroups, where six files of each take 20. Only a commit
changes usage, and writes it there; limits are there at once. What is reserved is in sysfs alone: it is read of qgroups
that have a limit, and all is read of them there.

A limit counts only if its bit in limit_flags is set. While the kernel calls its qgroups inconsistent their usage is
wrong, and so it is while it counts them anew, from 0 on and without a word in sysfs: it is withheld then, and with it
the ratios. btrfs returns ENOSPC while `df` shows room: its metadata fills up on its own, once no room is left to
allocate more for it, see METADATA_NODES.
"""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agent import statefile
from agent.collector import Collector, Fact, Start, Yield
from agent.containers import LABELS as CONTAINER_LABELS
from agent.containers import Containers
from agent.errors import HostError, Malformed, Stuck, Unreachable, Vanished
from agent.finding import Finding, Found
from agent.host import Host
from agent.metric import LabelSet, Metric, Sample, label
from agent.privileges import Want
from agent.watermark import Prediction, Reading, Tier, Watermark, step
from collectors.readers import btrfs
from collectors.readers.mountinfo import Mount, carrying, parse_visible

ROOT = "sys/fs/btrfs"
SEARCHES = 1000  # of one filesystem's subvolumes, or qgroups, with 64 KiB of them each: a bound
MIB, GIB = 1 << 20, 1 << 30
STATE, KEEP_EVERY = "quota.json", 3600.0  # seconds between writes while nothing changes
DISAPPEARED_FOR = 86_400.0  # seconds for which it is told: who meant it need not be told for ever
NUMBERS = ("limit_flags", "referenced", "exclusive")
NOTHING = btrfs.Quota({}, set(), None)
RESERVATIONS = ("rsv_data", "rsv_meta_pertrans", "rsv_meta_prealloc")

# Metadata's room is what its block groups have free, the kernel's own reserve (global_rsv) left out, and what is
# unallocated, by the number of copies. The kernel sets the worst case of each operation aside before it does it: on
# Linux 6.18 creating a file failed at 3.7 MiB of room with nodes of 16 KiB and at 0.9 MiB with those of 4 KiB, about
# 235 nodes, whatever the size. So 512 nodes are short (8 MiB: the last 7,000 of 40,000 empty files on 300 MiB of which
# data had taken all the rest; it had 26 MiB of room before the first), and on larger filesystems a tenth of the
# metadata, a GiB at most. bytes_may_use (6 to 25 MiB there) is mostly promises that a commit takes back: no measure.
METADATA_NODES = 512
METADATA_SHARE, METADATA_MOST = 0.1, GIB
METADATA_CLEAR = 1.25  # of what raises it

NOBODY: LabelSet = ("",) * len(CONTAINER_LABELS)
LABELS = ("uuid", "qgroup", "path", *CONTAINER_LABELS)
REFERENCED = Metric(
    "ullage_qgroup_referenced_bytes", "Bytes that the qgroup's subvolumes refer to, shared ones too.", LABELS
)
EXCLUSIVE = Metric("ullage_qgroup_exclusive_bytes", "Bytes that only this qgroup's subvolumes refer to.", LABELS)
REFERENCED_LIMIT = Metric("ullage_qgroup_referenced_limit_bytes", "Limit of the referenced bytes, if any.", LABELS)
EXCLUSIVE_LIMIT = Metric("ullage_qgroup_exclusive_limit_bytes", "Limit of the exclusive bytes, if any.", LABELS)
RESERVED = Metric(
    "ullage_qgroup_reserved_bytes",
    "Bytes reserved for writes under way, data and metadata together, of a qgroup that has a limit.",
    LABELS,
)
STALE = Metric("ullage_qgroup_stale", "A qgroup whose subvolume is gone (1).", LABELS)
COLUMNS = (REFERENCED, EXCLUSIVE, REFERENCED_LIMIT, EXCLUSIVE_LIMIT, RESERVED, STALE)

ENABLED = Metric("ullage_qgroups_enabled", "Whether quota is enabled on the btrfs.", ("uuid",))
INCONSISTENT = Metric(
    "ullage_qgroups_inconsistent", "Whether the qgroups' numbers are wrong until a rescan (1).", ("uuid",)
)
RESCANNING = Metric(
    "ullage_qgroups_rescan_running", "Whether all qgroups are counted anew: no usage is shown then (1).", ("uuid",)
)
MODE = Metric("ullage_qgroups_mode", "How quota counts: qgroup, or squota (1).", ("uuid", "mode"))

BLOCKS = ("uuid", "type")
ALLOCATED = Metric("ullage_btrfs_allocated_bytes", "Bytes allocated to block groups.", BLOCKS)
USED = Metric("ullage_btrfs_used_bytes", "Bytes used inside allocated block groups.", BLOCKS)
PINNED = Metric("ullage_btrfs_pinned_bytes", "Bytes freed, but not before the next commit.", BLOCKS)
MAY_USE = Metric("ullage_btrfs_may_use_bytes", "Bytes promised to writes that are not on disk yet.", BLOCKS)
MIXED = ("mixed", "data_metadata")  # block groups of data and metadata together, on small filesystems
ALLOCATION = {"total_bytes": ALLOCATED, "bytes_used": USED, "bytes_pinned": PINNED, "bytes_may_use": MAY_USE}
UNALLOCATED = Metric(
    "ullage_btrfs_unallocated_bytes", "Bytes of the writable devices that belong to no block group.", ("uuid",)
)

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
    prediction=Prediction(),
)
QGROUP_EXCLUSIVE = Watermark(
    name="qgroup_exclusive",
    summary="Exclusive bytes of a btrfs qgroup against their limit.",
    used=EXCLUSIVE,
    size=EXCLUSIVE_LIMIT,
    target=("uuid", "qgroup"),
    tiers=TIERS,
    prediction=Prediction(),
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
    "switches it off for the whole filesystem when its daemon stops. It is told for a day.",
    "btrfs quota enable {mount}   # then set each limit again: btrfs qgroup limit SIZE PATH",
)
HAS_ERRORS = Finding(
    "btrfs-device-errors",
    "warning",
    "Device {devid} of the btrfs {uuid} has counted errors: {errors}.",
    "btrfs device stats {mount}; btrfs scrub start {mount}   # mends what has a good copy; btrfs scrub status tells. "
    "Then, for a device that fails: btrfs replace start {devid} /dev/NEW {mount}; for one that is well: "
    "btrfs device stats --reset {mount}",
)
METADATA_FULL = Finding(
    "btrfs-metadata-full",
    "critical",
    "The btrfs {target} will soon refuse new files with ENOSPC, though `df` may show room: {room} MiB are left for "
    "metadata of which it has {size} MiB, unallocated space included.",
    "btrfs balance start {filters} {mount}   # turns emptier block groups into unallocated space; or give it more: "
    "btrfs device add DEVICE {mount}",
)
PRESSURE = Finding(
    "pressure-candidate",
    "info",
    "{who} is the fullest of its btrfs: qgroup {target} uses {percent} % of its limit of {limit} {kind} bytes. "
    "It falls below {clear} % when {surplus} bytes go, or with a limit of {wanted}.",
    "btrfs qgroup limit {flag}{wanted} {qgroup} {mount}   # or delete files in it",
)


class _Numbers(NamedTuple):
    """Of a qgroup. Usage is None while it is not known, limits and what is reserved where there are no limits."""

    referenced: int | None
    exclusive: int | None
    referenced_limit: int | None = None
    exclusive_limit: int | None = None
    reserved: int | None = None
    stale: int | None = None  # 1 if its subvolume is gone

    @property
    def is_limited(self) -> bool:
        return self.referenced_limit is not None or self.exclusive_limit is not None


class _Row(NamedTuple):
    """A qgroup and what is told of it; `labels` is the same object in the next run if they are the same."""

    uuid: str
    path: bytes | None
    labels: LabelSet
    numbers: _Numbers

    @property
    def qgroup(self) -> str:
        return self.labels[1]

    def samples(self) -> Iterator[Sample]:
        for metric, value in zip(COLUMNS, self.numbers, strict=True):
            if value is not None:
                yield Sample(metric, self.labels, value)

    def without_usage(self) -> _Row:
        return self._replace(numbers=self.numbers._replace(referenced=None, exclusive=None))


@dataclass(slots=True)
class _Filesystem:
    """A btrfs in one run. One that does not answer is not asked again until the next."""

    uuid: str
    mount: str
    is_stuck: bool = False

    @property
    def base(self) -> str:
        return f"{ROOT}/{self.uuid}"

    @property
    def quoted(self) -> str:
        """The mount point for a command."""
        return shlex.quote(self.mount) if self.mount else "MOUNTPOINT"

    def ask(self, host: Host, number: int, request: bytes) -> bytes:
        if not self.mount:
            raise Unreachable(self.uuid, "mounted where we cannot reach it")
        if self.is_stuck:
            raise Stuck(self.uuid, "did not answer before")
        try:
            # "/." opens directories only: mounted may be a single file too, which a container may have made a device
            return host.ioctl(f"{self.mount}/.", number, request, self.uuid)
        except Stuck:
            self.is_stuck = True
            raise


Owners = Mapping[tuple[str, bytes | int], LabelSet]  # by a btrfs, and a subvolume's path or id in it


@dataclass(slots=True)
class Qgroups:
    """The running collector."""

    start: Start
    now: Callable[[], float] = time.time
    _containers: Containers = field(init=False)
    _had_quota: dict[str, float] = field(default_factory=dict)  # the time when it was last seen, by btrfs
    _kept: dict[str, float] = field(default_factory=dict)  # and that of the file that outlives us
    _keeper: statefile.Keeper = field(init=False)
    _short: set[str] = field(default_factory=set)  # of room for metadata
    _pressed: dict[str, str] = field(default_factory=dict)  # the candidate's qgroup of each btrfs
    _rows: dict[str, dict[str, _Row]] = field(default_factory=dict)  # of the last run, by btrfs and directory

    def __post_init__(self) -> None:
        """Prepare the names of containers, and take up what the last agent kept."""
        self._containers = Containers(self.start.host, self.start.runtimes)
        path = self.start.state / STATE if self.start.state is not None else None
        if path is not None:
            self._kept = statefile.load(path, 1, _decode) or {}
            self._had_quota = dict(self._kept)
        self._keeper = statefile.Keeper(path, 1, lambda: {"had_quota": self._kept})

    def close(self) -> None:
        """Keep what is known."""
        self._save()

    def _save(self) -> None:
        """Keep which btrfs had quota, and about when: Docker's and our own restart may be one and the same."""
        is_old = any(abs(seen - self._kept.get(uuid, 0.0)) > KEEP_EVERY for uuid, seen in self._had_quota.items())
        if is_old or self._kept.keys() != self._had_quota.keys():
            self._kept = dict(self._had_quota)
            self._keeper.is_dirty = True
        self._keeper.save_if_needed()

    def collect(self, host: Host) -> Iterator[Yield]:
        """Read every btrfs of the host."""
        uuids = [name for name in host.names(ROOT) if host.exists(f"{ROOT}/{name}/allocation")]
        self._forget_all_but(uuids)
        by_device = {device: uuid for uuid in uuids for device in host.listed(f"{ROOT}/{uuid}/devices")}
        filesystems = _mounted(host, uuids, by_device)
        owners = self._owners(host, by_device)
        rows: list[_Row] = []
        for each in filesystems:
            with host.skipping():
                yield from _allocation(host, each.uuid)
            with host.skipping():
                yield from self._room(host, each)
            with host.skipping():
                yield from _devices(host, each)
            with host.skipping():
                yield from _commits(host, each.uuid)
            with host.skipping():
                rows += yield from self._quota(host, each, owners)
        # what a watermark compares comes first: the budget of series, if it does not suffice, drops the last
        for row in sorted(rows, key=lambda each: not each.numbers.is_limited):
            yield from row.samples()
        self._save()
        for each in filesystems:
            yield from self._pressure(each, [row for row in rows if row.uuid == each.uuid])

    def _forget_all_but(self, uuids: Sequence[str]) -> None:
        now = self.now()
        self._had_quota = {uuid: seen for uuid, seen in self._had_quota.items() if now - seen < DISAPPEARED_FOR}
        self._short &= set(uuids)
        self._rows = {uuid: rows for uuid, rows in self._rows.items() if uuid in uuids}
        self._pressed = {uuid: qgroup for uuid, qgroup in self._pressed.items() if uuid in uuids}

    def _room(self, host: Host, filesystem: _Filesystem) -> Iterator[Yield]:
        """Yield what is unallocated, and whether metadata is short of room."""
        unallocated = _unallocated(host, filesystem)
        yield UNALLOCATED(sum(unallocated), filesystem.uuid)
        room = _metadata_room(host, filesystem.uuid, unallocated)
        if room is None:
            return
        factor = METADATA_CLEAR if filesystem.uuid in self._short else 1.0
        if room.left >= factor * room.least:
            self._short.discard(filesystem.uuid)
            return
        self._short.add(filesystem.uuid)
        yield METADATA_FULL(
            filesystem.uuid,
            room=f"{max(0, room.left) / MIB:.1f}",
            size=f"{room.size / MIB:.1f}",
            filters="-dusage=10 -musage=10" if room.kind in MIXED else "-dusage=10",
            mount=filesystem.quoted,
        )

    def _quota(self, host: Host, filesystem: _Filesystem, owners: Owners) -> Generator[Yield, None, list[_Row]]:
        uuid, base = filesystem.uuid, f"{filesystem.base}/qgroups"
        is_on = host.exists(base)
        # before 5.9 nothing in sysfs tells of quota: only what came later says that there is none
        if is_on or host.glob(f"{filesystem.base}/devinfo/*/error_stats"):
            yield ENABLED(int(is_on), uuid)
        if not is_on:
            if uuid in self._had_quota:
                yield DISAPPEARED(uuid, mount=filesystem.quoted)
            return []
        self._had_quota[uuid] = self.now()
        is_inconsistent = bool(_optional(host, f"{base}/inconsistent"))
        yield INCONSISTENT(int(is_inconsistent), uuid)
        if is_inconsistent:
            yield IS_INCONSISTENT(uuid, mount=filesystem.quoted)
        mode = "qgroup"  # there was no other before Linux 6.7, nor the file
        if host.exists(f"{base}/mode"):
            mode = label(host.read(f"{base}/mode").strip())
        yield MODE(1, uuid, mode)
        is_rescanning = None
        with host.skipping():
            is_rescanning = _is_rescanning(host, filesystem)
            yield RESCANNING(int(is_rescanning), uuid)
        self._rows[uuid] = _rows(host, filesystem, owners, self._rows.get(uuid, {}))
        rows = list(self._rows[uuid].values())
        # once more, for it may have begun while they were read
        is_wrong = is_inconsistent or is_rescanning or bool(_optional(host, f"{base}/inconsistent"))
        if not is_wrong and is_rescanning is not None:
            is_wrong = _is_rescanning(host, filesystem)
        return [row.without_usage() for row in rows] if is_wrong else rows

    def _owners(self, host: Host, by_device: Mapping[str, str]) -> Owners:
        """Return the containers' labels by where their root filesystems lie.

        Docker keeps each in a subvolume whose path says so, which is compared as a whole: a container may make
        subvolumes of any name inside its own. containerd mounts each at a place that says so.
        """
        found: dict[tuple[str, bytes | int], LabelSet] = {}
        with host.skipping():
            mounts = parse_visible(host.read("proc/1/mountinfo"))
            uuids = {mount: _uuid_of(host, mount, by_device) for mount in mounts if mount.fstype == "btrfs"}
            places = _docker_places(host, self.start.runtimes.docker_roots, mounts, uuids) if uuids else []
            for layer, owner in self._containers.docker_layers("btrfs").items() if places else ():
                if container := self._containers.lookup_id(owner):
                    found |= {(uuid, place + b"/" + os.fsencode(layer)): container.labels for uuid, place in places}
            for mount, uuid in uuids.items():
                subvolume = _subvolume_of(mount)
                container = self._containers.lookup_rootfs(mount.mountpoint) if uuid and subvolume else None
                if container is not None and subvolume is not None:
                    found[uuid, subvolume] = container.labels
            self._containers.forget_unasked()
        return found

    def _pressure(self, filesystem: _Filesystem, rows: Sequence[_Row]) -> Iterator[Found]:
        """Find the container behind the fullest qgroup; it stays the one until another is fuller by a whole band."""
        first, uuid = TIERS[0], filesystem.uuid
        if any(row.numbers.referenced is None for row in rows):  # who was found stays so, but nothing is said of it now
            return
        shares = {row.qgroup: share for row in rows if any(row.labels[3:]) and (share := _fullest(row))}
        held = self._pressed.pop(uuid, "")
        levels = {qgroup: step(int(qgroup == held), Reading(share.ratio), (first,)) for qgroup, share in shares.items()}
        raised = [qgroup for qgroup, level in levels.items() if level]
        if not raised:
            return
        chosen = max(raised, key=lambda qgroup: shares[qgroup].ratio)
        band = first.raise_at - first.clear_at
        if held in raised and shares[chosen].ratio - shares[held].ratio < band:
            chosen = held
        self._pressed[uuid] = chosen
        yield _candidate(filesystem, chosen, shares[chosen])


def _rows(host: Host, filesystem: _Filesystem, owners: Owners, before: Mapping[str, _Row]) -> dict[str, _Row]:
    """Return all qgroups by the names of their directories; `before` are those of the last run."""
    paths, committed = None, NOTHING
    with host.skipping():
        # each time, 5 us a subvolume: a deleted one may leave its qgroup, so that nothing in sysfs tells of it
        paths = _search(host, filesystem)
        committed = _committed(host, filesystem)
    known = _Known(paths, owners, committed)
    rows = {}
    for directory in host.names(f"{filesystem.base}/qgroups"):
        if btrfs.parse_qgroup(directory):
            try:
                rows[directory] = _row(host, filesystem.uuid, directory, known, before.get(directory))
            except HostError as error:
                host.skip(error)
    return rows


class _Known(NamedTuple):
    """What is known of all qgroups of a btrfs; the paths are None where they could not be asked for."""

    paths: Mapping[int, bytes] | None
    owners: Owners
    committed: btrfs.Quota


def _row(host: Host, uuid: str, directory: str, known: _Known, before: _Row | None) -> _Row:
    paths, owners, committed = known
    level, _, number = directory.partition("_")
    path, owner = None, NOBODY
    if level == "0":
        path = paths.get(int(number)) if paths is not None else None
        if owners:
            owner = owners.get((uuid, int(number))) or (owners.get((uuid, path)) if path else None) or NOBODY
    if before is None or before.path != path or before.labels[3:] != owner:
        text = "" if path is None else label(b"/" + path)
        labels: LabelSet = (uuid, f"{level}/{number}", text, *owner)
    else:
        labels = before.labels
    usage = committed.usage.get(directory) if directory not in committed.limited else None
    numbers = _Numbers(*usage) if usage is not None else _read(host, f"{ROOT}/{uuid}/qgroups/{directory}")
    if paths is not None and level == "0" and path is None:
        numbers = numbers._replace(stale=1)
    return _Row(uuid, path, labels, numbers)


def _read(host: Host, base: str) -> _Numbers:
    """Return what the files of a qgroup say."""
    flags, referenced, exclusive = host.read_ints(base, NUMBERS)
    return _Numbers(
        referenced,
        exclusive,
        host.read_int(f"{base}/max_referenced") if flags & btrfs.LIMIT_REFERENCED else None,
        host.read_int(f"{base}/max_exclusive") if flags & btrfs.LIMIT_EXCLUSIVE else None,
        sum(host.read_ints(base, RESERVATIONS)) if flags else None,
    )


class _Share(NamedTuple):
    """How much of a limit is used."""

    row: _Row
    kind: str
    used: int
    limit: int

    @property
    def ratio(self) -> float:
        return self.used / self.limit


def _fullest(row: _Row) -> _Share | None:
    """Return the fuller of a qgroup's two limits."""
    shares = [
        _Share(row, kind, used, limit)
        for kind, used, limit in (
            ("referenced", row.numbers.referenced, row.numbers.referenced_limit),
            ("exclusive", row.numbers.exclusive, row.numbers.exclusive_limit),
        )
        if used is not None and limit
    ]
    return max(shares, key=lambda share: share.ratio, default=None)


def _candidate(filesystem: _Filesystem, qgroup: str, share: _Share) -> Found:
    namespace, pod, container, short_id = share.row.labels[3:]
    clear_at = TIERS[0].clear_at
    wanted = math.floor(share.used / clear_at) + 1
    return PRESSURE(
        f"{filesystem.uuid}/{qgroup}",
        who=f"Container {container or short_id}" + (f" of pod {namespace}/{pod}" if pod else ""),
        percent=f"{100 * share.ratio:.1f}",
        kind=share.kind,
        limit=share.limit,
        clear=f"{100 * clear_at:.0f}",
        surplus=max(0, share.used - math.ceil(share.limit * clear_at) + 1),
        wanted=math.ceil(wanted / MIB) * MIB,
        flag="-e " if share.kind == "exclusive" else "",
        qgroup=qgroup,  # not its path: that may hold anything, and this is a command
        mount=filesystem.quoted,
    )


def _decode(data: Any) -> dict[str, float]:
    return {str(uuid): float(seen) for uuid, seen in data["had_quota"].items()}


def _is_rescanning(host: Host, filesystem: _Filesystem) -> bool:
    return btrfs.parse_rescan(filesystem.ask(host, btrfs.RESCAN_STATUS, btrfs.RESCAN_REQUEST))


def _unallocated(host: Host, filesystem: _Filesystem) -> list[int]:
    """Return the unallocated bytes of each device that the kernel may allocate on."""
    found = []
    for devid in host.names(f"{filesystem.base}/devinfo"):
        place = f"{filesystem.base}/devinfo/{devid}"
        if devid.isdecimal() and host.read_int(f"{place}/writeable") and not host.read_int(f"{place}/missing"):
            answer = filesystem.ask(host, btrfs.DEV_INFO, btrfs.device_request(int(devid)))
            found.append(btrfs.parse_device(answer))
    return found


class _Room(NamedTuple):
    """Bytes that are left for metadata, the least that should be, and what it has; `kind` is the block groups'."""

    kind: str
    left: int
    least: float
    size: int


def _metadata_room(host: Host, uuid: str, unallocated: Sequence[int]) -> _Room | None:
    allocation = f"{ROOT}/{uuid}/allocation"
    for kind in ("metadata", *MIXED):
        base = f"{allocation}/{kind}"
        if not host.exists(base):
            continue
        size, *taken = host.read_ints(base, ("total_bytes", "bytes_used", "bytes_reserved", "bytes_readonly"))
        taken.append(_optional(host, f"{base}/bytes_zone_unusable"))
        taken.append(host.read_int(f"{allocation}/global_rsv_size"))
        profiles = [name for name in host.names(base) if host.exists(f"{base}/{name}/total_bytes")]
        gains = [btrfs.allocatable(unallocated, name) for name in profiles]
        known = [gain for gain in gains if gain is not None]
        if not known or len(known) < len(gains):  # a profile that came after us
            return None
        least = max(
            METADATA_NODES * host.read_int(f"{ROOT}/{uuid}/nodesize"), min(METADATA_SHARE * size, METADATA_MOST)
        )
        return _Room(kind, size - sum(taken) + min(known), least, size)
    return None


def _uuid_of(host: Host, mount: Mount, by_device: Mapping[str, str]) -> str:
    return by_device.get(host.resolve(mount.source).rpartition("/")[2], "")


def _docker_places(
    host: Host, roots: Sequence[str], mounts: Sequence[Mount], uuids: Mapping[Mount, str]
) -> list[tuple[str, bytes]]:
    """Return where in which btrfs Docker keeps subvolumes."""
    places = []
    for root in roots:
        path = f"{host.resolve(root).rstrip('/')}/btrfs/subvolumes"
        mount = carrying(mounts, path)
        if mount is not None and uuids.get(mount):
            inside = f"{mount.root}/{path.removeprefix(mount.mountpoint)}".strip("/")
            places.append((uuids[mount], os.fsencode(os.path.normpath(inside))))
    return places


def _subvolume_of(mount: Mount) -> int | None:
    """Return the id of the subvolume that is mounted; the first such option, for those after it may hold a path."""
    options = (option.partition("=") for option in mount.super_options)
    return next((int(value) for key, _, value in options if key == "subvolid" and value.isdecimal()), None)


def _search(host: Host, filesystem: _Filesystem) -> Mapping[int, bytes]:
    """Return the paths of all subvolumes. Raises HostError, Stuck among them."""
    links, first = [], btrfs.FIRST_SUBVOLUME
    for _ in range(SEARCHES):
        answer = filesystem.ask(host, btrfs.TREE_SEARCH_V2, btrfs.links_request(first))
        found, following = btrfs.parse_links(answer)
        links += found
        if following is None:
            break
        first = following
    else:
        raise Malformed(filesystem.uuid, f"more subvolumes than {SEARCHES} searches find")
    directories = {}
    for link in links:
        place = link.parent, link.directory
        if link.directory != btrfs.FIRST_SUBVOLUME and place not in directories:
            try:
                answer = filesystem.ask(host, btrfs.INO_LOOKUP, btrfs.directory_request(*place))
            except Vanished:  # moved or deleted since
                continue
            directories[place] = btrfs.parse_directory(answer)
    return btrfs.subvolume_paths(links, directories)


def _committed(host: Host, filesystem: _Filesystem) -> btrfs.Quota:
    """Return what the quota tree says of all qgroups. Raises HostError, Stuck among them."""
    found, request = btrfs.Quota({}, set(), None), btrfs.quota_request()
    for _ in range(SEARCHES):
        part = btrfs.parse_quota(filesystem.ask(host, btrfs.TREE_SEARCH_V2, request))
        found.usage.update(part.usage)
        found.limited.update(part.limited)
        if part.following is None:
            return found
        request = btrfs.quota_request(*part.following)
    raise Malformed(filesystem.uuid, f"more qgroups than {SEARCHES} searches find")


def _mounted(host: Host, uuids: Sequence[str], by_device: Mapping[str, str]) -> list[_Filesystem]:
    """Return each btrfs with the shortest of the host's mount points by which we reach it, empty if there is none."""
    points: dict[str, str] = {}
    with host.skipping():
        for mount in parse_visible(host.read("proc/self/mountinfo")):
            is_inside = mount.mountpoint == host.rootfs or mount.mountpoint.startswith(host.rootfs + "/")
            if mount.fstype == "btrfs" and is_inside and (uuid := _uuid_of(host, mount, by_device)):
                point = mount.mountpoint[len(host.rootfs) :] or "/"
                points[uuid] = min(points.get(uuid, point), point, key=lambda each: (len(each), each))
    return [_Filesystem(uuid, points.get(uuid, "")) for uuid in uuids]


def _optional(host: Host, path: str) -> int:
    try:
        return host.read_int(path)
    except Vanished:  # older kernels
        return 0


def _allocation(host: Host, uuid: str) -> Iterator[Yield]:
    for kind in ("data", "metadata", "system", *MIXED):
        base = f"{ROOT}/{uuid}/allocation/{kind}"
        if host.exists(base):
            for name, metric in ALLOCATION.items():
                with host.skipping():
                    yield metric(host.read_int(f"{base}/{name}"), uuid, kind)


def _devices(host: Host, filesystem: _Filesystem) -> Iterator[Yield]:
    uuid = filesystem.uuid
    for devid in host.listed(f"{ROOT}/{uuid}/devinfo"):
        try:
            errors = btrfs.parse_table(host.read(f"{ROOT}/{uuid}/devinfo/{devid}/error_stats"))
        except Vanished:  # Linux before 5.14
            continue
        for name, count in errors.items():
            yield DEVICE_ERRORS(count, uuid, devid, label(name.removesuffix("_errs")))
        counted = [f"{count} {name.removesuffix('_errs')}" for name, count in errors.items() if count]
        if counted:
            told = ", ".join(counted)
            yield HAS_ERRORS(f"{uuid}/{devid}", uuid=uuid, devid=devid, errors=told, mount=filesystem.quoted)


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
        *COLUMNS,
        *(ENABLED, INCONSISTENT, MODE, RESCANNING, *ALLOCATION.values(), UNALLOCATED),
        *(DEVICE_ERRORS, COMMITS, COMMIT_SECONDS, COMMIT_LONGEST),
    ),
    watermarks=(QGROUP_REFERENCED, QGROUP_EXCLUSIVE),
    findings=(IS_INCONSISTENT, DISAPPEARED, HAS_ERRORS, METADATA_FULL, PRESSURE),
    needs=_needs,
    facts=(Fact("Btrfs quota", MODE),),
    wants=(
        Want(
            capabilities=("SYS_ADMIN",),
            lost="the label `path`, `ullage_qgroups_rescan_running`, and names of containers by it",
        ),
    ),
)
