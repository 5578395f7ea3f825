"""SMART attributes of SATA drives, whose meaning depends on the drive: only known families are read.

Sources: ATA8-ACS (SMART READ DATA, CHECK POWER MODE, IDENTIFY DEVICE); SAT (ATA PASS-THROUGH (16)); scsi/sg.h
(sg_io_hdr); the families of smartmontools' drivedb.h. An attribute has 12 bytes: id, flags (2), value, worst, raw (6).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

SG_IO = 0x2285
SECTOR = 512

_HEADER = struct.Struct("=iiBBHIQQQIIi4xQBBBBHHiII4x")  # struct sg_io_hdr, 88 bytes
_DATA_POINTER, _COMMAND_POINTER, _SENSE_POINTER = 16, 24, 32
_STATUS_AT, _HOST_STATUS_AT = 64, 68
_COMMAND_SIZE, _SENSE_SIZE, _DATA_SIZE = 16, 32, 512
_FROM_DEVICE, _NO_DATA, _TIMEOUT = -3, -1, 1000  # SG_DXFER_FROM_DEV, SG_DXFER_NONE, milliseconds
_PASS_THROUGH, _PIO_IN, _NON_DATA = 0x85, 4 << 1, 3 << 1
_IDENTIFY, _SMART, _READ_DATA, _CHECK_POWER = 0xEC, 0xB0, 0xD0, 0xE5
_CHECK_CONDITION = 2
_STANDBY = 0x00
_ATTRIBUTES, _ATTRIBUTE = 30, struct.Struct("<BHBB6sx")
_ATA_RETURN = 0x09  # of descriptor sense data


class Attribute(NamedTuple):
    """One SMART attribute: its normalized value, and its raw one."""

    value: int
    raw: int


class Written(NamedTuple):
    """What a drive says was written, in bytes, and the part of its endurance that is used; None is not said."""

    host: int | None = None
    media: int | None = None
    used: float | None = None


def _intel(attributes: Mapping[int, Attribute]) -> Written:
    unit = 32 << 20
    host = attributes.get(241) or attributes.get(225)
    media, wear = attributes.get(243), attributes.get(233)
    return Written(
        host.raw * unit if host else None,
        media.raw * unit if media else None,
        max(0, 100 - wear.value) / 100 if wear else None,
    )


def _micron(attributes: Mapping[int, Attribute]) -> Written:
    sectors, host, background = attributes.get(246), attributes.get(247), attributes.get(248)
    if sectors is None:
        return Written()
    written = sectors.raw * SECTOR
    if host is None or background is None or not host.raw:
        return Written(written)
    # pages of an unknown size were programmed for the host, and by the drive for itself
    return Written(written, written * (host.raw + background.raw) // host.raw)


_FAMILIES: tuple[tuple[re.Pattern[str], Callable[[Mapping[int, Attribute]], Written]], ...] = (
    (re.compile(r"INTEL SSDSC(2K[BGR]|2B[ABX]|1[BN][BG])\w+"), _intel),
    (re.compile(r"(Crucial_?)?CT\d+[A-Z]+\d+SSD\d|Micron_(1100|5[1-4]00|M5[15]0|M600)_\w+"), _micron),
)


_NAMES = {
    "Total_LBAs_Written": SECTOR,
    "Host_Writes_32MiB": 32 << 20,
    "Host_Writes_GiB": 1 << 30,
    "Lifetime_Writes_GiB": 1 << 30,
}
_MEDIA_NAMES = {"NAND_Writes_32MiB": 32 << 20, "NAND_Writes_1GiB": 1 << 30, "Flash_Writes_GiB": 1 << 30}


def named(attributes: Mapping[str, int]) -> Written:
    """Return what was written by the names that smartctl gives a drive's attributes: its table knows their units."""

    def first(units: Mapping[str, int]) -> int | None:
        return next((attributes[name] * unit for name, unit in units.items() if name in attributes), None)

    return Written(first(_NAMES), first(_MEDIA_NAMES))


def identify_request() -> tuple[bytes, dict[int, int]]:
    """Return the buffer of IDENTIFY DEVICE and its pointers."""
    return _request(_PIO_IN, _IDENTIFY, 0, 1, has_data=True)


