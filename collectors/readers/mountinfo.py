r"""/proc/PID/mountinfo, man 5 proc_pid_mountinfo.

One line per mount: `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`. Path fields
have space, tab, newline and backslash as octal escapes (`\040`). Between the options and ` - ` stand any number of
optional fields; new ones may come.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

_ESCAPE = re.compile(r"\\([0-7]{3})")
_FIELDS = 6
_SHORT = 200  # characters of options that many mounts may have alike: not those with an overlay's layers
_TABLES = 2  # the host's and our own, of which several collectors read the same text: parsing costs the most


class Mount(NamedTuple):
    """One mount. `device` is the `major:minor` of its st_dev; paths may hold surrogates, see os.fsencode.

    Both lists of options begin with `ro` or `rw`; only there these words are the kernel's own.
    """

    id: int
    parent: int
    device: str
    root: str
    mountpoint: str
    options: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]


@lru_cache(_TABLES)
def parse(text: bytes) -> tuple[Sequence[Mount], int]:
    """Return the mounts in the kernel's order, and the number of senseless lines.

    The order is that of mount ids since Linux 6.8: which of two mounts at one point hides the other, `parent` says.
    """
    found = list(parse_lines(text))
    mounts = tuple(mount for mount in found if mount is not None)
    return mounts, len(found) - len(mounts)


def parse_lines(text: bytes) -> Iterator[Mount | None]:
    """Yield a table's mounts one by one, None for a senseless line: of a large one that takes little memory."""
    for line in io.BytesIO(text):
        if line := line.rstrip(b"\n"):
            try:
                yield _parse_line(line.decode("utf-8", "surrogateescape"))
            except ValueError:
                yield None


def _parse_line(line: str) -> Mount:
    fields = line.split(" ")
    end = fields.index("-", _FIELDS)
    fstype, source, super_options = fields[end + 1 : end + 4]
    if "\0" in line or "\\000" in line:
        raise ValueError("no path has a NUL, and no function of os takes one")
    return Mount(
        int(fields[0]),
        int(fields[1]),
        fields[2],
        unescape(fields[3]),
        unescape(fields[4]),
        _split(fields[5]),
        unescape(fstype),
        unescape(source),
        _split(super_options),
    )


def _split(options: str) -> tuple[str, ...]:
    return _split_short(options) if len(options) <= _SHORT else tuple(options.split(","))


@lru_cache(64)
def _split_short(options: str) -> tuple[str, ...]:
    return tuple(options.split(","))


def unescape(field: str) -> str:
    """Return a path field with its octal escapes resolved."""
    if "\\" not in field:
        return field
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), field)


@lru_cache(_TABLES)
def parse_visible(text: bytes) -> Sequence[Mount]:
    """Return the mounts of a table that a path can lead to, see `visible`; senseless lines are passed."""
    return tuple(visible(parse(text)[0]))


def visible(mounts: Sequence[Mount]) -> list[Mount]:
    """Return the mounts that a path can lead to: not those that another hides, at their own point or above it.

    Which of two mounts at one point hides the other is told by their parents. The order of lines does not tell: a
    mount that was moved keeps its place.
    """
    by_id = {mount.id: mount for mount in mounts}
    covered = {mount.parent for mount in mounts if _is_on_top_of(mount, by_id.get(mount.parent))}
    top: dict[str, Mount] = {}
    for mount in sorted(mounts, key=lambda each: len(each.mountpoint)):
        if mount.id in covered:
            continue
        above = carrier(top, mount.mountpoint.rpartition("/")[0] or "/") if mount.mountpoint != "/" else None
        if above is None or above.id == _foot(mount, by_id).parent:
            top[mount.mountpoint] = mount
    return [mount for mount in mounts if top.get(mount.mountpoint) is mount]


def _is_on_top_of(mount: Mount, parent: Mount | None) -> bool:
    return parent is not None and parent is not mount and parent.mountpoint == mount.mountpoint


def _foot(mount: Mount, by_id: Mapping[int, Mount]) -> Mount:
    """Return the lowest of the mounts that are stacked at one point, given the uppermost."""
    for _ in by_id:  # a table that changed while it was read might go in circles
        parent = by_id.get(mount.parent)
        if parent is None or not _is_on_top_of(mount, parent):
            break
        mount = parent
    return mount


def carrying(mounts: Iterable[Mount], path: str) -> Mount | None:
    """Return the visible mount that carries a path: the one with the longest prefix of it."""
    return carrier({mount.mountpoint: mount for mount in mounts}, path)


def carrier(top: Mapping[str, Mount], path: str) -> Mount | None:
    """Return the same, for many paths: `top` has the visible mounts by their points."""
    while path not in top:
        if path in ("/", ""):
            return None
        path = path.rpartition("/")[0] or "/"
    return top[path]


def by_device(mounts: Iterable[Mount]) -> dict[str, list[Mount]]:
    """Return the mounts of each device."""
    found: dict[str, list[Mount]] = {}
    for mount in mounts:
        found.setdefault(mount.device, []).append(mount)
    return found


def one_per_device(mounts: Iterable[Mount]) -> list[Mount]:
    """Return one mount of each device: `/` or else its whole tree rather than a part of it, then the shortest path."""
    return [min(same, key=_rank) for same in by_device(mounts).values()]


def shown(same: Iterable[Mount], top: Mapping[str, Mount], root: str) -> tuple[Mount, str] | None:
    """Return the mount that shows a path of its own filesystem, and where; None if none does.

    `same` are mounts of that filesystem, `top` all visible ones by their points: a path that another mount hides does
    not show it. `root` is as a mount's own root is: from the top of the filesystem, through subvolumes of btrfs.
    """
    for mount in sorted(same, key=_rank):
        above = mount.root.rstrip("/")
        if root == mount.root or root.startswith(f"{above}/"):
            path = mount.mountpoint.rstrip("/") + root[len(above) :] or "/"
            if carrier(top, path) is mount:
                return mount, path
    return None


def _rank(mount: Mount) -> tuple[bool, bool, int, str]:
    return mount.mountpoint != "/", mount.root != "/", len(mount.mountpoint), mount.mountpoint
