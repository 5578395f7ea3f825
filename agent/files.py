"""Files that others write, opened so that nothing else in their place does harm."""

from __future__ import annotations

import errno
import os
import stat


def open_regular(path: str) -> int:
    """Return a descriptor of a file, for reading; the caller closes it. Raises OSError, also where it is no file.

    To open a device may rewind a tape or arm a watchdog, and who opens a pipe waits for somebody to write into it: here
    nothing is opened before it is known to be a file, and it is the same one then.
    """
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file")
        return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(place)
