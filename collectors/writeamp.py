"""Bytes written at each layer that truly counts them, so that a rate over a rate is an amplification, never a guess.

Source: XFS xs_write_bytes (/sys/fs/xfs/DEVICE/stats/stats, Linux 4.4), ZFS objset nwritten (/proc/spl/kstat/zfs/POOL/),
nr_dirtied (/proc/vmstat) and write_bytes (/proc/PID/io, ptrace rights) for what was asked for; /sys/class/block/*/stat
for what reached a block device, in sectors of 512 bytes; NVMe log pages and SATA's SMART attributes for what a drive
was sent and what it wrote to its flash (CAP_SYS_ADMIN, CAP_SYS_RAWIO).

Traps: ext4's own counters are those of its partition, so there is no layer above; btrfs has none. nr_dirtied and
write_bytes count pages when they are dirtied, not what is written with O_DIRECT. What a process wrote goes to the one
that waits for its end; if that is none of the container's, it is lost. A drive whose family is not known has no flash
metric: the same page and the same attribute mean different things on different drives.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from agent.collector import Collector, RateRatio, Start, Yield
from agent.containers import LABELS as CONTAINER_LABELS
from agent.containers import Containers
from agent.errors import Denied, HostError, Malformed, Vanished
from agent.host import Host
from agent.metric import LabelSet, Metric, Sample, label
from agent.privileges import Want
from agent.units import Seconds
from agent.watermark import Tier, Watermark
from collectors import blockdevices
from collectors.cgroups import cut
from collectors.readers import ata, blockstat, cgroup, nvme, zfs

PAGE = os.sysconf("SC_PAGESIZE")
LAYERS = 8  # of devices on devices: a bound
DRIVES = 1000  # that one node may have: a bound
SMARTCTL = 10.0  # seconds
BORN_AT, DIGITS = 19, 20  # of /proc/PID/stat behind the name: starttime; of a u64
LEAVES_EVERY = 300.0  # seconds between looks which devices a pool lies on
PLAUSIBLE = 1 << 40  # bytes from which on a drive's two counters are held against each other
FLOOR = 64 << 20  # bytes below which a ratio says nothing

LOGICAL = ("layer", "source", "device")
WRITTEN = Metric(
    "ullage_logical_written_bytes_total", "Bytes that applications wrote, by who counted them.", LOGICAL, "counter"
)
REACHED = Metric(
    "ullage_logical_device_written_bytes_total",
    "Bytes that reached the block devices below, of the same layer; their drive, where it is one alone.",
    (*LOGICAL, "drive"),
    "counter",
)
DEVICE = Metric(
    "ullage_device_written_bytes_total",
    "Bytes written to a physical disk: no partition, loop, md or device mapper on it counts again.",
    ("device",),
    "counter",
)
PROCESSES = Metric(
    "ullage_container_written_bytes_total",
    "Bytes that a container's processes have dirtied, less what was truncated before it was written.",
    CONTAINER_LABELS,
    "counter",
)
DRIVE = ("device", "model")
HOST_WRITTEN = Metric(
    "ullage_drive_host_written_bytes_total", "Bytes that a drive was sent, by its own count.", DRIVE, "counter"
)
MEDIA_WRITTEN = Metric(
    "ullage_drive_media_written_bytes_total",
    "Bytes that a drive wrote to its flash, by its own count.",
    DRIVE,
    "counter",
)
USED = Metric("ullage_drive_used_ratio", "Part of a drive's rated endurance that is used; it may be over 1.", DRIVE)
SPARE = Metric("ullage_drive_spare_ratio", "Part of a drive's spare blocks that is left.", DRIVE)
MEDIA_ERRORS = Metric("ullage_drive_media_errors_total", "Unrecovered errors of a drive's media.", DRIVE, "counter")
UNSAFE = Metric("ullage_drive_unsafe_shutdowns_total", "Losses of power without a warning.", DRIVE, "counter")
WARNING = Metric(
    "ullage_drive_critical_warning", "Whether a drive warns of something critical (1).", (*DRIVE, "warning")
)
AGE = Metric("ullage_drive_age_seconds", "Seconds since the drive said what the other series tell of it.", DRIVE)

WEAR = Watermark(
    name="drive_wear",
    summary="Rated endurance of a drive that is used.",
    used=USED,
    size=None,
    target=("device",),
    tiers=(
        Tier("warning", "warning", 0.80, 0.78, hold=240.0),
        Tier("critical", "critical", 0.95, 0.93, hold=240.0),
    ),
)

RULES = f"""\
- name: ullage-write-amplification
  rules:
    - record: ullage:write_amplification:ratio
      expr: |
        increase({REACHED.name}[5m])
        / ignoring (drive) group_left () (increase({WRITTEN.name}{{layer="filesystem"}}[5m]) >= {FLOOR})
      labels: {{layer: filesystem, window: 5m}}
    - record: ullage:write_amplification:ratio
      expr: |
        increase({REACHED.name}[1h])
        / ignoring (drive) group_left () (increase({WRITTEN.name}{{layer="filesystem"}}[1h]) >= {FLOOR})
      labels: {{layer: filesystem, window: 1h}}
    # drives are asked every ten minutes: five minutes would tell nothing
    - record: ullage:write_amplification:ratio
      expr: |
        increase({MEDIA_WRITTEN.name}[1h]) / (increase({HOST_WRITTEN.name}[1h]) >= {FLOOR})
      labels: {{layer: device, window: 1h}}
    - record: ullage:write_amplification:ratio
      expr: |
        ullage:write_amplification:ratio{{layer="filesystem", window="1h", drive!=""}}
        * ignoring (layer, source, device) group_left ()
        max without (device, model, layer) (
          label_replace(
            ullage:write_amplification:ratio{{layer="device", window="1h"}}, "drive", "$1", "device", "(.+)"
          )
        )
      labels: {{layer: total, window: 1h}}
    - alert: UllageWriteAmplificationWarning
      expr: |
        ullage:write_amplification:ratio{{window="1h"}} >= 10
        or
        (
          ullage:write_amplification:ratio{{window="1h"}} >= 8
          and ignoring (alertname, alertstate, severity)
          ALERTS{{alertname="UllageWriteAmplificationWarning", alertstate="firing"}}
        )
      for: 4m
      keep_firing_for: KEEP_FIRING_FOR
      labels: {{severity: warning}}
      annotations:
        summary: 'Every byte written to {{{{ $labels.device }}}} becomes {{{{ $value | humanize }}}}'
        description: 'Layer {{{{ $labels.layer }}}} on {{{{ $labels.instance }}}}. It fires at 10, until below 8.'
        runbook_url: 'RUNBOOK(UllageWriteAmplificationWarning)'
