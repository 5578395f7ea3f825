"""What `ullage doctor --advise` thinks of each driver, on nodes of all kinds; real ones are in tests/real."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agent.advice import Advice, Node, Place, as_json, best, conclusion, exit_code, judge, show, survey, table
from agent.containers import Runtimes
from agent.dockerapi import DockerApi
from agent.errors import Vanished
from agent.host import Host
from collectors.drivers import Store

DOCKER = Place("docker", "/var/lib/docker", "ext4", "/dev/sda1", "/", d_type=True, has_quota=False)
CONTAINERD = replace(DOCKER, runtime="containerd", path="/var/lib/containerd")
NODE = Node(
    kernel="6.1.0-18-amd64",
    docker="28.1.1",
    containerd="1.7.27",
    installed=("docker", "containerd"),
    zfs="",
    has_zfs_tools=False,
    has={"overlay": "yes", "btrfs": "as a module", "zfs": "no", "thin pools": "as a module"},
    places={"docker": DOCKER, "containerd": CONTAINERD},
    stores=(),
)


def on(filesystem: str, **place: Any) -> dict[str, Place]:
    """Return the places of a node whose Docker lies on another filesystem."""
    return {"docker": replace(DOCKER, filesystem=filesystem, **place), "containerd": CONTAINERD}


def using(driver: str) -> tuple[Store, ...]:
    return (Store("docker", driver, "/var/lib/docker", f"/var/lib/docker/{driver}", is_told=True),)


def of(node: Node, driver: str, runtime: str = "docker") -> Advice:
    (found,) = [each for each in judge(node) if (each.driver, each.runtime) == (driver, runtime)]
    return found


@pytest.mark.parametrize(
    ("changes", "driver", "verdict", "reason"),
    [
        ({}, "overlay2", "usable", "on ext4, d_type is kept"),
        ({"places": on("ext4", d_type=None)}, "overlay2", "usable", "d_type could not be told"),
        ({"places": on("ext4", d_type=False)}, "overlay2", "not here", "keeps no types"),
        ({"places": on("overlay")}, "overlay2", "not here", "cannot carry"),
        ({"places": on("nfs4")}, "overlayfs", "not here", "cannot carry"),
        ({"places": on("fuse.sshfs")}, "overlay2", "not here", "cannot carry"),
        ({"places": {}}, "overlay2", "not here", "cannot be told"),
        ({"kernel": "3.16.0"}, "overlay2", "not here", "needs Linux 4.0"),
        ({"kernel": "3.10.0-1160.el7.x86_64"}, "overlay2", "usable", "on ext4"),
        ({"kernel": ""}, "overlay2", "usable", "on ext4"),
        ({"has": {**NODE.has, "overlay": "no"}}, "overlay2", "not here", "no overlay"),
        ({"has": {**NODE.has, "overlay": "as a module"}}, "overlay2", "usable", "as a module"),
        ({"places": on("zfs"), "zfs": "2.1.11-1"}, "overlay2", "not here", "works on it since 2.2"),
        ({"places": on("zfs"), "zfs": "2.3.2-1"}, "overlay2", "avoid", "older versions of Docker refuse"),
        ({"stores": using("overlay2")}, "overlay2", "in use", "on ext4"),
        ({"installed": ()}, "overlay2", "usable", "Docker is not found here"),
        ({}, "btrfs", "not here", "it needs btrfs there; btrfs in this kernel: as a module"),
        ({"places": on("btrfs")}, "btrfs", "usable", "lies on btrfs"),
        ({"places": on("btrfs"), "docker": "20.10.24+dfsg1"}, "btrfs", "usable", "switches quota off"),
        ({}, "zfs", "not here", "zfs in this kernel: no"),
        ({"places": on("zfs")}, "zfs", "not here", "program zfs is not installed"),
        ({"places": on("zfs"), "has_zfs_tools": True}, "zfs", "usable", "lies on zfs"),
        ({}, "devicemapper", "not here", "gone since Docker 25.0, and this is 28.1.1"),
        ({"docker": "24.0.7"}, "devicemapper", "avoid", "loop-lvm is slow"),
        ({"docker": ""}, "devicemapper", "avoid", "gone since Docker 25.0"),
        ({"docker": "", "has": {**NODE.has, "thin pools": "no"}}, "devicemapper", "not here", "no thin pools"),
        ({"docker": "20.10.24", "stores": using("devicemapper")}, "devicemapper", "in use", "gone since"),
        ({}, "vfs", "avoid", "whole copy"),
    ],
)
def test_a_driver_is_judged_by_what_the_node_is(
    changes: Mapping[str, Any], driver: str, verdict: str, reason: str
) -> None:
    found = of(replace(NODE, **changes), driver)
    assert (found.verdict, reason in "; ".join(found.reasons)) == (verdict, True), found.reasons


@pytest.mark.parametrize(
    ("driver", "places", "limit"),
    [
        ("overlay2", on("ext4"), "none: overlay2.size needs an XFS"),
        ("overlay2", on("ext4", has_quota=True), "none: overlay2.size needs an XFS"),
        ("overlay2", on("xfs"), "mount the XFS with prjquota"),
        ("overlay2", on("xfs", has_quota=True), "overlay2.size"),
        ("btrfs", on("btrfs"), "none: quota is off"),
        ("btrfs", on("btrfs", has_quota=True), "by qgroups"),
    ],
)
def test_the_limit_of_a_container_is_what_the_filesystem_s_quota_allows(
    driver: str, places: Mapping[str, Place], limit: str
) -> None:
    assert limit in of(replace(NODE, places=places), driver).limit


@pytest.mark.parametrize(
    ("changes", "expected", "code"),
    [
        ({}, ("overlay2", "docker"), 0),
        ({"stores": using("overlayfs")}, ("overlayfs", "docker"), 0),
        ({"stores": using("vfs")}, ("overlay2", "docker"), 1),
        ({"stores": using("devicemapper"), "docker": "20.10.24"}, ("overlay2", "docker"), 1),
        ({"places": on("btrfs"), "stores": using("btrfs")}, ("btrfs", "docker"), 0),
        ({"places": {}}, None, 0),
    ],
)
def test_the_best_is_what_is_in_use_unless_something_speaks_against_it(
    changes: Mapping[str, Any], expected: tuple[str, str] | None, code: int
) -> None:
    found = judge(replace(NODE, **changes))
    chosen = best(found)
    assert (chosen and (chosen.driver, chosen.runtime)) == expected
    assert exit_code(found) == code
    assert "best here" in " ".join(conclusion(found))


def test_a_person_and_a_machine_are_told_the_same() -> None:
    node = replace(NODE, stores=using("vfs"), places=on("xfs", path="/evil\x1b[2J\n"))
    found = judge(node)
    lines = list(show(node, found))
    assert all(line.isprintable() for line in lines)
    assert lines[0] == "Linux 6.1.0-18-amd64, Docker 28.1.1, containerd 1.7.27"
    assert next(show(replace(node, docker="", containerd=""), found)).endswith(
        "Docker (version unknown), containerd (version unknown)"
    )
    assert "vfs (Docker): in use" in lines
    told = json.loads(as_json(node, found))
    assert {each["driver"] for each in told["drivers"]} == {each.driver for each in found}
    assert told["best"] == ["docker", "overlay2"]
    console = Console(width=200, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(table(found))
    assert "\x1b" not in captured.get()
    assert [each.verdict in captured.get() for each in found] == [True] * len(found)


MOUNTINFO = b"""21 1 8:1 / / rw - ext4 /dev/sda1 rw
22 21 8:2 / /var/lib/docker rw - xfs /dev/sda2 rw,prjquota
"""


def write(root: Path, files: Mapping[str, bytes]) -> Host:
    own = MOUNTINFO.replace(b" / / ", f" / {root} ".encode()).replace(b" /var", f" {root}/var".encode())
    for path, content in {"proc/1/mountinfo": MOUNTINFO, "proc/self/mountinfo": own, **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return Host(f"{root}/proc", f"{root}/sys", str(root), f"{root}/dev")


def absent(path: str) -> DockerApi:
    raise Vanished(path)


def look(host: Host) -> Node:
    return survey(host, Runtimes(docker_sockets=("/run/docker.sock",)), absent)


def test_a_node_is_what_its_files_say(tmp_path: Path) -> None:
    release = "6.1.0-18-amd64"
    files = {
        "proc/sys/kernel/osrelease": release.encode() + b"\n",
        "proc/filesystems": b"nodev\tproc\n\text4\nnodev\toverlay\n",
        "proc/modules": b"",
        f"lib/modules/{release}/modules.dep": b"kernel/fs/btrfs/btrfs.ko.xz: x\nkernel/drivers/md/dm-thin-pool.ko:\n",
        f"lib/modules/{release}/modules.builtin": b"kernel/fs/ext4/ext4.ko\n",
        "sys/module/zfs/version": b"2.3.2-1\n",
        "usr/sbin/zfs": b"",
        "usr/bin/dockerd": b"",
        "var/lib/docker/image/overlay2/layerdb/sha256/x/size": b"1",
    }
    node = look(write(tmp_path, files))
    assert node.kernel == release
    assert node.has == {"overlay": "yes", "btrfs": "as a module", "zfs": "yes", "thin pools": "as a module"}
    assert (node.zfs, node.has_zfs_tools, node.docker, node.installed) == ("2.3.2-1", True, "", ("docker",))
    docker = node.places["docker"]
    assert (docker.filesystem, docker.device, docker.mountpoint, docker.has_quota) == (
        "xfs",
        "/dev/sda2",
        "/var/lib/docker",
        True,
    )
    assert docker.d_type is True
    assert (node.places["containerd"].filesystem, node.places["containerd"].has_quota) == ("ext4", False)
    assert [store.driver for store in node.stores] == ["overlay2"]


@pytest.mark.parametrize(("modules", "expected"), [({"proc/modules": b""}, "unknown"), ({}, "no")])
def test_a_module_that_no_list_tells_of_is_unknown_unless_the_kernel_takes_none(
    tmp_path: Path, modules: Mapping[str, bytes], expected: str
) -> None:
    host = write(tmp_path, {"proc/filesystems": b"\text4\n", **modules})
    assert set(look(host).has.values()) == {expected}


def test_a_btrfs_has_quota_where_it_has_qgroups(tmp_path: Path) -> None:
    host = write(tmp_path, {"sys/fs/btrfs/U/devices/sda2/size": b"", "sys/fs/btrfs/V/devices/sdb/size": b""})
    table = tmp_path / "proc/1/mountinfo"
    table.write_bytes(table.read_bytes().replace(b"xfs", b"btrfs").replace(b",prjquota", b""))
    os.makedirs(tmp_path / "sys/fs/btrfs/V/qgroups")
    assert look(host).places["docker"].has_quota is False
    os.makedirs(tmp_path / "sys/fs/btrfs/U/qgroups")
    assert look(host).places["docker"].has_quota is True


def test_nothing_that_is_absent_is_an_error(tmp_path: Path) -> None:
    host = Host(f"{tmp_path}/proc", f"{tmp_path}/sys", str(tmp_path), f"{tmp_path}/dev")
    node = look(host)
    assert node.places == {}
    assert best(judge(node)) is None
    assert list(show(node, judge(node)))
