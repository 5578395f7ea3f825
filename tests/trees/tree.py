"""A directory tree as a host: where its /proc, /sys and root are, and what its mounts answer.

`@ROOT@` in a tree's proc/*/mountinfo stands for where the tree lies, as a container has the host below /host.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from pathlib import Path

from agent.errors import Failed, HostError, Stuck, Vanished, from_os
from agent.host import Host, Points, Space
from collectors.readers.btrfs import TREE_SEARCH_V2


def host_of(tree: Path, workplace: Path) -> Host:
    """Return the host that a copy of the tree in `workplace` is."""
    copy = workplace / tree.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(tree, copy, symlinks=True)
    for table in copy.glob("proc/*/mountinfo"):
        table.write_bytes(table.read_bytes().replace(b"@ROOT@", os.fsencode(copy)))
    prober, ioctls = TreeProber(copy), TreeIoctls(copy)
    return Host(f"{copy}/proc", f"{copy}/sys", str(copy), f"{copy}/dev", prober, ioctls=ioctls)


class TreeProber:
    """Answers from `statvfs.json`, by path with the ten numbers of statvfs, or what went wrong.

    `{"/data": [4096, 4096, ...]}` is an answer; `"stuck"`, or an errno such as `"EACCES"`, is a refusal.

    `{"statvfs": [...], "stat": "EIO"}` is a mount that answers statvfs, but not stat.
    """

    def __init__(self, tree: Path) -> None:
        self._prefix = len(str(tree))
        path = tree / "statvfs.json"
        self._answers = json.loads(path.read_text()) if path.exists() else {}

    def measure(self, points: Points) -> list[Space | HostError]:
        """Return the answers of the file."""
        return [self._answer(path, request) for path, request in zip(points.paths, points.requests, strict=True)]

    def _answer(self, path: str, request: bytes) -> Space | HostError:
        answer, refused = self._answers.get(path[self._prefix :] or "/"), 0
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
        return Space(refused, *answer)

    def close(self) -> None:
        """Nothing is open."""


class TreeIoctls:
    """Answers a search for subvolumes from `subvolumes.json`: a list of id, parent, directory, name."""

    def __init__(self, tree: Path) -> None:
        path = tree / "subvolumes.json"
        self._links = json.loads(path.read_text()) if path.exists() else None

    def ask(self, path: str, number: int, buffer: bytes, subject: str) -> bytes:
        """Return the answer of the file; `buffer` and `number` say that it is the first search."""
        if self._links is None or number != TREE_SEARCH_V2:
            raise Failed(subject, f"no answer in the tree for {number:#x} on {path}")
        (first,) = struct.unpack_from("=Q", buffer, 8)
        links = [link for link in self._links if link[0] >= first]
        items = b"".join(
            struct.pack("=QQQII", 9, subvolume, parent, 144, 18 + len(name))
            + struct.pack("<QQH", directory, 2, len(name))
            + name.encode()
            for subvolume, parent, directory, name in links
        )
        return bytes(64) + struct.pack("=I", len(links)) + bytes(44) + items

    def close(self) -> None:
        """Nothing is open."""
