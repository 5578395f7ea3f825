"""Counters of writing: /sys/block/*/stat, /proc/PID/io, /proc/vmstat, /sys/fs/xfs/*/stats/stats.

Sources: Documentation/block/stat.rst; man 5 proc_pid_io; mm/vmstat.c; fs/xfs/xfs_stats.c.
"""

from __future__ import annotations

import re

SECTOR = 512  # always, whatever the drive's own is
_WRITTEN_AT, _DIGITS = 6, 20
_WRITE = re.compile(rb"^write_bytes: (\d{1,20})$", re.MULTILINE)
_CANCELLED = re.compile(rb"^cancelled_write_bytes: (\d{1,20})$", re.MULTILINE)


def parse_sectors_written(text: bytes) -> int | None:
    """Return the sectors written by a block device's `stat`, its seventh number; None if it is cut.

    `3 0 24 0 8 2 4096 1 0 2 3 0 0 0 0 0 0`
    """
    words = text.split()
    return _number(words[_WRITTEN_AT]) if len(words) > _WRITTEN_AT else None


def parse_io(text: bytes) -> int:
    """Return the bytes that a process had written to devices, by its `io`: `write_bytes: 4096`, less those cancelled.

    A thousand processes are read at once, so nothing else is looked at.
    """
    written, cancelled = (
        int(match[1]) if (match := pattern.search(text)) is not None else 0 for pattern in (_WRITE, _CANCELLED)
    )
    return max(0, written - cancelled)


def parse_lines(text: bytes) -> dict[str, int]:
    """Return lines of `name number` (vmstat) or `name: number` (io); others are passed."""
    found = {}
    for line in text.splitlines():
        name, _, word = line.partition(b" ")
        number = _number(word.strip())
        if number is not None and name.isascii():
            found[name.decode().rstrip(":")] = number
    return found


def parse_xfs_written(text: bytes) -> int | None:
    """Return xs_write_bytes, the bytes that applications wrote to an XFS: `xpc 0 891289600 0`."""
    for line in text.splitlines():
        words = line.split()
        if len(words) > 2 and words[0] == b"xpc":  # noqa: PLR2004
            return _number(words[2])
    return None


def _number(word: bytes) -> int | None:
    return int(word) if word.isdigit() and len(word) <= _DIGITS else None
