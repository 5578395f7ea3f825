"""A second node for the demonstration: the lab's virtual machine, with an agent at work on its pools and drives.

On the host `second_node` boots it; inside, this module makes the pools, writes to them and starts the agent. Nothing
is taken down there: the machine's plug is pulled.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.stack import fetch, until
from tests.generate import ROOT
from tests.vm.cache import default_cache
from tests.vm.guest.pools import CHUNK, pool, run, write
from tests.vm.guest.zpool import Pool
from tests.vm.kernel import obtain
from tests.vm.machine import Machine
from tests.vm.zfs import Zfs

PORT = 10940
MIB = 1 << 20
DATA = 256  # MiB of the thin pool's data
READY = 180.0  # seconds: the processor is emulated


@contextlib.contextmanager
def second_node(port: int, zfs: Zfs | None = None) -> Iterator[None]:
    """Have it answer at a port of the host for the time of a block."""
    visible = [ROOT, Path(sys.prefix), default_cache(), *([zfs.root] if zfs else [])]
    with Machine(obtain(default_cache()), visible=visible, forwards={port: PORT}) as machine:
        if zfs is not None:
            zfs.install(machine)
        machine.submit([sys.executable, "-m", "tests.demo.guest"], cwd=str(ROOT))
        until(lambda: bool(fetch(f"http://127.0.0.1:{port}/-/ready")), "the second node is ready", READY)
        yield


def main() -> None:
    """Make the pools, start the agent, and fill and empty for ever."""
    run("modprobe", "-a", "ahci", "sd_mod")
    flags = [f"--web.listen-address=0.0.0.0:{PORT}", "--path.state=/run/ullage"]
    tank = Pool("/dev/vdc") if Path("/proc/spl/kstat/zfs").exists() else None
    with pool("docker-pool", data_mib=DATA) as made:
        subprocess.Popen([sys.executable, "-m", "agent", "run", *flags])
        if tank is not None:
            run("zfs", "create", "-o", "recordsize=16K", "-o", "quota=200M", f"{tank.name}/database")
        _make_xfs("/mnt/xfs")
        number = 0
        while True:
            part = number % (DATA - 16)
            write(made.thin, part * MIB, (part + 1) * MIB, CHUNK)
            write("/dev/nvme0n1", part * MIB, (part + 1) * MIB, 4096)
            _write_file(f"/mnt/xfs/{number % 100}", 4)
            if tank is not None:
                _write_file(f"/{tank.name}/database/{number % 100}", 1)
                _snapshot(f"{tank.name}/database", number)
            number += 1
            time.sleep(0.5)


def _snapshot(dataset: str, number: int) -> None:
    """Take a snapshot now and then, and keep it for a while: more would fill the quota."""
    if number % 40 == 0:
        run("zfs", "snapshot", f"{dataset}@autosnap-{number}")
        if number >= 80:
            run("zfs", "destroy", f"{dataset}@autosnap-{number - 80}")


def _make_xfs(mount: str) -> None:
    run("modprobe", "xfs")
    run("dmsetup", "create", "xfs", "--table", f"0 {1024 * 2048} linear /dev/vdc {1024 * 2048}")
    run("mkfs.xfs", "-q", "-f", "/dev/mapper/xfs")
    os.mkdir(mount)
    run("mount", "/dev/mapper/xfs", mount)


def _write_file(path: str, size: int) -> None:
    """Write so many MiB and have them on the disk."""
    with open(path, "wb") as file:
        file.write(os.urandom(size * MIB))
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
