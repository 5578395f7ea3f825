"""The page cache collector on directories that stand for cgroups; real ones are in tests/real and tests/vm."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.collector import Start
from agent.exposition import Pages
from agent.finding import Found
from agent.host import Host
from agent.latches import Latches
from agent.metric import Family, Sample
from agent.runner import Plan, Runner
from collectors import pagecache
from collectors.cgroups import MOST
from collectors.pagecache import COLLECTOR, PageCache, Settings

MIB = 1 << 20
PAGE = pagecache.PAGE


def full_id(number: int) -> str:
    return f"{number:064x}"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Node:
    """A node of cgroup v2 in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cgroups = root / "sys/fs/cgroup"
        self.clock = Clock()
        self._running: list[PageCache] = []
        self.write("sys/fs/cgroup/cgroup.controllers", "memory\n")
        self.write("proc/vmstat", "nr_file_pages 100\n")
        self.write("proc/slabinfo", "slabinfo - version: 2.1\n# name\n")
        self.write("proc/sys/fs/dentry-state", "1 1 45 0 1 0\n")
        self.write("proc/sys/fs/inode-nr", "1 1\n")

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def container(self, number: int, file: int, parent: str = "docker", **more: int) -> Path:
        directory = self.cgroups / parent / full_id(number)
        directory.mkdir(parents=True, exist_ok=True)
        keys = {"file": file, "shmem": 0, "inactive_file": file, "active_file": 0, "file_dirty": 0} | more
        keys |= {"file_writeback": 0, "file_mapped": 0, "workingset_refault_file": 0, "slab_reclaimable": 0}
        # as the kernel does, without a new file: a kept descriptor must see it
        (directory / "memory.stat").write_text("".join(f"{key} {value}\n" for key, value in keys.items()))
        return directory

    def start(self, settings: Settings | None = None) -> tuple[PageCache, Host]:
        host = Host(f"{self.root}/proc", f"{self.root}/sys", str(self.root))
        running = PageCache(Start(host, settings or Settings()), self.clock)
        self._running.append(running)
        return running, host

    def vmstat(self, **numbers: int) -> None:
        self.write("proc/vmstat", "".join(f"{key} {value}\n" for key, value in numbers.items()))

    def close(self) -> None:
        for running in self._running:
            running.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.close()


def caches(running: PageCache, host: Host, **errors: int) -> dict[str, float]:
    """Do one run; return the page cache by short id (or `other`)."""
    host.errors.clear()
    found = {}
    for item in running.collect(host):
        if isinstance(item, Family) and item.metric.name == "ullage_container_page_cache_bytes":
            found = {
                labels[3].lstrip("0") or labels[2]: value
                for labels, value in zip(item.labelsets, item.values, strict=True)
            }
    assert host.errors == errors
    return found


def findings(running: PageCache, host: Host) -> dict[str, Found]:
    return {item.finding.id: item for item in running.collect(host) if isinstance(item, Found)}


def short(number: int) -> str:
    return f"{full_id(number)[:12]}".lstrip("0")


def test_containers_come_and_go_with_their_cgroups(node: Node) -> None:
    one, two = 0xA << 240, 0xB << 240
    node.container(one, 5)
    running, host = node.start()
    assert caches(running, host) == {short(one): 5}
    node.container(one, 6)
    directory = node.container(two, 7)
    assert caches(running, host) == {short(one): 6, short(two): 7}
    shutil.rmtree(directory)
    assert caches(running, host) == {short(one): 6}
    shutil.rmtree(node.cgroups / "docker")
    assert caches(running, host) == {}
    node.container(two, 8, parent="system.slice/deep/docker")
    assert caches(running, host) == {short(two): 8}


def test_tmpfs_is_no_page_cache(node: Node) -> None:
    one = 0xA << 240
    node.container(one, 100, shmem=30)
    running, host = node.start()
    assert caches(running, host) == {short(one): 70}


def test_the_biggest_have_series_of_their_own_and_the_sum_is_right(node: Node) -> None:
    numbers = [(0x10 + n) << 240 for n in range(10)]
    for size, number in enumerate(numbers):
        node.container(number, 100 + size)
    running, host = node.start(Settings(top=3))
    found = caches(running, host)
    assert set(found) == {short(number) for number in numbers[-3:]} | {"other"}
    assert sum(found.values()) == sum(100 + size for size in range(10))


