"""The filesystem collector on real mounts, against df and what the kernel does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.collector import Running, Start
from agent.config import load
from agent.errors import Failed, Stuck
from agent.exposition import Pages
from agent.host import Host, Space
from agent.latches import Latches
from agent.probe import HelperProber
from agent.runner import Runner
from collectors import filesystem as collector
from tests.real.conftest import Make, MakeStuck, StuckFs, run

pytestmark = pytest.mark.root


class Node:
    """The collector at work on this node."""

    def __init__(self, prober: HelperProber, settings: collector.Settings | None = None) -> None:
        self.prober = prober
        (plan,) = load(None, [collector.COLLECTOR], {}).plans
        plan = replace(plan, settings=settings or plan.settings)
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
    for _ in range(50):  # until nobody wrote between the two readings
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
    mounts = [mount for mount in node.read()["files"] if "/pytest-of-" not in mount]  # those come and go
    assert "/" in mounts
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


# -- what hangs --


def footprint() -> tuple[int, int, int]:
    """Return the numbers of our threads, descriptors and child processes."""
    children = Path(f"/proc/self/task/{threading.main_thread().native_id}/children").read_text().split()
    return threading.active_count(), len(os.listdir("/proc/self/fd")), len(children)


def kinds(prober: HelperProber, *paths: Path | str) -> list[type]:
    return [type(answer) for answer in prober.measure(Host().points([str(path) for path in paths]))]


@pytest.fixture
def make_prober(stack: contextlib.ExitStack) -> Callable[..., HelperProber]:
    def make(deadline: float = 0.1, unkillable: int = 8, forget_after: float = 600) -> HelperProber:
        prober = HelperProber(deadline, unkillable, forget_after)

        def close() -> None:  # the filesystems are gone by now, so that every helper ends
            for process in prober._unkillable.values():
                process.wait(30)
            prober.close()

        stack.callback(close)
        return prober

    return make


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
def test_nothing_is_left_behind_after_100_rounds(
    make_prober: Callable[..., HelperProber], stack: contextlib.ExitStack, stuckfs: StuckFs
) -> None:
    node = Node(make_prober(deadline=0.02))
    stack.callback(node.running.close)
    node.read()
    before = footprint()
    stuckfs.hang()
    for _ in range(100):
        assert node.of(stuckfs.mount)["stuck"] == 1
    stuckfs.wake()
    end = time.monotonic() + 30
    node.read()
    while footprint() != before:  # a busy machine takes a while to end a helper, or to answer within 20 ms
        assert time.monotonic() < end, (before, footprint())
        node.read()


def test_a_helper_that_is_killed_is_replaced_and_costs_no_number(node: Node, filesystem: Make) -> None:
    mount = filesystem("ext4")
    node.read()
    assert node.prober.pid is not None
    os.kill(node.prober.pid, 9)
    assert node.of(mount)["stuck"] == 0


def test_several_that_hang_are_stuck_each_and_the_rest_is_fresh(
    make_stuckfs: MakeStuck, make_prober: Callable[..., HelperProber]
) -> None:
    prober = make_prober()
    sick = [make_stuckfs() for _ in range(5)]
    paths: list[Path | str] = ["/", *(each.mount for each in sick), "/proc"]
    for each in sick:
        each.hang()
    for _ in range(3):
        assert kinds(prober, *paths) == [Space, *[Stuck] * 5, Space]
    sick[4].wake()
    for _ in range(5):  # those that hang are asked in turn
        answers = kinds(prober, *paths)
    assert answers == [Space, *[Stuck] * 4, Space, Space]


def test_one_that_is_slow_is_not_stuck_because_another_hangs(
    make_stuckfs: MakeStuck, make_prober: Callable[..., HelperProber]
) -> None:
    prober = make_prober(deadline=1.0)
    hanging, slow = make_stuckfs(), make_stuckfs()
    hanging.hang()
    slow.hang()
    waker = threading.Timer(1.5, slow.wake)  # after the first deadline, within the time that suspects share
    waker.start()
    assert kinds(prober, hanging.mount, slow.mount, "/") == [Stuck, Space, Space]
    waker.join()


@pytest.mark.parametrize("forget_after", [600, 0])
def test_one_that_cannot_even_be_killed_is_left_alone_until_it_answers(
    stuckfs: StuckFs, make_prober: Callable[..., HelperProber], forget_after: float
) -> None:
    prober = make_prober(forget_after=forget_after)
    kinds(prober, "/")
    stuckfs.keep()
    assert kinds(prober, stuckfs.mount, "/") == [Stuck, Space]
    before = footprint()
    for _ in range(5):
        assert kinds(prober, stuckfs.mount, "/") == [Stuck, Space]
    assert footprint() == before, "it is not asked again, each time with one more helper that cannot end"
    stuckfs.give()
    (hung,) = prober._unkillable.values()
    hung.wait(30)
    assert kinds(prober, stuckfs.mount, "/") == [Space, Space]
    assert footprint()[2] == before[2] - 1


def test_helpers_that_cannot_be_killed_are_bounded_and_no_mount_is_called_stuck_for_that(
    make_stuckfs: MakeStuck, make_prober: Callable[..., HelperProber]
) -> None:
    prober = make_prober(unkillable=2)
    sick = [make_stuckfs() for _ in range(2)]
    paths: list[Path | str] = [*(each.mount for each in sick), "/"]
    for each in sick:
        each.keep()
    for _ in range(3):
        assert kinds(prober, *paths) == [Stuck, Stuck, Failed]
    sick[0].give()
    prober._unkillable[b"v" + os.fsencode(sick[0].mount)].wait(30)
    assert kinds(prober, *paths) == [Space, Stuck, Space]


def test_a_helper_that_dies_twice_at_one_path_is_no_claim_that_it_hangs(
    stuckfs: StuckFs, make_prober: Callable[..., HelperProber]
) -> None:
    prober = make_prober(deadline=3600)
    kinds(prober, "/")
    stuckfs.hang()
    answers: list[type] = []
    thread = threading.Thread(target=lambda: answers.extend(kinds(prober, stuckfs.mount, "/")), daemon=True)
    thread.start()
    killed: set[int] = set()
    while len(killed) < 2 and thread.is_alive():
        pid = prober.pid
        if pid is not None and pid not in killed:
            killed.add(pid)
            os.kill(pid, 9)
    thread.join(30)
    assert answers == [Failed, Space]


def test_a_root_on_a_mount_that_hangs_keeps_its_role_and_the_round_does_not_hang(
    make_prober: Callable[..., HelperProber], stack: contextlib.ExitStack, stuckfs: StuckFs
) -> None:
    node = Node(make_prober(), collector.Settings(roots={"docker": (str(stuckfs.mount),)}))
    stack.callback(node.running.close)
    role = {str(stuckfs.mount): 1}
    assert node.read()["role"].items() >= role.items()
    stuckfs.hang()
    rounds: list[dict[str, dict[str, float]]] = []
    thread = threading.Thread(target=lambda: rounds.append(node.read()), daemon=True)
    thread.start()
    thread.join(30)
    assert [values["stuck"][str(stuckfs.mount)] for values in rounds] == [1]
    assert rounds[0]["role"].items() >= role.items()
    stuckfs.wake()
    thread.join()


# -- other mount namespaces --


def in_own_namespace(script: str) -> subprocess.CompletedProcess[str]:
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script]
    return subprocess.run(command, check=True, capture_output=True, text=True)


def test_a_mount_point_in_another_mount_namespace_is_unreachable_not_wrong(filesystem: Make) -> None:
    """The agent in a mount namespace of its own, in which a filesystem of the host is missing."""
    mount = filesystem("ext4")
    done = in_own_namespace(f"umount {mount}; exec {sys.executable} -m agent once --collector.filesystem")
    assert f'mountpoint="{mount}"' not in done.stdout
    assert 'ullage_collector_errors_total{collector="filesystem",reason="unreachable"} 1' in done.stdout
    assert json.dumps(str(mount)) in done.stderr or str(mount) in done.stderr


def test_a_root_that_only_we_see_read_only_is_not_read_only(need: Callable[..., None], tmp_path: Path) -> None:
    """As in a container with the host's root bound read-only, where statvfs says read-only."""
    need("unshare")
    host = tmp_path / "host"
    host.mkdir()
    assert os.statvfs("/").f_flag & os.ST_RDONLY == 0
    bind = f"mount --bind / {host}; mount -o remount,bind,ro {host}; findmnt -no OPTIONS {host} >&2"
    agent = f"exec {sys.executable} -m agent once --collector.filesystem --path.rootfs={host}"
    done = in_own_namespace(f"{bind}; {agent}")
    assert done.stderr.startswith("ro")
    assert re.search(r'^ullage_filesystem_readonly\{.*mountpoint="/"\} 0$', done.stdout, re.MULTILINE)


