"""HostCommands: the host's own programs, for the few things that neither a file nor an ioctl tells.

`zfs`, `zpool` and `smartctl` match the host's kernel and drives, so they are run in the host's root (chroot(8)) where
that is not ours. A program that does not end in time is killed; one that SIGKILL does not end hangs in the kernel: its
subject is `Stuck` and not asked again until it is gone.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Sequence

from agent.errors import Failed, Stuck, Vanished, from_os

REAP_WITHIN = 0.25  # seconds from SIGKILL to the end of a program that can be killed
LARGEST = 16 << 20  # bytes of output: a bound
NOT_FOUND = (126, 127)  # exit codes of chroot(8): the program cannot be run, is not there
_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


class HostCommands:
    """Implements `agent.host.Commands`. Thread-safe; two subjects never wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, root: str, argv: Sequence[str], deadline: float, subject: str) -> tuple[int, bytes]:
        """Return a program's exit code and output. Raises a HostError named after `subject`, Stuck among them."""
        with self._lock:
            before = self._running.get(subject)
            if before is not None and before.poll() is None:
                raise Stuck(subject, f"{argv[0]} does not end, and cannot be killed")
            command = ["chroot", root, *argv] if root else [*argv]
            try:
                process = subprocess.Popen(  # noqa: S603  a fixed program of the host's
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=_ENVIRONMENT,
                    cwd="/",
                )
            except OSError as error:
                raise from_os(subject, error) from error
            self._running[subject] = process
        try:
            output, _ = process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            self._end(process)
            raise Stuck(subject, f"{argv[0]} did not end in {deadline:g} s") from None
        if root and process.returncode in NOT_FOUND:
            raise Vanished(subject, f"{argv[0]} is not to be had on the host")
        if len(output) > LARGEST:
            raise Failed(subject, f"{argv[0]} says more than {LARGEST} bytes")
        return process.returncode, output

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        assert process.stdout is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(REAP_WITHIN)
        process.stdout.close()

    def close(self) -> None:
        """Kill what still runs."""
        with self._lock:
            for process in self._running.values():
                if process.poll() is None:
                    process.kill()
