"""The pass over all processes: shared, in rounds, within a budget; and what two collectors tell of it."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections import Counter
from pathlib import Path

import pytest

from agent.budget import SAVED_UP, SLICE, Budget
from agent.collector import Shared
from agent.host import Host
from collectors.processes import OWN_MOUNTS, TABLE, Limits, Processes, Reading
from collectors.shares import Bound
from tests.trees.node import TREES
from tests.trees.tree import TreeProber, host_of


class Clocks:
    """Processor time goes on with each look at it, all other time as the test says."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self.used = 0.0
        self.pauses = 0
        self._step = step

    def cpu(self) -> float:
        self.used += self._step
        return self.used

    def pause(self, seconds: float) -> None:
        self.pauses += 1
        self.now += seconds

    def budget(self, share: float) -> Budget:
        return Budget(share, clock=lambda: self.now, cpu=self.cpu, pause=self.pause)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return host_of(TREES / "openfiles" / "docker", tmp_path)


def test_what_one_has_found_the_other_is_told_and_who_has_it_looks_anew(host: Host) -> None:
    processes, budget = Shared().get(Processes), Clocks(0.0).budget(1.0)
    numbers = []
    told = {"first": 0, "second": 0}
    for who in ("first", "second", "first", "second", "second", "first"):
        reading = processes.reading(host, budget, told[who])
        assert reading is not None
        told[who] = reading.number
        numbers.append(reading.number)
    assert numbers == [1, 1, 2, 2, 3, 3]


def test_all_who_share_have_one(host: Host) -> None:
    shared = Shared()
    assert shared.get(Processes) is shared.get(Processes)
    assert Shared().get(Processes) is not shared.get(Processes)
    assert shared.get(Processes).reading(host, Clocks(0.0).budget(1.0), 0) is not None


def test_a_pass_that_the_budget_ends_goes_on_in_the_next_round_and_tells_nothing_before_its_end(host: Host) -> None:
    clocks, processes = Clocks(SLICE), Processes()
    budget = clocks.budget(0.001)  # six slices are saved up
    before = clocks.used
    assert processes.reading(host, budget, 0) is None
    assert clocks.used - before <= 0.001 * SAVED_UP + 2 * SLICE
    assert clocks.pauses > 0
    progress = [processes.progress()]
    rounds = 1
    while (reading := processes.reading(host, budget, 0)) is None:
        progress.append(processes.progress())
        clocks.now += 30
        rounds += 1
        assert rounds < 100
    assert progress == sorted(progress)
    assert 0 <= progress[0] < progress[-1] < 1
    assert processes.progress() == 1
    whole = Processes().reading(host, Clocks(0.0).budget(1.0), 0)
    assert whole is not None
    assert reading.held == whole.held
    assert reading.processes == whole.processes == 5


def test_while_the_next_pass_is_under_way_the_last_one_is_told(host: Host) -> None:
    processes = Processes()
    first = processes.reading(host, Clocks(0.0).budget(1.0), 0)
    assert first is not None
    assert processes.reading(host, Clocks(SLICE).budget(0.001), first.number) is first


def test_what_ends_during_the_pass_is_passed_over(host: Host) -> None:
    clocks, processes = Clocks(SLICE), Processes()
    budget = clocks.budget(0.0002)  # one slice
    assert processes.reading(host, budget, 0) is None
    for process in os.listdir(f"{host.procfs}"):
        if process.isdigit() and process != "1":
            shutil.rmtree(f"{host.procfs}/{process}")
    while (reading := processes.reading(host, budget, 0)) is None:
        clocks.now += 60
    assert reading.skipped["vanished"] >= 3
    assert reading.unknown_groups == set()


