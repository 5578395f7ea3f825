"""The agent in limits: the 64 MiB that its pod asks for, on a hostile node, and a twentieth of a processor."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.host import Host
from collectors.cgroups import MOST
from collectors.readers.mountinfo import parse
from tests.agent_process import by_collector, children, running, series
from tests.faults.conftest import Config
from tests.real.cgroups import MIB, cgroup, memory_root
from tests.real.conftest import run
from tests.scraper import scraped

pytestmark = [pytest.mark.root, pytest.mark.slow]

MEMORY = 64 * MIB
MOUNTS = 200
FEW, MANY = 5_000, 20_000  # containers: fewer than are looked at, and more
TOP, KEPT = 200, 1024  # the collector's defaults
HOSTILE = 'é"\n\\' * 25


@pytest.fixture
def crowd(tmp_path: Path, need: Callable[..., None], request: pytest.FixtureRequest) -> Iterator[int]:
    """Thousands of containers' cgroups, and mounts with hostile names as long as a label may be."""
    need("mount")
    root = memory_root()
    assert root is not None, "no memory controller is mounted"
    with contextlib.ExitStack() as made:
        ours = made.enter_context(cgroup(root / f"ullage-crowd-{os.getpid()}" / "docker"))
        for number in range(request.param):
            each = ours.path / f"{number:012x}{number:052x}"
            each.mkdir()
            made.callback(each.rmdir)
        for number in range(MOUNTS):
            place = tmp_path / f"{number}{HOSTILE}"
            place.mkdir()
            run("mount", "-t", "tmpfs", "none", str(place))
            made.callback(run, "umount", str(place))
        yield request.param


def controller_root(controller: str) -> Path | None:
    """Return where a controller of cgroups is mounted, of version 1 or 2."""
    for mount in parse(Host().read("proc/self/mountinfo"))[0]:
        if mount.fstype == "cgroup" and controller in mount.super_options:
            return Path(mount.mountpoint)
        path = Path(mount.mountpoint)
        if mount.fstype == "cgroup2" and controller in (path / "cgroup.controllers").read_text().split():
            return path
    return None


@pytest.mark.parametrize("crowd", [FEW, MANY], indirect=True)
def test_64_mib_are_enough_for_hostile_cardinality(crowd: int, tmp_path: Path, config: Config) -> None:
    root = memory_root()
    assert root is not None
    with cgroup(root / f"ullage-limit-{os.getpid()}") as limit:
        v1, v2 = limit.path / "memory.limit_in_bytes", limit.path / "memory.max"
        (v1 if v1.exists() else v2).write_text(str(MEMORY))
        with running(tmp_path, config(pace=5), enter=limit.path) as agent:
            agent.wait_until_ready()
            with scraped(agent):
                page = agent.until_fresh(["filesystem", "pagecache"])
                assert str(agent.process.pid) in (limit.path / "cgroup.procs").read_text().split()
                assert len(series(page, "ullage_filesystem_size_bytes", fstype="tmpfs")) >= MOUNTS
                others = series(page, "ullage_container_page_cache_bytes", container="other")
                assert len(series(page, "ullage_container_page_cache_bytes")) == TOP + len(others)
                refused = series(page, "ullage_collector_errors_total", collector="pagecache", reason="failed")
                assert (len(others), any(refused)) == ((1, False) if crowd < MOST else (0, True))
                agent.until_fresh(["filesystem", "pagecache"])
                assert agent.footprint().descriptors < KEPT + 100
            assert all(by_collector(agent.scrape(), "up").values())
            agent.stop()
        events = (limit.path / ("memory.oom_control" if v1.exists() else "memory.events")).read_text().split()
        assert int(events[events.index("oom_kill") + 1]) == 0


def test_a_twentieth_of_a_processor_is_enough(tmp_path: Path, config: Config, need: Callable[..., None]) -> None:
    need()
    root = controller_root("cpu")
    assert root is not None, "no cpu controller is mounted"
    with cgroup(root / f"ullage-cpu-{os.getpid()}", "cpu") as limit, running(tmp_path, config(pace=15)) as agent:
        agent.wait_until_ready()
        up = [name for name, is_up in by_collector(agent.scrape(), "up").items() if is_up]
        if (limit.path / "cpu.max").exists():
            (limit.path / "cpu.max").write_text("5000 100000")
        else:
            (limit.path / "cpu.cfs_period_us").write_text("100000")
            (limit.path / "cpu.cfs_quota_us").write_text("5000")
        for pid in (agent.process.pid, *children(agent.process.pid)):
            (limit.path / "cgroup.procs").write_text(str(pid))
        with scraped(agent, every=1.0):
            page = agent.until_fresh(up)
            assert [name for name in up if by_collector(page, "up")[name] != 1] == []
        assert "nr_throttled 0\n" not in (limit.path / "cpu.stat").read_text(), "the limit was felt"
        agent.stop()
