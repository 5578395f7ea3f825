"""OpenZFS: pool states, what is read and written of each dataset, the ARC, transaction groups, properties, snapshots.

Source: kstats below /proc/spl/kstat/zfs (OpenZFS 0.8; module/zfs/dataset_kstats.c, spa_stats.c), and every five
minutes `zfs list` and `zpool list` of the host, pool by pool. Bytes are those that applications asked for, before
compression, and only of datasets that are mounted, since they were; a volume's are those of its block device.

A suspended pool: its kstats answer, `zfs list` ends with success and nothing, and what looks into the mount hangs. So
its state is read first, and no program is run for it; what was known of it stays, with its age. A recordsize is the
most that a record has: what it costs is told by the bytes that reach the devices, never by its size alone.
"""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nlargest
from typing import NamedTuple

import msgspec

from agent.collector import Collector, Fact, Start, Yield
from agent.containers import LABELS as CONTAINER_LABELS
from agent.containers import Containers
from agent.errors import Failed, Vanished
from agent.finding import Finding, Found
from agent.host import Host
from agent.metric import LabelSet, Metric, label
from agent.privileges import Want
from agent.units import Seconds
from collectors import blockdevices
from collectors.readers import mountinfo, zfs

KSTATS = "proc/spl/kstat/zfs"
MODULE = "sys/module/zfs"
DEADLINE = 8.0  # seconds that one program may take
ASKING = 10.0  # seconds of a run after which no further program is started: the rest has its turn in the next
TXG_TIMEOUT = 5  # seconds: OpenZFS' default
WINDOW, WINDOW_MOST = 300.0, 3600.0  # seconds over which writes are compared with what reached the devices
FLOOR = 64 << 20  # bytes written in a window below which a ratio says nothing
AMPLIFIED, FAR_ABOVE = 8.0, 4  # bytes that reach the devices for one; a recordsize for the size of a write
LEAST_RECORD = 4096
NOBODY = ("", "", "", "")
OTHER = "other"
LAYER = re.compile(r"[0-9a-f]{64}(-init)?")  # Docker's, CRI-O's and Podman's
SNAPSHOT_OF_LAYER = re.compile(r"[0-9]{1,9}(-init)?")  # the nanoseconds of the second in which it was made
SNAPSHOTTER = "snapshot"  # containerd's name of each of its snapshots
TOOLS = {"autosnap_": "sanoid", "zfs-auto-snap_": "zfs-auto-snapshot", "syncoid_": "syncoid"}

