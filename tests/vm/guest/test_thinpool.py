"""The thinpool collector on real pools, against dmsetup and lvs."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.exposition import Pages
from agent.host import Host
from agent.latches import Latches
from agent.runner import Plan
from agent.scheduler import Scheduler
from collectors import thinpool
from tests.settings import setting
from tests.vm.guest.pools import LEAF, LVM_CONF, Node, helper, lvm_pool, mapped, pool, run, until_settled, write

MIB = 1 << 20


@pytest.fixture
def node() -> Iterator[Node]:
    with helper() as ioctls:
        yield Node(ioctls)


@pytest.fixture
def no_space_timeout() -> Iterator[None]:
    """Writes to a full pool fail after a few seconds, not after a minute."""
    run("modprobe", "dm-thin-pool")
    with setting("/sys/module/dm_thin_pool/parameters/no_space_timeout", "5"):
        yield


def lvs(volume: str) -> dict[str, float]:
    command = ("lvs", "--reportformat", "json", "--options", "data_percent,metadata_percent", volume)
    (found,) = json.loads(run(*command))["report"][0]["lv"]
    return {name: float(value) for name, value in found.items()}


@pytest.mark.vm(deadline=600)
def test_lvms_metadata_goes_through_all_tiers_until_it_is_read_only(node: Node) -> None:
    with lvm_pool() as name:
        node.check(name)
        (info,) = node.labels("pool_info")
        assert (info["vg_name"], info["lv_name"], info["backing"]) == ("vg", "pool", "device")
        assert node.findings(name) == {"thin-pool-no-autoextend"}
        write("/dev/vg/t0", 0, 800 * MIB)
        for number in range(1, 10):  # LVM makes none at 75 % and more
            run("lvcreate", "-qq", "-y", "--snapshot", "--setactivationskip", "n", "--name", f"s{number}", "vg/t0")
        levels = []
        for volume, part in itertools.product(["t0", *(f"s{number}" for number in range(1, 10))], range(2)):
            failed = write(f"/dev/vg/{volume}", part * 400 * MIB, (part + 1) * 400 * MIB, LEAF)
            until_settled(name)
            node.check(name)
            told = lvs("vg/pool")
            for kind in ("data", "metadata"):
                ratio = node.value(f"pool_{kind}_used_bytes", name) / node.value(f"pool_{kind}_size_bytes", name)
                assert 100 * ratio == pytest.approx(told[f"{kind}_percent"], abs=0.011)
            levels.append(node.level("thin_metadata", name))
            if failed or node.mode(name) != "rw":
                break
        assert levels == sorted(levels)
        assert set(levels) == {0, 1, 2, 3}
        assert node.mode(name) == "ro"
        assert "thin-pool-read-only" in node.findings(name)
        names = [each["name"] for each in node.labels("device_mapped_bytes")]
        assert dict(zip(names, node.values("device_mapped_bytes", name), strict=True))["vg-t0"] == 800 * MIB


@pytest.mark.vm(deadline=400)
def test_lvms_own_threshold_is_told(node: Node) -> None:
    with lvm_pool("thin_pool_autoextend_threshold=70 thin_pool_autoextend_percent=30") as name:
        node.run()
        assert node.value("pool_autoextend_threshold_ratio", name) == 0.7
        assert node.value("pool_autoextend_ratio", name) == 0.3
        assert node.findings(name) == set()
        Path("/etc/lvm/profile/vm.profile").write_text("activation { thin_pool_autoextend_threshold=90 }")
        run("lvchange", "-qq", "--profile", "vm", "vg/pool")
        node.run()
        assert node.value("pool_autoextend_threshold_ratio", name) == 0.9


@pytest.mark.usefixtures("no_space_timeout")
@pytest.mark.vm(deadline=600)
def test_full_data_shows_at_once_and_again_when_writes_fail(node: Node) -> None:
    with pool("full", data_mib=64) as made:
        levels = []
        for end in (16, 40, 52, 62):
            write(made.thin, 0, end * MIB)
            until_settled(made.name)
            node.check(made.name)
            levels.append(node.level("thin_data", made.name))
        assert levels == [0, 0, 1, 2]
        assert node.findings(made.name) == set()
        with subprocess.Popen(
            ["dd", "if=/dev/zero", f"of={made.thin}", "bs=64k", "count=1280", "conv=fsync"]
        ) as writer:
            while "out_of_data_space" not in made.status():
                time.sleep(0.05)
            node.run()
            assert node.mode(made.name) == "out_of_data_space"
            assert node.findings(made.name) == {"thin-pool-read-only"}
            assert node.labels("pool_no_space")[0]["policy"] == "queue"
            assert writer.wait() != 0
        node.check(made.name)
        assert node.labels("pool_no_space")[0]["policy"] == "error"
        assert node.findings(made.name) == {"thin-pool-read-only"}


@pytest.mark.vm(deadline=600)
def test_a_burst_ends_in_needs_check_below_full_until_the_remedy_is_done(node: Node) -> None:
    with lvm_pool() as name:
        write("/dev/vg/t0", 0, 800 * MIB)
        for number in range(100, 130):
            run("dmsetup", "suspend", "vg-t0")
            run("dmsetup", "message", name, "0", f"create_snap {number} 1")
            run("dmsetup", "resume", "vg-t0")
            if write("/dev/vg/t0", 0, 800 * MIB, LEAF // 2):
                break
            node.run()
            assert node.findings(name) == {"thin-pool-no-autoextend"}
        node.check(name)
        told = {"thin-pool-read-only", "thin-pool-needs-check"}
        assert node.findings(name) == told | {"thin-pool-no-autoextend"}
        assert node.value("pool_metadata_used_bytes", name) < node.value("pool_metadata_size_bytes", name)
        grow, repair = (node.remedy("thin-pool-needs-check", name).partition(": ")[2]).split(". Then ")
        of_mode = node.remedy("thin-pool-read-only", name)
        assert f"If ro: {grow}. If fail, or with thin-pool-needs-check: {repair}" in of_mode
        run("sh", "-ec", grow)
        node.check(name)
        assert node.findings(name) >= told
        run("sh", "-ec", repair.partition("then: ")[2])
        node.check(name)
        assert node.findings(name) == {"thin-pool-no-autoextend"}
        assert node.value("pool_metadata_size_bytes", name) == 4 * MIB
        assert write("/dev/vg/t0", 0, 800 * MIB, LEAF // 2) == 0


@pytest.fixture
def dmeventd() -> Iterator[Path]:
    """The file with the number of LVM's monitor, which the first volume to be watched starts; it ends with the test."""
    file = Path("/run/dmeventd.pid")
    yield file
    os.kill(int(file.read_text()), signal.SIGKILL)  # it ignores others while it watches
    file.unlink()


