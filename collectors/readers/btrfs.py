"""What btrfs shows in sysfs and answers to its searches.

Sources: fs/btrfs/sysfs.c; include/uapi/linux/btrfs.h and btrfs_tree.h (btrfs_ioctl_search_args_v2, btrfs_root_ref,
btrfs_ioctl_dev_info_args, btrfs_ioctl_quota_rescan_args, btrfs_qgroup_info_item, btrfs_qgroup_limit_item).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

TREE_SEARCH_V2 = 0xC0709411
INO_LOOKUP = 0xD0009412
DEV_INFO = 0xD000941E
RESCAN_STATUS = 0x8040942D
RESCAN_REQUEST = bytes(64)
TOP_LEVEL = 5  # the id of the subvolume that is the filesystem's root
FIRST_SUBVOLUME = 256
QUOTA_TREE = 8
LIMIT_REFERENCED, LIMIT_EXCLUSIVE = 1, 2  # of limit_flags: BTRFS_QGROUP_LIMIT_MAX_RFER, _MAX_EXCL

_ROOT_TREE, _ROOT_BACKREF = 1, 144
_INFO, _LIMIT = 242, 244
_LEVEL = 48  # bits of a qgroup's id below its level
_LAST = 2**64 - 1
_KEY = struct.Struct("=7Q4I4Q")
_SIZE = struct.Struct("=Q")
_HEADER = struct.Struct("=QQQII")
_REF = struct.Struct("<QQH")
_USAGE = struct.Struct("<8xQ8xQ8x")
_LIMITS = struct.Struct("<Q32x")
_LOOKUP = struct.Struct("=QQ")
_DEVICE = struct.Struct("=Q16x")
_DEVICE_BYTES = struct.Struct("=24x2Q")
_DEVICE_SIZE = 4096
_RESCAN = struct.Struct("=Q")
_RUNNING = 1  # of a rescan's flags
_KEPT_FREE = 1 << 20  # bytes at a device's start that the kernel allocates to nothing
# copies of each block by profile, and whether each needs a device of its own; those with parity are taken for mirrors
_PROFILES = {
    "single": (1, False),
    "raid0": (1, False),
    "dup": (2, False),
    "raid1": (2, True),
    "raid10": (2, True),
    "raid5": (2, True),
    "raid1c3": (3, True),
    "raid6": (3, True),
    "raid1c4": (4, True),
}
_COUNT_AT, _ITEMS_AT = 64, 112
_MOST = 4096  # items of one search
_ANSWER = 65536  # bytes of one search's answer
_LOOKUP_SIZE = 4096
_DIGITS = 20  # of a u64; a float cannot hold what has hundreds, nor int() read thousands


class Quota(NamedTuple):
    """Of some qgroups, by the names of their directories: what was last committed of them, and which have a limit.

    `usage` is referenced and exclusive bytes. `following` is the type and the id to go on from, None when there are no
    more.
    """

    usage: dict[str, tuple[int, int]]
    limited: set[str]
    following: tuple[int, int] | None


class Link(NamedTuple):
    """Where a subvolume hangs: its name, in the directory (an inode number) of the subvolume `parent`."""

    subvolume: int
    parent: int
    directory: int
    name: bytes


def parse_table(text: bytes) -> dict[str, int]:
    """Return lines of `name number` (commit_stats, error_stats); lines of another shape are passed."""
    found = {}
    for line in text.splitlines():
        name, _, number = line.partition(b" ")
        if number.isdigit() and len(number) <= _DIGITS and name.isascii():
            found[name.decode()] = int(number)
    return found


def parse_qgroup(name: str) -> str | None:
    """Return `0/256` for the directory `0_256`; None if it is no qgroup."""
    level, slash, number = name.partition("_")
    is_one = slash and level.isascii() and level.isdigit() and number.isascii() and number.isdigit()
    return f"{level}/{number}" if is_one else None


def links_request(first: int = FIRST_SUBVOLUME) -> bytes:
    """Return a search for the back references of all subvolumes from the id `first` on."""
    key = _KEY.pack(_ROOT_TREE, first, _LAST - 255, 0, _LAST, 0, _LAST, _ROOT_BACKREF, _ROOT_BACKREF, _MOST, *[0] * 5)
    return key + _SIZE.pack(_ANSWER) + bytes(_ANSWER)


def parse_links(answer: bytes) -> tuple[list[Link], int | None]:
    """Return the links of one answer, and the id to go on from; None when there are no more. A cut answer ends early.

    An item is header (transaction, object, offset, type, length), then directory, sequence, length of the name, name.
    """
    links: list[Link] = []
    last = None
    for subvolume, parent, kind, item in _items(answer):
        last = subvolume
        if kind != _ROOT_BACKREF or len(item) < _REF.size:
            continue
        directory, _, size = _REF.unpack_from(item)
        name = item[_REF.size : _REF.size + size]
        if name and len(name) == size:
            links.append(Link(subvolume, parent, directory, name))
    return links, last + 1 if last is not None and last < _LAST - 256 else None


def quota_request(kind: int = _INFO, first: int = 0) -> bytes:
    """Return a search for what is committed of the qgroups, from an item's type and its qgroup's id on."""
    key = _KEY.pack(QUOTA_TREE, 0, 0, first, _LAST, 0, _LAST, kind, _LIMIT, _MOST, *[0] * 5)
    return key + _SIZE.pack(_ANSWER) + bytes(_ANSWER)


def parse_quota(answer: bytes) -> Quota:
    """Return the qgroups of one answer. A cut answer ends early.

    An item of usage is generation, referenced, compressed, exclusive, compressed; one of limits begins with its flags.
    """
    quota = Quota({}, set(), None)
    following = None
    for _, number, kind, item in _items(answer):
        following = (kind, number + 1) if number < _LAST else (kind + 1, 0)
        name = f"{number >> _LEVEL}_{number & (1 << _LEVEL) - 1}"
        if kind == _INFO and len(item) == _USAGE.size:
            quota.usage[name] = _USAGE.unpack(item)
        elif kind == _LIMIT and len(item) == _LIMITS.size and _LIMITS.unpack(item)[0]:
            quota.limited.add(name)
    is_last = following is None or following[0] > _LIMIT
    return quota._replace(following=None if is_last else following)


def _items(answer: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield the object, the offset, the type and the bytes of each item of a search's answer."""
    if len(answer) < _ITEMS_AT:
        return
    (count,) = struct.unpack_from("=I", answer, _COUNT_AT)
    place, last = _ITEMS_AT, len(answer) - _HEADER.size
    header, size = _HEADER.unpack_from, _HEADER.size
    for _ in range(count):
        if place > last:
            return
        _, subject, offset, kind, length = header(answer, place)
        begin = place + size
        place = begin + length
        yield subject, offset, kind, answer[begin:place]


