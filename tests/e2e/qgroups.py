"""Subvolumes of a btrfs with a limit, filled to a wanted part of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

PERCENT = 1 << 20  # of a limit of 100 MiB


def enable(mount: Path) -> None:
    """Switch quota on."""
    subprocess.run(["btrfs", "quota", "enable", str(mount)], check=True, stdout=subprocess.DEVNULL)


class Subvolume:
    """A subvolume with a limit of 100 MiB of referenced or exclusive bytes, filled to a wanted part of it."""

    def __init__(self, mount: Path, name: str, *, is_exclusive: bool = False) -> None:
        self._mount = mount
        self._path = mount / name
        for words in (
            ("subvolume", "create", str(self._path)),
            ("qgroup", "limit", *(["-e"] if is_exclusive else []), str(100 * PERCENT), str(self._path)),
        ):
            subprocess.run(["btrfs", *words], check=True, stdout=subprocess.DEVNULL)
        self._count = 0

    def fill(self, percent: int) -> None:
        while self._count < percent:
            (self._path / str(self._count)).write_bytes(os.urandom(PERCENT))
            self._count += 1
        while self._count > percent:
            self._count -= 1
            (self._path / str(self._count)).unlink()
        subprocess.run(["btrfs", "filesystem", "sync", str(self._mount)], check=True)
