"""Who a user namespace belongs to, and whether two descriptors are one open file: ioctl_ns(2), kcmp(2).

Neither can hang: both look at what the kernel has in memory.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct
from typing import NamedTuple

from agent.errors import from_os
from agent.host import Host

INITIAL = "4026531837"  # of the user namespace that all others descend from; PROC_USER_INIT_INO, linux/proc_ns.h
_GET_PARENT, _GET_OWNER_UID = 0xB702, 0xB704  # linux/nsfs.h
_KCMP = {"x86_64": 312, "aarch64": 272}
_FILE = 0  # linux/kcmp.h
_UID = struct.Struct("=I")
_LIBC = ctypes.CDLL(None)


class Owner(NamedTuple):
    """The parent of a user namespace, and the user who made it: what is used in it counts there too."""

    parent: str
    uid: int


def owner(host: Host, path: str) -> Owner:
    """Return whose a user namespace is, by its link such as `proc/1/ns/user`. Raises HostErrors.

    Denied where it has no parent, or one that is not ours to see.
    """
    descriptor = host.open(path)
    try:
        answer = bytearray(_UID.size)
        fcntl.ioctl(descriptor, _GET_OWNER_UID, answer)
        parent = fcntl.ioctl(descriptor, _GET_PARENT)
        try:
            return Owner(str(os.fstat(parent).st_ino), *_UID.unpack(answer))
        finally:
            os.close(parent)
    except OSError as error:
        raise from_os(path, error) from error
    finally:
        os.close(descriptor)


def compare(first: tuple[int, int], second: tuple[int, int]) -> int:
    """Return 0 if two descriptors (process and number) are one open file, else an order of all files: -1 or 1.

    Where the kernel does not tell, because a process has ended or the call is not allowed, they are two.
    """
    number = _KCMP.get(platform.machine())
    if number is None:
        return -1
    answer = _LIBC.syscall(number, first[0], second[0], _FILE, first[1], second[1])
    return {0: 0, 2: 1}.get(answer, -1)
