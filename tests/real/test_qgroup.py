"""The qgroup collector on a real btrfs, against `btrfs qgroup show --raw -re`."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.collector import Start
from agent.config import load
from agent.exposition import Pages
from agent.host import Host
from agent.ioctl import HelperIoctls
from agent.latches import Latches
from agent.runner import Runner
from collectors import qgroup
from tests.real.conftest import Make, run

pytestmark = pytest.mark.root
MIB = 1 << 20


class Node:
    """The collector at work, and its view of one btrfs."""

    def __init__(self, mount: Path, ioctls: HelperIoctls) -> None:
        self.mount = mount
        self.uuid = run("findmnt", "--noheadings", "--output", "UUID", str(mount))
        (plan,) = load(None, [qgroup.COLLECTOR], {}).plans
        self._pages = Pages()
        self.runner = Runner(plan, Host(ioctls=ioctls), Latches(None), self._pages)
        self._running = plan.collector.start(Start(self.runner.host, plan.settings))

    def read(self, name: str) -> dict[str, float]:
        """Do one run; return a metric's values of this btrfs by qgroup."""
        return {labels["qgroup"]: value for labels, value in self.samples(name)}

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        run("btrfs", "filesystem", "sync", str(self.mount))
        self.runner.run(self._running)
        assert "bug" not in self.runner.errors, self.runner.outcome.reason
        text = b"".join(self._pages.members("text", gzip=False)).decode()
        return [
            (sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and sample.labels["uuid"] == self.uuid
        ]

    def level(self) -> int:
        """Do one run; return the level of the referenced watermark."""
        self.read("ullage_qgroup_referenced_bytes")
        return max((each.level for table in self.runner.outcome.levels for each in table), default=0)

    def findings(self) -> set[str]:
        self.samples("ullage_qgroups_enabled")
        return {found.finding.id for found in self.runner.outcome.findings if self.uuid in found.target}

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


@pytest.fixture
def node(filesystem: Make, need: Callable[..., None], stack: contextlib.ExitStack) -> Node:
    need("btrfs", "findmnt")
    ioctls = HelperIoctls()
    stack.callback(ioctls.close)
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
    assert node.findings() == {"qgroups-disappeared"}


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
    Path(f"/sys/fs/btrfs/{node.uuid}/qgroups/drop_subtree_threshold").write_text("0")
    run("btrfs", "subvolume", "delete", "--commit-after", f"{mount}/big2")
    run("btrfs", "subvolume", "sync", mount)
    assert node.findings() == {"qgroup-inconsistent"}
    assert node.read("ullage_qgroup_referenced_bytes") == {}
    run("btrfs", "quota", "rescan", "-w", mount)
    assert node.findings() == set()
    node.check()
