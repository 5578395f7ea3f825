"""HelperProber: measures mounts in a helper process, as statvfs(2) on a sick mount may hang for ever.

A thread that hangs there cannot be ended; a process can, in most cases. There is one helper. When a path does not
answer within the deadline, the helper is killed and a new one goes on with the rest. A helper that even SIGKILL does
not end (a hard hang, state D) is left alone with its path until the kernel lets go of it; their number is bounded.
"""

from __future__ import annotations

import mmap
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from agent.errors import Failed, HostError, Stuck, from_os
from agent.host import Points, Space
from agent.probe_child import ANSWER, LENGTH

BATCH = 1024  # paths of one request
REQUEST_BYTES = 60_000  # of one request: below the 64 KiB of a pipe, so that sending one never blocks
START_WITHIN = 10.0  # seconds until a helper is ready; the node may be very busy
REAP_WITHIN = 1.0  # seconds from SIGKILL to the end of a helper that can be killed
UNKILLABLE = 4  # helpers that may hang beyond SIGKILL before nothing is asked any more
_CHILD = str(Path(__file__).with_name("probe_child.py"))


class _Helper:
    """One helper process and the memory that it answers in."""

    def __init__(self) -> None:
        descriptor = os.memfd_create("ullage-answers", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, BATCH * ANSWER.size)
            self._memory = mmap.mmap(descriptor, 0)
            self.process = subprocess.Popen(  # noqa: S603  our own script
                [sys.executable, "-I", "-S", _CHILD, str(descriptor)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(descriptor,),
                cwd="/",
            )
        finally:
            os.close(descriptor)
        assert self.process.stdout is not None
        poller = select.poll()
        poller.register(self.process.stdout, select.POLLIN)
        if not poller.poll(START_WITHIN * 1000) or not self.process.stdout.read(1):
            self.end()
            raise Failed(_CHILD, "the helper process does not start")

    def ask(self, paths: Sequence[bytes], deadline: float) -> list[Space | int]:
        """Return each path's Space, or minus the errno of statvfs, up to the first that does not answer.

        That is one which takes more than `deadline` seconds.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._memory[: len(paths) * ANSWER.size] = bytes(len(paths) * ANSWER.size)
        request = b"\0".join(paths)
        try:
            self.process.stdin.write(LENGTH.pack(len(request)) + request)
        except BrokenPipeError:
            return []
        poller = select.poll()
        poller.register(self.process.stdout, select.POLLIN)
        answered = 0
        while not poller.poll(deadline * 1000):
            before, answered = answered, self._answered(len(paths))
            if answered == before:
                break
        else:
            answered = len(paths) if self.process.stdout.read(1) else self._answered(len(paths))
        return self._answers(answered)

    def _answered(self, count: int) -> int:
        answers = ANSWER.iter_unpack(self._memory[: count * ANSWER.size])
        return next((number for number, answer in enumerate(answers) if not answer[0]), count)

    def _answers(self, count: int) -> list[Space | int]:
        new = tuple.__new__
        answers = ANSWER.iter_unpack(self._memory[: count * ANSWER.size])
        return [new(Space, answer[1:]) if answer[0] > 0 else answer[0] for answer in answers]

    @property
    def has_died(self) -> bool:
        """Whether the process has ended by itself."""
        return self.process.poll() is not None

    def end(self) -> bool:
        """Kill the process; return whether it is gone."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self._memory.close()
        self.process.kill()
        try:
            self.process.wait(REAP_WITHIN)
        except subprocess.TimeoutExpired:
            return False
        return True


class HelperProber:
    """Implements `agent.host.Prober`. `deadline` is in seconds, of one path; thread-safe."""

    def __init__(self, deadline: float = 2.0) -> None:
        self._deadline = deadline
        self._lock = threading.Lock()
        self._helper: _Helper | None = None
        self._stuck: dict[bytes, float] = {}  # path: when it was last asked
        self._unkillable: dict[bytes, subprocess.Popen[bytes]] = {}

    @property
    def pid(self) -> int | None:
        """The helper's process id, if one is running."""
        return self._helper.process.pid if self._helper is not None else None

    def measure(self, points: Points) -> list[Space | HostError]:
        """Return one answer per point, in order. Those that hung before are asked last, within one deadline in all."""
        with self._lock:
            self._forget(points.requests)
            answers = self._ask_suspects_last(points.requests) if self._stuck else self._ask(points.requests)
        return [
            answer if type(answer) is Space else _refusal(path, answer)
            for path, answer in zip(points.paths, answers, strict=True)
        ]

    def close(self) -> None:
        """End the helper."""
        with self._lock:
            if self._helper is not None:
                self._helper.end()
                self._helper = None

    def _forget(self, paths: Sequence[bytes]) -> None:
        """Forget stuck paths that nobody asks for any longer, and helpers that the kernel has let go of."""
        if self._stuck:
            wanted = set(paths)
            self._stuck = {path: asked for path, asked in self._stuck.items() if path in wanted}
        self._unkillable = {path: process for path, process in self._unkillable.items() if process.poll() is None}

    def _ask_suspects_last(self, paths: Sequence[bytes]) -> list[Space | int | None]:
        fine = [path for path in paths if path not in self._stuck]
        answers = dict(zip(fine, self._ask(fine), strict=True))
        until = time.monotonic() + self._deadline
        suspects = {path: self._stuck[path] for path in paths if path in self._stuck and path not in answers}
        for path in sorted(suspects, key=suspects.__getitem__):
            if path not in self._unkillable and time.monotonic() < until:
                (answers[path],) = self._ask([path])
        return [answers.get(path) for path in paths]

    def _ask(self, paths: Sequence[bytes]) -> list[Space | int | None]:
        """Return an answer per path, None for one that hangs."""
        answers: list[Space | int | None] = []
        retried = None
        while len(answers) < len(paths) and len(self._unkillable) < UNKILLABLE:
            batch = _first_batch(paths[len(answers) :])
            helper = self._helper = self._helper or _Helper()
            given = helper.ask(batch, self._deadline)
            answers += given
            for path in batch[: len(given)] if self._stuck else ():
                self._stuck.pop(path, None)
            if len(given) == len(batch):
                continue
            hanging = batch[len(given)]
            self._helper = None
            if helper.has_died and retried != hanging:  # somebody killed it, not the path: once more
                retried = hanging
                helper.end()
                continue
            answers.append(None)
            self._stuck[hanging] = time.monotonic()
            if not helper.end():
                self._unkillable[hanging] = helper.process
        return answers + [None] * (len(paths) - len(answers))


def _first_batch(paths: Sequence[bytes]) -> list[bytes]:
    batch: list[bytes] = []
    size = 0
    for path in paths[:BATCH]:
        size += len(path) + 1
        if batch and size > REQUEST_BYTES:
            break
        batch.append(path)
    return batch


def _refusal(path: str, answer: Space | int | None) -> HostError:
    if not isinstance(answer, int):
        return Stuck(path, "does not answer")
    return from_os(path, OSError(-answer, os.strerror(-answer)))
