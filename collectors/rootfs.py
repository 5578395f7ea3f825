"""Containers that run though their root is not mounted on the node, of Docker's overlay2 and of containerd.

Source: DATA-ROOT/containers/ID/config.v2.json against DATA-ROOT/overlay2/LAYER/merged; containerd's tasks
STATE/io.containerd.runtime.v2.task/NAMESPACE/ID/{init.pid,config.json} against their rootfs. The daemon may have a
mount namespace of its own, whose mounts the node does not see: then its own table counts, or nothing is said.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from agent.containers import SHORT_ID
from agent.errors import Malformed, Vanished
from agent.finding import Finding, Found
from agent.host import Host
from agent.metric import label
from collectors.readers.docker import Container, parse_container
from collectors.readers.mountinfo import parse

MISSING_FOR = 10.0  # seconds: a root is unmounted a little before its container is noted to have ended
PID_FILE = "run/docker.pid"
RUNC_SHIM = "containerd-shim-runc"  # others keep roots elsewhere: Kata shares them with its virtual machine

NOT_MOUNTED = Finding(
    "rootfs-not-mounted",
    "warning",
    "{who} runs, but its root is not mounted at {target}: it goes on with a mount of its own, while all that looks at "
    "its files from outside (docker cp and export, scanners) sees nothing of them.",
    "Start it anew, which mounts it: {remedy}",
)

Files = dict[str, tuple[tuple[int, int, int], Container | None]]


class Missing(NamedTuple):
    """A container without its mount, and where that should be. `namespace` is containerd's."""

    runtime: str
    id: str
    namespace: str
    point: str


class _Root(msgspec.Struct):
    path: str = ""


class _Spec(msgspec.Struct):
    root: _Root = msgspec.field(default_factory=_Root)


@dataclass(slots=True)
class Watch:
    """What is missing, and since when."""

    clock: Callable[[], float]
    files: Files = field(default_factory=dict)
    _since: dict[Missing, float] = field(default_factory=dict)

    def lasting(self, missing: Iterable[Missing]) -> list[Missing]:
        """Return those that are missing for some time."""
        now, before = self.clock(), self._since
        self._since = {each: before.get(each, now) for each in missing}
        return [each for each, since in self._since.items() if now - since >= MISSING_FOR]


def docker(
    host: Host, roots: Sequence[str], layers: Mapping[str, str], points: Collection[str], files: Files
) -> Iterator[Missing]:
    """Yield Docker's, given the containers by their layers. `files` keeps what was read of those not mounted."""
    used = set()
    daemons = _daemons_points(host) if layers else set[str]()
    for root in roots:
        home = f"{root}/overlay2"
        if not (daemons or any(point.startswith(home + "/") for point in points)):
            continue
        for layer, container_id in layers.items():
            point, path = f"{home}/{layer}/merged", f"{root}/containers/{container_id}/config.v2.json"
            if point in points or point in daemons:
                continue
            with host.skipping():
                container = _container(host, path, files)
                used.add(path)
                if container is not None and container.driver == "overlay2" and _is_alive(host, container):
                    yield Missing("docker", container_id, "", point)
    for path in files.keys() - used:
        del files[path]


def _daemons_points(host: Host) -> set[str]:
    """Return where the daemon itself sees mounts; nothing where it is not known."""
    with host.skipping():
        try:
            pid = host.read_int(PID_FILE)
            return {mount.mountpoint for mount in parse(host.read(f"proc/{pid}/mountinfo"))[0]}
        except Vanished:
            pass
    return set()


def _container(host: Host, path: str, files: Files) -> Container | None:
    try:
        signature = host.signature(path)
        if path not in files or files[path][0] != signature:
            files[path] = signature, parse_container(host.read(path))
    except Vanished:
        return None
    except ValueError as error:
        raise Malformed(path, f"is not the JSON that we expect: {error}"[:500]) from error
    return files[path][1]


def _is_alive(host: Host, container: Container) -> bool:
    return _has_cgroup(host, container.pid, container.id)


def _has_cgroup(host: Host, pid: int, container: str) -> bool:
    """Return whether the process is that of the container: after a crash files say what no longer runs."""
    try:
        return container.encode("utf-8", "surrogateescape") in host.read(f"proc/{pid}/cgroup")
    except Vanished:
        return False


def containerd(host: Host, states: Iterable[str], points: Collection[str]) -> Iterator[Missing]:
    """Yield containerd's, of runc. Docker's tasks (namespace moby) have their roots elsewhere."""
    for state in states:
        base = f"{state}/io.containerd.runtime.v2.task"
        place = host.resolve(base)  # what containerd makes in it are directories
        for namespace in host.listed(base):
            for task in host.listed(f"{base}/{namespace}") if namespace != "moby" else ():
                point = f"{place}/{namespace}/{task}/rootfs"
                if point not in points:
                    with host.skipping():
                        if _runs_on_rootfs(host, f"{base}/{namespace}/{task}", task):
                            yield Missing("containerd", task, namespace, point)


def _runs_on_rootfs(host: Host, path: str, task: str) -> bool:
    try:
        shim = host.read(f"{path}/shim-binary-path").decode("utf-8", "replace")
        pid = host.read_int(f"{path}/init.pid")
        if RUNC_SHIM not in shim.rpartition("/")[2] or not _has_cgroup(host, pid, task):
            return False
        spec = msgspec.json.decode(host.read(f"{path}/config.json"), type=_Spec)
    except Vanished:
        return False
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(path, f"config.json is not the JSON that we expect: {error}"[:500]) from error
    return spec.root.path in ("rootfs", f"{path}/rootfs")


def found(each: Missing, name: str) -> Found:
    """Return the finding, given the container's name if it is known."""
    name = name or label(each.id[:SHORT_ID])
    return NOT_MOUNTED(label(each.point), who=f"The container {name}", remedy=_remedy(each, shlex.quote(name)))


def _remedy(each: Missing, name: str) -> str:
    if each.runtime == "docker":
        # restart fails: Docker counts its uses of the mount, and takes it for mounted until the last one has ended
        return f"docker stop {name}; docker start {name}"
    ctr = f"ctr --namespace {shlex.quote(label(each.namespace))} task"
    identity = shlex.quote(label(each.id))
    return f"{ctr} rm --force {identity} && {ctr} start --detach {identity}   # a kubelet starts it anew by itself"
