"""Docker's storage drivers and their `storage-opts`, such as `overlay2.size=10G`: what a daemon does not start for.

Source: parseOptions of each driver in moby's daemon/graphdriver (20.10 to 29). A driver refuses what it does not know,
that of other drivers too. `overlay2.override_kernel_check` did nothing since 23.0 and is refused since 24.0. Names are
told apart without regard to case, but for those of vfs.
The drivers are those of daemon/graphdriver/register, with the first version that has one no more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

REMOVED_IN = {"aufs": 24, "overlay": 24, "devicemapper": 25}  # major versions of Docker
DRIVERS = ("overlay2", "overlayfs", "btrfs", "zfs", "vfs", "fuse-overlayfs")  # of today's; overlayfs is containerd's
KERNEL_CHECK = "overlay2.override_kernel_check"
KERNEL_CHECK_UNTIL = 24
_KNOWN = {
    "overlay2": {"overlay2.size", KERNEL_CHECK},
    "overlay": set[str](),
    "btrfs": {"btrfs.min_space"},
    "zfs": {"zfs.fsname", "zfs.mountopt"},
    "vfs": {"size"},
    "devicemapper": {
        "dm.basesize",
        "dm.blkdiscard",
        "dm.blocksize",
        "dm.datadev",
        "dm.directlvm_device",
        "dm.directlvm_device_force",
        "dm.fs",
        "dm.libdm_log_level",
        "dm.loopdatasize",
        "dm.loopmetadatasize",
        "dm.metadatadev",
        "dm.min_free_space",
        "dm.mkfsarg",
        "dm.mountopt",
        "dm.override_udev_sync_check",
        "dm.thinp_autoextend_percent",
        "dm.thinp_autoextend_threshold",
        "dm.thinp_metapercent",
        "dm.thinp_percent",
        "dm.thinpooldev",
        "dm.use_deferred_deletion",
        "dm.use_deferred_removal",
        "dm.xfs_nospace_max_retries",
    },
}
_PREFIXES = {"dm": "devicemapper"}
_MAJOR = re.compile(r"(\d{1,4})\.")


class Refused(NamedTuple):
    """An option by its name, and why Docker refuses it, in words."""

    name: str
    problem: str


def parse_major(version: str) -> int | None:
    """Return the first number of `20.10.24+dfsg1`, None if it does not begin with one."""
    match = _MAJOR.match(version)
    return int(match[1]) if match else None


def refused(options: Iterable[str], driver: str, major: int | None) -> list[Refused]:
    """Return the options that Docker of this version refuses; None is a version that nobody knows.

    Where the driver is not known, each option is taken for one of the driver that it names, and refused if none knows
    it. Nothing is said for a driver that is not known here.
    """
    if driver and driver not in _KNOWN:
        return []
    return [
        Refused(name, problem)
        for name, equals, _ in (option.partition("=") for option in options)
        if (problem := _problem(name.strip(), driver, major) if equals else "it has no value")
    ]


def _problem(name: str, driver: str, major: int | None) -> str:
    driver = driver or _driver_of(name.lower())
    if not driver:
        return "no storage driver knows it"
    if driver != "vfs":
        name = name.lower()
    if name == KERNEL_CHECK and driver == "overlay2":
        is_gone = major is None or major >= KERNEL_CHECK_UNTIL
        return f"Docker {KERNEL_CHECK_UNTIL}.0 has removed it" if is_gone else ""
    return "" if name in _KNOWN[driver] else f"the storage driver {driver} does not know it"


def _driver_of(name: str) -> str:
    """Return the driver that an option's name begins with; empty if there is no such."""
    prefix, dot, _ = name.partition(".")
    if not dot:
        return "vfs" if name == "size" else ""
    driver = _PREFIXES.get(prefix, prefix)
    return driver if driver in _KNOWN else ""
