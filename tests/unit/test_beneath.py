from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from agent import beneath
from agent.beneath import Directories, Inodes
from agent.errors import Failed, Vanished

BOTH = pytest.mark.parametrize("has_openat2", [True, False])


def read(directories: Directories, root: Path, path: bytes) -> tuple[set[bytes], int]:
    inodes = Inodes()
    with directories.root(str(root)) as descriptor:
        opened = directories.open(descriptor, path)
        try:
            names = directories.read(opened, inodes)
        finally:
            os.close(opened)
    return set(names), len(inodes)


@BOTH
def test_directories_are_named_and_all_else_is_counted(tmp_path: Path, *, has_openat2: bool) -> None:
    for name in (b"plain", b"new\nline", b"\xff\xfe", b".hidden", b"..."):
        (tmp_path / os.fsdecode(name)).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("plain")
    os.mkfifo(tmp_path / "fifo")
    os.link(tmp_path / "file", tmp_path / "second name")
    expected = {b"plain", b"new\nline", b"\xff\xfe", b".hidden", b"..."}, 3
    assert read(Directories(has_openat2=has_openat2), tmp_path, b".") == expected


@BOTH
def test_a_directory_of_many_buffers_is_read_to_its_end(tmp_path: Path, *, has_openat2: bool) -> None:
    for number in range(5000):
        (tmp_path / f"a rather long name of a file {number:050}").touch()
    (tmp_path / "directory").mkdir()
    assert read(Directories(has_openat2=has_openat2), tmp_path, b".") == ({b"directory"}, 5000)


@BOTH
@pytest.mark.parametrize("path", [b"link", b"link/below", b"real/../link", b"loop", b"loop/x"])
def test_no_link_is_followed(tmp_path: Path, path: bytes, *, has_openat2: bool) -> None:
    (tmp_path / "real" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=r".*") as refused:
        read(Directories(has_openat2=has_openat2), tmp_path, path)
    assert refused.value.errno in (errno.ELOOP, errno.ENOTDIR, errno.EXDEV)


@BOTH
@pytest.mark.parametrize("path", [b"..", b"a/../..", b"/etc"])
def test_nothing_leads_out(tmp_path: Path, path: bytes, *, has_openat2: bool) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    with pytest.raises(OSError, match=r".*"):
        read(Directories(has_openat2=has_openat2), root, path)


@BOTH
def test_a_way_longer_than_the_kernel_takes_at_once(tmp_path: Path, *, has_openat2: bool) -> None:
    name, place = b"n" * 250, os.open(tmp_path, os.O_RDONLY)
    for _ in range(40):
        os.mkdir(name, dir_fd=place)
        below = os.open(name, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=place))
    os.close(place)
    path = b"/".join([name] * 40)
    assert len(path) > 10_000
    assert read(Directories(has_openat2=has_openat2), tmp_path, path) == (set(), 1)


def test_a_root_that_is_a_link_or_gone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for name, error in (("link", Vanished), ("gone", Vanished)):
        with pytest.raises((error, Failed)), Directories().root(str(tmp_path / name)):
            pytest.fail("it was opened")


def test_nothing_stays_open(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "link").symlink_to("b")
    before = os.listdir("/proc/self/fd")
    for has_openat2 in (True, False):
        directories = Directories(has_openat2=has_openat2)
        for path in (b"a/b", b"a/link", b"a/gone", b"a/b/" + b"x/" * 3000 + b"x"):
            try:
                read(directories, tmp_path, path)
            except OSError:
                continue
    assert os.listdir("/proc/self/fd") == before


def test_inodes_are_each_counted_once_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beneath, "_SEEN_MOST", 100)
    inodes = Inodes()
    for number in range(1000):
        inodes.seen.add(number)
        inodes.seen.add(number // 2)
        if len(inodes.seen) > 100:
            inodes.spill()
    assert len(inodes) == 1000
    assert len(inodes) == 1000
