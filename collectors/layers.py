"""Layers of images and containers: how many inodes and bytes they hold, which belong to nobody, which are broken.

Source: the storage directories of Docker (overlay2), of containerd's overlayfs snapshotter and of containers/storage,
with what their runtimes keep beside them, see `collectors.stores`; the inodes themselves, see `collectors.layercount`.
A container's numbers are those of its writable layer. A file with several names is one inode, as `df -i` has it.

Bytes of an image's layer are the sizes that its runtime recorded; of all others what is allocated on disk. Files grow
without a word in any directory, so bytes are looked at every 10 minutes only; inodes are right after every run.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import msgspec

from agent import statefile
from agent.collector import Collector, Fact, Start, Top, Yield
from agent.containers import LABELS as CONTAINER
from agent.containers import SHORT_ID, Containers, Runtimes
from agent.dockerapi import DockerApi
from agent.errors import Denied, HostError, Unsupported
from agent.finding import Finding, Found
from agent.host import Host
from agent.metric import LabelSet, Metric, label
from agent.privileges import Want
from agent.ranking import biggest
from agent.units import Seconds
from collectors.containerd_store import SNAPSHOTTER
from collectors.dockerinfo import Connect, Informant
from collectors.layercount import Counting
from collectors.layerwalk import Count
from collectors.readers import mountinfo, overlay
from collectors.stores import BrokenLink, Layer, Scan, State, Store, find

MOUNTS = "proc/1/mountinfo"
FOR_ROOT = "container storage is for root alone, or with CAP_DAC_READ_SEARCH"
SCAN_EVERY = 300.0  # seconds between looks at all layers while nothing has changed
STATES: tuple[State, ...] = get_args(State)
KNOWN: tuple[State, ...] = ("image", "container", "build", "removing")  # where nobody can tell what is an orphan
LINKS = ("live", "dangling", "missing", "empty")
OTHER: LabelSet = ("", "", "other", "")
LISTED = 3  # names in one finding
STATE = "unknown.json"
WHOLE_ID = re.compile(r"[0-9a-f]{64}")
MIB = 1 << 20
WHY = {"dangling": "leads nowhere", "missing": "is missing", "empty": "is empty"}

BY_STATE = ("store", "state")
LAYERS = Metric("ullage_layers", "Layers in a storage directory, by what they belong to.", BY_STATE)
FILES = Metric("ullage_layers_files", "Inodes of layers, their own directories and links included.", BY_STATE)
BYTES = Metric(
    "ullage_layers_bytes",
    "Bytes of layers: an image's as its runtime recorded them, of all others what is allocated on disk.",
    BY_STATE,
)
LINK_COUNT = Metric(
    "ullage_layers_links", "Links through which layers are mounted, and layers with an empty link file.", BY_STATE
)
AGE = Metric(
    "ullage_layers_count_age_seconds", "For how long the oldest count may have been wrong, or was missing.", ("store",)
)
BYTES_AGE = Metric("ullage_layers_bytes_age_seconds", "Since when the oldest bytes of a container hold.", ("store",))
PROGRESS = Metric("ullage_layers_count_progress_ratio", "Counted layers, of those that shall be.", ("store",))
INFO = Metric(
    "ullage_layers_store_info",
    "A storage directory, whose it is, and whether its runtime uses it now: yes, no or unknown.",
    ("store", "runtime", "driver", "live"),
    "info",
)
WRITABLE_FILES = Metric(
    "ullage_container_writable_files", "Inodes in the writable layer of a container, running or not.", CONTAINER
)
WRITABLE_BYTES = Metric(
    "ullage_container_writable_bytes",
    "Bytes allocated in the writable layer of a container, running or not.",
    CONTAINER,
)
DEPTH = Metric("ullage_container_layers", "Layers below the writable one of a container.", CONTAINER)

ORPHANS = Finding(
    "orphan-layers",
    "warning",
    "{count} layers in {target} belong to no image and no container: {files} inodes, {size}. The largest: {largest}. "
    "No prune removes them.",
    "{remedy}",
)
BROKEN = Finding(
    "layer-link-broken",
    "critical",
    "The link {link} of the layer {target} {why}. It is needed by {who}: starting one of them fails.",
    "{remedy}",
)
LITTER = Finding(
    "layer-link-litter",
    "info",
    "{count} links in {target}/l lead nowhere, and no layer needs them: {links}.",
    "find {directory} -xtype l   # shows them; when no pull or build is under way, add -delete",
)
INTERRUPTED = Finding(
    "layer-import-interrupted",
    "info",
    "{count} pulls or imports into {target} began and never ended: {names}. What they had written may be left there.",
    "ls -l {paths}   # nothing uses them; see orphan-layers for the layers themselves",
)


OLD, RECENT = 1800, 900  # seconds: a count that was wrong or missing for so long is told, and no longer told
RULES = f"""\
- name: ullage-layers
  rules:
    - alert: UllageLayersCountOld
      expr: |
        {AGE.name} >= {OLD}
        or
        (
          {AGE.name} >= {RECENT}
          and ignoring (alertname, alertstate, severity)
          ALERTS{{alertname="UllageLayersCountOld", alertstate="firing"}}
        )
      for: 4m
      keep_firing_for: KEEP_FIRING_FOR
      labels: {{severity: warning}}
      annotations:
        summary: 'No right count of the layers in {{{{ $labels.store }}}} for {{{{ $value | humanizeDuration }}}}'
        description: 'On {{{{ $labels.instance }}}}. It fires at half an hour, until below a quarter of one.'
        runbook_url: 'RUNBOOK(UllageLayersCountOld)'