ZPOOL = ("zpool",)
DATASET = ("zpool", "dataset", *CONTAINER_LABELS)
STATE = Metric(
    "ullage_zfs_pool_state",
    "A pool's state: ONLINE, DEGRADED, FAULTED, OFFLINE, REMOVED, UNAVAIL, SUSPENDED (1).",
    (*ZPOOL, "state"),
)
WRITES = Metric("ullage_zfs_dataset_writes_total", "Writes to a mounted dataset.", DATASET, "counter")
WRITTEN = Metric("ullage_zfs_dataset_written_bytes_total", "Bytes written to a mounted dataset.", DATASET, "counter")
READS = Metric("ullage_zfs_dataset_reads_total", "Reads from a mounted dataset.", DATASET, "counter")
READ = Metric("ullage_zfs_dataset_read_bytes_total", "Bytes read from a mounted dataset.", DATASET, "counter")
BACKLOG = Metric(
    "ullage_zfs_dataset_unlinked_backlog", "Files that are unlinked, but not freed: open, or in the queue.", DATASET
)
RECORDSIZE = Metric("ullage_zfs_dataset_recordsize_bytes", "Largest record of a filesystem's new files.", DATASET)
USED = Metric("ullage_zfs_dataset_used_bytes", "Space of a dataset, its snapshots and its descendants.", DATASET)
QUOTA = Metric("ullage_zfs_dataset_quota_bytes", "Quota of a dataset and its descendants; absent without one.", DATASET)
SNAPSHOTS = Metric("ullage_zfs_dataset_snapshots", "Snapshots of a dataset.", DATASET)
HOLDS = Metric("ullage_zfs_dataset_holds", "Holds on a dataset's snapshots, which keep them from removal.", DATASET)
SNAPSHOT_USED = Metric(
    "ullage_zfs_dataset_snapshot_used_bytes", "Space that is free when all snapshots of a dataset are gone.", DATASET
)
NEWEST = Metric("ullage_zfs_dataset_newest_snapshot_timestamp_seconds", "When the newest snapshot was made.", DATASET)
PROPERTIES = Metric(
    "ullage_zfs_dataset_properties_info",
    "A dataset's type, and its properties sync and compression (1).",
    (*DATASET, "type", "sync", "compression"),
    "info",
)
PROPERTIES_AGE = Metric(
    "ullage_zfs_properties_age_seconds", "Seconds since a pool's datasets were listed with their properties.", ZPOOL
)
SNAPSHOTS_AGE = Metric("ullage_zfs_snapshots_age_seconds", "Seconds since a pool's snapshots were listed.", ZPOOL)
TXGS = Metric("ullage_zfs_txgs_total", "Transaction groups that were committed and seen.", ZPOOL, "counter")
TXG_SECONDS = Metric(
    "ullage_zfs_txg_seconds_total",
    "Time that those groups were open, were quiesced, waited and were written (sync).",
    (*ZPOOL, "phase"),
    "counter",
)
TXG_WRITTEN = Metric("ullage_zfs_txg_written_bytes_total", "Bytes that those groups wrote.", ZPOOL, "counter")
VERSION = Metric(
    "ullage_zfs_version_info", "Versions of the ZFS module and of the host's tools (1).", ("module", "tools"), "info"
)
ARC = {
    "size": Metric("ullage_zfs_arc_size_bytes", "Size of the ARC, which is in no container's memory."),
    "c": Metric("ullage_zfs_arc_target_bytes", "Size that the ARC aims at."),
    "c_min": Metric("ullage_zfs_arc_min_bytes", "Least size that the ARC aims at."),
    "c_max": Metric("ullage_zfs_arc_max_bytes", "Largest size that the ARC aims at."),
    "arc_meta_used": Metric("ullage_zfs_arc_metadata_bytes", "Metadata in the ARC."),
    "hits": Metric("ullage_zfs_arc_hits_total", "Reads that the ARC answered.", (), "counter"),
    "iohits": Metric(
        "ullage_zfs_arc_io_hits_total", "Reads that waited for one of the same block, since 2.2.", (), "counter"
    ),
    "misses": Metric("ullage_zfs_arc_misses_total", "Reads that the ARC did not answer.", (), "counter"),
    "memory_throttle_count": Metric(
        "ullage_zfs_arc_memory_throttles_total", "Times that writes waited for memory of the ARC.", (), "counter"
    ),
}
PHASES = ("open", "quiesce", "wait", "sync")
COUNTED = (WRITES, WRITTEN, READS, READ)

MISMATCH = Finding(
    "zfs-recordsize-mismatch",
    "warning",
    "Each byte written to the pool {pool} became {amplification} on its devices, copies of mirrors included, over "
    "{minutes} minutes: most writes are those to {target}, of {size} bytes on average into records of {recordsize}.",
    "zfs set recordsize={recommended} {quoted} (16K suits most databases). It concerns new files only: copy the old "
    "ones within the dataset and put the copies in their place. It does not matter for files that are written once or "
    "in sequence, nor for those that are smaller than a record: leave it then.",
)
UNSYNCED = Finding(
    "zfs-sync-disabled",
    "warning",
    "The dataset {target} has sync=disabled, as have {below} below it: fsync returns at once, and a crash or a loss of "
    "power takes up to {seconds} seconds of writes that were acknowledged.",
    "zfs inherit sync {quoted}, or zfs set sync=standard {quoted}, unless all that is in it can be made again.",
)
SUSPENDED = Finding(
    "zfs-pool-suspended",
    "critical",
    "The pool {target} is suspended, as its devices fail: what writes to it hangs, and `zfs list` shows it no more.",
    "Bring the devices back (zpool status -v {quoted} names them, dmesg says why they went), then: zpool clear "
    "{quoted}. Processes that wait go on then; they cannot be killed before.",
)
FOREIGN = Finding(
    "zfs-foreign-snapshots",
    "warning",
    "{count} snapshots of {datasets} layers below {target} are not those of the container runtime, but of {tools}; "
    "they block the removal of containers and images, whose datasets then leak; one is {example}.",
    "{exclude}. Then, after a look at them (zfs list -H -r -t snapshot -o name,userrefs {quoted}), zfs destroy those "
    "that the runtime did not make; what has a hold needs zfs release first.",
)
SKEWED = Finding(
    "zfs-version-skew",
    "warning",
    "The ZFS module is of release {module}, the tools of the host are of {tools}: mixing them is not supported.",
    "Reboot into the module of the installed packages, or install the tools of the module's release: zfs version "
    "shows both.",
)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many datasets have series of their own, and how often the host's programs are asked."""

    top: int = 500
    properties_interval: Seconds = Seconds(300.0)

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if self.top < 1:
            raise ValueError("a top of 1 or more")


