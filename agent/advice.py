"""Which storage drivers could be used on this node, judged by what is measured and installed on it.

Source: /proc/sys/kernel/osrelease, /proc/filesystems, /sys/module, modules.dep and modules.builtin of the running
kernel; /proc/1/mountinfo; getdents64(2) for d_type; Docker's API (/info) and daemon.json; the stores that are there.
What each driver needs: daemon/graphdriver of moby (20.10 to 29), containerd's snapshotters, OpenZFS 2.2's release notes
for overlayfs on ZFS.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, NamedTuple

from rich.table import Table
from rich.text import Text

from agent import dirents
from agent.containers import Runtimes
from agent.dockerapi import DockerApi
from agent.host import Host
from agent.patience import within
from agent.plain import plain
from collectors import drivers
from collectors.dockerinfo import Connect, Informant, read_daemon
from collectors.drivers import Roots, Store
from collectors.entrytypes import EntryTypes
from collectors.readers import storage_opts
from collectors.readers.docker import Daemon, Info
from collectors.readers.mountinfo import Mount, carrier, parse, visible

Verdict = Literal["in use", "usable", "avoid", "not here"]
Has = Literal["yes", "as a module", "no", "unknown"]
ANSWER_WITHIN = 10.0  # seconds for Docker
SURVEY_WITHIN = 60.0  # seconds for all of it
OVERLAY_SINCE = (4, 0)  # Linux, several lower directories
ZFS_WITH_OVERLAY = (2, 2)
_NO_UPPER = {
    *("overlay", "nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ecryptfs", "aufs", "vfat", "exfat", "ntfs3", "fuse"),
    *("fuseblk", "ceph", "squashfs"),
}
_VERSION = re.compile(r"(\d+)\.(\d+)")
_MODULES = {"overlay": "overlay", "btrfs": "btrfs", "zfs": "zfs", "thin pools": "dm_thin_pool"}
_NAMES = {"docker": "Docker", "containerd": "containerd", drivers.STORAGE: "CRI-O or Podman"}
_STYLES: Mapping[Verdict, str] = {"in use": "bold", "usable": "green", "avoid": "yellow", "not here": "dim"}
_PROGRAMS = ("usr/bin", "usr/sbin", "sbin", "bin", "usr/local/bin", "usr/local/sbin")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a runtime keeps its layers, or would. `d_type` is None where there is no entry to tell by."""

    runtime: str
    path: str
    filesystem: str
    device: str
    mountpoint: str
    d_type: bool | None
    has_quota: bool


@dataclass(frozen=True, slots=True)
class Node:
    """What the advice is drawn from. Versions are empty where nobody says; `has` is what the kernel can."""

    kernel: str
    docker: str
    containerd: str
    installed: tuple[str, ...]
    zfs: str
    has_zfs_tools: bool
    has: Mapping[str, Has]
    places: Mapping[str, Place]
    stores: tuple[Store, ...]


@dataclass(frozen=True, slots=True)
class Advice:
    """A driver and what to think of it here. The texts are whole, for a person."""

    driver: str
    runtime: str
    verdict: Verdict
    reasons: tuple[str, ...]
    copy_on_write: str
    snapshots: str
    limit: str
    removed: str


def survey_in_time(host: Host, runtimes: Runtimes, seconds: float = SURVEY_WITHIN) -> Node:
    """Look at the node as `survey` does; raises Stuck where a filesystem does not answer."""
    return within(seconds, lambda: survey(host, runtimes), "the runtimes' storage")


def survey(
    host: Host,
    runtimes: Runtimes,
    connect: Connect = DockerApi,
    types: Callable[[str], Mapping[bytes, int]] = dirents.types,
) -> Node:
    """Look at the node. What cannot be read is unknown, never an error."""
    top: dict[str, Mount] = {}
    with host.skipping():
        top = {mount.mountpoint: mount for mount in visible(parse(host.read("proc/1/mountinfo"))[0])}
    infos = list(_asked(host, runtimes.docker_sockets, connect))
    told = [info.root for info in infos if not drivers.is_storage(host, info)]
    daemon = Daemon()
    with host.skipping():
        daemon = read_daemon(host)
        told += filter(None, [daemon.root])
    roots = Roots(
        tuple(host.resolve_all((*told, *runtimes.docker_roots))),
        tuple(host.resolve_all(runtimes.containerd_roots)),
        tuple(host.resolve_all(runtimes.containers_storage_roots)),
    )
    containerd = drivers.containerd_version(host, runtimes.containerd_states, infos)
    stores = drivers.find(host, roots, drivers.Word(infos, daemon, containerd), top)
    release = _text(host, "proc/sys/kernel/osrelease")
    places = {
        "docker": _place(host, "docker", _root_of(stores, "docker", roots.docker), top, types),
        "containerd": _place(host, "containerd", _root_of(stores, "containerd", roots.containerd), top, types),
    }
    return Node(
        kernel=release,
        docker=next((info.version for info in infos if info.root in told), ""),
        containerd=containerd,
        installed=tuple(_installed(host, stores)),
        zfs=_text(host, "sys/module/zfs/version"),
        has_zfs_tools=any(host.exists(f"{directory}/zfs") for directory in _PROGRAMS),
        has={name: _has(host, module, release) for name, module in _MODULES.items()},
        places={name: place for name, place in places.items() if place is not None},
        stores=tuple(stores),
    )


