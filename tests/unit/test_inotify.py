"""What the collector of inotify tells as things change on a recorded node."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.errors import HostError
from agent.host import Points, Space
from collectors.inotify import COLLECTOR
from tests.trees.node import Node
from tests.trees.tree import TreeProber

LIMIT = "proc/sys/user/max_inotify_instances"
HIGHEST = "proc/sys/fs/inotify/max_user_instances"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(COLLECTOR, "docker", tmp_path)


def limited(node: Node, limit: int) -> bool:
    """Set the limit of instances; return whether it is told as near."""
    for path in (LIMIT, HIGHEST):
        (node.path / path).write_text(f"{limit}\n")
    node.run()
    return ("inotify-near-limit", "4026531837/0 instances") in node.found()


def test_a_limit_that_is_near_is_told_until_it_is_far(node: Node) -> None:
    # of 7 instances: 0.78, 0.88, 0.78 again, 0.64, 0.78
    assert [limited(node, each) for each in (9, 8, 9, 11, 9)] == [False, True, True, False, False]


def test_the_remedy_names_the_limit_that_holds(node: Node) -> None:
    node.run()
    found = node.found()["inotify-near-limit", "4026531837/0 instances"]
    assert found.remedy.startswith("sysctl fs.inotify.max_user_instances=16   #")
    assert "Most of them: web with 7." in found.explanation


def test_of_two_limits_the_lower_one_holds(node: Node) -> None:
    (node.path / LIMIT).write_text("2147483647\n")
    assert 'ullage_inotify_instances_limit{uid="0",userns="4026531837"} 8' in node.run()


def test_without_a_readable_limit_there_is_usage_alone(node: Node) -> None:
    (node.path / LIMIT).unlink()
    (node.path / HIGHEST).write_text("many\n")
    text = node.run()
    assert 'ullage_inotify_instances{uid="0",userns="4026531837"} 7' in text
    assert "ullage_inotify_instances_limit" not in text
    assert node.runner.errors["malformed"] == 1


def test_users_of_another_user_namespace_have_no_limit_of_ours(node: Node) -> None:
    for namespaces in node.path.glob("proc/[0-9]*/ns"):
        (namespaces / "user").unlink()
        (namespaces / "user").symlink_to("user:[4026532999]")
    text = node.run()
    assert 'ullage_inotify_instances{uid="0",userns="4026532999"} 7' in text
    assert "ullage_inotify_instances_limit" not in text


def test_a_file_that_is_back_is_stale_no_more(node: Node) -> None:
    assert 'ullage_bind_mounts_stale{container="web",id="598ca9355d2f",namespace="",pod=""} 1' in node.run()
    for table in node.path.glob("proc/*/mountinfo"):
        table.write_bytes(table.read_bytes().replace(b"//deleted", b""))
    assert 'ullage_bind_mounts_stale{container="web",id="598ca9355d2f",namespace="",pod=""} 0' in node.run()
    assert "hot-reload-dead" not in {name for name, _ in node.found()}


class Counting(TreeProber):
    """Answers from the tree, and remembers what it was asked."""

    def __init__(self, tree: Path) -> None:
        super().__init__(tree)
        self.asked: list[str] = []

    def measure(self, points: Points) -> list[Space | HostError]:
        self.asked += points.paths
        return super().measure(points)


def counting(node: Node) -> Counting:
    node.runner.host.prober = made = Counting(node.path)
    return made


def mount(node: Node, *lines: str) -> None:
    """Add mounts to the namespace of the container `web`, whose root is mount 74 and whose replaced file is 97."""
    for table in node.path.glob("proc/*/mountinfo"):
        if b" /etc/app.conf " in (text := table.read_bytes()):
            table.write_bytes(text + "".join(f"{line}\n" for line in lines).encode())


@pytest.mark.parametrize(
    "line",
    [
        "200 74 0:99 / /etc rw - fuse x rw",
        "200 74 0:99 / /etc rw - nfs4 nas:/x rw",
        "200 74 0:99 / /etc rw - autofs systemd-1 rw",
        "200 97 0:99 / /etc/app.conf rw - fuse x rw",
        # made in the container: its layers are paths of there
        "200 74 0:99 / /etc rw - overlay x rw,lowerdir=/l,upperdir=/u,workdir=/w",
    ],
)
def test_no_look_at_a_mount_leads_through_what_may_hang(line: str, node: Node) -> None:
    mount(node, line)
    prober = counting(node)
    text = node.run()
    assert not [path for path in prober.asked if path.endswith("app.conf")]
    assert 'ullage_inotify_skipped_mounts{reason="not_a_local_disk"} 1' in text
    assert 'ullage_bind_mounts_stale{container="web"' not in text
    assert 'ullage_bind_mounts_stale{container="holder"' in text
    assert 'ullage_container_inotify_watches{container="web"' in text
    assert "hot-reload-dead" not in {name for name, _ in node.found()}


def test_without_a_root_in_its_table_nobody_knows_where_a_way_leads(node: Node) -> None:
    for table in node.path.glob("proc/*/mountinfo"):
        lines = table.read_bytes().splitlines(keepends=True)
        table.write_bytes(b"".join(line for line in lines if not line.startswith(b"74 ")))
    prober = counting(node)
    assert 'ullage_inotify_skipped_mounts{reason="unknown_mount"} 1' in node.run()
    assert not [path for path in prober.asked if path.endswith("app.conf")]


def test_a_container_in_whose_mounts_a_look_hangs_is_looked_into_once(node: Node) -> None:
    mount(node, *(f"{200 + number} 74 254:0 /x//deleted /etc/{number} rw - ext4 /dev/vda rw" for number in range(9)))
    answers = {f"/proc/{pid}/root/etc/app.conf": "stuck" for pid in (21846, 21848)}
    (node.path / "inodes.json").write_text(json.dumps(answers))
    prober = counting(node)
    text = node.run()
    assert len([path for path in prober.asked if "/root/etc/" in path]) == 1
    assert 'ullage_inotify_skipped_mounts{reason="stuck"} 10' in text
    assert 'ullage_bind_mounts_stale{container="web"' not in text
    assert 'ullage_container_inotify_watches{container="web"' in text


FILE, DIRECTORY, LINK = 0o100644, 0o40755, 0o120777
SDB1 = "300 27 8:17 / /data rw - ext4 /dev/sdb1 rw"
RESTART = "docker restart web   # "
GUARDED = f"test -f /data/app.conf && {RESTART}"


@dataclass
class Case:
    """Mounts of the host, a mount's device and root, what lies on the host; what is told of it."""

    hosts: tuple[str, ...]
    device: str
    root: str
    there: dict[str, tuple[int, int]]
    told: str
    remedy: str


