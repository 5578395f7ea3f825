"""An index of a layer that is written to: its directories, and what each holds.

What changed is told by a fanotify mark on its filesystem, or by the times of the directories, and only that is read
again. Times are ctimes: a mtime is what its owner says, and `tar`, `rsync -a` and `touch` set it back after a change.
Whatever is in doubt is read again too: all that was moved, and the whole layer when a file has gained a second name
somewhere else. A file that is only written to changes no directory's time, nor any number of inodes.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from agent.beneath import Directories
from agent.errors import from_os
from agent.fanotify import Handles
from collectors.layersums import Shared, Sums
from collectors.layerwalk import BLOCK, GONE, Count, IsOver, TooMany, look

UNREAD, MOUNTED = -1, -2  # instead of a directory's time
DOUBTFUL = 1_000_000_000  # nanoseconds: a directory's time tells nothing about changes within one tick of the clock


class Node:
    """A directory of an index. `above` is None for the top, and for one that is no longer there."""

    __slots__ = ("above", "below", "changed", "files", "handle", "inode", "name", "shared", "size", "tree")

    def __init__(self, tree: Tree, above: Node | None, name: bytes, inode: int, handle: bytes) -> None:
        self.tree = tree
        self.above = above
        self.name = name
        self.inode = inode
        self.handle = handle
        self.below: dict[bytes, Node] | None = None
        self.files = 0
        self.size = 0
        self.shared: tuple[Shared, ...] = ()
        self.changed = UNREAD

    def path(self) -> bytes:
        """Return its path below the layer's directory."""
        names, node = [], self
        while node.above is not None:
            names.append(node.name)
            node = node.above
        return b"/".join(reversed(names)) or b"."


@dataclass(slots=True)
class Index:
    """All directories of all trees: by their handles, where the kernel tells which have changed.

    `size` is what is remembered: directories, and files with several names once for each directory that they are in.
    """

    by_handle: dict[bytes, Node] = field(default_factory=dict)
    size: int = 0
    most: int = 40_000
    clock: Callable[[], int] = time.time_ns  # that of the filesystems


