"""The overlay mounts of a node, and what is wrong with some: what they share, what they were written with, how deep.

`redirect_dir=off,metacopy=on` is refused at the mount. The hazard is an upper that was written with one of them on and
is mounted with it off: files and directories of it cannot be opened (EPERM). A mount shows such an option only
where it differs from the module's parameter as that is now.
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from agent.errors import Malformed
from agent.finding import Finding, Found
from agent.host import Host
from agent.metric import LabelSet, label
from collectors import drivers
from collectors.readers import overlay
from collectors.readers.docker import Info
from collectors.readers.mountinfo import Mount, by_device, carrier, one_per_device, parse, parse_visible
from collectors.readers.overlay import Layers

TABLE = "proc/1/mountinfo"
PARAMETERS = "sys/module/overlay/parameters"
DEEP = 110  # lower layers
SHOWN_POINTS = 5  # of those that share an upper
LOST = {
    "metacopy": "files whose owner or mode was changed in it cannot be read (Operation not permitted)",
    "redirect_dir": "directories of the image that were renamed in it cannot be opened",
}

MISMATCH = Finding(
    "overlay-metacopy-redirect",
    "warning",
    "metacopy and redirect_dir of overlayfs are a hazard for {target}: {problem}.",
    "Have them as the containers were written: {remedy}",
)
DEEP_CHAIN = Finding(
    "overlay-deep-chain",
    "warning",
    "{who} stands on {lowers} layers, at {target}. Docker takes 128 at most ('max depth exceeded'), and others what "
    "fits a page: a few more instructions in its Dockerfile, and it cannot be built or started.",
    "Build its image with fewer layers: join RUN instructions, copy from other stages.{flatten}",
)
SHARED_UPPER = Finding(
    "overlay-shared-upper",
    "critical",
    "The directory {target} is the upper layer of {count} overlay mounts at once ({points}): what is written through "
    "one of them is undefined in the others.",
    "Stop what uses all but one of them, then: {remedy}",
)
FINDINGS = (MISMATCH, DEEP_CHAIN, SHARED_UPPER)

Homes = Mapping[str, tuple[str, Mapping[str, str]]]  # runtime, and containers by layer, of each storage directory


class Overlay(NamedTuple):
    """An overlay mount, of a device of its own. `points` are where it is mounted, `point` what tells whose it is.

    `owner` is the whole id of the container of Docker, CRI-O or Podman whose root it is; `upper` the path with its
    symbolic links resolved, and `place` the same as device and path on it, if they are known.
    """

    device: str
    point: str
    points: tuple[str, ...]
    layers: Layers
    runtime: str
    owner: str
    upper: str
    place: tuple[str, str] | None


class Table(NamedTuple):
    """The host's mount table: the visible mounts by their points, where each device is shown, the overlay mounts.

    `points` are those of the mounts that others hide, too.
    """

    top: Mapping[str, Mount]
    shown: Mapping[str, str]
    points: frozenset[str]
    overlays: tuple[Overlay, ...]


def read(host: Host, text: bytes, homes: Homes) -> Table:
    """Return what a mount table's text says."""
    mounts, malformed = parse(text)
    for _ in range(malformed):
        host.skip(Malformed(TABLE))
    top = {mount.mountpoint: mount for mount in parse_visible(text)}
    shown = {mount.device: mount.mountpoint for mount in one_per_device(top.values())}
    found = by_device(mount for mount in mounts if mount.fstype == "overlay")
    points = frozenset(mount.mountpoint for mount in mounts)
    return Table(top, shown, points, tuple(_overlay(host, same, top, homes) for same in found.values()))


def _overlay(host: Host, same: Sequence[Mount], top: Mapping[str, Mount], homes: Homes) -> Overlay:
    """Return an overlay mount, given all places that it is mounted at: a bind has the same device."""
    chosen, runtime, owner = same[0], "", ""
    for mount in same:
        base, name = posixpath.split(mount.mountpoint)
        home, layer = posixpath.split(base)
        if name == "merged" and home in homes:
            chosen, (runtime, layers) = mount, homes[home]
            owner = layers.get(layer, "")
    layers_of = overlay.resolve(overlay.parse_options(chosen.super_options), chosen.mountpoint)
    upper, place = layers_of.upper, None
    with host.skipping():
        upper = host.resolve(upper) if upper else ""
        place = _place(upper, top)
    points = tuple(mount.mountpoint for mount in same)
    return Overlay(chosen.device, chosen.mountpoint, points, layers_of, runtime, owner, upper, place)


def _place(path: str, top: Mapping[str, Mount]) -> tuple[str, str] | None:
    """Return the device that a path lies on, and the path on it: two binds of one directory are one place."""
    found = carrier(top, path) if path else None
    if found is None:
        return None
    return found.device, found.root.rstrip("/") + path[len(found.mountpoint.rstrip("/")) :]


