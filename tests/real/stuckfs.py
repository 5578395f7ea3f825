"""A FUSE filesystem that can hang: `python stuckfs.py MOUNTPOINT` serves an empty directory until killed.

It answers just what statvfs and stat of its root ask. It hangs in two ways, from which a client can and cannot be
killed. Stopped with SIGSTOP it leaves every question open, as a server that died does; with SIGCONT it goes on. From
SIGUSR1 on it takes what statvfs asks and keeps it, as one that waits for a network; with SIGUSR2 it answers all.
Source of the protocol: include/uapi/linux/fuse.h, version 7.31.
"""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import struct
import sys

IN_HEADER = struct.Struct("=IIQQIIII")
OUT_HEADER = struct.Struct("=IiQ")
INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
ATTR_OUT = struct.Struct("=QII" + "QQQQQQIIIIIIIIII")
STATFS_OUT = struct.Struct("=QQQQQIIII24x")
FORGET, GETATTR, STATFS, INIT, BATCH_FORGET, INTERRUPT = 2, 3, 17, 26, 42, 36
BLOCKS, FILES = 1000, 100
ENOSYS = 38


def reply(opcode: int) -> bytes | None:
    """Return the answer's body, or None where none is known."""
    if opcode == INIT:
        return INIT_OUT.pack(7, 31, 65536, 0, 16, 12, 131072, 1, 256, 0, 0)
    if opcode == GETATTR:
        times = (0,) * 3
        attributes = (1, 0, 0, *times, 0, 0, 0, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 4096, 0)
        return ATTR_OUT.pack(0, 0, 0, *attributes)
    if opcode == STATFS:
        return STATFS_OUT.pack(BLOCKS, BLOCKS // 2, BLOCKS // 4, FILES, FILES // 2, 4096, 255, 4096, 0)
    return None


class Server:
    """Answers what is asked on a descriptor of /dev/fuse."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._keeps = False
        self._kept: list[bytes] = []

    def keep(self, *_: object) -> None:
        """Take what statvfs asks, and do not answer."""
        self._keeps = True

    def give(self, *_: object) -> None:
        """Answer what was kept, and all that is to come."""
        self._keeps = False
        while self._kept:
            self._answer(self._kept.pop(0))

    def serve(self) -> None:
        """Answer until the filesystem is unmounted."""
        while True:
            try:
                request = os.read(self._descriptor, 1 << 18)
            except OSError:  # ENODEV: unmounted
                return
            opcode = IN_HEADER.unpack_from(request)[1]
            if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            if self._keeps and opcode == STATFS:
                self._kept.append(request)
            else:
                self._answer(request)

    def _answer(self, request: bytes) -> None:
        _, opcode, unique, *_ = IN_HEADER.unpack_from(request)
        body = reply(opcode)
        head = OUT_HEADER.pack(OUT_HEADER.size + len(body or b""), 0 if body is not None else -ENOSYS, unique)
        os.write(self._descriptor, head + (body or b""))


def main(mountpoint: str) -> None:
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0".encode()
    if ctypes.CDLL(None, use_errno=True).mount(b"stuckfs", os.fsencode(mountpoint), b"fuse", 0, options) != 0:
        raise OSError(ctypes.get_errno(), "mount of fuse")
    server = Server(descriptor)
    signal.signal(signal.SIGUSR1, server.keep)
    signal.signal(signal.SIGUSR2, server.give)
    print("mounted", flush=True)
    server.serve()


if __name__ == "__main__":
    main(sys.argv[1])