class Tree:
    """A layer that is written to: its directories, and what each holds. `path` is its directory's real path.

    `handles` is None where no mark tells of changes. What is directly in the layer's own directory is not counted.
    """

    def __init__(self, path: str, content: str, index: Index, handles: Handles | None) -> None:
        self.path = path
        self.count: Count | None = None
        self.told_at = 0.0  # what changed before is in the count when nothing is due; on the monotonic clock
        self.read_at = self.reading_since = 0.0  # when all of it was last read, and when the newest reading began
        self.size = 0  # what it has of the index
        self.expected = 0  # what it will have when it has been counted, if that is known
        self._content = os.fsencode(content)
        self._index = index
        self._handles = handles
        self._sums = Sums()
        self._top = Node(self, None, b"", 0, b"")
        self._is_torn = False
        self._is_in_doubt = False  # not all that changed was told: its times are to be looked at
        self._todo: dict[Node, None] = {self._top: None}
        self._check: list[Node] = []  # directories whose subdirectories' times are to be looked at
        self._new_names: set[Shared] = set()
        self._doubted: dict[int, tuple[int, int]] = {}  # files with names elsewhere: their number, the file's time
        self._outside: dict[int, tuple[int, int]] = {}  # the same, where that is known to be in no other place here

    @property
    def due(self) -> int:
        """How much is to be read, as far as it is known."""
        return len(self._todo) + len(self._check)

    def mark(self, node: Node) -> None:
        """Have a directory read again."""
        self._todo[node] = None

    def hear(self, now: float, *, is_all: bool) -> None:
        """Take note that all changes until now are told, each by `mark` after this, or not all: then the times tell.

        A second doubt during a look at the times has another look follow: what it has passed may have changed since.
        It does not begin anew, as with a doubt in every round it would never come to its end.
        """
        self._is_in_doubt = self._is_in_doubt or not is_all
        if not self._is_in_doubt:
            self.told_at = now
        elif not self.due:
            self._is_in_doubt, self.told_at = False, now
            self.check_times()

    def check_times(self) -> None:
        """Have all directories read again whose times have changed."""
        if not self._check:
            self._check.append(self._top)

    def read_all(self) -> None:
        """Have all directories read again."""
        todo = [self._top]
        for node in todo:
            self._todo[node] = None
            todo += (node.below or {}).values()

    def work(self, directories: Directories, is_over: IsOver) -> bool:
        """Go on until the slice is over; return whether the count is right again. Raises a HostError, and TooMany.

        After TooMany it may go on when others have left the index.
        """
        try:
            with directories.root(self.path) as root:
                while self._check or self._todo or self._has_doubts():
                    if self._check:
                        self._compare(directories, root, self._check.pop())
                    elif self._todo:
                        node, _ = self._todo.popitem()
                        if node.above is not None or node is self._top:
                            self._is_torn = True
                            self._read(directories, root, node)
                            self._is_torn = False
                    if is_over() and (self._check or self._todo):
                        return False
        except OSError as error:
            raise from_os(self.path, error) from error
        self.count = self._sums.count()
        return True

    def close(self) -> None:
        """Take all directories out of the index."""
        todo = [self._top]
        for node in todo:
            todo += (node.below or {}).values()
            if node.handle and self._index.by_handle.get(node.handle) is node:
                del self._index.by_handle[node.handle]
        self._index.size -= self.size
        if self._is_torn:  # a reading has ended before its time: some hang on nothing
            mine = [handle for handle, node in self._index.by_handle.items() if node.tree is self]
            for handle in mine:
                del self._index.by_handle[handle]

    def _has_doubts(self) -> bool:
        """Have all read again once if a file has a name that we have not seen: what had one name may have two now."""
        for inode, seen in self._doubted.items():  # all has been read since: the name is not in this layer
            if self._sums.names(inode) < seen[0]:
                self._outside[inode] = seen
        if len(self._outside) > self._index.most:
            self._outside.clear()
        self._doubted = {
            each.inode: (each.names, each.changed)
            for each in self._new_names
            if self._sums.names(each.inode) < each.names and self._outside.get(each.inode) != (each.names, each.changed)
        }
        self._new_names.clear()
        if self._doubted:
            self.read_all()
        return bool(self._doubted)

    def _compare(self, directories: Directories, root: int, node: Node) -> None:
        """Compare the times of a directory's subdirectories, and of the top."""
        descriptor = self._open(directories, root, node)
        if descriptor is None:
            return
        try:
            if node is self._top and os.fstat(descriptor).st_ctime_ns != node.changed:
                self.mark(node)
            for child in (node.below or {}).values():
                if child.changed == MOUNTED:
                    continue
                try:
                    found = os.stat(child.name, dir_fd=descriptor, follow_symlinks=False)
                except FileNotFoundError:
                    self.mark(node)
                    continue
                if found.st_ino != child.inode or not stat.S_ISDIR(found.st_mode):
                    self.mark(node)
                elif found.st_ctime_ns != child.changed:
                    self.mark(child)
                if child.below:
                    self._check.append(child)
        finally:
            os.close(descriptor)

    def _open(self, directories: Directories, root: int, node: Node) -> int | None:
        """Return a descriptor of a directory; None if it is not there, which is noted."""
        try:
            return directories.open(root, node.path())
        except OSError as error:
            self._lose(node, error)
            return None

    def _lose(self, node: Node, error: OSError) -> None:
        """Take note of a directory that cannot be opened."""
        if error.errno == errno.EXDEV:  # something is mounted on it
            self._take(node, 0, 0, ())
            self._forget_below(node)
            node.changed = MOUNTED
        elif error.errno in GONE and node.above is not None:
            self._drop(node, node.above)
        else:
            raise error

    def _drop(self, node: Node, above: Node) -> None:
        """Forget a directory that is not where it was; the one above has changed then."""
        self.mark(above)
        del (above.below or {})[node.name]
        self._forget(node)

    def _read(self, directories: Directories, root: int, node: Node) -> None:
        descriptor = self._open(directories, root, node)
        if descriptor is None:
            return
        try:
            found = os.fstat(descriptor)
            if self._handles is not None:
                handle = self._handles.handle(descriptor)
                if node.above is not None and handle != node.handle:  # another has taken its place
                    self._drop(node, node.above)
                    return
                self._name(node, handle)
            shared = _SharedHere(self._index.most)
            listing = look(descriptor, found.st_dev, self._index.most, shared.add)
            growth = len(listing.directories) - len(node.below or ()) + len(shared.found) - len(node.shared)
            if self._index.size + growth > self._index.most:
                self.mark(node)  # when there is room again
                raise TooMany(growth)
            gone = self._read_below(descriptor, node, listing.directories)
        finally:
            os.close(descriptor)
        for child in gone:
            self._forget(child)
        node.changed = found.st_ctime_ns if self._index.clock() - found.st_ctime_ns > DOUBTFUL else UNREAD
        if node is not self._top:
            names = tuple(shared.found.values())
            self._note_new(node, names)
            self._take(node, listing.files, listing.size + found.st_blocks * BLOCK, names)

    def _read_below(self, descriptor: int, node: Node, inodes: Mapping[bytes, int]) -> Iterable[Node]:
        """Take the directories that are in an open one now; return those that are there no more."""
        known, node.below = node.below or {}, None
        below = {}
        for name, inode in inodes.items():
            handle = self._handle_in(descriptor, name)
            child = known.get(name)
            if child is not None and child.inode == inode and child.handle == handle:
                below[name] = known.pop(name)
            elif handle is not None:
                below[name] = self._found(node, name, inode, handle)
        node.below = below or None
        return known.values()

    def _handle_in(self, descriptor: int, name: bytes) -> bytes | None:
        if self._handles is None:
            return b""
        try:
            return self._handles.handle(descriptor, name)
        except OSError as error:
            if error.errno in GONE:
                return None
            return b""  # something is mounted there that has no handles

    def _found(self, above: Node, name: bytes, inode: int, handle: bytes) -> Node:
        self._grow(1)
        node = Node(self, above, name, inode, b"")
        self._name(node, handle)
        self._sums.add(self._place(node), 1, 0, ())
        self._todo[node] = None
        return node

    def _grow(self, by: int) -> None:
        self.size += by
        self._index.size += by

    def _name(self, node: Node, handle: bytes) -> None:
        node.handle = handle
        if handle:
            self._index.by_handle[handle] = node

    def _place(self, node: Node) -> int:
        while node.above is not None and node.above is not self._top:
            node = node.above
        return 0 if node.name == self._content else 1

    def _note_new(self, node: Node, names: tuple[Shared, ...]) -> None:
        known = set(node.shared)
        self._new_names.update(each for each in names if each not in known)
        if len(self._new_names) > self._index.most:  # they come and go: all is read again, whichever they are
            self._new_names.clear()
            self.read_all()

    def _take(self, node: Node, files: int, size: int, shared: tuple[Shared, ...]) -> None:
        place = self._place(node)
        self._grow(len(shared) - len(node.shared))
        self._sums.add(place, node.files, node.size, node.shared, -1)
        node.files, node.size, node.shared = files, size, shared
        self._sums.add(place, files, size, shared)

    def _forget_below(self, node: Node) -> None:
        for child in (node.below or {}).values():
            self._forget(child)
        node.below = None

    def _forget(self, gone: Node) -> None:
        """Take a directory and all below it out of the sums and the index."""
        place = self._place(gone)
        doomed = [gone]
        for node in doomed:
            doomed += (node.below or {}).values()
        for node in doomed:
            if node is not self._top:
                self._grow(-1 - len(node.shared))
                self._sums.add(place, node.files + 1, node.size, node.shared, -1)
            if node.handle and self._index.by_handle.get(node.handle) is node:
                del self._index.by_handle[node.handle]
            self._todo.pop(node, None)
            node.above = node.below = None


class _SharedHere:
    """The files of one directory that have several names, by their inodes."""

    def __init__(self, most: int) -> None:
        self.found: dict[int, Shared] = {}
        self._most = most

    def add(self, found: os.stat_result) -> None:
        """Add a name. Raises TooMany."""
        here = self.found[found.st_ino].here + 1 if found.st_ino in self.found else 1
        size = found.st_blocks * BLOCK
        self.found[found.st_ino] = Shared(found.st_ino, found.st_nlink, found.st_ctime_ns, size, here)
        if len(self.found) > self._most:
            raise TooMany(len(self.found))