"""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What counting may cost, how it learns of changes, how many containers have series, when an orphan is one."""

    cpu_budget: float = 0.02
    fanotify: bool = True
    top: int = 100
    orphan_age: Seconds = Seconds(3600.0)

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if not 0 < self.cpu_budget <= 1 or self.top < 1:
            raise ValueError("a cpu_budget over 0 and at most 1 (of one core), and a top of 1 or more")


@dataclass(slots=True)
class _Seen:
    """A store as it was at the last scan."""

    store: Store
    signature: object = None
    at: float = float("-inf")
    scan: Scan | None = None


_Unknown = Mapping[str, Mapping[tuple[str, int], float]]


@dataclass(slots=True)
class Layers:
    """The running collector. `connect` makes a client of Docker's API."""

    start: Start
    connect: Connect = DockerApi
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time
    _informants: Sequence[Informant] = field(init=False)
    _counting: Counting = field(init=False)
    _containers: Containers = field(init=False)
    _unknown: _Unknown = field(init=False)  # of each store, since when
    _keeper: statefile.Keeper = field(init=False)
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _shown: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Take up what the last agent counted, and which layers it saw that nobody knows: an orphan is seen twice."""
        settings = self.start.settings
        state = self.start.state / STATE if self.start.state is not None else None
        self._unknown = statefile.load(state, 1, _decode) or {} if state is not None else {}
        self._keeper = statefile.Keeper(state, 1, self._gather)
        self._counting = Counting(settings.cpu_budget, self.start.state, wants_mark=settings.fanotify)
        sockets = self.start.runtimes.docker_sockets
        self._informants = [Informant(path, self.connect, self.clock) for path in sockets]
        self._containers = Containers(self.start.host, self.start.runtimes)

    def close(self) -> None:
        """Keep what was counted, and let the questions to Docker go."""
        self._counting.close()
        for informant in self._informants:
            informant.close()

    def collect(self, host: Host) -> Iterator[Yield]:
        """Look which layers there are if that has changed, count what has changed in them, tell."""
        infos = [info for each in self._informants if (info := each.ask(host)) is not None]
        told: dict[str, str] = {}
        for info in infos:
            with host.skipping():
                told[host.resolve(info.root)] = info.driver
        stores = find(host, self.start.runtimes, {path: seen.store for path, seen in self._seen.items()}, told)
        if not stores:
            raise Unsupported(_why_none(host, self.start.runtimes))
        for each in stores:
            if each.path not in self._seen:
                each.unknown.since = self._unknown.get(each.path, {})
        self._seen = {each.path: self._seen.get(each.path) or _Seen(each) for each in stores}
        for seen in self._seen.values():
            seen.store.unknown.min_age = self.start.settings.orphan_age
            with host.skipping():
                self._look(host, seen)
        unknown = {path: seen.store.unknown.since for path, seen in self._seen.items()}
        self._keeper.is_dirty |= unknown != self._unknown
        self._unknown = unknown
        self._keeper.save_if_needed()
        self._counting.keep_only(self._seen)
        self._counting.work(host)
        weights: dict[str, tuple[Layer, Count]] = {}
        for path, seen in self._seen.items():
            if seen.scan is not None:
                yield from self._tell(seen.store, seen.scan)
                weights |= self._writable(path, seen.scan.layers)
        yield from self._name(weights)

    def _gather(self) -> Mapping[str, Any]:
        return {"unknown": {path: [[*key, at] for key, at in since.items()] for path, since in self._unknown.items()}}

    def _look(self, host: Host, seen: _Seen) -> None:
        """Look at a store's layers anew if anything has changed, or enough time has gone by for one to be an orphan."""
        store, now = seen.store, self.clock()
        signature = store.signature(host)
        if seen.scan is None or signature != seen.signature or now - seen.at >= SCAN_EVERY:
            seen.scan = store.scan(host, _mounted(host), self.now())
            seen.signature, seen.at = signature, now
        elif not self._counting.is_lost(host, store.path):
            return
        self._counting.follow(host, store.path, seen.scan.layers)

    def _tell(self, store: Store, scan: Scan) -> Iterator[Yield]:
        path = label(store.path)
        live = {None: "unknown", True: "yes", False: "no"}[store.is_live]
        yield INFO(1, path, store.runtime, store.driver, live)
        yield PROGRESS(self._counting.progress(store.path), path)
        if (age := self._counting.age(store.path)) is not None:
            yield AGE(age, path)
        if (age := self._counting.bytes_age(store.path)) is not None:
            yield BYTES_AGE(age, path)
        for state in STATES if scan.is_whole else KNOWN:
            layers = [layer for layer in scan.layers if layer.state == state]
            yield LAYERS(len(layers), path, state)
            if all(layer.is_settled for layer in layers):
                yield from self._sums(store.path, state, layers)
        for kind in LINKS:
            if kind in scan.links:
                yield LINK_COUNT(scan.links[kind], path, kind)
        yield from self._orphans(store, scan)
        yield from self._broken(store, scan)
        if scan.litter:
            directory = shlex.quote(f"{store.path}/l")
            links = _some(scan.litter)
            yield LITTER(store.path, count=len(scan.litter), links=links, directory=directory)
        if scan.write_sets:
            names = _some(name.rpartition("/")[2] for name in scan.write_sets)
            paths = " ".join(shlex.quote(each) for each in scan.write_sets[:LISTED])
            yield INTERRUPTED(store.path, count=len(scan.write_sets), names=names, paths=paths)

    def _sums(self, store: str, state: State, layers: Iterable[Layer]) -> Iterator[Yield]:
        """Yield what layers of one state hold together; nothing while one of them is not known."""
        files, size = 0, 0
        is_sized = True
        for layer in layers:
            count = self._counting.count(store, layer.name)
            if count is None:
                return
            files += 1 + layer.extras + count.files
            held = layer.size if state == "image" and layer.size is not None else count.bytes
            is_sized = is_sized and held is not None
            size += held or 0
        yield FILES(files, label(store), state)
        if is_sized:
            yield BYTES(size, label(store), state)

    def _writable(self, store: str, layers: Iterable[Layer]) -> dict[str, tuple[Layer, Count]]:
        return {
            layer.container: (layer, count)
            for layer in layers
            if layer.container and (count := self._counting.count(store, layer.name)) is not None
        }

    def _name(self, found: Mapping[str, tuple[Layer, Count]]) -> Iterator[Yield]:
        """Yield the writable layers of the containers that have most inodes, and the sum of the others."""
        weights = {container: count.content_files for container, (_, count) in found.items()}
        self._shown = biggest(weights, self.start.settings.top, self._shown)
        for container in self._shown:
            layer, count = found[container]
            labels = self._labels(container)
            yield WRITABLE_FILES(count.content_files, *labels)
            if count.content_bytes is not None:
                yield WRITABLE_BYTES(count.content_bytes, *labels)
            yield DEPTH(layer.lowers, *labels)
        shown = set(self._shown)
        rest = [count for container, (_, count) in found.items() if container not in shown]
        if rest:
            yield WRITABLE_FILES(sum(count.content_files for count in rest), *OTHER)
            yield WRITABLE_BYTES(sum(count.content_bytes or 0 for count in rest), *OTHER)
        self._containers.forget_unasked()

    def _labels(self, container: str) -> LabelSet:
        found = self._containers.lookup_id(container)
        if found is not None:
            return found.labels
        name = label(container)
        return "", "", "" if WHOLE_ID.fullmatch(container) else name, name[:SHORT_ID]  # those of `ctr` are names

    def _orphans(self, store: Store, scan: Scan) -> Iterator[Found]:
        orphans = [layer for layer in scan.layers if layer.state == "orphan"]
        counts = {layer.name: self._counting.count(store.path, layer.name) for layer in orphans}
        known = {name: count for name, count in counts.items() if count is not None}
        if not orphans or len(known) < len(orphans):
            return
        largest = max(orphans, key=lambda layer: known[layer.name].bytes or 0)
        yield ORPHANS(
            store.path,
            count=len(orphans),
            files=sum(1 + layer.extras + known[layer.name].files for layer in orphans),
            size=_size(sum(count.bytes or 0 for count in known.values())),
            largest=f"{largest.name} with {_size(known[largest.name].bytes or 0)}",
            remedy=_orphan_remedy(store, largest),
        )

    def _broken(self, store: Store, scan: Scan) -> Iterator[Found]:
        for each in scan.broken:
            names = sorted(self._labels(container) for container in each.containers)
            who = [f"the container {labels[2] or labels[3]}" for labels in names[:LISTED]]
            if len(names) > LISTED:
                who.append(f"{len(names) - LISTED} more containers")
            if each.images:
                who.append(f"{each.images} images")
            yield BROKEN(
                each.layer or each.link,
                link=f"{store.path}/l/{each.link}" if each.link else "of its own",
                why=WHY[each.why],
                who=" and ".join(who),
                remedy=_link_remedy(store, each, {layer.name for layer in scan.layers}),
            )