def _asked(host: Host, sockets: Sequence[str], connect: Connect) -> Iterator[Info]:
    for path in sockets:
        informant = Informant(path, connect, first=ANSWER_WITHIN)
        if (info := informant.ask(host)) is not None:
            with host.skipping():
                yield info._replace(root=host.resolve(info.root))
        informant.close()


def _root_of(stores: Sequence[Store], runtime: str, roots: Sequence[str]) -> str:
    """Return the root of the runtime that is in use, the first of its usual ones if none is."""
    used = [store.root for store in stores if store.runtime == runtime]
    return (used or list(roots) or ["/"])[0]


def _place(
    host: Host, runtime: str, path: str, top: Mapping[str, Mount], types: Callable[[str], Mapping[bytes, int]]
) -> Place | None:
    mount = carrier(top, path)
    if mount is None:
        return None
    d_type = None
    with host.skipping():
        d_type = EntryTypes(types).kept(host, path, mount, top)
    quota = any(option in ("prjquota", "pquota") for option in mount.super_options)
    if mount.fstype == "btrfs":
        device = mount.source.rpartition("/")[2]
        quota = any(host.exists(f"{each}/qgroups") for each in _filesystems_on(host, device))
    return Place(runtime, path, mount.fstype, mount.source, mount.mountpoint, d_type, quota)


def _filesystems_on(host: Host, device: str) -> list[str]:
    return [
        f"sys/fs/btrfs/{uuid}"
        for uuid in host.listed("sys/fs/btrfs")
        if device and host.exists(f"sys/fs/btrfs/{uuid}/devices/{device}")
    ]


def _has(host: Host, module: str, release: str) -> Has:
    registered = [line.split()[-1] for line in _text(host, "proc/filesystems").splitlines() if line.split()]
    if module in registered or host.exists(f"sys/module/{module}"):
        return "yes"
    directories = [path for path in (f"lib/modules/{release}", f"usr/lib/modules/{release}") if host.exists(path)]
    file = re.compile(rf"/{module}\.ko".replace("_", "[-_]"))
    for directory in directories:
        if file.search(_text(host, f"{directory}/modules.builtin")):
            return "yes"
        if file.search(_text(host, f"{directory}/modules.dep")):
            return "as a module"
    has_modules = host.exists("proc/modules")
    return "unknown" if has_modules and not directories else "no"


def _text(host: Host, path: str) -> str:
    with host.skipping():
        return host.read_if_there(path).decode("utf-8", "replace").strip()
    return ""


def _installed(host: Host, stores: Sequence[Store]) -> Iterator[str]:
    used = {store.runtime for store in stores}
    for runtime, program in (("docker", "dockerd"), ("containerd", "containerd")):
        if runtime in used or any(host.exists(f"{directory}/{program}") for directory in _PROGRAMS):
            yield runtime


class _Driver(NamedTuple):
    name: str
    runtime: str
    copy_on_write: str
    snapshots: str
    judge: Callable[[Node, Place | None], tuple[Verdict, list[str], str]]


def judge(node: Node) -> list[Advice]:
    """Return the advice for each driver."""
    found = []
    for driver in _DRIVERS:
        verdict, reasons, limit = driver.judge(node, node.places.get(driver.runtime))
        is_used = any((store.runtime, store.driver) == (driver.runtime, driver.name) for store in node.stores)
        if not is_used and driver.runtime not in node.installed:
            reasons = [f"{_NAMES[driver.runtime]} is not found here; if it were, in its usual place:", *reasons]
        removed = storage_opts.REMOVED_IN.get(driver.name) if driver.runtime == "docker" else None
        advice = Advice(
            driver.name,
            driver.runtime,
            verdict,
            tuple(reasons),
            driver.copy_on_write,
            driver.snapshots,
            limit,
            f"Docker {removed}.0" if removed else "",
        )
        found.append(replace(advice, verdict="in use") if is_used else advice)
    return found


