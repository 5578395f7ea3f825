"""Container identity: from a cgroup path to namespace, pod, container, id and runtime, by files on the node alone.

Paths are matched, never anchored: on kind and k3s a node's whole tree lies below another path. Forms: systemd names of
Docker, containerd, CRI-O and Podman (`cri-containerd-<id>.scope`), cgroupfs names (`/kubepods/…/pod<uid>/<id>`);
the kubelet's are made in pkg/kubelet/cm/cgroup_manager_linux.go. Names come from the runtimes' own files, in this
order: containerd's task config.json (annotations `io.kubernetes.cri.*`), CRI-O's userdata/config.json
(`io.kubernetes.*`), Docker's config.v2.json, Podman's containers.json, the kubelet's links in /var/log/containers and
directories in /var/log/pods, at last Docker's API. What none of them knows stays unknown.
Docker adds an image's labels to a container's own, Podman an image's annotations, so that an image may say that it is
any pod: that is believed only of who is in that pod's cgroup, or is put there by its runtime, which no image can say.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from sys import intern
from typing import Any, Literal

import msgspec

from agent.dockerapi import DockerApi
from agent.errors import Denied, HostError, Malformed, Vanished
from agent.host import Host
from agent.metric import LabelSet, label

Source = tuple[str, tuple[int, int, int]]  # a file and its signature
Runtime = Literal["docker", "containerd", "cri-o", "podman", ""]
LABELS = ("namespace", "pod", "container", "id")
SHORT_ID = 12
CHECK_EVERY = 10.0  # seconds between looks whether a name has changed, or has become known
RETRY_MOST = 300.0  # seconds between looks for a name that stays unknown
API_EVERY = 30.0  # seconds between questions to Docker's API
API_WITHIN = 5.0  # seconds for an answer

_ID = r"(?P<id>[0-9a-f]{64})"
_PREFIXES: dict[str, Runtime] = {
    "docker": "docker",
    "cri-containerd": "containerd",
    "crio": "cri-o",
    "libpod": "podman",
}
_SCOPE = re.compile(rf"(?P<prefix>{'|'.join(_PREFIXES)})-{_ID}\.scope")
_PREFIXED = re.compile(rf"(?P<prefix>crio|libpod)-{_ID}")  # the cgroupfs driver's form
_BARE = re.compile(_ID)
_HELPER = re.compile(r"(crio|libpod)-conmon-[0-9a-f]{64}(\.scope)?")
_POD = re.compile(
    r"(?:.*-)?pod(?P<uid>[0-9a-fA-F]{8}(?:[-_][0-9a-fA-F]{4}){3}[-_][0-9a-fA-F]{12}|[0-9a-f]{32})(?:\.slice)?"
)
_TASK_ROOTFS = re.compile(
    r"/io\.containerd\.runtime\.v2\.task/(?P<namespace>[^/]+)/(?P<id>[^/]+)/rootfs$"
    r"|/rootfs/[a-z0-9.-]+/(?P<docker>[0-9a-f]{64})$"  # Docker with containerd's image store
)
_LOG_LINK = re.compile(r"(?P<pod>[^_/]+)_(?P<namespace>[^_/]+)_(?P<container>.+)-(?P<id>[0-9a-f]{64})\.log", re.DOTALL)
_LOG_DIRECTORY = re.compile(r"(?P<namespace>[^_/]+)_(?P<pod>[^_/]+)_(?P<uid>[^_/]+)", re.DOTALL)


class Runtimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the runtimes of a node are; the defaults are their usual places, k3s' and RKE2's among them."""

    docker_sockets: tuple[str, ...] = ("/run/docker.sock",)
    docker_roots: tuple[str, ...] = ("/var/lib/docker",)
    containerd_roots: tuple[str, ...] = ("/var/lib/containerd", "/var/lib/rancher/k3s/agent/containerd")
    containerd_states: tuple[str, ...] = ("/run/containerd", "/run/k3s/containerd")
    containers_storage_roots: tuple[str, ...] = ("/var/lib/containers/storage", "/run/containers/storage")


@dataclass(frozen=True, slots=True)
class Place:
    """What a cgroup path says by itself: a container's cgroup (`id` is its whole id), or a pod's (`id` is empty)."""

    id: str
    runtime: Runtime
    pod_uid: str
    qos: str


