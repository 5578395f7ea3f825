"""Host: where the node's /proc, /sys, /dev and root filesystem are, and the only door to them.

Paths are the host's own: `proc/1/mountinfo`, `sys/fs/btrfs`, `dev/mapper/control`; anything else is below the root
filesystem (`/var/lib/docker` and `var/lib/docker` are the same). In a container they lie below /host; in a test they
are directories of a tree.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from agent.errors import Failed, HostError, Malformed, Stuck, Vanished, from_os
from agent.files import open_regular

READ_LIMIT = 64 * 1024 * 1024
_MODE = 0o177777  # the bits of st_mode
WHOLE = 1 << 16  # bytes, more than a file of one record has, as a process' stat: the kernel gives it in one read
FILE_LIMIT = 16 * 1024 * 1024  # of what a runtime or a person writes: decoded it takes many times as much
_KERNELS = ("proc", "sys", "dev")  # what has a place of its own
_BELOW_KERNELS = tuple(f"{name}/" for name in _KERNELS)
_NUMBER = 64  # bytes, more than any number has
_LINKS = 40  # as the kernel's MAXSYMLINKS
_DIGITS = 20  # of a u64


class Space(NamedTuple):
    """What statvfs(3) of one mount point says, in order. Blocks are `block_size` (f_frsize) bytes; `files` may be 0.

    `stat_errno` is what stat(2) was refused with, where it was asked for: EIO means a filesystem that was shut down,
    though statvfs answers.
    """

    stat_errno: int
    io_size: int
    block_size: int
    blocks: int
    free: int
    available: int
    files: int
    files_free: int
    files_available: int
    flags: int
    name_max: int


class Inode(NamedTuple):
    """What stat(2) says of an open file, as far as it is asked for. `blocks` are of 512 bytes."""

    mode: int
    device: int
    number: int
    links: int
    blocks: int


class Points(NamedTuple):
    """What is to be measured, mount points in most cases: real paths, and the same as requests to the helper."""

    paths: tuple[str, ...]
    requests: tuple[bytes, ...]


class Prober(Protocol):
    """Whatever measures mounts that may hang, see `agent.probe`."""

    def measure(self, points: Points) -> Sequence[Space | HostError]:
        """Return one answer per point, in order: Space, or the error (Stuck among them). Never blocks for long.

        The answer to a request that begins with `i` or `l` has an Inode's numbers behind `stat_errno`.
        """
        ...

    def close(self) -> None:
        """Let go of every process and descriptor."""
        ...


class Ioctls(Protocol):
    """Whatever issues ioctls that may hang, see `agent.ioctl`."""

    def ask(self, path: str, number: int, buffer: bytes, subject: str, pointers: Mapping[int, int]) -> bytes:
        """Return the buffer as the kernel left it; raises a HostError named after `subject`. Never blocks for long."""
        ...

    def close(self) -> None:
        """Let go of every process and descriptor."""
        ...


class Commands(Protocol):
    """Whatever runs the host's own programs, see `agent.command`."""

    def run(self, root: str, argv: Sequence[str], deadline: float, subject: str) -> tuple[int, bytes]:
        """Return exit code and output; raises a HostError named after `subject`. Takes `deadline` seconds at most."""
        ...

    def close(self) -> None:
        """Kill what still runs."""
        ...


