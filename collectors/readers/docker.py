"""Docker's volumes: as its API tells of them, and as its data-root keeps them (moby's volume/local and container).

API: `{"Name": "v", "Driver": "local", "Mountpoint": "/var/lib/docker/volumes/v/_data", "Options": {"type": "tmpfs"}}`
and events `{"Type": "volume", "Action": "create", "Actor": {"ID": "v", ...}, "timeNano": 1795473853356112003}`.
Files: volumes/NAME/opts.json, containers/ID/config.v2.json, /etc/docker/daemon.json.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec

LATEST = 1 << 63  # nanoseconds: what Go's int64 holds
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
    """A container that runs, with the names of the volumes it uses."""

    id: str
    pid: int
    volumes: tuple[str, ...]


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
    mount_points: dict[str, _MountPoint] | None = msgspec.field(name="MountPoints", default=None)


class _Daemon(msgspec.Struct):
    data_root: str = msgspec.field(name="data-root", default="")


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
    return Container(container.id, container.state.pid, tuple(each.name for each in points if each.type == "volume"))


def parse_data_root(text: bytes) -> str:
    """Return the data-root that a daemon.json names, empty for none; ValueError if it is no such file."""
    root = _decode(text, _Daemon).data_root
    return root if root.startswith("/") else ""


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
