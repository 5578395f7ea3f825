r"""Records of the kernel's log as /dev/kmsg gives them.

Source: Documentation/ABI/testing/dev-kmsg, Linux 3.5. One read gives one record, a file that was copied from it many:
`6,345,4485976785,-;loop0: detected capacity change` is facility and level in one number, the record's number, the
microseconds since boot (by a clock that stands still while the machine is suspended), flags; newer kernels add fields
before the semicolon. Lines that begin with a space are the record's dictionary. All but printable ASCII is escaped as
`\x0a`, so that a message never has two lines.
Facility 0 is the kernel's own, and nobody else's: what a process writes into /dev/kmsg has another, also when it asks
for this one (devkmsg_write in kernel/printk/printk.c).
"""

from __future__ import annotations

import re
from typing import NamedTuple

KERNEL = 0
_RECORD = re.compile(rb"(\d{1,4}),(\d{1,20}),(\d{1,20}),[^;]*;(.*)", re.DOTALL)


class Record(NamedTuple):
    """One record. `microseconds` are since boot; the message stays escaped."""

    facility: int
    sequence: int
    microseconds: int
    message: bytes


def parse(raw: bytes) -> tuple[list[Record], int]:
    """Return the records, and how many lines are none."""
    records = []
    malformed = 0
    for line in raw.split(b"\n"):
        if not line or line.startswith(b" "):
            continue
        match = _RECORD.fullmatch(line)
        if match is None:
            malformed += 1
            continue
        priority, sequence, microseconds, message = match.groups()
        records.append(Record(int(priority) >> 3, int(sequence), int(microseconds), message))
    return records, malformed
