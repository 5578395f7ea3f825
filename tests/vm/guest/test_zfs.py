"""The zfs collector on real pools, against zfs and zpool."""

from __future__ import annotations

import os
import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.collector import Collector, Running, Start
from agent.command import HostCommands
from agent.config import load
from agent.containers import Runtimes
from agent.exposition import Page, Pages
from agent.host import Host
from agent.latches import Latches
from agent.probe import HelperProber
from agent.runner import Runner
from agent.scheduler import Scheduler
from collectors import blockdevices, filesystem, pagecache, writeamp, zfs
from tests.real.dockerd import dockerd
from tests.vm.guest.zpool import Pool, run, wait_until

pytestmark = pytest.mark.vm(zfs=True, deadline=400)

MIB = 1 << 20
FILE = 192 * MIB
BLOCK = 4096
WRITES = zfs.FLOOR // BLOCK + 500
BATCH = 250  # writes to one transaction group: more of them would share records


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Node:
    """A collector at work on the guest's own kernel."""

    def __init__(self, collector: Collector, start: Callable[[Start], Running], runtimes: Runtimes) -> None:
        (plan,) = load(None, [collector], {}).plans
        self._pages = Pages()
        self.commands = HostCommands()
        self.runner = Runner(plan, Host(commands=self.commands), Latches(None), self._pages)
        self._running = start(Start(self.runner.host, plan.settings, runtimes=runtimes))
        self._samples: list[tuple[str, Mapping[str, str], float]] = []

    def run(self) -> None:
        """Do one run."""
        self.runner.run(self._running)
        assert "bug" not in self.runner.errors, self.runner.outcome.reason
        text = b"".join(self._pages.members("text", gzip=False)).decode()
        families = text_string_to_metric_families(text)
        self._samples = [(each.name, each.labels, each.value) for family in families for each in family.samples]

    def values(self, name: str, **labels: str) -> list[float]:
        """Return a metric's values in the last run, of those series that have the labels."""
        wanted = [each for each in self._samples if each[0] == f"ullage_{name}"]
        return [value for _, has, value in wanted if labels.items() <= has.items()]

    def value(self, name: str, **labels: str) -> float:
        """Return a metric's one value."""
        (value,) = self.values(name, **labels)
        return value

    def findings(self) -> set[tuple[str, str]]:
        """Return the ids and targets of the findings of the last run."""
        return {(found.finding.id, found.target) for found in self.runner.outcome.findings}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(clock: Clock) -> Iterator[Node]:
    made = Node(zfs.COLLECTOR, lambda start: zfs.Zfs(start, clock), Runtimes())
    yield made
    made.commands.close()


@pytest.fixture
def layers(pool: Pool) -> Iterator[Node]:
    """What writeamp counts of the same pool, whose device is a link as udev makes it."""
    link = Path(f"/dev/mapper/{pool.name}")
    link.unlink()
    link.symlink_to(f"/dev/{blockdevices.kernel_name(Host(), str(link))}")
    made = Node(writeamp.COLLECTOR, writeamp.COLLECTOR.start, Runtimes())
    yield made
    made.commands.close()


def got(dataset: str, *properties: str) -> list[int]:
    """Return what `zfs get` says of a dataset."""
    return [int(run("zfs", "get", "-Hp", "-o", "value", each, dataset)) for each in properties]


# -- values --


