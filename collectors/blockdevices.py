"""Block devices as what lies on them names them: what was written to one, and its name in the kernel."""

from __future__ import annotations

from agent.errors import Malformed
from agent.host import Host
from collectors.readers import blockstat

_MAPPER = "/dev/mapper/"


def kernel_name(host: Host, path: str) -> str | None:
    """Return the kernel's name of a device by its path in /dev, None if it has none: a file, or a device that is gone.

    Where no udev runs, what lies in /dev/mapper is a node of its own and not a link to `dm-0`.
    """
    if path.startswith(_MAPPER):
        wanted = path.removeprefix(_MAPPER)
        for name in host.glob("sys/block/dm-*/dm/name"):
            if host.read(name).decode("utf-8", "surrogateescape").rstrip("\n") == wanted:
                return name.split("/")[2]
        return None
    return path.removeprefix("/dev/") if path.startswith("/dev/") else None


def written(host: Host, device: str) -> int:
    """Return the bytes that were written to a block device, by its kernel name."""
    path = f"sys/class/block/{device}/stat"
    sectors = blockstat.parse_sectors_written(host.read(path))
    if sectors is None:
        raise Malformed(path, "expected at least seven numbers")
    return sectors * blockstat.SECTOR