def _obstacles(node: Node, place: Place) -> Iterator[str]:
    """Yield what keeps overlayfs from working in a place."""
    where = f"{place.path} lies on {place.filesystem}"
    if node.has["overlay"] == "no":
        yield "the kernel has no overlay filesystem"
    version = _version(node.kernel)
    if version is not None and version < OVERLAY_SINCE and ".el7" not in node.kernel:  # Red Hat's 3.10 has it
        yield f"it needs Linux 4.0, and this is {node.kernel}"
    if place.filesystem in _NO_UPPER or place.filesystem.startswith("fuse."):
        yield f"{where}, which cannot carry the writable layer of an overlay"
    if place.d_type is False:
        yield f"{where} that keeps no types of directory entries (d_type)"
    if place.filesystem == "zfs" and (_version(node.zfs) or ZFS_WITH_OVERLAY) < ZFS_WITH_OVERLAY:
        yield f"{where} {node.zfs}; overlayfs works on it since 2.2"


def _overlay(node: Node, place: Place | None) -> tuple[Verdict, list[str]]:
    if place is None:
        return "not here", ["where it would be cannot be told"]
    if obstacles := list(_obstacles(node, place)):
        return "not here", obstacles
    where = f"{place.path} lies on {place.filesystem}"
    if place.filesystem == "zfs":
        return "avoid", [f"{where}: overlayfs works on it since 2.2, and older versions of Docker refuse it"]
    reasons = [where + (", d_type is kept" if place.d_type else ", of which d_type could not be told")]
    if node.has["overlay"] != "yes":
        reasons.append(f"overlay in this kernel: {node.has['overlay']}")
    return "usable", reasons


def _overlay2(node: Node, place: Place | None) -> tuple[Verdict, list[str], str]:
    verdict, reasons = _overlay(node, place)
    if place is not None and place.filesystem == "xfs":
        return verdict, reasons, "overlay2.size" if place.has_quota else "none: mount the XFS with prjquota"
    return verdict, reasons, "none: overlay2.size needs an XFS with prjquota"


def _overlayfs(node: Node, place: Place | None) -> tuple[Verdict, list[str], str]:
    verdict, reasons = _overlay(node, place)
    if verdict == "usable" and place is not None and place.runtime == "docker":
        reasons.append("the store of new installations since Docker 29")
    return verdict, reasons, "none: the kubelet's eviction by ephemeral-storage only"


def _on_its_own(
    node: Node, place: Place | None, filesystem: str, quota: str, no_quota: str
) -> tuple[Verdict, list[str], str]:
    """Judge a driver that needs the filesystem of its own name below it."""
    if place is not None and place.filesystem == filesystem:
        limit = quota if place.has_quota else no_quota
        return "usable", [f"{place.path} lies on {filesystem} ({place.device})"], limit
    reasons = [] if place is None else [f"{place.path} lies on {place.filesystem}: it needs {filesystem} there"]
    if node.has[filesystem] != "yes":
        reasons.append(f"{filesystem} in this kernel: {node.has[filesystem]}")
    return "not here", reasons, quota


def _btrfs(node: Node, place: Place | None) -> tuple[Verdict, list[str], str]:
    found = _on_its_own(
        node, place, "btrfs", "--storage-opt size=, by qgroups", "none: quota is off (btrfs quota enable)"
    )
    major = storage_opts.parse_major(node.docker)
    if found[0] == "usable" and major is not None and major <= 20:  # noqa: PLR2004  the last that does so
        found[1].append(f"Docker {node.docker} switches quota off on all of the btrfs when it stops")
    return found


def _zfs(node: Node, place: Place | None) -> tuple[Verdict, list[str], str]:
    size = "--storage-opt size=, by the dataset's quota"
    verdict, reasons, limit = _on_its_own(node, place, "zfs", size, size)
    if verdict == "usable" and not node.has_zfs_tools:
        return "not here", [*reasons, "the program zfs is not installed"], limit
    return verdict, reasons, limit


def _devicemapper(node: Node, _place: Place | None) -> tuple[Verdict, list[str], str]:
    limit = "dm.basesize, and --storage-opt size="
    major, gone = storage_opts.parse_major(node.docker), storage_opts.REMOVED_IN["devicemapper"]
    if major is not None and major >= gone:
        return "not here", [f"gone since Docker {gone}.0, and this is {node.docker}"], limit
    if node.has["thin pools"] == "no":
        return "not here", ["the kernel has no thin pools (dm-thin-pool)"], limit
    reasons = [f"gone since Docker {gone}.0", "loop-lvm is slow, direct-lvm takes a disk of its own"]
    return "avoid", reasons, limit


def _vfs(_node: Node, _place: Place | None) -> tuple[Verdict, list[str], str]:
    return "avoid", ["works on every filesystem, but each layer and each container is a whole copy"], "none"


