"""Processes made to be mistaken, or to cost: mounts, watches and descriptors by the thousand, names that lie."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from collectors.processes import DESCRIPTORS, LIMITS, OWN_MOUNTS
from tests.real.cgroups import cgroup, memory_root
from tests.real.conftest import Make, StuckFs
from tests.real.observer import observer, of

pytestmark = [pytest.mark.root, pytest.mark.slow]

WAITS = "print('ready', flush=True); sys.stdin.read()"
# mounts on each of a hundred directories
MOUNTS = f"""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for number in range(int(sys.argv[2])):
    place = f"{{sys.argv[1]}}/{{number % 100}}"
    os.makedirs(place, exist_ok=True)
    if libc.mount(b"none", place.encode(), b"tmpfs", 0, b"size=4k"):
        sys.exit(os.strerror(ctypes.get_errno()))
{WAITS}
"""
WATCHES = f"""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(15, b"x\\nUid:\\t7\\t7\\t7", 0, 0, 0)  # PR_SET_NAME: what `status` begins with
instance = libc.inotify_init1(0)
for number in range(int(sys.argv[2])):
    path = f"{{sys.argv[1]}}/{{number}}"
    os.mknod(path)
    if libc.inotify_add_watch(instance, path.encode(), 2) < 0:
        sys.exit(os.strerror(ctypes.get_errno()))
{WAITS}
"""
# by as many processes as it takes: each has what the first one has
DESCRIPTORS_OF = f"""
import os, resource, sys
with open(f"{{sys.argv[1]}}/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
each = min(hard - 10, 10_000)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
for _ in range(each):
    os.dup(0)
for _ in range(int(sys.argv[2]) // each):
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
{WAITS}
"""

FILES = f"""
import os, resource, sys
with open(f"{{sys.argv[1]}}/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
for number in range(int(sys.argv[3])):
    path = f"{{sys.argv[2]}}/{{os.getpid()}}-{{number}}"
    os.open(path, os.O_CREAT | os.O_RDWR)
    os.unlink(path)
{WAITS}
"""


def test_a_namespace_with_thousands_of_mounts_costs_its_own_processes_their_numbers(
    need: Callable[..., None], tmp_path: Path
) -> None:
    need("unshare")
    with observer() as there:
        unshared = ("unshare", "--mount", sys.executable, "-c", MOUNTS, str(tmp_path))
        few = there.start(*unshared, str(OWN_MOUNTS // 2))
        seen = there.run()
        assert of(seen, "open_files_skipped_processes", reason="too_many") == 0
        assert of(seen, "deleted_open_files", container="host") == 0
        there.stop(few)
        there.start(*unshared, str(OWN_MOUNTS))
        seen = there.run()
        assert of(seen, "open_files_skipped_processes", reason="too_many") == 1
        assert (of(seen, "open_files_processes") or 0) > 0
        assert of(seen, "deleted_open_files", container="host") is None, "unknown, not too small"


def test_a_file_mounted_below_a_filesystem_that_hangs_is_passed_over_unasked(stuckfs: StuckFs, tmp_path: Path) -> None:
    place, file = tmp_path / "place", tmp_path / "app.conf"
    place.mkdir()
    (place / "app.conf").touch()
    file.touch()
    script = (
        'mount --bind "$1" "$2/app.conf"; rm "$1"; [ -z "$3" ] || mount --bind "$3" "$2"; echo ready; cat > /dev/null'
    )
    with observer() as there:
        few = there.start("unshare", "--mount", "sh", "-ec", script, "sh", str(file), str(place), "")
        assert of(there.run(), "inotify_skipped_mounts", reason="not_a_local_disk") == 0
        there.stop(few)
        file.touch()
        there.start("unshare", "--mount", "sh", "-ec", script, "sh", str(file), str(place), str(stuckfs.mount))
        stuckfs.hang()
        seen = there.run()
        stuckfs.wake()
        assert of(seen, "inotify_skipped_mounts", reason="not_a_local_disk") == 1
        assert of(seen, "inotify_skipped_mounts", reason="stuck") == 0
        assert of(seen, "deleted_open_files", container="host") == 0


def test_watches_by_the_thousand_are_counted_for_the_user_who_has_them_whatever_the_process_is_called(
    need: Callable[..., None], tmp_path: Path
) -> None:
    need("unshare")
    limit = int(Path("/proc/sys/fs/inotify/max_user_watches").read_text())
    count = min(100_000, limit // 2)
    with observer() as there:
        before = of(there.run(), "inotify_watches", uid="0") or 0
        there.start(sys.executable, "-c", WATCHES, str(tmp_path), str(count))
        seen = there.run()
        assert of(seen, "inotify_watches", uid="0") == before + count
        assert of(seen, "inotify_watches", uid="7") is None


def test_descriptors_count_for_a_container_however_many_cgroups_it_makes(need: Callable[..., None]) -> None:
    need("unshare")
    root = memory_root()
    assert root is not None, "no memory controller is mounted"
    container = root / f"ullage-descriptors-{os.getpid()}" / f"{os.getpid():064x}"
    with cgroup(container / "a") as one, cgroup(container / "b") as two:
        with observer() as there:
            for place in (one, two):
                there.start(sys.executable, "-c", DESCRIPTORS_OF, str(place.path), str(DESCRIPTORS * 6 // 10))
            seen = there.run()
        assert (of(seen, "open_files_skipped_processes", reason="descriptors") or 0) > 0
        assert of(seen, "deleted_open_files", id=container.name[:12]) is None


def test_deleted_files_by_the_thousand_in_one_container_cost_no_other_its_numbers(
    filesystem: Make, need: Callable[..., None]
) -> None:
    need("unshare")
    place = filesystem("ext4", "-N", "8192")
    root = memory_root()
    assert root is not None, "no memory controller is mounted"
    parent, share = root / f"ullage-files-{os.getpid()}", LIMITS.files.share
    greedy, modest = (parent / f"{letter}{os.getpid():063x}" for letter in "ab")
    with cgroup(greedy) as one, cgroup(modest) as two:
        with observer() as there:
            for made, count in ((one, share + 1), (two, 3)):
                there.start(sys.executable, "-c", FILES, str(made.path), str(place), str(count))
            seen = there.run()
        assert of(seen, "deleted_open_files", id=greedy.name[:12]) is None
        assert of(seen, "deleted_open_files", id=modest.name[:12]) == 3
        assert of(seen, "open_files_skipped_processes", reason="too_many") == 1


def test_what_is_deleted_and_no_file_holds_nothing(filesystem: Make, need: Callable[..., None]) -> None:
    need("unshare", "mkfifo")
    place = filesystem("ext4")
    script = "cd $0; mkfifo pipe; exec 3<>pipe; mkdir directory; exec 4<directory; rm pipe; rmdir directory; "
    with observer() as there:
        there.start("sh", "-ec", script + "cd /; echo ready; exec cat > /dev/null", str(place))
        assert of(there.run(), "deleted_open_files", container="host") == 0