@dataclass(frozen=True, slots=True)
class Container:
    """A container, or with an empty `id` a pod. Names that nobody knows are empty."""

    namespace: str
    pod: str
    container: str
    id: str
    runtime: Runtime
    pod_uid: str = ""
    qos: str = ""
    is_sandbox: bool = False
    labels: LabelSet = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make the values of LABELS; the id in its short form."""
        object.__setattr__(self, "labels", (self.namespace, self.pod, self.container, intern(self.id[:SHORT_ID])))

    @property
    def is_named(self) -> bool:
        """Whether somebody knew a name."""
        return bool(self.container or self.is_sandbox or (self.pod and not self.id))


def parse_cgroup(path: str) -> Place | None:
    """Return the innermost container, else the innermost pod, that a cgroup path belongs to; None if there is none.

    `/kubepods/burstable/pod3f05…/148c…` and `/kubepods.slice/…/cri-containerd-148c….scope` are containers. The monitors
    of CRI-O and Podman (conmon) and CRI-O's second cgroup of a sandbox are none.
    """
    parts = path.split("/")
    for end in range(len(parts) - 1, -1, -1):
        part = parts[end]
        if _HELPER.fullmatch(part):
            return None
        runtime: Runtime | None = None
        if match := _SCOPE.fullmatch(part):
            runtime = _PREFIXES[match["prefix"]]
        elif match := _PREFIXED.fullmatch(part):
            if end and parts[end - 1].endswith(".slice"):
                return None  # CRI-O makes it beside the scope of each sandbox
            runtime = _PREFIXES[match["prefix"]]
        elif match := _BARE.fullmatch(part):
            runtime = "docker" if end and parts[end - 1] == "docker" else ""
        if runtime is None and not _POD.fullmatch(part):
            continue
        uid, qos = _pod_of(parts[: end + 1])
        return Place(intern(match["id"]) if match is not None else "", runtime or "", intern(uid), qos)
    return None


def containers_on(path: str) -> Iterator[str]:
    """Yield the paths of the containers that a cgroup is in, the outermost first; what is below was made in it."""
    parts = path.split("/")
    for end, part in enumerate(parts, 1):
        if any(form.fullmatch(part) for form in (_SCOPE, _PREFIXED, _BARE)):
            yield "/".join(parts[:end])


def outermost(path: str) -> str:
    """Return a cgroup's path as far as the first container on it. Else all of it."""
    return next(containers_on(path), path)


def _pod_of(parts: list[str]) -> tuple[str, str]:
    for part in reversed(parts):
        if match := _POD.fullmatch(part):
            break
    else:
        return "", ""
    text = "/".join(parts)
    qos = next((name for name in ("besteffort", "burstable") if name in text), "guaranteed")
    return match["uid"].replace("_", "-"), qos if "kubepods" in text else ""


class _Linux(msgspec.Struct, rename="camel"):
    cgroups_path: str = ""


class _Spec(msgspec.Struct):
    """The part of an OCI config.json that we read."""

    annotations: dict[str, str] = {}
    linux: _Linux | None = None


class _DockerConfig(msgspec.Struct, rename="pascal"):
    labels: dict[str, str] | None = None


class _DockerContainer(msgspec.Struct, rename="pascal"):
    """The part of Docker's config.v2.json that we read."""

    name: str = ""
    config: _DockerConfig = msgspec.field(default_factory=_DockerConfig)


class _DockerHostConfig(msgspec.Struct, rename="pascal"):
    """The part of Docker's hostconfig.json that we read."""

    cgroup_parent: str = ""


class _StoredContainer(msgspec.Struct):
    """The part of an entry of containers.json of containers/storage that we read."""

    id: str
    names: list[str] | None = None
    layer: str = ""


@dataclass(slots=True)
class _Known:
    """A cache entry; `source` is the file that a name is from, with its signature."""

    container: Container
    source: Source | None
    check_at: float
    pause: float = CHECK_EVERY