def _decode(data: Any) -> _Unknown:
    return {
        str(path): {(str(name), int(inode)): float(at) for name, inode, at in rows if float(at) >= 0}
        for path, rows in data["unknown"].items()
    }


def _why_none(host: Host, runtimes: Runtimes) -> str:
    places = [f"{root}/overlay2" for root in runtimes.docker_roots]
    places += [f"{root}/{SNAPSHOTTER}" for root in runtimes.containerd_roots]
    places += [f"{root}/overlay" for root in runtimes.containers_storage_roots]
    for place in places:
        try:
            host.lstat(place)
        except Denied:
            return FOR_ROOT
        except HostError:
            continue
    return "no container storage with overlay layers is here"


def _mounted(host: Host) -> set[str]:
    """Return all directories that overlay mounts use."""
    mounts, _ = mountinfo.parse(host.read(MOUNTS))
    used = set()
    for mount in mounts:
        if mount.fstype == "overlay":
            layers = overlay.resolve(overlay.parse_options(mount.super_options), mount.mountpoint)
            used |= {path for path in (*layers.lowers, *layers.data_lowers, layers.upper) if path}
    return set(host.resolve_all(used))


def _orphan_remedy(store: Store, largest: Layer) -> str:
    path = shlex.quote(largest.path)
    if store.driver == "overlayfs":
        return (
            "ctr snapshots prepare ullage-check && ctr snapshots rm ullage-check   # when containerd has removed a "
            "snapshot, it removes the directories that it does not know as well"
        )
    if store.driver == "overlay":
        return f"podman system check   # tells what it makes of them, --repair removes them; {path} is the largest"
    root = shlex.quote(store.path.rpartition("/")[0])
    return (
        f"grep -rl {largest.name} {root}/image {root}/buildkit   # prints nothing if nobody needs it. Then with Docker "
        f"stopped: mv {path} {root}/orphan-{largest.name[:12]}; start it, and when all works, remove that directory"
    )


