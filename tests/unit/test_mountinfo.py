from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.readers.mountinfo import Mount, carrying, parse, visible

EXAMPLE = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"


def table(*lines: str) -> list[Mount]:
    """Return mounts from `id parent device mountpoint`."""
    mounts: list[Mount] = []
    for line in lines:
        number, parent, device, mountpoint = line.split()
        text = f"{number} {parent} {device} / {mountpoint} rw - tmpfs t rw\n"
        mounts += parse(text.encode())[0]
    return mounts


def seen(*lines: str) -> dict[str, str]:
    return {mount.mountpoint: mount.device for mount in visible(table(*lines))}


def test_the_example_of_the_manual_is_read() -> None:
    mount = Mount(36, 35, "98:0", "/mnt1", "/mnt2", ("rw", "noatime"), "ext3", "/dev/root", ("rw", "errors=continue"))
    assert parse(EXAMPLE) == ((mount,), 0)


@pytest.mark.parametrize(
    "optional", [b"", b"shared:1 ", b"shared:1 master:2 propagate_from:3 unbindable ", b"novel:7 another "]
)
def test_any_number_of_optional_fields_may_come(optional: bytes) -> None:
    assert parse(EXAMPLE.replace(b"master:1 ", optional)) == parse(EXAMPLE)


def test_fields_after_the_super_options_may_come() -> None:
    assert parse(EXAMPLE.replace(b"\n", b" novel\n")) == parse(EXAMPLE)


def test_a_source_may_be_empty() -> None:
    ((mount,), malformed) = parse(b"36 35 0:50 / /x rw - tmpfs  rw\n")
    assert (mount.source, mount.super_options, malformed) == ("", ("rw",), 0)


def test_escapes_are_resolved_once() -> None:
    line = rb"36 35 0:50 /r\040r /a\011b\012c\134040\043 rw - fuse.my\040fs s\040s rw"
    ((mount,), _) = parse(line)
    assert (mount.root, mount.mountpoint) == ("/r r", "/a\tb\nc\\040#")
    assert (mount.fstype, mount.source) == ("fuse.my fs", "s s")


def test_names_that_are_no_utf8_lead_back_to_their_bytes() -> None:
    ((mount,), _) = parse(b"36 35 0:50 / /\xff\xfe\xe2\x98\x83 rw - tmpfs t rw\n")
    assert os.fsencode(mount.mountpoint) == b"/\xff\xfe\xe2\x98\x83"


def test_other_line_ends_than_newline_are_part_of_a_name() -> None:
    ((mount,), malformed) = parse("36 35 0:50 / /a\u2028b\x0bc\rd rw - tmpfs t rw\n".encode())
    assert (mount.mountpoint, malformed) == ("/a\u2028b\x0bc\rd", 0)


@pytest.mark.parametrize(
    "line",
    [
        b"senseless",
        b"36 35",
        b"x 35 98:0 / / rw - ext3 /dev/root rw",
        b"36 35 98:0 / / rw ext3 /dev/root rw",
        b"36 35 98:0 / / rw - ext3",
        b"36 35 - ext3 /dev/root rw",
        b"36 35 98:0 / /a\0b rw - ext3 /dev/root rw",
        rb"36 35 98:0 / /a\000b rw - ext3 /dev/root rw",
        b"9" * 5000 + b" 35 98:0 / / rw - ext3 /dev/root rw",
    ],
)
def test_a_senseless_line_is_counted_and_costs_no_other(line: bytes) -> None:
    mounts, malformed = parse(EXAMPLE + line + b"\n" + EXAMPLE)
    assert (len(mounts), malformed) == (2, 1)


@given(st.binary())
def test_no_bytes_are_too_strange(text: bytes) -> None:
    mounts, malformed = parse(text)
    assert len(mounts) + malformed == len([line for line in text.split(b"\n") if line])
    visible(mounts)


def mangle(name: bytes) -> bytes:
    """Escape a name as the kernel does (fs/proc_namespace.c)."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in name)


NAMES = st.binary(min_size=1).filter(lambda name: b"\0" not in name)


@given(root=NAMES, mountpoint=NAMES, fstype=NAMES, source=st.binary().filter(lambda name: b"\0" not in name))
def test_what_the_kernel_escapes_comes_back(root: bytes, mountpoint: bytes, fstype: bytes, source: bytes) -> None:
    escaped = [mangle(name) for name in (root, mountpoint, fstype, source)]
    ((mount,), _) = parse(b"36 35 0:50 %s %s rw,relatime shared:2 - %s %s rw" % tuple(escaped))
    names = (mount.root, mount.mountpoint, mount.fstype, mount.source)
    assert tuple(map(os.fsencode, names)) == (root, mountpoint, fstype, source)


def test_what_is_mounted_over_a_directory_hides_what_lies_below() -> None:
    assert seen("1 0 0:1 /", "2 1 0:2 /data", "3 2 0:3 /data/inner", "4 2 0:4 /data", "5 4 0:5 /data/new") == {
        "/": "0:1",
        "/data": "0:4",
        "/data/new": "0:5",
    }


def test_a_mount_over_a_parent_hides_those_further_down() -> None:
    assert seen("1 0 0:1 /", "2 1 0:2 /a/b/c", "3 1 0:3 /a") == {"/": "0:1", "/a": "0:3"}


def test_a_mount_that_was_moved_over_another_is_seen_though_its_line_comes_first() -> None:
    assert seen("1 0 0:1 /", "2 3 0:2 /x", "3 1 0:3 /x") == {"/": "0:1", "/x": "0:2"}


def test_of_three_at_one_point_the_uppermost_is_seen() -> None:
    assert seen("1 0 0:1 /", "4 3 0:4 /x", "2 1 0:2 /x", "3 2 0:3 /x") == {"/": "0:1", "/x": "0:4"}


def test_a_hidden_mount_does_not_hide_one_at_the_same_path_that_can_be_seen() -> None:
    lines = ["1 0 0:1 /", "2 1 0:2 /d", "3 2 0:3 /d", "4 3 0:4 /d/e", "5 2 0:5 /d/e"]
    assert seen(*lines)["/d/e"] == "0:4"


def test_a_root_over_the_first_one_is_seen() -> None:
    assert seen("1 1 0:1 /", "2 1 0:2 /", "3 2 0:3 /x") == {"/": "0:2", "/x": "0:3"}


def test_mounts_below_a_place_whose_own_mount_is_not_listed_are_seen() -> None:
    assert seen("5 4 0:5 /host/data", "6 5 0:6 /host/data/x") == {"/host/data": "0:5", "/host/data/x": "0:6"}


def test_a_table_that_goes_in_circles_ends() -> None:
    assert seen("1 2 0:1 /x", "2 1 0:2 /x", "3 1 0:3 /x") == {"/x": "0:3"}


@pytest.mark.parametrize(
    ("path", "carrier"),
    [
        ("/", "/"),
        ("/var/lib/docker", "/var/lib/docker"),
        ("/var/lib/docker/overlay2", "/var/lib/docker"),
        ("/var/lib/docker2", "/"),
        ("/var/lib", "/"),
    ],
)
def test_the_longest_prefix_carries_a_path(path: str, carrier: str) -> None:
    mount = carrying(table("1 0 0:1 /", "2 1 0:2 /var/lib/docker", "3 1 0:3 /var/log"), path)
    assert mount is not None
    assert mount.mountpoint == carrier


def test_nothing_carries_a_path_where_no_root_is_listed() -> None:
    assert carrying(table("2 1 0:2 /host"), "/var") is None
