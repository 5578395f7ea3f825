"""The stores of images and containers on a node: whose they are, what driver they are of, and what is left of others.

Source: Docker's own word (API, /info); else DATA-ROOT/image/DRIVER/layerdb, as far as daemon.json does not rule it out,
and where containers' roots are mounted; containerd's ROOT/io.containerd.snapshotter.v1.NAME/metadata.db, which the
first snapshot makes; of CRI-O and Podman ROOT/DRIVER-layers/layers.json (containers/storage). A driver's files stay
when Docker is given another one: so they alone tell of a driver only where there is no second one.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from agent.errors import Vanished
from agent.host import Host
from collectors.readers.docker import Daemon, Info

SNAPSHOTTER = "io.containerd.snapshotter.v1."
MANAGED = "containerd/daemon"  # below a data-root: what belongs to a containerd that Docker has started itself
STORAGE = "containers_storage"  # as `ullage_filesystem_role` has it: one store of CRI-O and Podman both
Signature = tuple[int, int, int]
LAYERS_MOST = 10_000  # of a driver that is not in use: a bound on what is read to size it up
_EMPTY_LIST = 2  # bytes of `[]`
_DOCKER_ROOT = re.compile(r"/(?P<driver>[a-z0-9-]+)/.+")


class Roots(NamedTuple):
    """Where runtimes keep what they have, symbolic links resolved; `storage` are those of CRI-O and Podman."""

    docker: tuple[str, ...]
    containerd: tuple[str, ...]
    storage: tuple[str, ...]


class Word(NamedTuple):
    """What Docker's daemons said of themselves, what daemon.json says, and the version of containerd, if known."""

    infos: Sequence[Info]
    daemon: Daemon
    containerd: str = ""

    def of(self, root: str) -> Info | None:
        """Return what the daemon of a data-root said, None if there is none that did."""
        return next((info for info in reversed(self.infos) if info.root == root), None)


class Store(NamedTuple):
    """A store in use. `path` is its directory, empty where nobody knows; `root` is that of the runtime.

    `is_told` is whether its daemon said so itself.
    """

    runtime: str
    driver: str
    root: str
    path: str
    version: str = ""
    is_told: bool = False


class Residue(NamedTuple):
    """What is left of a driver of Docker's that is not in use: its layers, and their bytes as Docker counted them."""

    root: str
    driver: str
    layers: int
    size: int


def containerd_version(host: Host, states: Iterable[str], infos: Iterable[Info]) -> str:
    """Return the version of the node's containerd, by the word of the Docker that uses it.

    Empty where none says so, and where it may be that of another containerd: of several, or of one of Docker's own.
    """
    running = [state for state in states if host.exists(f"{state}/containerd.sock")]
    told = [info.containerd for info in infos if info.containerd and not host.exists(f"{info.root}/{MANAGED}")]
    return told[0] if len(running) == len(told) == 1 else ""


def find(host: Host, roots: Roots, word: Word, points: Collection[str]) -> list[Store]:
    """Return the stores in use below these roots, given what daemons said and where filesystems are mounted."""
    found = [
        store for root in roots.docker if (store := _docker(host, root, roots.containerd, word, points)) is not None
    ]
    taken = {store.path for store in found}
    for root in roots.containerd:
        found += [
            Store("containerd", driver, root, path, word.containerd)
            for driver, path in _snapshotters(host, root)
            if path not in taken
        ]
    for root in roots.storage:
        drivers = list(_storage_drivers(host, root))
        info = word.of(root)
        if info is not None:
            drivers = [info.driver]
        if len(drivers) == 1:
            version = info.version if info is not None else ""
            found.append(Store(STORAGE, drivers[0], root, f"{root}/{drivers[0]}", version, is_told=info is not None))
    return found


def is_storage(host: Host, info: Info) -> bool:
    """Return whether it is Podman that answered: its socket may have Docker's name, and its answers Docker's form."""
    return host.exists(f"{info.root}/{info.driver}-layers")


