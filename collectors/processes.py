"""One pass over all processes of the node for the collectors that need their descriptors, within a CPU budget.

Source: /proc/PID/{cgroup,fd,fdinfo,status,mountinfo,ns,root}, see collectors.readers.procfs. The pass is done in slices
and goes on in the next round where the budget ended: what it tells is that of complete passes only. A descriptor costs
about ten microseconds. Links are read, which cannot hang; stat(2) of a deleted file is asked by the helper process,
and only on filesystems of local disks: a remote or FUSE one is judged by its mount alone.

Memory is bounded, and each container, or cgroup that is no container's, has a share of it: see `collectors.shares`.
What a process does not let us see (no permission, more than its container's share) makes the numbers of its container
and of its user unknown: they are absent, not too small. Descriptors of threads that have a table of their own
(CLONE_FILES) and files that are only mapped are not seen.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cmp_to_key
from typing import Any, Literal, NamedTuple, TypeVar

from agent.budget import Budget
from agent.containers import outermost
from agent.errors import Denied, Failed, HostError, Malformed, Stuck, Vanished
from agent.host import Host, Inode
from agent.metric import LabelSet, label
from agent.namespaces import INITIAL, Owner, compare, owner
from collectors.cgroups import cut
from collectors.localdisks import DISKS, MEMORY, Mounted, is_blind, is_on_disk, is_overlay_on_disk, kept
from collectors.readers import cgroup, overlay, procfs
from collectors.readers.mountinfo import Mount, by_device, carrier, one_per_device, parse, parse_lines, shown, visible
from collectors.shares import Bound, Room

HOSTS = "proc/1/mountinfo"
# why a process is passed over, and a deleted file
REASONS = ("kernel", "vanished", "permission", "descriptors", "too_many", "malformed", "stuck", "failed")
FILE_REASONS = ("not_a_local_disk", "maybe_of_an_image", "unknown_mount", "stuck")
MOUNT_REASONS = ("not_a_local_disk", "unknown_mount", "too_many", "permission", "stuck", "failed")
DESCRIPTORS = 100_000  # of one container, or cgroup that is no container's: what is beyond is passed over
LAYERS = 20_000  # of one pass: the host's own
TABLE, OWN_MOUNTS = 4 << 20, 10_000  # bytes and mounts of one mountinfo
REFUSALS = 1_000  # that are remembered of one pass
SICK = 2  # containers whose mounts hang, until no other's are looked at: each costs a deadline, or a helper
BATCH = 256
PART = 1 << 16
LOWER = "below overlays"  # stands for a filesystem's type
REPLACED = "//deleted"  # behind a mount's root that is gone; fs/proc_namespace.c
# the kubelet writes a volume's files anew in a directory that has a time in its name, and has `..data` lead there;
# pkg/volume/util/atomic_writer.go
KUBELETS = re.compile(r"/\.\.\d{4}(?:_\d\d){5}\.\d+(?=/)")
CURRENT = "/..data"
SUBVOLUMES = {"btrfs", "bcachefs"}  # each has a device of its own in stat, and the whole has another in mountinfo
NOWHERE: LabelSet = ("", "other", "")  # a filesystem that the host does not show


class Limits(NamedTuple):
    """What is kept of one pass: bounds on memory. `mounts` also count again for each root that sees a blind one."""

    instances: Bound = Bound(20_000, share=4_000, sure=20)
    files: Bound = Bound(20_000, share=4_000, sure=20)
    namespaces: Bound = Bound(2_000, share=500, sure=4)
    mounts: Bound = Bound(60_000, share=15_000, sure=100)
    stale: Bound = Bound(1_000, share=200, sure=10)  # mounts whose source is gone


LIMITS = Limits()
Now = Literal["replaced", "removed", "unknown", "unplaced"]


class Instance(NamedTuple):
    """One inotify instance: whose it is, its watches, the blind ones by filesystem type and mount point (a label)."""

    group: str
    userns: str
    uid: int
    watches: int
    blind: dict[tuple[str, str], int]


class Held(NamedTuple):
    """A deleted file that a process holds open: where it was (label), bytes allocated, labels of its filesystem."""

    group: str
    pid: str
    path: str
    bytes: int
    filesystem: LabelSet


class Stale(NamedTuple):
    """A bind mount of one file in a process' namespace, whose source is no longer what it was; both as labels.

    `source` is a path on the host, but where `now` is `unplaced`: the host shows that filesystem nowhere.
    """

    group: str
    pid: str
    mountpoint: str
    source: str
    now: Now


@dataclass(slots=True)
class Reading:
    """What one pass has found. `began` is on the monotonic clock; `progress` is how much of the pass is done.

    `processes` and `descriptors` were looked at. `skipped` counts processes, `skipped_files` deleted files, and
    `skipped_mounts` mounts whose source is gone, by the reason why they were passed over. The numbers of
    `unknown_groups` (cgroups) and of `unknown_users` would be too small, those of `unknown_mounts` in `stale` alone.
    `owners` has whose the user namespaces are that are not the initial one.
    """

    number: int
    began: float
    progress: float = 0.0
    processes: int = 0
    descriptors: int = 0
    skipped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    skipped_files: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FILE_REASONS, 0))
    skipped_mounts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MOUNT_REASONS, 0))
    refusals: list[HostError] = field(default_factory=list)
    unknown_groups: set[str] = field(default_factory=set)
    unknown_mounts: set[str] = field(default_factory=set)
    unknown_users: set[int] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)
    instances: list[Instance] = field(default_factory=list)
    held: dict[tuple[int, int], Held] = field(default_factory=dict)
    stale: list[Stale] = field(default_factory=list)
    owners: dict[str, Owner] = field(default_factory=dict)


T = TypeVar("T")
Namespace = tuple[str, str]  # a mount namespace, and a root directory in it: what a mountinfo is of
Blind = Mapping[str, tuple[str, str]]  # filesystems where events cannot arrive, by device: type and mount point
_File = tuple[int, int]  # a process and its descriptor
_ORDER: Callable[[_File], Any] = cmp_to_key(compare)


class _Passed(Exception):
    """There is nothing to know; its text is the reason."""


class _TooMany(Exception):
    """A bound was met; its text is the reason."""


class _TooManyFiles(_TooMany):
    """The bound on deleted files was met; what inotify instances the process has is known."""


class Processes:
    """The pass. One for all collectors of an agent, see `agent.collector.Shared`; they may ask at once."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._newest: Reading | None = None
        self._pass: _Pass | None = None

    def reading(self, host: Host, budget: Budget, told: int) -> Reading | None:
        """Return the newest complete reading, None before the first. `told` is the number of the caller's last one.

        What the caller does not have yet is returned at once. Otherwise the pass goes on, on the caller's budget.
        """
        with self._lock:
            if self._newest is None or self._newest.number == told:
                self._work(host, budget)
            return self._newest

    def progress(self) -> float:
        """Return 1 if there is a reading, else how much of the first pass is done."""
        if self._newest is not None:
            return 1.0
        return self._pass.found.progress if self._pass is not None else 0.0

    def _work(self, host: Host, budget: Budget) -> None:
        budget.begin()
        if self._pass is None:
            number = self._newest.number + 1 if self._newest is not None else 1
            self._pass = _Pass(Reading(number, time.monotonic()), host, self._limits)
        work, self._pass.host = self._pass, host
        try:
            for _ in work.steps:
                if not budget.goes_on():
                    return
        except BaseException:
            self._pass = None
            raise
        self._pass, self._newest = None, work.found


