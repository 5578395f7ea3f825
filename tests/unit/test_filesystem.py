"""What the filesystem collector decides; whole pages are compared with those of tests/trees/filesystem."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.collector import Start
from agent.config import load
from agent.containers import Runtimes
from agent.errors import ConfigError, HostError
from agent.host import Host, Points, Space
from agent.metric import Family
from collectors import filesystem
from collectors.filesystem import COLLECTOR, Filesystems, Settings
from tests.trees.tree import TreeProber, host_of

ROOT = "27 1 254:0 / / rw - ext4 /dev/vda rw"
SPACE = [4096, 4096, 100, 50, 40, 10, 5, 5, 0, 255]


class Asked:
    """A prober that remembers what it was asked, before it asks another."""

    def __init__(self, prober: TreeProber) -> None:
        self.answers = prober._answers
        self.requests: list[bytes] = []
        self._prober = prober

    def measure(self, points: Points) -> Sequence[Space | HostError]:
        self.requests += points.requests
        return self._prober.measure(points)

    def close(self) -> None:
        self._prober.close()


class Node:
    """The collector on a tree that a test writes."""

    def __init__(self, host: Host, settings: Settings, runtimes: Runtimes) -> None:
        assert isinstance(host.prober, TreeProber)
        self.prober = host.prober = Asked(host.prober)
        self.host = host
        self._running = Filesystems(Start(host, settings, runtimes=runtimes))

    def families(self) -> dict[str, Family]:
        """Do one round."""
        families = [item for item in self._running.collect(self.host) if isinstance(item, Family)]
        return {family.metric.name.removeprefix("ullage_filesystem_"): family for family in families}

    def values(self, name: str) -> dict[str, float]:
        """Do one round; return one metric's values by mount point."""
        family = self.families()[name]
        place = family.metric.labels.index("mountpoint")
        return {labels[place]: value for labels, value in zip(family.labelsets, family.values, strict=True)}

    def roles(self) -> set[tuple[str, ...]]:
        return set(self.families()["role"].labelsets)


MakeNode = Callable[..., Node]


@pytest.fixture
def make_node(tmp_path: Path) -> MakeNode:
    def make(
        *hosts: str,
        answers: Mapping[str, object] = {},
        links: Mapping[str, str] = {},
        directories: Sequence[str] = (),
        settings: Settings | None = None,
        runtimes: Runtimes | None = None,
    ) -> Node:
        tree = tmp_path / "tree"
        (tree / "proc/1").mkdir(parents=True)
        (tree / "proc/self").mkdir()
        lines = [line.split(" ") for line in (ROOT, *hosts)]
        ours = [[*line[:4], f"@ROOT@{line[4]}".rstrip("/"), *line[5:]] for line in lines]
        for name, table in (("1", lines), ("self", ours)):
            (tree / "proc" / name / "mountinfo").write_text("".join(" ".join(line) + "\n" for line in table))
        (tree / "statvfs.json").write_text(json.dumps({line[4]: SPACE for line in lines} | dict(answers)))
        for path in directories:
            (tree / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
        for path, target in links.items():
            (tree / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (tree / path.lstrip("/")).symlink_to(target)
        host = host_of(tree, tmp_path / "work")
        return Node(host, settings or Settings(), runtimes or Runtimes())

    return make


# -- which mounts --


@pytest.mark.parametrize(
    "path",
    [
        "/proc/sys/fs/binfmt_misc",
        "/dev",
        "/dev/shm",
        "/run/credentials/systemd-sysusers.service",
        "/run/netns/cni-0a1b",
        "/run/docker/netns/default",
        "/var/lib/docker/overlay2/0a1b/merged",
        "/srv/docker/overlay2/0a1b/merged",
        "/var/lib/docker/rootfs/overlayfs/" + "a" * 64,
        "/var/lib/docker/devicemapper/mnt/" + "a" * 64,
        "/var/lib/docker/zfs/graph/" + "a" * 64 + "-init",
        "/var/lib/docker/containers/" + "a" * 64 + "/mounts/shm",
        "/var/lib/containers/storage/overlay/0a1b/merged",
        "/var/lib/containers/storage/overlay-containers/0a1b/userdata/shm",
        "/run/containerd/io.containerd.runtime.v2.task/k8s.io/0a1b/rootfs",
        "/run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/0a1b/rootfs",
        "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/0a1b/shm",
        "/var/lib/kubelet/pods/6b1d/volumes/kubernetes.io~secret/token",
        "/var/lib/kubelet/pods/6b1d/volumes/kubernetes.io~projected/kube-api-access-x",
        "/var/lib/kubelet/pods/6b1d/volumes/kubernetes.io~configmap/config",
        "/var/lib/kubelet/pods/6b1d/volumes/kubernetes.io~empty-dir/memory",
        "/var/lib/kubelet/pods/6b1d/volume-subpaths/config/app/0",
        "/var/lib/docker/buildkit/executor/0a1b/rootfs",
    ],
)
def test_what_runtimes_mount_for_one_container_is_left_out(path: str) -> None:
    assert re.search(filesystem.MOUNT_POINTS_EXCLUDE, path)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/run",
        "/devices",
        "/var/lib/docker",
        "/var/lib/docker/overlay2",
        "/var/lib/containerd",
        "/var/lib/containers/storage/overlay",
        "/var/lib/kubelet",
        "/var/lib/kubelet/pods/6b1d/volumes/kubernetes.io~csi/pvc-1/mount",
        "/var/lib/kubelet/pods/6b1d/volumes/kubernetes.io~nfs/data",
        "/var/lib/kubelet/plugins/kubernetes.io/csi/driver/0a1b/globalmount",
        "/srv/merged",
    ],
)
def test_filesystems_that_can_fill_are_kept(path: str) -> None:
    assert not re.search(filesystem.MOUNT_POINTS_EXCLUDE, path)


