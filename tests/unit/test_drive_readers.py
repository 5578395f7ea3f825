"""Pages of drives, byte by byte as the published layouts have them, and those of drives that nobody knows."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from collectors.readers import ata, blockstat, nvme, zfs
from collectors.readers.ata import Attribute, Written

DRIVES = Path(__file__).resolve().parents[1] / "trees" / "writeamp" / "node" / "drives"
GUID = bytes([0xC5, 0xAF, 0x10, 0x28, 0xEA, 0xBF, 0xF2, 0xA4, 0x9C, 0x4F, 0x6F, 0x7C, 0xC9, 0x14, 0xD5, 0xAF])


def page(**fields: tuple[int, bytes]) -> bytes:
    text = bytearray(512)
    for place, value in fields.values():
        text[place : place + len(value)] = value
    return bytes(text)


def u128(number: int) -> bytes:
    return number.to_bytes(16, "little")


def test_a_log_page_is_asked_for_as_the_specification_has_it() -> None:
    buffer, pointers = nvme.log_request(0xC0)
    assert len(buffer) == 72 + 512
    assert pointers == {24: 72}
    assert buffer[0] == 0x02
    assert struct.unpack_from("=I", buffer, 4) == (0xFFFFFFFF,)
    assert struct.unpack_from("=II", buffer, 36) == (512, 0x007F00C0)  # data_len, cdw10: 128 dwords less one


def test_the_health_page_is_read_by_its_offsets() -> None:
    text = page(
        warning=(0, bytes([0b100101])),
        temperature=(1, struct.pack("<H", 311)),
        spare=(3, bytes([97, 10, 103])),
        written=(48, u128(1_000_001)),
        unsafe=(144, u128(12)),
        errors=(160, u128(3)),
    )
    smart = nvme.parse_smart(text)
    assert smart is not None
    assert smart.host_written == 1_000_001 * 1000 * 512
    assert (smart.used, smart.spare, smart.unsafe_shutdowns, smart.media_errors) == (1.03, 0.97, 12, 3)
    assert [name for name, is_on in smart.warnings.items() if is_on] == ["spare", "reliability", "persistent_memory"]
    assert nvme.parse_smart(text[:511]) is None


def test_ocps_page_is_known_by_its_guid_alone() -> None:
    text = page(media=(0, u128(1 << 70)), version=(494, b"\3\0"), guid=(496, GUID))
    assert nvme.parse_ocp(text) == 1 << 70
    for wrong in (text[:496] + GUID[::-1], text[:496] + bytes(16), text[:500], b""):
        assert nvme.parse_ocp(wrong) is None


def test_intels_page_is_read_by_its_keys_wherever_they_stand() -> None:
    def item(key: int, raw: int) -> bytes:
        return bytes([key, 0, 0, 100, 0]) + raw.to_bytes(6, "little") + b"\0"

    text = (item(0xAB, 7) + item(0xF5, 1000) + item(0xE2, 1) + item(0xF4, 2500)).ljust(512, b"\0")
    assert nvme.parse_intel(text) == nvme.Intel(2500 << 25, 1000 << 25)
    assert nvme.parse_intel(bytes(512)) == nvme.Intel(None, None)


def test_attributes_are_read_from_a_page_whose_checksum_is_right() -> None:
    text = (DRIVES / "sda-smart.bin").read_bytes()
    found = ata.parse_attributes(text)
    assert found is not None
    assert found[243] == Attribute(100, 98000)
    assert ata.parse_attributes(text[:-1] + bytes([text[-1] ^ 1])) is None
    assert ata.parse_attributes(text[:100]) is None


def test_a_model_is_read_with_its_characters_swapped() -> None:
    assert ata.parse_model((DRIVES / "sda-identify.bin").read_bytes()) == "INTEL SSDSC2KB480G8"


@pytest.mark.parametrize(
    ("model", "attributes", "expected"),
    [
        ("INTEL SSDSC2KB480G8", {241: (100, 10), 243: (100, 15), 233: (97, 0)}, Written(10 << 25, 15 << 25, 0.03)),
        ("INTEL SSDSC2BB480G4", {225: (100, 10)}, Written(10 << 25)),
        ("CT1000MX500SSD1", {246: (100, 1000), 247: (100, 400), 248: (100, 100)}, Written(512000, 640000)),
        ("Micron_5100_MTFDDAK960TCC", {246: (100, 1000), 247: (100, 0), 248: (100, 5)}, Written(512000)),
        ("CT1000MX500SSD1", {9: (100, 1)}, Written()),
        ("Samsung SSD 870 EVO 1TB", {241: (99, 1000)}, None),
        ("WDC WD40EFRX-68N32N0", {241: (99, 1000), 225: (1, 1)}, None),
        ("", {}, None),
    ],
)
def test_attributes_mean_something_only_on_drives_of_a_known_family(
    model: str, attributes: dict[int, tuple[int, int]], expected: Written | None
) -> None:
    assert ata.written(model, {number: Attribute(*each) for number, each in attributes.items()}) == expected


def test_what_smartctl_calls_by_name_is_in_the_units_of_that_name() -> None:
    assert ata.named({"Total_LBAs_Written": 1000, "NAND_Writes_1GiB": 3}) == Written(512000, 3 << 30)
    assert ata.named({"Host_Writes_32MiB": 2, "Flash_Writes_GiB": 1}) == Written(2 << 25, 1 << 30)
    assert ata.named({"Total_Writes": 1000}) == Written()


def answer(status: int, sense: bytes = b"", data: bytes = b"", host: int = 0) -> bytes:
    header = bytearray(88)
    header[64], header[68] = status, host
    return bytes(header) + bytes(16) + sense.ljust(32, b"\0") + data.ljust(512, b"\0")


@pytest.mark.parametrize(("mode", "expected"), [(0x00, True), (0x80, False), (0xFF, False)])
def test_a_drive_says_whether_it_sleeps(mode: int, expected: bool) -> None:  # noqa: FBT001
    sense = bytes([0x72, 1, 0, 0x1D, 0, 0, 0, 14, 0x09, 12, 0, 0, 0, mode])
    assert ata.is_asleep(answer(2, sense)) is expected
    assert ata.is_asleep(answer(0, sense)) is None
    assert ata.is_asleep(answer(2, b"\x70" + sense[1:])) is None
    assert ata.is_asleep(b"") is None


def test_data_count_only_of_a_command_that_succeeded() -> None:
    assert ata.data_of(answer(0, data=b"x" * 512)) == b"x" * 512
    assert ata.data_of(answer(2, data=b"x" * 512)) is None
    assert ata.data_of(answer(0, data=b"x" * 512, host=7)) is None
    assert ata.data_of(answer(0)[:-1]) is None


def test_requests_to_sata_point_into_themselves() -> None:
    for buffer, pointers in (ata.identify_request(), ata.smart_request(), ata.power_request()):
        assert buffer[:4] == b"S\0\0\0"
        assert pointers == {24: 88, 32: 104, 16: 136}
        assert len(buffer) == 88 + 16 + 32 + 512
        assert buffer[88] == 0x85


def test_counters_of_writing_are_read_by_place_or_name() -> None:
    assert blockstat.parse_sectors_written(b"3 0 24 0 8 2 4096 1 0 2 3 0 0 0 0 0 0\n") == 4096
    assert blockstat.parse_sectors_written(b"3 0 24") is None
    assert blockstat.parse_lines(b"write_bytes: 12\nnr_dirtied 7\nx\ny z\n") == {"write_bytes": 12, "nr_dirtied": 7}
    io = b"wchar: 9\nwrite_bytes: 12\ncancelled_write_bytes: 5\n"
    assert [blockstat.parse_io(text) for text in (io, io[:-1], b"write_bytes: 12\n", b"", b"write_bytes: -1\n")] == [
        7,
        7,
        12,
        0,
        0,
    ]
    assert blockstat.parse_io(b"write_bytes: 5\ncancelled_write_bytes: 12\n") == 0
    assert blockstat.parse_xfs_written(b"rw 1 2\nxpc 0 891289600 0\n") == 891289600
    assert blockstat.parse_xfs_written(b"rw 1 2\n") is None


def test_a_kstat_is_read_by_its_names_and_a_name_may_hold_spaces() -> None:
    text = (DRIVES.parents[1] / "zfs" / "proc/spl/kstat/zfs/tank/objset-0x91").read_bytes()
    objset = zfs.parse_objset(text.replace(b"tank/vol1", b"tank/my vol1"))
    assert objset is not None
    assert objset.dataset == "tank/my vol1"
    assert objset.written is not None
    assert zfs.parse_objset(b"1 1\nname type data\nnwritten 4 12\n") is None


def test_the_devices_of_a_pool_are_those_with_a_path() -> None:
    text = b"tank\t1\t-\n\tmirror-0\t1\n\t\t/dev/sda1\t1\n\t\t/dev/sdb1\t1\nlogs\t-\n\t/dev/nvme0n1p2\t1\n"
    assert zfs.parse_leaves(text) == ["/dev/sda1", "/dev/sdb1", "/dev/nvme0n1p2"]