class _Pass:
    """One pass, which may take many rounds; `host` is that of who pays for this one."""

    def __init__(self, found: Reading, host: Host, limits: Limits) -> None:
        self.found = found
        self._room = {name: Room(bound) for name, bound in limits._asdict().items()}
        self.host = host
        self.steps = self._look()
        self._descriptors: Counter[str] = Counter()
        self._mounts: dict[int, Mounted] = {}
        self._kept: dict[Mounted, Mounted] = {}  # each once in memory
        self._blind: dict[Namespace, Blind] = {}
        self._refused: set[Namespace] = set()
        self._disks: dict[str, LabelSet] = {}
        self._top: dict[str, Mount] = {}
        self._shown: dict[str, list[Mount]] = {}  # the same by device
        self._layers: dict[bytes, str] = {}  # directories below overlays, as watches name them: what they lie in
        self._stuck: set[str] = set()
        self._answered: set[str] = set()
        self._overlays: set[str] = set()  # devices of those that ask local disks alone
        self._sick: set[str] = set()  # containers in whose mounts a look hung
        self._same: dict[tuple[str, int, bytes], list[_File]] = {}
        self._is_ours = False

    def _look(self) -> Iterator[None]:
        """Look at each process in turn; every step is short."""
        pids = sorted((name for name in self.host.some_names("proc", 1 << 22) if name.isdigit()), key=int)
        self._is_ours = self._has_our_numbers()
        yield from self._mark_layers(self._read_host())
        for position, pid in enumerate(pids):
            self.found.progress = position / len(pids)
            yield
            yield from self._process(pid)
        self.found.progress = 1.0

    def _has_our_numbers(self) -> bool:
        """Return whether the host's /proc numbers processes as our own system calls do."""
        try:
            return self.host.link("proc/self") == str(os.getpid())
        except HostError:
            return False

    def _read_host(self) -> list[Mount]:
        """Find the filesystems of the host, by whose labels space is told; return the mounts."""
        try:
            mounts = visible(parse(self.host.read(HOSTS))[0])
        except HostError as error:
            self._refuse(error)
            return []
        self._keep(mounts)
        self._top = {mount.mountpoint: mount for mount in mounts}
        self._shown = by_device(mounts)
        self._disks = {
            mount.device: (label(mount.source), label(mount.mountpoint), label(mount.fstype))
            for mount in one_per_device(mounts)
            if mount.fstype in DISKS
        }
        return mounts

    def _mark_layers(self, mounts: Sequence[Mount]) -> Iterator[None]:
        """Remember the directories below overlays: what is changed through an overlay is no event there."""
        lowers: dict[str, Mount] = {}
        for mount in mounts:
            if mount.fstype == "overlay":
                # all that we do goes through the host's own root
                if mount.mountpoint == "/" or is_overlay_on_disk(mount, self._top):
                    self._overlays.add(mount.device)
                layers = overlay.resolve(overlay.parse_options(mount.super_options), mount.mountpoint)
                for path in layers.lowers:
                    below = carrier(self._top, path) if path.startswith("/") else None
                    if below is not None and below.fstype in DISKS and len(lowers) < LAYERS:
                        lowers[path] = below
                yield
        for paths in _batches(list(lowers)):
            for path, answer in zip(paths, self.host.inodes(paths), strict=True):
                if isinstance(answer, Inode):
                    inode = procfs.watched_inode(lowers[path].device, answer.number)
                    self._layers[inode] = label(os.path.dirname(os.path.dirname(path)))
            yield

    def _refuse(self, error: HostError) -> None:
        if len(self.found.refusals) < REFUSALS:
            self.found.refusals.append(error)

    # -- one process --

    def _process(self, pid: str) -> Iterator[None]:
        group = ""
        try:
            group = cut(cgroup.parse_membership(self.host.read_start(f"proc/{pid}/cgroup")))
            yield from self._judge(pid, group)
            self.found.processes += 1
        except Vanished:
            self.found.skipped["vanished"] += 1
        except _Passed as error:
            self.found.skipped[str(error)] += 1
        except _TooMany as error:
            self._give_up(pid, group, str(error), is_user_known=isinstance(error, _TooManyFiles))
        except HostError as error:
            if self._give_up(pid, group, error.reason):
                self._refuse(type(error)("proc/PID/fd", error.detail))  # of all alike: told once, not once for each

    def _give_up(self, pid: str, group: str, reason: str, *, is_user_known: bool = False) -> bool:
        """Have the numbers that this process belongs to be unknown, unless it has no descriptors anyway."""
        try:
            status = self.host.read_start(f"proc/{pid}/status")
        except Vanished:
            self.found.skipped["vanished"] += 1
            return False
        except HostError:
            status = b""
        if status and not procfs.has_memory(status):
            self.found.skipped["kernel"] += 1
            return False
        self.found.skipped[reason] += 1
        self.found.unknown_groups.add(group)
        if not is_user_known and (user := procfs.parse_user(status)) is not None:
            self.found.unknown_users.add(user)
        return True

    def _judge(self, pid: str, group: str) -> Iterator[None]:
        whole = outermost(group)  # a container may have any number of cgroups
        room = DESCRIPTORS - self._descriptors[whole]
        names = self.host.some_names(f"proc/{pid}/fd", room + 1)
        if len(names) > room:
            raise _TooMany("descriptors")
        self._descriptors[whole] += len(names)
        self.found.descriptors += len(names)
        if not names and not procfs.has_memory(self.host.read_start(f"proc/{pid}/status")):
            raise _Passed("kernel")
        self.found.groups.add(group)
        instances: list[str] = []
        deleted: list[tuple[str, str]] = []
        for some in _batches(names):
            for name, link in self.host.links(f"proc/{pid}/fd", some).items():
                if link == procfs.INOTIFY:
                    instances.append(name)
                elif procfs.is_deleted_file(link):
                    deleted.append((name, link))
            yield
        blind = yield from self._blind_in(pid, group)
        if instances:
            yield from self._inotify(pid, group, instances, blind)
        for files in _batches(deleted):
            self._held(pid, group, files)
            yield

    def _blind_in(self, pid: str, group: str) -> Generator[None, None, Blind]:
        """Return the filesystems where no event arrives, of those that a process sees."""
        # processes with another root see another part of the same namespace
        namespace = self.host.link(f"proc/{pid}/ns/mnt"), self.host.link(f"proc/{pid}/root")
        if namespace in self._refused:
            raise _TooMany("too_many")
        if namespace not in self._blind:
            if not self._room["namespaces"].take(outermost(group)):
                raise _TooMany("too_many")
            try:
                yield from self._read_mounts(pid, group, namespace)
            except (_TooMany, Failed):
                self._refused.add(namespace)  # it is not read for each of its processes
                raise
            except HostError:
                self._room["namespaces"].give_back(outermost(group))  # nothing is kept, another process may tell
                raise
        return self._blind[namespace]

    def _read_mounts(self, pid: str, group: str, namespace: Namespace) -> Iterator[None]:
        container = outermost(group)
        blind: dict[str, tuple[str, str]] = {}
        replaced: list[Mount] = []
        points: dict[str, bool] = {}
        for number, mount in enumerate(parse_lines(self.host.read(f"proc/{pid}/mountinfo", TABLE))):
            if number % BATCH == 0:
                yield
            if number >= OWN_MOUNTS:
                raise _TooMany("too_many")
            if mount is None:
                continue
            is_new = mount.id not in self._mounts
            is_kept = is_new or (is_blind(mount.fstype) and mount.device not in blind)
            if is_kept and not self._room["mounts"].take(container):
                raise _TooMany("too_many")
            if is_new and mount.root.endswith(REPLACED):
                replaced.append(mount)
            self._keep([mount])
            points[mount.mountpoint] = points.get(mount.mountpoint, True) and self._is_near(mount)
            if is_blind(mount.fstype):
                blind.setdefault(mount.device, (mount.fstype, label(mount.mountpoint)))
        for mount in replaced:
            self._judge_replaced(pid, group, mount, points)
            yield
        self._blind[namespace] = blind

    def _keep(self, mounts: Iterable[Mount]) -> None:
        """Keep what is asked for by a mount's id, which is the same in all namespaces."""
        for mount in mounts:
            part = kept(mount)
            self._mounts[mount.id] = self._kept.setdefault(part, part)

    # -- mounts of single files --

    def _is_near(self, mount: Mount) -> bool:
        """Return whether a look into a mount asks local disks and memory alone.

        An overlay that the host does not have was made in a container, and names its layers by paths of there.
        """
        if mount.fstype == "overlay":
            return mount.device in self._overlays
        return mount.fstype in DISKS or mount.fstype in MEMORY

    def _judge_replaced(self, pid: str, group: str, mount: Mount, points: Mapping[str, bool]) -> None:
        """Take in a bind mount whose source is gone, if it is a single file's.

        `points` has the namespace's mount points, and whether all that is mounted there is near: the way to a mount
        leads through those above it, or through one that hides them.
        """
        if mount.fstype in MEMORY and mount.fstype != "tmpfs":
            return  # a process that has ended, or a cgroup
        container = outermost(group)
        if "/" not in points:
            self._pass_mount(group, "unknown_mount")  # nobody knows on what the root of this process lies
        elif not all(points.get(above, True) for above in _way(mount.mountpoint)):
            self._pass_mount(group, "not_a_local_disk")
        elif container in self._sick or len(self._sick) >= SICK:
            self._pass_mount(group, "stuck")
        elif not self._room["stale"].take(container):
            self._pass_mount(group, "too_many")
        else:
            (answer,) = self.host.entries_at(f"proc/{pid}/root", [mount.mountpoint])
            if isinstance(answer, Inode):
                if stat.S_ISREG(answer.mode):
                    source, now = self._source(mount)
                    self.found.stale.append(Stale(group, pid, label(mount.mountpoint), label(source), now))
            elif isinstance(answer, Stuck):
                self._sick.add(container)
                self._pass_mount(group, "stuck")
            elif not isinstance(answer, Vanished):
                self._refuse(answer)
                self._pass_mount(group, answer.reason)

    def _source(self, mount: Mount) -> tuple[str, Now]:
        """Return where the host has the source of a mount, and what is in its place now."""
        root = mount.root.removesuffix(REPLACED)
        found = shown(self._shown.get(mount.device, ()), self._top, root)
        if found is None:
            return f"{root} on {mount.source} ({mount.fstype})", "unplaced"
        carrying, path = found
        now = self._look_for(carrying, path)
        return KUBELETS.sub("", path, 1), now

    def _look_for(self, carrying: Mount, path: str) -> Now:
        if carrying.device in self._stuck or not all(
            self._is_near(self._top[above]) for above in _way(path) if above in self._top
        ):
            return "unknown"
        volume = KUBELETS.search(path)
        wanted = path[: volume.start()] + CURRENT if volume is not None else path
        place, entry = self.host.entries_at("/", [carrying.mountpoint, wanted])
        if isinstance(place, Stuck) or isinstance(entry, Stuck):
            self._stuck.add(carrying.device)
        # what is not mounted where we look has been neither removed nor replaced
        if not isinstance(place, Inode) or (
            carrying.fstype not in SUBVOLUMES
            and f"{os.major(place.device)}:{os.minor(place.device)}" != carrying.device
        ):
            return "unknown"
        if isinstance(entry, Inode):
            if stat.S_ISLNK(entry.mode):
                return "replaced" if volume is not None else "unknown"  # it is not for us to see where it leads
            return "replaced" if stat.S_ISREG(entry.mode) else "removed"
        return "removed" if isinstance(entry, Vanished) else "unknown"

    def _pass_mount(self, group: str, reason: str) -> None:
        self.found.skipped_mounts[reason] += 1
        self.found.unknown_mounts.add(group)

    # -- inotify --

    def _inotify(self, pid: str, group: str, names: Sequence[str], remote: Blind) -> Iterator[None]:
        uid = procfs.parse_user(self.host.read_start(f"proc/{pid}/status"))
        userns = procfs.parse_namespace(self.host.link(f"proc/{pid}/ns/user"))
        if uid is None or userns is None:
            raise Malformed(f"proc/{pid}/status", "tells no user")
        self._find_owners(pid, userns)
        for name in names:
            watches = procfs.Watches(self._layers)
            yield from self._read_watches(f"proc/{pid}/fdinfo/{name}", watches)
            if self._is_known((userns, uid, watches.digest), (int(pid), int(name))):
                continue  # a child has it from its parent: it is one instance
            if not self._room["instances"].take(outermost(group)):
                raise _TooMany("too_many")
            counts = watches.by_device
            blind = {remote[device]: count for device, count in counts.items() if device in remote}
            blind |= {(LOWER, place): count for place, count in watches.on_marked.items()}
            self.found.instances.append(Instance(group, userns, uid, sum(counts.values()), blind))

    def _read_watches(self, path: str, watches: procfs.Watches) -> Iterator[None]:
        """Read an instance's fdinfo by parts. The descriptor may be another file by now: then it has no watches."""
        descriptor = self.host.open(path)
        try:
            while part := os.read(descriptor, PART):
                watches.feed(part)
                yield
        except OSError as error:
            raise Vanished(path, error.strerror or "") from error
        finally:
            os.close(descriptor)

    def _is_known(self, key: tuple[str, int, bytes], file: _File) -> bool:
        """Return whether an instance was counted already, in another process that shares it."""
        if not self._is_ours:
            return False
        known = self._same.setdefault(key, [])
        place = bisect_left(known, _ORDER(file), key=_ORDER)
        if place < len(known) and compare(known[place], file) == 0:
            return True
        known.insert(place, file)
        return False

    def _find_owners(self, pid: str, userns: str) -> None:
        """Find whose this user namespace is, and those above it."""
        if userns == INITIAL or userns in self.found.owners:
            return
        try:
            self.found.owners[userns] = owner(self.host, f"proc/{pid}/ns/user")
        except HostError as error:
            if not isinstance(error, Vanished | Denied):
                self._refuse(error)

    # -- deleted files --

    def _held(self, pid: str, group: str, files: Sequence[tuple[str, str]]) -> None:
        """Take in the deleted files of a process."""
        for mounted, same in self._by_mount(pid, files).items():
            # what hangs is met by one question, not by one for each file
            first = [] if mounted.device in self._answered else same[:1]
            for some in (first, same[len(first) :]):
                if mounted.device in self._stuck:
                    self._leave_stuck(group, mounted, len(some))
                elif some:
                    self._ask(pid, group, mounted, some)

    def _by_mount(self, pid: str, files: Sequence[tuple[str, str]]) -> dict[Mounted, list[tuple[str, str]]]:
        """Return those files that hold space of a local disk, by their mounts."""
        found: dict[Mounted, list[tuple[str, str]]] = {}
        for name, link in files:
            try:
                info = procfs.parse_fdinfo(self.host.read_start(f"proc/{pid}/fdinfo/{name}"))
            except Vanished:
                continue
            mounted = self._mounts.get(info.mount) if info is not None else None
            if info is None or mounted is None:
                self.found.skipped_files["unknown_mount"] += 1  # unmounted lazily, or from another namespace
            elif mounted.fstype in MEMORY:
                continue
            elif not is_on_disk(mounted, self._top):
                self.found.skipped_files["not_a_local_disk"] += 1
            elif mounted.upper and not info.is_writable:
                self.found.skipped_files["maybe_of_an_image"] += 1  # nothing is freed of a layer below
            else:
                found.setdefault(mounted, []).append((name, link))
        return found

    def _ask(self, pid: str, group: str, mounted: Mounted, files: Sequence[tuple[str, str]]) -> None:
        answers = self.host.inodes([f"proc/{pid}/fd/{name}" for name, _ in files])
        self._answered.add(mounted.device)
        for (_, link), answer in zip(files, answers, strict=True):
            if isinstance(answer, Inode):
                self._add(pid, group, mounted, link, answer)
            elif isinstance(answer, Stuck):
                self._leave_stuck(group, mounted, 1)
            elif not isinstance(answer, Vanished):
                raise answer

    def _leave_stuck(self, group: str, mounted: Mounted, count: int) -> None:
        self._stuck.add(mounted.device)
        self.found.unknown_groups.add(group)
        self.found.skipped_files["stuck"] += count

    def _add(self, pid: str, group: str, mounted: Mounted, link: str, inode: Inode) -> None:
        """Take in one file. One that several hold counts for one of them, the same one in every pass."""
        if inode.links or not stat.S_ISREG(inode.mode):
            return
        key = inode.device, inode.number
        known = self.found.held.get(key)
        if known is None and not self._room["files"].take(outermost(group)):
            raise _TooManyFiles("too_many")
        if known is None or (group, int(pid)) < (known.group, int(known.pid)):
            path = label(link.removesuffix(procfs.DELETED))
            self.found.held[key] = Held(group, pid, path, inode.blocks * 512, self._filesystem(mounted))

    def _filesystem(self, mounted: Mounted) -> LabelSet:
        device = mounted.device
        if mounted.upper:
            below = carrier(self._top, mounted.upper)
            device = below.device if below is not None else ""
        return self._disks.get(device, NOWHERE)


def _way(path: str) -> Iterator[str]:
    """Yield a path and all that is above it."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield "/"


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))
