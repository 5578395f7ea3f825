"""Docker's volumes on a real ZFS: snapshots that race with their removal."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.collector import NoSettings, Start
from agent.command import HostCommands
from agent.config import load
from agent.containers import Runtimes
from agent.dockerapi import DockerApi
from agent.exposition import Pages
from agent.host import Host
from agent.latches import Latches
from agent.runner import Runner
from collectors.volumes import COLLECTOR, Volumes
from tests.real.dockerd import Dockerd, dockerd
from tests.vm.guest.zpool import Pool, run, wait_until

pytestmark = pytest.mark.vm(zfs=True, deadline=500)


@pytest.fixture
def docker(pool: Pool) -> Iterator[Dockerd]:
    run("zfs", "create", f"{pool.name}/docker")
    # a short path: a socket's may have 107 characters
    with (
        tempfile.TemporaryDirectory(prefix="u-") as made,
        dockerd(Path(made), "vfs", Path(f"/{pool.name}/docker")) as running,
    ):
        yield running


class Agent:
    def __init__(self, docker: Dockerd) -> None:
        (plan,) = load(None, [COLLECTOR], {}).plans
        self._pages = Pages()
        self.commands = HostCommands()
        self.runner = Runner(plan, Host(commands=self.commands), Latches(None), self._pages)
        runtimes = Runtimes(docker_sockets=(str(docker.socket),), docker_roots=(str(docker.root),))
        self.running = Volumes(Start(self.runner.host, NoSettings(), None, runtimes))

    def page(self) -> str:
        self.runner.run(self.running)
        assert self.runner.outcome.is_up, self.runner.outcome.reason
        return b"".join(self._pages.members("text", gzip=False)).decode()

    def races(self) -> list[str]:
        """Do one run; return the targets of what it found."""
        self.page()
        assert {found.finding.id for found in self.runner.outcome.findings} <= {"volume-snapshot-race"}
        return [found.target for found in self.runner.outcome.findings]

    def until(self, line: str) -> None:
        wait_until(lambda: f"{line}\n" in self.page(), line)

    def close(self) -> None:
        self.running.close()
        self.commands.close()


@pytest.fixture
def agent(docker: Dockerd) -> Iterator[Agent]:
    made = Agent(docker)
    yield made
    made.close()


def test_a_snapshot_that_races_with_a_removal_is_told_once(docker: Dockerd, agent: Agent) -> None:
    client = DockerApi(str(docker.socket))
    remove: Callable[[str], object] = client._client.remove_volume
    docker.docker("volume", "create", "calm")
    docker.docker("volume", "create", "db")
    agent.until("ullage_volume_events_connected 1")
    agent.until('ullage_volumes{driver="local",filesystem="zfs"} 2')

    run("zfs", "snapshot", "tank/docker@early")
    time.sleep(2)
    remove("calm")  # long after the one, and long before the next
    time.sleep(2)
    run("zfs", "snapshot", "-r", "tank@nightly")  # one event for each dataset
    remove("db")

    agent.until('ullage_volume_events_total{action="destroy"} 2')
    for _ in range(3):
        assert agent.races() == ["db tank/docker@nightly"]
    (found,) = agent.runner.outcome.findings
    assert "before the volume db was destroyed" in found.explanation
    assert not agent.runner.errors
    client.close()

    # the remedy is one that ZFS takes, and protects
    snapshot, hold = found.remedy.partition("zfs snapshot ")[2].split(" && ")[:2]
    run("zfs", "snapshot", snapshot)
    run(*hold.partition(";")[0].split())
    assert snapshot in run("zfs", "holds", "-H", snapshot)
    run("zfs", "release", "ullage", snapshot)
