"""Files on a filesystem, so many that its inodes are used to a wanted ratio."""

from __future__ import annotations

import os
from pathlib import Path


def config(mount: Path, keep_firing_for: str) -> str:
    """Return a configuration for this mount alone, with alerts that do not wait."""
    return f"""
collectors:
  filesystem: {{interval: 1s, mount_points_include: "^{mount}$"}}
watermarks:
  inodes:
    tiers: {{warning: {{for: 1s}}, critical: {{for: 1s}}}}
rules: {{keep_firing_for: {keep_firing_for}}}
"""


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
