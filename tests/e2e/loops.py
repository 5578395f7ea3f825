"""Filesystems on loop devices of their own, taken down by what they were given."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def mounted(mount: Path, size: int, *make: str) -> Iterator[Path]:
    """Have a filesystem of so many MiB mounted for the time of a block."""
    image = mount.with_suffix(".img")
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(size << 20)
    subprocess.run([*make, str(image)], check=True, stdout=subprocess.DEVNULL)
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
