"""A count of all that a layer holds, in slices: how many inodes, and if wanted how many bytes.

Inodes are counted by what directory entries carry, without a look at the inode of any file: a first count of an image
costs half of what du(1) takes, and a tenth of the kernel's memory. A file with several names is one inode.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.beneath import DIRECTORIES_MOST, Directories, Inodes
from agent.errors import Failed, from_os

BLOCK = 512  # bytes of st_blocks, man 3 stat
AT_ONCE = 64  # directories between two looks at the budget
SHARED_MOST = 20_000  # files with several names in one layer: a bound on memory
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)

IsOver = Callable[[], bool]


class Count(NamedTuple):
    """A layer's inodes, each once, and their bytes on disk (None: not looked at).

    `files` are those in and with its directory's subdirectories; the content's are those of one of them, as
    `find CONTENT | wc -l` has them if no file has two names. Bytes are allocated ones, as du(1) has them.
    """

    files: int
    bytes: int | None
    content_files: int
    content_bytes: int | None


class Shared(NamedTuple):
    """A file with several names, of which `here` are in one directory. overlayfs' marks of removed files are such."""

    inode: int
    names: int
    changed: int  # its ctime in nanoseconds: another file may have its inode one day
    size: int
    here: int = 1


@dataclass(slots=True)
class Listing:
    """What one directory holds: files with one name are a number, those with several are told."""

    files: int = 0
    size: int = 0
    shared: dict[int, Shared] = field(default_factory=dict)  # by their inodes
    directories: dict[bytes, int] = field(default_factory=dict)  # their inodes


class TooMany(Exception):
    """There are more directories than may be remembered."""


def look(descriptor: int, device: int, most: int) -> Listing:
    """Look at every file in an open directory. One that goes meanwhile is none. Raises TooMany."""
    listing = Listing()
    with os.scandir(descriptor) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                listing.directories[os.fsencode(entry.name)] = entry.inode()
                if len(listing.directories) > most:
                    raise TooMany
                continue
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if found.st_dev != device:  # something is mounted on it, and not ours to look at
                listing.files += 1
            elif found.st_nlink > 1:
                here = listing.shared[found.st_ino].here + 1 if found.st_ino in listing.shared else 1
                shared = Shared(found.st_ino, found.st_nlink, found.st_ctime_ns, found.st_blocks * BLOCK, here)
                listing.shared[found.st_ino] = shared
            else:
                listing.files += 1
                listing.size += found.st_blocks * BLOCK
    return listing


class Sums:
    """The sums of a layer's directories, those of its content apart from the others'."""

    def __init__(self) -> None:
        self._files = [0, 0]  # with one name, and directories: in the content, elsewhere
        self._sizes = [0, 0]
        self._shared: dict[int, list[int]] = {}  # names in the content, names elsewhere, bytes

    def add(self, place: int, files: int, size: int, shared: Iterable[Shared], sign: int = 1) -> None:
        """Add a directory to the sums, or take it away. `place` is 0 in the content. Raises Failed."""
        self._files[place] += sign * files
        self._sizes[place] += sign * size
        for each in shared:
            names = self._shared.setdefault(each.inode, [0, 0, each.size])
            names[place] += sign * each.here
            if not (names[0] or names[1]):
                del self._shared[each.inode]
        if len(self._shared) > SHARED_MOST:
            raise Failed("layer", f"more than {SHARED_MOST} files with several names")

    def names(self, inode: int) -> int:
        """Return how many names of a file are known."""
        return sum(self._shared.get(inode, (0, 0, 0))[:2])

    def count(self) -> Count:
        """Return the sums."""
        content = [size for inside, _, size in self._shared.values() if inside]
        return Count(
            sum(self._files) + len(self._shared),
            sum(self._sizes) + sum(size for _, _, size in self._shared.values()),
            self._files[0] + len(content),
            self._sizes[0] + sum(content),
        )


class Walk:
    """One count of a whole layer, in slices. Between them nothing is open.

    With `content` every file is looked at, for its bytes; without it nothing but the number of inodes is found.
    """

    def __init__(self, path: str, content: str = "") -> None:
        self.path = path
        self._content = os.fsencode(content)
        self._todo: list[tuple[bytes, list[bytes]]] | None = None  # a directory, and those in it that are to be read
        self._directories = 0
        self._inodes = Inodes()
        self._sums = Sums()

    def work(self, directories: Directories, is_over: IsOver) -> Count | None:
        """Go on until the slice is over; return the count when all is counted. Raises a HostError."""
        try:
            with directories.root(self.path) as root:
                if self._todo is None:
                    self._todo = [(b".", directories.read(root, Inodes()))]
                while self._todo:
                    path, names = self._todo.pop()
                    now, later = names[:AT_ONCE], names[AT_ONCE:]
                    if later:
                        self._todo.append((path, later))
                    self._read(directories, root, path, now)
                    if is_over() and self._todo:
                        return None
        except OSError as error:
            raise from_os(self.path, error) from error
        except TooMany as error:
            raise Failed(self.path, f"has more than {DIRECTORIES_MOST} directories in one") from error
        if self._content:
            return self._sums.count()
        return Count(self._directories + len(self._inodes), None, 0, None)

    def _read(self, directories: Directories, root: int, path: bytes, names: list[bytes]) -> None:
        assert self._todo is not None
        self._directories += len(names)
        parent = directories.open(root, path)
        try:
            below = (
                self._look(directories, parent, path, names)
                if self._content
                else directories.read_all(parent, names, self._inodes)
            )
        finally:
            os.close(parent)
        self._todo += [(path + b"/" + name, directories_in) for name, directories_in in below]

    def _look(
        self, directories: Directories, parent: int, path: bytes, names: list[bytes]
    ) -> list[tuple[bytes, list[bytes]]]:
        found = []
        for name in names:
            place = 0 if (path + b"/" + name + b"/").startswith(b"./" + self._content + b"/") else 1
            try:
                descriptor = directories.open(parent, name)
            except OSError as error:
                if error.errno not in (errno.EXDEV, *GONE):
                    raise
                self._sums.add(place, int(error.errno == errno.EXDEV), 0, ())
                continue
            try:
                own = os.fstat(descriptor)
                listing = look(descriptor, own.st_dev, DIRECTORIES_MOST)
            finally:
                os.close(descriptor)
            self._sums.add(place, 1 + listing.files, listing.size + own.st_blocks * BLOCK, listing.shared.values())
            if listing.directories:
                found.append((name, list(listing.directories)))
        return found