@dataclass(slots=True)
class _Snapshots:
    """What a dataset's snapshots come to."""

    count: int = 0
    holds: int = 0
    newest: int = 0


@dataclass(slots=True)
class _Foreign:
    """Snapshots that the runtime did not make, of layers below one dataset."""

    tools: Counter[str] = field(default_factory=Counter)
    datasets: set[str] = field(default_factory=set)
    example: str = ""


@dataclass(slots=True)
class _Window:
    """What was written to a pool's datasets, and what reached its devices, since a time."""

    since: float
    devices: tuple[str, ...]
    reached: int = 0
    writes: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Pool:
    """What is known of a pool: `last` is each dataset's counters when they were read, `rest` those without series."""

    asked_at: float | None = None
    devices: tuple[str, ...] = ()
    datasets: Mapping[str, zfs.Dataset] = field(default_factory=dict)
    datasets_at: float | None = None
    snapshots: Mapping[str, _Snapshots] = field(default_factory=dict)
    foreign: Mapping[str, _Foreign] = field(default_factory=dict)
    snapshots_at: float | None = None
    last: Mapping[str, zfs.Objset] | None = None
    chosen: frozenset[str] = frozenset()
    rest: Counter[Metric] = field(default_factory=Counter)
    has_rest: bool = False
    reached: int | None = None
    window: _Window | None = None
    mismatch: Found | None = None
    txg: int | None = None
    txgs: Counter[str] = field(default_factory=Counter)


class _Delta(NamedTuple):
    """What a dataset's counters grew by since the last run, in the order of COUNTED."""

    writes: int
    written: int
    reads: int
    read: int