class Host:
    """The door. Every failure is a HostError with the host's path; `errors` counts those that were skipped."""

    def __init__(  # noqa: PLR0913  four places and the three doors to what may hang
        self,
        procfs: str = "/proc",
        sysfs: str = "/sys",
        rootfs: str = "/",
        dev: str = "/dev",
        prober: Prober | None = None,
        *,
        ioctls: Ioctls | None = None,
        commands: Commands | None = None,
    ) -> None:
        self.procfs = procfs.rstrip("/") or "/"
        self.sysfs = sysfs.rstrip("/") or "/"
        self.rootfs = rootfs.rstrip("/")
        self.dev = dev.rstrip("/") or "/"
        self._places = dict(zip(_KERNELS, (self.procfs, self.sysfs, self.dev), strict=True))
        self.prober = prober
        self.ioctls = ioctls
        self.commands = commands
        self.errors: Counter[str] = Counter()
        self.first_errors: list[HostError] = []
        self._told: set[int] = set()  # hashes, as paths may be long
        self._skipping = _Skipping(self.skip)

    def session(self) -> Host:
        """Return the same door with counts of its own, for one collector."""
        places = self.procfs, self.sysfs, self.rootfs, self.dev
        return Host(*places, self.prober, ioctls=self.ioctls, commands=self.commands)

    def real(self, path: str) -> str:
        """Return where the host's `path` lies for us. Symbolic links are the caller's matter, see `resolve`.

        Raises Malformed for what cannot be a path, as a runtime's JSON may give it: functions of os raise ValueError.
        """
        if not path.isascii() or "\0" in path:
            _check(path)
        first, _, rest = path.lstrip("/").partition("/")
        place = self._places.get(first)
        if place is None:
            return f"{self.rootfs}/{path.lstrip('/')}"
        return f"{place}/{rest}" if rest else place

    def resolve(self, path: str, avoid: Collection[str] = ()) -> str:
        """Return the host's `path` with its symbolic links resolved in the host's root; absent tails stay.

        Raises Stuck where the way leads into one of `avoid`, mount points that a look might hang on.
        """
        todo, done, links = path.strip("/").split("/"), "", 0
        while todo:
            part = todo.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                done = done.rpartition("/")[0]
                continue
            if f"{done}/{part}" in avoid:
                raise Stuck(path, f"lies behind {done}/{part}, which does not answer")
            try:
                link = os.readlink(self.real(f"{done}/{part}"))
            except OSError:
                done = f"{done}/{part}"
                continue
            links += 1
            if links > _LINKS:
                raise Failed(path, "too many levels of symbolic links")
            done = "" if link.startswith("/") else done
            todo = link.strip("/").split("/") + todo
        return done or "/"

    def resolve_all(self, paths: Iterable[str]) -> list[str]:
        """Return where these of the host's paths lie, each place once; those that cannot be told are counted."""
        found: dict[str, None] = {}
        for path in paths:
            with self.skipping():
                found[self.resolve(path)] = None
        return list(found)

    def read(self, path: str, most: int = 0) -> bytes:
        """Return a file's bytes; more than `most` is Failed, by default 64 MiB of the kernel's, 16 of others'.

        See `open`.
        """
        parts: list[bytes] = []
        left = most = most or (READ_LIMIT if _is_kernels(path) else FILE_LIMIT)
        descriptor = self.open(path)
        try:
            while part := os.read(descriptor, 1 << 16):
                parts.append(part)
                left -= len(part)
                if left < 0:
                    raise Failed(path, f"is larger than {most} bytes")
        except OSError as error:
            raise from_os(path, error) from error
        finally:
            os.close(descriptor)
        return b"".join(parts)

    def open(self, path: str) -> int:
        """Return a descriptor of a file, for reading; the caller closes it.

        Below the root filesystem nothing but a file is opened, whatever lies in its place.
        """
        real = self.real(path)
        try:
            if _is_kernels(path):
                return os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            return open_regular(real)
        except OSError as error:
            raise from_os(path, error) from error

    def read_int(self, path: str) -> int:
        """Return a file's one decimal number."""
        return _number(path, self.read(path))

    def read_ints(self, directory: str, names: Sequence[str]) -> list[int]:
        """Return the one decimal number of each of these small files of a directory, walking the way to it once."""
        numbers: list[int] = []
        name = ""
        try:
            place = os.open(self.real(directory), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for name in names:
                    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=place)
                    try:
                        text = os.read(descriptor, _NUMBER)
                    finally:
                        os.close(descriptor)
                    numbers.append(_number(f"{directory}/{name}", text))
            finally:
                os.close(place)
        except OSError as error:
            raise from_os(f"{directory}/{name}", error) from error
        return numbers

    def names(self, path: str) -> list[str]:
        """Return a directory's names, sorted."""
        try:
            return sorted(os.listdir(self.real(path)))
        except OSError as error:
            raise from_os(path, error) from error

    def listed(self, path: str) -> list[str]:
        """Return a directory's names, sorted; none where it is absent, or refused, which is counted."""
        try:
            return self.names(path)
        except Vanished:
            return []
        except HostError as error:
            self.skip(error)
            return []

    def read_if_there(self, path: str) -> bytes:
        """Return a file's bytes, none where it is absent."""
        try:
            return self.read(path)
        except Vanished:
            return b""

    def entries(self, path: str) -> dict[str, bool]:
        """Return what is in a directory: whether each name is a directory itself, and not only a link to one."""
        try:
            with os.scandir(self.real(path)) as found:
                return {each.name: each.is_dir(follow_symlinks=False) for each in found}
        except OSError as error:
            raise from_os(path, error) from error

    def read_start(self, path: str, most: int = WHOLE) -> bytes:
        """Return at most so many bytes of a file's beginning by one read(2), see `open`."""
        descriptor = self.open(path)
        try:
            return os.read(descriptor, most)
        except OSError as error:
            raise from_os(path, error) from error
        finally:
            os.close(descriptor)

    def lstat(self, path: str) -> os.stat_result:
        """Return what the kernel knows of a path; a link at its end is not followed."""
        try:
            return os.lstat(self.real(path))
        except OSError as error:
            raise from_os(path, error) from error

    def link(self, path: str) -> str:
        """Return where a symbolic link leads, as it is written in it."""
        try:
            return os.readlink(self.real(path))
        except OSError as error:
            raise from_os(path, error) from error

    def some_names(self, path: str, most: int) -> list[str]:
        """Return at most so many of a directory's names, as they come."""
        try:
            with os.scandir(self.real(path)) as found:
                return [each.name for each in islice(found, most)]
        except OSError as error:
            raise from_os(path, error) from error

    def links(self, path: str, names: Iterable[str]) -> dict[str, str]:
        """Return where these symbolic links of a directory lead; those that are gone meanwhile are left out."""
        found = {}
        directory = self.real(path)
        for name in names:
            try:
                found[name] = os.readlink(f"{directory}/{name}")
            except FileNotFoundError:
                continue
            except OSError as error:
                raise from_os(f"{path}/{name}", error) from error
        return found

    def glob(self, pattern: str) -> list[str]:
        """Return the host's paths that match a shell pattern, sorted; what cannot be listed has no matches."""
        first, _, rest = pattern.lstrip("/").partition("/")
        place = self._places.get(first)
        if place is None:
            start, base, rest = "/", self.rootfs + "/", pattern.lstrip("/")
        else:
            start, base = first + "/", place.rstrip("/") + "/"
        return sorted(start + found[len(base) :] for found in glob.glob(glob.escape(base) + rest))

    def signature(self, path: str) -> tuple[int, int, int]:
        """Return what changes when a file is written anew: its inode, its time in nanoseconds, its size."""
        try:
            found = os.stat(self.real(path))
        except OSError as error:
            raise from_os(path, error) from error
        return found.st_ino, found.st_mtime_ns, found.st_size

    def device(self, path: str) -> int:
        """Return the number of the device that a file lies on."""
        try:
            return os.stat(self.real(path)).st_dev
        except OSError as error:
            raise from_os(path, error) from error

    def exists(self, path: str) -> bool:
        """Return whether the path leads to something now."""
        return os.path.exists(self.real(path))

    def points(self, paths: Sequence[str], stats: Collection[str] = ()) -> Points:
        """Return the host's mount points as `measure` wants them; those in `stats` are also asked for stat(2)."""
        real = tuple(map(self.real, paths))
        marks = (b"s" if path in stats else b"v" for path in paths)
        return Points(real, tuple(mark + os.fsencode(path) for mark, path in zip(marks, real, strict=True)))

    def measure(self, points: Points) -> Sequence[Space | HostError]:
        """Return the space of mount points, in order, without ever hanging on one; see Prober."""
        if self.prober is None:
            return [Failed(path, "no prober") for path in points.paths]
        return self.prober.measure(points)

    def inodes(self, paths: Sequence[str]) -> list[Inode | HostError]:
        """Return what stat(2) says of each path, in order, without ever hanging on one."""
        real = tuple(map(self.real, paths))
        return self._inodes(Points(real, tuple(b"i" + os.fsencode(path) for path in real)))

    def entries_at(self, root: str, paths: Sequence[str]) -> list[Inode | HostError]:
        """Return what lstat(2) says of each path below `root`, in order, without ever hanging on one.

        No link on the way is followed, but in `root` itself: who owns a directory there can lead nobody elsewhere.
        """
        place, ways = self.real(root).rstrip("/"), [path.strip("/") for path in paths]
        real = tuple(f"{place}/{way}" for way in ways)
        return self._inodes(Points(real, tuple(b"l" + os.fsencode(f"{place}//{way}") for way in ways)))

    def _inodes(self, points: Points) -> list[Inode | HostError]:
        return [_inode(each) if isinstance(each, Space) else each for each in self.measure(points)]

    def ioctl(
        self, path: str, number: int, buffer: bytes, subject: str = "", pointers: Mapping[int, int] | None = None
    ) -> bytes:
        """Issue an ioctl on the host's `path`; return the buffer as the kernel left it. Never hangs.

        `subject` is what may hang, by its own name: only that is Stuck then. It is the path if none is given.
        `pointers` are places in the buffer that are to hold the address of other places in it. What the ioctl returns
        is an error if it is not 0.
        """
        if self.ioctls is None:
            raise Failed(subject or path, "no ioctls")
        answer = self.ioctls.ask(self.real(path), number, buffer, subject or path, pointers or {})
        if len(answer) != len(buffer):
            raise Malformed(subject or path, f"{len(answer)} bytes instead of {len(buffer)}")
        return answer

    def command(self, *argv: str, deadline: float, subject: str = "") -> tuple[int, bytes]:
        """Run one of the host's own programs; return its exit code and output. Stuck if it does not end in time.

        For what neither a file nor an ioctl tells: `zfs`, `zpool`, `smartctl`. `subject` is what may hang.
        """
        if self.commands is None:
            raise Failed(subject or argv[0], "no commands")
        return self.commands.run(self.rootfs, argv, deadline, subject or argv[0])

    def skip(self, error: HostError) -> None:
        """Count one target's refusal by its reason; a target is remembered in `first_errors` only the first time."""
        self.errors[error.reason] += 1
        key = hash((error.reason, error.path))
        if key not in self._told and len(self._told) < 1000:  # noqa: PLR2004  a bound on memory
            self._told.add(key)
            self.first_errors.append(error)

    def skipping(self) -> _Skipping:
        """Let one target fail alone: a HostError inside is counted by its reason and goes no further."""
        return self._skipping


class _Skipping:
    """The context that `Host.skipping` gives, the same one each time: it is entered for thousands of targets a run."""

    def __init__(self, skip: Callable[[HostError], None]) -> None:
        self._skip = skip

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if not isinstance(error, HostError):
            return False
        self._skip(error)
        return True


def _inode(answer: Space) -> Inode:
    mode, *others = answer[1 : 1 + len(Inode._fields)]
    return Inode(mode & _MODE, *others)  # a strange answer must not be a strange error somewhere else


def _is_kernels(path: str) -> bool:
    return path.lstrip("/").startswith(_BELOW_KERNELS)


def _check(path: str) -> None:
    try:
        if b"\0" not in os.fsencode(path):
            return
    except UnicodeEncodeError:
        pass
    raise Malformed(repr(path), "no file can have such a name")


def _number(path: str, text: bytes) -> int:
    text = text.strip()
    # a float cannot hold what has hundreds of digits
    if not text.removeprefix(b"-").isdigit() or len(text) > _DIGITS:
        raise Malformed(path, f"expected a number, got {text[:40]!r}")
    return int(text)
