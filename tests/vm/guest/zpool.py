"""A real ZFS pool whose device can be taken away and given back."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

KSTATS = Path("/proc/spl/kstat/zfs")

_SECTORS = 1 << 20
_SECONDS = 30.0


def run(*command: str) -> str:
    """Return the stdout of a command that must not fail."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS).stdout


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Return as soon as something holds."""
    until = time.monotonic() + _SECONDS
    while not holds():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def parse_kstat(text: str) -> dict[str, str]:
    """Return the values of a kstat by name.

    One line, after two that head the table: `nwritten                        4    16384000`.
    """
    return {name: value for name, _, value in (line.split(maxsplit=2) for line in text.splitlines()[2:])}


class Pool:
    """A pool of 512 MiB, mounted at /<name>, on a device-mapper device of the same name at the start of a disk.

    Not on the disk itself: ZFS would partition it, and wait for a udevd to show the partitions.
    """

    def __init__(self, disk: str, name: str = "tank") -> None:
        self.name = name
        self._whole = f"0 {_SECTORS} linear {disk} 0"
        self._blocked: subprocess.Popen[bytes] | None = None
        run("dmsetup", "create", name, "--table", self._whole)
        run("zpool", "create", "-f", "-O", "compression=off", "-m", f"/{name}", name, f"/dev/mapper/{name}")

    def state(self) -> str:
        """Return what the kernel says of the pool's state."""
        return (KSTATS / self.name / "state").read_text().strip()

    def objset(self, dataset: str) -> dict[str, str]:
        """Return the kstat of a mounted dataset."""
        every = [parse_kstat(path.read_text()) for path in (KSTATS / self.name).glob("objset-*")]
        (found,) = [kstat for kstat in every if kstat["dataset_name"] == dataset]
        return found

    def suspend(self) -> None:
        """Take the device away, and return when ZFS has noticed."""
        self._load(f"0 {_SECTORS} error")
        self._blocked = subprocess.Popen(["zpool", "sync", "-f", self.name])  # until the device is back
        wait_until(lambda: self.state() == "SUSPENDED", "the pool was not suspended")

    def give_back(self) -> None:
        """Give the device back; ZFS takes it when it is told to."""
        self._load(self._whole)

    def resume(self) -> None:
        """Give the device back, and return when the pool is healthy."""
        self.give_back()
        run("zpool", "clear", self.name)
        wait_until(lambda: self.state() == "ONLINE", "the pool did not recover")
        if self._blocked:
            self._blocked.wait(_SECONDS)

    def destroy(self) -> None:
        """Remove the pool, suspended or not, and its device."""
        if self.state() == "SUSPENDED":
            self.resume()
        run("zpool", "destroy", "-f", self.name)
        run("dmsetup", "remove", self.name)

    def _load(self, table: str) -> None:
        run("dmsetup", "suspend", "--nolockfs", "--noflush", self.name)
        run("dmsetup", "reload", self.name, "--table", table)
        run("dmsetup", "resume", self.name)