def _link_remedy(store: Store, broken: BrokenLink, layers: Collection[str]) -> str:
    if broken.link and broken.layer in layers:
        link = shlex.quote(f"{store.path}/l/{broken.link}")
        return f"ln -sfn ../{shlex.quote(broken.layer)}/diff {link}   # Docker never makes it again"
    return "What it led to is lost: remove the images that need it, docker rmi --force IMAGE, and pull them again"


def _some(names: Iterable[str]) -> str:
    listed = [label(name) for name in names]
    more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    return ", ".join(listed[:LISTED]) + more


def _size(size: int) -> str:
    return f"{size / MIB:.1f} MiB"


COLLECTOR = Collector(
    name="layers",
    summary="Who holds the inodes: layers of images and containers, orphans among them, broken links.",
    start=Layers,
    interval=30.0,
    deadline=25.0,
    metrics=(
        *(INFO, LAYERS, FILES, BYTES, LINK_COUNT, AGE, BYTES_AGE, PROGRESS),
        *(WRITABLE_FILES, WRITABLE_BYTES, DEPTH),
    ),
    findings=(ORPHANS, BROKEN, LITTER, INTERRUPTED),
    settings=Settings,
    progress=PROGRESS,
    rules=RULES,
    facts=(Fact("Layer stores", INFO),),
    tops=(Top("Writable inodes", WRITABLE_FILES, "inodes"),),
    wants=(
        Want(
            capabilities=("DAC_READ_SEARCH",),
            lost="the counts of layers with directories that are closed to root's own permissions, and the sums that "
            "they belong to",
        ),
        Want(capabilities=("DAC_READ_SEARCH",), lost="all of it", reasons=(FOR_ROOT,)),
    ),
)
