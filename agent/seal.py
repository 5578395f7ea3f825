"""Seal: what is mounted in the agent's container is made read-only for the agent, also what comes later.

`readOnly` of a volume is that of one mount: what is mounted below it, and what HostToContainer (rslave) brings there
later, keeps its own flags, and root could write into other containers' filesystems. So each of those mounts is
remounted read-only (mount(2), MS_REMOUNT | MS_BIND), which changes the flag in our mount namespace alone. That needs
CAP_SYS_ADMIN, and a security profile that allows it. It guards against mistakes of ours, not against an intruder: who
may remount may do so once more.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import structlog

from agent.errors import StartError
from collectors.readers.mountinfo import Mount, parse, visible

# linux/mount.h
_RDONLY, _REMOUNT, _BIND = 0x1, 0x20, 0x1000
_KEPT = {"nosuid": 0x2, "nodev": 0x4, "noexec": 0x8, "noatime": 0x400, "nodiratime": 0x800, "relatime": 0x200000}
_OURS = ("/dev", "/proc")  # the container's own
# a look at the root of one of these asks somebody who may never answer
_REMOTE = ("nfs", "cifs", "smb", "ceph", "9p", "afs", "fuse", "autofs", "lustre", "gpfs", "glusterfs")
_LIBC = ctypes.CDLL(None, use_errno=True)


def writable(mounts: Iterable[Mount], kept: str) -> Iterator[Mount]:
    """Yield the mounts to be sealed: the writable ones but `kept` (a path), the container's own, and remote ones."""
    for mount in mounts:
        inside = (mount.mountpoint == place or mount.mountpoint.startswith(f"{place}/") for place in (kept, *_OURS))
        if "rw" in mount.options and not any(inside) and not mount.fstype.startswith(_REMOTE):
            yield mount


def is_apart(ours: bytes, first: bytes) -> bool:
    """Return whether two mountinfo texts are of different namespaces: no two mounts have one id."""
    return not {mount.id for mount in parse(ours)[0]} & {mount.id for mount in parse(first)[0]}


class Seal:
    """A thread that seals what is there and what comes. Raises StartError where the mounts are not ours alone."""

    def __init__(self, kept: Path | None) -> None:
        self._log = structlog.get_logger()
        self._kept = str(kept) if kept is not None else "/dev"
        self._tried: set[int] = set()
        self._told: set[int] = set()
        if os.getpid() != 1:
            try:
                is_ours = is_apart(_read("/proc/self/mountinfo"), _read("/proc/1/mountinfo"))
            except OSError:
                is_ours = False
            if not is_ours:
                raise StartError("--path.seal: these mounts are not the agent's alone, as those of a container are")
        self._table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._sweep()
        threading.Thread(target=self._live, name="seal", daemon=True).start()

    def _live(self) -> None:
        poller = select.poll()
        poller.register(self._table, select.POLLPRI)
        while True:
            poller.poll()
            self._sweep()

    def _sweep(self) -> None:
        mounts = visible(parse(_read("/proc/self/mountinfo"))[0])
        self._tried &= {mount.id for mount in mounts}
        for mount in writable(mounts, self._kept):
            if mount.id not in self._tried:
                self._tried.add(mount.id)
                self._seal(mount)

    def _seal(self, mount: Mount) -> None:
        flags = sum(_KEPT.get(option, 0) for option in mount.options) | _RDONLY | _REMOUNT | _BIND
        if _LIBC.mount(None, os.fsencode(mount.mountpoint), None, ctypes.c_ulong(flags), None) == 0:
            return
        number = ctypes.get_errno()
        # gone meanwhile is no refusal; of refusals by a missing capability or by AppArmor there will be many
        if number != errno.ENOENT and number not in self._told:
            self._told.add(number)
            self._log.warning("mount not sealed", path=mount.mountpoint, reason=os.strerror(number))


def _read(path: str) -> bytes:
    return Path(path).read_bytes()
