"""What /proc/PID says of descriptors: the kernel's own output, and what a container might make of it."""

from __future__ import annotations

import pytest

from collectors.readers import procfs
from collectors.readers.cgroup import parse_membership

FDINFO = b"""\
pos:\t0
flags:\t02000000
mnt_id:\t17
ino:\t1038
inotify wd:7 ino:d6c3 sdev:15 mask:fff ignored_mask:0 fhandle-bytes:c fhandle-type:81 f_handle:c3d600000000000000000000
inotify wd:6 ino:3f7e8 sdev:fe00000 mask:fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:e8f70300
inotify wd:4 ino:101 sdev:27 mask:fff ignored_mask:0
inotify wd:3 ino:103 sdev:27 mask:fff ignored_mask:0 fhandle-bytes:14 fhandle-type:4d f_handle:0301
inotify wd:1 ino:f sdev:700002 mask:fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:0f000000235a5dbd
"""


def watches(*parts: bytes) -> procfs.Watches:
    found = procfs.Watches({procfs.watched_inode("254:0", 0x3F7E8): "/layers", b"ino:1": "/other"})
    for part in parts:
        found.feed(part)
    return found


def test_watches_are_counted_by_the_device_as_mountinfo_names_it() -> None:
    assert watches(FDINFO).by_device == {"0:21": 1, "254:0": 1, "0:39": 2, "7:2": 1}


@pytest.mark.parametrize("size", [1, 7, 64, 100])
def test_parts_of_any_size_give_the_same(size: int) -> None:
    parts = watches(*(FDINFO[start : start + size] for start in range(0, len(FDINFO), size)))
    assert parts.by_device == watches(FDINFO).by_device
    assert parts.digest == watches(FDINFO).digest
    assert parts.on_marked == {"/layers": 1}


def test_a_line_that_is_cut_or_senseless_is_no_watch() -> None:
    senseless = (
        b"inotify wd:zz ino:f sdev:1 mask:1\ninotify wd:1 ino:f\ninotify wd:1 ino:f sdev:fffffffffffffffffff x\n"
    )
    assert watches(senseless, b"inotify wd:1 ino:f sdev:700002 mask").by_device == {}


@pytest.mark.parametrize(
    ("link", "is_it"),
    [
        ("/var/log/app.log (deleted)", True),
        ("/memfd:held (deleted)", False),
        ("/SYSV00000000 (deleted)", False),
        ("/dev/zero (deleted)", False),
        ("/[aio] (deleted)", False),
        ("/var/log/app.log", False),
        ("socket:[123]", False),
        ("anon_inode:[eventpoll]", False),
    ],
)
def test_files_in_memory_are_told_by_the_kernels_own_names(link: str, *, is_it: bool) -> None:
    assert procfs.is_deleted_file(link) is is_it


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"pos:\t0\nflags:\t0100000\nmnt_id:\t27\nino:\t5\n", procfs.Descriptor(27, is_writable=False)),
        (b"pos:\t0\nflags:\t02100001\nmnt_id:\t27\n", procfs.Descriptor(27, is_writable=True)),
        (b"pos:\t0\nflags:\t02100002\nmnt_id:\t27\n", procfs.Descriptor(27, is_writable=True)),
        (b"pos:\t0\nflags:\t0100000\n", None),
        (b"", None),
        (b"flags:\t9\nmnt_id:\t-1\n", None),
    ],
)
def test_fdinfo_tells_the_mount_and_the_way_of_opening(text: bytes, expected: procfs.Descriptor | None) -> None:
    assert procfs.parse_fdinfo(text) == expected


def test_the_effective_user_is_the_second_one() -> None:
    assert procfs.parse_user(b"Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t1\t1\t1\t1\n") == 0
    assert procfs.parse_user(b"Name:\tUid:\t5\n") is None


def test_threads_of_the_kernel_have_no_memory() -> None:
    assert procfs.has_memory(b"Name:\tx\nVmPeak:\t 1 kB\nVmSize:\t   50108 kB\n")
    assert not procfs.has_memory(b"Name:\tkthreadd\nKthread:\t1\n")


def test_a_namespace_is_its_number() -> None:
    assert procfs.parse_namespace("user:[4026531837]") == "4026531837"
    assert procfs.parse_namespace("user:[x]") is None


def test_a_process_is_in_the_memory_controllers_cgroup_or_in_that_of_version_2() -> None:
    assert parse_membership(b"0::/system.slice/docker.service\n") == "/system.slice/docker.service"
    assert parse_membership(b"5:cpu:/a\n4:memory,x:/docker/1:2\n0::/b\n") == "/docker/1:2"
    assert parse_membership(b"5:name=memory:/a\n4:memory_x:/b\n3:x,memory:/c\n") == "/c"
    assert parse_membership(b"0::/a\r4:memory:/b\x85\x1c4:memory:/c\n") == "/a\r4:memory:/b\udc85\x1c4:memory:/c"
    assert parse_membership(b"") == "/"


@pytest.mark.parametrize("end", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_no_name_of_a_cgroup_forges_another_one(end: str) -> None:
    forged = f"/docker/mine/x{end}4:memory:/docker/victim"
    assert parse_membership(f"4:memory:{forged}\n".encode()) == forged