@dataclass(slots=True)
class Zfs:
    """The running collector."""

    start: Start
    clock: Callable[[], float] = time.monotonic
    _containers: Containers = field(init=False)
    _pools: dict[str, _Pool] = field(default_factory=dict)
    _tools: str | None = None
    _tools_at: float | None = None

    def __post_init__(self) -> None:
        """Prepare the names of containers."""
        self._containers = Containers(self.start.host, self.start.runtimes)

    def close(self) -> None:
        """Nothing is open."""

    def collect(self, host: Host) -> Iterator[Yield]:
        """Read the kstats; ask the host's programs of the pools whose turn it is."""
        names = [path.split("/")[-2] for path in host.glob(f"{KSTATS}/*/state")]
        self._pools = {name: self._pools.get(name, _Pool()) for name in names}
        now = self.clock()
        for name, pool in self._pools.items():
            with host.skipping():
                self._ask(host, name, pool, now)
        yield from _arc(host)
        yield from self._versions(host)
        objsets: dict[str, dict[str, zfs.Objset]] = {}
        for name, pool in self._pools.items():
            with host.skipping():
                state = _state(host, name)
                yield STATE(1, label(name), label(state))
                if state == "SUSPENDED":
                    yield SUSPENDED(label(name), quoted=_quoted(name))
                objsets[name] = _objsets(host, name)
                deltas = _deltas(pool.last, objsets[name])
                pool.last = objsets[name]
                self._measure(host, name, pool, state, deltas)
                for dataset, delta in deltas.items():
                    if dataset not in pool.chosen:
                        pool.rest.update(dict(zip(COUNTED, delta, strict=True)))
                yield from self._txgs(host, name, pool)
        self._choose(objsets)
        owners = self._owners(host, objsets)
        for name, pool in self._pools.items():
            yield from self._counters(name, pool, objsets.get(name, {}), owners)
            yield from self._properties(name, pool, owners, now)
            yield from _hazards(host, pool)

    # -- what the host's programs say --

    def _ask(self, host: Host, name: str, pool: _Pool, now: float) -> None:
        """Have a pool's datasets, snapshots and devices listed if it is time; the first failure ends it."""
        is_due = pool.asked_at is None or now - pool.asked_at >= self.start.settings.properties_interval
        if not is_due or self.clock() - now > ASKING or _state(host, name) == "SUSPENDED":
            return
        pool.asked_at = now
        text = _run(host, name, "zpool", "list", "-vHPL", "-o", "name", name)
        found = [blockdevices.kernel_name(host, path) for path in zfs.parse_leaves(text)]
        # what lies on a file, or is gone, has no count of its own: then there is none of the pool
        pool.devices = tuple(device for device in found if device) if all(found) else ()
        columns = "-o", zfs.DATASET_COLUMNS
        text = _run(host, name, "zfs", "list", "-Hpr", "-t", "filesystem,volume", *columns, name)
        pool.datasets, pool.datasets_at = zfs.parse_datasets(text), now
        columns = "-o", zfs.SNAPSHOT_COLUMNS
        text = _run(host, name, "zfs", "list", "-Hpr", "-t", "snapshot", *columns, name)
        pool.snapshots, pool.foreign = _summed(zfs.parse_snapshots(text), self._snapshotters(host, pool.datasets))
        pool.snapshots_at = now

    def _snapshotters(self, host: Host, datasets: Iterable[str]) -> set[str]:
        """Return the datasets below which containerd has those of its containers."""
        return {_parent(dataset) for dataset in self._mounted(host, datasets)}

    def _versions(self, host: Host) -> Iterator[Yield]:
        with host.skipping():
            try:
                module = host.read(f"{MODULE}/version").decode("ascii", "replace").strip()
            except Vanished:
                return
            now = self.clock()
            if self._tools_at is None or now - self._tools_at >= self.start.settings.properties_interval:
                self._tools_at, self._tools = now, None
                # it ends with an error where it cannot ask the module, but tells its own version before
                _, text = host.command("zfs", "version", deadline=DEADLINE, subject="zfs version")
                self._tools = zfs.parse_version(text)
            if self._tools is None:
                return
            yield VERSION(1, label(module), label(self._tools))
            releases = zfs.release(module), zfs.release(self._tools)
            if None not in releases and releases[0] != releases[1]:
                yield SKEWED("zfs", module=label(module), tools=label(self._tools))

    # -- what it costs --

    def _measure(self, host: Host, name: str, pool: _Pool, state: str, deltas: Mapping[str, _Delta]) -> None:
        """Hold what was written against what reached the devices, over a window long enough to tell."""
        # a pool that is repaired writes what nobody asked for
        if state != "ONLINE" or not pool.devices:
            pool.window = pool.mismatch = pool.reached = None
            return
        before, pool.reached = pool.reached, None
        pool.reached = sum(blockdevices.written(host, device) for device in pool.devices)
        now, window = self.clock(), pool.window
        if window is None or window.devices != pool.devices or before is None or pool.reached < before:
            pool.window = _Window(now, pool.devices)
            return
        window.reached += pool.reached - before
        for dataset, delta in deltas.items():
            window.writes[dataset] += delta.writes
            window.written[dataset] += delta.written
        seconds, logical = now - window.since, window.written.total()
        if seconds >= WINDOW and logical >= FLOOR:
            pool.mismatch = _mismatch(name, pool.datasets, window, seconds)
        elif seconds >= WINDOW_MOST:
            pool.mismatch = None
        else:
            return
        pool.window = _Window(now, pool.devices)

    def _txgs(self, host: Host, name: str, pool: _Pool) -> Iterator[Yield]:
        try:
            found = zfs.parse_txgs(host.read(f"{KSTATS}/{name}/txgs"))
        except Vanished:
            return
        if not found:  # zfs_txg_history is 0
            return
        if pool.txg is not None:
            for txg in found:
                if txg.number > pool.txg:
                    pool.txgs["groups"] += 1
                    pool.txgs["written"] += txg.written
                    pool.txgs.update(dict(zip(PHASES, txg[2:], strict=True)))
        pool.txg = found[-1].number
        yield TXGS(pool.txgs["groups"], label(name))
        yield TXG_WRITTEN(pool.txgs["written"], label(name))
        for phase in PHASES:
            yield TXG_SECONDS(pool.txgs[phase] / 1e9, label(name), phase)

    # -- whose series they are --

    def _choose(self, objsets: Mapping[str, Mapping[str, zfs.Objset]]) -> None:
        """Choose the datasets with series of their own: who is in stays until another does a quarter more."""
        every = [
            (name, dataset)
            for name, pool in self._pools.items()
            for dataset in {**pool.datasets, **objsets.get(name, {})}
            if dataset != OTHER  # the root of a pool of that name would be taken for the rest
        ]

        def weight(key: tuple[str, str]) -> tuple[float, int]:
            pool, objset = self._pools[key[0]], objsets.get(key[0], {}).get(key[1])
            activity = (objset.written or 0) + (objset.read or 0) if objset is not None else 0
            known = pool.datasets.get(key[1])
            return activity * (1.25 if key[1] in pool.chosen else 1), known.used or 0 if known is not None else 0

        top = self.start.settings.top
        chosen = nlargest(top, every, key=weight) if len(every) > top else every
        for name, pool in self._pools.items():
            pool.chosen = frozenset(dataset for of, dataset in chosen if of == name)

    def _owners(self, host: Host, objsets: Mapping[str, Iterable[str]]) -> dict[str, LabelSet]:
        """Return the labels of the containers whose writable layers are among the datasets."""
        owners: dict[str, LabelSet] = {}
        shown = [dataset for pool in self._pools.values() for dataset in pool.chosen]
        docker = {dataset: each for dataset in shown if LAYER.fullmatch(each := dataset.rpartition("/")[2])}
        layers = self._containers.docker_layers("zfs") if docker else {}
        for dataset, layer in docker.items():
            if layer in layers and (found := self._containers.lookup_id(layers[layer])):
                owners[dataset] = found.labels
        mounted = [dataset for each in objsets.values() for dataset in each]
        owners |= self._mounted(host, mounted)
        self._containers.forget_unasked()
        return owners

    def _mounted(self, host: Host, datasets: Iterable[str]) -> dict[str, LabelSet]:
        """Return the labels of containerd's containers by their datasets, which have numbers for names."""
        numbered = {dataset for dataset in datasets if dataset.rpartition("/")[2].isdigit()}
        owners = {}
        if numbered:
            with host.skipping():
                for mount in mountinfo.parse(host.read("proc/1/mountinfo"))[0]:
                    dataset = mountinfo.unescape(mount.source) if mount.fstype == "zfs" else ""
                    if dataset in numbered and (found := self._containers.lookup_rootfs(mount.mountpoint)):
                        owners[dataset] = found.labels
        return owners

    # -- the series --

    def _counters(
        self, name: str, pool: _Pool, objsets: Mapping[str, zfs.Objset], owners: Mapping[str, LabelSet]
    ) -> Iterator[Yield]:
        backlog = 0
        for dataset, objset in objsets.items():
            left = None
            if objset.unlinks is not None and objset.unlinked is not None:
                left = max(0, objset.unlinks - objset.unlinked)
            if dataset not in pool.chosen:
                pool.has_rest = True
                backlog += left or 0
                continue
            labels = label(name), label(dataset), *owners.get(dataset, NOBODY)
            values = objset.writes, objset.written, objset.reads, objset.read
            for metric, value in zip(COUNTED, values, strict=True):
                if value is not None:
                    yield metric(value, *labels)
            if left is not None:
                yield BACKLOG(left, *labels)
        if pool.has_rest:
            for metric in COUNTED:
                yield metric(pool.rest[metric], label(name), OTHER, *NOBODY)
            yield BACKLOG(backlog, label(name), OTHER, *NOBODY)

    def _properties(self, name: str, pool: _Pool, owners: Mapping[str, LabelSet], now: float) -> Iterator[Yield]:
        for metric, at in ((PROPERTIES_AGE, pool.datasets_at), (SNAPSHOTS_AGE, pool.snapshots_at)):
            if at is not None:
                yield metric(now - at, label(name))
        rest: Counter[Metric] = Counter()
        for dataset, each in pool.datasets.items():
            taken = pool.snapshots.get(dataset, _Snapshots())
            summed: list[tuple[Metric, int | None]] = [(SNAPSHOT_USED, each.used_by_snapshots)]
            if pool.snapshots_at is not None:
                summed += [(SNAPSHOTS, taken.count), (HOLDS, taken.holds)]
            if dataset not in pool.chosen:
                rest.update({metric: value or 0 for metric, value in summed})
                continue
            labels = label(name), label(dataset), *owners.get(dataset, NOBODY)
            yield PROPERTIES(1, *labels, label(each.kind), label(each.sync), label(each.compression))
            own = (RECORDSIZE, each.recordsize), (USED, each.used), (QUOTA, each.quota), (NEWEST, taken.newest or None)
            for metric, value in (*own, *summed):
                if value is not None:
                    yield metric(value, *labels)
        for metric, total in rest.items():
            yield metric(total, label(name), OTHER, *NOBODY)


