"""HelperProber: measures mounts in a helper process, as statvfs(2) on a sick mount may hang for ever.

A thread that hangs there cannot be ended; a process can, in most cases. There is one helper. When a path does not
answer within the deadline, the helper is killed and a new one goes on with the rest. A helper that even SIGKILL does
not end (state D: a hard NFS mount, a FUSE server that has taken the request and keeps it) is left alone with its path
until the kernel lets go of it; their number is bounded, as each holds 4 MiB.
"""

from __future__ import annotations

import math
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
REAP_WITHIN = 0.25  # seconds from SIGKILL to the end of a helper that can be killed
UNKILLABLE = 8  # helpers that may hang beyond SIGKILL before nothing is asked any more
SHORT = 20  # the least that a path has when many hang: this part of the deadline
FORGET_AFTER = 600.0  # seconds that a path which hung is asked last, if nobody asks for it
_CHILD = str(Path(__file__).with_name("probe_child.py"))

Answer = Space | HostError


class _Helper:
    """One helper process and the memory that it answers in. `has_died` tells that it ended by itself."""

    def __init__(self) -> None:
        self.has_died = False
        try:
            self._memory, self.process = self._start()
        except OSError as error:  # no process, no memory or no descriptor to be had
            raise from_os(_CHILD, error) from error
        assert self.process.stdout is not None
        self._poller = select.poll()
        self._poller.register(self.process.stdout, select.POLLIN)
        if not self._poller.poll(START_WITHIN * 1000) or not self.process.stdout.read(1):
            self.end()
            raise Failed(_CHILD, "the helper process does not start")

    def _start(self) -> tuple[mmap.mmap, subprocess.Popen[bytes]]:
        descriptor = os.memfd_create("ullage-answers", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, BATCH * ANSWER.size)
            memory = mmap.mmap(descriptor, 0)
            process = subprocess.Popen(  # noqa: S603  our own script
                [sys.executable, "-I", "-S", _CHILD, str(descriptor)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(descriptor,),
                cwd="/",
            )
        finally:
            os.close(descriptor)
        return memory, process

    def ask(self, requests: Sequence[bytes], deadline: float) -> list[Answer]:
        """Return each request's answer up to the first that takes more than `deadline` seconds, or until it died."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._memory[: len(requests) * ANSWER.size] = bytes(len(requests) * ANSWER.size)
        text = b"\0".join(requests)
        try:
            self.process.stdin.write(LENGTH.pack(len(text)) + text)
        except BrokenPipeError:
            self.has_died = True
            return []
        answered = 0
        while not self._poller.poll(deadline * 1000):
            before, answered = answered, self._answered(len(requests))
            if answered == before:
                return self._answers(requests[:answered])
        if self.process.stdout.read(1):
            return self._answers(requests)
        self.has_died = True
        return self._answers(requests[: self._answered(len(requests))])

    def _answered(self, count: int) -> int:
        answers = ANSWER.iter_unpack(self._memory[: count * ANSWER.size])
        return next((number for number, answer in enumerate(answers) if not answer[-1]), count)

    def _answers(self, requests: Sequence[bytes]) -> list[Answer]:
        new = tuple.__new__
        answers = ANSWER.iter_unpack(self._memory[: len(requests) * ANSWER.size])
        return [
            new(Space, answer[:-1]) if answer[-1] > 0 else _refusal(request, -answer[-1])
            for request, answer in zip(requests, answers, strict=True)
        ]

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
    """Implements `agent.host.Prober`. `deadline` is in seconds, of one path; thread-safe.

    A round takes longer than one deadline only when mounts begin to hang in it. Those that hung before are asked last
    and share one deadline, in turn, so that all others are fresh whatever these do.
    """

    def __init__(self, deadline: float = 2.0, unkillable: int = UNKILLABLE, forget_after: float = FORGET_AFTER) -> None:
        self._deadline = deadline
        self._most_unkillable = unkillable
        self._forget_after = forget_after
        self._lock = threading.Lock()
        self._is_closed = False
        self._began = 0.0  # of this round, on the monotonic clock
        self._helper: _Helper | None = None
        self._stuck: dict[bytes, float] = {}  # request: when it was last asked
        self._unkillable: dict[bytes, subprocess.Popen[bytes]] = {}

    @property
    def pid(self) -> int | None:
        """The helper's process id, if one is running."""
        return self._helper.process.pid if self._helper is not None else None

    def measure(self, points: Points) -> list[Answer]:
        """Return one answer per point, in order; raises HostError when no helper can be started."""
        with self._lock:
            try:
                return self._measure(points.requests)
            finally:
                if self._is_closed:
                    self._end_helper()

    def close(self) -> None:
        """End the helper, also while a `measure` waits for it; nothing is measured any more."""
        self._is_closed = True
        if (helper := self._helper) is not None:
            helper.process.kill()
        if self._lock.acquire(timeout=REAP_WITHIN):
            try:
                self._end_helper()
                self._let_go()
            finally:
                self._lock.release()

    def _end_helper(self) -> None:
        if self._helper is not None:
            self._helper.end()
            self._helper = None

    def _measure(self, wanted: Sequence[bytes]) -> list[Answer]:
        self._began = time.monotonic()
        self._let_go()
        fine = [request for request in wanted if request not in self._stuck] if self._stuck else wanted
        given = self._ask(fine, self._deadline)
        if not self._stuck:
            return given
        answers = dict(zip(fine, given, strict=True))
        self._ask_suspects(wanted, answers)
        return [answers[request] for request in wanted]

    def _let_go(self) -> None:
        """Forget helpers that the kernel has let go of, and paths that nobody asks for any longer."""
        if self._unkillable:
            self._unkillable = {each: process for each, process in self._unkillable.items() if process.poll() is None}
        if self._stuck:
            oldest = self._began - self._forget_after
            self._stuck = {
                each: asked for each, asked in self._stuck.items() if asked > oldest or each in self._unkillable
            }

    def _why_not(self) -> str | None:
        if self._is_closed:
            return "the agent stops"
        if len(self._unkillable) >= self._most_unkillable:
            return f"{len(self._unkillable)} helper processes hang and cannot be killed"
        return None

    def _ask_suspects(self, requests: Sequence[bytes], answers: dict[bytes, Answer]) -> None:
        """Ask those that hung before, the longest unasked first; those that had a whole deadline just now are not."""
        suspects = {each: self._stuck[each] for each in requests if self._stuck.get(each, math.inf) <= self._began}
        share = self._deadline / min(max(1, len(suspects)), SHORT)
        until = time.monotonic() + self._deadline
        for request in sorted(suspects, key=suspects.__getitem__):
            answers.setdefault(request, _stuck(request))
            if request not in self._unkillable and self._why_not() is None and time.monotonic() < until:
                (answers[request],) = self._ask([request], share)

    def _ask(self, requests: Sequence[bytes], deadline: float) -> list[Answer]:
        """Return an answer per request. Once one has hung, the others have a short time each: they are asked again."""
        answers: list[Answer] = []
        died_at, is_short = None, False
        while len(answers) < len(requests) and self._why_not() is None:
            batch = _first_batch(requests, len(answers))
            helper = self._helper = self._helper or _Helper()
            given = helper.ask(batch, deadline)
            answers += given
            for request in batch[: len(given)] if self._stuck else ():
                self._stuck.pop(request, None)
            if len(given) == len(batch):
                continue
            request = batch[len(given)]
            self._helper = None
            if not helper.end():
                self._unkillable[request] = helper.process
            if helper.has_died and died_at != request:  # somebody killed it, not the path: once more
                died_at = request
            elif helper.has_died:
                answers.append(Failed(_path(request), "the helper process died twice"))
            else:
                answers.append(_stuck(request))
                self._stuck[request] = self._began if is_short else time.monotonic()
                deadline, is_short = self._deadline / SHORT, True
        reason = self._why_not()
        return answers + [Failed(_path(request), f"not asked: {reason}") for request in requests[len(answers) :]]


def _first_batch(requests: Sequence[bytes], start: int) -> list[bytes]:
    batch: list[bytes] = []
    size = 0
    for request in requests[start : start + BATCH]:
        size += len(request) + 1
        if batch and size > REQUEST_BYTES:
            break
        batch.append(request)
    return batch


def _path(request: bytes) -> str:
    return os.fsdecode(request[1:]).replace("//", "/")


def _stuck(request: bytes) -> Stuck:
    return Stuck(_path(request), "does not answer")


def _refusal(request: bytes, number: int) -> HostError:
    return from_os(_path(request), OSError(number, os.strerror(number)))