def test_an_autofs_is_never_touched(make_node: MakeNode) -> None:
    """A look would mount what it stands for, also on the way to a root."""
    node = make_node(
        "30 27 0:40 / /home rw - autofs systemd-1 rw",
        directories=["/home/docker"],
        settings=Settings(fs_types_exclude="", roots={"docker": ("/home/docker",)}),
    )
    assert set(node.values("stuck")) == {"/"}
    assert not any(b"/home" in request for request in node.prober.requests)
    assert node.roles() == set()


def test_only_xfs_is_asked_for_stat(make_node: MakeNode) -> None:
    node = make_node("30 27 7:1 / /xfs rw - xfs /dev/loop1 rw", "31 27 7:2 / /ext rw - ext4 /dev/loop2 rw")
    node.families()
    asked = {request.rpartition(b"/")[2]: request[:1] for request in node.prober.requests}
    assert (asked[b"xfs"], asked[b"ext"]) == (b"s", b"v")


def test_expressions_choose_mounts_and_types(make_node: MakeNode) -> None:
    node = make_node(
        "30 27 7:1 / /a rw - xfs /dev/loop1 rw",
        "31 27 7:2 / /ab rw - xfs /dev/loop2 rw",
        "32 27 7:3 / /abc rw - vfat /dev/loop3 rw",
        settings=Settings(mount_points_include="^/a", mount_points_exclude="b$", fs_types_exclude="^vfat$"),
    )
    assert set(node.values("stuck")) == {"/a"}


def test_empty_expressions_leave_nothing_out(make_node: MakeNode) -> None:
    settings = Settings(mount_points_exclude="", fs_types_exclude="")
    node = make_node("30 27 0:40 / /proc rw - proc proc rw", settings=settings)
    assert set(node.values("stuck")) == {"/", "/proc"}


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        # the whole of a filesystem rather than a directory of it
        (["30 27 7:1 /d /a rw - xfs /dev/loop1 rw", "31 27 7:1 / /much/longer rw - xfs /dev/loop1 rw"], "/much/longer"),
        # else the shortest path
        (["30 27 0:40 /s1 /bb rw - btrfs /dev/b rw", "31 27 0:40 /s2 /a rw - btrfs /dev/b rw"], "/a"),
        # what is left out does not speak for the device
        (["30 27 7:1 / /proc/x rw - xfs /dev/loop1 rw", "31 27 7:1 /d /data rw - xfs /dev/loop1 rw"], "/data"),
    ],
)
def test_a_device_is_shown_once(make_node: MakeNode, lines: list[str], shown: str) -> None:
    assert set(make_node(*lines).values("stuck")) == {"/", shown}


