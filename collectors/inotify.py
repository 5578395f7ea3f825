"""inotify: how many instances and watches there are of those allowed, whose they are, and which are blind.

Source: /proc/PID/fdinfo of descriptors that are `anon_inode:inotify` (fs/notify/fdinfo.c), see `collectors.processes`;
/proc/sys/user/max_inotify_{instances,watches} (Linux 4.9) and /proc/sys/fs/inotify/*, man 7 inotify. Limits are per
user namespace and user; what is used in a namespace counts as well for the user who made it, in its parent. The kernel
shows no count: it is taken by the effective user of the process that has the descriptor now, in most cases who opened
it. The limits of namespaces other than the agent's own cannot be read: they have none here, but the parent's holds.

A watch is blind where changes are made elsewhere: on NFS, CIFS, FUSE, virtiofs, 9p, and on the directory of a layer
below an overlay (not on what is deeper in it, as a watch has no path). A bind mount of one file is stale when that file
was replaced or removed: the container has the old one for ever. Of both the kernel says nothing to the program.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from agent.collector import Collector, Start, Top, Yield
from agent.containers import LABELS as CONTAINER
from agent.errors import HostError
from agent.finding import Finding, Found
from agent.host import Host
from agent.metric import Metric, label
from agent.namespaces import INITIAL
from agent.ranking import biggest
from agent.watermark import Tier, Watermark
from collectors.descriptors import HOST, WANTS, View, about, check
from collectors.processes import Now, Reading
from collectors.readers import procfs

User = tuple[str, str]  # user namespace, user
Usage = dict[str, Counter[str]]  # instances and watches, by cgroup
ABOVE = 32  # as many user namespaces may lie in one another
NAMED = 3  # containers in one finding

USER = ("userns", "uid")
INSTANCES = Metric("ullage_inotify_instances", "inotify instances of a user in a user namespace.", USER)
WATCHES = Metric("ullage_inotify_watches", "inotify watches of a user in a user namespace.", USER)
INSTANCES_LIMIT = Metric("ullage_inotify_instances_limit", "inotify instances that a user may have.", USER)
WATCHES_LIMIT = Metric("ullage_inotify_watches_limit", "inotify watches that a user may have.", USER)
QUEUE_LIMIT = Metric(
    "ullage_inotify_queue_limit", "Events that wait in one instance before the kernel drops them (max_queued_events)."
)
CONTAINER_WATCHES = Metric("ullage_container_inotify_watches", "inotify watches of a container's processes.", CONTAINER)
CONTAINER_INSTANCES = Metric(
    "ullage_container_inotify_instances", "inotify instances of a container's processes.", CONTAINER
)
BLIND = Metric(
    "ullage_inotify_blind_watches",
    "inotify watches that are not told of changes made elsewhere: on NFS, CIFS, FUSE, virtiofs, 9p, or below overlays.",
    CONTAINER,
)
STALE = Metric(
    "ullage_bind_mounts_stale",
    "Bind mounts of single files that have been replaced or removed on the host since.",
    CONTAINER,
)
PASSED = Metric(
    "ullage_inotify_skipped_mounts",
    "Mounts whose source is gone of which the newest pass did not judge whether they are single files.",
    ("reason",),
)
ABOUT = about("inotify")

TIERS = (Tier("warning", "warning", 0.80, 0.70, hold=120.0), Tier("critical", "critical", 0.95, 0.90, hold=60.0))
INSTANCES_USED = Watermark(
    name="inotify_instances",
    summary="inotify instances of those that a user may have.",
    used=INSTANCES,
    size=INSTANCES_LIMIT,
    target=USER,
    tiers=TIERS,
)
WATCHES_USED = Watermark(
    name="inotify_watches",
    summary="inotify watches of those that a user may have.",
    used=WATCHES,
    size=WATCHES_LIMIT,
    target=USER,
    tiers=TIERS,
)

NEAR = Finding(
    "inotify-near-limit",
    "warning",
    "The user {uid} has {used} of {limit} inotify {what}. Most of them: {who}. When none is left, programs fail to "
    "watch files, often with `no space left on device` or `too many open files`.",
    "sysctl {sysctl}={wanted}   # until the next boot; for good: in a file of /etc/sysctl.d. A program that opens ever "
    "more of them wants a restart instead",
)
BLIND_WATCH = Finding(
    "inotify-blind-watch",
    "warning",
    "{container} has {count} inotify watches on {mountpoint} ({fstype}): it never learns of changes that are made "
    "elsewhere: by another client, behind the mount, or through an overlay above.",
    "Have the program look by itself (poll) instead: `CHOKIDAR_USEPOLLING=true` for what is made of Node.js, "
    "`tail ---disable-inotify`, or a setting of its own. Or put the files on a local filesystem. Of what is below "
    "overlays, watch the same file in the overlay's own mount: what is written there never comes to the layer.",
)
DEAD = Finding(
    "hot-reload-dead",
    "warning",
    "{path} was mounted into {container} as a single file, and that file, {source}, has been "
    "{replaced_or_removed}: the container has the old one, and is told of no change.",
    "{restart}   # {what_comes_first}to see new files at once, mount the directory that the file is in instead",
)
# what has become of the file, and what comes before the restart
FATES: Mapping[Now, tuple[str, str]] = {
    "replaced": ("replaced on the host since", ""),
    "removed": (
        "removed on the host, and no file is in its place now",
        "put the file back first: in its place the runtime may make a directory, and the container does not start; ",
    ),
    "unknown": (
        "replaced or removed on the host since",
        "see first that the file is there: without it the container may not start; ",
    ),
    "unplaced": (
        "replaced or removed since, on a filesystem that the host shows nowhere",
        "see first that the file is there: without it the container may not start; ",
    ),
}
NEAR_RAISE, NEAR_CLEAR = TIERS[0].raise_at, TIERS[0].clear_at


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the pass may cost (of one core), and how many containers and users have series of their own."""

    cpu_budget: float = 0.01
    top: int = 100

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        check(self.cpu_budget, self.top)