@pytest.mark.usefixtures("no_space_timeout")
@pytest.mark.vm(deadline=400)
def test_lvm_extends_a_full_pool_by_the_remedy_and_then_by_itself(node: Node, dmeventd: Path) -> None:
    with lvm_pool(data="64M") as name:
        assert write("/dev/vg/t0", 0, 80 * MIB)
        node.check(name)
        assert node.findings(name) == {"thin-pool-read-only", "thin-pool-no-autoextend"}
        remedy = node.remedy("thin-pool-read-only", name)
        run("sh", "-ec", remedy.partition("If out_of_data_space: ")[2].partition(". If ro: ")[0])
        node.check(name)
        assert node.value("pool_data_size_bytes", name) == 77 * MIB
        assert node.findings(name) == {"thin-pool-no-autoextend"}
        settings, monitor = node.remedy("thin-pool-no-autoextend", name).split(", then: ")
        (threshold, amount) = re.findall(r"thin_pool_autoextend_\w+ = \d+", settings)
        config = LVM_CONF.read_text()
        LVM_CONF.write_text(config.replace("monitoring=0", f"monitoring=1 {threshold} {amount}"))
        assert not dmeventd.exists()
        run("sh", "-ec", monitor)
        node.check(name)
        assert node.findings(name) == set()
        assert write("/dev/vg/t0", 0, 70 * MIB) == 0
        until = time.monotonic() + 90
        while node.value("pool_data_size_bytes", name) == 77 * MIB and time.monotonic() < until:
            time.sleep(0.5)
            node.run()
        assert node.value("pool_data_size_bytes", name) == pytest.approx(1.2 * 77 * MIB, abs=2 * MIB)
        run("lvchange", "--monitor", "n", "vg/pool")


@pytest.mark.vm(deadline=400)
def test_metadata_below_the_recommended_size_are_told_until_the_remedy_is_done(node: Node) -> None:
    with lvm_pool(data="5G", disks=("/dev/vdb", "/dev/vdc")) as name:
        node.check(name)
        assert node.findings(name) == {"thin-pool-metadata-small", "thin-pool-no-autoextend"}
        run("sh", "-ec", node.remedy("thin-pool-metadata-small", name))
        node.check(name)
        assert node.findings(name) == {"thin-pool-no-autoextend"}


@pytest.mark.vm(deadline=400)
def test_a_pool_whose_metadata_fails_shows_it_in_the_next_round(node: Node) -> None:
    with pool("failing", data_mib=64) as made, contextlib.ExitStack() as stack:
        write(made.thin, 0, 8 * MIB)
        node.check(made.name)
        made.swap_metadata("0 4096 error")
        stack.callback(made.swap_metadata, "0 4096 linear /dev/vdb 0")
        assert write(made.thin, 10 * MIB, 14 * MIB) == errno.EIO
        node.run()
        assert node.mode(made.name) == "fail"
        assert node.findings(made.name) == {"thin-pool-read-only"}
        assert node.values("pool_metadata_used_bytes", made.name) == []


@pytest.mark.vm(deadline=400)
def test_a_held_root_is_told(node: Node) -> None:
    with pool("held", data_mib=64) as made:
        made.message("reserve_metadata_snap")
        node.check(made.name)
        assert node.value("pool_held_root", made.name) == 1
        made.message("release_metadata_snap")
        node.check(made.name)
        assert node.value("pool_held_root", made.name) == 0


