"""The pass over all processes: shared, in rounds, within a budget; and what two collectors tell of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from agent.budget import SAVED_UP, SLICE, Budget
from agent.collector import Shared
from agent.host import Host
from collectors.processes import OWN_MOUNTS, TABLE, Processes
from tests.trees.node import TREES
from tests.trees.tree import host_of


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


def test_the_path_of_a_cgroup_is_cut_at_a_directory(host: Host) -> None:
    Path(f"{host.procfs}/21890/cgroup").write_text("0::/docker" + "/0123456789" * 200 + "\n")
    reading = Processes().reading(host, Clocks(0.0).budget(1.0), 0)
    assert reading is not None
    assert "/docker" + "/0123456789" * 92 in reading.groups
