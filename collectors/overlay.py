"""Overlay mounts with the options in force, the storage drivers of a node, and what is wrong with either.

Source: /proc/1/mountinfo; /sys/module/overlay/parameters (Documentation/filesystems/overlayfs.rst); getdents64(2) on
the stores' filesystems; Docker's API (/info), its image/DRIVER, containers/ID/config.v2.json and daemon.json;
containerd's tasks. A mount shows an option only where it differs from the module's parameter: both together are what is
in force. overlayfs mounts on a filesystem that keeps no types of directory entries, and misbehaves; nothing adds them.
`redirect_dir=off,metacopy=on` is refused at the mount. The hazard is an upper that was written with one of them on and
is mounted with it off: files and directories of it cannot be opened (EPERM).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from agent.collector import Collector, Fact, Start, Yield
from agent.containers import LABELS, SHORT_ID, Containers
from agent.dockerapi import DockerApi
from agent.errors import HostError, Unsupported
from agent.finding import Found
from agent.host import Host
from agent.metric import LabelSet, Metric, label
from collectors import drivers, overlay_mounts, rootfs, store_hazards
from collectors.dockerinfo import Connect, Informant, read_daemon
from collectors.drivers import Residue, Roots, Store
from collectors.entrytypes import EntryTypes
from collectors.overlay_mounts import PARAMETERS, Overlay, Table
from collectors.readers import overlay
from collectors.readers.docker import Daemon, Info
from collectors.readers.mountinfo import carrier

PAGE = os.sysconf("SC_PAGESIZE")
OVERLAY_DRIVERS = ("overlay2", "overlay", "overlayfs")

DRIVER = Metric(
    "ullage_storage_driver_info",
    "A store of images and containers in use: whose, of what driver, on what filesystem; the version of its daemon.",
    ("runtime", "driver", "store", "backing_filesystem", "version"),
    "info",
)
MOUNTS = Metric(
    "ullage_overlay_mounts",
    "Overlay mounts by what is in force of each option, given or by default.",
    ("option", "value"),
)
PARAMETER = Metric(
    "ullage_overlay_module_parameter",
    "Parameters of the overlay module: 1 for Y, 0 for N, numbers as they are.",
    ("parameter",),
)
D_TYPE = Metric(
    "ullage_filesystem_d_type_supported",
    "Whether a filesystem that carries a store keeps the types of directory entries (1); overlayfs needs them.",
    ("mountpoint",),
)
LOWERS = Metric(
    "ullage_container_overlay_lowers", "Lower layers of the container's overlay mount; Docker takes 128.", LABELS
)
DATA = Metric(
    "ullage_container_overlay_mount_data_ratio",
    "Bytes of mount(2) data that the overlay mount took, as a share of the page that they must fit in.",
    LABELS,
)
UPPER = Metric(
    "ullage_container_overlay_upper_info",
    "The filesystem that the container's upper directory lies on.",
    (*LABELS, "mountpoint", "fstype"),
    "info",
)


@dataclass(slots=True)
class Overlays:
    """The running collector. `connect` makes a client of Docker's API; `types` looks at directory entries."""

    start: Start
    connect: Connect = DockerApi
    types: EntryTypes = field(default_factory=EntryTypes)
    clock: Callable[[], float] = time.monotonic
    page: int = PAGE
    _informants: list[Informant] = field(init=False)
    _roots: Roots | None = None  # as `_containers` knows them
    _containers: Containers = field(init=False)
    _text: tuple[bytes, Roots] | None = None
    _table: Table = field(default_factory=lambda: Table({}, {}, frozenset(), ()))
    _residues: dict[str, tuple[drivers.Signature, Residue]] = field(default_factory=dict)
    _unmounted: rootfs.Watch = field(init=False)

    def __post_init__(self) -> None:
        """Prepare the names of containers and the questions to Docker."""
        runtimes = self.start.runtimes
        self._containers = Containers(self.start.host, runtimes)
        self._informants = [Informant(path, self.connect, self.clock) for path in runtimes.docker_sockets]
        self._unmounted = rootfs.Watch(self.clock)

    def close(self) -> None:
        """Let the questions go."""
        for informant in self._informants:
            informant.close()

    def collect(self, host: Host) -> Iterator[Yield]:
        """Tell what is known, without a question to Docker that could hang."""
        infos = [_resolved(host, info) for each in self._informants if (info := each.ask(host)) is not None]
        daemon = Daemon()
        with host.skipping():
            daemon = read_daemon(host)
        roots = self._find_roots(host, daemon, infos)
        parameters = dict(_parameters(host))
        with host.skipping():
            self._read_table(host, roots)
        containerd = drivers.containerd_version(host, self.start.runtimes.containerd_states, infos)
        word = drivers.Word(infos, daemon, containerd)
        mounts, found = self._table.overlays, drivers.find(host, roots, word, self._table.top)
        if not (parameters or mounts or found):
            raise Unsupported("neither overlay nor a container runtime's store is on this node")
        for name, number in parameters.items():
            yield PARAMETER(number, name)
        force = {each.device: overlay.effective(each.layers.told, parameters) for each in mounts}
        yield from _count(force.values())
        owners = {each.device: labels for each in mounts if (labels := self._labels(each)) is not None}
        yield from self._container_samples(owners)
        yield from self._store_samples(host, found)
        default = overlay.effective({}, parameters)
        yield from overlay_mounts.mismatches(mounts, force, default)
        yield from overlay_mounts.slow_diffs(infos, default)
        yield from overlay_mounts.deep_chains(mounts, owners)
        yield from overlay_mounts.shared_uppers(host, mounts)
        yield from store_hazards.copies(host, found)
        yield from self._find_residues(host, found)
        yield from store_hazards.refused(daemon, found)
        yield from self._find_unmounted(host, roots)
        self._containers.forget_unasked()

    def _find_roots(self, host: Host, daemon: Daemon, infos: Sequence[Info]) -> Roots:
        """Return the runtimes' roots: the usual ones, that of Docker's configuration, those that daemons name."""
        runtimes, podman = self.start.runtimes, [info.root for info in infos if drivers.is_storage(host, info)]
        told = [info.root for info in infos if info.root not in podman]
        roots = Roots(
            tuple(host.resolve_all((*runtimes.docker_roots, *filter(None, [daemon.root]), *told))),
            tuple(host.resolve_all(runtimes.containerd_roots)),
            tuple(host.resolve_all((*runtimes.containers_storage_roots, *podman))),
        )
        if roots != self._roots:
            self._roots = roots
            runtimes = msgspec.structs.replace(
                runtimes, docker_roots=roots.docker, containers_storage_roots=roots.storage
            )
            self._containers = Containers(self.start.host, runtimes)
        return roots

    def _read_table(self, host: Host, roots: Roots) -> None:
        """Read the mount table; what is in it is found out only when it has changed."""
        text = host.read(overlay_mounts.TABLE)
        if (text, roots) == self._text:
            return
        docker_layers = self._containers.docker_layers("overlay2")
        storage_layers = self._containers.storage_layers()
        homes = {f"{root}/overlay2": ("docker", docker_layers) for root in roots.docker}
        homes |= {f"{root}/overlay": (drivers.STORAGE, storage_layers) for root in roots.storage}
        self._table = overlay_mounts.read(host, text, homes)
        self._text = text, roots

    def _labels(self, each: Overlay) -> LabelSet | None:
        """Return the labels of the container whose root it is, None if it is none's."""
        if each.owner:
            container = self._containers.lookup_id(each.owner)
            return container.labels if container is not None else ("", "", "", label(each.owner[:SHORT_ID]))
        for point in each.points:
            if container := self._containers.lookup_rootfs(point):
                return container.labels
        return None

    def _container_samples(self, owners: Mapping[str, LabelSet]) -> Iterator[Yield]:
        told = set()
        for each in self._table.overlays:
            labels = owners.get(each.device)
            if labels is None or labels in told:  # two may be mounted one above the other
                continue
            told.add(labels)
            yield LOWERS(len(each.layers.lowers) + len(each.layers.data_lowers), *labels)
            if each.layers.data_bytes is not None:
                yield DATA(each.layers.data_bytes / self.page, *labels)
            if each.place is not None:
                mountpoint = self._table.shown.get(each.place[0], "")
                yield UPPER(1, *labels, label(mountpoint), label(self._fstype(each.upper)))

    def _fstype(self, path: str) -> str:
        found = carrier(self._table.top, path) if path.startswith("/") else None
        return found.fstype if found is not None else ""

    def _store_samples(self, host: Host, found: Iterable[Store]) -> Iterator[Yield]:
        """Tell the stores, and what their filesystems are good for."""
        supported: dict[str, bool] = {}  # by mount point
        for store in found:
            fstype = self._fstype(store.path)
            yield DRIVER(1, store.runtime, label(store.driver), label(store.path), label(fstype), label(store.version))
            with host.skipping():
                mount = carrier(self._table.top, store.path) if store.path else None
                if mount is None:
                    continue
                is_supported = self.types.kept(host, store.path, mount, self._table.top)
                if is_supported is None:
                    continue
                shown = self._table.shown.get(mount.device, mount.mountpoint)
                supported[shown] = is_supported
                if not is_supported and store.driver in OVERLAY_DRIVERS:
                    yield store_hazards.no_dtype(store, mount, shown)
        for mountpoint, is_supported in supported.items():
            yield D_TYPE(int(is_supported), label(mountpoint))

    def _find_residues(self, host: Host, found: Iterable[Store]) -> Iterator[Found]:
        for store in found:
            if store.runtime == "docker" and store.is_told:
                for residue in drivers.residues(host, store, self._residues):
                    yield store_hazards.residue(store, residue)

    def _find_unmounted(self, host: Host, roots: Roots) -> Iterator[Found]:
        runtimes = self.start.runtimes
        layers = self._containers.docker_layers("overlay2")
        missing = [
            *rootfs.docker(host, roots.docker, layers, self._table.points, self._unmounted.files),
            *rootfs.containerd(host, runtimes.containerd_states, self._table.points),
        ]
        for each in self._unmounted.lasting(missing):
            container = self._containers.lookup_id(each.id) if each.runtime == "docker" else None
            yield rootfs.found(each, container.container if container is not None else "")


def _resolved(host: Host, info: Info) -> Info:
    try:
        return info._replace(root=host.resolve(info.root))
    except HostError:
        return info


def _parameters(host: Host) -> Iterator[tuple[str, int]]:
    for name in host.listed(PARAMETERS):
        with host.skipping():
            number = overlay.parse_parameter(host.read(f"{PARAMETERS}/{name}"))
            if number is not None:
                yield label(name), number


def _count(force: Iterable[Mapping[str, str]]) -> Iterator[Yield]:
    counts = Counter((option, value) for each in force for option, value in each.items())
    for labels, count in sorted(counts.items()):
        yield MOUNTS(count, *labels)


COLLECTOR = Collector(
    name="overlay",
    summary="Overlay mounts and the options in force, storage drivers, d_type, and hazards of either.",
    start=Overlays,
    interval=30.0,
    deadline=20.0,
    metrics=(DRIVER, MOUNTS, PARAMETER, D_TYPE, LOWERS, DATA, UPPER),
    facts=(Fact("Storage drivers", DRIVER),),
    findings=(*overlay_mounts.FINDINGS, *store_hazards.FINDINGS, rootfs.NOT_MOUNTED),
)
