"""Every test below runs in the guest; so do its fixtures."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.guest.pools import run
from tests.vm.guest.zpool import Pool

_CGROUPS = Path("/sys/fs/cgroup")
_END_SECONDS = 10.0


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.get_closest_marker("vm") is None:
        item.add_marker("vm")


@pytest.fixture
def cgroup(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A cgroup v2 of the test's own, with every controller its root has. What runs in it ends with the test."""
    controllers = (_CGROUPS / "cgroup.controllers").read_text().split()
    (_CGROUPS / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))
    group = _CGROUPS / f"test-{request.node.name[:100]}"
    group.mkdir()
    yield group
    (group / "cgroup.kill").write_text("1")
    until = time.monotonic() + _END_SECONDS
    while "populated 1" in (group / "cgroup.events").read_text() and time.monotonic() < until:
        time.sleep(0.01)
    for directory, _, _ in os.walk(group, topdown=False):
        os.rmdir(directory)


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="u-") as made:
        yield Path(made)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real ext4 on the third disk: the guest's own root is in memory, and runtimes refuse it."""
    run("mkfs.ext4", "-q", "-F", "/dev/vdc")
    mount = tmp_path / "disk"
    mount.mkdir()
    run("mount", "/dev/vdc", str(mount))
    yield mount
    run("umount", str(mount))


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of the test's own on a part of /dev/vda, for modules marked `vm(zfs=True)`."""
    pool = Pool("/dev/vda")
    yield pool
    pool.destroy()
