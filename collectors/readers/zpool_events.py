"""`zpool events -v` (man 8 zpool-events): what happened to ZFS, told by a ring of zfs_zevent_len_max (512) events.

An event is a head, the same with and without -H, and indented fields, `history_dsname = "tank/r128k@s1"` among them. A
field may hold several lines of others. `time = 0x6b04c9ac 0x51740a3` is seconds and nanoseconds since the epoch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

SECOND = 1_000_000_000  # nanoseconds
CLASS = "sysevent.fs.zfs.history_event"
_FIELD = re.compile(r"^(?:\t| {8})([a-z_]+) = (.*)$")
_TIME = re.compile(r"0x([0-9a-f]{1,16}) 0x([0-9a-f]{1,8})\s*")


class Snapshot(NamedTuple):
    """A snapshot that was taken, `dataset@name`, `time` nanoseconds after the epoch."""

    time: int
    name: str

    @property
    def dataset(self) -> str:
        """The dataset that it is of."""
        return self.name.partition("@")[0]


def parse_snapshots(text: bytes) -> list[Snapshot]:
    """Return the snapshots that were taken; a recursive one is one event for each dataset."""
    found = []
    for fields in _events(text.decode("utf-8", "surrogateescape")):
        name = _unquoted(fields.get("history_dsname", ""))
        time = _TIME.fullmatch(fields.get("time", ""))
        is_snapshot = _unquoted(fields.get("history_internal_name", "")) == "snapshot"
        if _unquoted(fields.get("class", "")) == CLASS and is_snapshot and "@" in name and time is not None:
            found.append(Snapshot(int(time[1], 16) * SECOND + int(time[2], 16), name))
    return found


def _events(text: str) -> Iterator[Mapping[str, str]]:
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        if match := _FIELD.fullmatch(line):
            # the first counts: a value with a newline in it cannot set what came before
            fields.setdefault(match[1], match[2])
        elif not line.strip():
            if fields:
                yield fields
            fields = {}
    if fields:
        yield fields


def _unquoted(value: str) -> str:
    value = value.rstrip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else ""