def test_the_root_is_shown_as_the_root_also_where_its_device_is_mounted_as_a_whole_elsewhere(
    make_node: MakeNode,
) -> None:
    node = make_node(
        "40 27 0:40 /@ / rw - btrfs /dev/vda2 rw,subvol=/@", "41 40 0:40 / /mnt/top rw - btrfs /dev/vda2 rw,subvol=/"
    )
    assert set(node.values("stuck")) == {"/"}


# -- what is read-only --


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("30 27 7:1 / /x rw - ext4 /dev/loop1 rw", 0),
        ("30 27 7:1 / /x ro - ext4 /dev/loop1 rw", 1),
        ("30 27 7:1 / /x rw - ext4 /dev/loop1 ro", 1),
        ("30 27 7:1 / /x rw - ext4 /dev/loop1 rw,errors=remount-ro,emergency_ro", 1),
        ("30 27 7:1 / /x rw - ext4 /dev/loop1 rw,shutdown", 1),
        ("30 27 7:1 / /x rw - ext4 /dev/loop1 rw,errors=remount-ro", 0),
        # words within an option's value are somebody's name
        ("30 27 7:1 / /x rw - btrfs /dev/loop1 rw,subvol=/a,ro", 0),
    ],
)
@pytest.mark.parametrize("answer", [SPACE, "stuck"])
def test_the_mount_table_tells_what_cannot_be_written(
    make_node: MakeNode, line: str, expected: int, answer: object
) -> None:
    assert make_node(line, answers={"/x": answer}).values("readonly")["/x"] == expected


def test_statvfs_tells_of_a_filesystem_that_has_become_read_only(make_node: MakeNode) -> None:
    node = make_node("30 27 7:1 / /x rw - btrfs /dev/loop1 rw", answers={"/x": [*SPACE[:8], 1, 255]})
    assert node.values("readonly")["/x"] == 1


def test_a_disk_that_can_be_written_at_another_place_is_not_read_only(make_node: MakeNode) -> None:
    node = make_node("30 27 7:1 / /sysroot ro - xfs /dev/vda4 rw", "31 27 7:1 /var /var rw - xfs /dev/vda4 rw")
    assert node.values("readonly")["/sysroot"] == 0


# -- roles --


def test_a_root_is_found_through_symbolic_links_of_the_host(make_node: MakeNode) -> None:
    node = make_node(
        "30 27 7:1 / /mnt/disk rw - xfs /dev/loop1 rw",
        directories=["/mnt/disk/docker"],
        links={"/var/lib/docker": "/mnt/disk/docker"},
    )
    assert node.roles() == {("/mnt/disk", "docker")}


def test_a_root_that_does_not_exist_has_no_role(make_node: MakeNode) -> None:
    assert make_node(directories=["/var/lib"]).roles() == set()


def test_roots_come_from_settings_runtimes_and_dockers_configuration(make_node: MakeNode, tmp_path: Path) -> None:
    (tmp_path / "tree/etc/docker").mkdir(parents=True)
    (tmp_path / "tree/etc/docker/daemon.json").write_text('{"data-root": "/configured"}')
    node = make_node(
        "30 27 7:1 / /configured rw - xfs /dev/loop1 rw",
        "31 27 7:2 / /set rw - xfs /dev/loop2 rw",
        "32 27 7:3 / /named rw - xfs /dev/loop3 rw",
        directories=["/configured", "/set", "/named"],
        settings=Settings(roots={"kubelet": ("/set/kubelet", "/set")}),
        runtimes=Runtimes(containerd_roots=("/named",)),
    )
    assert node.roles() == {("/configured", "docker"), ("/set", "kubelet"), ("/named", "containerd")}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"data-root": "/a\\u0000b"}', '{"data-root": "/a\\ud800b"}'])
