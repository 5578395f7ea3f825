"""The door to the node: what is no path and no number is refused with an error that is counted."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from agent.errors import Failed, Malformed, Vanished
from agent.host import FILE_LIMIT, Host

LOOKS: list[Callable[[Host, str], object]] = [
    Host.read,
    Host.open,
    Host.names,
    Host.signature,
    Host.exists,
    Host.resolve,
    Host.entries,
    Host.lstat,
    Host.link,
    lambda host, path: host.read_start(path, 1),
    lambda host, path: host.some_names(path, 1),
    lambda host, path: host.links(path, ["x"]),
    lambda host, path: host.inodes([path]),
    lambda host, path: host.ioctl(path, 1, b""),
]


class NoIoctls:
    def ask(self, path: str, number: int, buffer: bytes, subject: str, pointers: Mapping[int, int]) -> bytes:
        raise AssertionError((path, number, buffer, subject, pointers))

    def close(self) -> None:
        pass


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("path", ["/a\0b", "/ü\0b", "/a\ud800b"])
def test_what_no_file_can_be_named_is_refused(look: Callable[[Host, str], object], path: str, tmp_path: Path) -> None:
    host = Host(rootfs=str(tmp_path), ioctls=NoIoctls())
    with pytest.raises(Malformed, match="no file can have such a name"):
        look(host, path)


def test_names_beyond_ascii_and_beyond_utf8_are_paths(tmp_path: Path) -> None:
    host = Host(rootfs=str(tmp_path))
    for name in ("ü", "\udcff"):
        with pytest.raises(Vanished):
            host.read(f"/{name}")
        (tmp_path / name).write_text("here")
        assert host.read(f"/{name}") == b"here"


@pytest.mark.parametrize(("text", "number"), [("0\n", 0), (" 7\n", 7), ("-1\n", -1), (f"{2**64 - 1}\n", 2**64 - 1)])
def test_a_number_is_read(text: str, number: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    assert Host(rootfs=str(tmp_path)).read_int("/file") == number


@pytest.mark.parametrize("text", ["", "\n", "x", "1 2", "1_0", "--1", "+1", "9" * 21, "9" * 400, "9" * 5000])
def test_what_is_no_number_of_the_kernel_is_malformed(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(Malformed, match="expected a number"):
        Host(rootfs=str(tmp_path)).read_int("/file")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "qgroups" / "0_5").mkdir(parents=True)
    for name, text in {"referenced": "16384\n", "exclusive": "0\n", "bad": "16 KiB\n", "empty": ""}.items():
        (tmp_path / "qgroups" / "0_5" / name).write_text(text)
    return Host(sysfs=str(tmp_path))


def test_numbers_of_a_directory_come_in_the_order_of_their_names(host: Host) -> None:
    assert host.read_ints("sys/qgroups/0_5", ("referenced", "exclusive", "referenced")) == [16384, 0, 16384]


def test_a_number_that_is_none_or_absent_is_named(host: Host) -> None:
    with pytest.raises(Malformed, match="sys/qgroups/0_5/bad: expected a number, got b'16 KiB"):
        host.read_ints("sys/qgroups/0_5", ("exclusive", "bad"))
    with pytest.raises(Malformed, match="sys/qgroups/0_5/empty"):
        host.read_ints("sys/qgroups/0_5", ("empty",))
    with pytest.raises(Vanished, match="sys/qgroups/0_5/absent"):
        host.read_ints("sys/qgroups/0_5", ("exclusive", "absent"))
    with pytest.raises(Vanished, match="sys/qgroups/0_6/"):
        host.read_ints("sys/qgroups/0_6", ("exclusive",))


UNLOCK, NUMBER = 0x40045431, 0x80045430  # TIOCSPTLCK and TIOCGPTN of asm-generic/ioctls.h
READS: list[Callable[[Host, str], object]] = [
    Host.read,
    Host.open,
    Host.read_int,
    Host.read_if_there,
    lambda host, path: host.read_start(path, 1),
]


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, make_socket, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("look", READS)
def test_nothing_but_a_file_is_read_where_one_is_expected(
    look: Callable[[Host, str], object], make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "daemon.json")
    with pytest.raises(Failed, match=r"/daemon\.json: is not a regular file"):
        look(Host(rootfs=str(tmp_path)), "/daemon.json")


@pytest.mark.parametrize("look", READS)
def test_a_device_is_not_even_opened(look: Callable[[Host, str], object], tmp_path: Path) -> None:
    """To open one may rewind a tape, or arm a watchdog. A terminal's master tells whether its slave ever was open."""
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(master, UNLOCK, struct.pack("i", 0))
    slave = f"/dev/pts/{struct.unpack('i', fcntl.ioctl(master, NUMBER, bytes(4)))[0]}"
    (tmp_path / "device").symlink_to(slave)
    poll = select.poll()
    poll.register(master, 0)
    with pytest.raises(Failed, match="/device: is not a regular file"):
        look(Host(rootfs=str(tmp_path)), "/device")
    told = poll.poll(0)
    os.close(os.open(slave, os.O_RDONLY | os.O_NOCTTY))
    told_once_it_was = poll.poll(0)
    os.close(master)
    assert (told, told_once_it_was) == ([], [(master, select.POLLHUP)])


@pytest.mark.parametrize("size", [FILE_LIMIT + 1, 1 << 40])
def test_a_huge_file_is_not_read_to_its_end(size: int, tmp_path: Path) -> None:
    with open(tmp_path / "daemon.json", "wb") as file:
        file.truncate(size)
    with pytest.raises(Failed, match=rf"/daemon\.json: is larger than {FILE_LIMIT} bytes"):
        Host(rootfs=str(tmp_path)).read("/daemon.json")


def test_a_large_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "layers.json").write_bytes(b"x" * FILE_LIMIT)
    assert Host(rootfs=str(tmp_path)).read("/layers.json") == b"x" * FILE_LIMIT


def test_a_directory_tells_directories_from_links_to_them(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("directory")
    host = Host(rootfs=str(tmp_path))
    assert host.entries("/") == {"directory": True, "file": False, "link": False}
    assert host.link("/link") == "directory"
    assert host.lstat("/link").st_ino != host.lstat("/directory").st_ino
    for look in (host.entries, host.link, host.lstat):
        with pytest.raises(Vanished):
            look("/absent")
    with pytest.raises(Failed):
        host.read_start("/directory", 10)


def test_links_that_are_gone_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to("somewhere else")
    assert Host(rootfs=str(tmp_path)).links("/", ["gone", "here"]) == {"here": "somewhere else"}


def test_what_is_no_link_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failed, match=r"^proc/file: "):
        Host(procfs=str(tmp_path)).links("proc", ["file"])


def test_no_more_names_are_read_than_wanted(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / str(number)).write_text("")
    host = Host(rootfs=str(tmp_path))
    assert len(host.some_names("/", 4)) == 4
    assert sorted(host.some_names("/", 100)) == host.names("/")
    with pytest.raises(Vanished):
        host.some_names("/gone", 1)
