"""Files on a filesystem, so many that its inodes are used to a wanted ratio."""

from __future__ import annotations

import os
from pathlib import Path


class Inodes:
    """Empty files in a directory of their own."""

    def __init__(self, mount: Path) -> None:
        self._directory = mount / "files"
        self._directory.mkdir()
        self._mount = mount
        self._count = 0

    def fill(self, ratio: float) -> None:
        """Make or remove files until the ratio is reached."""
        space = os.statvfs(self._mount)
        used_by_others = space.f_files - space.f_ffree - self._count
        wanted = round(space.f_files * ratio) - used_by_others
        while self._count < wanted:
            (self._directory / str(self._count)).touch()
            self._count += 1
        while self._count > wanted:
            self._count -= 1
            (self._directory / str(self._count)).unlink()