def _arc(host: Host) -> Iterator[Yield]:
    with host.skipping():
        values = zfs.parse_kstat(host.read(f"{KSTATS}/arcstats"))
        for key, metric in ARC.items():
            value = zfs.number(values.get(key, ""))
            if value is not None:
                yield metric(value)


def _state(host: Host, name: str) -> str:
    return host.read(f"{KSTATS}/{name}/state").decode("ascii", "replace").strip()


def _run(host: Host, name: str, *argv: str) -> bytes:
    """Return what a program says of a pool."""
    code, text = host.command(*argv, deadline=DEADLINE, subject=f"zfs {label(name)}")
    if code:
        raise Failed(f"zfs {label(name)}", f"{argv[0]} {argv[1]} ended with {code}")
    return text


def _objsets(host: Host, name: str) -> dict[str, zfs.Objset]:
    """Return the counters of a pool's datasets by their names."""
    found = {}
    files = [file for file in host.names(f"{KSTATS}/{name}") if file.startswith("objset-")]
    # before 2.2 a dataset that was renamed keeps its name here, which another may have since: that one is younger
    for file in sorted(files, key=lambda file: (len(file), file)):
        with host.skipping():
            objset = zfs.parse_objset(host.read(f"{KSTATS}/{name}/{file}"))
            if objset is not None:
                found[objset.dataset] = objset
    return found