class Containers:
    """Looks up containers by their cgroup, id or root. For one thread.

    A cache entry lives while `retain` is told of its cgroup, or while it is looked up by id, see `forget_unasked`.
    """

    def __init__(self, host: Host, runtimes: Runtimes, clock: Callable[[], float] = time.monotonic) -> None:
        self._host = host
        self._runtimes = runtimes
        self._clock = clock
        self._places: dict[str, Place | None] = {}
        self._known: dict[str, _Known] = {}
        self._asked: set[str] = set()
        self._pods: dict[str, tuple[str, str]] = {}  # uid: namespace, pod
        self._logs: dict[str, Container] = {}
        self._logs_at = float("-inf")
        self._api = _Api(runtimes.docker_sockets, host, clock)

    def lookup(self, path: str) -> Container | None:
        """Return the container, or the pod, that a cgroup path belongs to."""
        place = self._places[path] = self.place(path)
        if place is None:
            return None
        if not place.id:
            namespace, pod = self._pod_names(place.pod_uid)
            return Container(namespace, pod, "", "", "", place.pod_uid, place.qos)
        return self._lookup(place)

    def place(self, path: str) -> Place | None:
        """Return what a cgroup path says by itself; that is remembered only of what is looked up."""
        try:
            return self._places[path]
        except KeyError:
            return parse_cgroup(path) or self._ctr_place(path)

    def lookup_id(self, full_id: str) -> Container | None:
        """Return a container by its whole id, None if nobody knows it."""
        self._asked.add(full_id)
        found = self._lookup(Place(full_id, "", "", ""))
        return found if found.is_named else None

    def lookup_rootfs(self, mountpoint: str) -> Container | None:
        """Return the container whose root filesystem containerd, or Docker on containerd's store, mounts there.

        At `<state>/io.containerd.runtime.v2.task/<namespace>/<id>/rootfs`, or `<data-root>/rootfs/<snapshotter>/<id>`.
        """
        match = _TASK_ROOTFS.search(mountpoint)
        if match is None:
            return None
        if match["namespace"] in (None, "k8s.io", "moby"):
            return self.lookup_id(match["docker"] or match["id"])
        return Container("", "", label(match["id"]), label(match["id"]), "containerd")

    def docker_layers(self, driver: str) -> dict[str, str]:
        """Return the containers' whole ids by the names of their writable layers, of one of Docker's storage drivers.

        Source: <data-root>/image/<driver>/layerdb/mounts/<container>/mount-id.
        """
        layers = {}
        for root in self._runtimes.docker_roots:
            base = f"{self._host.resolve(root)}/image/{driver}/layerdb/mounts"
            for container in self._host.listed(base):
                with self._host.skipping():
                    text = self._host.read(f"{base}/{container}/mount-id")
                    layers[text.decode("ascii", "replace").strip()] = container
        return layers

    def storage_layers(self) -> dict[str, str]:
        """Return the containers' whole ids by their layers, of CRI-O and Podman.

        Source: overlay-containers/{containers,volatile-containers}.json of containers/storage.
        """
        layers: dict[str, str] = {}
        for root in self._runtimes.containers_storage_roots:
            for name in ("containers.json", "volatile-containers.json"):
                with self._host.skipping():
                    stored = self._read(f"{root}/overlay-containers/{name}", list[_StoredContainer])
                    layers |= {each.layer: each.id for each in stored or () if each.layer}
        return layers

    def forget_unasked(self) -> None:
        """Forget every container that was not looked up by id, or by its root, since the last call of this."""
        self._known = {known_id: known for known_id, known in self._known.items() if known_id in self._asked}
        self._asked = set()

    def retain(self, paths: Iterable[str]) -> None:
        """Forget everything but what these cgroups need."""
        self._places = {path: self._places[path] for path in paths if path in self._places}
        places = [place for place in self._places.values() if place is not None]
        ids, uids = {place.id for place in places}, {place.pod_uid for place in places}
        self._known = {known_id: known for known_id, known in self._known.items() if known_id in ids}
        self._pods = {uid: names for uid, names in self._pods.items() if uid in uids}

    def _lookup(self, place: Place) -> Container:
        now = self._clock()
        known = self._known.get(place.id)
        if known is not None and now < known.check_at:
            return known.container
        if known is not None and known.source is not None and self._signature(known.source[0]) == known.source[1]:
            known.check_at = now + CHECK_EVERY
            return known.container
        found, source = self._find(place)
        # Kubernetes' names never change
        pause = CHECK_EVERY if source is not None or found.runtime == "docker" else float("inf")
        if not found.is_named and known is not None:
            # what had a name once keeps it while its cgroup lives: its files go first when it is removed
            found = known.container if known.container.is_named else found
            pause = min(2 * known.pause, RETRY_MOST)
        elif not found.is_named:
            pause = 1.0
        self._known[place.id] = _Known(found, source, now + pause, pause)
        if found.pod and place.pod_uid:
            self._pods[place.pod_uid] = found.namespace, found.pod
        return found

    def _find(self, place: Place) -> tuple[Container, Source | None]:
        unknown = Container("", "", "", place.id, place.runtime, place.pod_uid, place.qos)
        for find in (self._from_containerd, self._from_crio, self._from_docker, self._from_podman):
            with self._host.skipping():
                if found := find(unknown):
                    return found
        found_in_logs = self._from_logs(unknown)
        if found_in_logs.is_named:
            return found_in_logs, None
        if place.runtime in ("docker", "") and (name := self._api.name(place.id)):
            return replace(unknown, container=label(name), runtime="docker"), None
        return found_in_logs, None

    def _from_containerd(self, unknown: Container) -> tuple[Container, Source | None] | None:
        for state in self._runtimes.containerd_states:
            path = f"{state}/io.containerd.runtime.v2.task/k8s.io/{unknown.id}/config.json"
            spec = self._read(path, _Spec)
            if spec is None or not _is_in_its_pod(unknown, spec, "io.kubernetes.cri.sandbox-uid"):
                continue
            notes, prefix = spec.annotations, "io.kubernetes.cri."
            found = _named(
                unknown,
                notes.get(prefix + "sandbox-namespace"),
                notes.get(prefix + "sandbox-name"),
                notes.get(prefix + "container-name"),
                is_sandbox=notes.get(prefix + "container-type") == "sandbox",
            )
            return (replace(found, runtime="containerd"), None) if found.is_named else None
        return None

    def _from_crio(self, unknown: Container) -> tuple[Container, Source | None] | None:
        for root in self._runtimes.containers_storage_roots:
            spec = self._read(f"{root}/overlay-containers/{unknown.id}/userdata/config.json", _Spec)
            if spec is None or not _is_in_its_pod(unknown, spec, "io.kubernetes.pod.uid"):
                continue
            notes, prefix = spec.annotations, "io.kubernetes."
            found = _named(
                unknown,
                notes.get(prefix + "pod.namespace"),
                notes.get(prefix + "pod.name"),
                notes.get(prefix + "container.name"),
                is_sandbox=notes.get(prefix + "cri-o.ContainerType") == "sandbox",
            )
            if found.is_named:
                return replace(found, runtime="cri-o"), None
        return None

    def _from_docker(self, unknown: Container) -> tuple[Container, Source | None] | None:
        for root in self._runtimes.docker_roots:
            path = f"{root}/containers/{unknown.id}/config.v2.json"
            signature = self._signature(path)
            config = self._read(path, _DockerContainer)
            if config is None or signature is None:
                continue
            labels, prefix = config.config.labels or {}, "io.kubernetes."
            if prefix + "pod.name" in labels and self._is_in_pod(unknown, root, labels.get(prefix + "pod.uid")):
                found = _named(
                    unknown,
                    labels.get(prefix + "pod.namespace"),
                    labels[prefix + "pod.name"],
                    labels.get(prefix + "container.name"),
                    is_sandbox=labels.get(prefix + "docker.type") == "podsandbox",
                )
            else:
                found = _named(unknown, "", "", config.name.removeprefix("/"))
            return replace(found, runtime="docker"), (path, signature)
        return None

    def _is_in_pod(self, unknown: Container, root: str, uid: str | None) -> bool:
        """Return whether a container of Docker is in a pod's cgroup. The kubelet labels each with its pod's uid."""
        in_pod = unknown.pod_uid
        if not in_pod:
            config = self._read(f"{root}/containers/{unknown.id}/hostconfig.json", _DockerHostConfig)
            in_pod = _pod_of(config.cgroup_parent.split("/"))[0] if config is not None else ""
        return in_pod != "" and in_pod == uid

    def _from_podman(self, unknown: Container) -> tuple[Container, Source | None] | None:
        if unknown.runtime not in ("podman", ""):
            return None
        for root in self._runtimes.containers_storage_roots:
            for name in ("containers.json", "volatile-containers.json"):
                path = f"{root}/overlay-containers/{name}"
                signature = self._signature(path)
                stored = self._read(path, list[_StoredContainer]) if signature is not None else None
                for each in stored or ():
                    if each.id == unknown.id and each.names and signature is not None:
                        found = _named(unknown, "", "", each.names[0])
                        return replace(found, runtime="podman"), (path, signature)
        return None

    def _from_logs(self, unknown: Container) -> Container:
        now = self._clock()
        if now - self._logs_at >= CHECK_EVERY and unknown.id not in self._logs:
            self._logs_at = now
            self._read_logs()
        if found := self._logs.get(unknown.id):
            return replace(found, runtime=unknown.runtime, pod_uid=unknown.pod_uid, qos=unknown.qos)
        namespace, pod = self._pods.get(unknown.pod_uid, ("", ""))
        return replace(unknown, namespace=namespace, pod=pod)

    def _read_logs(self) -> None:
        """Read the kubelet's names: a link's is cut at 255 characters, which costs it the id's end; such are passed."""
        self._logs = {}
        for name in self._host.listed("/var/log/containers"):
            if match := _LOG_LINK.fullmatch(name):
                unknown = Container("", "", "", match["id"], "")
                self._logs[match["id"]] = _named(unknown, match["namespace"], match["pod"], match["container"])
        for name in self._host.listed("/var/log/pods"):
            if match := _LOG_DIRECTORY.fullmatch(name):
                self._pods.setdefault(match["uid"], (label(match["namespace"]), label(match["pod"])))

    def _pod_names(self, uid: str) -> tuple[str, str]:
        if uid not in self._pods and self._clock() - self._logs_at >= CHECK_EVERY:
            self._logs_at = self._clock()
            self._read_logs()
        return self._pods.get(uid, ("", ""))

    def _ctr_place(self, path: str) -> Place | None:
        """Return the place of a container that `ctr` made: `/<containerd namespace>/<id>`, if there is such a task."""
        namespace, slash, name = path.strip("/").partition("/")
        if not slash or "/" in name or ".." in (namespace, name):
            return None
        for state in self._runtimes.containerd_states:
            task = f"{state}/io.containerd.runtime.v2.task/{namespace}/{name}"
            if self._signature(task) is not None:
                self._known[name] = _Known(
                    Container("", "", label(name), label(name), "containerd"), None, float("inf"), CHECK_EVERY
                )
                return Place(name, "containerd", "", "")
        return None

    def _signature(self, path: str) -> tuple[int, int, int] | None:
        try:
            return self._host.signature(path)
        except (Vanished, Denied):
            return None

    def _read(self, path: str, kind: Any) -> Any:
        """Return a JSON file as the wanted struct, None if there is no such file."""
        try:
            return msgspec.json.decode(self._host.read(path), type=kind)
        except Vanished:
            return None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Malformed(path, f"is not the JSON that we expect: {error}") from error


