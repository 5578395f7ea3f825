"""The readers of btrfs: what the kernel gave, and what nobody should."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.readers import btrfs
from collectors.readers.btrfs import Link

COMMITS = b"commits 5\ncur_commit_ms 0\nlast_commit_ms 4\nmax_commit_ms 4\ntotal_commit_ms 9\n"
ERRORS = b"write_errs 0\nread_errs 7\nflush_errs 0\ncorruption_errs 2\ngeneration_errs 0\n"


def answer_of(links: list[Link], kind: int = 144) -> bytes:
    items = b"".join(
        struct.pack("=QQQII", 9, each.subvolume, each.parent, kind, 18 + len(each.name))
        + struct.pack("<QQH", each.directory, 2, len(each.name))
        + each.name
        for each in links
    )
    return bytes(64) + struct.pack("=I", len(links)) + bytes(44) + items


LINKS = [
    Link(256, 5, 256, b"sub1"),
    Link(260, 5, 258, b"deep"),
    Link(261, 257, 256, b"nested"),
    Link(257, 5, 256, b"b"),
]


def test_tables_are_read_by_name() -> None:
    assert btrfs.parse_table(COMMITS)["total_commit_ms"] == 9
    assert btrfs.parse_table(ERRORS) == {
        "write_errs": 0,
        "read_errs": 7,
        "flush_errs": 0,
        "corruption_errs": 2,
        "generation_errs": 0,
    }
    assert btrfs.parse_table(b"none\nnew_field 3\nodd x\nnegative -1\n") == {"new_field": 3}


def test_a_number_that_no_kernel_counts_to_is_passed() -> None:
    text = b"huge " + b"9" * 400 + b"\nendless " + b"9" * 5000 + b"\nlast 18446744073709551615\n"
    assert btrfs.parse_table(text) == {"last": 2**64 - 1}


def test_qgroup_names_are_those_of_the_tools() -> None:
    assert btrfs.parse_qgroup("0_256") == "0/256"
    assert btrfs.parse_qgroup("1_100") == "1/100"
    assert [btrfs.parse_qgroup(name) for name in ("enabled", "0_", "_5", "drop_subtree_threshold", "0_٣")] == [None] * 5


def test_the_request_is_as_long_as_the_kernel_wants_it() -> None:
    assert len(btrfs.links_request()) == 112 + 65536
    assert len(btrfs.directory_request(5, 258)) == 4096


def test_links_come_back_with_where_to_go_on() -> None:
    assert btrfs.parse_links(answer_of(LINKS)) == (LINKS, 258)
    assert btrfs.parse_links(answer_of([])) == ([], None)
    assert btrfs.parse_links(answer_of(LINKS, kind=156)) == ([], 258)


def quota_of(*items: tuple[int, int, bytes]) -> bytes:
    found = b"".join(struct.pack("=QQQII", 9, 0, number, kind, len(item)) + item for number, kind, item in items)
    return bytes(64) + struct.pack("=I", len(items)) + bytes(44) + found


def usage(referenced: int, exclusive: int) -> bytes:
    return struct.pack("<5Q", 9, referenced, 1, exclusive, 2)


def test_the_quota_tree_tells_usage_and_who_has_a_limit() -> None:
    none, limit = bytes(40), struct.pack("<5Q", 1, 4096, 0, 0, 0)
    items = (256, 242, usage(30, 20)), (1 << 48 | 5, 242, usage(50, 0)), (256, 244, none), (1 << 48 | 5, 244, limit)
    found = btrfs.parse_quota(quota_of(*items))
    assert found.usage == {"0_256": (30, 20), "1_5": (50, 0)}
    assert found.limited == {"1_5"}
    assert found.following == (244, (1 << 48 | 5) + 1)
    assert btrfs.parse_quota(quota_of()).following is None
    assert btrfs.parse_quota(quota_of((2**64 - 1, 242, usage(1, 1)))).following == (243, 0)
    assert btrfs.parse_quota(quota_of((2**64 - 1, 244, limit))).following is None
    assert btrfs.parse_quota(quota_of((7, 242, b"short"))).usage == {}
    assert len(btrfs.quota_request(244, 2**64 - 1)) == 112 + 65536


def test_paths_go_through_directories_and_other_subvolumes() -> None:
    directories = {(5, 258): b"a/b/"}
    assert btrfs.subvolume_paths(LINKS, directories) == {
        5: b"",
        256: b"sub1",
        257: b"b",
        260: b"a/b/deep",
        261: b"b/nested",
    }


def test_a_way_that_is_unknown_or_a_circle_gives_no_path() -> None:
    circle = [Link(300, 301, 256, b"x"), Link(301, 300, 256, b"y"), Link(302, 999, 256, b"z")]
    assert btrfs.subvolume_paths([*circle, Link(303, 5, 77, b"w")], {}) == {5: b""}


@given(st.binary(max_size=400))
def test_no_bytes_break_a_reader(raw: bytes) -> None:
    btrfs.parse_table(raw)
    btrfs.parse_links(raw)
    btrfs.parse_directory(raw)


@given(st.integers(0, 300), st.integers(0, 255), st.integers(0, 300))
def test_damaged_answers_give_links_that_were_there_or_fewer(place: int, byte: int, cut: int) -> None:
    raw = bytearray(answer_of(LINKS))
    raw[place % len(raw)] = byte
    links, _ = btrfs.parse_links(bytes(raw[: len(raw) - cut]))
    assert len(links) <= len(LINKS)
    btrfs.subvolume_paths(links, {})


@given(st.text(max_size=30))
def test_any_name_is_a_qgroup_or_none(name: str) -> None:
    found = btrfs.parse_qgroup(name)
    assert found is None or found.replace("/", "_") == name


def test_a_devices_unallocated_bytes_are_by_the_size_that_btrfs_knows() -> None:
    answer = struct.pack("=Q16sQQ", 1, b"u" * 16, 300, 1000).ljust(4096, b"\0")
    assert btrfs.parse_device(answer) == 700
    assert btrfs.parse_device(struct.pack("=24xQQ", 1000, 300).ljust(4096, b"\0")) == 0
    assert struct.unpack_from("=Q", btrfs.device_request(7)) == (7,)


def test_a_rescan_is_running_by_its_flag() -> None:
    assert btrfs.parse_rescan(struct.pack("=QQ48x", 1, 4096))
    assert not btrfs.parse_rescan(struct.pack("=QQ48x", 0, 4096))


@pytest.mark.parametrize(
    ("profile", "unallocated", "expected"),
    [
        ("single", [11, 21], 30),
        ("dup", [11, 21], 15),
        ("raid1", [11, 21], 10),
        ("raid1", [11, 11, 21], 20),
        ("raid1", [11], 0),
        ("raid1c3", [101, 11, 6], 5),
        ("raid1c3", [11, 11, 11], 10),
        ("raid1c4", [101, 101, 11, 6], 5),
        ("raid1", [], 0),
        ("single", [0.5], 0),
        ("raid9", [100], None),
    ],
)
def test_what_can_be_allocated_depends_on_copies_and_devices(
    profile: str, unallocated: list[float], expected: int | None
) -> None:
    mib = 1 << 20
    found = btrfs.allocatable([int(each * mib) for each in unallocated], profile)
    assert found == (None if expected is None else expected * mib)