def test_values_are_those_of_zfs_and_zpool(pool: Pool, node: Node) -> None:
    run("zfs", "create", "-o", "recordsize=16K", "-o", "quota=64M", "-o", "compression=lz4", "tank/my db")
    run("zfs", "create", "-V", "16M", "-s", "tank/volume")
    path = Path("/tank/my db/file")
    path.write_bytes(os.urandom(5 * MIB))
    run("zfs", "snapshot", "tank/my db@one")
    run("zfs", "hold", "keep", "tank/my db@one")
    run("zfs", "hold", "keep too", "tank/my db@one")
    path.write_bytes(os.urandom(3 * MIB))
    run("zfs", "snapshot", "tank/my db@two")
    with path.open("rb") as file:
        file.read(MIB)
        path.unlink()
        run("zpool", "sync", "tank")
        before = pool.objset("tank/my db")
        node.run()
        assert pool.objset("tank/my db") == before
        # while the file is there: its space becomes the snapshots' some time after
        truth = got("tank/my db", "used", "usedbysnapshots", "recordsize", "quota")
    assert node.value("zfs_pool_state", zpool="tank", state=run("zpool", "list", "-Ho", "health").strip()) == 1
    ours = {"zpool": "tank", "dataset": "tank/my db"}
    for name, key in (("written_bytes", "nwritten"), ("writes", "writes"), ("read_bytes", "nread"), ("reads", "reads")):
        assert node.value(f"zfs_dataset_{name}_total", **ours) == int(before[key])
    assert int(before["nwritten"]) == 8 * MIB
    assert node.value("zfs_dataset_unlinked_backlog", **ours) == 1
    names = "used_bytes", "snapshot_used_bytes", "recordsize_bytes", "quota_bytes"
    told = [node.value(f"zfs_dataset_{name}", **ours) for name in names]
    assert told == truth
    assert node.value("zfs_dataset_properties_info", **ours, type="filesystem", sync="standard", compression="lz4") == 1
    assert node.value("zfs_dataset_snapshots", **ours) == 2
    assert node.value("zfs_dataset_holds", **ours) == 2
    assert [node.value("zfs_dataset_newest_snapshot_timestamp_seconds", **ours)] == got("tank/my db@two", "creation")
    assert node.value("zfs_dataset_properties_info", dataset="tank/volume", type="volume") == 1
    assert node.values("zfs_dataset_recordsize_bytes", dataset="tank/volume") == []
    assert node.values("zfs_dataset_quota_bytes", dataset="tank") == []
    assert node.findings() == set()
    assert not node.runner.errors
    run("zfs", "release", "keep", "tank/my db@one")
    run("zfs", "release", "keep too", "tank/my db@one")


def test_transaction_groups_are_those_of_the_pool(pool: Pool, node: Node) -> None:
    node.run()
    for number in range(3):
        Path("/tank/file").write_bytes(os.urandom(MIB))
        run("zpool", "sync", "tank")
        node.run()
        assert node.value("zfs_txgs_total", zpool=pool.name) > number
    assert node.value("zfs_txg_written_bytes_total", zpool="tank") >= 3 * MIB
    assert node.value("zfs_txg_seconds_total", zpool="tank", phase="sync") > 0


def test_the_arc_is_that_of_the_kernel(pool: Pool, node: Node) -> None:
    Path(f"/{pool.name}/file").write_bytes(os.urandom(20 * MIB))
    run("zpool", "sync", pool.name)
    node.run()
    size = next(
        int(line.split()[2])
        for line in Path("/proc/spl/kstat/zfs/arcstats").read_text().splitlines()
        if line.startswith("size ")
    )
    assert node.value("zfs_arc_size_bytes") == pytest.approx(size, rel=0.05)
    assert size >= 20 * MIB


def test_the_tools_are_those_of_the_module(pool: Pool, node: Node) -> None:
    node.run()
    tools, module = run("zfs", "version").split()
    versions = {"tools": tools.removeprefix("zfs-"), "module": module.removeprefix("zfs-kmod-")}
    assert node.value("zfs_version_info", **versions) == 1
    assert ("zfs-version-skew", "zfs") not in node.findings()
    assert node.value("zfs_pool_state", zpool=pool.name) == 1


# -- amplification --


