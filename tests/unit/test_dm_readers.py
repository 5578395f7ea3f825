"""The readers of device mapper: what the kernel gave, and what nobody should."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.readers import dm
from collectors.readers.dm import Device, PoolStatus, PoolTable, Target

POOL = "7 419/512 13800/16384 - rw discard_passdown queue_if_no_space - 128 "


def answer(data: bytes, count: int = 0, flags: int = 0) -> bytes:
    size = 312 + len(data)
    return struct.pack("=3I3IiIIIQ", 4, 48, 0, size, 312, count, 0, flags, 0, 0, 0).ljust(312, b"\0") + data


def targets(*lines: tuple[str, str]) -> bytes:
    data = b""
    for kind, text in lines:
        body = text.encode() + b"\0"
        body = body.ljust(-(-len(body) // 8) * 8, b"\0")
        data += struct.pack("=QQiI16s", 0, 2097152, 0, len(data) + 40 + len(body), kind.encode()) + body
    return answer(data, len(lines))


def test_a_request_is_as_long_as_it_says() -> None:
    text = dm.request("vg-pool-tpool", dm.NOFLUSH, 1024)
    assert len(text) == 1024
    assert struct.unpack_from("=II", text, 12) == (1024, 312)
    assert text[48:62] == b"vg-pool-tpool\0"
    with pytest.raises(ValueError, match="longer"):
        dm.request("x" * 128)


def test_devices_have_names_and_huge_numbers() -> None:
    first = struct.pack("=QI", 253 << 8 | 2, 24) + b"vg-a\0"
    last = struct.pack("=QI", 253 << 8 | 0x34 | 0x12 << 20, 0) + b"vg-b\0"
    assert dm.parse_devices(answer(first.ljust(24, b"\0") + last)) == [
        Device("vg-a", "253:2"),
        Device("vg-b", "253:4660"),
    ]
    assert dm.parse_devices(answer(struct.pack("=QI", 0, 0))) == []
    assert dm.parse_devices(answer(struct.pack("=QI", 253 << 8, 0) + b"x" * 128 + b"\0")) == []


def test_targets_follow_each_other_from_the_first_on() -> None:
    found = dm.parse_targets(targets(("linear", ""), ("thin-pool", POOL)))
    assert found == [Target("linear", 2097152, ""), Target("thin-pool", 2097152, POOL)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (POOL, PoolStatus("rw", 7, 419, 512, 13800, 16384, None, "queue", False, 128)),  # noqa: FBT003
        (
            "0 454/512 9/16384 - ro discard_passdown queue_if_no_space needs_check 128",
            PoolStatus("ro", 0, 454, 512, 9, 16384, None, "queue", True, 128),  # noqa: FBT003
        ),
        (
            "0 66/512 960/1024 29 rw discard_passdown queue_if_no_space - 128",
            PoolStatus("rw", 0, 66, 512, 960, 1024, 29, "queue", False, 128),  # noqa: FBT003
        ),
        (
            "0 66/512 1024/1024 - out_of_data_space no_discard_passdown error_if_no_space - 128",
            PoolStatus("out_of_data_space", 0, 66, 512, 1024, 1024, None, "error", False, 128),  # noqa: FBT003
        ),
        ("1 4/40 2/30 - rw discard_passdown queue_if_no_space", PoolStatus("rw", 1, 4, 40, 2, 30, None, "queue")),
        ("Fail", PoolStatus("fail")),
        ("Error", PoolStatus("error")),
        ("1 406/4096 152 - rw discard_passdown queue_if_no_space - 1", None),
        ("1 2/3 4/5 - sideways", None),
        ("", None),
    ],
)  # fmt: skip
def test_a_pools_status_is_read_by_its_words(text: str, expected: PoolStatus | None) -> None:
    assert dm.parse_pool_status(text) == expected


def test_tables_say_what_a_pool_and_a_thin_device_lie_on() -> None:
    assert dm.parse_pool_table("253:0 253:1 128 1024 1 skip_block_zeroing ") == PoolTable("253:0", "253:1", 128, 1024)
    assert dm.parse_pool_table("253:0 253:1 0 0 0") is None
    assert dm.parse_pool_table("- 253:1 128 0 0") is None
    assert dm.parse_thin_table("253:2 1") == "253:2"
    assert dm.parse_thin_table("pool 1") is None
    assert dm.parse_thin_status("1638400 1638399") == 1638400
    assert dm.parse_thin_status("0 -") == 0
    assert dm.parse_thin_status("Fail") is None
    assert dm.parse_thin_status("-") is None


def test_the_recommended_size_is_that_of_thin_metadata_size() -> None:
    assert dm.recommended_metadata_bytes(2097152 // 128, 1) == 1064 * 512
    assert dm.recommended_metadata_bytes(1 << 40, 1) == dm.MOST_METADATA_BLOCKS * 4096


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vg-pool-tpool", ("vg", "pool", "tpool")),
        ("vg-pool_tdata", ("vg", "pool_tdata", "")),
        ("my--vg-my--pool-tpool", ("my-vg", "my-pool", "tpool")),
        ("vg--", None),
        ("docker", None),
        ("a-b-c-d", None),
    ],
)
def test_names_of_lvm_are_taken_apart(name: str, expected: tuple[str, str, str] | None) -> None:
    assert dm.split_lvm_name(name) == expected


def test_the_configuration_of_lvm_is_read_by_its_sections() -> None:
    text = b"""
# thin_pool_autoextend_threshold = 1
activation { monitoring=0 # and { more
    thin_pool_autoextend_threshold = 80
}
devices { scan = [ "/dev", "/a }" ]   global_filter=["r|.*|"] }
activation/thin_pool_autoextend_percent = 20
vg { logical_volumes { pool { profile = "docker thin" } } }
"""
    found = dm.parse_lvm_config(text)
    assert found == {
        "activation/monitoring": "0",
        "activation/thin_pool_autoextend_threshold": "80",
        "activation/thin_pool_autoextend_percent": "20",
        "vg/logical_volumes/pool/profile": "docker thin",
    }
    assert dm.autoextend(found) == (80, 20)
    assert dm.autoextend({"activation/thin_pool_autoextend_threshold": "many"}) == (None, None)


@given(st.binary(max_size=600), st.integers(0, 700))
def test_no_bytes_are_too_strange(data: bytes, cut: int) -> None:
    real = targets(("thin-pool", POOL), ("thin", "253:2 1"))
    for text in (data, answer(data, len(data)), real[:cut] + data, real[:cut] + data + real[cut:]):
        for target in dm.parse_targets(text):
            dm.parse_pool_status(target.text)
            dm.parse_pool_table(target.text)
            dm.parse_thin_status(target.text)
            dm.parse_thin_table(target.text)
        dm.parse_devices(text)
        dm.flags_of(text)
    dm.parse_lvm_config(data)


@given(st.text(max_size=80))
def test_no_text_is_too_strange(text: str) -> None:
    for part in (text, f"{POOL}{text}", text.join(POOL.split(" "))):
        dm.parse_pool_status(part)
        dm.parse_pool_table(part)
        dm.parse_thin_status(part)
        dm.parse_thin_table(part)
        dm.split_lvm_name(part)
