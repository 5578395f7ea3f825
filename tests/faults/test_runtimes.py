"""Runtimes that stop, die, hang and start again, each under the whole agent; the containers' storage stays in view."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.agent_process import Agent, by_collector, running, series
from tests.faults.conftest import Config, reload
from tests.real.conftest import Make
from tests.real.containerd import Containerd, containerd
from tests.real.dockerd import Dockerd
from tests.scraper import scraped

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.slow]


class Runtime(Protocol):
    def start(self) -> None: ...
    def quit(self) -> None: ...
    def kill(self) -> None: ...
    def hang(self) -> None: ...
    def wake(self) -> None: ...


@contextlib.contextmanager
def stopped(runtime: Runtime) -> Iterator[None]:
    runtime.quit()
    yield
    runtime.start()


@contextlib.contextmanager
def killed(runtime: Runtime) -> Iterator[None]:
    runtime.kill()
    yield
    runtime.start()


@contextlib.contextmanager
def hung(runtime: Runtime) -> Iterator[None]:
    runtime.hang()
    yield
    runtime.wake()


FAULTS = (stopped, killed, hung)
Fault = Callable[[Runtime], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def agent_on(docker: Dockerd, directory: Path, config: str) -> Iterator[Agent]:
    places = (f"--runtime.docker.socket={docker.socket}", f"--runtime.docker.root={docker.root}")
    with running(directory, config, *places, "--web.enable-lifecycle") as agent:
        yield agent
        agent.stop()


def volumes(page: str) -> float:
    return sum(series(page, "ullage_volumes"))


def is_connected(page: str) -> bool:
    return series(page, "ullage_volume_events_connected") == [1]


def shows(page: str, container: str) -> bool:
    return len(series(page, "ullage_container_writable_files", container=container)) == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_without_dockerd_its_storage_stays_in_view_and_it_is_taken_up_again(
    docker: Dockerd, tmp_path: Path, config: Config, fault: Fault
) -> None:
    docker.run("one", "sleep 1000")
    docker.docker("volume", "create", "v-a")
    with agent_on(docker, tmp_path, config()) as agent:
        agent.until(lambda page: is_connected(page) and volumes(page) == 1 and shows(page, "one"), "Docker in view")
        up = [name for name, is_up in by_collector(agent.scrape(), "up").items() if is_up]
        assert {"filesystem", "layers", "overlay", "pagecache", "volumes"} <= set(up)
        with scraped(agent):
            with fault(docker):
                # a new collector of volumes has to ask, where the old one would wait for a silence of a minute
                config(volumes="series_budget: 9999")
                reload(agent)
                agent.until(lambda page: not is_connected(page), "no connection")
                page = agent.until_fresh(up)
                assert volumes(page) == 1
                assert shows(page, "one")
                if fault is hung:
                    stuck = "ullage_collector_errors_total"
                    agent.until(lambda page: series(page, stuck, collector="volumes", reason="stuck"), "a stuck socket")
            docker.docker("volume", "create", "v-b")
            agent.until(lambda page: is_connected(page) and volumes(page) == 2, "Docker in view again")
            agent.until_fresh(up)


def test_restarts_of_dockerd_lose_no_volume_and_leave_no_thread(
    docker: Dockerd, tmp_path: Path, config: Config
) -> None:
    with agent_on(docker, tmp_path, config()) as agent:
        agent.until(is_connected, "Docker in view")
        agent.until_fresh()
        before = agent.footprint()
        with scraped(agent):
            for number in range(3):
                docker.quit()
                docker.start()
                docker.docker("volume", "create", f"v-{number}")
                agent.until(lambda page, wanted=number + 1: volumes(page) == wanted, "each volume")  # type: ignore[misc]
            agent.until(is_connected, "Docker in view")
        agent.until_fresh()
        after = agent.footprint()
        assert after.threads <= before.threads + 2, (before, after)  # a connection's of ours, a helper's that starts
        assert after.descriptors <= before.descriptors + 8, (before, after)


@pytest.fixture
def made(directory: Path, filesystem: Make, need: Callable[..., None]) -> Iterator[Containerd]:
    need("containerd", "ctr", "runc", "busybox")
    with containerd(directory, filesystem("ext4", size=256)) as running_one:
        running_one.import_image("busybox")
        running_one.run("one", "overlayfs", "busybox", "sleep 1000")
        yield running_one


@pytest.mark.parametrize("fault", FAULTS)
def test_without_containerd_its_storage_stays_in_view_and_goes_on(
    made: Containerd, tmp_path: Path, config: Config, fault: Fault
) -> None:
    places = (f"--runtime.containerd.root={made.root}", f"--runtime.containerd.state={made.state}")
    with running(tmp_path, config(), *places) as agent:
        agent.until(lambda page: shows(page, "one"), "containerd in view")
        with scraped(agent):
            with fault(made):
                assert shows(agent.until_fresh(), "one")
            made.run("two", "overlayfs", "busybox", "sleep 1000")
            agent.until(lambda page: shows(page, "one") and shows(page, "two"), "the new container")
        agent.stop()
