"""The filesystem collector on real mounts, against df and what the kernel does."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.collector import Running, Start
from agent.config import load
from agent.errors import Stuck
from agent.exposition import Pages
from agent.host import Host, Space
from agent.latches import Latches
from agent.probe import HelperProber
from agent.runner import Runner
from collectors import filesystem as collector
from tests.real.conftest import Make, StuckFs, run

pytestmark = pytest.mark.root


class Node:
    """The collector at work on this node."""

    def __init__(self, prober: HelperProber) -> None:
        self.prober = prober
        (plan,) = load(None, [collector.COLLECTOR], {}).plans
        self._pages = Pages()
        self.runner = Runner(plan, Host(prober=prober), Latches(None), self._pages)
        self.running: Running = plan.collector.start(Start(self.runner.host, plan.settings))

    def read(self) -> dict[str, dict[str, float]]:
        """Do one run; return the values by metric and mount point."""
        self.runner.run(self.running)
        assert "bug" not in self.runner.errors, self.runner.outcome.reason
        values: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(b"".join(self._pages.members("text", gzip=False)).decode()):
            for sample in family.samples:
                name = sample.name.removeprefix("ullage_filesystem_")
                values.setdefault(name, {})[sample.labels["mountpoint"]] = sample.value
        return values

    def of(self, mount: Path) -> dict[str, float]:
        """Return one mount's values."""
        return {name: points[str(mount)] for name, points in self.read().items() if str(mount) in points}


@pytest.fixture
def node() -> Iterator[Node]:
    prober = HelperProber(deadline=0.5)
    made = Node(prober)
    try:
        yield made
    finally:
        made.running.close()
        prober.close()


def df(mount: Path) -> tuple[list[int], list[str]]:
    """Return df's size, used and available bytes, and its inodes, inodes used and inodes free as it shows them."""
    sizes = run("df", "-B1", "--output=size,used,avail", str(mount)).splitlines()[1].split()
    inodes = run("df", "--output=itotal,iused,iavail", str(mount)).splitlines()[1].split()
    return [int(size) for size in sizes], inodes


def check_against_df(node: Node, mount: Path, fstype: str) -> None:
    for _ in range(5):  # until nobody wrote between the two readings
        before, values, after = df(mount), node.of(mount), df(mount)
        if before == after:
            break
    (size, used, available), inodes = after
    assert values["size_bytes"] == size
    assert values["size_bytes"] - values["free_bytes"] == used
    assert values["available_bytes"] == available
    if fstype == "btrfs":
        assert inodes[0] in ("0", "-")
        assert values["inode_limit_known"] == 0
        assert "files" not in values
        assert "files_free" not in values
    else:
        assert [values["files"], values["files"] - values["files_free"], values["files_free"]] == list(
            map(float, inodes)
        )
        assert values["inode_limit_known"] == 1


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_a_real_filesystem_agrees_with_df_also_when_it_fills(node: Node, filesystem: Make, fstype: str) -> None:
    mount = filesystem(fstype, size=320)
    check_against_df(node, mount, fstype)
    (mount / "many").mkdir()
    for number in range(200):
        (mount / "many" / str(number)).write_bytes(b"x" * 10_000)
    (mount / "big").write_bytes(bytes(100 << 20))
    os.sync()
    check_against_df(node, mount, fstype)


