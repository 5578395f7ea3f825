"""The page cache collector on cgroup v2, in the guest's kernel."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.collector import Start
from agent.finding import Found
from agent.host import Host
from agent.metric import Sample
from collectors.cgroups import layout
from collectors.pagecache import DOMINATED, DYING, DYING_LEAST, POLLUTION_ROUNDS, PageCache, Settings
from tests.real.cgroups import MIB, Sweep, cgroup, cold_file
from tests.vm.guest.pools import run
from tests.vm.guest.zpool import wait_until

SIZE = 64 * MIB
ROOT = Path("/sys/fs/cgroup/ullage-test/docker")


@pytest.fixture
def sweep() -> Iterator[Sweep]:
    made = Sweep()
    yield made
    made.running.close()


def test_memory_is_version_2_here() -> None:
    found = layout(Host())
    assert found is not None
    assert found.is_v2


def test_reading_fills_the_readers_page_cache_and_reclaim_empties_it(sweep: Sweep, disk: Path) -> None:
    file = cold_file(disk / "file", SIZE)
    reader, idle = "a1" * 32, "a2" * 32
    with cgroup(ROOT / reader) as one, cgroup(ROOT / idle) as two:
        two.run("true")
        one.run('cat "$1" > /dev/null', str(file))
        values = sweep.read()
        assert values["page_cache_bytes"][reader[:12]] == pytest.approx(SIZE, rel=0.05)
        assert values["page_cache_bytes"][idle[:12]] < MIB
        assert values["shmem_bytes"][reader[:12]] == 0
        assert reader[:12] in values["pressure_seconds_total"]
        (one.path / "memory.max").write_text(str(256 * MIB))
        (one.path / "memory.reclaim").write_text(str(48 * MIB))
        values = sweep.read()
        assert values["page_cache_bytes"][reader[:12]] < SIZE - 40 * MIB
        assert values["memory_limit_bytes"][reader[:12]] == 256 * MIB
    assert reader[:12] not in sweep.read().get("page_cache_bytes", {})


def test_tmpfs_is_shmem_and_not_page_cache(sweep: Sweep) -> None:
    writer = "a3" * 32
    path = Path("/dev/shm/ullage-test")
    with cgroup(ROOT / writer) as one:
        one.run('head -c "$1" /dev/zero > "$2"', str(SIZE), str(path))
        values = sweep.read()
        path.unlink()
        assert values["shmem_bytes"][writer[:12]] == pytest.approx(SIZE, rel=0.05)
        assert values["page_cache_bytes"][writer[:12]] < 4 * MIB


def test_a_removed_cgroup_that_pins_memory_is_counted_as_dying(sweep: Sweep, disk: Path) -> None:
    file = cold_file(disk / "pinned", 8 * MIB)

    def dying() -> float:
        samples = [item for item in sweep.running.collect(sweep.host) if isinstance(item, Sample)]
        return next((s.value for s in samples if (s.metric, s.labels) == (DYING, ("/",))), 0.0)

    before = dying()
    with cgroup(ROOT / ("a4" * 32)) as one:
        one.run('cat "$1" > /dev/null', str(file))
    assert dying() >= before + 1


class Node:
    """The collector's findings; its clock goes on by a second each run."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._host = Host()
        self.running = PageCache(Start(self._host, Settings()), lambda: self._now)

    def found(self) -> dict[str, Found]:
        """Do one run; return what it finds by its id."""
        self._now += 1
        return {item.finding.id: item for item in self.running.collect(self._host) if isinstance(item, Found)}


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.running.close()


def commands(remedy: str) -> list[str]:
    return re.findall("`(.*?)`", remedy)


