"""Containers of a real dockerd in the page cache collector's series."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from agent.collector import Start
from agent.containers import Runtimes
from agent.host import Host
from agent.metric import Family
from collectors.pagecache import PageCache, Settings
from tests.real.cgroups import MIB
from tests.real.conftest import run
from tests.real.dockerd import Dockerd

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.slow]
INTERVAL = 15.0


class Node:
    """The collector, whose clock goes on by an interval each round."""

    def __init__(self, docker: Dockerd, *, has_files: bool = True) -> None:
        runtimes = Runtimes(
            docker_roots=(str(docker.root),) if has_files else (),
            docker_sockets=(str(docker.socket),),
            containerd_states=(),
            containers_storage_roots=(),
        )
        self._now = 1000.0
        self._host = Host()
        self._docker = docker
        self._ids: set[str] = set()
        self.running = PageCache(Start(self._host, Settings(), None, runtimes), lambda: self._now)

    def caches(self) -> dict[str, float]:
        """Do one run; return the page cache by the name of each container that this dockerd has or had."""
        self._now += INTERVAL
        self._ids.update(self._docker.docker("ps", "--all", "--quiet").split())
        for item in self.running.collect(self._host):
            if isinstance(item, Family) and item.metric.name == "ullage_container_page_cache_bytes":
                found = zip(item.labelsets, item.values, strict=True)
                return {labels[2]: value for labels, value in found if labels[3] in self._ids}
        return {}


def write_and_wait(size: int) -> str:
    """Return a script that leaves so many MiB of a file in the page cache."""
    return f"dd if=/dev/urandom of=/tmp/file bs=1M count={size} && sync && echo ready > /tmp/ready && sleep 1000"


def start(docker: Dockerd, name: str, size: int) -> str:
    container = docker.run(name, write_and_wait(size))
    for _ in range(300):
        if docker.docker("exec", name, "/bin/sh", "-c", "cat /tmp/ready || true"):
            return container
        time.sleep(0.1)
    raise AssertionError(f"{name} is not ready")


def test_names_sizes_renames_and_ends_are_followed_from_round_to_round(docker: Dockerd) -> None:
    before = len(os.listdir("/proc/self/fd"))
    node = Node(docker)
    assert node.caches() == {}
    start(docker, "small", 24)
    start(docker, "large", 48)
    caches = node.caches()
    assert set(caches) == {"small", "large"}
    assert caches["small"] == pytest.approx(24 * MIB, rel=0.1, abs=2 * MIB)
    assert caches["large"] == pytest.approx(48 * MIB, rel=0.1, abs=2 * MIB)
    docker.docker("rename", "small", "tiny")
    assert set(node.caches()) == {"tiny", "large"}
    docker.docker("rm", "--force", "large")
    assert set(node.caches()) == {"tiny"}
    docker.docker("rm", "--force", "tiny")
    assert node.caches() == {}
    node.running.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_api_names_what_no_file_does(docker: Dockerd) -> None:
    start(docker, "hidden", 4)
    node = Node(docker, has_files=False)
    for _ in range(100):
        if "hidden" in node.caches():
            break
        time.sleep(0.1)
    assert set(node.caches()) == {"hidden"}
    docker.docker("rename", "hidden", "seen")
    for _ in range(100):
        if "seen" in node.caches():
            break
        time.sleep(0.1)
    assert set(node.caches()) == {"seen"}
    node.running.close()


def test_nothing_of_dockerd_is_left(directory: Path) -> None:
    assert str(directory) not in run("cat", "/proc/self/mountinfo")