VOLUME = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~configmap/c"
CASES = {
    "another partition": Case(
        *((SDB1,), "8:17", "/app.conf", {"/data": (DIRECTORY, 0x811), "/data/app.conf": (FILE, 0x811)}),
        *("/data/app.conf, has been replaced on the host since:", RESTART),
    ),
    "a subvolume": Case(
        ("300 27 0:50 /@data /data rw - btrfs /dev/sdb1 rw", "301 27 0:50 /@ /other rw - btrfs /dev/sdb1 rw"),
        *("0:50", "/@data/app.conf", {"/data": (DIRECTORY, 77), "/data/app.conf": (FILE, 77)}),
        *("/data/app.conf, has been replaced on the host since:", RESTART),
    ),
    "nothing in its place": Case(
        *((SDB1,), "8:17", "/app.conf", {"/data": (DIRECTORY, 0x811)}),
        *(
            "/data/app.conf, has been removed on the host, and no file is in its place now:",
            GUARDED + "put the file back",
        ),
    ),
    "a directory in its place": Case(
        *((SDB1,), "8:17", "/app.conf", {"/data": (DIRECTORY, 0x811), "/data/app.conf": (DIRECTORY, 0x811)}),
        *(
            "/data/app.conf, has been removed on the host, and no file is in its place now:",
            GUARDED + "put the file back",
        ),
    ),
    "a link in its place": Case(
        *((SDB1,), "8:17", "/app.conf", {"/data": (DIRECTORY, 0x811), "/data/app.conf": (LINK, 0x811)}),
        *(
            "/data/app.conf, has been replaced or removed on the host since:",
            GUARDED + "see first that the file is there",
        ),
    ),
    "not mounted where we look": Case(
        *((SDB1,), "8:17", "/app.conf", {"/data": (DIRECTORY, 0xFE00)}),
        *("/data/app.conf, has been replaced or removed on the host since:", GUARDED + "see first"),
    ),
    "mounted nowhere on the host": Case(
        *((), "8:17", "/app.conf", {}),
        "/app.conf on /dev/sdb1 (ext4), has been replaced or removed since, on a filesystem that the host shows",
        RESTART + "see first that the file is there",
    ),
    "hidden by another mount": Case(
        *(
            (SDB1, "301 300 8:33 / /data rw - ext4 /dev/sdc1 rw"),
            "8:17",
            "/app.conf",
            {"/data/app.conf": (FILE, 0x821)},
        ),
        *("/app.conf on /dev/sdb1 (ext4), has been replaced or removed since, on a filesystem", RESTART + "see first"),
    ),
    "another part of the filesystem": Case(
        *(("300 27 8:17 /logs /data rw - ext4 /dev/sdb1 rw",), "8:17", "/logs.conf", {"/data.conf": (FILE, 0x811)}),
        *("/logs.conf on /dev/sdb1 (ext4), has been replaced or removed since, on a filesystem", RESTART + "see first"),
    ),
    "written anew by the kubelet": Case(
        *((), "254:0", f"{VOLUME}/..2024_05_01_10_11_12.123456789/app.conf", {f"{VOLUME}/..data": (LINK, 0xFE00)}),
        *(f"{VOLUME}/app.conf, has been replaced on the host since:", RESTART),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_source_is_told_by_its_place_on_the_host_with_what_is_there_now(case: Case, node: Node) -> None:
    with open(node.path / "proc/1/mountinfo", "a") as hosts:
        hosts.writelines(f"{line}\n" for line in case.hosts)
    kind = "btrfs" if case.device == "0:50" else "ext4"
    source = "/dev/vda" if case.device == "254:0" else "/dev/sdb1"
    for table in node.path.glob("proc/*/mountinfo"):
        lines = table.read_text().splitlines()
        stale = f"97 74 {case.device} {case.root}//deleted /etc/app.conf rw - {kind} {source} rw"
        table.write_text("".join(f"{stale if line.startswith('97 ') else line}\n" for line in lines))
    answers = json.loads((node.path / "inodes.json").read_text())
    del answers["/srv/app/app.conf"]
    answers |= {path: [mode, device, 5, 1, 8] for path, (mode, device) in case.there.items()}
    (node.path / "inodes.json").write_text(json.dumps(answers))
    counting(node)
    node.run()
    found = node.found()["hot-reload-dead", "web /etc/app.conf"]
    assert f" as a single file, and that file, {case.told}" in found.explanation
    assert found.remedy.startswith(case.remedy)


def test_a_source_behind_what_may_hang_is_not_looked_for(node: Node) -> None:
    with open(node.path / "proc/1/mountinfo", "a") as hosts:
        hosts.write("300 27 0:99 / /srv rw - fuse x rw\n301 300 254:0 /srv/app /srv/app rw - ext4 /dev/vda rw\n")
    prober = counting(node)
    node.run()
    assert not [path for path in prober.asked if path.endswith("/srv/app/app.conf")]
    told = node.found()["hot-reload-dead", "web /etc/app.conf"].explanation
    assert "/srv/app/app.conf, has been replaced or removed on the host since:" in told


def test_a_disk_of_the_host_that_hangs_is_asked_once(node: Node) -> None:
    mount(node, *(f"{200 + number} 74 254:0 /x//deleted /etc/{number} rw - ext4 /dev/vda rw" for number in range(9)))
    answers = json.loads((node.path / "inodes.json").read_text())
    for pid in (21846, 21848):
        answers |= {f"/proc/{pid}/root/etc/{number}": [FILE, 65024, 5, 0, 8] for number in range(9)}
    (node.path / "inodes.json").write_text(json.dumps(answers | {"/": "stuck"}))
    prober = counting(node)
    assert 'ullage_bind_mounts_stale{container="web",id="598ca9355d2f",namespace="",pod=""} 10' in node.run()
    assert prober.asked.count(f"{node.path}/") == 1


def test_what_cannot_be_looked_into_makes_its_containers_numbers_unknown_and_no_others(node: Node) -> None:
    (victim,) = node.path.glob("proc/*/fdinfo/8")
    (victim.parents[1] / "status").write_text("VmSize:\t1 kB\n")
    text = node.run()
    assert 'container="web"' not in text
    assert 'ullage_container_inotify_watches{container="holder"' in text
    assert node.runner.errors["malformed"] == 1
    node.run()
    assert node.runner.errors["malformed"] == 2  # once for each pass


def test_a_process_of_which_nobody_knows_whose_it_is_may_be_anybodys(node: Node) -> None:
    (node.path / "proc/999/cgroup").mkdir(parents=True)
    (node.path / "proc/999/status").write_text("Uid:\t5\t5\t5\t5\nVmSize:\t1 kB\n")
    text = node.run()
    assert "ullage_container_inotify_watches{" not in text
    assert 'ullage_inotify_watches{uid="0"' in text  # it is user 5's


def test_a_container_that_ends_takes_its_series_along(node: Node) -> None:
    node.run()
    for process in node.path.glob("proc/[0-9]*"):
        if b"598ca9355d2f" in (process / "cgroup").read_bytes():
            shutil.rmtree(process)
    text = node.run()
    assert "web" not in text
    assert node.found() == {}


def test_a_container_without_a_name_is_told_by_its_id(node: Node) -> None:
    shutil.rmtree(node.path / "var/lib/docker/containers")
    node.run()
    assert ("hot-reload-dead", "598ca9355d2f /etc/app.conf") in node.found()


def test_a_hostile_name_stays_in_its_place(tmp_path: Path) -> None:
    node = Node(COLLECTOR, "sick", tmp_path)
    node.run()
    (found,) = [each for each in node.runner.outcome.findings if each.finding.id == "hot-reload-dead"]
    assert found.target == 'shop/web-1/main /etc/a\nb"c\\'
    assert found.remedy.startswith("test -f '/srv/c d' && kubectl delete pod --namespace shop web-1   #")


def test_watches_of_a_fuse_that_has_all_changes_itself_are_not_blind(node: Node) -> None:
    for table in node.path.glob("proc/*/mountinfo"):
        table.write_bytes(table.read_bytes().replace(b" - fuse ", b" - fuse.fuse-overlayfs "))
    node.run()
    assert "inotify-blind-watch" not in {name for name, _ in node.found()}


def test_a_descriptor_that_is_closed_meanwhile_is_no_instance(node: Node) -> None:
    (info,) = node.path.glob("proc/*/fdinfo/8")
    os.unlink(info)
    text = node.run()
    assert 'ullage_inotify_skipped_processes{reason="vanished"} 1' in text


def test_a_layer_below_an_overlay_is_known_by_its_own_directory(node: Node) -> None:
    lower = "/var/lib/docker/overlay2/l/LAYER"
    with open(node.path / "proc/1/mountinfo", "a") as table:
        table.write(f"999 27 0:99 / /merged rw - overlay overlay rw,lowerdir={lower}:/gone,upperdir=/u,workdir=/w\n")
    (node.path / "inodes.json").write_text(json.dumps({lower: [0o40755, 1, 0xF00, 2, 8]}))
    (info,) = node.path.glob("proc/*/fdinfo/8")
    info.write_text("inotify wd:1 ino:f00 sdev:fe00000 mask:fff\ninotify wd:2 ino:f01 sdev:fe00000 mask:fff\n")
    node.runner.host.prober = TreeProber(node.path)
    node.run()
    assert "web has 1 inotify watches on /var/lib/docker/overlay2 (below overlays)" in {
        found.explanation.partition(":")[0] for found in node.found().values()
    }
