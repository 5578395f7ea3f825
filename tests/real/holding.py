"""Holds deleted files open: `python holding.py DIRECTORY KIB...`, a file for each number, then prints a line.

It ends when its input does. `memory` in place of a number is a memfd, `ro` a file that is open for reading alone.
"""

from __future__ import annotations

import os
import sys


def hold(directory: str, kind: str) -> int:
    if kind == "memory":
        descriptor = os.memfd_create("held")
        os.write(descriptor, bytes(1 << 20))
        return descriptor
    path = f"{directory}/held {kind}"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    os.write(descriptor, bytes(4096 if kind == "ro" else int(kind) << 10))
    os.fsync(descriptor)  # blocks are counted once they are allocated
    if kind == "ro":
        os.close(descriptor)
        descriptor = os.open(path, os.O_RDONLY)
    os.unlink(path)
    return descriptor


if __name__ == "__main__":
    descriptors = [hold(sys.argv[1], kind) for kind in sys.argv[2:]]
    print("ready", flush=True)
    sys.stdin.read()
