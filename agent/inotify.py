"""inotify(7): which directories have changed, for next to nothing while none has."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from agent.errors import from_os

CREATE, DELETE = 0x100, 0x200
OVERFLOW, IGNORED, IS_DIRECTORY = 0x4000, 0x8000, 0x40000000
ONLY_DIRECTORY, DONT_FOLLOW = 0x01000000, 0x02000000
_EVENT = struct.Struct("=iIII")  # wd, mask, cookie, length of the name that follows
_BUFFER = 1 << 16


class Event(NamedTuple):
    """One event; `watch` is -1 for an overflow."""

    watch: int
    mask: int
    name: str


class Inotify:
    """One inotify instance for directories: what is made in them, and removed. Raises HostErrors."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise from_os("inotify", OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())))

    def add(self, path: str) -> int:
        """Watch a directory and return the watch's number, the same one for the same directory."""
        mask = CREATE | DELETE | ONLY_DIRECTORY | DONT_FOLLOW
        watch: int = self._libc.inotify_add_watch(self.descriptor, os.fsencode(path), mask)
        if watch < 0:
            raise from_os(path, OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())))
        return watch

    def read(self) -> Iterator[Event]:
        """Yield the events since the last reading; returns at once when there are none."""
        while True:
            try:
                data = os.read(self.descriptor, _BUFFER)
            except BlockingIOError:
                return
            place = 0
            while place < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, place)
                place += _EVENT.size
                name = data[place : place + length].rstrip(b"\0")
                place += length
                yield Event(watch, mask, os.fsdecode(name))

    def close(self) -> None:
        """Let go of the instance and all its watches."""
        os.close(self.descriptor)