def hanging() -> int:
    """Return how many helpers for ioctls there are in state D."""
    found = 0
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"ioctl_child" in (path / "cmdline").read_bytes() and ") D " in (path / "stat").read_text():
                found += 1
    return found


@pytest.mark.vm(deadline=600)
def test_a_pool_that_hangs_is_named_and_leaves_the_other_fresh(node: Node) -> None:
    with pool("well", data_mib=64, at_mib=512) as well, pool("hangs", data_mib=64) as made:
        write(made.thin, 0, 8 * MIB)
        node.run()
        assert node.value("pool_stuck", made.name) == 0
        run("dmsetup", "suspend", "--nolockfs", "hangs-meta")
        try:
            with subprocess.Popen(["dmsetup", "status", made.name], stdout=subprocess.DEVNULL) as flushing:
                time.sleep(1)
                assert flushing.poll() is None
                for step in range(1, 4):
                    write(well.thin, 0, step * 4 * MIB)
                    until_settled(well.name)
                    node.run()
                    assert node.value("pool_stuck", made.name) == 1
                    assert node.findings(made.name) == {"thin-pool-io-stalled"}
                    assert node.values("pool_data_used_bytes", made.name) == []
                    assert node.value("pool_stuck", well.name) == 0
                    assert node.value("pool_data_used_bytes", well.name) == step * 4 * MIB
                    assert hanging() == 1
                run("dmsetup", "resume", "hangs-meta")
        finally:
            run("dmsetup", "resume", "hangs-meta")
        until_settled(made.name)
        node.check(made.name)
        assert node.value("pool_stuck", made.name) == 0
        assert hanging() == 0


def written(name: str) -> int:
    """Return the requests that a mapped device has written, and flushed."""
    number = run("dmsetup", "info", "--columns", "--noheadings", "--options", "minor", name)
    words = Path(f"/sys/block/dm-{number}/stat").read_text().split()
    return int(words[4]) + int(words[15])


def superblock(name: str) -> bytes:
    run("blockdev", "--flushbufs", f"/dev/mapper/{name}")
    with open(f"/dev/mapper/{name}", "rb") as file:
        return file.read(4096)


@pytest.mark.vm(deadline=600)
def test_a_thousand_readings_commit_nothing(node: Node) -> None:
    with pool("quiet", data_mib=64) as made:
        write(made.thin, 0, 8 * MIB)
        until_settled(made.name)
        node.run()
        before = written("quiet-meta"), superblock("quiet-meta"), node.value("pool_transaction_id", made.name)
        for _ in range(1000):
            node.runner.run(node._running)
        node.run()
        assert (written("quiet-meta"), superblock("quiet-meta")) == before[:2]
        assert node.value("pool_transaction_id", made.name) == before[2]
        run("dmsetup", "status", made.name)  # it flushes, and so this test can tell
        assert written("quiet-meta") > before[0]


@pytest.mark.vm(deadline=400)
def test_requests_in_flight_are_counted_by_part(node: Node) -> None:
    dd = ("dd", "if=/dev/zero", "bs=1M", "count=2", "conv=fsync")
    with pool("busy", data_mib=64) as made:
        # blocks that are there already: to commit new ones waits for the data, and the status for the commit
        run(*dd, f"of={made.thin}")
        until_settled(made.name)
        run("dmsetup", "suspend", "--nolockfs", "busy-data")
        try:
            descriptor = os.open(made.thin, os.O_WRONLY)
            with subprocess.Popen([*dd, f"of={made.thin}"]) as writer:
                while True:
                    node.run()
                    flying = {
                        each["part"]: value
                        for each, value in zip(
                            node.labels("pool_in_flight"), node.values("pool_in_flight", made.name), strict=True
                        )
                    }
                    if flying["volumes"] >= 15:
                        break
                    assert writer.poll() is None
                    time.sleep(0.1)
                assert flying["metadata"] == 0
                run("dmsetup", "resume", "busy-data")
                assert writer.wait() == 0
            os.close(descriptor)
        finally:
            run("dmsetup", "resume", "busy-data")


@pytest.mark.vm(deadline=400)
def test_a_pool_that_comes_is_seen_long_before_the_interval_ends() -> None:
    pages = Pages()

    def until(sample: str, *, is_there: bool) -> None:
        while (sample in b"".join(pages.members("text", gzip=False)).decode()) != is_there:
            time.sleep(0.05)

    with helper() as ioctls:
        scheduler = Scheduler(Host(ioctls=ioctls), Latches(None), pages, "node", None)
        try:
            scheduler.apply([Plan(thinpool.COLLECTOR, None, 86400.0, 60.0, 10000, thinpool.COLLECTOR.watermarks)])
            while not scheduler.is_ready:
                time.sleep(0.05)
            with mapped("other", "0 2048 linear /dev/vdc 0"):
                with pool("comes", data_mib=64):
                    until('ullage_thin_pool_mode{mode="rw",pool="comes"} 1', is_there=True)
                until('pool="comes"', is_there=False)
        finally:
            scheduler.stop(30)