@dataclass(slots=True)
class Inotify:
    """The running collector."""

    start: Start
    _view: View = field(init=False)
    _shown: list[User] = field(default_factory=list)
    _near: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Take part in the pass over all processes."""
        settings: Settings = self.start.settings
        self._view = View(self.start, ABOUT, settings.cpu_budget, settings.top)

    def close(self) -> None:
        """Nothing is open."""

    def collect(self, host: Host) -> Iterator[Yield]:
        """Tell what the newest pass has found."""
        with host.skipping():
            yield QUEUE_LIMIT(host.read_int("proc/sys/fs/inotify/max_queued_events"))
        yield from self._view.look(host)
        found = self._view.found
        if found is None:
            return
        for reason, count in found.skipped_mounts.items():
            yield PASSED(count, reason)
        yield from self._users(host, found)
        yield from self._containers(found)
        yield from self._blind(found)
        yield from self._stale(found)

    def _users(self, host: Host, found: Reading) -> Iterator[Yield]:
        """Yield what users have of what they may, those that are nearest to their limit."""
        own = _own_namespace(host)
        instances_limit, watches_limit = _limit(host, "instances"), _limit(host, "watches")
        usage = _usage(found)
        weights = {
            user: max(
                each["instances"].total() / (instances_limit or 1), each["watches"].total() / (watches_limit or 1)
            )
            for user, each in usage.items()
        }
        self._shown = biggest(weights, self.start.settings.top, self._shown)
        near = set()
        for user in self._shown:
            each = usage[user]
            yield INSTANCES(each["instances"].total(), *user)
            yield WATCHES(each["watches"].total(), *user)
            if user[0] != own:
                continue
            for what, limit, metric in (
                ("instances", instances_limit, INSTANCES_LIMIT),
                ("watches", watches_limit, WATCHES_LIMIT),
            ):
                if limit is None:
                    continue
                yield metric(limit, *user)
                target = f"{'/'.join(user)} {what}"
                used = each[what].total()
                if used >= limit * (NEAR_CLEAR if target in self._near else NEAR_RAISE):
                    near.add(target)
                    prefix = "fs.inotify.max_user_" if user[0] == INITIAL else "user.max_inotify_"
                    yield NEAR(
                        target,
                        uid=user[1],
                        what=what,
                        used=used,
                        limit=limit,
                        who=self._most(each[what]),
                        sysctl=prefix + what,
                        wanted=2 * limit,
                    )
        self._near = near

    def _most(self, by: Counter[str]) -> str:
        """Return who has most: containers, or cgroups of the host's own."""
        owners: Counter[str] = Counter()
        for group, count in by.items():
            owners[self._view.name(group)] += count
        return ", ".join(f"{name} with {count}" for name, count in owners.most_common(NAMED))

    def _containers(self, found: Reading) -> Iterator[Yield]:
        view = self._view
        watches = view.sums((each.group, each.watches) for each in found.instances)
        stale = view.sums((each.group, 1) for each in found.stale)
        for labels in {HOST, *map(view.owner, found.unknown_mounts)}:
            stale.pop(labels, None)  # the host's are nobody's business here
        columns = {
            CONTAINER_WATCHES: watches,
            CONTAINER_INSTANCES: view.sums((each.group, 1) for each in found.instances),
            BLIND: view.sums((each.group, sum(each.blind.values())) for each in found.instances),
            STALE: stale,
        }
        yield from view.by_container(watches, columns)

    def _blind(self, found: Reading) -> Iterator[Found]:
        counts: Counter[tuple[str, str, str]] = Counter()
        for instance in found.instances:
            for (fstype, mountpoint), count in instance.blind.items():
                counts[self._view.name(instance.group), fstype, mountpoint] += count
        for (name, fstype, mountpoint), count in counts.items():
            where = {"mountpoint": mountpoint, "fstype": label(fstype)}
            yield BLIND_WATCH(f"{name} {where['mountpoint']}", container=name, count=count, **where)

    def _stale(self, found: Reading) -> Iterator[Found]:
        for each in found.stale:
            if self._view.owner(each.group) != HOST:
                name = self._view.name(each.group)
                path, restart = each.mountpoint, self._view.restart(each.group, each.pid)
                what, first = FATES[each.now]
                if each.now in ("removed", "unknown"):
                    restart = f"test -f {shlex.quote(each.source)} && {restart}"
                yield DEAD(
                    f"{name} {path}",
                    path=path,
                    container=name,
                    source=each.source,
                    replaced_or_removed=what,
                    restart=restart,
                    what_comes_first=first,
                )