def test_tmpfs_and_overlay_agree_with_df(
    node: Node, filesystem: Make, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    upper = filesystem("ext4", "-N", "4096")
    memory, merged = tmp_path / "tmpfs", tmp_path / "merged"
    memory.mkdir()
    merged.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=500", "ullage-test", str(memory))
    stack.callback(run, "umount", str(memory))
    (memory / "file").write_bytes(b"x" * 100_000)
    for name in ("lower", "upper", "work"):
        (upper / name).mkdir()
    options = f"lowerdir={upper}/lower,upperdir={upper}/upper,workdir={upper}/work"
    run("mount", "-t", "overlay", "-o", options, "ullage-test", str(merged))
    stack.callback(run, "umount", str(merged))
    (merged / "file").write_bytes(b"x" * 100_000)
    check_against_df(node, memory, "tmpfs")
    check_against_df(node, merged, "overlay")


def test_every_mount_of_this_node_agrees_with_df(node: Node) -> None:
    mounts = node.read()["files"]
    assert mounts
    for mount in mounts:
        check_against_df(node, Path(mount), "")


def test_inodes_really_run_out(node: Node, filesystem: Make) -> None:
    mount = filesystem("ext4", "-N", "64")

    def touch_100() -> None:
        for number in range(100):
            (mount / str(number)).touch()

    with pytest.raises(OSError, match="No space left on device"):
        touch_100()
    values = node.of(mount)
    assert values["files_free"] == 0
    assert values["available_bytes"] > 0.8 * values["size_bytes"]
    levels = {(level.watermark.name, level.target): level.level for t in node.runner.outcome.levels for level in t}
    assert levels["inodes", str(mount)] == 2
    assert levels["filesystem_bytes", str(mount)] == 0


def test_an_ext4_error_shows_in_the_next_round_though_the_mount_says_rw(node: Node, filesystem: Make) -> None:
    mount = filesystem("ext4", options="errors=remount-ro")
    before = node.of(mount)
    assert (before["errors"], before["readonly"]) == (0, 0)
    device = Path(run("findmnt", "-no", "SOURCE", str(mount))).name
    Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")
    after = node.of(mount)
    assert (after["errors"], after["readonly"]) == (1, 1)
    with pytest.raises(OSError, match="Read-only file system"):
        (mount / "file").touch()


def test_an_error_that_changes_nothing_else_is_counted(node: Node, filesystem: Make) -> None:
    mount = filesystem("ext4", options="errors=continue")
    device = Path(run("findmnt", "-no", "SOURCE", str(mount))).name
    Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")
    values = node.of(mount)
    assert (values["errors"], values["readonly"], values["shutdown"]) == (1, 0, 0)


def test_an_xfs_that_shut_down_is_known_though_df_still_answers(
    node: Node, filesystem: Make, need: Callable[..., None]
) -> None:
    need("xfs_io")
    mount = filesystem("xfs", size=320)
    assert node.of(mount)["shutdown"] == 0
    run("xfs_io", "-x", "-c", "shutdown", str(mount))
    values = node.of(mount)
    assert (values["shutdown"], values["readonly"]) == (1, 1)
    assert values["size_bytes"] > 0


def test_a_remount_and_a_new_mount_show_in_the_next_round(
    node: Node, filesystem: Make, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    mount = filesystem("ext4")
    assert node.of(mount)["readonly"] == 0
    run("mount", "-o", "remount,ro", str(mount))
    assert node.of(mount)["readonly"] == 1
    late = tmp_path / "late"
    late.mkdir()
    assert node.of(late) == {}
    run("mount", "-t", "tmpfs", "ullage-test", str(late))
    stack.callback(run, "umount", str(late))
    assert node.of(late)["stuck"] == 0


def footprint() -> tuple[int, int, int]:
    """Return the numbers of our threads, descriptors and child processes."""
    children = Path(f"/proc/self/task/{threading.main_thread().native_id}/children").read_text().split()
    return threading.active_count(), len(os.listdir("/proc/self/fd")), len(children)


def test_a_mount_that_hangs_costs_itself_only_and_comes_back(node: Node, filesystem: Make, stuckfs: StuckFs) -> None:
    mount = filesystem("ext4")
    assert node.of(stuckfs.mount)["files"] == 100
    stuckfs.hang()
    for number in range(3):
        (mount / str(number)).touch()
        used = os.statvfs(mount)
        values = node.read()
        assert values["stuck"][str(stuckfs.mount)] == 1
        assert str(stuckfs.mount) not in values["size_bytes"]
        assert str(stuckfs.mount) not in values["files"]
        assert values["stuck"][str(mount)] == 0
        assert values["files_free"][str(mount)] == used.f_ffree
    stuckfs.wake()
    awake = node.of(stuckfs.mount)
    assert (awake["stuck"], awake["files"], awake["size_bytes"]) == (0, 100, 4096 * 1000)


@pytest.mark.slow
def test_nothing_is_left_behind_after_100_rounds(stuckfs: StuckFs) -> None:
    prober = HelperProber(deadline=0.02)
    node = Node(prober)
    node.read()
    before = footprint()
    stuckfs.hang()
    for _ in range(100):
        assert node.of(stuckfs.mount)["stuck"] == 1
    stuckfs.wake()
    node.read()
    assert footprint() == before
    node.running.close()
    prober.close()


def test_a_helper_that_is_killed_is_replaced_and_costs_no_number(node: Node, filesystem: Make) -> None:
    mount = filesystem("ext4")
    node.read()
    assert node.prober.pid is not None
    os.kill(node.prober.pid, 9)
    assert node.of(mount)["stuck"] == 0


def test_thousands_of_points_are_measured_in_order(node: Node, tmp_path: Path) -> None:
    paths = ["/" + "./" * (number % 50) for number in range(5000)]
    paths[1234] = str(tmp_path / "absent")
    points = Host().points(paths)
    answers = node.prober.measure(points)
    assert [number for number, answer in enumerate(answers) if not isinstance(answer, Space)] == [1234]


def test_two_that_hang_are_both_stuck_and_the_rest_is_fresh(stuckfs: StuckFs, tmp_path: Path) -> None:
    other = StuckFs(tmp_path / "other")
    prober = HelperProber(deadline=0.1)
    points = Host().points([str(stuckfs.mount), "/", str(other.mount), "/proc"])
    try:
        stuckfs.hang()
        other.hang()
        for _ in range(3):
            kinds = [type(answer) for answer in prober.measure(points)]
            assert kinds == [Stuck, Space, Stuck, Space]
        other.wake()
        kinds = []
        for _ in range(3):  # suspects are asked in turn
            kinds = [type(answer) for answer in prober.measure(points)]
        assert kinds == [Stuck, Space, Space, Space]
    finally:
        prober.close()
        other.close()


def test_a_mount_point_in_another_mount_namespace_is_unreachable_not_wrong(filesystem: Make) -> None:
    """The agent in a mount namespace of its own, in which a filesystem of the host is missing."""
    mount = filesystem("ext4")
    script = f"umount {mount} && exec {sys.executable} -m agent once --collector.filesystem"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        check=True,
        capture_output=True,
        text=True,
    )
    assert f'mountpoint="{mount}"' not in done.stdout
    assert 'ullage_collector_errors_total{collector="filesystem",reason="unreachable"} 1' in done.stdout
    assert json.dumps(str(mount)) in done.stderr or str(mount) in done.stderr