def test_who_has_a_series_keeps_it_until_another_is_a_quarter_bigger(node: Node) -> None:
    one, two, three = (0xA << 240, 0xB << 240, 0xC << 240)
    for number, size in ((one, 100), (two, 90), (three, 80)):
        node.container(number, size)
    running, host = node.start(Settings(top=2))
    assert set(caches(running, host)) == {short(one), short(two), "other"}
    node.container(three, 110)
    assert set(caches(running, host)) == {short(one), short(two), "other"}
    node.container(three, 120)
    assert set(caches(running, host)) == {short(one), short(three), "other"}


def test_a_container_in_a_container_is_counted_once(node: Node) -> None:
    outer, inner = 0xA << 240, 0xB << 240
    node.container(outer, 100)
    node.container(inner, 60, parent=f"docker/{full_id(outer)}/kubelet/kubepods/pod{'0' * 32}")
    running, host = node.start()
    assert caches(running, host) == {short(outer): 40, short(inner): 60}


@pytest.mark.parametrize("kept", [0, 3, 4096])
def test_descriptors_are_bounded_and_none_is_left(node: Node, kept: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    numbers = [(0x10 + n) << 240 for n in range(20)]
    for number in numbers:
        node.container(number, 1)
    running, host = node.start(Settings(kept_descriptors=kept))
    for _ in range(3):
        assert len(caches(running, host)) == 20
        assert len(os.listdir("/proc/self/fd")) - before - 1 <= kept
    for number in numbers[:10]:
        shutil.rmtree(node.cgroups / "docker" / full_id(number))
    assert len(caches(running, host)) == 10
    running.close()
    node._running.clear()
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_overflow_of_events_leads_to_a_full_look(node: Node) -> None:
    one = 0xA << 240
    node.container(one, 1)
    running, host = node.start()
    assert set(caches(running, host)) == {short(one)}
    directory = node.cgroups / "docker"
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for _ in range(limit // 2 + 10):
        (directory / "x").mkdir()
        (directory / "x").rmdir()
    node.container(0xB << 240, 2)
    shutil.rmtree(directory / full_id(one))
    assert set(caches(running, host)) == {short(0xB << 240)}


def test_of_more_cgroups_than_are_looked_at_no_sum_is_told(node: Node) -> None:
    real = node.container(0xA << 240, 7)
    for number in range(MOST):
        (real / f"inner-{number}").mkdir()
    running, host = node.start()
    for _ in range(2):  # what is near comes first, however many are below it
        assert caches(running, host, failed=1) == {short(0xA << 240): 7}
    assert [error for error in map(str, host.first_errors) if f"more than {MOST} cgroups" in error]
    for number in range(100):
        (real / f"inner-{number}").rmdir()
    node.container(0xB << 240, 8)
    node.clock.now += pagecache.REDISCOVER_EVERY + 1
    assert caches(running, host) == {short(0xA << 240): 7, short(0xB << 240): 8}


def test_cgroups_as_deep_as_a_path_may_be_are_no_bug(node: Node) -> None:
    place = node.container(0xA << 240, 7)
    made = []
    for _ in range(1500):  # deeper than Python calls itself
        place = place / "x"
        place.mkdir()
        made.append(place)
    running, host = node.start()
    assert caches(running, host, failed=1) == {short(0xA << 240): 7}
    for place in reversed(made):  # pytest would call itself too often
        place.rmdir()


def test_label_sets_stay_the_same_objects_while_nothing_changes(node: Node) -> None:
    for number in range(5):
        node.container((0x10 + number) << 240, 1)
    running, host = node.start()

    def labelsets() -> list[object]:
        return [item.labelsets for item in running.collect(host) if isinstance(item, Family)]

    assert all(a is b for a, b in zip(labelsets(), labelsets(), strict=True))


def test_pollution_names_the_container_and_how_to_relieve_it(node: Node) -> None:
    one, two = 0xA << 240, 0xB << 240
    node.container(one, 900 * MIB)
    node.container(two, 100 * MIB)
    running, host = node.start()
    refaults = 0
    found: dict[str, Found] = {}
    for _ in range(6):
        node.vmstat(workingset_refault_file=refaults)
        found = findings(running, host)
        node.clock.now += 15
        refaults += 15 * 20 * MIB // PAGE
    pollution = found["page-cache-pollution"]
    assert pollution.target == full_id(one)[:12]
    assert "20 MiB/s" in pollution.explanation
    assert "90 %" in pollution.explanation
    assert f"echo {450 * MIB} > /sys/fs/cgroup/docker/{full_id(one)}/memory.reclaim" in pollution.remedy
    for _ in range(6):  # the files are in memory now
        found = findings(running, host)
        node.clock.now += 15
    assert "page-cache-pollution" not in found


def test_drop_caches_in_use_needs_two_times_within_an_hour(node: Node) -> None:
    running, host = node.start()
    seen = []
    for count in (5, 6, 6, 7):
        node.vmstat(drop_pagecache=count, drop_slab=0)
        seen.append("drop-caches-in-use" in findings(running, host))
        node.clock.now += 60
    node.clock.now += 3600
    seen.append("drop-caches-in-use" in findings(running, host))
    assert seen == [False, False, False, True, False]


def test_slab_dominated_when_inodes_take_more_than_pages(node: Node) -> None:
    line = "ext4_inode_cache 1 1 1128 14 4 : tunables 0 0 0 : slabdata {0} {0} 0\n"
    node.write("proc/meminfo", f"MemTotal: {8 << 20} kB\n")
    node.vmstat(nr_file_pages=1024 * MIB // PAGE)
    running, host = node.start()
    for slabs, expected in ((3072 * MIB // PAGE // 4, True), (900 * MIB // PAGE // 4, False)):
        node.write("proc/slabinfo", "slabinfo - version: 2.1\n# name\n" + line.format(slabs))
        assert ("slab-dominated" in findings(running, host)) == expected


def test_dying_cgroups_are_found_by_slice(node: Node) -> None:
    node.container(0xA << 240, 1)
    node.write("sys/fs/cgroup/docker/cgroup.stat", "nr_descendants 1\nnr_dying_descendants 1500\n")
    running, host = node.start()
    found = findings(running, host)["dying-cgroups"]
    assert found.target == "docker"
    assert "1500 removed cgroups" in found.explanation
    assert "/sys/fs/cgroup/docker/memory.reclaim" in found.remedy


def test_a_changed_limit_is_seen_within_a_minute_and_one_that_cannot_be_read_is_none(node: Node) -> None:
    directory = node.container(0xA << 240, 95)
    running, host = node.start()

    def limit_with(text: str, seconds: float) -> list[float]:
        (directory / "memory.max").write_text(text)
        node.clock.now += seconds
        families = [item for item in running.collect(host) if isinstance(item, Family)]
        (found,) = [item.values for item in families if item.metric is pagecache.LIMITS["container"]]
        return list(found)

    assert limit_with("100\n", 0) == [100]
    assert limit_with("200\n", 15) == [100]
    assert limit_with("200\n", 45) == [200]
    assert limit_with("damaged\n", 60) == []
    assert host.errors == {"malformed": 1}
    assert limit_with("300\n", 15) == [300]
    assert limit_with("max\n", 60) == []


def test_watermark_and_page_of_a_limited_container(node: Node) -> None:
    directory = node.container(0xA << 240, 95)
    (directory / "memory.max").write_text("100\n")
    host = Host(f"{node.root}/proc", f"{node.root}/sys", str(node.root))
    pages = Pages()
    runner = Runner(Plan(COLLECTOR, Settings(), 15.0, 10.0, 100, (pagecache.FILL,)), host, Latches(None), pages)
    running = COLLECTOR.start(Start(runner.host, Settings()))
    runner.run(running)
    running.close()
    (level,) = [level for table in runner.outcome.levels for level in table]
    assert (level.level, level.reading.ratio) == (1, 0.95)


def test_a_node_without_cgroups_still_has_its_reclaim(tmp_path: Path) -> None:
    made = Node(tmp_path)
    shutil.rmtree(made.cgroups)
    shutil.rmtree(made.root / "proc/sys")
    made.vmstat(pgpgin=3, pgscan_kswapd=7)
    running, host = made.start()
    samples = [item for item in running.collect(host) if isinstance(item, Sample)]
    assert {(s.metric.name, s.labels): s.value for s in samples} == {
        ("ullage_block_io_read_bytes_total", ()): 3072,
        ("ullage_reclaim_scanned_pages_total", ("kswapd",)): 7,
    }
    made.close()


def test_settings_that_make_no_sense_are_refused() -> None:
    refused: list[Callable[[], Settings]] = [lambda: Settings(top=0), lambda: Settings(kept_descriptors=-1)]
    for make in refused:
        with pytest.raises(ValueError, match="a top of 1 or more"):
            make()
