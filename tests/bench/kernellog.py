"""A storm of 100,000 lines of the kernel's own in its log, against a C program that only reads them."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agent.collector import Start
from agent.host import Host
from collectors.kernellog import KernelLog, Settings
from tests.bench.cgroups import compile_c
from tests.bench.measure import Result, own_cpu, rounds, spent
from tests.settings import setting

STORM = 100_000
FILL = 30_000  # more lines than the kernel keeps
OPTIONS = b"metacopy=on,redirect_dir=nofollow,lowerdir=/,upperdir=/,workdir=/"  # overlayfs refuses, and says why


def fill(directory: Path) -> None:
    """Have the kernel say what is an event until its log holds nothing else."""
    libc = ctypes.CDLL(None, use_errno=True)
    for _ in range(FILL):
        refused = libc.mount(b"overlay", os.fsencode(directory), b"overlay", 0, OPTIONS)
        assert refused != 0, "overlayfs takes what it should refuse"


class Reader:
    """The collector, reading the whole log as if all of it had come since its last run."""

    def __init__(self) -> None:
        self._host = Host()
        self.counted = self.read()

    def read(self) -> int:
        """Return how many lines were read, and taken for what they are."""
        log = KernelLog(Start(self._host, Settings(lines=STORM)))
        log._open(self._host)
        counts = log._begin(self._host)
        lines = 0
        for record in log._read(self._host):
            log._take(self._host, counts, record)
            lines += 1
        log.close()
        assert ("overlayfs", "conflicting_options", "") in counts.events, "the log is not full of these lines"
        return lines


def run() -> Iterator[Result]:
    if os.geteuid() != 0 or shutil.which("gcc") is None or not os.path.exists("/dev/kmsg"):
        print("kernellog: skipped, needs root, gcc and /dev/kmsg")
        return
    with tempfile.TemporaryDirectory() as directory:
        with setting("/proc/sys/kernel/printk", "1"):  # not to a serial console too, which takes 2 ms for each
            fill(Path(directory))
        reader = Reader()
        passes = -(-STORM // reader.counted)
        command = [compile_c("kmsg_read", directory), str(passes)]

        def ours() -> float:
            return spent(lambda: [reader.read() for _ in range(passes)], own_cpu)

        def theirs() -> float:
            return float(subprocess.run(command, check=True, capture_output=True).stdout.split()[1])

        values, detail = rounds(ours, theirs)
        yield Result(
            f"reading {passes * reader.counted:,} lines of the kernel's log, against C", values, 12, detail=detail
        )
