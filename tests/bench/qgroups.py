"""The qgroup collector on 3,000 qgroups of a real btrfs, against C that reads sysfs, 6 files each, and against btrfs.

`btrfs qgroup show` asks for what was last committed, 64 KiB at a time; so does the collector, but for what has a limit.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agent.collector import Start
from agent.config import load
from agent.exposition import Pages
from agent.host import Host
from agent.ioctl import HelperIoctls
from agent.latches import Latches
from agent.runner import Runner
from collectors.qgroup import COLLECTOR, NUMBERS, RESERVATIONS
from tests.bench.cgroups import compile_c
from tests.bench.measure import Result, cpu_of, own_cpu, rounds, spent

QGROUPS = 3000
SWEEPS = 5
SUBVOL_CREATE = 0x5000940E  # linux/btrfs.h
TOOLS = ("mkfs.btrfs", "btrfs", "losetup", "gcc")


def command(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def make_subvolumes(mount: Path, numbers: range) -> None:
    """Make subvolumes, and with quota on their qgroups; one in ten has a limit."""
    descriptor = os.open(mount, os.O_RDONLY)
    try:
        for number in numbers:
            name = f"subvolume-{number}".encode().ljust(4088, b"\0")
            fcntl.ioctl(descriptor, SUBVOL_CREATE, bytearray(struct.pack("=q", 0) + name))
    finally:
        os.close(descriptor)
    for number in numbers[::10]:
        command("btrfs", "qgroup", "limit", "1G", f"{mount}/subvolume-{number}")
    command("btrfs", "filesystem", "sync", str(mount))


@contextlib.contextmanager
def btrfs(directory: Path, count: int = QGROUPS) -> Iterator[Path]:
    """Have a btrfs with so many subvolumes, quota on and consistent."""
    image, mount = directory / "image", directory / "mount"
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(1 << 30)
    command("mkfs.btrfs", "-q", str(image))
    with contextlib.ExitStack() as stack:
        device = command("losetup", "--find", "--show", str(image))
        stack.callback(command, "losetup", "--detach", device)
        command("mount", device, str(mount))
        stack.callback(command, "umount", str(mount))
        command("btrfs", "quota", "enable", str(mount))
        make_subvolumes(mount, range(count))
        command("btrfs", "quota", "rescan", "-w", str(mount))
        yield mount


def files(mount: Path) -> list[str]:
    """Return the files in sysfs that say what holds now of each qgroup."""
    sysfs = f"/sys/fs/btrfs/{command('findmnt', '--noheadings', '--output', 'UUID', str(mount))}/qgroups"
    return [
        f"{sysfs}/{qgroup}/{name}"
        for qgroup in os.listdir(sysfs)
        if "_" in qgroup[:2]
        for name in (*NUMBERS, *RESERVATIONS)
    ]


def run() -> Iterator[Result]:
    if os.geteuid() != 0 or any(shutil.which(tool) is None for tool in TOOLS):
        print(f"qgroups: skipped, needs root, {', '.join(TOOLS)}")
        return
    ioctls = HelperIoctls()
    pages = Pages()
    pages.members("text", gzip=True)  # from now on each page is compressed, as after a first scrape
    (plan,) = load(None, [COLLECTOR], {}).plans
    runner = Runner(plan, Host(ioctls=ioctls), Latches(None), pages)
    running = plan.collector.start(Start(runner.host, plan.settings))
    with contextlib.closing(ioctls), tempfile.TemporaryDirectory() as directory, btrfs(Path(directory)) as mount:
        listing = f"{directory}/list"
        Path(listing).write_text("".join(f"{path}\n" for path in files(mount)))
        program = [compile_c("sweep_open", directory), listing, str(SWEEPS)]

        def ours() -> float:
            runner.run(running)  # starts the helper, if it is the first
            cost = spent(lambda: runner.run(running), own_cpu, lambda: cpu_of(ioctls.pid or 0))
            assert runner.outcome.is_up, runner.outcome.reason
            assert runner.outcome.series > 2 * QGROUPS
            assert not runner.errors
            return cost

        def files_only() -> float:
            return float(subprocess.run(program, check=True, capture_output=True).stdout) / SWEEPS

        def show() -> float:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            for _ in range(SWEEPS):
                command("btrfs", "qgroup", "show", "--raw", "-re", str(mount))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) / SWEEPS

        values, detail = rounds(ours, files_only)
        yield Result(f"collector of {QGROUPS:,} qgroups, page and gzip, against C on sysfs", values, 1.0, detail=detail)
        values, detail = rounds(ours, show)
        yield Result("the same, against `btrfs qgroup show`", values, 6.0, detail=detail)
