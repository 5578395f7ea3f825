"""Whose page cache it is: memory by container, pod and slice; what reclaim does to the node.

Source: memory.stat of each cgroup (version 1, 2 or hybrid), see collectors.readers.cgroup; /proc/vmstat, slabinfo,
/proc/sys/fs/{dentry-state,inode-nr}, cgroup.stat. Page cache is `file - shmem`: tmpfs counts as cache, but cannot be
dropped. A page belongs to the container that read it first, also when others use it. The kernel's statistics may be
two seconds old. `pgpgin` and `pgpgout` of /proc/vmstat are KiB of block I/O, and say nothing of the page cache.
"""

from __future__ import annotations

import os
import resource
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import is_

import msgspec

from agent.collector import Collector, Start, Top, Yield
from agent.containers import LABELS, Containers
from agent.errors import Failed, HostError, Malformed, Vanished, from_os
from agent.finding import Finding, Found
from agent.host import Host
from agent.inotify import CREATE, DELETE, IGNORED, IS_DIRECTORY, OVERFLOW, Inotify
from agent.metric import Family, Kind, LabelSet, Metric, label
from agent.ranking import biggest
from agent.watermark import Tier, Watermark
from collectors.cgroups import CGROUPS, LONGEST, MOST, Layout, layout
from collectors.readers import slabinfo
from collectors.readers.cgroup import KEYS_V1, KEYS_V2, Row, parse_limit, parse_numbers, parse_pressure, stat_parser

MIB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
STAT_BYTES = 1 << 14  # memory.stat has less than 3 KiB today
SMALL_BYTES = 1 << 10  # a limit is a number, pressure two lines
REDISCOVER_EVERY = 300.0  # seconds; finds what containers make below themselves, which no event tells of
LIMIT_EVERY = 55.0  # seconds between looks at a limit: one round in four
SLICES = 100
OTHER: LabelSet = ("", "", "other", "")
CACHE, SHMEM, INACTIVE = 0, 1, 2  # places in a row
CACHES = ("dentry", "inode_cache", "ext4_inode_cache", "xfs_inode", "btrfs_inode", "ovl_inode", "proc_inode_cache")
MORE_CACHES = ("shmem_inode_cache", "fuse_inode", "nfs_inode_cache", "zfs_znode_cache", "kernfs_node_cache")

# -- what the findings go by --
POLLUTION_REFAULTS = 10 * MIB  # bytes a second that the node reads again, over POLLUTION_ROUNDS
POLLUTION_ROUNDS = 4
POLLUTION_SHARE, POLLUTION_LEAST = 0.5, 256 * MIB
DROPS_WITHIN, DROPS_LEAST = 3600.0, 2
SLAB_SHARE, SLAB_LEAST = 0.2, 1024 * MIB
DYING_LEAST = 1000

FIELDS: tuple[tuple[str, str, Kind], ...] = (
    ("page_cache_bytes", "Page cache charged to it, tmpfs not counted", "gauge"),
    ("shmem_bytes", "Memory in tmpfs and shared memory, which no reclaim drops", "gauge"),
    ("page_cache_inactive_bytes", "Page cache that is reclaimed first (inactive_file)", "gauge"),
    ("page_cache_active_bytes", "Page cache that was used again (active_file)", "gauge"),
    ("page_cache_dirty_bytes", "Page cache that is not written yet", "gauge"),
    ("page_cache_writeback_bytes", "Page cache that is being written", "gauge"),
    ("mapped_file_bytes", "Page cache that is mapped into processes", "gauge"),
    ("refaults_total", "Pages of files read again soon after they were evicted", "counter"),
    ("slab_reclaimable_bytes", "Kernel memory that can be reclaimed, mostly dentries and inodes", "gauge"),
)


