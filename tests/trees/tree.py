"""A directory tree as a host: where its /proc, /sys and root are, and what its mounts answer.

`@ROOT@` in a tree's proc/*/mountinfo stands for where the tree lies, as a container has the host below /host.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.errors import Failed, HostError, Stuck, Vanished, from_os
from agent.host import Host, Points, Space
from collectors.readers import ata, nvme
from collectors.readers.btrfs import DEV_INFO, INO_LOOKUP, QUOTA_TREE, RESCAN_STATUS, TREE_SEARCH_V2
from collectors.readers.dm import BUFFER_FULL, LIST_DEVICES, NOFLUSH, WANTS_TABLE, flags_of


def host_of(tree: Path, workplace: Path) -> Host:
    """Return the host that a copy of the tree in `workplace` is."""
    copy = workplace / tree.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(tree, copy, symlinks=True)
    for table in copy.glob("proc/*/mountinfo"):
        table.write_bytes(table.read_bytes().replace(b"@ROOT@", os.fsencode(copy)))
    prober, ioctls, commands = TreeProber(copy), TreeIoctls(copy), TreeCommands(copy)
    return Host(f"{copy}/proc", f"{copy}/sys", str(copy), f"{copy}/dev", prober, ioctls=ioctls, commands=commands)


class TreeProber:
    """Answers from `statvfs.json`, by path with the ten numbers of statvfs, or what went wrong.

    `{"/data": [4096, 4096, ...]}` is an answer; `"stuck"`, or an errno such as `"EACCES"`, is a refusal.

    `{"statvfs": [...], "stat": "EIO"}` is a mount that answers statvfs, but not stat.

    Answers for single files from `inodes.json`, with the five numbers of an Inode.
    """

    def __init__(self, tree: Path) -> None:
        self._prefix = len(str(tree))
        mounts, inodes = tree / "statvfs.json", tree / "inodes.json"
        self._answers = json.loads(mounts.read_text()) if mounts.exists() else {}
        self._inodes = json.loads(inodes.read_text()) if inodes.exists() else {}

    def measure(self, points: Points) -> list[Space | HostError]:
        """Return the answers of the file."""
        return [self._answer(path, request) for path, request in zip(points.paths, points.requests, strict=True)]

    def _answer(self, path: str, request: bytes) -> Space | HostError:
        answers = self._inodes if request[:1] in (b"i", b"l") else self._answers
        answer, refused = answers.get(path[self._prefix :] or "/"), 0
        if isinstance(answer, dict):
            refused = getattr(errno, answer["stat"]) if request.startswith(b"s") else 0
            answer = answer["statvfs"]
        if answer is None:
            return Vanished(path)
        if answer == "stuck":
            return Stuck(path, "does not answer")
        if isinstance(answer, str):
            number = getattr(errno, answer)
            return from_os(path, OSError(number, os.strerror(number)))
        return Space(refused, *answer, *[0] * (len(Space._fields) - 1 - len(answer)))

    def close(self) -> None:
        """Nothing is open."""


class TreeIoctls:
    """Answers a search for subvolumes from `subvolumes.json`: a list of id, parent, directory, name.

    `btrfs.json` has each device's size and what of it is allocated, by device id; whether a rescan is running; and the
    paths of directories by `subvolume/inode`.

    Answers device mapper from `dm.json`: by name the device's number, its `table` and its `status`, both a target's
    type and its text; `"stuck"` or an errno such as `"EACCES"` instead of them is a refusal, instead of all of it one
    of the list.

    Answers for drives from `drives/`: a log page of an NVMe controller, `nvme0-c0.bin`; the data of a SATA disk's
    commands, `sda-identify.bin` and `sda-smart.bin`, and its power mode, `sda-power.bin`.
    """

    def __init__(self, tree: Path) -> None:
        self._tree = tree

    def _load(self, name: str) -> Any:
        path = self._tree / name
        return json.loads(path.read_text()) if path.exists() else None

    def ask(self, path: str, number: int, buffer: bytes, subject: str, pointers: Mapping[int, int]) -> bytes:  # noqa: ARG002  answers go by the number
        """Return the answer of a file, as long as the kernel's would be."""
        return self._answer(path, number, buffer, subject).ljust(len(buffer), b"\0")[: len(buffer)]

    def _answer(self, path: str, number: int, buffer: bytes, subject: str) -> bytes:
        if number == TREE_SEARCH_V2 and (links := self._load("subvolumes.json")) is not None:
            is_quota = struct.unpack_from("=Q", buffer)[0] == QUOTA_TREE
            return _quota(self._tree / f"sys/fs/btrfs/{subject}/qgroups", buffer) if is_quota else _links(links, buffer)
        found = self._load("btrfs.json")
        if found is not None and (answer := _btrfs(found, number, buffer)) is not None:
            return answer
        if number == nvme.ADMIN_COMMAND:
            page = struct.unpack_from("=I", buffer, 40)[0] & 0xFF
            return buffer[:72] + self._page(f"{os.path.basename(path)}-{page:02x}", subject)
        if number == ata.SG_IO:
            return self._sata(os.path.basename(path), buffer, subject)
        devices = self._load("dm.json")
        if devices is None or not path.endswith("/mapper/control"):
            raise Failed(subject, f"no answer in the tree for {number:#x} on {path}")
        if isinstance(devices, str):
            raise _refusal(subject, devices)
        if number == LIST_DEVICES:
            return _fitting(buffer, _devices(devices), 0)
        name = buffer[48:176].partition(b"\0")[0].decode()
        flags = flags_of(buffer)
        assert flags & NOFLUSH, "a status without NOFLUSH commits"
        if name not in devices:
            raise _refusal(subject, "ENXIO")
        answer = devices[name]["table" if flags & WANTS_TABLE else "status"]
        if isinstance(answer, str):
            raise _refusal(subject, answer)
        kind, text = answer
        body = text.encode() + b"\0"
        return _fitting(buffer, struct.pack("=QQiI16s", 0, 2048, 0, 40 + len(body), kind.encode()) + body, 1)

    def _page(self, name: str, subject: str) -> bytes:
        path = self._tree / "drives" / f"{name}.bin"
        if not path.is_file():
            raise Failed(subject, "the ioctl returned 0x4002")
        return path.read_bytes()

    def _sata(self, disk: str, buffer: bytes, subject: str) -> bytes:
        command = buffer[88 + 14]
        if command == 0xE5:
            sense = bytearray(32)
            sense[0], sense[8], sense[13:14] = 0x72, 0x09, self._page(f"{disk}-power", subject)[:1]
            return buffer[:64] + bytes([2]) + buffer[65:104] + bytes(sense) + buffer[136:]
        return buffer[:136] + self._page(f"{disk}-{'identify' if command == 0xEC else 'smart'}", subject)

    def close(self) -> None:
        """Nothing is open."""


