"""The qgroup collector on directories that stand for /sys/fs/btrfs; a real btrfs is in tests/real."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.collector import Start
from agent.config import load
from agent.exposition import Pages
from agent.latches import Latches
from agent.runner import Runner
from collectors.qgroup import COLLECTOR
from tests.trees.tree import host_of

TREE = Path(__file__).resolve().parents[1] / "trees" / "qgroup" / "limits"
UUID = "5baa8140-b4ea-4744-b119-4c12e1b9efc2"
SYSFS = f"sys/fs/btrfs/{UUID}"


class Node:
    """A copy of the tree, to be changed between two runs."""

    def __init__(self, tree: Path, workplace: Path) -> None:
        self.tree = tree
        self.host = host_of(tree, workplace)
        self.copy = Path(self.host.rootfs)
        (plan,) = load(None, [COLLECTOR], {}).plans
        self.pages = Pages()
        self.runner = Runner(plan, self.host, Latches(None), self.pages)
        self.running = plan.collector.start(Start(self.runner.host, plan.settings))

    def run(self) -> str:
        self.runner.run(self.running)
        assert "bug" not in self.runner.errors, self.runner.outcome.reason
        return b"".join(self.pages.members("text", gzip=False)).decode()

    def found(self) -> dict[str, str]:
        return {found.finding.id: found.remedy for found in self.runner.outcome.findings}

    def write(self, path: str, text: str | bytes) -> None:
        (self.copy / SYSFS / path).write_bytes(text if isinstance(text, bytes) else text.encode())


Change = Callable[[Path], None]
Make = Callable[..., Node]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def node(change: Change = lambda _: None) -> Node:
        shutil.copytree(TREE, tmp_path / "tree", symlinks=True)
        change(tmp_path / "tree")
        return Node(tmp_path / "tree", tmp_path / "trees")

    return node


def test_errors_of_a_device_are_found_by_their_kind(make: Make) -> None:
    node = make()
    node.run()
    assert "btrfs-device-errors" in node.found()
    (found,) = [each for each in node.runner.outcome.findings if each.finding.id == "btrfs-device-errors"]
    assert found.target == f"{UUID}/1"
    assert "2 corruption" in found.explanation
    node.write("devinfo/1/error_stats", "write_errs 0\ncorruption_errs 0\n")
    node.run()
    assert "btrfs-device-errors" not in node.found()


def test_kernels_before_the_files_came_lack_the_numbers_only(make: Make) -> None:
    def older(tree: Path) -> None:
        for path in ("commit_stats", "devinfo/1/error_stats", "qgroups/mode", "qgroups/inconsistent"):
            (tree / SYSFS / path).unlink(missing_ok=True)

    node = make(older)
    text = node.run()
    assert "ullage_btrfs_commits_total" not in text
    assert "ullage_btrfs_device_errors_total" not in text
    assert "ullage_qgroup_referenced_bytes{" in text
    assert f'ullage_qgroups_mode{{mode="qgroup",uuid="{UUID}"}} 1' in text
    assert not node.runner.errors


def test_hostile_numbers_are_counted_and_cost_their_qgroup_only(make: Make) -> None:
    node = make()
    before = node.run().count("ullage_qgroup_referenced_bytes{")
    node.write("qgroups/0_257/referenced", b"\xff\x00 many")
    node.write("commit_stats", b"commits\ncommits -3\n\xff\xff 5\n")
    (node.copy / SYSFS / "qgroups" / "0_x\n9").mkdir()
    text = node.run()
    assert text.count("ullage_qgroup_referenced_bytes{") == before - 1
    assert node.runner.errors["malformed"] == 1
    assert "ullage_btrfs_commits_total{" not in text


def test_a_path_is_an_attackers_input(make: Make) -> None:
    name = 'a"b\nc\u202e'

    def hostile(tree: Path) -> None:
        path = tree / "subvolumes.json"
        links = json.loads(path.read_text())
        path.write_text(json.dumps([[links[0][0], 5, 256, name], *links[1:]]))

    lines = [line for line in make(hostile).run().splitlines() if 'path="/a' in line]
    assert lines
    assert all("\u202e" not in line and '"b' not in line.replace('\\"b', "") for line in lines)


def test_a_qgroup_whose_path_is_unknown_is_not_called_stale(make: Make) -> None:
    node = make(lambda tree: (tree / "subvolumes.json").unlink())
    text = node.run()
    assert "ullage_qgroup_referenced_bytes{" in text
    assert "ullage_qgroup_stale{" not in text
