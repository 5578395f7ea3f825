"""The stores of layers on a node, wherever its runtimes are configured to have them.

Docker's graph driver overlay2 below each data-root, below `UID.GID/` of it where containers have users of their own;
containerd's overlayfs snapshotter, of the system's containerd and of one that Docker runs; containers/storage of
Podman, Buildah and CRI-O, with additional image stores. Their configuration is daemon.json, config.toml, storage.conf.
Which store is live: Docker's daemon knows. If it is not to be asked: it takes what its daemon.json says. Where that is
silent it stays with a driver that has images, and a new installation uses containerd's store since version 29. So where
both might be, nobody can tell; nor where the host's /etc is not to be seen, as in a container that does not show it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from agent.containers import Runtimes
from agent.errors import HostError, Malformed
from agent.host import Host
from collectors.containerd_store import SNAPSHOTTER, ContainerdStore
from collectors.containers_store import ContainersStore
from collectors.docker_store import DockerStore
from collectors.dockerinfo import read_daemon
from collectors.drivers import with_layers
from collectors.readers import containerd, containers_storage
from collectors.readers.docker import Daemon
from collectors.stored import BrokenLink, Layer, Scan, State, Store

__all__ = ("BrokenLink", "Layer", "Scan", "State", "Store", "find")

STORAGE = ("etc/containers/storage.conf", "usr/share/containers/storage.conf")  # the second only if there is no first
CONTAINERD = "/var/lib/containerd"  # containerd's root where its configuration names none
_Config = TypeVar("_Config")
_REMAPPED = re.compile(r"[0-9]+\.[0-9]+")


def find(
    host: Host, runtimes: Runtimes, known: Mapping[str, Store], told: Mapping[str, str] | None = None
) -> list[Store]:
    """Return the stores that are there. Those `known`, by their paths, are kept: they remember what they have seen.

    `told` are the drivers that Docker's daemons say they use, as /info has both, by their data-roots.
    """
    found: dict[str, Store] = {}
    for stores in (
        _docker(host, runtimes, known, told or {}),
        _containerd(host, runtimes, known),
        _containers_storage(host, runtimes, known),
    ):
        for store in stores:
            found.setdefault(store.path, store)
    return list(found.values())


def _docker(host: Host, runtimes: Runtimes, known: Mapping[str, Store], told: Mapping[str, str]) -> Iterator[Store]:
    daemon = _daemon(host)
    roots = (*runtimes.docker_roots, *told, *filter(None, [daemon.root if daemon is not None else ""]))
    for root in host.resolve_all(roots):
        places = (root, *_remapped(host, root))
        drivers = {place: told[place] for place in places if place in told}
        for place in places:
            path = host.resolve(f"{place}/overlay2")
            if host.exists(path):
                store = known.get(path)
                store = store if isinstance(store, DockerStore) else DockerStore(place, path)
                is_live = _is_overlay2_live(host, place, daemon)
                store.is_live = drivers.get(place) == "overlay2" if drivers else is_live
                yield store
        managed = f"{root}/containerd/daemon"
        path = host.resolve(f"{managed}/{SNAPSHOTTER}")
        if host.exists(f"{path}/metadata.db"):
            store = known.get(path)
            store = store if isinstance(store, ContainerdStore) else ContainerdStore(managed, path, "docker")
            is_live = _is_containerd_live(host, root, daemon)
            store.is_live = "overlayfs" in drivers.values() if drivers else is_live
            yield store


def _containerd(host: Host, runtimes: Runtimes, known: Mapping[str, Store]) -> Iterator[Store]:
    config = _parsed(host, "etc/containerd/config.toml", containerd.parse_config) or containerd.Config("", "", "")
    states = _containerd_states(runtimes, config)
    places = {f"{root}/{SNAPSHOTTER}": root for root in states}
    if config.overlayfs:
        places[config.overlayfs] = config.root or CONTAINERD
    for place, root in places.items():
        path = host.resolve(place)
        if host.exists(f"{path}/metadata.db"):
            store = known.get(path)
            store = store if isinstance(store, ContainerdStore) else ContainerdStore(host.resolve(root), path)
            store.is_live = True if any(host.exists(f"{state}/containerd.sock") for state in states[root]) else None
            yield store


def _containerd_states(runtimes: Runtimes, config: containerd.Config) -> dict[str, tuple[str, ...]]:
    """Return containerd's roots, and of each the state directories that may be of the daemon that uses it.

    The usual places are in pairs. Of a root beside others whose own is not known none is: it may have been left behind.
    """
    roots, states = runtimes.containerd_roots, runtimes.containerd_states
    if len(roots) == len(states):
        found: dict[str, tuple[str, ...]] = {root: (state,) for root, state in zip(roots, states, strict=True)}
    else:
        found = dict.fromkeys(roots, states if len(roots) == 1 else ())
    if config.root or config.state:
        found[CONTAINERD] = ()
        found[config.root or CONTAINERD] = (config.state or states[0],) if config.state or states else ()
    return found


def _containers_storage(host: Host, runtimes: Runtimes, known: Mapping[str, Store]) -> Iterator[Store]:
    nothing = containers_storage.Config("", "", "", ())
    path = next((path for path in STORAGE if host.exists(path)), STORAGE[0])
    config = _parsed(host, path, containers_storage.parse_config) or nothing
    told = config.graph_root, config.run_root, *config.stores
    roots = host.resolve_all((*runtimes.containers_storage_roots, *filter(None, told)))
    for root in roots:
        path = host.resolve(f"{root}/overlay")
        if host.exists(f"{path}/l"):  # a run root has a directory of that name too
            store = known.get(path)
            if not isinstance(store, ContainersStore) or store.roots != tuple(roots):
                runtime = "containers-storage" if root in config.stores else _engine(host, root)
                store = ContainersStore(root, path, runtime, tuple(roots))
            store.is_live = _is_overlay_live(host, root, config.driver)
            yield store


def _engine(host: Host, root: str) -> str:
    """Return who keeps a graph root; Buildah alone leaves no mark of its own."""
    is_podmans, is_crios = host.exists(f"{root}/libpod"), host.exists("var/lib/crio")
    if is_podmans == is_crios:
        return "containers-storage"
    return "podman" if is_podmans else "cri-o"


def _is_overlay_live(host: Host, root: str, driver: str) -> bool | None:
    if driver:
        return driver == "overlay"
    drivers = {name.removesuffix("-layers") for name in host.listed(root) if name.endswith("-layers")}
    return True if drivers == {"overlay"} else None


def _remapped(host: Host, root: str) -> list[str]:
    """Return the data-roots of daemons whose containers have users of their own."""
    return [f"{root}/{name}" for name in host.listed(root) if _REMAPPED.fullmatch(name)]


def _daemon(host: Host) -> Daemon | None:
    """Return what Docker's configuration says; None if it cannot be read, or is not to be seen."""
    with host.skipping():
        # a container may show nothing of the host's /etc, or only another part of it
        return read_daemon(host) if host.exists("etc/docker") or host.exists("etc/passwd") else None
    return None