def _is_in_its_pod(unknown: Container, spec: _Spec, uid_note: str) -> bool:
    """Return whether a container is in the cgroup of the pod that its annotations tell.

    `/kubepods/burstable/pod3f05…/148c…`, or by systemd `kubepods-burstable-pod3f05….slice:crio:148c…`.
    """
    path = spec.linux.cgroups_path if spec.linux is not None else ""
    in_pod = unknown.pod_uid or _pod_of(re.split("[/:]", path))[0]
    return in_pod != "" and spec.annotations.get(uid_note, in_pod) == in_pod


def _named(
    unknown: Container, namespace: str | None, pod: str | None, name: str | None, *, is_sandbox: bool = False
) -> Container:
    return replace(
        unknown,
        namespace=intern(label(namespace or "")),
        pod=intern(label(pod or "")),
        container="" if is_sandbox else intern(label(name or "")),
        is_sandbox=is_sandbox,
    )


class _Api:
    """Docker's API, asked in a thread of its own where its files cannot be read; the next look has the answer."""

    def __init__(self, sockets: tuple[str, ...], host: Host, clock: Callable[[], float]) -> None:
        self._sockets = sockets
        self._host = host
        self._clock = clock
        self._names: dict[str, str] = {}
        self._asked_at = float("-inf")
        self._thread: threading.Thread | None = None

    def name(self, full_id: str) -> str:
        """Return a container's name if it is known; else ask for all names, at most every 30 seconds."""
        name = self._names.get(full_id, "")
        is_asking = self._thread is not None and self._thread.is_alive()
        if not is_asking and self._clock() - self._asked_at >= API_EVERY:
            self._asked_at = self._clock()
            sockets = [self._host.real(path) for path in self._sockets if self._host.exists(path)]
            if sockets:
                self._thread = threading.Thread(target=self._ask, args=(sockets,), name="docker-names", daemon=True)
                self._thread.start()
        return name

    def _ask(self, sockets: list[str]) -> None:
        names = {}
        for socket in sockets:
            with contextlib.suppress(HostError, KeyError, TypeError, IndexError):  # the name stays unknown
                for each in DockerApi(socket, API_WITHIN).containers():
                    names[str(each["Id"])] = str((each.get("Names") or [""])[0]).removeprefix("/")
        self._names = names