def directory_request(tree: int, directory: int) -> bytes:
    """Return a question for the path of a directory inside the subvolume `tree`."""
    return _LOOKUP.pack(tree, directory).ljust(_LOOKUP_SIZE, b"\0")


def parse_directory(answer: bytes) -> bytes:
    """Return the path that was asked for, such as `a/b/`, empty for the subvolume's root."""
    return answer[_LOOKUP.size :].partition(b"\0")[0]


def device_request(devid: int) -> bytes:
    """Return a question for the size of one device of the filesystem."""
    return _DEVICE.pack(devid).ljust(_DEVICE_SIZE, b"\0")


def parse_device(answer: bytes) -> int:
    """Return the bytes of a device that belong to no block group: its size as btrfs knows it less what is allocated.

    The filesystem may be smaller than the block device is. Raises ValueError if the answer is cut.
    """
    if len(answer) < _DEVICE_SIZE:
        raise ValueError("the answer about a device is cut")
    allocated, size = _DEVICE_BYTES.unpack_from(answer)
    return max(0, int(size) - int(allocated))


def parse_rescan(answer: bytes) -> bool:
    """Return whether a rescan of the qgroups is running. Raises ValueError if the answer is cut."""
    if len(answer) < _RESCAN.size:
        raise ValueError("the answer about a rescan is cut")
    (flags,) = _RESCAN.unpack_from(answer)
    return bool(flags & _RUNNING)


def allocatable(unallocated: Sequence[int], profile: str) -> int | None:
    """Return the most bytes that block groups of a profile can still get; None for a profile that we do not know.

    `unallocated` is by device. Copies that need devices of their own stop where too few devices have room left.
    """
    if profile not in _PROFILES:
        return None
    copies, is_apart = _PROFILES[profile]
    free = sorted((max(0, each - _KEPT_FREE) for each in unallocated), reverse=True)
    if not is_apart:
        return sum(free) // copies
    # the largest device may be larger than all others can mirror: then it counts for one copy of each block only
    return min(sum(free[alone:]) // (copies - alone) for alone in range(copies))


def subvolume_paths(links: Iterable[Link], directories: Mapping[tuple[int, int], bytes]) -> dict[int, bytes]:
    """Return each subvolume's path from the top level; without those whose way is unknown or goes in a circle.

    `directories` has the paths inside their subvolume of those (parent, directory) that are not its root.
    """
    by_id = {link.subvolume: link for link in links}
    paths: dict[int, bytes] = {TOP_LEVEL: b""}
    for subvolume in by_id:
        way: list[Link] = []
        seen = set()
        at = subvolume
        while at not in paths and at in by_id and at not in seen:
            seen.add(at)
            way.append(by_id[at])
            at = by_id[at].parent
        if at not in paths:
            continue
        for link in reversed(way):
            inside = b"" if link.directory == FIRST_SUBVOLUME else directories.get((link.parent, link.directory))
            if inside is None:
                break
            base = paths[link.parent]
            paths[link.subvolume] = (base + b"/" if base else b"") + inside + link.name
    return paths
