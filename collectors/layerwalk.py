"""A count of all that a layer holds, in slices: how many inodes, and if wanted how many bytes.

Inodes are counted by what directory entries carry, without a look at the inode of any file: a first count of an image
costs half of what du(1) takes, and a tenth of the kernel's memory. A file with several names is one inode: which ones
have been seen is remembered, within a bound on memory. What goes beyond it costs time: the layer is read again for each
further part of all inodes, so that millions of hard links have their right number in the end.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.beneath import DIRECTORIES_MOST, Directories, Inodes, TooManyInodes
from agent.errors import Failed, from_os

BLOCK = 512  # bytes of st_blocks, man 3 stat
AT_ONCE = 64  # directories between two looks at the budget
MEMORY = 4_000_000  # bytes in which a walk remembers inodes: 8 for each, 16 with the size of a file with several names
_SEEN_MOST, _SET_MOST = 5_000, 50_000  # files in a dictionary while they are looked at, and at the end: 1 and 6 MB
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


@dataclass(slots=True)
class Listing:
    """What one directory holds. Files are those with one name."""

    files: int = 0
    size: int = 0
    directories: dict[bytes, int] = field(default_factory=dict)  # their inodes


class TooMany(Exception):
    """There is no place for what has been found: `more` at least would have to be remembered."""

    def __init__(self, more: int) -> None:
        super().__init__(more)
        self.more = more


def look(descriptor: int, device: int, most: int, tell: Callable[[os.stat_result], None]) -> Listing:
    """Look at every file in an open directory, and tell of each name of those with several. Raises TooMany.

    One that goes meanwhile is none.
    """
    listing = Listing()
    with os.scandir(descriptor) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                listing.directories[os.fsencode(entry.name)] = entry.inode()
                if len(listing.directories) > most:
                    raise TooMany(len(listing.directories))
                continue
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if found.st_dev != device:  # something is mounted on it, and not ours to look at
                listing.files += 1
            elif found.st_nlink > 1:
                tell(found)
            else:
                listing.files += 1
                listing.size += found.st_blocks * BLOCK
    return listing


class Several:
    """Files with several names, each once, of one of the `parts` that all inodes can be divided into."""

    def __init__(self, parts: int, part: int, most: int) -> None:
        self._parts = parts
        self._part = part
        self._most = most
        self._seen: dict[int, int] = {}  # by inode: its blocks, and in the lowest bit whether a name is in the content
        self._inodes, self._values = array("Q"), array("Q")  # the same, laid aside: 16 bytes each

    def add(self, found: os.stat_result, *, is_inside: bool) -> None:
        """Add a name of a file; `is_inside` if it is in the content. Raises TooManyInodes."""
        inode = found.st_ino
        if inode % self._parts != self._part:
            return
        self._seen[inode] = found.st_blocks << 1 | is_inside | self._seen.get(inode, 0) & 1
        if len(self._seen) > _SEEN_MOST:
            self._lay_aside()
            if len(self._inodes) > self._most:
                raise TooManyInodes

    def _lay_aside(self) -> None:
        self._inodes.extend(self._seen.keys())
        self._values.extend(self._seen.values())
        self._seen.clear()

    def count(self) -> Count:
        """Return how many there are, and their bytes."""
        self._lay_aside()
        files = size = content_files = content_size = 0
        sets = len(self._inodes) // _SET_MOST + 1 | 1  # odd, for inodes that are in chunks of 64
        for number in range(sets):
            each_once: dict[int, int] = {}
            for inode, value in zip(self._inodes, self._values, strict=True):
                if inode // self._parts % sets == number:
                    each_once[inode] = value | each_once.get(inode, 0) & 1
            inside = [value >> 1 for value in each_once.values() if value & 1]
            files += len(each_once)
            size += sum(value >> 1 for value in each_once.values())
            content_files += len(inside)
            content_size += sum(inside)
        return Count(files, size * BLOCK, content_files, content_size * BLOCK)


class Walk:
    """One count of a whole layer, in slices. Between them nothing is open.

    With `content` every file is looked at, for its bytes; without it nothing but the number of inodes is found. Where
    `memory` is not enough for the inodes that are to be told apart it takes several passes, each for a part of them.
    `entries` is what an index of the layer would have to hold, as far as its files have been looked at.
    """

    def __init__(self, path: str, content: str = "", memory: int = MEMORY) -> None:
        self.path = path
        self.began: float | None = None  # on the clock of whoever has it done
        self._content = os.fsencode(content)
        self._memory = memory
        self._parts = 1  # that all inodes are divided into
        self._left = [0]  # those that are still to be counted, the last one by this pass
        self._once = Count(0, 0, 0, 0)  # of the passes before: inodes that may have several names
        self._begin()

    def _begin(self) -> None:
        """Begin a pass. What needs no memory is counted in each, and the last one is right."""
        self._todo: list[tuple[bytes, list[bytes]]] | None = None  # a directory, and those in it that are to be read
        self._files, self._sizes = [0, 0], [0, 0]  # with one name, and directories: in the content, elsewhere
        self._inodes = Inodes(self._parts, self._left[-1], self._memory // 8)
        self._several = Several(self._parts, self._left[-1], self._memory // 16)
        self.entries = 0

    def work(self, directories: Directories, is_over: IsOver) -> Count | None:
        """Go on until the slice is over; return the count when all is counted. Raises a HostError."""
        try:
            with directories.root(self.path) as root:
                while True:
                    try:
                        if not self._pass(directories, root, is_over):
                            return None
                    except TooManyInodes:
                        self._divide()
                    else:
                        self._once = _sum(self._once, self._told_apart())
                        self._left.pop()
                        if not self._left:
                            break
                    self._begin()
                    if is_over():
                        return None
        except OSError as error:
            raise from_os(self.path, error) from error
        except TooMany as error:
            raise Failed(self.path, f"has more than {DIRECTORIES_MOST} directories in one") from error
        found = _sum(self._once, Count(sum(self._files), sum(self._sizes), self._files[0], self._sizes[0]))
        return found if self._content else Count(found.files, None, 0, None)

    def _divide(self) -> None:
        """Have each part that is left counted in three passes: not in two, as XFS has inodes in chunks of 64."""
        self._left += [part + self._parts * by for by in (1, 2) for part in self._left]
        self._parts *= 3

    def _told_apart(self) -> Count:
        return self._several.count() if self._content else Count(len(self._inodes), 0, 0, 0)

    def _pass(self, directories: Directories, root: int, is_over: IsOver) -> bool:
        """Go on with a pass; return whether it is at its end."""
        if self._todo is None:
            os.lseek(root, 0, os.SEEK_SET)  # the pass before has read it to its end
            self._todo = [(b".", directories.read(root, Inodes()))]
        while self._todo:
            path, names = self._todo.pop()
            now, later = names[:AT_ONCE], names[AT_ONCE:]
            if later:
                self._todo.append((path, later))
            self._read(directories, root, path, now)
            if is_over() and self._todo:
                return False
        return True

    def _read(self, directories: Directories, root: int, path: bytes, names: list[bytes]) -> None:
        assert self._todo is not None
        try:
            parent = directories.open(root, path)
        except OSError as error:
            # where somebody writes, directories come and go: no walk of a large layer would come to its end otherwise
            if self._content and path != b"." and error.errno in (errno.EXDEV, *GONE):
                return
            raise
        try:
            below = (
                self._look(directories, parent, path, names)
                if self._content
                else directories.read_all(parent, names, self._inodes)
            )
        finally:
            os.close(parent)
        if not self._content:
            self._files[1] += len(names)
        self._todo += [(path + b"/" + name, directories_in) for name, directories_in in below]

    def _look(
        self, directories: Directories, parent: int, path: bytes, names: list[bytes]
    ) -> list[tuple[bytes, list[bytes]]]:
        found = []
        for name in names:
            is_inside = (path + b"/" + name + b"/").startswith(b"./" + self._content + b"/")
            place = 0 if is_inside else 1
            try:
                descriptor = directories.open(parent, name)
            except OSError as error:
                if error.errno not in (errno.EXDEV, *GONE):
                    raise
                self._files[place] += error.errno == errno.EXDEV
                continue
            try:
                own = os.fstat(descriptor)
                listing = self._look_at_files(descriptor, own.st_dev, is_inside=is_inside)
            finally:
                os.close(descriptor)
            self._files[place] += 1 + listing.files
            self._sizes[place] += listing.size + own.st_blocks * BLOCK
            if listing.directories:
                found.append((name, list(listing.directories)))
        return found

    def _look_at_files(self, descriptor: int, device: int, *, is_inside: bool) -> Listing:
        here: set[int] = set()

        def tell(found: os.stat_result) -> None:
            self._several.add(found, is_inside=is_inside)
            if len(here) < _SET_MOST:  # no index has place for more
                here.add(found.st_ino)

        listing = look(descriptor, device, DIRECTORIES_MOST, tell)
        self.entries += 1 + len(here)
        return listing


def _sum(one: Count, other: Count) -> Count:
    return Count(*((mine or 0) + (its or 0) for mine, its in zip(one, other, strict=True)))