def _parsed(host: Host, path: str, parse: Callable[[bytes], _Config]) -> _Config | None:
    """Return what a file of configuration says, as an empty one where there is none; None if it cannot be read."""
    try:
        return parse(host.read_if_there(host.resolve(path)))
    except HostError as error:
        host.skip(error)
    except ValueError as error:
        host.skip(Malformed(path, f"is not what we expect: {error}"[:500]))
    return None


def _is_overlay2_live(host: Host, root: str, daemon: Daemon | None) -> bool | None:
    if daemon is None:
        return None
    if daemon.is_containerd or (daemon.driver and daemon.driver != "overlay2"):
        return False
    drivers = with_layers(host, root)
    if daemon.driver or daemon.is_containerd is False:
        return True if daemon.driver or drivers == ["overlay2"] else None
    has_snapshots = bool(host.listed(f"{root}/containerd/daemon/{SNAPSHOTTER}/snapshots"))
    return True if drivers == ["overlay2"] and not has_snapshots else None


def _is_containerd_live(host: Host, root: str, daemon: Daemon | None) -> bool | None:
    if daemon is None:
        return None
    if daemon.is_containerd or daemon.driver == "overlayfs":
        return True
    if daemon.is_containerd is False or daemon.driver:
        return False
    has_snapshots = bool(host.listed(f"{root}/containerd/daemon/{SNAPSHOTTER}/snapshots"))
    return True if has_snapshots and not with_layers(host, root) else None