def overwrite(path: Path) -> None:
    """Overwrite random blocks of a file, a few of them to each transaction group."""
    chance = random.Random(1)
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for number in range(1, WRITES + 1):
            os.pwrite(descriptor, os.urandom(BLOCK), chance.randrange(FILE // BLOCK) * BLOCK)
            if number % BATCH == 0:
                run("zpool", "sync", "tank")
    finally:
        os.close(descriptor)
    run("zpool", "sync", "tank")


def sectors(host: Host) -> int:
    """Return the sectors that were written to the pool's device."""
    device = blockdevices.kernel_name(host, "/dev/mapper/tank")
    return int(Path(f"/sys/class/block/{device}/stat").read_text().split()[6])


def amplified(record: str, pool: Pool, node: Node, layers: Node, clock: Clock) -> tuple[float, float]:
    """Return the amplification of random overwrites by writeamp's two counters, and by hand."""
    dataset = f"tank/r{record}"
    run("zfs", "create", "-o", f"recordsize={record}", dataset)
    path = Path(f"/{dataset}/file")
    with path.open("wb") as file:
        for _ in range(FILE // MIB):
            file.write(os.urandom(MIB))
    run("zpool", "sync", "tank")
    clock.now += float(zfs.Settings().properties_interval)
    pair = "logical_device_written_bytes_total", "logical_written_bytes_total"
    layers.run()
    before = [layers.value(name, source="zfs", device="tank") for name in pair]
    by_hand = sectors(node.runner.host), int(pool.objset(dataset)["nwritten"])
    node.run()
    overwrite(path)
    clock.now += zfs.WINDOW
    node.run()
    layers.run()
    reached, logical = (layers.value(name, source="zfs", device="tank") for name in pair)
    written = int(pool.objset(dataset)["nwritten"]) - by_hand[1]
    assert written == WRITES * BLOCK
    counted = (reached - before[0]) / (logical - before[1])
    return counted, (sectors(node.runner.host) - by_hand[0]) * 512 / written


@pytest.mark.vm(zfs=True, deadline=600)
def test_small_overwrites_cost_much_in_large_records_alone(pool: Pool, node: Node, layers: Node, clock: Clock) -> None:
    node.run()
    counted, by_hand = amplified("16K", pool, node, layers, clock)
    assert counted == pytest.approx(by_hand, rel=0.05)
    assert node.findings() == set()
    run("zfs", "destroy", "tank/r16K")
    run("zpool", "sync", "tank")
    small = counted
    counted, by_hand = amplified("128K", pool, node, layers, clock)
    assert counted == pytest.approx(by_hand, rel=0.05)
    assert counted > 4 * small
    assert node.findings() == {("zfs-recordsize-mismatch", "tank/r128K")}
    (found,) = node.runner.outcome.findings
    print(f"16K {small:.2f}, 128K {counted:.2f}: {found.explanation}")
    told = float(found.explanation.partition(" became ")[2].partition(" on its devices")[0])
    assert told == pytest.approx(by_hand, rel=0.05)
    assert "zfs set recordsize=4K tank/r128K" in found.remedy


# -- a pool that is suspended --


def test_a_suspended_pool_is_told_by_its_state_and_hangs_nothing(pool: Pool, node: Node, clock: Clock) -> None:
    run("zfs", "create", "tank/data")
    Path("/tank/data/file").write_bytes(os.urandom(MIB))
    node.run()
    pool.suspend()
    clock.now += 1000
    node.run()
    assert node.values("zfs_pool_state", zpool="tank", state="SUSPENDED") == [1]
    assert ("zfs-pool-suspended", "tank") in node.findings()
    assert node.value("zfs_dataset_written_bytes_total", dataset="tank/data") == MIB
    assert node.value("zfs_dataset_recordsize_bytes", dataset="tank/data") == 131072
    assert node.value("zfs_properties_age_seconds", zpool="tank") == 1000
    assert not node.runner.errors
    pool.resume()
    node.run()
    assert node.values("zfs_pool_state", zpool="tank", state="ONLINE") == [1]
    assert node.findings() == set()
    assert node.value("zfs_properties_age_seconds", zpool="tank") == 0


class Counting(Pages):
    """Counts how often each page is made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()

    def put(self, name: str, page: Page) -> None:
        super().put(name, page)
        self.made[name] += 1

    def tell(self, sample: str) -> bool:
        return sample in b"".join(self.members("text", gzip=False)).decode()


def test_other_collectors_stay_fresh_beside_a_suspended_pool(pool: Pool) -> None:
    pages, commands, prober = Counting(), HostCommands(), HelperProber()
    beside = zfs, writeamp, filesystem, pagecache
    plans = [
        replace(plan, interval=0.2, deadline=20.0)
        for plan in load(None, [module.COLLECTOR for module in beside], {}).plans
    ]
    scheduler = Scheduler(Host(prober=prober, commands=commands), Latches(None), pages, "node", None)
    try:
        scheduler.apply(plans)
        wait_until(lambda: pages.tell('ullage_zfs_pool_state{state="ONLINE",zpool="tank"} 1'), "no state was told")
        pool.suspend()
        wait_until(lambda: pages.tell('ullage_zfs_pool_state{state="SUSPENDED",zpool="tank"} 1'), "it was not told")
        before = pages.made.copy()
        wait_until(lambda: all(pages.made[plan.name] >= before[plan.name] + 3 for plan in plans), f"stale: {before}")
        assert not [name for name, worker in scheduler.workers.items() if worker.is_overdue]
        pool.resume()
        wait_until(lambda: pages.tell('ullage_zfs_pool_state{state="ONLINE",zpool="tank"} 1'), "it did not come back")
    finally:
        scheduler.stop(30)
        commands.close()
        prober.close()


# -- Docker --


def test_dockers_datasets_are_those_of_its_containers(pool: Pool, clock: Clock) -> None:
    run("zfs", "create", "tank/docker")
    with (
        tempfile.TemporaryDirectory(prefix="u-") as short,
        dockerd(Path(short), "zfs", Path("/tank/docker")) as docker,
    ):
        docker.import_image("busybox")
        docker.run("web", "dd if=/dev/zero of=/big bs=1M count=6; sync; exec sleep 600")
        node = Node(zfs.COLLECTOR, lambda start: zfs.Zfs(start, clock), Runtimes(docker_roots=(str(docker.root),)))

        def is_written() -> bool:
            node.run()
            return node.values("zfs_dataset_written_bytes_total", zpool=pool.name, container="web") >= [6 * MIB]

        wait_until(is_written, "the container's writes are not seen")
        assert node.value("zfs_dataset_used_bytes", container="web") > 0
        # Docker's own snapshots are no others'
        assert node.findings() == set()
        assert sum(node.values("zfs_dataset_snapshots")) > 0
        run("zfs", "snapshot", "-r", "tank/docker@autosnap_2026-11-25_02:38:43_hourly")
        run("zfs", "snapshot", "-r", "tank/docker@zfs-auto-snap_hourly-2026-11-25-0317")
        clock.now += 1000
        node.run()
        assert node.findings() == {("zfs-foreign-snapshots", "tank/docker")}
        (found,) = node.runner.outcome.findings
        assert "of zfs-auto-snapshot, sanoid" in found.explanation
        exclude, look = found.remedy.partition(". Give [")[0], re.search(r"\((zfs list .*?)\)", found.remedy)
        run("sh", "-ec", exclude)
        below = run("zfs", "get", "-H", "-r", "-t", "filesystem", "-o", "value", "com.sun:auto-snapshot", "tank/docker")
        assert set(below.split()) == {"false"}
        assert look is not None
        for line in run("sh", "-ec", look[1]).splitlines():
            name, holds = line.split("\t")
            if "@autosnap_" in name or "@zfs-auto-snap_" in name:
                assert holds == "0"
                run("zfs", "destroy", name)
        clock.now += 1000
        node.run()
        assert node.findings() == set()
        docker.docker("rm", "--force", "web")
        node.commands.close()
