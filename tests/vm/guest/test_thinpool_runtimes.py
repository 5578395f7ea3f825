"""The thinpool collector below real runtimes: Docker 20.10's devicemapper, both ways, and containerd's devmapper."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.containers import Runtimes
from tests.real.containerd import containerd
from tests.real.dockerd import dockerd
from tests.vm.guest.pools import Node, empty_pool, helper, run, until_settled

MIB = 1 << 20
SCRIPT = "dd if=/dev/zero of=/big bs=1M count=6; sync; exec sleep 600"
OPTIONS = ("dm.override_udev_sync_check=true", "dm.basesize=300M", "dm.fs=ext4")


def named(node: Node, container: str) -> tuple[str, float]:
    """Return the pool and the mapped bytes of a named container's thin device."""
    (place,) = [at for at, labels in enumerate(node.labels("device_mapped_bytes")) if labels["container"] == container]
    name = node.labels("device_mapped_bytes")[place]["pool"]
    same = [labels for labels in node.labels("device_mapped_bytes") if labels["pool"] == name]
    at = [labels["container"] for labels in same].index(container)
    return name, node.values("device_mapped_bytes", name)[at]


@pytest.mark.vm(deadline=600)
def test_dockers_loop_files_are_found_until_the_remedy_is_done(short: Path, disk: Path) -> None:
    run("modprobe", "-a", "loop", "dm-thin-pool")
    options = (*OPTIONS, "dm.loopdatasize=2G", "dm.loopmetadatasize=64M")
    with (
        dockerd(short, "devicemapper", disk / "docker", options) as docker,
        helper() as ioctls,
    ):
        docker.import_image("busybox")
        docker.run("web", SCRIPT)
        node = Node(ioctls, Runtimes(docker_roots=(str(docker.root),)))
        node.run()
        name, used = named(node, "web")
        assert used >= 6 * MIB
        docker.docker("exec", "web", "/bin/sync")
        until_settled(name)
        node.check(name)
        (info,) = node.labels("pool_info")
        files = docker.root / "devicemapper" / "devicemapper"
        assert info["backing"] == "loop"
        assert (info["data_file"], info["metadata_file"]) == (str(files / "data"), str(files / "metadata"))
        assert node.findings(name) == {"thin-pool-loop-backed"}
        (found,) = node.runner.outcome.findings
        assert str(files / "data") in found.explanation
        assert node.value("pool_data_size_bytes", name) == 2 << 30
        assert node.value("pool_metadata_size_bytes", name) == 64 * MIB
        commit, save, set_driver, _, load = found.remedy.partition("For Docker: ")[2].partition("   #")[0].split("; ")
        with_docker = f"cd {short}; export DOCKER_HOST=unix://{docker.socket}"
        run("sh", "-ec", f"{with_docker}; {commit.partition(' for ')[0].replace('CONTAINER IMAGE', 'web kept:latest')}")
        run("sh", "-ec", f"{with_docker}; {save}")
        assert '"overlay2"' in set_driver
        docker.stop()
        with dockerd(short, "overlay2", disk / "docker") as other:
            run("sh", "-ec", f"{with_docker}; {load}")
            node.run()
            assert node.findings(name) == set()
            size = other.docker("run", "--rm", "--network=none", "kept", "/bin/busybox", "stat", "-c", "%s", "/big")
            assert size == str(6 * MIB)


@pytest.mark.vm(deadline=400)
def test_dockers_own_pool_is_no_loop_and_its_container_is_known(short: Path, disk: Path) -> None:
    with (
        empty_pool("docker-thinpool") as name,
        dockerd(short, "devicemapper", disk / "docker", (*OPTIONS, f"dm.thinpooldev=/dev/mapper/{name}")) as docker,
        helper() as ioctls,
    ):
        docker.import_image("busybox")
        docker.run("web", SCRIPT)
        node = Node(ioctls, Runtimes(docker_roots=(str(docker.root),)))
        node.run()
        assert named(node, "web")[0] == name
        assert named(node, "web")[1] >= 6 * MIB
        assert node.findings(name) == set()
        node.check(name)


@pytest.mark.vm(deadline=400)
def test_containerds_devmapper_is_known_by_its_pod(short: Path, disk: Path) -> None:
    snapshotter = "io.containerd.snapshotter.v1.devmapper"
    with empty_pool("devpool") as name:
        config = f"""
[plugins."{snapshotter}"]
  root_path = "{disk}/devmapper"
  pool_name = "{name}"
  base_image_size = "300MB"
  fs_type = "ext4"
"""
        with containerd(short, disk / "containerd", config) as running, helper() as ioctls:
            running.import_image("busybox")
            running.run("web", "devmapper", "busybox", SCRIPT)
            node = Node(ioctls, Runtimes(containerd_states=(str(running.state),)))
            node.run()
            assert named(node, "web")[0] == name
            assert named(node, "web")[1] >= 6 * MIB
            (device,) = [each["name"] for each in node.labels("device_mapped_bytes") if each["container"] == "web"]
            assert device.startswith("devpool-snap-")
            node.check(name)
