"""The helper process of `agent.probe`: measures mounts on request, and may hang for all we care.

Run as a script: `python -I -S probe_child.py MEMORY`, MEMORY being the descriptor of the shared memory for answers.
It imports as little as it can. Requests come on standard input: a length (u32), then paths joined by NUL, each behind
`s` (statvfs and stat), `v` (statvfs only), `i` (stat only) or `l` (lstat of a path below a root, written `ROOT//PATH`,
through no link but those of the root itself). Each answer goes into its slot, whose last number then is
no longer 0, so that the parent can see which path hangs; a byte on standard output says that it is ready, then that a
request is done.
"""

import ctypes
import mmap
import os
import struct
import sys

# the errno of stat; the ten numbers of statvfs in their order, or five of stat; 1, or minus the errno. The last is
# written last: a helper that is killed while it writes leaves no answer, rather than one of zeros
ANSWER = struct.Struct("=i10Qi")
LENGTH = struct.Struct("=I")
PR_SET_PDEATHSIG, SIGKILL = 1, 9  # linux/prctl.h, signal(7); importing signal would cost 0.7 MiB
_NOTHING = (0,) * 10
_REST = (0,) * 5
ELOOP, TYPE, LINK = 40, 0o170000, 0o120000  # errno(3), inode(7); so does importing these


def look(path: bytes) -> os.stat_result:
    """Return what lstat says of a path below a root; a link on the way is refused, whoever put it there."""
    root, _, way = path.rpartition(b"//")
    *above, name = way.split(b"/")
    place = os.open(root or b"/", os.O_PATH | os.O_DIRECTORY)
    try:
        for part in above:
            below = os.open(part, os.O_PATH | os.O_NOFOLLOW, dir_fd=place)
            os.close(place)
            place = below
            if os.fstat(place).st_mode & TYPE == LINK:
                raise OSError(ELOOP, "a link is on the way")
        return os.stat(name, dir_fd=place, follow_symlinks=False) if name else os.fstat(place)
    finally:
        os.close(place)


def answer(memory: mmap.mmap, place: int, path: bytes) -> None:
    """Write what statvfs and stat say of one mount point, or stat alone of one file."""
    refused = 0
    try:
        if path[0] in b"il":
            found = os.stat(path[1:]) if path[0] == ord("i") else look(path[1:])
            numbers = found.st_mode, found.st_dev, found.st_ino, found.st_nlink, found.st_blocks
            ANSWER.pack_into(memory, place, 0, *numbers, *_REST, 1)
            return
        space = os.statvfs(path[1:])
        if path[0] == ord("s"):
            try:
                os.stat(path[1:])
            except OSError as error:
                refused = error.errno or 0
        ANSWER.pack_into(memory, place, refused, *space, 1)
    except OSError as error:
        ANSWER.pack_into(memory, place, 0, *_NOTHING, -(error.errno or 1))


def main() -> None:
    """Answer requests until standard input ends; end with the parent in any case, even while a path hangs."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
    memory = mmap.mmap(int(sys.argv[1]), 0)
    requests = sys.stdin.buffer
    os.write(1, b".")
    while len(head := requests.read(LENGTH.size)) == LENGTH.size:
        place = 0
        for path in requests.read(LENGTH.unpack(head)[0]).split(b"\0"):
            answer(memory, place, path)
            place += ANSWER.size
        os.write(1, b".")


if __name__ == "__main__":
    main()