_FILE = "the whole file, at the first write to it"
_DRIVERS = (
    _Driver("overlay2", "docker", _FILE, "none needed", _overlay2),
    _Driver("overlayfs", "docker", _FILE, "none needed", _overlayfs),
    _Driver("overlayfs", "containerd", _FILE, "none needed", _overlayfs),
    _Driver(
        "btrfs", "docker", "an extent of 4 KiB and more; overwrites fragment", "a subvolume for each layer", _btrfs
    ),
    _Driver("zfs", "docker", "a record, of 128 KiB by default", "a dataset and a snapshot for each layer", _zfs),
    _Driver(
        "devicemapper",
        "docker",
        "a block of the pool, 64 KiB",
        "a thin snapshot for each layer: metadata",
        _devicemapper,
    ),
    _Driver("vfs", "docker", "all files, for each layer", "none: copies", _vfs),
)


def _version(text: str) -> tuple[int, int] | None:
    match = _VERSION.match(text)
    return (int(match[1]), int(match[2])) if match else None


def facts(node: Node) -> Iterator[str]:
    """Yield what the advice is drawn from, a line each."""
    versions = [f"Linux {node.kernel}" if node.kernel else "Linux of a version that cannot be told"]
    known = {"docker": node.docker, "containerd": node.containerd}
    versions += [f"{_NAMES[each]} {known[each] or '(version unknown)'}" for each in node.installed]
    yield ", ".join(versions + ([f"OpenZFS {node.zfs}"] if node.zfs else []))
    for place in node.places.values():
        d_type = {True: "kept", False: "not kept", None: "cannot be told"}[place.d_type]
        quota = "on" if place.has_quota else "off"
        where = f"{place.filesystem}, {place.device} at {place.mountpoint}"
        yield f"{_NAMES[place.runtime]}: {place.path} on {where}; d_type {d_type}; quota {quota}"
    for store in node.stores:
        yield f"in use: {_NAMES.get(store.runtime, store.runtime)}, {store.driver}, {store.path or store.root}"
    told = [f"{name} {has}" for name, has in node.has.items()]
    yield f"in the kernel: {', '.join(told)}"


def conclusion(found: Sequence[Advice]) -> Iterator[str]:
    """Yield what to do, a line each."""
    chosen = best(found)
    if chosen is None:
        yield "best here: none of them"
        return
    stays = ", which is in use: stay with it" if chosen.verdict == "in use" else ""
    yield f"best here: {chosen.driver} of {_NAMES[chosen.runtime]}{stays}"
    if not stays:
        yield "another driver hides the images and containers of the one before, and frees nothing: save them first"


def show(node: Node, found: Sequence[Advice]) -> Iterator[str]:
    """Yield the advice as lines that can be searched, harmless to a terminal."""
    yield from map(plain, facts(node))
    for each in found:
        yield ""
        yield f"{each.driver} ({_NAMES[each.runtime]}): {each.verdict}"
        yield from (plain(f"  {title.lower()}: {text}") for title, text in _rows(each) if text)
    yield ""
    yield from conclusion(found)


def _rows(each: Advice) -> Iterator[tuple[str, str]]:
    yield "Why", "; ".join(each.reasons).replace(":;", ":")
    yield "A write copies", each.copy_on_write
    yield "Snapshots", each.snapshots
    yield "Limit of a container", each.limit
    yield "Removed in", each.removed


def table(found: Sequence[Advice]) -> Table:
    """Return the advice as a table for a terminal."""
    columns = [title for title, _ in _rows(found[0])]
    made = Table("Driver", "Verdict", *columns, show_lines=True)
    for each in found:
        verdict = Text(each.verdict, style=_STYLES[each.verdict])
        driver = Text(f"{each.driver}\n{_NAMES[each.runtime]}")
        made.add_row(driver, verdict, *(Text(plain(text)) for _, text in _rows(each)))
    return made


def best(found: Sequence[Advice]) -> Advice | None:
    """Return the driver to take: the one in use if nothing speaks against it, else the first that is usable."""
    good = [each for each in found if each.verdict == "usable" or (each.verdict == "in use" and not _is_poor(each))]
    return min(good, key=lambda each: each.verdict != "in use", default=None)


def exit_code(found: Sequence[Advice]) -> int:
    """Return 1 if a driver is in use that had better not be, else 0."""
    return int(any(each.verdict == "in use" and _is_poor(each) for each in found))


def _is_poor(each: Advice) -> bool:
    return bool(each.removed) or each.driver == "vfs"


def as_json(node: Node, found: Sequence[Advice]) -> str:
    """Return the advice for machines."""
    chosen = best(found)
    told = {"node": asdict(node), "drivers": [asdict(each) for each in found]}
    return json.dumps(told | {"best": [chosen.runtime, chosen.driver] if chosen is not None else None}, indent=1)