"""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often drives are asked: a question costs them little, but it is one."""

    drives_interval: Seconds = Seconds(600.0)


@dataclass(slots=True)
class _Sum:
    """A sum over counters that come and go, which itself only grows, from zero at our start.

    Not from what stood there before: Prometheus would take that for an increase whenever the agent starts anew.
    """

    total: int = 0
    last: Mapping[str, int] | None = None

    def add(self, values: Mapping[str, int]) -> None:
        """Add what each counter has grown by; one that is new, or fell, began at zero."""
        if self.last is not None:
            for name, value in values.items():
                before = self.last.get(name, 0)
                self.total += value - before if value >= before else value
        self.last = values


class _Drive(NamedTuple):
    """What a drive said, as samples, and when; a drive that sleeps is asked in vain."""

    samples: tuple[Sample, ...]
    asked_at: float
    told_at: float


@dataclass(slots=True)
class WriteAmplification:
    """The running collector."""

    start: Start
    clock: Callable[[], float] = time.monotonic
    _containers: Containers = field(init=False)
    _drives: dict[str, _Drive] = field(default_factory=dict)
    _refused: set[tuple[str, int]] = field(default_factory=set)
    _owners: dict[tuple[str, int], LabelSet] = field(default_factory=dict)  # containers' processes by number and birth
    _sums: dict[LabelSet, int] = field(default_factory=dict)  # what they had written at the last look, by container
    _written: dict[LabelSet, int] = field(default_factory=dict)
    _pools: dict[str, _Sum] = field(default_factory=dict)
    _leaves: dict[str, tuple[float, tuple[str, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Prepare the names of containers."""
        self._containers = Containers(self.start.host, self.start.runtimes)

    def close(self) -> None:
        """Nothing is open."""

    def collect(self, host: Host) -> Iterator[Yield]:
        """Read every layer that this node has."""
        disks = _disks(host)
        for disk in disks:
            with host.skipping():
                yield DEVICE(blockdevices.written(host, disk), label(disk))
        yield from _page_cache(host)
        yield from _xfs(host)
        yield from self._zfs(host)
        yield from self._processes_of(host)
        yield from self._ask_drives(host, disks)

    # -- what applications asked for --

    def _zfs(self, host: Host) -> Iterator[Yield]:
        pools = {path.split("/")[4] for path in host.glob("proc/spl/kstat/zfs/*/state")}
        self._pools = {pool: self._pools.get(pool, _Sum()) for pool in pools}
        self._leaves = {pool: found for pool, found in self._leaves.items() if pool in pools}
        for pool in sorted(pools):
            with host.skipping():
                written = {}
                for name in host.names(f"proc/spl/kstat/zfs/{pool}"):
                    if name.startswith("objset-"):
                        with host.skipping():
                            objset = zfs.parse_objset(host.read(f"proc/spl/kstat/zfs/{pool}/{name}"))
                            if objset is not None and objset.written is not None:
                                written[name] = objset.written
                self._pools[pool].add(written)
                labels = "filesystem", "zfs", label(pool)
                yield WRITTEN(self._pools[pool].total, *labels)
                leaves = self._leaves_of(host, pool)
                if leaves:
                    drives = {drive for leaf in leaves for drive in _drives_below(host, leaf)}
                    reached = sum(blockdevices.written(host, leaf) for leaf in leaves)
                    yield REACHED(reached, *labels, label(drives.pop()) if len(drives) == 1 else "")

    def _leaves_of(self, host: Host, pool: str) -> tuple[str, ...]:
        """Return the kernel names of the devices that a pool lies on; none while it is suspended: it might hang."""
        if host.read(f"proc/spl/kstat/zfs/{pool}/state").strip() == b"SUSPENDED":
            return ()
        known = self._leaves.get(pool)
        if known is None or self.clock() - known[0] >= LEAVES_EVERY:
            self._leaves[pool] = self.clock(), ()  # also if it hangs now
            code, text = host.command(
                *("zpool", "list", "-vHPL", "-o", "name", pool), deadline=5.0, subject=f"zpool {pool}"
            )
            found = [blockdevices.kernel_name(host, path) for path in zfs.parse_leaves(text)] if code == 0 else []
            # what lies on a file, or is gone, has no count of its own: then there is none of the pool
            known = self._leaves[pool] = self.clock(), tuple(leaf for leaf in found if leaf) if all(found) else ()
        return known[1]

    def _processes_of(self, host: Host) -> Iterator[Yield]:
        """Add what the processes of each container have written since the last look to the container's sum.

        A process takes over what its children have written when it waits for their end. So a container is judged as a
        whole, and parents are read before their children: else what a child wrote could count twice. What nobody
        takes over is lost, and lowers the whole: then nothing is added. A child that ends between the two looks is in
        neither: the whole is lower for this once.
        """
        is_first = not self._owners
        owners: dict[tuple[str, int], LabelSet] = {}
        sums: dict[LabelSet, int] = {}
        ended: set[LabelSet | None] = set()
        paths = []
        for born, pid, is_zombie in sorted(_processes(host)):
            try:
                path = cut(cgroup.parse_membership(host.read_start(f"proc/{pid}/cgroup")))
                paths.append(path)
                found = self._containers.lookup(path)
                owner = found.labels if found is not None and found.id else None
                if owner is None and is_zombie:  # version 1 no longer says where it was
                    owner = self._owners.get((pid, born))
                if owner is None:
                    continue
                written = blockstat.parse_io(host.read_start(f"proc/{pid}/io"))
            except Vanished:
                ended.add(self._owners.get((pid, born)))
                continue
            except Denied as error:  # of all processes alike: told once, not once for each
                host.skip(Denied("proc/PID/io", error.detail))
                continue
            except HostError as error:
                host.skip(error)
                continue
            owners[pid, born] = owner
            sums[owner] = sums.get(owner, 0) + written
        self._containers.retain(paths)
        for owner, total in sums.items():
            before = self._sums.get(owner, total if is_first else 0)
            self._written[owner] = self._written.get(owner, 0) + max(0, total - before)
            yield PROCESSES(self._written[owner], *owner)
        sums |= {owner: max(sums[owner], self._sums.get(owner, 0)) for owner in sums.keys() & ended}
        self._owners, self._sums = owners, sums
        self._written = {owner: self._written[owner] for owner in sums}

    # -- what drives say --

    def _ask_drives(self, host: Host, disks: list[str]) -> Iterator[Yield]:
        now = self.clock()
        drives = {**_nvme(host, disks), **{disk: "" for disk in disks if disk.startswith("sd")}}
        self._drives = {drive: known for drive, known in self._drives.items() if drive in drives}
        for drive, controller in list(drives.items())[:DRIVES]:
            known = self._drives.get(drive)
            if known is None or now - known.asked_at >= self.start.settings.drives_interval:
                known = known._replace(asked_at=now) if known is not None else _Drive((), now, now)
                with host.skipping():
                    samples = self._nvme(host, drive, controller) if controller else self._sata(host, drive)
                    known = _Drive(samples, now, now) if samples is not None else known
                self._drives[drive] = known
            if known.samples:
                yield from known.samples
                yield AGE(now - known.told_at, *known.samples[0].labels[:2])

    def _nvme(self, host: Host, drive: str, controller: str) -> tuple[Sample, ...] | None:
        base = f"sys/class/nvme/{controller}"
        if host.read_if_there(f"{base}/device/power/runtime_status").strip() in (b"suspended", b"suspending"):
            return None
        labels = label(drive), label(host.read_if_there(f"{base}/model").strip())
        page = nvme.data_of(host.ioctl(f"dev/{controller}", nvme.ADMIN_COMMAND, *_log(nvme.SMART, controller)))
        smart = nvme.parse_smart(page)
        if smart is None:
            raise Malformed(controller, "a log page 02h that is cut")
        samples = [
            HOST_WRITTEN(smart.host_written, *labels),
            USED(smart.used, *labels),
            SPARE(smart.spare, *labels),
            MEDIA_ERRORS(smart.media_errors, *labels),
            UNSAFE(smart.unsafe_shutdowns, *labels),
            *(WARNING(int(is_on), *labels, name) for name, is_on in smart.warnings.items()),
        ]
        media = self._flash(host, controller, base)
        if media is not None and _is_plausible(media, smart.host_written):
            samples.append(MEDIA_WRITTEN(media, *labels))
        return tuple(samples)

    def _flash(self, host: Host, controller: str, base: str) -> int | None:
        """Return the bytes that a drive wrote to its flash, if it has a page that is known to say so."""
        page = self._page(host, controller, nvme.OCP)
        if page is not None and (media := nvme.parse_ocp(page)) is not None:
            return media
        if host.read_if_there(f"{base}/device/vendor").strip() == b"0x8086":
            page = self._page(host, controller, nvme.INTEL)
            return nvme.parse_intel(page).media_written if page is not None else None
        return None

    def _page(self, host: Host, controller: str, page: int) -> bytes | None:
        """Return a log page. One that was refused is not asked for again: drives count what they refuse."""
        if (controller, page) in self._refused:
            return None
        try:
            return nvme.data_of(host.ioctl(f"dev/{controller}", nvme.ADMIN_COMMAND, *_log(page, controller)))
        except HostError:  # no such page
            self._refused.add((controller, page))
            return None

    def _sata(self, host: Host, disk: str) -> tuple[Sample, ...] | None:
        path, subject = f"dev/{disk}", label(disk)
        if not host.read_if_there(f"sys/block/{disk}/device/vendor").startswith(b"ATA"):
            return ()
        buffer, pointers = ata.power_request()
        if ata.is_asleep(host.ioctl(path, ata.SG_IO, buffer, subject, pointers)) is not False:
            return None
        buffer, pointers = ata.identify_request()
        identity = ata.data_of(host.ioctl(path, ata.SG_IO, buffer, subject, pointers))
        buffer, pointers = ata.smart_request()
        page = ata.data_of(host.ioctl(path, ata.SG_IO, buffer, subject, pointers))
        attributes = ata.parse_attributes(page) if page is not None else None
        if identity is None or attributes is None:
            raise Malformed(subject, "no SMART data")
        model = ata.parse_model(identity)
        written = ata.written(model, attributes)
        if written is None:
            written = _from_smartctl(host, disk)
        labels = subject, label(model)
        pairs = ((HOST_WRITTEN, written.host), (MEDIA_WRITTEN, written.media), (USED, written.used))
        return tuple(metric(value, *labels) for metric, value in pairs if value is not None)


def _processes(host: Host) -> Iterator[tuple[int, str, bool]]:
    """Yield each process as the clock ticks of its birth, its number, and whether it only waits to be waited for."""
    for pid in host.names("proc"):
        if pid.isdigit():
            with host.skipping(), contextlib.suppress(Vanished):
                words = host.read_start(f"proc/{pid}/stat").rpartition(b")")[2].split()
                if len(words) > BORN_AT and words[BORN_AT].isdigit() and len(words[BORN_AT]) <= DIGITS:
                    yield int(words[BORN_AT]), pid, words[0] == b"Z"


def _log(page: int, controller: str) -> tuple[bytes, str, dict[int, int]]:
    buffer, pointers = nvme.log_request(page)
    return buffer, label(controller), pointers


def _is_plausible(media: int, host: int) -> bool:
    """Return whether a drive that has written much may have these two counts; some pages are in units of their own."""
    return host < PLAUSIBLE or host / 10 <= media <= host * 1000


def _from_smartctl(host: Host, disk: str) -> ata.Written:
    """Return what smartctl's own table of drives knows of one that ours does not; a sleeping one is not woken."""
    try:
        command = "smartctl", "-j", "-A", "-n", "standby", f"/dev/{disk}"
        _, text = host.command(*command, deadline=SMARTCTL, subject=f"smartctl {disk}")
    except Vanished:  # it is not installed
        return ata.Written()
    try:
        found: Any = json.loads(text)
        table = {each["name"]: int(each["raw"]["value"]) for each in found["ata_smart_attributes"]["table"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return ata.Written()
    return ata.named(table)


def _disks(host: Host) -> list[str]:
    """Return the disks that lie on nothing else: they have hardware, and no slaves."""
    found = []
    for disk in host.listed("sys/block"):
        base = f"sys/block/{disk}"
        if host.exists(f"{base}/device") and not host.listed(f"{base}/slaves"):
            found.append(disk)
    return found


def _drives_below(host: Host, device: str) -> set[str]:
    """Return the physical disks that a device lies on; "" stands for what is none, such as a loop device."""
    found: set[str] = set()
    todo = [(device, 0)]
    while todo:
        name, depth = todo.pop()
        base = f"sys/class/block/{name}"
        slaves = host.listed(f"{base}/slaves")
        if host.exists(f"{base}/partition"):
            todo.append((host.resolve(base).split("/")[-2], depth))
        elif slaves and depth < LAYERS:
            todo += [(slave, depth + 1) for slave in slaves]
        else:
            found.add(name if host.exists(f"{base}/device") else "")
    return found


def _page_cache(host: Host) -> Iterator[Yield]:
    with host.skipping():
        dirtied = blockstat.parse_lines(host.read("proc/vmstat")).get("nr_dirtied")
        if dirtied is not None:
            yield WRITTEN(dirtied * PAGE, "page_cache", "nr_dirtied", "")


def _xfs(host: Host) -> Iterator[Yield]:
    for path in host.glob("sys/fs/xfs/*/stats/stats"):
        device = path.split("/")[3]
        with host.skipping():
            written = blockstat.parse_xfs_written(host.read(path))
            if written is None:
                raise Malformed(path, "expected a line `xpc`")
            reached = blockdevices.written(host, device)
            drives = _drives_below(host, device)
            labels = "filesystem", "xfs", label(device)
            yield WRITTEN(written, *labels)
            yield REACHED(reached, *labels, label(drives.pop()) if len(drives) == 1 else "")


def _nvme(host: Host, disks: list[str]) -> dict[str, str]:
    """Return NVMe controllers by the names of their disks; one that has several goes by its own name."""
    found = {}
    for controller in host.listed("sys/class/nvme"):
        mine = [disk for disk in disks if disk.startswith((f"{controller}n", f"{controller}c"))]
        found[mine[0] if len(mine) == 1 else controller] = controller
    return found


def _needs(host: Host) -> str | None:
    return None if host.exists("sys/block") or host.exists("proc/vmstat") else "this host shows no block device"


COLLECTOR = Collector(
    name="writeamp",
    summary="Bytes written at each layer, from applications to flash, and how worn drives are.",
    start=WriteAmplification,
    interval=60.0,  # three files of each process: at a thousand of them no other collector costs as much
    deadline=25.0,
    metrics=(
        *(WRITTEN, REACHED, DEVICE, PROCESSES, HOST_WRITTEN, MEDIA_WRITTEN, USED, SPARE, MEDIA_ERRORS, UNSAFE),
        *(WARNING, AGE),
    ),
    watermarks=(WEAR,),
    settings=Settings,
    needs=_needs,
    rules=RULES,
    rate_ratios=(
        RateRatio(name="write_amplification", layer="filesystem", top=REACHED, bottom=WRITTEN, floor=FLOOR),
        RateRatio(name="write_amplification", layer="device", top=MEDIA_WRITTEN, bottom=HOST_WRITTEN, floor=FLOOR),
    ),
    wants=(
        Want(
            capabilities=("DAC_READ_SEARCH",),
            lost="`ullage_container_written_bytes_total` of processes that are not root's",
        ),
        Want(
            capabilities=("SYS_PTRACE",),
            lost="`ullage_container_written_bytes_total` of processes that are not root's, or have capabilities that "
            "the agent has not",
        ),
        Want(
            capabilities=("SYS_ADMIN",),
            device="/dev/nvme*",
            there="sys/class/nvme/*",
            lost="wear, errors and flash writes of NVMe drives",
        ),
        Want(
            capabilities=("SYS_RAWIO",),
            device="/dev/sd*",
            there="sys/block/sd*",
            lost="wear, errors and flash writes of SATA drives",
        ),
    ),
)
