"""The volumes collector with a real dockerd: gaps of both, and mounts that are taken away."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from agent.collector import NoSettings, Start
from agent.config import load
from agent.containers import Runtimes
from agent.dockerapi import Api, DockerApi
from agent.exposition import Pages
from agent.host import Host
from agent.latches import Latches
from agent.runner import Runner
from collectors.volumes import COLLECTOR, MISSING_FOR, Volumes
from tests.real.conftest import run
from tests.real.dockerd import Dockerd, dockerd

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.slow]
WAIT = 120.0  # seconds until a test gives up


@pytest.fixture
def docker(need: Callable[..., None]) -> Iterator[Dockerd]:
    need("dockerd", "docker", "busybox")
    # a short path: a socket's may have 107 characters
    with tempfile.TemporaryDirectory(prefix="ullage-docker-") as made:
        with dockerd(Path(made)) as running:
            yield running
        assert made not in run("cat", "/proc/self/mountinfo")


class Agent:
    """The collector in a runner, as the agent has it; its clock goes on with each run."""

    def __init__(self, docker: Dockerd, state: Path, silence: float = 1.0, *, has_roots: bool = True) -> None:
        roots = (str(docker.root),) if has_roots else ()
        self._now = 0.0
        (plan,) = load(None, [COLLECTOR], {}).plans
        self._pages = Pages()
        self.runner = Runner(plan, Host(), Latches(None), self._pages)
        runtimes = Runtimes(docker_sockets=(str(docker.socket),), docker_roots=roots)
        connect: Callable[[str], Api] = partial(DockerApi, answer=1.0, silence=silence)
        start = Start(self.runner.host, NoSettings(), state, runtimes)
        self.running = Volumes(start, connect, clock=lambda: self._now)

    def run(self) -> dict[str, float]:
        """Do one run; return its samples."""
        self._now += MISSING_FOR
        self.runner.run(self.running)
        assert self.runner.outcome.is_up, self.runner.outcome.reason
        lines = b"".join(self._pages.members("text", gzip=False)).decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name.removeprefix("ullage_"): float(value) for name, _, value in samples}

    def until(self, **expected: float) -> dict[str, float]:
        """Run until samples are as expected, by the names that `shown` gives them; return those of the last run."""
        end = time.monotonic() + WAIT
        while True:
            samples = shown(self.run())
            if {name: samples.get(name) for name in expected} == expected:
                return samples
            assert time.monotonic() < end, (expected, samples, self.runner.errors)
            time.sleep(0.1)

    def findings(self) -> set[tuple[str, str]]:
        return {(found.finding.id, found.target) for found in self.runner.outcome.findings}

    def until_found(self, *expected: tuple[str, str]) -> None:
        end = time.monotonic() + WAIT
        while self.findings() != set(expected):
            assert time.monotonic() < end, self.runner.outcome.findings
            time.sleep(0.1)
            self.run()

    def close(self) -> None:
        self.running.close()


def shown(samples: dict[str, float]) -> dict[str, float]:
    """Return the samples by short names; volumes of all filesystems together."""
    actions = {action: samples[f'volume_events_total{{action="{action}"}}'] for action in ("create", "destroy")}
    return actions | {
        "volumes": sum(value for name, value in samples.items() if name.startswith("volumes{")),
        "missed": samples["volume_events_missed_total"],
        "connected": samples["volume_events_connected"],
    }


@pytest.fixture
def agent(docker: Dockerd, tmp_path: Path) -> Iterator[Agent]:
    made = Agent(docker, tmp_path / "state")
    yield made
    made.close()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "docker-volumes"]


def test_volumes_come_and_go_while_the_agent_runs(docker: Dockerd, agent: Agent) -> None:
    docker.docker("volume", "create", "before")
    agent.until(connected=1, volumes=1, create=0, missed=0)
    for name in ("v-a", "v-b", "v-c"):
        docker.docker("volume", "create", name)
    docker.docker("volume", "rm", "v-b")
    agent.until(volumes=3, create=3, destroy=1, missed=0)
    time.sleep(3)  # several silences, after each of which the last events are told again
    agent.until(connected=1, volumes=3, create=3, destroy=1, missed=0)


def test_an_event_is_seen_without_a_silence(docker: Dockerd, tmp_path: Path) -> None:
    agent = Agent(docker, tmp_path / "state", silence=10 * WAIT)
    agent.until(connected=1, volumes=0)
    docker.docker("volume", "create", "v-a")
    agent.until(volumes=1, create=1)
    agent.close()
    assert threads() == []  # nor is the end one that waits for a silence


def test_volumes_come_and_go_while_the_agent_is_stopped(docker: Dockerd, agent: Agent, tmp_path: Path) -> None:
    docker.docker("volume", "create", "v-a")
    docker.docker("volume", "create", "v-b")
    agent.until(connected=1, volumes=2)
    agent.close()
    docker.docker("volume", "rm", "v-a")
    docker.docker("volume", "create", "v-c")
    docker.docker("volume", "create", "v-d")
    second = Agent(docker, tmp_path / "state")
    second.until(connected=1, volumes=3, create=2, destroy=1, missed=0)
    second.close()
    third = Agent(docker, tmp_path / "state")
    third.until(connected=1, volumes=3, create=0, destroy=0, missed=0)
    third.close()


def test_volumes_come_and_go_while_the_agent_is_stopped_and_the_daemon_restarts(
    docker: Dockerd, agent: Agent, tmp_path: Path
) -> None:
    docker.docker("volume", "create", "v-a")
    docker.docker("volume", "create", "v-b")
    agent.until(connected=1, volumes=2)
    agent.close()
    docker.docker("volume", "rm", "v-a")
    docker.docker("volume", "create", "v-c")
    docker.quit()
    docker.start()
    docker.docker("volume", "create", "v-d")
    second = Agent(docker, tmp_path / "state")
    second.until(connected=1, volumes=3, create=1, destroy=0, missed=2)
    second.close()


def test_volumes_come_and_go_while_the_daemon_restarts(docker: Dockerd, agent: Agent) -> None:
    docker.docker("volume", "create", "v-a")
    docker.docker("volume", "create", "v-b")
    agent.until(connected=1, volumes=2)
    docker.quit()
    agent.until(connected=0, volumes=2, missed=0)  # the directories are still there
    # what happens between the daemon's start and ours is forgotten by a second restart of it
    (docker.root / "volumes" / "made" / "_data").mkdir(parents=True)
    os.rename(docker.root / "volumes" / "v-a", docker.root / "volumes" / "v-b" / "away")
    docker.start()
    agent.until(connected=1, volumes=2, missed=2)
    docker.docker("volume", "create", "v-c")
    agent.until(connected=1, volumes=3, create=1, destroy=0, missed=2)


def test_a_daemon_that_hangs_stops_no_run_and_costs_one_thread(docker: Dockerd, agent: Agent) -> None:
    docker.docker("volume", "create", "v-a")
    agent.until(connected=1, volumes=1)
    docker.hang()
    samples = agent.until(connected=0)
    assert samples["volumes"] == 1
    assert threads() == ["docker-volumes"]
    assert agent.runner.errors["stuck"]
    docker.wake()
    docker.docker("volume", "create", "v-b")
    agent.until(connected=1, volumes=2, create=1, missed=0)
    assert threads() == ["docker-volumes"]


def test_an_agent_that_starts_on_a_daemon_that_hangs_tells_the_directories(docker: Dockerd, agent: Agent) -> None:
    docker.docker("volume", "create", "v-a")
    docker.hang()
    samples = shown(agent.run())
    assert (samples["connected"], samples["volumes"]) == (0, 1)
    docker.wake()
    agent.until(connected=1, volumes=1, missed=0)


def test_an_absent_daemon_leaves_the_directories(docker: Dockerd, agent: Agent) -> None:
    docker.docker("volume", "create", "v-a")
    docker.quit()
    docker.socket.unlink(missing_ok=True)
    samples = shown(agent.run())
    assert (samples["connected"], samples["volumes"]) == (0, 1)
    assert threads() == []
    docker.start()
    agent.until(connected=1, volumes=1, missed=0)


def test_no_descriptor_is_left_by_many_connections(docker: Dockerd, tmp_path: Path) -> None:
    agent = Agent(docker, tmp_path / "state", silence=0.1)
    agent.until(connected=1)
    before = len(os.listdir("/proc/self/fd"))
    docker.docker("volume", "create", "v-a")
    agent.until(create=1)
    time.sleep(4)
    # one stream may be open now that was not before, or the other way round
    assert abs(len(os.listdir("/proc/self/fd")) - before) <= 2
    agent.close()


def use(docker: Dockerd, name: str, *volumes: str) -> str:
    arguments = [argument for volume in volumes for argument in ("--volume", f"{volume}:/{volume}")]
    command = ("run", "--detach", "--network=none", "--name", name, *arguments, "busybox", "/bin/sh", "-c")
    return docker.docker(*command, "exec sleep 1000")


@pytest.mark.parametrize("has_roots", [True, False])
def test_a_mount_taken_away_under_a_container_is_found_until_all_is_started_anew(
    docker: Dockerd, tmp_path: Path, *, has_roots: bool
) -> None:
    agent = Agent(docker, tmp_path / "state", has_roots=has_roots)
    docker.import_image("busybox")
    shared = tmp_path / "shared"
    shared.mkdir()
    link = tmp_path / "link"
    link.symlink_to(shared)
    tmpfs = ("--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=1m")
    docker.docker("volume", "create", *tmpfs, "scratch")
    docker.docker("volume", "create", "--opt", "type=none", "--opt", f"device={link}", "--opt", "o=bind", "shared")
    docker.docker("volume", "create", "plain")
    agent.until(connected=1, volumes=3)
    assert agent.findings() == set()
    use(docker, "one", "scratch", "shared", "plain")
    for _ in range(3):
        agent.run()
        assert agent.findings() == set()
    scratch = docker.root / "volumes/scratch/_data"
    run("umount", str(scratch))
    agent.until_found(("volume-mount-missing", "scratch"))
    # Docker does not mount it again: the hazard that the finding tells of
    use(docker, "two", "scratch")
    docker.docker("exec", "two", "/bin/sh", "-c", "echo lost > /scratch/file")
    assert (scratch / "file").read_text() == "lost\n"
    agent.until_found(("volume-mount-missing", "scratch"))
    (found,) = agent.runner.outcome.findings
    stop = found.remedy.partition(": ")[2].partition(". Save ")[0]
    start = found.remedy.rpartition("then: ")[2]
    run("env", f"DOCKER_HOST=unix://{docker.socket}", "sh", "-c", f"{stop}; {start}")
    assert docker.docker("ps", "--format", "{{.Names}}", "--filter", "volume=scratch").split() == ["two", "one"]
    agent.until_found()
    assert run("stat", "--file-system", "--format=%T", str(scratch)) == "tmpfs"
    agent.close()


def test_another_mount_in_its_place_is_found(docker: Dockerd, agent: Agent, tmp_path: Path) -> None:
    docker.import_image("busybox")
    for name in ("right", "wrong"):
        (tmp_path / name).mkdir()
    docker.docker(
        "volume", "create", "--opt", "type=none", "--opt", f"device={tmp_path / 'right'}", "--opt", "o=bind", "v-a"
    )
    use(docker, "one", "v-a")
    agent.until(connected=1, volumes=1)
    assert agent.findings() == set()
    place = docker.root / "volumes/v-a/_data"
    run("umount", str(place))
    run("mount", "--bind", str(tmp_path / "wrong"), str(place))
    agent.until_found(("volume-mount-missing", "v-a"))
    (found,) = agent.runner.outcome.findings
    assert f"instead of {tmp_path / 'right'}" in found.explanation
    run("umount", str(place))
    run("mount", "--bind", str(tmp_path / "right"), str(place))
    agent.until_found()
