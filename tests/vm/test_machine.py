from __future__ import annotations

from tests.vm.machine import parse_mount_points


def test_mount_points_are_read_with_their_odd_characters() -> None:
    mountinfo = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
36 22 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw
37 22 0:41 / /a\\134b rw - tmpfs tmpfs rw
"""

    assert parse_mount_points(mountinfo) == ["/", "/mnt 2", "/a\\b"]
