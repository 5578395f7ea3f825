"""The writeamp collector on trees; a real NVMe, SATA, XFS and ZFS are in tests/real and tests/vm."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.collector import Start
from collectors.writeamp import COLLECTOR, LEAVES_EVERY, WriteAmplification
from tests.trees.node import Node

CONTAINER = "d657e6046aaa0c87e567113423371c1f45b2ad0218a31a04dd4598e2689900a0"
EVERY = 600.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Drives:
    """A node to be changed between two runs."""

    def __init__(self, case: str, workplace: Path) -> None:
        self.clock = Clock()

        def start(start: Start) -> WriteAmplification:
            return WriteAmplification(start, self.clock)

        self.node = Node(COLLECTOR, case, workplace, start=start)
        self.path = self.node.path

    def run(self) -> None:
        self.page = self.node.run()

    def values(self, name: str, **labels: str) -> list[float]:
        lines = [line for line in self.page.splitlines() if line.startswith(f"ullage_{name}{{")]
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return [float(line.rsplit(" ", 1)[1]) for line in lines if all(each in line for each in wanted)]


Make = Callable[[str], Drives]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda case: Drives(case, tmp_path)


def test_each_physical_disk_counts_once_and_nothing_that_lies_on_it(make: Make) -> None:
    drives = make("node")
    drives.run()
    assert re.findall(r'ullage_device_written_bytes_total\{device="(\w+)"\}', drives.page) == ["nvme0n1", "sda"]


def test_a_drive_is_asked_again_only_after_its_interval(make: Make) -> None:
    drives = make("node")
    drives.run()
    page = drives.path / "drives" / "nvme0-02.bin"
    text = bytearray(page.read_bytes())
    text[48] += 1
    page.write_bytes(text)
    before = drives.values("drive_host_written_bytes_total", device="nvme0n1")
    drives.clock.now += EVERY - 1
    drives.run()
    assert drives.values("drive_host_written_bytes_total", device="nvme0n1") == before
    assert drives.values("drive_age_seconds", device="nvme0n1") == [EVERY - 1]
    drives.clock.now += 1
    drives.run()
    assert drives.values("drive_host_written_bytes_total", device="nvme0n1") == [before[0] + 512000]
    assert drives.values("drive_age_seconds", device="nvme0n1") == [0]


def test_a_page_that_a_drive_refused_is_not_asked_for_again(make: Make) -> None:
    drives = make("node")
    page = drives.path / "drives" / "nvme0-c0.bin"
    text = page.read_bytes()
    page.unlink()
    drives.run()
    assert drives.values("drive_media_written_bytes_total", device="nvme0n1") == []
    assert drives.values("drive_host_written_bytes_total", device="nvme0n1")
    page.write_bytes(text)
    drives.clock.now += EVERY
    drives.run()
    assert drives.values("drive_media_written_bytes_total", device="nvme0n1") == []
    assert not drives.node.runner.errors


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:496] + bytes(16),  # another vendor's page of the same number
        lambda text: (4096).to_bytes(16, "little") + text[16:],  # in units of its own
    ],
)
def test_a_page_that_is_not_ocps_gives_no_flash_metric(make: Make, change: Callable[[bytes], bytes]) -> None:
    drives = make("node")
    page = drives.path / "drives" / "nvme0-c0.bin"
    page.write_bytes(change(page.read_bytes()))
    drives.run()
    assert drives.values("drive_media_written_bytes_total", device="nvme0n1") == []


def test_a_sleeping_disk_is_not_woken_and_keeps_its_numbers_with_their_age(make: Make) -> None:
    drives = make("node")
    drives.run()
    (drives.path / "drives" / "sda-power.bin").write_bytes(b"\0")
    (drives.path / "drives" / "sda-smart.bin").unlink()
    drives.clock.now += EVERY
    drives.run()
    assert drives.values("drive_media_written_bytes_total", device="sda") == [98000 << 25]
    assert drives.values("drive_age_seconds", device="sda") == [EVERY]
    assert not drives.node.runner.errors


def test_a_suspended_nvme_is_not_woken(make: Make) -> None:
    drives = make("node")
    status = drives.path / "sys/class/nvme/nvme0/device/power/runtime_status"
    status.parent.mkdir()
    status.write_text("suspended\n")
    drives.run()
    assert drives.values("drive_host_written_bytes_total", device="nvme0n1") == []


def test_of_a_disk_that_our_table_does_not_know_smartctl_is_asked(make: Make) -> None:
    drives = make("node")
    identity = drives.path / "drives" / "sda-identify.bin"
    text = bytearray(identity.read_bytes())
    text[54:56] = b"BA"
    identity.write_bytes(text)
    drives.run()
    assert drives.values("drive_host_written_bytes_total", device="sda") == []
    table = [{"id": 241, "name": "Total_LBAs_Written", "raw": {"value": 2000}}]
    says = json.dumps({"ata_smart_attributes": {"table": table}})
    command = "smartctl -j -A -n standby /dev/sda"
    for said, expected in ((says, [1024000.0]), ("no JSON", []), ('{"smartctl": 1}', [])):
        (drives.path / "commands.json").write_text(json.dumps({command: [0, said]}))
        drives.node.runner.host.commands = type(drives.node.runner.host.commands)(drives.path)  # type: ignore[call-arg, misc]
        drives.clock.now += EVERY
        drives.run()
        assert drives.values("drive_host_written_bytes_total", device="sda") == expected
        assert not drives.node.runner.errors


def test_a_containers_sum_is_of_all_its_processes_from_our_start_on_and_counts_once(make: Make) -> None:
    drives = make("node")

    def process(pid: str, written: int | None, born: int = 9000, state: str = "S", group: str = CONTAINER) -> None:
        directory = drives.path / "proc" / pid
        if written is None:
            shutil.rmtree(directory)
            return
        directory.mkdir(exist_ok=True)
        (directory / "stat").write_text(f"{pid} (x) {state} " + "1 " * 18 + f"{born} 1\n")
        (directory / "cgroup").write_text(f"0::/docker/{group}\n" if group else "0::/\n")
        (directory / "io").write_text(f"write_bytes: {written}\ncancelled_write_bytes: 0\n")

    def total() -> float:
        drives.run()
        (value,) = drives.values("container_written_bytes_total", container="db")
        return value

    assert total() == 0
    process("812", 1_000_000, born=4711)
    assert total() == 1_000_000 - 405_504
    process("900", 5_000)  # a child
    before = total()
    assert before == 1_005_000 - 405_504
    process("900", 7_000, state="Z", group="")  # it has ended, and on cgroup version 1 is nowhere
    assert total() == before + 2_000
    process("900", None)
    process("812", 1_007_000, born=4711)  # its parent has waited for it
    assert total() == before + 2_000
    process("901", 500)
    assert total() == before + 2_500
    process("901", None)  # nobody of the container waited for it
    assert total() == before + 2_500
    process("902", 100)
    assert total() == before + 2_600


def test_a_container_that_is_gone_has_no_series(make: Make) -> None:
    drives = make("node")
    drives.run()
    for name in ("stat", "cgroup", "io"):
        (drives.path / "proc/812" / name).unlink()
    drives.run()
    assert drives.values("container_written_bytes_total") == []
    assert not drives.node.runner.errors


def test_a_pools_sum_only_grows_also_when_a_dataset_goes(make: Make) -> None:
    drives = make("zfs")
    directory = drives.path / "proc/spl/kstat/zfs/tank"

    def objset(name: str, written: int) -> None:
        (directory / name).write_text(f"1 1\nname type data\ndataset_name 7 tank/{name}\nnwritten 4 {written}\n")

    drives.run()
    assert drives.values("logical_written_bytes_total", device="tank") == [0]
    objset("objset-0x1", 1000)
    drives.run()
    assert drives.values("logical_written_bytes_total", device="tank") == [1000]
    (directory / "objset-0x1").unlink()
    drives.run()
    objset("objset-0x1", 300)  # mounted again
    drives.run()
    assert drives.values("logical_written_bytes_total", device="tank") == [1300]


def test_no_command_is_run_for_a_suspended_pool(make: Make) -> None:
    drives = make("zfs")
    drives.run()
    assert drives.values("logical_device_written_bytes_total", device="tank") == [4900 * 100 * 512]
    (drives.path / "proc/spl/kstat/zfs/tank/state").write_text("SUSPENDED\n")
    drives.clock.now += LEAVES_EVERY
    drives.run()
    assert drives.values("logical_device_written_bytes_total", device="tank") == []
    assert drives.values("logical_written_bytes_total", device="tank")
    assert not drives.node.runner.errors
