"""The qgroup collector on a real btrfs, against `btrfs qgroup show --raw -re`; with containers of real runtimes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.collector import Start
from agent.config import load
from agent.containers import Runtimes
from agent.exposition import Pages
from agent.finding import Found
from agent.host import Host
from agent.ioctl import HelperIoctls
from agent.latches import Latches
from agent.runner import Runner
from collectors import qgroup
from tests.real.conftest import Make, damage, run
from tests.real.containerd import containerd
from tests.real.dockerd import dockerd

pytestmark = [pytest.mark.root, pytest.mark.slow]
MIB = 1 << 20
SUBVOL_CREATE, QUOTA_CTL = 0x5000940E, 0xC0109428  # linux/btrfs.h
ENABLE_SIMPLE_QUOTA = 4  # btrfs-progs know it since 6.7
NOWHERE = Runtimes((), (), (), (), ())


class Node:
    """The collector at work, and its view of one btrfs."""

    def __init__(self, mount: Path, ioctls: HelperIoctls, runtimes: Runtimes = NOWHERE) -> None:
        self.mount = mount
        self.uuid = run("findmnt", "--noheadings", "--output", "UUID", str(mount))
        (plan,) = load(None, [qgroup.COLLECTOR], {}).plans
        self._pages = Pages()
        self.runner = Runner(plan, Host(ioctls=ioctls), Latches(None), self._pages)
        self._running = plan.collector.start(Start(self.runner.host, plan.settings, None, runtimes))

    def read(self, name: str) -> dict[str, float]:
        """Do one run; return a metric's values of this btrfs by qgroup."""
        return {labels["qgroup"]: value for labels, value in self.samples(name)}

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        run("btrfs", "filesystem", "sync", str(self.mount))
        self.run()
        return self.last(name)

    def run(self) -> None:
        self.runner.run(self._running)
        assert "bug" not in self.runner.errors, self.runner.outcome.reason

    def last(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Return a metric's samples of the last run."""
        text = b"".join(self._pages.members("text", gzip=False)).decode()
        return [
            (sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and sample.labels["uuid"] == self.uuid
        ]

    def value(self, name: str) -> float:
        """Do one run; return the one value of a metric."""
        ((_, value),) = self.samples(name)
        return value

    def level(self) -> int:
        """Do one run; return the highest level of a watermark on this btrfs."""
        self.read("ullage_qgroup_referenced_bytes")
        levels = [each for table in self.runner.outcome.levels for each in table if each.target.startswith(self.uuid)]
        return max((each.level for each in levels), default=0)

    def findings(self) -> set[str]:
        return {found.finding.id for found in self.found()}

    def found(self) -> list[Found]:
        self.samples("ullage_qgroups_enabled")
        return [found for found in self.runner.outcome.findings if self.uuid in found.target]

    def check(self) -> None:
        """Compare all numbers with those of btrfs."""
        run("btrfs", "filesystem", "sync", str(self.mount))
        listed = [
            line.split()
            for line in run("btrfs", "qgroup", "show", "--raw", "-re", str(self.mount)).splitlines()
            if "/" in line.split()[0]
        ]
        for column, name in enumerate(("referenced", "exclusive", "referenced_limit", "exclusive_limit"), start=1):
            expected = {line[0]: float(line[column]) for line in listed if line[column] != "none"}
            assert self.read(f"ullage_qgroup_{name}_bytes") == expected, name


def write(path: Path) -> bool:
    """Write a MiB to the disk; return whether quota allowed it."""
    try:
        with open(path, "wb") as file:
            file.write(os.urandom(MIB))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno != errno.EDQUOT:
            raise
        return False
    return True


def create(mount: Path, name: str) -> None:
    """Make a subvolume without a process, which thousands of them would take long to start."""
    descriptor = os.open(mount, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, SUBVOL_CREATE, bytearray(struct.pack("=q", 0) + name.encode().ljust(4088, b"\0")))
    finally:
        os.close(descriptor)


def empty_files(directory: Path, first: int, count: int) -> bool:
    """Make files that take metadata only; return whether there was room."""
    directory.mkdir(exist_ok=True)
    try:
        for number in range(first, first + count):
            (directory / f"{number}-{'n' * 60}").touch()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


@pytest.fixture
def ioctls(need: Callable[..., None], stack: contextlib.ExitStack) -> HelperIoctls:
    need("btrfs", "findmnt")
    made = HelperIoctls()
    stack.callback(made.close)
    return made


@pytest.fixture
def node(filesystem: Make, ioctls: HelperIoctls) -> Node:
    return Node(filesystem("btrfs", size=400), ioctls)


def test_numbers_are_those_of_btrfs_at_every_step(node: Node) -> None:
    mount = str(node.mount)
    assert [value for _, value in node.samples("ullage_qgroups_enabled")] == [0]
    run("btrfs", "quota", "enable", mount)
    run("btrfs", "quota", "rescan", "-w", mount)
    node.check()
    run("btrfs", "subvolume", "create", f"{mount}/one")
    (node.mount / "one" / "file").write_bytes(os.urandom(5 * MIB))
    node.check()
    assert node.value("ullage_qgroups_rescan_running") == 0
    run("btrfs", "qgroup", "limit", "20M", f"{mount}/one")
    run("btrfs", "subvolume", "snapshot", f"{mount}/one", f"{mount}/two")
    run("btrfs", "qgroup", "limit", "-e", "10M", f"{mount}/two")
    node.check()
    (labels,) = [each for each, _ in node.samples("ullage_qgroup_exclusive_limit_bytes")]
    assert labels["path"] == "/two"
    run("btrfs", "subvolume", "delete", "--commit-after", f"{mount}/two")
    run("btrfs", "subvolume", "sync", mount)
    node.check()
    run("btrfs", "quota", "disable", mount)
    (found,) = node.found()
    assert found.finding.id == "qgroups-disappeared"
    run("sh", "-c", found.remedy)
    assert node.findings() == set()


def test_what_is_told_without_a_commit_is_what_sysfs_has(node: Node) -> None:
    mount = node.mount
    run("btrfs", "quota", "enable", str(mount))
    for number in range(30):
        create(mount, f"each-{number}")
    run("btrfs", "quota", "rescan", "-w", str(mount))

    def shown(name: str) -> dict[str, int]:
        places = Path(f"/sys/fs/btrfs/{node.uuid}/qgroups").glob("*_*/" + name)
        return {place.parent.name.replace("_", "/"): int(place.read_text()) for place in places}

    for number in range(30):
        write(mount / f"each-{number}" / "file")
        run("btrfs", "qgroup", "limit", "none" if number % 3 else "1G", str(mount / f"each-{number}"))
        for _ in range(10):  # a commit of the kernel's own may come in between
            before = shown("referenced"), shown("exclusive")
            node.run()
            if before == (shown("referenced"), shown("exclusive")):
                break
        told = [
            {labels["qgroup"]: value for labels, value in node.last(f"ullage_qgroup_{name}_bytes")}
            for name in ("referenced", "exclusive", "referenced_limit")
        ]
        limits = {qgroup: limit for qgroup, limit in shown("max_referenced").items() if limit not in (0, 2**64 - 1)}
        assert told == [*before, limits]


def test_the_way_to_the_limit_and_back_goes_through_all_tiers(node: Node) -> None:
    run("btrfs", "quota", "enable", str(node.mount))
    subvolume = node.mount / "full"
    run("btrfs", "subvolume", "create", str(subvolume))
    run("btrfs", "qgroup", "limit", "100M", str(subvolume))
    levels, number = [node.level()], 0
    while write(subvolume / str(number)):
        number += 1
        levels.append(node.level())
    assert levels == sorted(levels)
    assert set(levels) == {0, 1, 2, 3}
    assert levels[-1] == 3  # before the write that EDQUOT refused
    down = []
    for each in sorted(subvolume.iterdir()):
        each.unlink()
        down.append(node.level())
    assert down == sorted(down, reverse=True)
    assert set(down) == {0, 1, 2, 3}
    # hysteresis: with 96 MiB it is still critical on the way down, and was not on the way up
    assert levels[96] == 2
    assert down[number - 96] == 3


def test_an_inconsistent_filesystem_is_found_and_its_usage_withheld(node: Node) -> None:
    mount = str(node.mount)
    run("btrfs", "quota", "enable", mount)
    run("btrfs", "subvolume", "create", f"{mount}/big")
    for number in range(3000):
        (node.mount / "big" / f"{number}-{'x' * 100}").write_bytes(b"x" * 3000)
    run("btrfs", "filesystem", "sync", mount)
    run("btrfs", "subvolume", "snapshot", f"{mount}/big", f"{mount}/big2")
    assert node.read("ullage_qgroup_referenced_bytes")
    # the default is 3, of the level below the tree's root: with the smallest nodes that takes 200,000 files of 2 KiB
    Path(f"/sys/fs/btrfs/{node.uuid}/qgroups/drop_subtree_threshold").write_text("0")
    run("btrfs", "subvolume", "delete", "--commit-after", f"{mount}/big2")
    run("btrfs", "subvolume", "sync", mount)
    assert node.findings() == {"qgroup-inconsistent"}
    assert node.read("ullage_qgroup_referenced_bytes") == {}
    (found,) = node.found()
    run("sh", "-c", found.remedy)
    assert node.findings() == set()
    node.check()


def test_usage_is_withheld_while_all_is_counted_anew(filesystem: Make, ioctls: HelperIoctls) -> None:
    node = Node(filesystem("btrfs", "-n", "4096", size=400), ioctls)
    mount = str(node.mount)
    run("btrfs", "quota", "enable", mount)
    run("btrfs", "subvolume", "create", f"{mount}/big")
    for number in range(8000):
        (node.mount / "big" / f"{number}-{'x' * 100}").write_bytes(b"x" * 1800)
    run("btrfs", "quota", "rescan", "-w", mount)
    expected = node.read("ullage_qgroup_referenced_bytes")
    seen = set()
    for _ in range(50):  # of which one run at least falls into a rescan
        process = subprocess.Popen(["btrfs", "quota", "rescan", "-w", mount], stdout=subprocess.DEVNULL)
        try:
            while process.poll() is None:
                node.run()
                ((_, is_running),) = node.last("ullage_qgroups_rescan_running")
                assert node.last("ullage_qgroups_inconsistent")[0][1] == 0  # the kernel does not call them wrong
                values = {each["qgroup"]: value for each, value in node.last("ullage_qgroup_referenced_bytes")}
                assert values in ({}, expected)
                assert not (is_running and values)
                seen.add(is_running)
        finally:
            process.wait()
        if 1 in seen:
            break
    assert 1 in seen
    assert node.read("ullage_qgroup_referenced_bytes") == expected


def test_simple_quota_keeps_what_a_deleted_subvolume_wrote(node: Node) -> None:
    mount = str(node.mount)
    descriptor = os.open(node.mount, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, QUOTA_CTL, struct.pack("=QQ", ENABLE_SIMPLE_QUOTA, 0))
    finally:
        os.close(descriptor)
    run("btrfs", "subvolume", "create", f"{mount}/writer")
    assert write(node.mount / "writer" / "file")
    run("btrfs", "subvolume", "snapshot", f"{mount}/writer", f"{mount}/reader")
    run("btrfs", "qgroup", "limit", "20M", f"{mount}/writer")
    node.check()
    ((labels, _),) = node.samples("ullage_qgroups_mode")
    assert labels["mode"] == "squota"
    assert node.read("ullage_qgroup_stale") == {}
    number = run("btrfs", "inspect-internal", "rootid", f"{mount}/writer")
    run("btrfs", "subvolume", "delete", "--commit-after", f"{mount}/writer")
    run("btrfs", "subvolume", "sync", mount)
    assert node.read("ullage_qgroup_stale") == {f"0/{number}": 1}
    assert node.read("ullage_qgroup_referenced_bytes")[f"0/{number}"] == MIB
    node.check()


def test_thousands_of_qgroups_are_all_read(node: Node) -> None:
    run("btrfs", "quota", "enable", str(node.mount))
    for number in range(3000):
        create(node.mount, f"subvolume-{number}")
    run("btrfs", "quota", "rescan", "-w", str(node.mount))
    run("btrfs", "qgroup", "limit", "100M", f"{node.mount}/subvolume-2999")
    node.check()
    assert node.runner.outcome.dropped == 0
    paths = {labels["path"] for labels, _ in node.samples("ullage_qgroup_referenced_bytes")}
    assert paths == {"/", *(f"/subvolume-{number}" for number in range(3000))}


def with_half_empty_data(node: Node) -> None:
    """Let data take all of a filesystem, and delete most of it, but none of any block group as a whole."""
    assert node.findings() == set()
    number = 0
    with contextlib.suppress(OSError):
        while True:
            write(node.mount / str(number))
            number += 1
    assert node.value("ullage_btrfs_unallocated_bytes") == MIB  # which the kernel never allocates
    assert node.findings() == set()  # of metadata there is plenty
    for each in range(number + 1):
        if each % 16:
            (node.mount / str(each)).unlink(missing_ok=True)
    assert node.findings() == set()


def test_metadata_is_found_full_before_new_files_are_refused(filesystem: Make, ioctls: HelperIoctls) -> None:
    node = Node(filesystem("btrfs", size=300), ioctls)
    with_half_empty_data(node)
    number, was_found = 0, []
    while empty_files(node.mount / "files", number, 1000):
        number += 1000
        was_found.append(node.findings() == {"btrfs-metadata-full"})
    space = os.statvfs(node.mount)
    assert space.f_bavail * space.f_frsize > 100 * MIB
    assert not any(was_found[: len(was_found) // 2])
    assert was_found[-1]
    assert was_found == sorted(was_found)


def test_the_remedy_for_full_metadata_works_when_it_is_found(filesystem: Make, ioctls: HelperIoctls) -> None:
    node = Node(filesystem("btrfs", size=300), ioctls)
    with_half_empty_data(node)
    number = 0
    while not (found := node.found()):
        assert empty_files(node.mount / "files", number, 1000)
        number += 1000
    run(*found[0].remedy.partition("#")[0].split())
    assert node.findings() == set()
    assert node.value("ullage_btrfs_unallocated_bytes") > 50 * MIB
    assert empty_files(node.mount / "files", number, 20_000)


def test_errors_of_a_device_are_told_until_it_is_reset_or_replaced(
    filesystem: Make, ioctls: HelperIoctls, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    disks = []
    for name in ("second", "third"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(256 * MIB)
        disks.append(run("losetup", "--find", "--show", str(tmp_path / name)))
        stack.callback(run, "losetup", "--detach", disks[-1])
    second, third = disks
    node = Node(filesystem("btrfs", size=256), ioctls)
    mount, data = str(node.mount), os.urandom(64 * 1024)
    run("btrfs", "device", "add", "-f", second, mount)
    run("btrfs", "balance", "start", "-dconvert=raid1", "-mconvert=raid1", mount)
    (node.mount / "file").write_bytes(data)
    run("btrfs", "filesystem", "sync", mount)
    assert node.findings() == set()

    def found_after_damage() -> tuple[str, str, str]:
        """Return the remedy's commands: to look, to replace, to reset."""
        damage(tmp_path / "second", data[:4096])
        run("btrfs", "scrub", "start", "-B", mount)
        (found,) = node.found()
        assert (found.finding.id, found.target) == ("btrfs-device-errors", f"{node.uuid}/2")
        look, _, then = found.remedy.partition("   #")
        replace, reset = then.split("fails: ")[1].split("; for one that is well: ")
        return look, replace, reset

    look, _, reset = found_after_damage()
    assert f"[{second}].corruption_errs  1" in run("sh", "-ec", look)
    until(lambda: "finished" in run("btrfs", "scrub", "status", mount))
    run("sh", "-ec", reset)
    assert node.findings() == set()
    _, replace, _ = found_after_damage()
    run("sh", "-ec", replace.replace("/dev/NEW", third))
    until(lambda: "finished" in run("btrfs", "replace", "status", "-1", mount))
    assert node.findings() == set()
    assert third in run("btrfs", "device", "stats", mount)
    assert second not in run("btrfs", "device", "stats", mount)
    assert (node.mount / "file").read_bytes() == data


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.docker
def test_containers_of_docker_are_named_and_lose_their_limits_with_the_daemon(
    filesystem: Make, need: Callable[..., None], ioctls: HelperIoctls
) -> None:
    need("dockerd", "docker", "busybox")
    mount = filesystem("btrfs", size=400)
    run("btrfs", "quota", "enable", str(mount))
    with tempfile.TemporaryDirectory() as short, dockerd(Path(short), "btrfs", mount / "docker") as docker:
        node = Node(mount, ioctls, Runtimes((), (str(docker.root),), (), (), ()))
        docker.import_image("busybox")
        script = "dd if=/dev/urandom of=/tmp/file bs=1M count=40 && sync && echo ready > /tmp/ready && sleep 1000"
        container = docker.run("writer", script)
        docker.run("idler", "sleep 1000")
        for _ in range(300):
            if docker.docker("exec", "writer", "/bin/sh", "-c", "cat /tmp/ready || true"):
                break
            time.sleep(0.1)
        exclusive = {
            labels["container"]: (labels, value)
            for labels, value in node.samples("ullage_qgroup_exclusive_bytes")
            if labels["container"]
        }
        assert set(exclusive) == {"writer", "idler"}
        labels, value = exclusive["writer"]
        assert labels["id"] == container[:12]
        assert value > 40 * MIB
        assert node.findings() == set()
        run("btrfs", "qgroup", "limit", "46M", str(mount / labels["path"].lstrip("/")))
        (found,) = node.found()
        assert found.finding.id == "pressure-candidate"
        assert found.target == f"{node.uuid}/{labels['qgroup']}"
        assert "Container writer is" in found.explanation
        run(*found.remedy.partition("#")[0].split())
        assert node.findings() == set()
        docker.docker("rename", "writer", "renamed")
        # a container may have a subvolume that is named like another's
        fake = mount / labels["path"].lstrip("/") / "tmp" / "btrfs" / "subvolumes"
        fake.mkdir(parents=True)
        create(fake, exclusive["idler"][0]["path"].rpartition("/")[2])
        names = [each["container"] for each, _ in node.samples("ullage_qgroup_exclusive_bytes") if each["container"]]
        assert names.count("idler") == 1
    assert node.findings() == {"qgroups-disappeared"}


@pytest.mark.docker
def test_containers_of_containerd_are_named_by_what_is_mounted(
    filesystem: Make, need: Callable[..., None], ioctls: HelperIoctls
) -> None:
    need("containerd", "ctr", "runc", "busybox")
    mount = filesystem("btrfs", size=400)
    run("btrfs", "quota", "enable", str(mount))
    with tempfile.TemporaryDirectory() as short, containerd(Path(short), mount / "containerd") as made:
        node = Node(mount, ioctls, Runtimes((), (), (str(made.root),), (str(made.state),), ()))
        made.import_image("busybox")
        made.run("by-hand", "btrfs", "busybox", "sleep 1000")
        named = [labels for labels, _ in node.samples("ullage_qgroup_referenced_bytes") if labels["container"]]
        assert [(labels["container"], labels["id"]) for labels in named] == [("by-hand", "by-hand")]
        assert "/io.containerd.snapshotter.v1.btrfs/active/" in named[0]["path"]
    names = {labels["container"] for labels, _ in node.samples("ullage_qgroup_referenced_bytes")}
    assert names == {""}
