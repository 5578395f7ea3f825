"""HelperIoctls: ioctls that may hang for ever, in a helper process.

The status of a dm-thin pool whose metadata device stalls, and a search in a btrfs whose device does, hang in state D:
no signal ends them, and a thread stuck there would keep the whole process from ending. There is one helper. When an
ioctl does not answer within the deadline, the helper is killed and the next question starts another. A helper that
SIGKILL does not end is left alone: its subject is `Stuck`, and not asked again, until the kernel lets go of it. So a
stuck subject costs one process, and the number of those is bounded.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from agent.errors import Failed, Stuck, from_os
from agent.ioctl_child import ANSWER, HEAD, POINTER

START_WITHIN = 10.0  # seconds until a helper is ready; the node may be very busy
REAP_WITHIN = 0.25  # seconds from SIGKILL to the end of a helper that can be killed
UNKILLABLE = 8  # helpers that may hang beyond SIGKILL before nothing is asked any more
NO_POINTERS: Mapping[int, int] = {}
_CHILD = str(Path(__file__).with_name("ioctl_child.py"))


class _Helper:
    """One helper process."""

    def __init__(self) -> None:
        try:
            self.process = subprocess.Popen(  # noqa: S603  our own script
                [sys.executable, "-I", "-S", _CHILD],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd="/",
            )
        except OSError as error:  # no process, no memory or no descriptor to be had
            raise from_os(_CHILD, error) from error
        assert self.process.stdout is not None
        # poll, for select(2) refuses descriptors over 1023, and collectors keep thousands open
        self._poller = select.poll()
        self._poller.register(self.process.stdout, select.POLLIN)
        if self._read(1, START_WITHIN) != b".":
            self.end()
            raise Failed(_CHILD, "the helper process does not start")

    def ask(
        self, path: bytes, number: int, buffer: bytes, pointers: Mapping[int, int], deadline: float
    ) -> tuple[int, int, bytes] | None:
        """Return 0 or an errno, what the ioctl returned, and the buffer as it came back; None when no answer comes.

        Raises OSError if the process died.

        Zeros at the buffer's end are not sent, which keeps a request below the 64 KiB of a pipe: sending never blocks.
        """
        assert self.process.stdin is not None
        sent = buffer.rstrip(b"\0")
        head = HEAD.pack(len(path), len(sent), len(buffer), number, len(pointers))
        tail = b"".join(POINTER.pack(*each) for each in pointers.items())
        self.process.stdin.write(head + path + sent + tail)
        answer = self._read(ANSWER.size, deadline)
        if answer is None:
            return None
        refused, returned, size = ANSWER.unpack(answer)
        body = self._read(size, deadline)
        return None if body is None else (refused, returned, body)

    def _read(self, size: int, deadline: float) -> bytes | None:
        assert self.process.stdout is not None
        until = time.monotonic() + deadline
        text = b""
        while len(text) < size:
            left = until - time.monotonic()
            if left <= 0 or not self._poller.poll(left * 1000):
                return None
            part = os.read(self.process.stdout.fileno(), size - len(text))
            if not part:
                raise BrokenPipeError
            text += part
        return text

    def end(self) -> bool:
        """Kill the process; return whether it is gone."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()
        try:
            self.process.wait(REAP_WITHIN)
        except subprocess.TimeoutExpired:
            return False
        return True


class HelperIoctls:
    """Implements `agent.host.Ioctls`. `deadline` is in seconds, of one ioctl; thread-safe."""

    def __init__(self, deadline: float = 2.0, unkillable: int = UNKILLABLE) -> None:
        self._deadline = deadline
        self._most_unkillable = unkillable
        self._lock = threading.Lock()
        self._helper: _Helper | None = None
        self._is_closed = False
        self._unkillable: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def pid(self) -> int | None:
        """The helper's process id, if one is running."""
        return self._helper.process.pid if self._helper is not None else None

    def ask(
        self, path: str, number: int, buffer: bytes, subject: str, pointers: Mapping[int, int] = NO_POINTERS
    ) -> bytes:
        """Return the buffer as the kernel left it. Raises a HostError named after `subject`, Stuck among them."""
        with self._lock:
            self._unkillable = {each: process for each, process in self._unkillable.items() if process.poll() is None}
            if subject in self._unkillable:
                raise Stuck(subject, "does not answer; the helper process that asked it cannot be killed")
            if self._is_closed or len(self._unkillable) >= self._most_unkillable:
                reason = "the agent stops" if self._is_closed else "too many helper processes hang"
                raise Failed(subject, f"not asked: {reason}")
            return self._ask(os.fsencode(path), number, buffer, subject, pointers)

    def _ask(self, path: bytes, number: int, buffer: bytes, subject: str, pointers: Mapping[int, int]) -> bytes:
        for is_last in (False, True):
            helper = self._helper = self._helper or _Helper()
            try:
                answer = helper.ask(path, number, buffer, pointers, self._deadline)
            except OSError:  # somebody killed it: once more
                self._end_helper()
                if is_last or self._is_closed:
                    raise Failed(subject, "the helper process died") from None
                continue
            if answer is None:
                self._helper = None
                if not helper.end():
                    self._unkillable[subject] = helper.process
                raise Stuck(subject, "does not answer")
            refused, returned, left = answer
            if refused:
                raise from_os(subject, OSError(refused, os.strerror(refused)))
            if returned:  # as a drive's own status is
                raise Failed(subject, f"the ioctl returned {returned:#x}")
            return left
        raise AssertionError

    def _end_helper(self) -> None:
        if self._helper is not None:
            self._helper.end()
            self._helper = None

    def close(self) -> None:
        """End the helper, also while an `ask` waits for it; nothing is asked any more."""
        self._is_closed = True
        if (helper := self._helper) is not None:
            helper.process.kill()
        if self._lock.acquire(timeout=REAP_WITHIN):
            try:
                self._end_helper()
            finally:
                self._lock.release()
