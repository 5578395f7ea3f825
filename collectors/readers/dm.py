"""What device mapper answers about thin pools, and LVM's configuration for them.

Sources: include/uapi/linux/dm-ioctl.h; drivers/md/dm-thin.c (pool_status, thin_status); the kernel's
thin-provisioning.rst; lvm.conf(5); thin_metadata_size of thin-provisioning-tools.

A status is asked with NOFLUSH always: without it the kernel commits the pool's metadata first.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

LIST_DEVICES, TABLE_STATUS = 0xC138FD02, 0xC138FD0C
SUSPENDED, WANTS_TABLE, BUFFER_FULL, NOFLUSH = 1 << 1, 1 << 4, 1 << 8, 1 << 11  # flags of dm_ioctl
SECTOR = 512
METADATA_BLOCK = 4096
MOST_METADATA_BLOCKS = 255 * ((1 << 14) - 64)  # more are not used by the kernel

_HEAD = struct.Struct("=3I3IiIIIQ128s129s7s")  # struct dm_ioctl, 312 bytes
_LONGEST_NAME = 127  # DM_NAME_LEN without its NUL
_DEVICE = struct.Struct("=QI")
_TARGET = struct.Struct("=QQiI16s")
_ENTRIES_PER_LEAF = 126  # half of the 252 entries of 16 bytes that a node of 4 KiB has: leaves are at least half full
_TOKEN = re.compile(rb"#[^\n]*|\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'|[{}\[\],=]|[^\s{}\[\],=\"'#]+")
_DEPTH = 16  # sections in sections: a bound
_MODES = ("rw", "ro", "out_of_data_space")
_NO_SPACE = {"queue_if_no_space": "queue", "error_if_no_space": "error"}


class Device(NamedTuple):
    """A mapped device: its name, and its number as `major:minor`."""

    name: str
    number: str


class Target(NamedTuple):
    """One target of a device: its type such as `thin-pool`, its length in sectors, its status or table line."""

    kind: str
    sectors: int
    text: str


class PoolStatus(NamedTuple):
    """A thin pool's status in blocks; `low_water` is of metadata. None is what the kernel did not say."""

    mode: str
    transaction: int | None = None
    metadata_used: int | None = None
    metadata_total: int | None = None
    data_used: int | None = None
    data_total: int | None = None
    held_root: int | None = None
    no_space: str | None = None
    needs_check: bool | None = None
    low_water: int | None = None


class PoolTable(NamedTuple):
    """A thin pool's table: its two devices as `major:minor`, its block size in sectors, low_water in blocks."""

    metadata: str
    data: str
    block: int
    low_water: int


def request(name: str = "", flags: int = 0, size: int = 16384) -> bytes:
    """Return a dm_ioctl in a buffer of `size` bytes, about the device `name` if any. Raises ValueError if too long."""
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) > _LONGEST_NAME:
        raise ValueError(f"{name!r}: longer than a name of device mapper can be")
    head = _HEAD.pack(4, 0, 0, size, _HEAD.size, 0, 0, flags, 0, 0, 0, encoded, b"", b"")
    return head.ljust(size, b"\0")


def flags_of(answer: bytes) -> int:
    """Return the flags of an answer; with BUFFER_FULL it is to be asked again with a larger buffer."""
    return int(_HEAD.unpack_from(answer)[7]) if len(answer) >= _HEAD.size else 0


def _data(answer: bytes) -> tuple[bytes, int]:
    if len(answer) < _HEAD.size:
        return b"", 0
    _, _, _, size, start, count, *_ = _HEAD.unpack_from(answer)
    return (answer[start:size] if _HEAD.size <= start <= size else b""), count


def parse_devices(answer: bytes) -> list[Device]:
    """Return the devices of an answer to LIST_DEVICES; a cut answer ends early."""
    data, _ = _data(answer)
    devices, at = [], 0
    while at + _DEVICE.size <= len(data):
        number, following = _DEVICE.unpack_from(data, at)
        if number == 0:
            break
        name = data[at + _DEVICE.size :].partition(b"\0")[0]
        major, minor = number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00
        if 0 < len(name) <= _LONGEST_NAME:  # nobody can ask for another one
            devices.append(Device(name.decode("utf-8", "surrogateescape"), f"{major}:{minor}"))
        if following < _DEVICE.size:
            break
        at += following
    return devices


def parse_targets(answer: bytes) -> list[Target]:
    """Return the targets of an answer to TABLE_STATUS; a cut answer ends early."""
    data, count = _data(answer)
    targets, at = [], 0
    for _ in range(count):
        if at + _TARGET.size > len(data):
            break
        _, sectors, _, following, kind = _TARGET.unpack_from(data, at)
        text = data[at + _TARGET.size :].partition(b"\0")[0]
        name = kind.partition(b"\0")[0]
        targets.append(Target(name.decode("ascii", "replace"), sectors, text.decode("utf-8", "replace")))
        if following <= at:  # counted from the first target, not from this one
            break
        at = following
    return targets