class TreeCommands:
    """Answers from `commands.json`: exit code and output by the command's words; what is not there is not installed."""

    def __init__(self, tree: Path) -> None:
        path = tree / "commands.json"
        self._answers = json.loads(path.read_text()) if path.exists() else {}

    def run(self, root: str, argv: Sequence[str], deadline: float, subject: str) -> tuple[int, bytes]:  # noqa: ARG002
        """Return the answer of the file."""
        answer = self._answers.get(" ".join(argv))
        if answer is None:
            raise Vanished(subject, f"{argv[0]} is not to be had on the host")
        if isinstance(answer, str):
            raise _refusal(subject, answer)
        return answer[0], answer[1].encode()

    def close(self) -> None:
        """Nothing runs."""


def _refusal(subject: str, answer: str) -> HostError:
    if answer == "stuck":
        return Stuck(subject, "does not answer")
    number = getattr(errno, answer)
    return from_os(subject, OSError(number, os.strerror(number)))


def _links(links: list[tuple[int, int, int, str]], request: bytes) -> bytes:
    (first,) = struct.unpack_from("=Q", request, 8)
    links = [link for link in links if link[0] >= first]
    items = b"".join(
        struct.pack("=QQQII", 9, subvolume, parent, 144, 18 + len(name))
        + struct.pack("<QQH", directory, 2, len(name))
        + name.encode()
        for subvolume, parent, directory, name in links
    )
    return bytes(64) + struct.pack("=I", len(links)) + bytes(44) + items


def _quota(qgroups: Path, request: bytes) -> bytes:
    """Return what the quota tree has of the qgroups that sysfs shows."""
    first = struct.unpack_from("=I", request, 56)[0], struct.unpack_from("=Q", request, 24)[0]
    items: dict[tuple[int, int], bytes] = {}
    for place in qgroups.glob("[0-9]*_[0-9]*"):
        level, number = map(int, place.name.split("_"))
        names = "limit_flags", "referenced", "exclusive"
        with contextlib.suppress(OSError, ValueError, struct.error):  # as damaged as a test makes them
            flags, referenced, exclusive = (int((place / name).read_text()) for name in names)
            items[242, level << 48 | number] = struct.pack("<5Q", 9, referenced, 0, exclusive, 0)
            items[244, level << 48 | number] = struct.pack("<5Q", flags, 0, 0, 0, 0)
    found = [(key, item) for key, item in sorted(items.items()) if key >= first]
    body = b"".join(struct.pack("=QQQII", 9, 0, key[1], key[0], len(item)) + item for key, item in found)
    return bytes(64) + struct.pack("=I", len(found)) + bytes(44) + body


def _btrfs(found: Any, number: int, buffer: bytes) -> bytes | None:
    if number == RESCAN_STATUS:
        return struct.pack("=Q", int(found["is_rescanning"])).ljust(64, b"\0")
    if number == DEV_INFO:
        size, allocated = found["devices"][str(struct.unpack_from("=Q", buffer)[0])]
        return struct.pack("=24xQQ", allocated, size).ljust(4096, b"\0")
    if number == INO_LOOKUP:
        tree, inode = struct.unpack_from("=QQ", buffer)
        directory: str = found["directories"][f"{tree}/{inode}"]
        return (bytes(16) + directory.encode()).ljust(4096, b"\0")
    return None


def _devices(devices: dict[str, Any]) -> bytes:
    data = b""
    for place, (name, device) in enumerate(devices.items(), start=1):
        major, minor = map(int, device["number"].split(":"))
        encoded = name.encode() + b"\0"
        size = 0 if place == len(devices) else 12 + len(encoded)
        data += struct.pack("=QI", major << 8 | minor & 0xFF | (minor & 0xFFF00) << 12, size) + encoded
    return data or bytes(12)


def _fitting(request: bytes, data: bytes, count: int) -> bytes:
    """Return an answer of device mapper as it fits the request's buffer."""
    size = 312 + len(data)
    flags = BUFFER_FULL if size > len(request) else 0
    head = struct.pack("=3I3IiIIIQ", 4, 48, 0, len(request) if flags else size, 312, count, 0, flags, 0, 0, 0)
    return (head.ljust(312, b"\0") + (b"" if flags else data)).ljust(len(request), b"\0")
