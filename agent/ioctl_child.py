"""The helper process of `agent.ioctl`: issues ioctls on request, and may hang for all we care.

Run as a script: `python -I -S ioctl_child.py`. A request on standard input is HEAD (the lengths of the path, of the
buffer's bytes that are sent, and of the whole buffer, which ends in zeros; the ioctl's number), the path, the bytes.
The answer on standard output is ANSWER (0 or an errno; the length), then the buffer as the kernel left it. A byte `.`
says that it is ready. A descriptor is open for one request only.
"""

import ctypes
import fcntl
import os
import signal
import struct
import sys

HEAD = struct.Struct("=IIII")
ANSWER = struct.Struct("=iI")
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def answer(path: bytes, number: int, buffer: bytearray) -> int:
    """Issue one ioctl, which changes the buffer; return 0 or the errno."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.ioctl(descriptor, number, buffer)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.errno or 1
    return 0


def main() -> None:
    """Answer requests until standard input ends; end with the parent in any case, even while one hangs."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(b".")
    answers.flush()
    while len(head := requests.read(HEAD.size)) == HEAD.size:
        path_size, sent, size, number = HEAD.unpack(head)
        path, buffer = requests.read(path_size), bytearray(requests.read(sent).ljust(size, b"\0"))
        refused = answer(path, number, buffer)
        answers.write(ANSWER.pack(refused, len(buffer)) + buffer)
        answers.flush()


if __name__ == "__main__":
    main()