def smart_request() -> tuple[bytes, dict[int, int]]:
    """Return the buffer of SMART READ DATA and its pointers."""
    return _request(_PIO_IN, _SMART, _READ_DATA, 1, has_data=True)


def power_request() -> tuple[bytes, dict[int, int]]:
    """Return the buffer of CHECK POWER MODE, which wakes no drive, and its pointers."""
    return _request(_NON_DATA, _CHECK_POWER, 0, 0, has_data=False)


def _request(protocol: int, command: int, feature: int, count: int, *, has_data: bool) -> tuple[bytes, dict[int, int]]:
    # T_DIR from the device, BYT_BLOK, T_LENGTH in the count; CK_COND where only the sense data have the answer
    flags = 0x0E if has_data else 0x20
    middle, high = (0x4F, 0xC2) if command == _SMART else (0, 0)
    block = bytes([_PASS_THROUGH, protocol, flags, 0, feature, 0, count, 0, 0, 0, middle, 0, high, 0, command, 0])
    size = _DATA_SIZE if has_data else 0
    direction = _FROM_DEVICE if has_data else _NO_DATA
    header = _HEADER.pack(
        *(ord("S"), direction, _COMMAND_SIZE, _SENSE_SIZE, 0, size, 0, 0, 0, _TIMEOUT, 0, 0, 0),
        *(0, 0, 0, 0, 0, 0, 0, 0, 0),
    )
    pointers = {
        _COMMAND_POINTER: _HEADER.size,
        _SENSE_POINTER: _HEADER.size + _COMMAND_SIZE,
        _DATA_POINTER: _HEADER.size + _COMMAND_SIZE + _SENSE_SIZE,
    }
    return header + block + bytes(_SENSE_SIZE + _DATA_SIZE), pointers


def data_of(answer: bytes) -> bytes | None:
    """Return the 512 bytes of data of an answer; None unless the command succeeded."""
    if len(answer) < _HEADER.size + _COMMAND_SIZE + _SENSE_SIZE + _DATA_SIZE or any(_status(answer)):
        return None
    return answer[-_DATA_SIZE:]


def is_asleep(answer: bytes) -> bool | None:
    """Return whether CHECK POWER MODE says standby or sleep; None if it does not say."""
    if len(answer) < _HEADER.size + _COMMAND_SIZE + _SENSE_SIZE or _status(answer)[0] != _CHECK_CONDITION:
        return None
    sense = answer[_HEADER.size + _COMMAND_SIZE :][:_SENSE_SIZE]
    if sense[0] & 0x7F != 0x72 or sense[8] != _ATA_RETURN:  # noqa: PLR2004  descriptor format
        return None
    return sense[13] == _STANDBY


def _status(answer: bytes) -> tuple[int, int]:
    (host,) = struct.unpack_from("=H", answer, _HOST_STATUS_AT)
    return answer[_STATUS_AT], int(host)


def parse_model(identify: bytes) -> str:
    """Return the model of IDENTIFY DEVICE's data: words 27 to 46, two characters each, the second first."""
    text = bytearray(identify[54:94].ljust(40, b" "))
    text[::2], text[1::2] = text[1::2], text[::2]
    return text.decode("ascii", "replace").strip("\0 ")


def parse_attributes(page: bytes) -> dict[int, Attribute] | None:
    """Return the attributes of SMART READ DATA by their ids; None if its checksum is wrong."""
    if len(page) < _DATA_SIZE or sum(page[:_DATA_SIZE]) & 0xFF:
        return None
    found = {}
    for place in range(2, 2 + _ATTRIBUTES * _ATTRIBUTE.size, _ATTRIBUTE.size):
        number, _, value, _, raw = _ATTRIBUTE.unpack_from(page, place)
        if number:
            found[number] = Attribute(value, int.from_bytes(raw, "little"))
    return found


def written(model: str, attributes: Mapping[int, Attribute]) -> Written | None:
    """Return what a drive of a known family says was written; None for any other: there the ids mean something else."""
    for pattern, read in _FAMILIES:
        if pattern.match(model):
            return read(attributes)
    return None
