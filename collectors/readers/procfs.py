"""What /proc/PID says of a process' descriptors and namespaces: man 5 proc, fs/proc/fd.c, fs/notify/fdinfo.c.

All numbers of an inotify line are hexadecimal without 0x. Its `sdev` is the kernel's own number of the filesystem's
device, `major << 20 | minor`, which is not st_dev; on btrfs it is that of the whole filesystem, as in mountinfo.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

INOTIFY = "anon_inode:inotify"
DELETED = " (deleted)"
# files in memory, which the kernel names so whoever made them; mm/shmem.c, mm/memfd.c, ipc/shm.c, fs/aio.c, drivers/gpu
_IN_MEMORY = ("/memfd:", "/SYSV", "/dev/zero", "/[aio]", "/anon_hugepage", "/dmabuf:", "/drm mm object", "/i915")
_WATCH = re.compile(rb"^inotify wd:[0-9a-f]+ (ino:[0-9a-f]+ sdev:([0-9a-f]{1,16})) ", re.MULTILINE)
_FLAGS = re.compile(rb"^flags:\s*([0-7]{1,22})$", re.MULTILINE)
_MOUNT = re.compile(rb"^mnt_id:\s*(\d{1,20})$", re.MULTILINE)
_USER = re.compile(rb"^Uid:\s+\d{1,20}\s+(\d{1,20})\b", re.MULTILINE)
_MEMORY = re.compile(rb"^VmSize:", re.MULTILINE)
_NAMESPACE = re.compile(r"[a-z_]+:\[(\d{1,20})\]")


class Descriptor(NamedTuple):
    """What fdinfo says of an open file: the id of its mount as in mountinfo, and whether it can be written through."""

    mount: int
    is_writable: bool


class Watches:
    """The watches of one inotify instance, by the part of its fdinfo at a time: it has a line for each of thousands.

    `marked` are inodes by `watched_inode`; `on_marked` counts the watches on them by what is said of them there.
    """

    def __init__(self, marked: Mapping[bytes, str]) -> None:
        self.on_marked: Counter[str] = Counter()
        self._marked = marked
        self._devices: Counter[bytes] = Counter()
        self._digest = hashlib.blake2b(digest_size=16)
        self._rest = b""

    @property
    def by_device(self) -> dict[str, int]:
        """The number of watches by device, `major:minor` as mountinfo has it."""
        found: Counter[str] = Counter()
        for word, count in self._devices.items():
            number = int(word, 16)
            found[f"{number >> 20}:{number & 0xFFFFF}"] += count
        return dict(found)

    @property
    def digest(self) -> bytes:
        """What two instances have in common only if they are one, or watch the same in the same order."""
        return self._digest.digest()

    def feed(self, part: bytes) -> None:
        """Take in the next bytes: `inotify wd:1 ino:f sdev:700002 mask:fff ignored_mask:0 fhandle-bytes:8 …`."""
        self._digest.update(part)
        lines, newline, self._rest = (self._rest + part).rpartition(b"\n")
        found = _WATCH.findall(lines + newline)
        self._devices.update(device for _, device in found)
        if self._marked:
            self.on_marked.update(self._marked[inode] for inode, _ in found if inode in self._marked)


def watched_inode(device: str, inode: int) -> bytes:
    """Return how a watch names an inode on a filesystem whose device mountinfo calls `major:minor`."""
    major, _, minor = device.partition(":")
    return f"ino:{inode:x} sdev:{int(major) << 20 | int(minor):x}".encode()


def is_deleted_file(link: str) -> bool:
    """Return whether a descriptor's link may be that of a deleted file on a disk.

    `/var/log/app.log (deleted)`; a file may also have such a name, and its number of links tells then.
    """
    return link.endswith(DELETED) and link.startswith("/") and not link.startswith(_IN_MEMORY)


def parse_fdinfo(text: bytes) -> Descriptor | None:
    r"""Return what `pos:\t0\nflags:\t02100001\nmnt_id:\t27\n` says; None without a mount (Linux 3.15)."""
    flags, mount = _FLAGS.search(text), _MOUNT.search(text)
    if flags is None or mount is None:
        return None
    return Descriptor(int(mount[1]), int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY)


def parse_user(status: bytes) -> int | None:
    r"""Return the effective user of a process by its `status`: the second number of `Uid:\t0\t0\t0\t0`."""
    found = _USER.search(status)
    return int(found[1]) if found is not None else None


def has_memory(status: bytes) -> bool:
    """Return whether a process has memory of its own, by its `status`: threads of the kernel and zombies have none."""
    return _MEMORY.search(status) is not None


def parse_namespace(link: str) -> str | None:
    """Return the number of a namespace: `user:[4026531837]`."""
    found = _NAMESPACE.fullmatch(link)
    return found[1] if found is not None else None
