"""The writeamp collector on QEMU's NVMe and SATA drives, and on a stack of device mapper."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.collector import Start
from agent.host import Host
from agent.ioctl import HelperIoctls
from agent.metric import Metric, Sample
from agent.units import Seconds
from collectors import writeamp
from collectors.readers import ata
from tests.vm.guest.pools import helper, mapped, run

MIB = 1 << 20
WAIT = 60.0


class Node:
    """The collector at work; it asks drives each time."""

    def __init__(self, ioctls: HelperIoctls) -> None:
        self.host = Host(ioctls=ioctls)
        self._running = writeamp.COLLECTOR.start(Start(self.host, writeamp.Settings(Seconds(0.0))))

    def read(self) -> list[Sample]:
        return [each for each in self._running.collect(self.host) if isinstance(each, Sample)]

    def value(self, metric: Metric, device: str) -> float:
        """Do one run; return the metric's value for a device."""
        (value,) = [s.value for s in self.read() if s.metric is metric and device in s.labels]
        return value


@pytest.fixture
def node() -> Iterator[Node]:
    with helper() as ioctls:
        yield Node(ioctls)


def smart_log() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("nvme", "smart-log", "/dev/nvme0", "--output-format=json"))
    return found


def write(path: str, size: int) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    for place in range(0, size, MIB):
        os.pwrite(descriptor, os.urandom(MIB), place)
    os.fsync(descriptor)
    os.close(descriptor)


def test_what_an_nvme_drive_was_sent_is_what_nvme_cli_says(node: Node) -> None:
    before = node.value(writeamp.HOST_WRITTEN, "nvme0n1")
    assert before == int(smart_log()["data_units_written"]) * 512_000
    write("/dev/nvme0n1", 48 * MIB)
    after = node.value(writeamp.HOST_WRITTEN, "nvme0n1")
    told = smart_log()
    assert after == int(told["data_units_written"]) * 512_000
    assert after - before == pytest.approx(48 * MIB, rel=0.02)
    assert node.value(writeamp.USED, "nvme0n1") == told["percent_used" if "percent_used" in told else "percentage_used"]
    assert node.value(writeamp.MEDIA_ERRORS, "nvme0n1") == int(told["media_errors"])
    assert node.value(writeamp.UNSAFE, "nvme0n1") == int(told["unsafe_shutdowns"])
    assert node.value(writeamp.DEVICE, "nvme0n1") >= 48 * MIB


def test_a_drive_without_a_page_of_its_flash_has_no_such_metric_and_is_not_asked_again(node: Node) -> None:
    node.read()
    counted = int(smart_log()["num_err_log_entries"])
    assert not [each for each in node.read() if each.metric is writeamp.MEDIA_WRITTEN]
    assert int(smart_log()["num_err_log_entries"]) == counted
    assert not node.host.errors


@pytest.fixture
def sata() -> Iterator[str]:
    run("modprobe", "-a", "ahci", "sd_mod")
    until = time.monotonic() + WAIT
    while not Path("/sys/block/sda/device/vendor").exists() and time.monotonic() < until:
        time.sleep(0.05)
    yield "sda"
    run("modprobe", "--remove", "ahci")


def test_a_sata_drive_answers_by_its_model_and_is_asked_for_its_power_mode_first(node: Node, sata: str) -> None:
    # QEMU's drive has no counter of what was written, but the commands and their answers are the real ones
    samples = [each for each in node.read() if sata in each.labels]
    assert [each.metric for each in samples] == [writeamp.DEVICE]
    assert not node.host.errors
    buffer, pointers = ata.identify_request()
    answer = ata.data_of(node.host.ioctl(f"dev/{sata}", ata.SG_IO, buffer, sata, pointers))
    assert answer is not None
    assert ata.parse_model(answer) == "INTEL SSDSC2KB480G8"
    buffer, pointers = ata.smart_request()
    answer = ata.data_of(node.host.ioctl(f"dev/{sata}", ata.SG_IO, buffer, sata, pointers))
    attributes = ata.parse_attributes(answer or b"")
    assert attributes is not None
    assert {1, 9, 12} <= set(attributes)
    buffer, pointers = ata.power_request()
    answer = node.host.ioctl(f"dev/{sata}", ata.SG_IO, buffer, sata, pointers)
    assert ata.is_asleep(answer) is False


def test_a_disk_below_device_mapper_counts_once_and_carries_its_filesystem(node: Node, tmp_path: Path) -> None:
    run("modprobe", "xfs")
    sectors = 400 * 2048
    mount = tmp_path / "xfs"
    mount.mkdir()
    with (
        mapped("lower", f"0 {sectors} linear /dev/vda 2048") as lower,
        mapped("upper", f"0 {sectors} linear {lower} 0") as upper,
    ):
        run("mkfs.xfs", "-q", "-f", upper)
        run("mount", upper, str(mount))
        try:
            node.read()
            before = {each.metric: each.value for each in node.read() if "vda" in each.labels}
            (mount / "file").write_bytes(os.urandom(64 * MIB))
            run("sync", "-f", str(mount))
            samples = node.read()
        finally:
            run("umount", str(mount))
    after = {each.metric: each.value for each in samples if "vda" in each.labels}
    assert {each.labels[0] for each in samples if each.metric is writeamp.DEVICE} >= {"vda", "vdb", "nvme0n1"}
    assert not [each for each in samples if each.metric is writeamp.DEVICE and each.labels[0].startswith("dm-")]
    # the filesystem's own device, and the one disk that carries it
    assert after[writeamp.REACHED] - before[writeamp.REACHED] == pytest.approx(64 * MIB, rel=0.05)
    assert after[writeamp.DEVICE] - before[writeamp.DEVICE] == after[writeamp.REACHED] - before[writeamp.REACHED]
