"""A file of bbolt's that is being written to: a copy of it that is whole.

A lock would keep its writer waiting, so none is taken. What the reader says of a transaction tells whether the copy is
whole: none has ended while it was made.
"""

from __future__ import annotations

import os

from agent.errors import Failed, Malformed, from_os
from agent.host import READ_LIMIT, Host
from collectors.readers.bolt import newest_transaction

TRIES = 5
_START = 2 << 16  # bytes: two of the largest pages, which say which transaction is the newest
_PART = 1 << 20  # bytes of one read


def read_whole(host: Host, path: str) -> bytes:
    """Return the bytes of a file as one transaction left it; raises a HostError, so if its writer never rests."""
    descriptor = host.open(path)
    try:
        for _ in range(TRIES):
            data = _read(descriptor, path)
            try:
                if newest_transaction(data) == newest_transaction(os.pread(descriptor, _START, 0)):
                    return data
            except ValueError as error:
                reason = str(error)
            else:
                reason = "was written to all the time"
    except OSError as error:
        raise from_os(path, error) from error
    finally:
        os.close(descriptor)
    raise Malformed(path, reason)


def _read(descriptor: int, path: str) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := os.pread(descriptor, _PART, size):
        parts.append(part)
        size += len(part)
        if size > READ_LIMIT:
            raise Failed(path, f"is larger than {READ_LIMIT} bytes")
    return b"".join(parts)
