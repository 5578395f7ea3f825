"""What end-to-end tests share: a small real filesystem, and the refusal to skip in CI."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.loops import mounted
from tests.refusal import refuse

TOOLS = ("prometheus", "prometheus-alertmanager", "mkfs.ext4", "mkfs.btrfs", "btrfs", "losetup")


@pytest.fixture(autouse=True)
def tools() -> None:
    """Skip with the reason where something is missing; in CI that is a failure."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    reason = f"not found: {', '.join(missing)}" if missing else "" if os.geteuid() == 0 else "needs root"
    if reason:
        refuse(reason)


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 64 MiB with about a thousand inodes, on a loop device of its own."""
    with mounted(tmp_path / "ext4", 64, "mkfs.ext4", "-q", "-F", "-N", "1024") as mount:
        yield mount


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    """A btrfs of 400 MiB on a loop device of its own."""
    with mounted(tmp_path / "btrfs", 400, "mkfs.btrfs", "-q") as mount:
        yield mount