def test_a_proc_that_is_not_there_gives_an_empty_pass(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    reading = Processes().reading(Host(str(tmp_path / "proc"), rootfs=str(tmp_path)), Clocks(0.0).budget(1.0), 0)
    assert reading is not None
    assert reading.processes == 0


def test_of_a_namespace_with_too_many_mounts_nobody_is_judged_and_no_memory_taken(host: Host) -> None:
    whole = Processes().reading(host, Clocks(0.0).budget(1.0), 0)
    assert whole is not None
    table = Path(f"{host.procfs}/21890/mountinfo")
    line = table.read_text().splitlines()[0].partition(" ")[2]
    lines = [f"{100_000 + number} {line}\n" for number in range(OWN_MOUNTS + 1)]
    for text, reason in (("".join(lines), "too_many"), ("1 " + "x" * TABLE, "failed")):
        table.write_text(text)
        reading = Processes().reading(host, Clocks(0.0).budget(1.0), 0)
        assert reading is not None
        assert reading.skipped[reason] == 1
        assert reading.processes == whole.processes - 1
        assert len(reading.unknown_groups) == 1
    table.write_text("".join(lines[:-1]))
    reading = Processes().reading(host, Clocks(0.0).budget(1.0), 0)
    assert reading is not None
    assert reading.skipped["too_many"] == 0


def test_a_table_that_is_too_large_is_read_once_and_not_for_each_process(host: Host) -> None:
    read = []

    class Counting(Host):
        def read(self, path: str, most: int = 0) -> bytes:
            read.append(path)
            return super().read(path, most)

    sharing = ("21846", "21848")
    for pid in sharing:
        Path(f"{host.procfs}/{pid}/mountinfo").write_text("1 " + "x" * TABLE)
    counting = Counting(host.procfs, host.sysfs, host.rootfs, host.dev, host.prober)
    reading = Processes().reading(counting, Clocks(0.0).budget(1.0), 0)
    assert reading is not None
    assert (reading.skipped["failed"], reading.skipped["too_many"]) == (1, 1)
    assert sum(path in [f"proc/{pid}/mountinfo" for pid in sharing] for path in read) == 1


class Crowd:
    """A host of processes that are made one by one, in containers of one letter, each with a user of its own."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._inodes = {"/": [stat.S_IFDIR, 0xFE00, 2, 2, 8]}
        (place / "proc/1").mkdir(parents=True)
        (place / "proc/1/mountinfo").write_text("27 1 254:0 / / rw - ext4 /dev/vda rw\n")

    def process(self, pid: int, container: str, *, files: int = 0, instances: int = 0, mounts: int = 0) -> None:
        """Make a process in a mount namespace of its own, with mounts whose source is gone among the rest."""
        place = self._place / f"proc/{pid}"
        for name in ("fd", "fdinfo", "ns"):
            (place / name).mkdir(parents=True)
        (place / "cgroup").write_text(f"0::{group(container)}\n")
        (place / "status").write_text(f"Uid:\t{ord(container)}\t{ord(container)}\t0\t0\nVmSize:\t1 kB\n")
        (place / "ns/mnt").symlink_to(f"mnt:[{pid}]")
        (place / "ns/user").symlink_to("user:[4026531837]")
        (place / "root").symlink_to("/")
        first = pid * 1000
        lines = [f"{first} 1 254:0 / / rw - ext4 /dev/vda rw"]
        for number in range(mounts):
            lines.append(f"{first + 1 + number} {first} 254:0 /x{number}//deleted /m{number} rw - ext4 /dev/vda rw")
            self._inodes[f"/proc/{pid}/root/m{number}"] = [stat.S_IFREG, 0xFE00, first + number, 0, 8]
        (place / "mountinfo").write_text("\n".join(lines) + "\n")
        for number in range(files + instances):
            is_file = number < files
            (place / f"fd/{number}").symlink_to("/gone (deleted)" if is_file else "anon_inode:inotify")
            text = f"flags:\t02\nmnt_id:\t{first}\n" if is_file else f"inotify wd:1 ino:{pid}{number} sdev:fe00000 \n"
            (place / f"fdinfo/{number}").write_text(text)
            self._inodes[f"/proc/{pid}/fd/{number}"] = [stat.S_IFREG, 0xFE00, first + number, 0, 8]

    def look(self, limits: Limits) -> Reading:
        (self._place / "inodes.json").write_text(json.dumps(self._inodes))
        host = Host(str(self._place / "proc"), rootfs=str(self._place), prober=TreeProber(self._place))
        found = Processes(limits).reading(host, Clocks(0.0).budget(1.0), 0)
        assert found is not None
        return found


def group(container: str) -> str:
    return f"/docker/{container * 64}"


GREEDY, MODEST = "a", "b"
BOUND = Bound(40, share=20, sure=2)
AMPLE = Bound(10_000, share=10_000, sure=0)
PLENTY = Limits(AMPLE, AMPLE, AMPLE, AMPLE, AMPLE)


@pytest.fixture
def crowd(tmp_path: Path) -> Crowd:
    return Crowd(tmp_path)


def test_who_deletes_too_many_files_costs_no_other_container_its_numbers(crowd: Crowd) -> None:
    crowd.process(100, GREEDY, files=30)
    crowd.process(200, MODEST, files=2)
    found = crowd.look(PLENTY._replace(files=BOUND))
    assert found.unknown_groups == {group(GREEDY)}
    assert Counter(each.group for each in found.held.values()) == {group(GREEDY): 20, group(MODEST): 2}
    assert found.unknown_users == set(), "its inotify instances were all seen"
    assert found.skipped["too_many"] == 1


def test_who_has_too_many_instances_costs_no_other_container_or_user_its_numbers(crowd: Crowd) -> None:
    crowd.process(100, GREEDY, instances=30)
    crowd.process(200, MODEST, instances=2)
    found = crowd.look(PLENTY._replace(instances=BOUND))
    assert found.unknown_groups == {group(GREEDY)}
    assert found.unknown_users == {ord(GREEDY)}
    assert Counter(each.group for each in found.instances) == {group(GREEDY): 20, group(MODEST): 2}


@pytest.mark.parametrize("kind", ["namespaces", "mounts"])
def test_who_has_too_many_namespaces_or_mounts_costs_no_other_container_its_numbers(kind: str, crowd: Crowd) -> None:
    for number in range(30):
        crowd.process(100 + number, GREEDY, mounts=3 if kind == "mounts" else 0)
    crowd.process(200, MODEST, files=2)
    found = crowd.look(PLENTY._replace(**{kind: BOUND}))
    assert found.unknown_groups == {group(GREEDY)}
    assert found.skipped["too_many"] == (10 if kind == "namespaces" else 25)
    assert Counter(each.group for each in found.held.values()) == {group(MODEST): 2}


def test_who_has_too_many_stale_mounts_costs_no_other_container_its_own(crowd: Crowd) -> None:
    crowd.process(100, GREEDY, mounts=30, files=1)
    crowd.process(200, MODEST, mounts=2)
    found = crowd.look(PLENTY._replace(stale=BOUND))
    assert Counter(each.group for each in found.stale) == {group(GREEDY): 20, group(MODEST): 2}
    assert found.skipped_mounts["too_many"] == 10
    assert found.unknown_mounts == {group(GREEDY)}
    assert found.unknown_groups == set()


def test_many_containers_that_take_their_share_leave_the_others_their_first_few(crowd: Crowd) -> None:
    for number, container in enumerate("cdefgh"):
        crowd.process(100 + number, container, instances=30)
    crowd.process(200, MODEST, instances=2)
    found = crowd.look(PLENTY._replace(instances=BOUND))
    assert group(MODEST) not in found.unknown_groups
    assert Counter(each.group for each in found.instances)[group(MODEST)] == 2
    assert len(found.instances) <= BOUND.most


def test_the_cgroups_that_a_container_makes_share_what_it_has(crowd: Crowd, tmp_path: Path) -> None:
    for number in range(3):
        crowd.process(100 + number, GREEDY, files=10)
        (tmp_path / f"proc/{100 + number}/cgroup").write_text(f"0::{group(GREEDY)}/{number}\n")
    found = crowd.look(PLENTY._replace(files=BOUND))
    assert len(found.held) == BOUND.share
    assert found.unknown_groups == {f"{group(GREEDY)}/2"}


def test_a_namespace_that_could_not_be_read_for_one_process_takes_no_place(crowd: Crowd, tmp_path: Path) -> None:
    for number in range(30):
        crowd.process(100 + number, GREEDY)
        (tmp_path / f"proc/{100 + number}/mountinfo").unlink()
    crowd.process(200, GREEDY, files=1)
    found = crowd.look(PLENTY._replace(namespaces=BOUND))
    assert found.unknown_groups == set()
    assert len(found.held) == 1


def test_the_path_of_a_cgroup_is_cut_at_a_directory(host: Host) -> None:
    Path(f"{host.procfs}/21890/cgroup").write_text("0::/docker" + "/0123456789" * 200 + "\n")
    reading = Processes().reading(host, Clocks(0.0).budget(1.0), 0)
    assert reading is not None
    assert "/docker" + "/0123456789" * 92 in reading.groups