def _usage(found: Reading) -> dict[User, Usage]:
    """Return what users have, those left out of whom a part cannot be seen."""
    usage: dict[User, Usage] = {}
    for each in found.instances:
        userns, uid = each.userns, each.uid
        for _ in range(ABOVE):
            sums = usage.setdefault((userns, str(uid)), {"instances": Counter(), "watches": Counter()})
            sums["instances"][each.group] += 1
            sums["watches"][each.group] += each.watches
            above = found.owners.get(userns)
            if above is None:
                break
            userns, uid = above
    unknown = set(map(str, found.unknown_users))
    return {user: each for user, each in usage.items() if user[1] not in unknown}


def _own_namespace(host: Host) -> str:
    """Return the user namespace whose limits we read: that of the agent."""
    try:
        return procfs.parse_namespace(host.link("proc/self/ns/user")) or INITIAL
    except HostError:
        return INITIAL


def _limit(host: Host, what: str) -> int | None:
    """Return the limit of a user in the agent's own user namespace: its own, and that of the initial one above it."""
    limits = []
    for path in (f"proc/sys/user/max_inotify_{what}", f"proc/sys/fs/inotify/max_user_{what}"):
        if host.exists(path):
            with host.skipping():
                limits.append(host.read_int(path))
    return min(limits, default=None)


def _needs(host: Host) -> str | None:
    return None if host.exists("proc/sys/fs/inotify") else "the kernel has no inotify, or /proc is not the host's"


COLLECTOR = Collector(
    name="inotify",
    summary="inotify instances and watches of those allowed, whose they are, which are blind; stale mounts of files.",
    start=Inotify,
    interval=60.0,
    deadline=25.0,
    metrics=(
        *(INSTANCES, WATCHES, INSTANCES_LIMIT, WATCHES_LIMIT, QUEUE_LIMIT),
        *(CONTAINER_WATCHES, CONTAINER_INSTANCES, BLIND, STALE, PASSED, *ABOUT),
    ),
    watermarks=(INSTANCES_USED, WATCHES_USED),
    findings=(NEAR, BLIND_WATCH, DEAD),
    settings=Settings,
    needs=_needs,
    progress=ABOUT.progress,
    tops=(Top("inotify watches", CONTAINER_WATCHES, "watches"),),
    wants=WANTS,
)