def test_a_configuration_of_docker_that_makes_no_sense_costs_nothing_else(
    text: str, make_node: MakeNode, tmp_path: Path
) -> None:
    (tmp_path / "tree/etc/docker").mkdir(parents=True)
    (tmp_path / "tree/etc/docker/daemon.json").write_text(text)
    node = make_node(directories=["/var/lib/docker"])
    assert node.roles() == {("/", "docker")}
    assert node.host.errors == {"malformed": 1}


def test_a_bind_of_a_root_onto_itself_is_the_same_disk(make_node: MakeNode) -> None:
    node = make_node(
        "30 27 7:1 / /var/lib rw - xfs /dev/loop1 rw",
        "31 30 7:1 /docker /var/lib/docker rw - xfs /dev/loop1 rw",
        directories=["/var/lib/docker"],
    )
    assert node.roles() == {("/var/lib", "docker")}


def test_a_root_on_a_mount_that_hangs_is_not_looked_at_and_keeps_its_role(make_node: MakeNode) -> None:
    node = make_node(
        "30 27 7:1 / /mnt/disk rw - xfs /dev/loop1 rw",
        directories=["/mnt/disk/docker", "/var/lib/kubelet"],
        links={"/var/lib/docker": "/mnt/disk/docker"},
    )
    both = {("/mnt/disk", "docker"), ("/", "kubelet")}
    assert node.roles() == both
    node.prober.answers["/mnt/disk"] = "stuck"
    # a look would find nothing now, and the role would be gone
    (Path(node.host.real("/mnt/disk")) / "docker").rmdir()
    assert node.roles() == both
    node.prober.answers["/mnt/disk"] = SPACE
    assert node.roles() == {("/", "kubelet")}


def test_a_mount_that_hangs_costs_no_other_mount_its_role(make_node: MakeNode) -> None:
    node = make_node(
        "30 27 7:1 / /mnt/disk rw - xfs /dev/loop1 rw",
        directories=["/var/lib/docker", "/mnt/disk/kubelet"],
        links={"/var/lib/kubelet": "/mnt/disk/kubelet"},
        answers={"/mnt/disk": "stuck"},
    )
    assert node.roles() == {("/", "docker")}
    assert node.host.errors["stuck"] == 2, "the mount and the root behind it"


# -- rounds --


def test_label_sets_stay_the_same_objects_while_nothing_changes(make_node: MakeNode) -> None:
    node = make_node("30 27 7:1 / /x rw - xfs /dev/loop1 rw")
    first, second = node.families(), node.families()
    assert all(first[name].labelsets is second[name].labelsets for name in first)
    node.prober.answers["/x"] = "stuck"
    third, fourth = node.families(), node.families()
    assert len(third["size_bytes"].labelsets) == len(first["size_bytes"].labelsets) - 1
    assert all(third[name].labelsets is fourth[name].labelsets for name in third)


# -- settings --


def configured(text: str, tmp_path: Path) -> Any:
    path = tmp_path / "ullage.yml"
    path.write_text(f"collectors:\n  filesystem:\n    {text}\n")
    (plan,) = load(str(path), [COLLECTOR], {}).plans
    return plan.settings


def test_settings_are_read_from_the_configuration(tmp_path: Path) -> None:
    assert configured("roots: {docker: [/srv/docker]}", tmp_path).roots == {"docker": ("/srv/docker",)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mount_points_exclude: '('", "a regular expression for mount_points_exclude"),
        ("mount_points_include: '*'", "a regular expression for mount_points_include"),
        ("fs_types_exclude: '['", "a regular expression for fs_types_exclude"),
        ("roots: {dokcer: [/srv]}", "'dokcer' is none"),
        ("mount_point_exclude: x", "did you mean 'mount_points_exclude'"),
    ],
)
def test_a_wrong_setting_is_refused_in_words(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        configured(text, tmp_path)