def _metrics(kind: str, labels: LabelSet) -> tuple[Metric, ...]:
    whose = {"container": "a container", "pod": "a pod", "slice": "a top-level cgroup"}[kind]
    return tuple(Metric(f"ullage_{kind}_{name}", f"{text}, of {whose}.", labels, type_) for name, text, type_ in FIELDS)


def _limit(kind: str, labels: LabelSet) -> Metric:
    return Metric(f"ullage_{kind}_memory_limit_bytes", "Memory limit; absent where there is none.", labels)


def _pressure(kind: str, labels: LabelSet) -> Metric:
    text = "Time that some, or all (full), of its tasks were stalled for a resource (PSI)."
    return Metric(f"ullage_{kind}_pressure_seconds_total", text, (*labels, "resource", "kind"), "counter")


KIND_LABELS: dict[str, LabelSet] = {"container": LABELS, "pod": ("namespace", "pod"), "slice": ("slice",)}
STATS = {kind: _metrics(kind, labels) for kind, labels in KIND_LABELS.items()}
LIMITS = {kind: _limit(kind, labels) for kind, labels in KIND_LABELS.items()}
PRESSURES = {kind: _pressure(kind, labels) for kind, labels in KIND_LABELS.items()}
DYING = Metric("ullage_cgroup_dying_descendants", "Removed cgroups that still pin kernel memory.", ("slice",))
REFAULTED = Metric(
    "ullage_reclaim_refaulted_file_pages_total", "Pages of files read again soon after eviction.", (), "counter"
)
SCANNED = Metric("ullage_reclaim_scanned_pages_total", "Pages that reclaim has looked at.", ("by",), "counter")
STOLEN = Metric("ullage_reclaim_stolen_pages_total", "Pages that reclaim has freed.", ("by",), "counter")
STALLS = Metric(
    "ullage_reclaim_allocation_stalls_total", "Allocations that had to reclaim for themselves.", ("zone",), "counter"
)
INODE_STEALS = Metric(
    "ullage_reclaim_inode_steal_pages_total", "Page cache lost as its inode was reclaimed, pages.", ("by",), "counter"
)
BLOCK_READ = Metric("ullage_block_io_read_bytes_total", "Block I/O of the node, read (pgpgin).", (), "counter")
BLOCK_WRITTEN = Metric(
    "ullage_block_io_written_bytes_total", "Block I/O of the node, written (pgpgout).", (), "counter"
)
DIRTIED = Metric("ullage_page_cache_dirtied_bytes_total", "Page cache made dirty (nr_dirtied).", (), "counter")
CLEANED = Metric("ullage_page_cache_written_bytes_total", "Page cache written back (nr_written).", (), "counter")
DROPS = Metric(
    "ullage_drop_caches_total", "Writes to /proc/sys/vm/drop_caches, by what they dropped.", ("kind",), "counter"
)
SLAB = Metric("ullage_slab_bytes", "Kernel memory of the caches of dentries and inodes.", ("cache",))
DENTRIES = Metric("ullage_dentries", "Dentries in memory: all, not in use, of files that do not exist.", ("state",))
CACHED_INODES = Metric("ullage_cached_inodes", "Inodes in memory: all, and not in use.", ("state",))

NODE = (REFAULTED, SCANNED, STOLEN, STALLS, INODE_STEALS, BLOCK_READ, BLOCK_WRITTEN, DIRTIED, CLEANED, DROPS)
SIMPLE = (  # key of /proc/vmstat, metric, labels, factor
    ("workingset_refault_file", REFAULTED, (), 1),
    ("workingset_refault", REFAULTED, (), 1),  # before Linux 5.9, of files too
    *((f"pgscan_{by}", SCANNED, (by,), 1) for by in ("kswapd", "direct", "khugepaged", "proactive")),
    *((f"pgsteal_{by}", STOLEN, (by,), 1) for by in ("kswapd", "direct", "khugepaged", "proactive")),
    *((f"allocstall_{zone}", STALLS, (zone,), 1) for zone in ("dma", "dma32", "normal", "movable", "device")),
    ("pginodesteal", INODE_STEALS, ("direct",), 1),
    ("kswapd_inodesteal", INODE_STEALS, ("kswapd",), 1),
    ("pgpgin", BLOCK_READ, (), 1024),
    ("pgpgout", BLOCK_WRITTEN, (), 1024),
    ("nr_dirtied", DIRTIED, (), PAGE),
    ("nr_written", CLEANED, (), PAGE),
    ("drop_pagecache", DROPS, ("pagecache",), 1),
    ("drop_slab", DROPS, ("slab",), 1),
)

