"""Watches what it is told: `python watching.py INSTANCES WATCHES PATH [UID]`, then prints a line, until its input ends.

PATH is watched itself if there is one watch, else directories that are made in it. `FORK` after that has a child share
all. Where the kernel allows no more it goes on, and prints how many it has got.
"""

from __future__ import annotations

import ctypes
import os
import sys

ATTRIB = 0x4


def main(instances: int, watches: int, path: str, uid: int = 0, fork: str = "") -> None:
    paths = [path]
    if watches > 1:
        paths = [f"{path}/{number}" for number in range(watches)]
        for each in paths:
            os.makedirs(each, exist_ok=True)
    if uid:
        os.setresuid(uid, uid, uid)
    libc = ctypes.CDLL(None, use_errno=True)
    got, added = 0, 0
    for _ in range(instances):
        descriptor = libc.inotify_init1(0)
        if descriptor < 0:
            break
        got += 1
        added += sum(libc.inotify_add_watch(descriptor, os.fsencode(each), ATTRIB) > 0 for each in paths)
    if fork:
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    print(got, added, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    first, second, where, *rest = sys.argv[1:]
    main(int(first), int(second), where, int(rest[0]) if rest else 0, rest[1] if len(rest) > 1 else "")
