"""Real thin pools in the guest, by dmsetup and by LVM, and the collector at work on them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.collector import Start
from agent.config import load
from agent.containers import Runtimes
from agent.exposition import Pages
from agent.host import Host
from agent.ioctl import HelperIoctls
from agent.latches import Latches
from agent.runner import Runner
from collectors import thinpool

CHUNK = 65536  # bytes of a data block
LEAF = 64 * CHUNK  # bytes that one leaf of a thin device's btree maps, at least: a write in each copies every leaf
SECTOR = 512
LVM_CONF = Path("/etc/lvm/lvm.conf")
LVM = """
global { use_lvmpolld=0 event_activation=0 use_lvmlockd=0 }
activation { udev_sync=0 udev_rules=0 monitoring=0 verify_udev_operations=0 THRESHOLD }
devices { use_devicesfile=0 obtain_device_list_from_udev=0 external_device_info_source="none" scan="/dev" }
backup { backup=1 archive=0 }
"""


def run(*command: str) -> str:
    """Run a command that must succeed; return what it prints."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout.strip()


def write(path: str, start: int, end: int, step: int = CHUNK) -> int:
    """Write 4 KiB at each step and have it on the disk; return the errno that ended it, 0 if none did."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for place in range(start, end, step):
            os.pwrite(descriptor, b"\x5a" * 4096, place)
        os.fsync(descriptor)
    except OSError as error:
        return error.errno or -1
    finally:
        with contextlib.suppress(OSError):  # what could not be written is told a second time
            os.close(descriptor)
    return 0


def until_settled(pool: str) -> None:
    """Wait until the kernel, which does so every second, has committed what was written."""
    time.sleep(1.1)
    before, now = "", run("dmsetup", "status", "--noflush", pool)
    while before != now:
        time.sleep(0.2)
        before, now = now, run("dmsetup", "status", "--noflush", pool)


@contextlib.contextmanager
def mapped(name: str, table: str) -> Iterator[str]:
    """Have a mapped device for the time of a block; return its path."""
    run("dmsetup", "create", name, "--table", table)
    try:
        yield f"/dev/mapper/{name}"
    finally:
        run("dmsetup", "remove", "--retry", name)


@dataclass
class Pool:
    """A pool that dmsetup made, with one thin device."""

    name: str

    @property
    def thin(self) -> str:
        return f"/dev/mapper/{self.name}-t0"

    def status(self) -> str:
        return run("dmsetup", "status", "--noflush", self.name)

    def snapshot(self, number: int) -> None:
        run("dmsetup", "suspend", f"{self.name}-t0")
        run("dmsetup", "message", self.name, "0", f"create_snap {number} 0")
        run("dmsetup", "resume", f"{self.name}-t0")

    def message(self, text: str) -> None:
        run("dmsetup", "message", self.name, "0", text)

    def swap_metadata(self, table: str) -> None:
        """Put another table under the pool's metadata."""
        device = f"{self.name}-meta"
        run("dmsetup", "suspend", "--nolockfs", device)
        run("dmsetup", "reload", device, "--table", table)
        run("dmsetup", "resume", device)


@contextlib.contextmanager
def empty_pool(name: str, *, data_mib: int = 1024, at_mib: int = 0) -> Iterator[str]:
    """Have a pool with 2 MiB of metadata, on the second disk, and data on the first, both from a place on."""
    run("modprobe", "dm-thin-pool")
    sectors, at = data_mib * 2048, at_mib * 2048
    with (
        mapped(f"{name}-meta", f"0 4096 linear /dev/vdb {at}") as meta,
        mapped(f"{name}-data", f"0 {sectors} linear /dev/vda {at}") as data,
    ):
        run("dd", "if=/dev/zero", f"of={meta}", "bs=1M", "count=2", "conv=fsync", "status=none")
        table = f"0 {sectors} thin-pool {meta} {data} {CHUNK // SECTOR} 64 1 skip_block_zeroing"
        with mapped(name, table):
            try:
                yield name
            finally:
                for line in run("dmsetup", "ls", "--target", "thin").splitlines():
                    if line.startswith(f"{name}-"):  # containerd leaves its snapshots active
                        run("dmsetup", "remove", "--retry", line.split()[0])


@contextlib.contextmanager
def pool(name: str, *, data_mib: int, at_mib: int = 0) -> Iterator[Pool]:
    """Have the same with a thin device of 2 GiB."""
    with empty_pool(name, data_mib=data_mib, at_mib=at_mib):
        made = Pool(name)
        made.message("create_thin 0")
        with mapped(f"{name}-t0", f"0 4194304 thin /dev/mapper/{name} 0"):
            yield made


