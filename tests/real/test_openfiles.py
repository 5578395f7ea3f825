"""Deleted files that are held by real processes and containers, on real filesystems; a pass over ten thousand."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import Stuck
from agent.host import Host, Inode
from agent.probe import HelperProber
from tests.real.conftest import Make, StuckFs, run
from tests.real.observer import Watched, observer, of, watched

pytestmark = [pytest.mark.root, pytest.mark.slow]
HOLDING = sys.executable, str(Path(__file__).with_name("holding.py"))
MIB = 1 << 20


@pytest.fixture
def containers(need: Callable[..., None]) -> Iterator[Watched]:
    need("dockerd", "docker", "busybox")
    with watched() as made:
        yield made


def held(seen: dict[str, Any], container: str) -> tuple[float | None, float | None]:
    """Return the deleted files that a container holds, and their bytes."""
    return of(seen, "deleted_open_files", container=container), of(seen, "deleted_open_bytes", container=container)


@pytest.mark.docker
def test_a_deleted_file_of_64_mib_is_the_containers_that_holds_it_until_the_remedy_is_run(containers: Watched) -> None:
    containers.docker.run("idle", "sleep 1000")
    # a restarted one finds the mark, and does not do it again
    once = "[ -e /done ] && exec sleep 1000; exec 3>/log; echo > /done; dd if=/dev/zero bs=1M count=64 >&3; sync; "
    containers.docker.run("holder", f"{once} echo written > /done; while [ -e /log ]; do sleep 1; done; sleep 1000")
    end = time.monotonic() + 120
    while containers.docker.docker("exec", "holder", "/bin/cat", "/done") != "written":
        assert time.monotonic() < end, containers.docker.docker("logs", "holder")
    seen = containers.node.run()
    assert held(seen, "holder") == (0, 0)
    assert "deleted-files-held holder" not in seen["found"]

    containers.docker.docker("exec", "holder", "/bin/sh", "-c", "busybox rm /log")
    seen = containers.node.run()
    assert held(seen, "idle") == (0, 0)
    files, size = held(seen, "holder")
    assert files == 1
    assert size is not None
    assert 64 * MIB <= size < 65 * MIB  # by blocks: a file of that size may have one more of them for its extents
    explanation, remedy = seen["found"]["deleted-files-held holder"]
    assert "1 deleted files open, 64.0 MiB in all. The largest: /log with 64.0 MiB" in explanation

    containers.follow(remedy)
    seen = containers.node.run()
    assert held(seen, "holder") == (0, 0)
    assert "deleted-files-held holder" not in seen["found"]


@pytest.mark.docker
def test_a_file_of_the_image_that_a_container_deleted_holds_nothing(containers: Watched) -> None:
    containers.docker.run("reader", "exec 3</bin/busybox; (sleep 1; busybox rm /bin/busybox) & exec sleep 1000")
    end = time.monotonic() + 120
    while not (of(seen := containers.node.run(), "open_files_skipped_files", reason="maybe_of_an_image") or 0) >= 1:
        assert time.monotonic() < end, seen
    assert held(seen, "reader") == (0, 0)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_bytes_are_those_that_the_filesystem_gets_back(kind: str, filesystem: Make, need: Callable[..., None]) -> None:
    need("unshare")
    mount = filesystem(kind, size=512)
    label = run("findmnt", "--noheadings", "--output", "SOURCE", str(mount))
    with observer() as there:
        free = _free(mount)
        program = there.start(*HOLDING, str(mount), "20480", "64", "ro", "memory")
        seen = there.run()
        labels = {"device": label, "mountpoint": str(mount), "fstype": kind}
        assert of(seen, "filesystem_deleted_open_files", **labels) == 3
        size = of(seen, "filesystem_deleted_open_bytes", **labels)
        assert size is not None
        assert size >= 20 * MIB + 65536 + 4096  # XFS allocates more than is written
        assert abs(free - _free(mount) - size) < 2 * MIB  # metadata and what else the filesystem does
        assert held(seen, "host") == (3, size)
        there.stop(program)
        seen = there.run()
        assert of(seen, "filesystem_deleted_open_files", **labels) is None
        assert held(seen, "host") == (0, 0)


def _free(mount: Path) -> int:
    os.sync()
    found = os.statvfs(mount)
    return found.f_bfree * found.f_frsize


def test_one_file_that_several_hold_counts_once(filesystem: Make, need: Callable[..., None]) -> None:
    need("unshare")
    mount = filesystem("ext4")
    with observer() as there:
        shared = "import os, sys; d = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR); os.write(d, bytes(4096)); "
        shared += (
            "os.fsync(d); os.unlink(sys.argv[1]); os.fork(); os.dup(d); print('ready', flush=True); sys.stdin.read()"
        )
        there.start(sys.executable, "-c", shared, str(mount / "file"))
        assert held(there.run(), "host") == (1, 4096)


def test_a_file_whose_name_lies_and_files_in_memory_hold_nothing(filesystem: Make, need: Callable[..., None]) -> None:
    need("unshare")
    mount = filesystem("ext4")
    with observer() as there:
        liar = "import os, sys; d = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR); os.write(d, bytes(4096)); "
        liar += "os.fsync(d); print('ready', flush=True); sys.stdin.read()"
        there.start(sys.executable, "-c", liar, str(mount / "not gone (deleted)"))
        there.start(*HOLDING, "/dev/shm", "1024")
        there.start(*HOLDING, str(mount), "memory")
        seen = there.run()
        assert held(seen, "host") == (0, 0)
        for reason in ("not_a_local_disk", "maybe_of_an_image", "stuck"):
            assert of(seen, "open_files_skipped_files", reason=reason) == 0


def test_who_hangs_in_a_dead_filesystem_stops_no_pass(stuckfs: StuckFs, filesystem: Make) -> None:
    mount = filesystem("ext4")
    with observer() as there:
        there.start("sh", "-c", f"exec 3<{stuckfs.mount}; echo ready; cat > /dev/null")
        there.start(*HOLDING, str(mount), "64")
        stuckfs.hang()
        assert held(there.run(), "host") == (1, 65536)
        stuckfs.wake()


def test_a_question_that_hangs_is_stuck_and_the_next_is_answered(stuckfs: StuckFs) -> None:
    prober = HelperProber(deadline=0.2)
    try:
        stuckfs.hang()
        stuck, fine = Host(prober=prober).inodes([str(stuckfs.mount), "/etc"])
        assert isinstance(stuck, Stuck)
        assert isinstance(fine, Inode)
        assert fine.number == os.stat("/etc").st_ino
    finally:
        stuckfs.wake()
        prober.close()


def test_ten_thousand_processes_stay_within_the_budget_and_what_is_skipped_is_told(
    tmp_path: Path, need: Callable[..., None]
) -> None:
    need("gcc", "unshare")
    crowd = tmp_path / "crowd"
    run("gcc", "-O1", "-static", "-o", str(crowd), str(Path(__file__).with_name("crowd.c")))
    with observer() as there:
        there.start(str(crowd), "10000", "10")
        rounds = there.rounds(0.02, 10.0)
    *_, (_, last) = rounds
    assert last is not None
    spent = [cpu for cpu, _ in rounds]
    # each round may spend what a round is granted, and the last step may go over it by what one process takes
    assert all(each < 0.02 * 10 + 0.1 for each in spent[1:]), spent
    assert len(rounds) > 2
    assert last["processes"] > 9000
    assert last["descriptors"] <= 100_000
    assert last["skipped"]["descriptors"] > 0
