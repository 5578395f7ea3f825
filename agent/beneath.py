"""Directories below a root that containers write to, read so that nothing in them leads out of it.

openat2(2), Linux 5.6, refuses symbolic links, `..` and mount points on the way: a directory that is swapped for a link
while we walk costs us nothing. Where it is not to be had the way is opened step by step with O_NOFOLLOW. Entries come
from getdents64(2), man 2 getdents, whose records have inode and type: a file is counted without a look at its inode.
No access time is written where we may prevent it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from agent.errors import Failed, from_os

_OPENAT2 = 437  # on every architecture
_NO_XDEV, _NO_SYMLINKS, _BENEATH = 0x01, 0x04, 0x08  # linux/openat2.h
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BUFFER = 1 << 16
_NAME = 19  # where a record's name begins: u64 inode, s64 offset, u16 length, u8 type
_TYPE, _IS_DIRECTORY = 0xFF0000, stat.S_IFDIR << 4  # DT_DIR is S_IFDIR >> 12, in the third byte
_LENGTH = 0xFFFF
# the names of a directory itself and of the one above, as the third word of a record has them on amd64 and arm64
_DOT_MASK, _DOT = 0xFFFF000000, ord(".") << 24
_DOTS_MASK, _DOTS = 0xFFFFFF000000, ord(".") << 24 | ord(".") << 32
_END = (1 << 63) - 1  # the place after the last record on ext4 (EXT4_HTREE_EOF_64BIT): saves a call
DIRECTORIES_MOST = 100_000  # in one directory
_SEEN_MOST = 50_000  # inode numbers in a set: some 4 MiB
_INODES_MOST = 500_000  # laid aside: 4 MB
_PATH = 4000  # bytes of a path that the kernel takes at once: below PATH_MAX


class TooManyInodes(Exception):
    """There are more than may be remembered: they are to be counted in several passes, in each a part of them."""


class Inodes:
    """Inode numbers, each once however many names have it. `len` costs little unless there are very many.

    Of the `parts` that all numbers can be divided into, one is remembered.
    """

    def __init__(self, parts: int = 1, part: int = 0, most: int = _INODES_MOST) -> None:
        self.seen: set[int] = set()
        self._parts = parts
        self._part = part
        self._most = most
        self._spilled = array("Q")

    def spill(self) -> None:
        """Lay the numbers aside where they take 8 bytes each, not 80. Raises TooManyInodes."""
        self._lay_aside()
        if len(self._spilled) > self._most:
            raise TooManyInodes

    def _lay_aside(self) -> None:
        # here and not with each name, which would cost every count of an image
        parts, part = self._parts, self._part
        self._spilled.extend(self.seen if parts == 1 else [each for each in self.seen if each % parts == part])
        self.seen.clear()

    def __len__(self) -> int:
        """Return how many different ones there are."""
        if not self._spilled and self._parts == 1:
            return len(self.seen)
        self._lay_aside()
        sets = len(self._spilled) // _SEEN_MOST + 1 | 1  # odd: XFS has inodes in chunks of 64
        apart = self._parts
        return sum(len({each for each in self._spilled if each // apart % sets == number}) for number in range(sets))


class Directories:
    """Opens and lists directories below a root. Has one buffer: for one thread. What is refused is an OSError."""

    def __init__(self, *, has_openat2: bool = True) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._syscall, self._getdents = self._libc.syscall, self._libc.getdents64
        self._buffer = ctypes.create_string_buffer(_BUFFER)
        self._address = ctypes.addressof(self._buffer)
        self._words = memoryview(self._buffer).cast("B").cast("Q")
        self._flags = _FLAGS | os.O_NOATIME
        self._has_openat2 = has_openat2
        self._how = self._make_how()

    def _make_how(self) -> ctypes.Array[ctypes.c_char]:
        how = struct.pack("=QQQ", self._flags, 0, _BENEATH | _NO_SYMLINKS | _NO_XDEV)
        return ctypes.create_string_buffer(how, len(how))

    @contextmanager
    def root(self, path: str) -> Iterator[int]:
        """Have a descriptor of a root for the time of a block. Raises a HostError."""
        try:
            descriptor = self._open_plainly(os.fsencode(path), None)
        except OSError as error:
            raise from_os(path, error) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def open(self, root: int, path: bytes) -> int:
        """Return a descriptor of the directory `path` below an open root; the caller closes it.

        EXDEV is a mount point. ELOOP, ENOTDIR and ENOENT say that it is no such directory, or not any more.
        """
        if len(path) > _PATH:
            return self._open_in_steps(root, _pieces(path))
        if not self._has_openat2:
            return self._open_in_steps(root, path.split(b"/"))
        descriptor: int = self._syscall(_OPENAT2, root, path, self._how, 24)
        if descriptor >= 0:
            return descriptor
        refused = ctypes.get_errno()
        if refused == errno.EPERM and self._flags & os.O_NOATIME:  # for owners, and CAP_FOWNER, only
            self._flags &= ~os.O_NOATIME
            self._how = self._make_how()
            return self.open(root, path)
        if refused == errno.ENOSYS or (refused == errno.EPERM and not self._is_allowed(root)):
            self._has_openat2 = False
            return self.open(root, path)
        raise OSError(refused, os.strerror(refused))

    def _is_allowed(self, root: int) -> bool:
        """Return whether openat2 works at all: older seccomp profiles refuse what they do not know with EPERM."""
        descriptor: int = self._syscall(_OPENAT2, root, b".", self._how, 24)
        if descriptor >= 0:
            os.close(descriptor)
        return descriptor >= 0

    def _open_in_steps(self, root: int, pieces: list[bytes]) -> int:
        place = root
        try:
            for piece in pieces:
                following = self.open(place, piece) if self._has_openat2 else self._step(place, piece)
                if place != root:
                    os.close(place)
                place = following
        except OSError:
            if place != root:
                os.close(place)
            raise
        return place

    def _step(self, place: int, name: bytes) -> int:
        if name == b"..":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        descriptor = self._open_plainly(name, place)
        if os.fstat(descriptor).st_dev != os.fstat(place).st_dev:
            os.close(descriptor)
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return descriptor

    def _open_plainly(self, path: bytes, place: int | None) -> int:
        try:
            return os.open(path, self._flags, dir_fd=place)
        except PermissionError:
            if not self._flags & os.O_NOATIME:
                raise
        return os.open(path, self._flags & ~os.O_NOATIME, dir_fd=place)

    def read(self, descriptor: int, inodes: Inodes) -> list[bytes]:
        """Read an open directory: add the inodes of all that are no directories to `inodes`, return those that are.

        Raises TooManyInodes, and a HostError if there are more directories than anybody needs: their names would fill
        our memory.
        """
        words, add, directories = self._words, inodes.seen.add, []
        while (size := self._getdents(descriptor, self._buffer, _BUFFER)) > 0:
            place, end, last = 0, size >> 3, 0  # in words of 8 bytes
            while place < end:
                word = words[place + 2]
                kind = word & _TYPE
                if kind == _IS_DIRECTORY or (not kind and self._is_directory(descriptor, place)):
                    if word & _DOT_MASK != _DOT and word & _DOTS_MASK != _DOTS:
                        directories.append(ctypes.string_at(self._address + (place << 3) + _NAME))
                else:
                    add(words[place])
                last = place
                place += (word & _LENGTH) >> 3
            if len(inodes.seen) > _SEEN_MOST:
                inodes.spill()
            if len(directories) > DIRECTORIES_MOST:
                raise Failed("a directory", f"has more than {DIRECTORIES_MOST} directories in it")
            if words[last + 1] == _END:
                break
        if size < 0:
            refused = ctypes.get_errno()
            raise OSError(refused, os.strerror(refused))
        return directories

    def read_all(self, parent: int, names: Iterable[bytes], inodes: Inodes) -> list[tuple[bytes, list[bytes]]]:
        """Do `read` for directories in an open one; return those that have some themselves, with these.

        A mount point is passed over. This is what a first count of a million inodes spends its time in.
        """
        found = []
        for name in names:
            try:
                descriptor = self.open(parent, name)
            except OSError as error:
                if error.errno == errno.EXDEV:
                    continue
                raise
            try:
                below = self.read(descriptor, inodes)
            finally:
                os.close(descriptor)
            if below:
                found.append((name, below))
        return found

    def _is_directory(self, descriptor: int, place: int) -> bool:
        """Ask for the inode: this filesystem's directories do not tell types."""
        name = ctypes.string_at(self._address + (place << 3) + _NAME)
        return stat.S_ISDIR(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode)


def _pieces(path: bytes) -> list[bytes]:
    """Return a path in pieces that are short enough each."""
    pieces = [b""]
    for name in path.split(b"/"):
        if len(pieces[-1]) + len(name) >= _PATH:
            pieces.append(b"")
        pieces[-1] += b"/" + name if pieces[-1] else name
    return pieces
