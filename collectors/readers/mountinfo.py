r"""/proc/PID/mountinfo, man 5 proc_pid_mountinfo.

One line per mount: `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`. Path fields
have space, tab, newline and backslash as octal escapes (`\040`). Between the options and ` - ` stand any number of
optional fields; new ones may come.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_ESCAPE = re.compile(r"\\([0-7]{3})")
_FIELDS = 6


class Mount(NamedTuple):
    """One mount. `device` is the `major:minor` of its st_dev; paths may hold surrogates, see os.fsencode.

    Both lists of options begin with `ro` or `rw`; only there these words are the kernel's own.
    """

    id: int
    parent: int
    device: str
    root: str
    mountpoint: str
    options: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]


def parse(text: bytes) -> tuple[list[Mount], int]:
    """Return the mounts in the kernel's order, and the number of senseless lines.

    The order is that of mount ids since Linux 6.8: which of two mounts at one point hides the other, `parent` says.
    """
    mounts, malformed = [], 0
    for line in text.decode("utf-8", "surrogateescape").split("\n"):
        if not line:
            continue
        try:
            mounts.append(_parse_line(line))
        except ValueError:
            malformed += 1
    return mounts, malformed


def _parse_line(line: str) -> Mount:
    fields = line.split(" ")
    end = fields.index("-", _FIELDS)
    fstype, source, super_options = fields[end + 1 : end + 4]
    return Mount(
        int(fields[0]),
        int(fields[1]),
        fields[2],
        unescape(fields[3]),
        unescape(fields[4]),
        tuple(fields[5].split(",")),
        unescape(fstype),
        unescape(source),
        tuple(super_options.split(",")),
    )


def unescape(field: str) -> str:
    """Return a path field with its octal escapes resolved."""
    if "\\" not in field:
        return field
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), field)
