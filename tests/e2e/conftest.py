"""What end-to-end tests share: a small real filesystem, and the refusal to skip in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

TOOLS = ("prometheus", "prometheus-alertmanager", "mkfs.ext4", "losetup")


@pytest.fixture(autouse=True)
def tools() -> None:
    """Skip with the reason where something is missing; in CI that is a failure."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    reason = f"not found: {', '.join(missing)}" if missing else "" if os.geteuid() == 0 else "needs root"
    if reason and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 64 MiB with about a thousand inodes, on a loop device of its own."""
    image, mount = tmp_path / "ext4.img", tmp_path / "ext4"
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-N", "1024", str(image)], check=True)
    command = ["losetup", "--find", "--show", str(image)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        subprocess.run(["mount", device, str(mount)], check=True)
        try:
            yield mount
        finally:
            subprocess.run(["umount", str(mount)], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
