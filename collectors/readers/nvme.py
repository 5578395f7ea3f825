"""NVMe log pages: what a drive says of its own wear and of what it wrote.

Sources: NVM Express base specification, Get Log Page and SMART / Health Information (02h); OCP Datacenter NVMe SSD
specification, SMART / Health Information Extended (C0h); Intel's additional SMART log (CAh), as nvme-cli reads it;
include/uapi/linux/nvme_ioctl.h. Pages are little-endian.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

ADMIN_COMMAND = 0xC0484E41  # NVME_IOCTL_ADMIN_CMD
SMART, OCP, INTEL = 0x02, 0xC0, 0xCA  # log pages
DATA_UNIT = 512_000  # bytes; the drive rounds up
INTEL_UNIT = 32 << 20  # bytes
PAGE = 512

_COMMAND = struct.Struct("=BBHIIIQQIIIIIIIIII")  # struct nvme_passthru_cmd, 72 bytes
_ADDRESS_AT = 24  # of its pointer to the data
_GET_LOG_PAGE, _ALL_NAMESPACES, _TIMEOUT = 0x02, 0xFFFFFFFF, 1000  # milliseconds
_GUID_AT, _GUID = 496, bytes.fromhex("c5af1028eabff2a49c4f6f7cc914d5af")  # of the OCP page
_ITEM = struct.Struct("<BxxBx6sx")  # of Intel's page: key, normalized, raw
_INTEL_NAND, _INTEL_HOST = 0xF4, 0xF5
_WARNINGS = ("spare", "temperature", "reliability", "read_only", "volatile_backup", "persistent_memory")


class Smart(NamedTuple):
    """Log page 02h."""

    host_written: int  # bytes
    used: float  # of the endurance; may be over 1
    spare: float  # of the spare blocks that are left
    unsafe_shutdowns: int
    media_errors: int
    warnings: dict[str, bool]


class Intel(NamedTuple):
    """What Intel's log page says was written, in bytes; None is what it does not say."""

    media_written: int | None
    host_written: int | None


def log_request(page: int) -> tuple[bytes, dict[int, int]]:
    """Return the buffer of a request for a log page, whose data come behind the command, and its pointers."""
    dwords = PAGE // 4 - 1
    command = _COMMAND.pack(
        *(_GET_LOG_PAGE, 0, 0, _ALL_NAMESPACES, 0, 0, 0, 0, 0, PAGE, page | dwords << 16, 0, 0, 0, 0, 0, _TIMEOUT, 0)
    )
    return command + bytes(PAGE), {_ADDRESS_AT: _COMMAND.size}


def data_of(answer: bytes) -> bytes:
    """Return the log page of an answer."""
    return answer[_COMMAND.size :]


def parse_smart(page: bytes) -> Smart | None:
    """Return log page 02h, None if it is cut."""
    if len(page) < PAGE:
        return None
    warnings, spare, used = page[0], page[3], page[5]
    return Smart(
        _u128(page, 48) * DATA_UNIT,
        used / 100,
        spare / 100,
        _u128(page, 144),
        _u128(page, 160),
        {name: bool(warnings >> bit & 1) for bit, name in enumerate(_WARNINGS)},
    )


def parse_ocp(page: bytes) -> int | None:
    """Return the bytes that were written to the media by log page C0h; None unless its GUID says that it is OCP's.

    Vendors use C0h for pages of their own: nothing else tells them apart.
    """
    if len(page) < PAGE or page[_GUID_AT : _GUID_AT + len(_GUID)] != _GUID:
        return None
    return _u128(page, 0)


def parse_intel(page: bytes) -> Intel:
    """Return what log page CAh says by its keys; items of other keys are passed, and of a key the first counts."""
    found: dict[int, int] = {}
    for place in range(0, len(page) - _ITEM.size + 1, _ITEM.size):
        key, _, raw = _ITEM.unpack_from(page, place)
        found.setdefault(key, int.from_bytes(raw, "little") * INTEL_UNIT)
    return Intel(found.get(_INTEL_NAND), found.get(_INTEL_HOST))


def _u128(page: bytes, at: int) -> int:
    return int.from_bytes(page[at : at + 16], "little")