def _deltas(before: Mapping[str, zfs.Objset] | None, now: Mapping[str, zfs.Objset]) -> dict[str, _Delta]:
    """Return what each dataset's counters grew by; one that is new, or fell, was mounted since and began at zero."""
    if before is None:
        return {}
    deltas = {}
    for name, objset in now.items():
        old = before.get(name)
        values = [value or 0 for value in (objset.writes, objset.written, objset.reads, objset.read)]
        if old is not None:
            olds = [value or 0 for value in (old.writes, old.written, old.reads, old.read)]
            values = [value - was if value >= was else value for value, was in zip(values, olds, strict=True)]
        deltas[name] = _Delta(*values)
    return deltas


def _summed(
    snapshots: Iterable[zfs.Snapshot], snapshotters: set[str]
) -> tuple[dict[str, _Snapshots], dict[str, _Foreign]]:
    """Return what each dataset's snapshots come to, and those that no runtime made, by the parent of its layers."""
    sums: dict[str, _Snapshots] = {}
    foreign: dict[str, _Foreign] = {}
    for each in snapshots:
        taken = sums.setdefault(each.dataset, _Snapshots())
        taken.count += 1
        taken.holds += each.holds
        taken.newest = max(taken.newest, each.created)
        parent = _parent(each.dataset)
        last = each.dataset.rpartition("/")[2]
        if LAYER.fullmatch(last):
            is_own = SNAPSHOT_OF_LAYER.fullmatch(each.name) is not None
        else:
            is_own = parent not in snapshotters or not last.isdigit() or each.name == SNAPSHOTTER
        if parent and not is_own:
            found = foreign.setdefault(parent, _Foreign(example=f"{each.dataset}@{each.name}"))
            tool = next((tool for prefix, tool in TOOLS.items() if each.name.startswith(prefix)), "")
            found.tools[tool] += 1
            found.datasets.add(each.dataset)
    return sums, foreign