@contextlib.contextmanager
def lvm_pool(threshold: str = "", *, data: str = "1G", disks: tuple[str, ...] = ("/dev/vdc",)) -> Iterator[str]:
    """Have LVM's pool vg/pool with 2 MiB of metadata and the volume vg/t0; return the pool's device name."""
    run("modprobe", "dm-thin-pool")
    LVM_CONF.write_text(LVM.replace("THRESHOLD", threshold))
    for disk in disks:
        run("dd", "if=/dev/zero", f"of={disk}", "bs=1M", "count=1", "conv=fsync", "status=none")
    run("pvcreate", "--quiet", *disks)
    run("vgcreate", "--quiet", "--physicalextentsize", "1M", "vg", *disks)
    try:
        size = ("--size", data, "--poolmetadatasize", "2M", "--chunksize", "64k", "--poolmetadataspare", "n")
        run("lvcreate", "-qq", "-y", "--type", "thin-pool", *size, "--name", "pool", "vg")
        run("lvcreate", "-qq", "-y", "--virtualsize", "900M", "--thinpool", "vg/pool", "--name", "t0")
        yield "vg-pool-tpool"
    finally:
        subprocess.run(["vgchange", "--quiet", "--activate", "n", "vg"], check=False, capture_output=True)
        for disk in disks:
            run("dd", "if=/dev/zero", f"of={disk}", "bs=1M", "count=1", "conv=fsync", "status=none")
        for line in subprocess.run(["dmsetup", "ls"], check=True, capture_output=True, text=True).stdout.splitlines():
            assert not line.startswith("vg-"), line


@contextlib.contextmanager
def helper() -> Iterator[HelperIoctls]:
    """Have a helper process for ioctls; an emulated processor may take long to end it."""
    made = HelperIoctls()
    try:
        yield made
    finally:
        processes = [*made._unkillable.values(), *([made._helper.process] if made._helper else [])]
        made.close()
        for process in processes:
            process.wait(30)


class Node:
    """The collector at work on the guest's own kernel."""

    def __init__(self, ioctls: HelperIoctls, runtimes: Runtimes | None = None) -> None:
        (plan,) = load(None, [thinpool.COLLECTOR], {}).plans
        self._pages = Pages()
        self.runner = Runner(plan, Host(ioctls=ioctls), Latches(None), self._pages)
        self._running = plan.collector.start(Start(self.runner.host, plan.settings, runtimes=runtimes or Runtimes()))
        self._samples: list[tuple[str, Mapping[str, str], float]] = []

    def run(self) -> None:
        """Do one run."""
        self.runner.run(self._running)
        assert "bug" not in self.runner.errors, self.runner.outcome.reason
        text = b"".join(self._pages.members("text", gzip=False)).decode()
        families = text_string_to_metric_families(text)
        self._samples = [(each.name, each.labels, each.value) for family in families for each in family.samples]

    def labels(self, name: str) -> list[Mapping[str, str]]:
        """Return the labels of all samples of a metric in the last run."""
        return [labels for sample, labels, _ in self._samples if sample == f"ullage_thin_{name}"]

    def values(self, name: str, pool: str) -> list[float]:
        """Return a metric's values for a pool in the last run."""
        wanted = f"ullage_thin_{name}"
        return [value for sample, labels, value in self._samples if sample == wanted and labels["pool"] == pool]

    def value(self, name: str, pool: str) -> float:
        """Return a metric's one value for a pool in the last run."""
        (value,) = self.values(name, pool)
        return value

    def mode(self, pool: str) -> str:
        """Return the pool's mode in the last run."""
        (mode,) = [labels["mode"] for labels in self.labels("pool_mode") if labels["pool"] == pool]
        return mode

    def findings(self, pool: str) -> set[str]:
        """Return the ids of a pool's findings in the last run."""
        return {found.finding.id for found in self.runner.outcome.findings if found.target == pool}

    def remedy(self, finding: str, pool: str) -> str:
        """Return the remedy of a pool's finding in the last run."""
        (found,) = [each for each in self.runner.outcome.findings if (each.finding.id, each.target) == (finding, pool)]
        return found.remedy

    def level(self, watermark: str, pool: str) -> int:
        """Return a watermark's level for a pool after the last run."""
        tables = {table.watermark.name: table for table in self.runner.outcome.levels}
        return tables[watermark].raised.get(pool, 0)

    def check(self, pool: str) -> None:
        """Do one run and compare its numbers with those of dmsetup, which is asked before and after it.

        A filesystem on the pool writes when it likes: the run is done anew until nobody did meanwhile.
        """
        for _ in range(100):
            before = run("dmsetup", "status", "--noflush", pool)
            self.run()
            after = run("dmsetup", "status", "--noflush", pool)
            if before == after:
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"somebody writes to the pool: {before} and then {after}")
        words = after.split()[3:]
        used, total = map(int, words[1].split("/"))
        assert self.value("pool_metadata_used_bytes", pool) == used * 4096
        assert self.value("pool_metadata_size_bytes", pool) == total * 4096
        used, total = map(int, words[2].split("/"))
        assert self.value("pool_data_used_bytes", pool) == used * CHUNK
        assert self.value("pool_data_size_bytes", pool) == total * CHUNK
        assert self.value("pool_transaction_id", pool) == int(words[0])
        assert self.value("pool_held_root", pool) == (words[3] != "-")
        assert self.mode(pool) == words[4]
        assert self.value("pool_needs_check", pool) == ("needs_check" in words)
