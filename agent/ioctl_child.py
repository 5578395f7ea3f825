"""The helper process of `agent.ioctl`: issues ioctls on request, and may hang for all we care.

Run as a script: `python -I -S ioctl_child.py`. A request on standard input is HEAD (the lengths of the path, of the
buffer's bytes that are sent, and of the whole buffer, which ends in zeros; the ioctl's number; how many pointers there
are), the path, the bytes, and for each pointer POINTER: where it stands in the buffer, and to which place in the same
buffer it is to point. The answer on standard output is ANSWER (0 or an errno; what the ioctl returned; the length),
then the buffer as the kernel left it. A byte `.` says that it is ready. A descriptor is open for one request only.
"""

import ctypes
import os
import struct
import sys

HEAD = struct.Struct("=IIIII")
POINTER = struct.Struct("=II")
ANSWER = struct.Struct("=iiI")
PR_SET_PDEATHSIG, SIGKILL = 1, 9  # linux/prctl.h, signal(7); importing signal would cost 0.7 MiB
LIBC = ctypes.CDLL(None, use_errno=True)


def answer(path: bytes, number: int, buffer: bytearray, pointers: list[tuple[int, int]]) -> tuple[int, int]:
    """Issue one ioctl, which changes the buffer; return 0 or the errno, and what the ioctl returned."""
    # not fcntl.ioctl: it gives the kernel a copy of a short buffer, to which no pointer leads
    memory = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    for place, target in pointers:
        struct.pack_into("=Q", buffer, place, ctypes.addressof(memory) + target)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return error.errno or 1, 0
    try:
        returned = LIBC.ioctl(descriptor, ctypes.c_ulong(number), ctypes.c_void_p(ctypes.addressof(memory)))
        return (ctypes.get_errno(), 0) if returned < 0 else (0, returned)
    finally:
        os.close(descriptor)


def main() -> None:
    """Answer requests until standard input ends; end with the parent in any case, even while one hangs."""
    LIBC.prctl(PR_SET_PDEATHSIG, SIGKILL)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(b".")
    answers.flush()
    while len(head := requests.read(HEAD.size)) == HEAD.size:
        path_size, sent, size, number, count = HEAD.unpack(head)
        path, buffer = requests.read(path_size), bytearray(requests.read(sent).ljust(size, b"\0"))
        pointers = [POINTER.unpack(requests.read(POINTER.size)) for _ in range(count)]
        answers.write(ANSWER.pack(*answer(path, number, buffer, pointers), len(buffer)) + buffer)
        answers.flush()


if __name__ == "__main__":
    main()
