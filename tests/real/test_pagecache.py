"""The page cache collector on this machine's own cgroups."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from collectors.pagecache import Settings
from tests.real.cgroups import MIB, Sweep, cgroup, cold_file, memory_root

pytestmark = pytest.mark.root
SIZE = 64 * MIB


@pytest.fixture
def root(need: Callable[..., None]) -> Path:
    """Where this test's containers are: `…/ullage-test-PID/docker/<id>`."""
    need()
    found = memory_root()
    assert found is not None, "no memory controller is mounted"
    return found / f"ullage-test-{os.getpid()}" / "docker"


@pytest.fixture
def sweep() -> Iterator[Sweep]:
    made = Sweep()
    yield made
    made.running.close()


def test_what_a_process_reads_is_its_containers_page_cache_and_nobody_elses(
    root: Path, sweep: Sweep, tmp_path: Path
) -> None:
    file = cold_file(tmp_path / "file", SIZE)
    reader, idle = f"{0xA1:02x}" * 32, f"{0xA2:02x}" * 32
    with cgroup(root / reader) as one, cgroup(root / idle) as two:
        two.run("true")
        before = sweep.read()["page_cache_bytes"]
        one.run('cat "$1" > /dev/null', str(file))
        after = sweep.read()["page_cache_bytes"]
        assert after[reader[:12]] - before[reader[:12]] == pytest.approx(SIZE, rel=0.05)
        assert after[idle[:12]] - before[idle[:12]] < MIB
    gone = sweep.read().get("page_cache_bytes", {})
    assert reader[:12] not in gone


def test_what_is_in_tmpfs_is_shmem_and_not_page_cache(root: Path, sweep: Sweep) -> None:
    writer = f"{0xA3:02x}" * 32
    path = Path(f"/dev/shm/ullage-test-{os.getpid()}")
    with cgroup(root / writer) as one:
        try:
            one.run('head -c "$1" /dev/zero > "$2"', str(SIZE), str(path))
            values = sweep.read()
            assert values["shmem_bytes"][writer[:12]] == pytest.approx(SIZE, rel=0.05)
            assert values["page_cache_bytes"][writer[:12]] < 4 * MIB
        finally:
            path.unlink(missing_ok=True)


@pytest.mark.slow
def test_2000_cgroups_that_come_and_go_leave_no_descriptor_and_raise_nothing(root: Path) -> None:
    sweep = Sweep(Settings(top=50, kept_descriptors=500))
    with cgroup(root):
        sweep.read()
        before = len(os.listdir("/proc/self/fd"))
        is_over = threading.Event()

        def churn() -> None:
            for batch in range(20):
                paths = [root / f"{batch:02x}{number:02x}".ljust(64, "0") for number in range(100)]
                for path in paths:
                    path.mkdir()
                for path in paths:
                    # a reader of its files may hold it up for a moment
                    while path.exists():
                        with contextlib.suppress(OSError):
                            path.rmdir()
            is_over.set()

        thread = threading.Thread(target=churn)
        thread.start()
        rounds = 0
        while not is_over.is_set():
            sweep.read()
            rounds += 1
        thread.join()
        assert rounds > 3
        sweep.read()
        assert len(os.listdir("/proc/self/fd")) == before
    sweep.running.close()
    assert set(sweep.host.errors) <= {"vanished"}