def _docker(host: Host, root: str, containerd: Sequence[str], word: Word, points: Collection[str]) -> Store | None:
    info = word.of(root)
    managed = f"{root}/{MANAGED}"
    if info is not None:
        if not info.is_containerd:
            return Store("docker", info.driver, root, f"{root}/{info.driver}", info.version, is_told=True)
        places = [
            path
            for each in (managed, *containerd)
            for driver, path in _snapshotters(host, each)
            if driver == info.driver
        ]
        return Store("docker", info.driver, root, places[0] if places else "", info.version, is_told=True)
    # if none has layers, those that were ever in use
    candidates: dict[str, str] = {}
    if not word.daemon.is_containerd:
        drivers = with_layers(host, root) or host.listed(f"{root}/image")
        candidates |= {driver: f"{root}/{driver}" for driver in drivers}
    if word.daemon.is_containerd is not False:
        candidates |= dict(_snapshotters(host, managed))
    if word.daemon.driver:
        candidates = {driver: path for driver, path in candidates.items() if driver == word.daemon.driver}
    if len(candidates) > 1:
        mounted = {match["driver"] for point in points if (match := _below(point, root))}
        candidates = {driver: path for driver, path in candidates.items() if driver in mounted}
    if len(candidates) != 1:
        return None
    ((driver, path),) = candidates.items()
    return Store("docker", driver, root, path)


def _below(point: str, root: str) -> re.Match[str] | None:
    """Return the driver that mounts a container's root there: `ROOT/overlay2/ID/merged`, `ROOT/rootfs/overlayfs/ID`."""
    if not point.startswith(root + "/"):
        return None
    return _DOCKER_ROOT.match(point, len(root) + len("/rootfs") * point.startswith(f"{root}/rootfs/"))


def with_layers(host: Host, root: str) -> list[str]:
    """Return Docker's drivers that have, or had, layers of images in a data-root."""
    return [driver for driver in host.listed(f"{root}/image") if host.listed(f"{root}/image/{driver}/layerdb/sha256")]


def _snapshotters(host: Host, root: str) -> Iterator[tuple[str, str]]:
    for name in host.listed(root):
        path = f"{root}/{name}"
        if name.startswith(SNAPSHOTTER) and host.exists(f"{path}/metadata.db"):
            yield name.removeprefix(SNAPSHOTTER), path


def _storage_drivers(host: Host, root: str) -> Iterator[str]:
    for name in host.listed(root):
        if name.endswith("-layers"):
            with host.skipping():
                if _size(host, f"{root}/{name}/layers.json") > _EMPTY_LIST:
                    yield name.removesuffix("-layers")


def _size(host: Host, path: str) -> int:
    try:
        return host.signature(path)[2]
    except Vanished:
        return 0


def has_layers(host: Host, store: Store) -> bool:
    """Return whether there is anything in the store of a driver that copies its layers."""
    if store.runtime == "docker" and not posixpath.basename(store.path).startswith(SNAPSHOTTER):
        return bool(host.listed(f"{store.root}/image/{store.driver}/layerdb/sha256"))
    return store.runtime == STORAGE or bool(host.listed(f"{store.path}/snapshots"))


def residues(host: Host, store: Store, kept: dict[str, tuple[Signature, Residue]]) -> Iterator[Residue]:
    """Yield what is left of Docker's other drivers, given the one in use by the daemon's own word.

    `kept` is where what was read stays until layers come or go.
    """
    for driver in host.listed(f"{store.root}/image"):
        is_live = driver == store.driver and store.path == f"{store.root}/{driver}"
        path = f"{store.root}/image/{driver}/layerdb/sha256"
        if is_live or not (layers := host.listed(path)):
            continue
        with host.skipping():
            signature = host.signature(path)
            if path not in kept or kept[path][0] != signature:
                sizes = _sizes(host, [f"{path}/{layer}/size" for layer in layers[:LAYERS_MOST]])
                kept[path] = signature, Residue(store.root, driver, len(layers), sum(sizes))
            yield kept[path][1]


def _sizes(host: Host, paths: Iterable[str]) -> Iterator[int]:
    for path in paths:
        with host.skipping():
            yield host.read_int(path)
