"""Docker's volumes, containers and storage: as its API tells of them, and as its files do (moby's volume, container).

API: `{"Name": "v", "Driver": "local", "Mountpoint": "/var/lib/docker/volumes/v/_data", "Options": {"type": "tmpfs"}}`
and events `{"Type": "volume", "Action": "create", "Actor": {"ID": "v", ...}, "timeNano": 1795473853356112003}`.
and information `{"Driver": "overlay2", "DriverStatus": [["Backing Filesystem", "extfs"]], "DockerRootDir": ...}`
and versions `{"Version": "20.10.24", "Components": [{"Name": "containerd", "Version": "1.6.20"}]}` (Docker 18.09).
Files: volumes/NAME/opts.json, containers/ID/config.v2.json, /etc/docker/daemon.json.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec

LATEST = 1 << 63  # nanoseconds: what Go's int64 holds
_PAIR = 2
ACTIONS = ("create", "mount", "unmount", "destroy")
Action = Literal["create", "mount", "unmount", "destroy"]
_NAMES: dict[str, Action] = {
    "create": "create",
    "mount": "mount",
    "unmount": "unmount",
    "destroy": "destroy",
    "remove": "destroy",  # Podman's word
}


class Options(NamedTuple):
    """What a local volume shall be mounted from; `flags` are those of mount(8) after `-o`."""

    type: str
    device: str
    flags: str

    @property
    def is_mount(self) -> bool:
        """Whether Docker mounts anything; a quota alone needs no mount."""
        return bool(self.type or self.device)

    @property
    def is_bind(self) -> bool:
        """Whether it is a directory that is shown in a second place."""
        return not {"bind", "rbind"}.isdisjoint(self.flags.split(","))


class Volume(NamedTuple):
    """A volume. What nobody told is empty."""

    name: str
    driver: str
    mountpoint: str = ""
    options: Options | None = None


class Event(NamedTuple):
    """Something that happened to a volume, `time` nanoseconds after the epoch."""

    time: int
    action: Action
    name: str
    driver: str = ""


class Container(NamedTuple):
    """A container that runs, with its storage driver and the names of the volumes it uses."""

    id: str
    pid: int
    volumes: tuple[str, ...]
    driver: str = ""


class Info(NamedTuple):
    """What a daemon says of its storage. With `is_containerd` the driver is a snapshotter of containerd's.

    `has_native_diff` is whether overlay2 makes layers of the upper directory as it is; None for other drivers.
    `containerd` is the version of the containerd that it uses, empty if it does not say.
    """

    root: str
    driver: str
    version: str
    is_containerd: bool
    has_native_diff: bool | None = None
    containerd: str = ""


class Daemon(NamedTuple):
    """What a daemon.json says of storage. `is_containerd` is None where it does not say."""

    root: str = ""
    driver: str = ""
    options: tuple[str, ...] = ()
    is_containerd: bool | None = None


class _Volume(msgspec.Struct, rename="pascal"):
    name: str
    driver: str
    mountpoint: str = ""
    options: dict[str, str] | None = None


class _Actor(msgspec.Struct):
    id: str = msgspec.field(name="ID")
    attributes: dict[str, Any] | None = msgspec.field(name="Attributes", default=None)


class _Event(msgspec.Struct):
    type: str = msgspec.field(name="Type")
    action: str = msgspec.field(name="Action")
    actor: _Actor = msgspec.field(name="Actor")
    time: int = msgspec.field(name="timeNano")


class _Options(msgspec.Struct):
    type: str = msgspec.field(name="MountType", default="")
    device: str = msgspec.field(name="MountDevice", default="")
    flags: str = msgspec.field(name="MountOpts", default="")


class _State(msgspec.Struct, rename="pascal"):
    running: bool = False
    pid: int = 0


class _MountPoint(msgspec.Struct, rename="pascal"):
    type: str = ""
    name: str = ""


class _Container(msgspec.Struct):
    id: str = msgspec.field(name="ID")
    state: _State = msgspec.field(name="State")
    driver: str = msgspec.field(name="Driver", default="")
    mount_points: dict[str, _MountPoint] | None = msgspec.field(name="MountPoints", default=None)


class _Info(msgspec.Struct, rename="pascal"):
    docker_root_dir: str
    driver: str
    driver_status: list[list[str]] | None = None
    server_version: str = ""


class _Component(msgspec.Struct, rename="pascal"):
    name: str = ""
    version: str = ""


class _Version(msgspec.Struct, rename="pascal"):
    components: list[_Component] | None = None


class _Daemon(msgspec.Struct, rename="kebab"):
    data_root: str = ""
    # who wants the data-root alone need not care for what is wrong in the others
    storage_driver: Any = ""
    storage_opts: Any = None
    features: Any = None


def parse_volume(answer: object) -> Volume:
    """Return a volume of the API; ValueError if it is none."""
    volume = _convert(answer, _Volume)
    told = volume.options or {}
    options = Options(told.get("type", ""), told.get("device", ""), told.get("o", "")) if told else None
    return Volume(volume.name, volume.driver, volume.mountpoint, options)


def parse_event(answer: object) -> Event | None:
    """Return an event of the API, None for what happens to no single volume; ValueError if it is no event."""
    event = _convert(answer, _Event)
    action = _NAMES.get(event.action)
    if event.type != "volume" or action is None:
        return None
    if not 0 < event.time < LATEST:
        raise ValueError(f"no time: {event.time}")
    driver = (event.actor.attributes or {}).get("driver")
    return Event(event.time, action, event.actor.id, driver if isinstance(driver, str) else "")


def parse_options(text: bytes) -> Options:
    """Return what an opts.json says; ValueError if it is none."""
    options = _decode(text, _Options)
    return Options(options.type, options.device, options.flags)


def parse_container(text: bytes) -> Container | None:
    """Return what a config.v2.json says, None for a container that does not run; ValueError if it is none."""
    container = _decode(text, _Container)
    if not container.state.running or container.state.pid <= 0:
        return None
    points = (container.mount_points or {}).values()
    volumes = tuple(each.name for each in points if each.type == "volume")
    return Container(container.id, container.state.pid, volumes, container.driver)


def parse_info(answer: object, version: object) -> Info:
    """Return what the API's information, and its version, say of storage; ValueError if they are none."""
    info = _convert(answer, _Info)
    components = _convert(version, _Version).components or ()
    if not info.docker_root_dir.startswith("/"):
        raise ValueError(f"no directory: {info.docker_root_dir}")
    status = {pair[0]: pair[1] for pair in info.driver_status or () if len(pair) == _PAIR}
    native = {"true": True, "false": False}.get(status.get("Native Overlay Diff", ""))
    is_containerd = status.get("driver-type") == "io.containerd.snapshotter.v1"
    beneath = next((each.version for each in components if each.name == "containerd"), "")
    return Info(info.docker_root_dir, info.driver, info.server_version, is_containerd, native, beneath)


def parse_daemon(text: bytes) -> Daemon:
    """Return what a daemon.json says of storage; ValueError if it is no such file."""
    daemon = _decode(text, _Daemon)
    root = daemon.data_root if daemon.data_root.startswith("/") else ""
    driver = daemon.storage_driver if isinstance(daemon.storage_driver, str) else ""
    options = daemon.storage_opts if isinstance(daemon.storage_opts, list) else []
    feature = daemon.features.get("containerd-snapshotter") if isinstance(daemon.features, dict) else None
    return Daemon(
        root,
        driver,
        tuple(each for each in options if isinstance(each, str)),
        feature if isinstance(feature, bool) else None,
    )


def _convert(answer: object, kind: Any) -> Any:
    try:
        return msgspec.convert(answer, type=kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _decode(text: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
