"""The paths of a real btrfs' subvolumes, against `btrfs subvolume list`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from agent.host import Host
from agent.ioctl import HelperIoctls
from collectors.readers import btrfs
from tests.real.conftest import Make, run

pytestmark = pytest.mark.root


def paths(host: Host, mount: str) -> dict[int, bytes]:
    """Return all subvolumes' paths, by the same questions in the same order as the kernel wants them."""
    links, first = [], btrfs.FIRST_SUBVOLUME
    while True:
        found, following = btrfs.parse_links(host.ioctl(mount, btrfs.TREE_SEARCH_V2, btrfs.links_request(first)))
        links += found
        if following is None:
            break
        first = following
    below = {(link.parent, link.directory) for link in links if link.directory != btrfs.FIRST_SUBVOLUME}
    directories = {
        each: btrfs.parse_directory(host.ioctl(mount, btrfs.INO_LOOKUP, btrfs.directory_request(*each)))
        for each in below
    }
    return btrfs.subvolume_paths(links, directories)


def test_paths_are_those_of_btrfs_at_every_step(
    filesystem: Make, need: Callable[..., None], stack: contextlib.ExitStack
) -> None:
    need("btrfs")
    mount = filesystem("btrfs", size=300)
    ioctls = HelperIoctls()
    stack.callback(ioctls.close)
    host = Host(ioctls=ioctls)

    def check(count: int) -> None:
        run("btrfs", "filesystem", "sync", str(mount))
        listed = {}
        for line in run("btrfs", "subvolume", "list", str(mount)).splitlines():
            number, _, path = line.partition(" path ")
            listed[int(number.split()[1])] = path.encode()
        assert len(listed) == count
        assert paths(host, str(mount)) == listed | {btrfs.TOP_LEVEL: b""}

    check(0)
    (mount / "a" / "b").mkdir(parents=True)
    for name in ("one", "a/b/deep", "a/b/deep/nested", "with space\tand tab"):
        run("btrfs", "subvolume", "create", str(mount / name))
    check(4)
    run("btrfs", "subvolume", "snapshot", str(mount / "one"), str(mount / "a" / "snapshot"))
    check(5)
    for number in range(900):  # more than one answer of 64 KiB holds
        run("btrfs", "subvolume", "create", str(mount / f"many-{number}-{'x' * 40}"))
    check(905)
    run("btrfs", "subvolume", "delete", str(mount / "one"))
    check(904)
    (mount / "a").rename(mount / "renamed")
    check(904)