FILL = Watermark(
    name="page_cache",
    summary="Page cache of a container's memory limit. Informational: a cache that fills its limit does its work.",
    used=STATS["container"][CACHE],
    size=LIMITS["container"],
    target=LABELS,
    tiers=(Tier("info", "info", 0.90, 0.80, hold=240.0),),
)

POLLUTION = Finding(
    "page-cache-pollution",
    "warning",
    "The node reads {rate} MiB/s of file pages again that it has just evicted, while {target} holds {share} % of the "
    "containers' inactive file cache ({size} MiB).",
    "{relieve}. `echo 1 > /proc/sys/vm/drop_caches` would drop the page cache, 2 the dentries and inodes, of the whole "
    "node: both hit every container and help only until the files are read again.",
)
DROPPING = Finding(
    "drop-caches-in-use",
    "info",
    "Somebody writes to /proc/sys/vm/drop_caches regularly: {count} times within an hour.",
    "Find the job (`dmesg | grep drop_caches` names the process) and remove it: it drops what all containers use. "
    "Bound one container's cache by its memory limit, or by a write to its memory.reclaim.",
)
DOMINATED = Finding(
    "slab-dominated",
    "warning",
    "Dentries and inodes take {size} MiB of kernel memory, more than the page cache ({cache} MiB): files are many "
    "rather than large.",
    "Find what walks or makes millions of files (`ullage_container_slab_reclaimable_bytes` on cgroup v2, slabtop); its "
    "memory limit bounds them too, and a write to its memory.reclaim frees its own. `echo 2 > "
    "/proc/sys/vm/drop_caches` frees those of the whole node, until the next walk.",
)
DYING_CGROUPS = Finding(
    "dying-cgroups",
    "warning",
    "{count} removed cgroups below {target} still pin kernel memory, mostly by page cache that they read first.",
    "Their memory goes when those pages are reclaimed: `echo 512M > /sys/fs/cgroup/{path}memory.reclaim` (Linux 5.19 "
    "and newer) asks for that, a bounded amount at a time; it ends with an error where there was less to reclaim. Look "
    "for jobs that make short-lived containers.",
)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many containers, and pods, have series of their own, and how many descriptors are kept open.

    A kept one costs 4.6 KiB of kernel memory, which counts as the agent's; without it a look costs twice the CPU.
    """

    top: int = 200
    kept_descriptors: int = 1024

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if self.top < 1 or self.kept_descriptors < 0:
            raise ValueError("a top of 1 or more, and 0 or more kept_descriptors")


class Group:
    """A cgroup whose memory.stat is read each round, by a kept descriptor where one is left."""

    __slots__ = ("descriptor", "has_pressure", "inner", "limit", "limit_at", "path", "row")

    def __init__(self, path: str) -> None:
        self.path = path
        self.descriptor = -1
        self.has_pressure = True  # until it turns out that it has none
        self.row: Row = ()
        self.inner: list[Group] = []
        self.limit: int | None = None
        self.limit_at = float("-inf")  # when it was read


class Tree:
    """The cgroups of a node by kind, kept up to date by inotify; containers themselves are not watched."""

    def __init__(self, host: Host, root: str, containers: Containers) -> None:
        self._host = host
        self._root = root
        self._containers = containers
        self._inotify = Inotify()
        self._watched: dict[int, str] = {}
        self._is_blind = False
        self._scanned_at = float("-inf")
        self._seen: set[str] = set()
        self.is_crowded = False  # there are more than are looked at
        self.has_changed = True
        self.kept_descriptors = 0
        self.first_in: dict[str, Group] = {}  # one of the containers that lie right below a path
        self.groups: dict[str, dict[str, Group]] = {kind: {} for kind in KIND_LABELS}

    def close(self) -> None:
        """Let go of all descriptors."""
        self._inotify.close()
        for groups in self.groups.values():
            for group in groups.values():
                self._let_go(group)

    def update(self, now: float) -> None:
        """Take in what was made and removed since the last round."""
        is_doubtful = self._is_blind or now - self._scanned_at > REDISCOVER_EVERY
        for event in self._inotify.read():
            if event.mask & OVERFLOW:
                is_doubtful = True
            elif event.mask & IGNORED:
                self._watched.pop(event.watch, None)
            elif event.mask & IS_DIRECTORY and (directory := self._watched.get(event.watch)) is not None:
                path = f"{directory}/{event.name}"
                if event.mask & DELETE:
                    self.remove(path)
                elif event.mask & CREATE:
                    self._scan(path)
        if is_doubtful:
            self._scanned_at = now
            self._rediscover()
        if self.has_changed:
            self._nest()
            self._containers.retain([path for groups in self.groups.values() for path in groups])

    def remove(self, path: str) -> None:
        """Forget a cgroup that is gone."""
        self._seen.discard(path)
        for groups in self.groups.values():
            if group := groups.pop(path, None):
                self._let_go(group)
                self.has_changed = True

    def again(self, path: str) -> None:
        """Look again at a cgroup whose descriptor says that it is gone: another may have taken its name."""
        self.remove(path)
        if self._host.exists(self._root + path):
            self._scan(path)

    def _let_go(self, group: Group) -> None:
        if group.descriptor >= 0:
            os.close(group.descriptor)
            group.descriptor = -1
            self.kept_descriptors -= 1

    def keep(self, group: Group, descriptor: int) -> None:
        """Keep a cgroup's memory.stat open."""
        group.descriptor = descriptor
        self.kept_descriptors += 1

    def _rediscover(self) -> None:
        for groups in self.groups.values():
            for group in groups.values():
                group.has_pressure = True  # PSI can be switched on for a cgroup
        self._is_blind = self.is_crowded = False
        self._seen = set()
        self._scan("")
        for groups in self.groups.values():
            for path in groups.keys() - self._seen:
                self.remove(path)

    def _scan(self, path: str) -> None:
        """Take in a cgroup and what is below it: what is near first, as containers may have any number of their own."""
        todo = deque([path])
        while todo:
            path = todo.popleft()
            if path not in self._seen and (len(self._seen) >= MOST or len(path) > LONGEST):
                self.is_crowded = True
                continue
            self._seen.add(path)
            if self._take(path):
                todo.extend(f"{path}/{name}" for name in self._watch(path)[: MOST - len(todo)])

    def _watch(self, path: str) -> list[str]:
        """Watch a directory and return the directories in it; one without any is not read."""
        real = self._host.real(self._root + path)
        try:
            try:
                self._watched[self._inotify.add(real)] = path
            except HostError as error:
                if isinstance(error, Vanished):
                    return []
                self._is_blind = True  # no watch is left: what is here is looked for in each round
                self._host.skip(error)
            if os.stat(real).st_nlink == 2:  # noqa: PLR2004  itself and its name: no subdirectory
                return []
            with os.scandir(real) as entries:
                some = islice((entry.name for entry in entries if entry.is_dir(follow_symlinks=False)), MOST)
                return sorted(some)
        except OSError as error:
            self._host.skip(from_os(path, error))
            return []

    def _take(self, path: str) -> bool:
        """Take in a cgroup; return whether there may be others below it."""
        place = self._containers.place(path)
        parent = self._containers.place(path.rpartition("/")[0])
        is_own = place is not None and (parent is None or (place.id, place.pod_uid) != (parent.id, parent.pod_uid))
        kind = None
        if place is not None and is_own:
            kind = "container" if place.id else "pod"
        elif path.count("/") == 1 and len(self.groups["slice"]) < SLICES:
            kind = "slice"
        if kind is not None and path not in self.groups[kind]:
            self.groups[kind][path] = Group(path)
            self.has_changed = True
        if place is None or not place.id:
            return True
        # most containers have no cgroups of their own; a watch on each would cost a kibibyte
        try:
            return os.stat(self._host.real(self._root + path)).st_nlink != 2  # noqa: PLR2004  no subdirectory
        except OSError:
            return False

    def _nest(self) -> None:
        """Find containers in containers (kind), as the outer one's numbers hold the inner ones', and in pods."""
        containers = self.groups["container"]
        self.first_in = {path.rpartition("/")[0]: group for path, group in containers.items()}
        for group in containers.values():
            group.inner = []
        for path, group in containers.items():
            above = path
            while above := above.rpartition("/")[0]:
                if outer := containers.get(above):
                    outer.inner.append(group)
                    break