MOUNTS_AT_RANDOM = """
import os, random, subprocess, sys
from collectors.readers.mountinfo import parse, visible
random.seed(int(sys.argv[2]))
root = sys.argv[1]
points = [root + path for path in ("/a", "/a/b", "/a/b/c", "/d", "/d/e")]
def make():
    for path in points:
        os.makedirs(path, exist_ok=True)
make()
for number in range(40):
    source, target = random.sample(points, 2)
    kind = random.choice((["-t", "tmpfs", f"t{number}"], ["--bind", source], ["--move", source]))
    subprocess.run(["mount", "-n", *kind, target], stderr=subprocess.DEVNULL)
    make()
mounts, malformed = parse(open("/proc/self/mountinfo", "rb").read())
assert not malformed
mounts = [mount for mount in mounts if mount.mountpoint in points]
seen = {mount.id for mount in visible(parse(open("/proc/self/mountinfo", "rb").read())[0])}
def id_of(path):
    descriptor = os.open(path, os.O_PATH)
    fields = dict(line.split(":", 1) for line in open(f"/proc/self/fdinfo/{descriptor}") if ":" in line)
    os.close(descriptor)
    return int(fields["mnt_id"])
for mount in mounts:
    assert (mount.id in seen) == (id_of(mount.mountpoint) == mount.id), mount
print(len(mounts), len([mount for mount in mounts if mount.id in seen]))
"""


@pytest.mark.parametrize("seed", range(5))
def test_the_kernel_agrees_which_mounts_can_be_seen(need: Callable[..., None], tmp_path: Path, seed: int) -> None:
    """Tmpfs, binds and moves at random, and which mount a path then leads to."""
    need("unshare")
    script = tmp_path / "mounts.py"
    script.write_text(MOUNTS_AT_RANDOM)
    root = tmp_path / "root"
    root.mkdir()
    done = in_own_namespace(f"PYTHONPATH=. exec {sys.executable} {script} {root} {seed}")
    mounted, seen = map(int, done.stdout.split())
    assert mounted > seen > 0, "some are hidden"
