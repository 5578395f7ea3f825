"""A kernel that tells too much, whose files vanish while they are read, and that gives no more descriptors."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from collectors import ALL
from tests.agent_process import by_collector, children, running, series
from tests.faults.conftest import Config
from tests.real.cgroups import cgroup, memory_root
from tests.real.conftest import run
from tests.scraper import scraped

pytestmark = [pytest.mark.root, pytest.mark.slow]

# uevents until its standard input ends
FLOOD = """
import os, select, sys
file = os.open(sys.argv[1], os.O_WRONLY)
count = 0
while not select.select([0], [], [], 0)[0]:
    for _ in range(100):
        os.write(file, b"change")
    count += 100
print(count)
"""
# processes that come and go with what collectors look for in them, each in a cgroup that comes and goes too
STORM = """
import ctypes, os, select, sys, tempfile
libc = ctypes.CDLL(None)
number = 0
while not select.select([0], [], [], 0)[0]:
    number += 1
    group = f"{sys.argv[1]}/{number:064x}"
    os.mkdir(group)
    children = []
    for _ in range(8):
        if (pid := os.fork()) == 0:
            with open(f"{group}/cgroup.procs", "w") as procs:
                procs.write(str(os.getpid()))
            file = tempfile.TemporaryFile()
            file.write(b"deleted")
            for _ in range(8):
                libc.inotify_add_watch(libc.inotify_init1(0), sys.argv[1].encode(), 0x100)
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    os.rmdir(group)
print(8 * number)
"""


@contextlib.contextmanager
def working(script: str, argument: Path, counts: list[int]) -> Iterator[None]:
    """Have a script at work for the time of a block; what it did is counted."""
    command = [sys.executable, "-c", script, str(argument)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield
        finally:
            printed, _ = process.communicate()
        counts.append(int(printed))


@pytest.fixture
def loop(tmp_path: Path, need: Callable[..., None]) -> Iterator[str]:
    """A loop device of the test's own."""
    need("losetup")
    with open(tmp_path / "disk.img", "wb") as file:
        file.truncate(1 << 20)
    device = run("losetup", "--find", "--show", str(tmp_path / "disk.img"))
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


def test_a_flood_of_uevents_starves_nobody_and_ends_no_listener(tmp_path: Path, config: Config, loop: str) -> None:
    # whoever listens is woken, whether or not this node has devices for it
    assert "block" in {subsystem for each in ALL for subsystem in each.uevents}
    with running(tmp_path, config()) as agent:
        agent.wait_until_ready()
        counts: list[int] = []
        with scraped(agent), working(FLOOD, Path(f"/sys/class/block/{Path(loop).name}/uevent"), counts):
            agent.until_fresh()
        assert counts[0] > 1000
        agent.until_fresh()
        assert "Exception in thread" not in agent.log, "the thread that listens is there"
        agent.stop()


def test_processes_and_cgroups_that_vanish_while_they_are_read_cost_nobody(
    tmp_path: Path, config: Config, need: Callable[..., None]
) -> None:
    need()
    root = memory_root()
    assert root is not None, "no memory controller is mounted"
    with cgroup(root / f"ullage-storm-{os.getpid()}" / "docker") as ours, running(tmp_path, config()) as agent:
        agent.wait_until_ready()
        up = [name for name, is_up in by_collector(agent.scrape(), "up").items() if is_up]
        counts: list[int] = []
        with scraped(agent), working(STORM, ours.path, counts):
            page = agent.until_fresh(up)
            assert [name for name in up if by_collector(page, "up")[name] != 1] == []
        assert counts[0] > 100
        agent.until_fresh(up)
        agent.stop()


def test_without_a_descriptor_left_every_scrape_answers_and_collectors_come_back(
    tmp_path: Path, config: Config, need: Callable[..., None]
) -> None:
    need()
    root = memory_root()
    assert root is not None, "no memory controller is mounted"
    with (
        cgroup(root / f"ullage-emfile-{os.getpid()}" / "docker") as ours,
        contextlib.ExitStack() as made,
        running(tmp_path, config()) as agent,
    ):
        agent.wait_until_ready()
        up = [name for name, is_up in by_collector(agent.scrape(), "up").items() if is_up]
        assert "pagecache" in up
        for number in range(50):  # of which it wants to keep descriptors
            made.enter_context(cgroup(ours.path / f"{number:064x}"))
        process = agent.process.pid
        before = resource.prlimit(process, resource.RLIMIT_NOFILE)
        held = len(os.listdir(f"/proc/{process}/fd"))
        resource.prlimit(process, resource.RLIMIT_NOFILE, (held, before[1]))
        with scraped(agent):
            failed = "ullage_collector_errors_total"
            agent.until(lambda page: series(page, failed, collector="pagecache", reason="failed"), "a refusal")
            assert "Too many open files" in agent.log
            time.sleep(3)  # scrapes go on
            resource.prlimit(process, resource.RLIMIT_NOFILE, before)
            agent.until_fresh(up)
            agent.until(lambda page: all(by_collector(page, "up")[name] == 1 for name in up), "all are up again")
        assert children(process), "the helper process is there"
        agent.stop()
