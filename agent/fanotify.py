"""fanotify(7) on a whole filesystem, as the set of directories in which something was made, removed or renamed.

Needs Linux 5.9 (FAN_REPORT_DIR_FID), and CAP_SYS_ADMIN for the mark. Changes are told by the file handle of their
directory, name_to_handle_at(2), without names: the kernel merges those of one directory, so 200,000 changes are some
dozen events. Merged events carry no number: what has changed is to be read again. A change that came through an
overlay mount is told for the directory of its upper filesystem.
"""

from __future__ import annotations

import ctypes
import os
import struct

from agent.errors import Failed, HostError, from_os

_CLASS_NOTIF, _REPORT_DIR_FID = 0x0, 0x400  # linux/fanotify.h
_CLOEXEC, _NONBLOCK = 0x1, 0x2
_MARK_ADD, _MARK_FILESYSTEM = 0x1, 0x100
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_ONDIR, _OVERFLOW = 0x40000000, 0x4000
_MASK = _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _ONDIR
_METADATA = struct.Struct("=IBBHQii")  # length, version, reserved, length of metadata, mask, descriptor, process
_VERSION = 3
_INFO = struct.Struct("=BBH8sIi")  # type, pad, length, filesystem's id, bytes of the handle, type of the handle
_DIRECTORY = 3  # FAN_EVENT_INFO_TYPE_DFID
_BUFFER = 1 << 18
_READS = 64  # of one round, with thousands of events each: more than a queue of 16,384 holds

_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_HANDLE = 128  # MAX_HANDLE_SZ
_HEAD = struct.Struct("=Ii")  # bytes of the handle, its type


class Handles:
    """Tells directories apart by their handles: one that was removed and another with its inode have two. One thread's.

    A handle is bytes, its type and what the filesystem makes of inode and generation, as fanotify tells it.
    """

    def __init__(self) -> None:
        self._name_to_handle_at = ctypes.CDLL(None, use_errno=True).name_to_handle_at
        self._buffer = ctypes.create_string_buffer(_HEAD.size + _HANDLE)
        self._mount = ctypes.c_int()
        self._mount_pointer = ctypes.byref(self._mount)

    def handle(self, place: int, name: bytes = b"") -> bytes:
        """Return the handle of what has that name in an open directory, or of that directory itself.

        Raises an OSError; EOPNOTSUPP on a filesystem without handles.
        """
        _HEAD.pack_into(self._buffer, 0, _HANDLE, 0)
        flags = 0 if name else _AT_EMPTY_PATH
        if self._name_to_handle_at(place, name, self._buffer, self._mount_pointer, flags):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        (size, _) = _HEAD.unpack_from(self._buffer)
        return self._buffer.raw[4 : _HEAD.size + size]


class Fanotify:
    """A mark on the filesystem that a path lies on. It keeps nobody from unmounting it. Raises HostErrors."""

    def __init__(self, path: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]
        flags = _CLASS_NOTIF | _CLOEXEC | _NONBLOCK | _REPORT_DIR_FID
        self._descriptor: int = libc.fanotify_init(flags, os.O_RDONLY)
        if self._descriptor < 0:
            raise _refusal(path)
        if libc.fanotify_mark(self._descriptor, _MARK_ADD | _MARK_FILESYSTEM, _MASK, _AT_FDCWD, os.fsencode(path)):
            error = _refusal(path)
            self.close()
            raise error

    def is_whole(self) -> bool:
        """Return whether the mark is there: an unmount takes it away, and says nothing."""
        path = f"/proc/self/fdinfo/{self._descriptor}"  # our own, whatever the host's /proc is
        try:
            with open(path, "rb") as file:
                return b"\nfanotify sdev:" in file.read()
        except OSError as error:
            raise from_os(path, error) from error

    def read(self) -> tuple[set[bytes], bool]:
        """Return the handles of what has changed since the last reading, and whether that is all: a queue can overflow.

        Returns at once.
        """
        changed: set[bytes] = set()
        for _ in range(_READS):
            try:
                data = os.read(self._descriptor, _BUFFER)
            except BlockingIOError:
                return changed, True
            except OSError as error:
                raise from_os("fanotify", error) from error
            if not _add(data, changed):
                return changed, False
        return changed, False

    def close(self) -> None:
        """Let go of the mark."""
        os.close(self._descriptor)


def _add(data: bytes, changed: set[bytes]) -> bool:
    """Add the handles of these events; return whether no event was lost."""
    is_all, place = True, 0
    while place < len(data):
        length, version, _, start, mask, _, _ = _METADATA.unpack_from(data, place)
        if version != _VERSION or length < _METADATA.size:
            raise Failed("fanotify", f"events of version {version}, of which nothing is known")
        if mask & _OVERFLOW:
            is_all = False
        elif length >= start + _INFO.size:
            kind, _, _, _, size, _ = _INFO.unpack_from(data, place + start)
            if kind == _DIRECTORY:
                handle = place + start + _INFO.size - 4  # its type belongs to it
                changed.add(data[handle : handle + 4 + size])
        place += length
    return is_all


def _refusal(path: str) -> HostError:
    number = ctypes.get_errno()
    return from_os(path, OSError(number, os.strerror(number)))