class PageCache:
    """The running collector."""

    def __init__(self, start: Start, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings: Settings = start.settings
        self._clock = clock
        found = layout(start.host)
        self._layout = found or Layout(CGROUPS, is_v2=True, pressure_root=None)
        self._parse = stat_parser(KEYS_V2 if self._layout.is_v2 else KEYS_V1)
        self._containers = Containers(start.host, start.runtimes, clock)
        self._tree = Tree(start.host, self._layout.root, self._containers)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_descriptors = max(0, min(self._settings.kept_descriptors, soft - 256))
        self._chosen: dict[str, list[Group]] = {}
        self._labels: dict[Group, LabelSet] = {}
        self._kept: dict[Metric, tuple[LabelSet, ...]] = {}
        self._refaults: deque[tuple[float, int]] = deque(maxlen=POLLUTION_ROUNDS + 1)
        self._drops: deque[float] = deque(maxlen=100)
        self._drops_seen: int | None = None

    def close(self) -> None:
        """Let go of all descriptors."""
        self._tree.close()

    def collect(self, host: Host) -> Iterator[Yield]:
        """Sweep all cgroups, then look at the node."""
        if layout(host) is not None:
            self._tree.update(self._clock())
            if self._tree.is_crowded:
                what = f"has more than {MOST} cgroups, or their paths have more than {LONGEST} characters"
                host.skip(Failed(self._layout.root, f"{what}: nothing is known of the others"))
            for kind in KIND_LABELS:
                self._sweep(host, kind)
            for kind in KIND_LABELS:
                yield from self._families(host, kind)
            if self._tree.has_changed:
                self._tree.has_changed = False
                alive = {group for groups in self._tree.groups.values() for group in groups.values()}
                self._labels = {group: labels for group, labels in self._labels.items() if group in alive}
            yield from self._dying(host)
        yield from self._node(host)

    # -- cgroups --

    def _sweep(self, host: Host, kind: str) -> None:
        lost = []
        parse, pread = self._parse, os.pread
        for group in self._tree.groups[kind].values():
            try:
                if group.descriptor >= 0:
                    group.row = parse(pread(group.descriptor, STAT_BYTES, 0))
                else:
                    group.row = parse(self._read_unkept(host, group))
            except OSError:  # ENODEV: removed since
                lost.append(group.path)
            except Vanished:
                lost.append(group.path)
            except HostError as error:
                group.row = ()
                host.skip(error)
        for path in lost:
            self._tree.again(path)
        for group in self._tree.groups[kind].values():
            if group.inner and group.row:
                group.row = _without(group.row, [inner.row for inner in group.inner if inner.row])

    def _read_unkept(self, host: Host, group: Group) -> bytes:
        descriptor = host.open(f"{self._layout.root}{group.path}/memory.stat")
        try:
            text = os.pread(descriptor, STAT_BYTES, 0)
        except OSError:
            os.close(descriptor)
            raise
        if self._tree.kept_descriptors < self._most_descriptors:
            self._tree.keep(group, descriptor)
        else:
            os.close(descriptor)
        return text

    def _families(self, host: Host, kind: str) -> Iterator[Family]:
        groups = [group for group in self._tree.groups[kind].values() if group.row]
        chosen = self._choose(kind, groups)
        named = [(group, self._label(kind, group)) for group in chosen]
        shown = [(group, labels) for group, labels in named if labels is not None]
        labelsets = [labels for _, labels in shown if labels is not None]
        rows = [group.row for group, _ in shown]
        rest: Row = ()
        if kind == "container" and not self._tree.is_crowded:  # a sum without all of them would be too small
            rest = self._rest(groups, [group for group, _ in shown])
        if rest:
            labelsets.append(OTHER)
            rows.append(rest)
        columns = list(zip(*rows, strict=True)) if rows else []
        if columns:
            columns[CACHE] = tuple(_minus(a, b) for a, b in zip(columns[CACHE], columns[SHMEM], strict=True))
        for metric, column in zip(STATS[kind], columns, strict=False):
            known = [value for value in column if value is not None]
            if len(known) == len(column):
                yield self._family(metric, labelsets, known)
            else:
                pairs = [(labels, value) for labels, value in zip(labelsets, column, strict=True) if value is not None]
                yield self._family(metric, [labels for labels, _ in pairs], [value for _, value in pairs])
        yield from self._limits(host, kind, [(group, labels) for group, labels in shown if labels is not None])

    def _choose(self, kind: str, groups: list[Group]) -> list[Group]:
        """Return the biggest, in a stable choice."""
        if len(groups) <= self._settings.top:
            return groups
        sizes = {group: _minus(group.row[CACHE], group.row[SHMEM]) or 0 for group in groups}
        self._chosen[kind] = biggest(sizes, self._settings.top, self._chosen.get(kind, ()))
        return self._chosen[kind]

    def _label(self, kind: str, group: Group) -> LabelSet | None:
        """Return a group's labels, None if it has no series of its own; the same object while they are the same."""
        if kind == "slice":
            labels: LabelSet | None = (label(group.path[1:]),)
        else:
            found = self._containers.lookup(group.path)
            if found is None or found.is_sandbox:
                labels = None
            elif kind == "pod":
                if not found.pod and (inside := self._tree.first_in.get(group.path)):
                    found = self._containers.lookup(inside.path) or found
                labels = (found.namespace, found.pod) if found.pod else None
            else:
                labels = found.labels
        kept = self._labels.get(group)
        if kept is not None and kept == labels:
            return kept
        if labels is None:
            self._labels.pop(group, None)
        else:
            self._labels[group] = labels
        return labels

    def _rest(self, groups: Sequence[Group], shown: Iterable[Group]) -> Row:
        """Return the sum of all that have no series of their own, so that sums stay right."""
        own = set(shown)
        rows = [group.row for group in groups if group not in own]
        return tuple(
            None if all(value is None for value in column) else sum(value for value in column if value is not None)
            for column in zip(*rows, strict=True)
        )

    def _limits(self, host: Host, kind: str, shown: Iterable[tuple[Group, LabelSet]]) -> Iterator[Family]:
        limits: list[tuple[LabelSet, int]] = []
        stalls: list[tuple[LabelSet, float]] = []
        for group, labels in shown:
            with host.skipping():
                try:
                    self._update_limit(host, group)
                except Vanished:
                    continue
                if group.limit is not None:
                    limits.append((labels, group.limit))
                for what in ("memory", "io") if self._layout.pressure_root and group.has_pressure else ():
                    for how, total in self._read_pressure(host, group, what).items():
                        stalls.append(((*labels, what, how), total / 1e6))
        yield self._family(LIMITS[kind], [labels for labels, _ in limits], [limit for _, limit in limits])
        yield self._family(PRESSURES[kind], [labels for labels, _ in stalls], [total for _, total in stalls])

    def _update_limit(self, host: Host, group: Group) -> None:
        """Read a group's limit if enough time has gone by: nobody changes it often, and opening it is dear."""
        now = self._clock()
        if now - group.limit_at < LIMIT_EVERY:
            return
        group.limit = None  # also if it cannot be read
        path = f"{self._layout.root}{group.path}/{'memory.max' if self._layout.is_v2 else 'memory.limit_in_bytes'}"
        try:
            group.limit = parse_limit(host.read_start(path, SMALL_BYTES))
        except ValueError as error:
            raise Malformed(path, str(error)) from error
        group.limit_at = now

    def _read_pressure(self, host: Host, group: Group, what: str) -> dict[str, int]:
        try:
            path = f"{self._layout.pressure_root}{group.path}/{what}.pressure"
            return parse_pressure(host.read_start(path, SMALL_BYTES))
        except HostError:  # no such file, or PSI is switched off: EOPNOTSUPP
            group.has_pressure = False
            return {}

    def _family(self, metric: Metric, labelsets: list[LabelSet], values: Sequence[float]) -> Family:
        kept = self._kept.get(metric)
        if kept is None or len(kept) != len(labelsets) or not all(map(is_, kept, labelsets)):
            kept = self._kept[metric] = tuple(labelsets)
        return Family(metric, kept, values)

    def _dying(self, host: Host) -> Iterator[Yield]:
        if not self._layout.is_v2:
            return
        for path in ("", *self._tree.groups["slice"]):
            with host.skipping():
                try:
                    numbers = parse_numbers(host.read(f"{CGROUPS}{path}/cgroup.stat"))
                except Vanished:
                    continue
                count = numbers.get("nr_dying_descendants")
                if count is None:
                    continue
                name = label(path[1:]) or "/"
                yield DYING(count, name)
                if path and count >= DYING_LEAST:
                    yield DYING_CGROUPS(name, count=count, path=path[1:] + "/")

    # -- the node --

    def _node(self, host: Host) -> Iterator[Yield]:
        if not host.exists("proc/vmstat"):
            return
        numbers = parse_numbers(host.read("proc/vmstat"))
        for key, metric, labels, factor in SIMPLE:
            if key in numbers:
                yield metric(numbers[key] * factor, *labels)
        yield from self._fs_state(host)
        slab = self._slab(host)
        for name, size in slab.items():
            yield SLAB(size, name)
        now = self._clock()
        yield from self._pollution(now, numbers)
        yield from self._dropping(now, numbers)
        yield from self._dominated(host, numbers, sum(slab.values()))

    def _fs_state(self, host: Host) -> Iterator[Yield]:
        for name, metric, states in (
            ("dentry-state", DENTRIES, ((0, "total"), (1, "unused"), (4, "negative"))),
            ("inode-nr", CACHED_INODES, ((0, "total"), (1, "unused"))),
        ):
            path = f"proc/sys/fs/{name}"
            with host.skipping():
                numbers = host.read(path).split()
                if len(numbers) <= states[-1][0] or not all(number.lstrip(b"-").isdigit() for number in numbers):
                    raise Malformed(path, f"expected numbers, got {numbers!r}"[:100])
                for at, state in states:
                    yield metric(int(numbers[at]), state)

    def _slab(self, host: Host) -> dict[str, int]:
        """Return the bytes of each cache of dentries and inodes; merged caches have no name of their own."""
        sizes: dict[str, int] = {}
        with host.skipping():
            sizes = slabinfo.parse(host.read("proc/slabinfo"), PAGE)
        return {name: sizes[name] for name in (*CACHES, *MORE_CACHES) if name in sizes}

    def _pollution(self, now: float, numbers: dict[str, int]) -> Iterator[Found]:
        refaults = numbers.get("workingset_refault_file")
        if refaults is None:
            return
        self._refaults.append((now, refaults))
        began, first = self._refaults[0]
        if len(self._refaults) <= POLLUTION_ROUNDS or now <= began:
            return
        rate = (refaults - first) * PAGE / (now - began)
        groups = [group for group in self._tree.groups["container"].values() if group.row]
        sizes = {group: group.row[INACTIVE] or 0 for group in groups}
        if rate < POLLUTION_REFAULTS or not sizes:
            return
        worst = max(sizes, key=sizes.__getitem__)
        share = sizes[worst] / max(1, sum(sizes.values()))
        if share < POLLUTION_SHARE or sizes[worst] < POLLUTION_LEAST:
            return
        found = self._containers.lookup(worst.path)
        name = "/".join(part for part in found.labels if part) if found is not None else worst.path
        directory = f"/{self._layout.root}{worst.path}"
        relieve = (
            f"`echo {sizes[worst] // 2} > {directory}/memory.reclaim` drops half of it, and only of this container"
            if self._layout.is_v2
            else f"`echo 0 > {directory}/memory.force_empty` drops what this container does not use"
        )
        megabytes, percent = sizes[worst] // MIB, round(100 * share)
        yield POLLUTION(name, rate=round(rate / MIB), share=percent, size=megabytes, relieve=relieve)

    def _dropping(self, now: float, numbers: dict[str, int]) -> Iterator[Found]:
        if "drop_pagecache" not in numbers and "drop_slab" not in numbers:
            return
        count = max(numbers.get("drop_pagecache", 0), numbers.get("drop_slab", 0))
        if self._drops_seen is not None and count > self._drops_seen:
            self._drops.extend([now] * min(100, count - self._drops_seen))
        self._drops_seen = count
        recent = [when for when in self._drops if now - when <= DROPS_WITHIN]
        if len(recent) >= DROPS_LEAST:
            yield DROPPING("node", count=len(recent))

    def _dominated(self, host: Host, numbers: dict[str, int], size: int) -> Iterator[Found]:
        cache = numbers.get("nr_file_pages")
        if cache is None or size < SLAB_LEAST or size < cache * PAGE:
            return
        with host.skipping():
            total = parse_numbers(host.read("proc/meminfo").replace(b":", b" ").replace(b" kB", b"")).get("MemTotal", 0)
            if total and size >= SLAB_SHARE * total * 1024:
                yield DOMINATED("node", size=size // MIB, cache=cache * PAGE // MIB)


def _minus(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else max(0, a - b)


def _without(row: Row, inner: Sequence[Row]) -> Row:
    for each in inner:
        row = tuple(_minus(a, b) if b is not None else a for a, b in zip(row, each, strict=True))
    return row


def _needs(host: Host) -> str | None:
    return (
        None if host.exists("proc/vmstat") or layout(host) is not None else "no cgroups and no /proc/vmstat are visible"
    )


COLLECTOR = Collector(
    name="pagecache",
    summary="Whose page cache it is: memory by container, pod and slice; what reclaim does to the node.",
    start=PageCache,
    interval=15.0,
    deadline=10.0,
    series_budget=20_000,
    metrics=(
        *(metric for metrics in STATS.values() for metric in metrics),
        *LIMITS.values(),
        *PRESSURES.values(),
        *(DYING, *NODE, SLAB, DENTRIES, CACHED_INODES),
    ),
    watermarks=(FILL,),
    findings=(POLLUTION, DROPPING, DOMINATED, DYING_CGROUPS),
    settings=Settings,
    needs=_needs,
    tops=(Top("Page cache", STATS["container"][CACHE], "bytes"),),
)