@pytest.mark.vm(deadline=600)
def test_a_thousand_removed_cgroups_are_told_until_the_remedy_is_done(node: Node, disk: Path) -> None:
    file = cold_file(disk / "shared", DYING_LEAST * 4096 // MIB * MIB + MIB)
    descriptor = os.open(file, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # each reads a page of its own
    with cgroup(Path("/sys/fs/cgroup/jobs/last")) as last:
        jobs = last.path.parent
        (jobs / "cgroup.subtree_control").write_text("+memory")
        assert "dying-cgroups" not in node.found()
        try:
            for number in range(DYING_LEAST):
                job = jobs / f"job-{number}"
                job.mkdir()
                (job / "cgroup.procs").write_text(str(os.getpid()))
                os.pread(descriptor, 4096, number * 4096)
                if number:
                    (jobs / f"job-{number - 1}").rmdir()
        finally:
            Path("/sys/fs/cgroup/cgroup.procs").write_text(str(os.getpid()))
            os.close(descriptor)
        job.rmdir()
        found = node.found()["dying-cgroups"]
        assert found.target == "jobs"
        (command,) = commands(found.remedy)
        subprocess.run(command, shell=True, check=False, capture_output=True)  # there is less than it asks for
        until = time.monotonic() + 60
        while "dying-cgroups" in node.found():
            assert time.monotonic() < until, (jobs / "cgroup.stat").read_text()
            time.sleep(0.5)


@pytest.mark.vm(deadline=600)
def test_a_polluter_is_told_until_half_of_its_cache_is_reclaimed(node: Node, disk: Path) -> None:
    polluter, victim = "a5" * 32, "a6" * 32
    much, little = disk / "much", cold_file(disk / "little", 24 * MIB)
    much.touch()
    os.truncate(much, 320 * MIB)  # holes fill the cache as well
    with cgroup(ROOT / polluter) as one, cgroup(ROOT / victim) as two:
        one.run('cat "$1" > /dev/null', str(much))
        (two.path / "memory.max").write_text(str(12 * MIB))
        assert "page-cache-pollution" not in node.found()

        def read_again() -> dict[str, Found]:
            for _ in range(POLLUTION_ROUNDS):
                two.run('cat "$1" > /dev/null', str(little))
                found = node.found()
            return found

        found = read_again()["page-cache-pollution"]
        assert found.target == polluter[:12]
        relieve, drop = commands(found.remedy)
        before = int((one.path / "memory.current").read_text())
        run("sh", "-c", relieve)
        assert int((one.path / "memory.current").read_text()) < 0.6 * before
        assert "page-cache-pollution" not in read_again()
        run("sh", "-c", drop)
        assert int((one.path / "memory.current").read_text()) < 0.1 * before


def test_what_drops_caches_again_and_again_is_told_and_named(node: Node) -> None:
    assert "drop-caches-in-use" not in node.found()
    for _ in range(2):
        run("sh", "-c", "printf cleaner > /proc/self/comm; echo 1 > /proc/sys/vm/drop_caches")
    remedy = node.found()["drop-caches-in-use"].remedy
    (command,) = commands(remedy)
    assert re.search(r"cleaner \(\d+\): drop_caches: 1$", run("sh", "-c", command))


@pytest.mark.vm(deadline=400)
def test_who_walks_many_files_is_shown_and_a_reclaim_frees_their_dentries(sweep: Sweep, disk: Path) -> None:
    # not its drop_caches: dropping the inodes of the lab's root, which is virtiofs, hangs the machine
    many, walker = 20_000, "a7" * 32
    with cgroup(ROOT / walker) as one:
        script = "import os, sys; [os.path.exists(f'{sys.argv[1]}/{number}') for number in range(int(sys.argv[2]))]"
        one.run('"$1" -I -S -c "$2" "$3" "$4"', sys.executable, script, str(disk), str(many))
        metric, _ = commands(DOMINATED.remedy)
        name = metric.removeprefix("ullage_container_")
        assert sweep.read()[name][walker[:12]] > many * 192
        assert run("slabtop", "--once", "--sort=c").splitlines()[7].split()[-1] == "dentry"

        def is_freed() -> bool:
            with contextlib.suppress(OSError):  # there is less than it asks for
                (one.path / "memory.reclaim").write_text("512M")
            return sweep.read()[name][walker[:12]] < many * 192 / 2

        wait_until(is_freed, (one.path / "memory.stat").read_text())  # the kernel frees them after a grace period