def _mismatch(name: str, datasets: Mapping[str, zfs.Dataset], window: _Window, seconds: float) -> Found | None:
    """Return the finding if the records of the dataset with most of a pool's writes are far too large for them."""
    amplification = window.reached / window.written.total()
    dataset, writes = window.writes.most_common(1)[0]
    known = datasets.get(dataset)
    if amplification < AMPLIFIED or 2 * writes <= window.writes.total() or known is None or known.recordsize is None:
        return None
    size = -(-window.written[dataset] // writes)
    recommended = max(LEAST_RECORD, 1 << max(0, size - 1).bit_length())
    if known.recordsize < FAR_ABOVE * size or recommended >= known.recordsize:
        return None
    return MISMATCH(
        label(dataset),
        pool=label(name),
        amplification=f"{amplification:.1f}",
        minutes=int(seconds / 60),
        size=size,
        recordsize=_size(known.recordsize),
        recommended=_size(recommended),
        quoted=_quoted(dataset),
    )


def _hazards(host: Host, pool: _Pool) -> Iterator[Yield]:
    """Yield the findings that a pool's datasets and snapshots are."""
    if pool.mismatch is not None:
        yield pool.mismatch
    unsynced = {name for name, each in pool.datasets.items() if each.sync == "disabled"}
    tops = {name: _top(name, unsynced) for name in unsynced}
    for dataset, count in Counter(tops.values()).items():
        yield UNSYNCED(label(dataset), below=count - 1, seconds=_txg_timeout(host), quoted=_quoted(dataset))
    for dataset, found in pool.foreign.items():
        ways = {
            "sanoid": f"Give [{label(dataset)}] autosnap = no and recursive = yes in sanoid.conf",
            "zfs-auto-snapshot": f"zfs set com.sun:auto-snapshot=false {_quoted(dataset)}",
            "syncoid": f"Have syncoid leave it out: --exclude-datasets={_quoted(dataset)}",
            "": f"Have what takes them leave out {label(dataset)}",
        }
        yield FOREIGN(
            label(dataset),
            count=found.tools.total(),
            datasets=len(found.datasets),
            tools=", ".join(tool or "something unknown" for tool in sorted(found.tools, reverse=True)),
            example=label(found.example),
            exclude=". ".join(ways[tool] for tool in sorted(found.tools, reverse=True)),
            quoted=_quoted(dataset),
        )


def _txg_timeout(host: Host) -> int:
    with host.skipping():
        return host.read_int(f"{MODULE}/parameters/zfs_txg_timeout")
    return TXG_TIMEOUT


def _top(dataset: str, among: set[str]) -> str:
    """Return the highest ancestor of a dataset that has all between them in the set, too."""
    while (parent := _parent(dataset)) in among:
        dataset = parent
    return dataset


def _parent(dataset: str) -> str:
    return dataset.rpartition("/")[0]


def _size(size: int) -> str:
    return f"{size >> 20}M" if size >= 1 << 20 else f"{size >> 10}K" if size >= 1 << 10 else str(size)


def _quoted(name: str) -> str:
    """Return a name as a shell takes it; it is another's input."""
    return shlex.quote(label(name))


def _needs(host: Host) -> str | None:
    return None if host.exists(KSTATS) else "the ZFS module is not loaded"


COLLECTOR = Collector(
    name="zfs",
    summary="OpenZFS: pool states, datasets with their containers, snapshots, ARC and transaction groups.",
    start=Zfs,
    interval=30.0,
    deadline=25.0,
    metrics=(
        *(STATE, *COUNTED, BACKLOG, RECORDSIZE, USED, QUOTA, SNAPSHOTS, HOLDS, SNAPSHOT_USED, NEWEST, PROPERTIES),
        *(PROPERTIES_AGE, SNAPSHOTS_AGE, TXGS, TXG_SECONDS, TXG_WRITTEN, VERSION, *ARC.values()),
    ),
    findings=(MISMATCH, UNSYNCED, SUSPENDED, FOREIGN, SKEWED),
    settings=Settings,
    needs=_needs,
    facts=(Fact("ZFS pools", STATE), Fact("ZFS versions", VERSION)),
    wants=(
        Want(
            capabilities=("SYS_ADMIN", "SYS_CHROOT"),
            device="/dev/zfs",
            there=KSTATS,
            lost="properties, snapshots and holds; states and counters stay",
        ),
    ),
)
