"""The page cache collector on cgroup v2, in the guest's kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host import Host
from agent.metric import Sample
from collectors.cgroups import layout
from collectors.pagecache import DYING
from tests.real.cgroups import MIB, Sweep, cgroup, cold_file

SIZE = 64 * MIB
ROOT = Path("/sys/fs/cgroup/ullage-test/docker")


@pytest.fixture
def sweep() -> Iterator[Sweep]:
    made = Sweep()
    yield made
    made.running.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real ext4 on the guest's first disk: its root is in memory, whose pages are tmpfs'."""
    import subprocess  # noqa: PLC0415  the guest's only use of it

    subprocess.run(["mkfs.ext4", "-q", "-F", "/dev/vda"], check=True)
    mount = tmp_path / "disk"
    mount.mkdir()
    subprocess.run(["mount", "/dev/vda", str(mount)], check=True)
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


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