def parse_pool_status(text: str) -> PoolStatus | None:
    """Return a pool's status; None if it is not understood. `Fail` and `Error` are modes without numbers."""
    words = text.split()
    if words in (["Fail"], ["Error"]):
        return PoolStatus(words[0].lower())
    if len(words) < 5 or not _is_number(words[0]):  # noqa: PLR2004
        return None
    metadata, data = _fraction(words[1]), _fraction(words[2])
    mode = next((word for word in words[4:] if word in _MODES), None)
    if metadata is None or data is None or mode is None:
        return None
    rest = words[4:]
    no_space = next((_NO_SPACE[word] for word in rest if word in _NO_SPACE), None)
    needs_check = low_water = None
    policies = [place for place, word in enumerate(rest) if word in _NO_SPACE]
    if policies:
        after = rest[policies[-1] + 1 :]
        if after and after[0] in ("needs_check", "-"):  # since Linux 4.1
            needs_check = after[0] == "needs_check"
            low_water = int(after[1]) if len(after) > 1 and _is_number(after[1]) else None  # since 4.20
    held = int(words[3]) if _is_number(words[3]) else None
    return PoolStatus(mode, int(words[0]), *metadata, *data, held, no_space, needs_check, low_water)


def parse_thin_status(text: str) -> int | None:
    """Return the mapped sectors of a thin device; None if it does not say."""
    first, _, _ = text.partition(" ")
    return int(first) if _is_number(first) else None


def parse_pool_table(text: str) -> PoolTable | None:
    """Return a pool's table; None if it is not understood."""
    words = text.split()
    if len(words) < 4 or not all(map(_is_number, words[2:4])) or not all(map(_is_device, words[:2])):  # noqa: PLR2004
        return None
    return PoolTable(words[0], words[1], int(words[2]), int(words[3])) if int(words[2]) else None


def parse_thin_table(text: str) -> str | None:
    """Return a thin device's pool as `major:minor`; None if it is not understood."""
    first, _, _ = text.partition(" ")
    return first if _is_device(first) else None


def recommended_metadata_bytes(data_blocks: int, thins: int) -> int:
    """Return the size that thin_metadata_size recommends for a pool of `data_blocks` with `thins` devices."""
    blocks = 1 + -(-data_blocks // _ENTRIES_PER_LEAF) + thins
    return min(blocks, MOST_METADATA_BLOCKS) * METADATA_BLOCK


def split_lvm_name(name: str) -> tuple[str, str, str] | None:
    """Return volume group, logical volume and layer (such as `tpool`) of a name that LVM gave, with `-` doubled."""
    parts = [part.replace("--", "-") for part in re.split(r"(?<!-)-(?=(?:--)*[^-])", name)]
    match parts:
        case [group, volume]:
            return group, volume, ""
        case [group, volume, layer]:
            return group, volume, layer
    return None


def parse_lvm_config(text: bytes) -> dict[str, str]:
    """Return the settings of a text in LVM's form by their ways, such as `activation/monitoring`; lists are left out.

    Both lvm.conf and the backups of volume groups have this form. What is not understood is passed.
    """
    found: dict[str, str] = {}
    way: list[str] = []
    last, words = "", _words(text)
    for word in words:
        if word == "{":
            if len(way) < _DEPTH:
                way.append(last)
        elif word == "}":
            way = way[:-1]
        elif word == "=":
            value = next(words, "")
            if value == "[":
                for each in words:
                    if each == "]":
                        break
            else:
                found["/".join([*way, last])] = value.strip("\"'")
        else:
            last = word
    return found


def autoextend(settings: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Return threshold and amount in percent, as far as these settings say them."""

    def percent(name: str) -> int | None:
        value = settings.get(f"activation/thin_pool_autoextend_{name}", "")
        return int(value) if _is_number(value) else None

    return percent("threshold"), percent("percent")


def _words(text: bytes) -> Iterator[str]:
    for match in _TOKEN.finditer(text):
        word = match[0].decode("utf-8", "replace")
        if not word.startswith("#"):
            yield word


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 20  # noqa: PLR2004  as a u64 is


def _is_device(word: str) -> bool:
    major, colon, minor = word.partition(":")
    return bool(colon) and _is_number(major) and _is_number(minor)


def _fraction(word: str) -> tuple[int, int] | None:
    used, slash, total = word.partition("/")
    return (int(used), int(total)) if slash and _is_number(used) and _is_number(total) else None
