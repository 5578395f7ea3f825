"""What the directories of a layer hold together, as they come and go: a file with names in several of them is one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from collectors.layerwalk import Count


class Shared(NamedTuple):
    """A file with several names, of which `here` are in one directory. overlayfs' marks of removed files are such."""

    inode: int
    names: int
    changed: int  # its ctime in nanoseconds: another file may have its inode one day
    size: int
    here: int = 1


class Sums:
    """The sums of a layer's directories, those of its content apart from the others'."""

    def __init__(self) -> None:
        self._files = [0, 0]  # with one name, and directories: in the content, elsewhere
        self._sizes = [0, 0]
        self._shared: dict[int, list[int]] = {}  # names in the content, names elsewhere, bytes

    def add(self, place: int, files: int, size: int, shared: Iterable[Shared], sign: int = 1) -> None:
        """Add a directory to the sums, or take it away. `place` is 0 in the content."""
        self._files[place] += sign * files
        self._sizes[place] += sign * size
        for each in shared:
            names = self._shared.setdefault(each.inode, [0, 0, each.size])
            names[place] += sign * each.here
            if not (names[0] or names[1]):
                del self._shared[each.inode]

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