def _who(labels: LabelSet | None, point: str) -> str:
    if labels is None:
        return f"The overlay mount {label(point)}"
    namespace, pod, container, short = labels
    return "The container " + "/".join(part for part in (namespace, pod, container or short) if part)


def mismatches(
    overlays: Iterable[Overlay], force: Mapping[str, Mapping[str, str]], default: Mapping[str, str]
) -> Iterator[Found]:
    """Find uppers that are written with metacopy or redirect_dir on, and will be mounted with it off.

    Docker never asks for either: what one of its mounts shows is what the module's parameter was when it was mounted.
    """
    writable = [each for each in overlays if each.layers.upper]
    for each in writable:
        if each.runtime != "docker":
            continue
        is_metacopy = each.layers.told.get("metacopy") == "on"
        is_redirect = each.layers.told.get("redirect_dir") == "on" and default["redirect_dir"] == "nofollow"
        if is_metacopy or (is_redirect and default["metacopy"] == "off"):
            option = "metacopy" if is_metacopy else "redirect_dir"
            yield MISMATCH(
                label(each.point),
                problem=f"{label(each.point)} was mounted while {option} of the overlay module was on, and now it is "
                f"off: once this container is started again, {LOST[option]}.",
                remedy=f"before it is started again, echo Y > /{PARAMETERS}/{option}; and for good, options overlay "
                f"{option}=on in a file of /etc/modprobe.d",
            )
    homes: dict[str, list[Overlay]] = {}
    for each in writable:
        if each.runtime == drivers.STORAGE:
            homes.setdefault(posixpath.dirname(posixpath.dirname(each.point)), []).append(each)
    for home, inside in homes.items():
        for option, off in (("metacopy", "off"), ("redirect_dir", "nofollow")):
            values = {force[each.device][option] for each in inside}
            if {"on", off} <= values:
                yield MISMATCH(
                    label(f"{home} {option}"),
                    problem=f"Some containers of {label(home)} are mounted with {option}=on and others with {off}: if "
                    f"one that had it on is started without it, {LOST[option]}.",
                    remedy="mountopt in /etc/containers/storage.conf; what it says now must say "
                    f"{option}=on as long as containers that were made with it are kept.",
                )


def slow_diffs(infos: Iterable[Info], default: Mapping[str, str]) -> Iterator[Found]:
    """Find where Docker makes layers by comparing whole roots, and the module is why."""
    for info in infos:
        on = [option for option in ("redirect_dir", "metacopy") if default[option] == "on"]
        if info.driver == "overlay2" and not info.is_containerd and info.has_native_diff is False and on:
            commands = "; ".join(f"echo N > /{PARAMETERS}/{option}" for option in on)
            yield MISMATCH(
                label(f"{info.root}/overlay2"),
                problem=f"Docker does not use its native diff in {label(info.root)}/overlay2, since {' and '.join(on)} "
                "of the overlay module is on: each build and commit compares whole roots.",
                remedy=f"{commands}; systemctl restart docker   # options in /etc/modprobe.d for good. Containers that "
                "were written with metacopy on cannot be read after it: make them anew first",
            )


def deep_chains(overlays: Iterable[Overlay], owners: Mapping[str, LabelSet]) -> Iterator[Found]:
    """Find mounts that stand on nearly as many layers as Docker takes."""
    for each in overlays:
        lowers = len(each.layers.lowers) + len(each.layers.data_lowers)
        if lowers >= DEEP:
            labels = owners.get(each.device)
            flatten = ""
            if labels is not None and each.runtime == "docker":
                name = shlex.quote(labels[2] or labels[3])
                # such an image has no CMD, ENV and the like
                flatten = (
                    f" To make one layer of the container as it is: docker export {name} | docker import --change "
                    "'CMD [\"COMMAND\"]' - NAME"
                )
            yield DEEP_CHAIN(label(each.point), who=_who(labels, each.point), lowers=lowers, flatten=flatten)


def shared_uppers(host: Host, overlays: Iterable[Overlay]) -> Iterator[Found]:
    """Find upper directories of several mounts."""
    by_place: dict[tuple[str, str], list[Overlay]] = {}
    for each in overlays:
        if each.place is not None:
            by_place.setdefault(each.place, []).append(each)
    for same in by_place.values():
        # one that was mounted in another root shows that one's paths, which are nothing here
        if len(same) > 1 and host.exists(same[0].upper):
            yield SHARED_UPPER(
                label(same[0].upper),
                count=len(same),
                points=", ".join(label(each.point) for each in same[:SHOWN_POINTS]),
                remedy=f"umount {shlex.quote(label(same[-1].point))}",
            )
