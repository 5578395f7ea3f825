"""The zfs collector on trees; real pools are in tests/vm."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.collector import Start
from agent.finding import Found
from collectors import blockdevices
from collectors.readers import zfs
from collectors.zfs import COLLECTOR, FLOOR, WINDOW, WINDOW_MOST, Settings, Zfs
from tests.trees.node import TREES, Node
from tests.trees.tree import TreeCommands, host_of

LAYER = "c3" * 32
KSTATS = "proc/spl/kstat/zfs"
DATASETS = f"zfs list -Hpr -t filesystem,volume -o {zfs.DATASET_COLUMNS}"
SNAPSHOTS = f"zfs list -Hpr -t snapshot -o {zfs.SNAPSHOT_COLUMNS}"
MIB = 1 << 20


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Recorded:
    """The tree's commands, as they are when they are asked; keeps what was asked, and may let time go by."""

    def __init__(self, tree: Path, clock: Clock) -> None:
        self._tree, self._clock = tree, clock
        self.asked: list[str] = []
        self.takes = 0.0

    def run(self, root: str, argv: Sequence[str], deadline: float, subject: str) -> tuple[int, bytes]:
        self.asked.append(" ".join(argv))
        self._clock.now += self.takes
        return TreeCommands(self._tree).run(root, argv, deadline, subject)

    def close(self) -> None:
        """Nothing runs."""


class Pools:
    """Pools to be changed between two runs."""

    def __init__(self, case: str, workplace: Path, top: int) -> None:
        self.clock = Clock()

        def start(start: Start) -> Zfs:
            return Zfs(Start(start.host, Settings(top=top)), self.clock)

        self.node = Node(COLLECTOR, case, workplace, start=start)
        self.path = self.node.path
        self.commands = Recorded(self.path, self.clock)
        self.node.runner.host.commands = self.commands

    def run(self, seconds: float = 0.0) -> set[str]:
        """Do one run, so much later than the last; return the findings' ids."""
        self.clock.now += seconds
        self.page = self.node.run()
        return {finding for finding, _ in self.node.found()}

    def values(self, name: str, **labels: str) -> list[float]:
        samples = [each for family in text_string_to_metric_families(self.page) for each in family.samples]
        wanted = [each for each in samples if each.name == f"ullage_zfs_{name}"]
        return [each.value for each in wanted if labels.items() <= each.labels.items()]

    def found(self, finding: str) -> Found:
        (found,) = [each for (name, _), each in self.node.found().items() if name == finding]
        return found

    def write(self, path: str, text: str) -> None:
        target = self.path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def answer(self, command: str, answer: list[object] | str) -> None:
        path = self.path / "commands.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {command: answer}))

    def add(self, command: str, text: str) -> None:
        before = json.loads((self.path / "commands.json").read_text())[command]
        self.answer(command, [0, before[1] + text])

    def objset(self, dataset: str, *, writes: int, written: int) -> None:
        """Write the counters of a dataset of `tank`."""
        name = next(
            (path for path in (self.path / KSTATS / "tank").glob("objset-*") if f"   {dataset}\n" in path.read_text()),
            self.path / KSTATS / "tank" / f"objset-0x{0x1000 + len(dataset):x}",
        )
        rows = f"dataset_name 7    {dataset}\nwrites 4 {writes}\nnwritten 4 {written}\nreads 4 0\nnread 4 0\n"
        name.write_text(f"1 1\nname type data\n{rows}nunlinks 4 0\nnunlinked 4 0\n")

    def reached(self, size: int) -> None:
        """Have so many bytes written to the device of `tank`."""
        self.write("sys/class/block/dm-0/stat", f"0 0 0 0 0 0 {size // 512} 0 0 0 0\n")


Make = Callable[..., Pools]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda case="healthy", top=500: Pools(case, tmp_path, top)


# -- what the kernel says --


def test_a_suspended_pool_is_found_by_its_state_and_no_program_is_run_for_it(make: Make) -> None:
    pools = make("suspended")
    assert pools.run() == {"zfs-pool-suspended"}
    assert pools.values("pool_state", zpool="tank", state="SUSPENDED") == [1]
    assert pools.values("pool_state", zpool="backup", state="DEGRADED") == [1]
    assert "zpool clear tank" in pools.found("zfs-pool-suspended").remedy
    assert pools.commands.asked
    assert not [command for command in pools.commands.asked if command.endswith(" tank")]
    assert pools.values("dataset_written_bytes_total", dataset="tank/media") == [8388608]
    assert pools.values("dataset_used_bytes", zpool="backup", dataset="backup/received") == [4300800]
    assert not pools.node.runner.errors


def test_what_was_known_of_a_pool_stays_with_its_age_while_it_is_suspended(make: Make) -> None:
    pools = make()
    pools.run()
    pools.write(f"{KSTATS}/tank/state", "SUSPENDED\n")
    assert "zfs-pool-suspended" in pools.run(1000)
    assert pools.values("properties_age_seconds", zpool="tank") == [1000]
    assert pools.values("snapshots_age_seconds", zpool="tank") == [1000]
    assert pools.values("properties_age_seconds", zpool="backup") == [0]
    assert pools.values("dataset_recordsize_bytes", dataset="tank/postgres") == [16384]
    pools.write(f"{KSTATS}/tank/state", "ONLINE\n")
    assert "zfs-pool-suspended" not in pools.run()
    assert pools.values("properties_age_seconds", zpool="tank") == [0]


def test_unlinked_files_that_are_open_are_the_backlog(make: Make) -> None:
    pools = make()
    pools.run()
    assert pools.values("dataset_unlinked_backlog", dataset="tank/media") == [1]
    assert pools.values("dataset_unlinked_backlog", dataset="tank/postgres") == [0]


def test_transaction_groups_are_counted_once_from_our_start_on(make: Make) -> None:
    pools = make()
    pools.run()
    assert pools.values("txgs_total", zpool="tank") == [0]
    path = pools.path / KSTATS / "tank" / "txgs"
    open_line = path.read_text().splitlines()[-1]
    committed = "48 50251317017 C 0 0 4096 0 9 5000000000 1000000 2000000 3000000000\n"
    later = "49 55251317017 C 0 0 8192 0 9 1000000000 1000000 2000000 1000000000\n"
    path.write_text(path.read_text().replace(open_line + "\n", committed + later))
    for _ in range(2):
        pools.run()
        assert pools.values("txgs_total", zpool="tank") == [2]
        assert pools.values("txg_written_bytes_total", zpool="tank") == [12288]
        assert pools.values("txg_seconds_total", zpool="tank", phase="open") == [6]
        assert pools.values("txg_seconds_total", zpool="tank", phase="sync") == [4]


def test_of_two_datasets_with_one_name_the_younger_counts(make: Make) -> None:
    pools = make()
    text = "1 1\nname type data\ndataset_name 7 tank/same\nwrites 4 1\nnwritten 4 {}\n"
    pools.write(f"{KSTATS}/tank/objset-0xfff", text.format(1))
    pools.write(f"{KSTATS}/tank/objset-0x1000", text.format(2))
    pools.run()
    assert pools.values("dataset_written_bytes_total", dataset="tank/same") == [2]
    assert pools.values("dataset_reads_total", dataset="tank/same") == []


# -- what the host's programs say --


def test_programs_are_asked_of_each_pool_every_five_minutes(make: Make) -> None:
    pools = make()
    pools.run()
    first = len(pools.commands.asked)
    assert first == 7
    pools.run(299)
    assert len(pools.commands.asked) == first
    pools.run(1)
    assert len(pools.commands.asked) == 2 * first


def test_a_program_that_hangs_costs_its_pool_alone_and_five_minutes(make: Make) -> None:
    pools = make()
    pools.answer(f"{DATASETS} backup", "stuck")
    for _ in range(2):
        pools.run(30)
        assert pools.values("dataset_used_bytes", zpool="backup") == []
        assert pools.values("properties_age_seconds", zpool="backup") == []
        assert pools.values("dataset_used_bytes", dataset="tank/postgres") == [19750912]
        assert pools.values("dataset_written_bytes_total", dataset="backup/received") == [4194304]
        assert pools.node.runner.errors["stuck"] == 1
    assert f"{SNAPSHOTS} backup" not in pools.commands.asked


def test_when_programs_take_long_the_next_pool_has_its_turn_in_the_next_run(make: Make) -> None:
    pools = make()
    pools.commands.takes = 4.0
    pools.run()
    assert not [command for command in pools.commands.asked if command.endswith(" tank")]
    pools.run(30)
    assert [command for command in pools.commands.asked if command.endswith(" tank")]


def test_snapshots_that_are_not_listed_are_unknown_and_not_none(make: Make) -> None:
    pools = make()
    pools.answer(f"{SNAPSHOTS} tank", [1, ""])
    pools.run()
    assert pools.values("dataset_snapshots", zpool="tank") == []
    assert pools.values("dataset_holds", zpool="tank") == []
    assert pools.values("dataset_snapshots", dataset="backup") == [0]
    assert pools.values("dataset_recordsize_bytes", dataset="tank/postgres") == [16384]
    assert pools.node.runner.errors["failed"] == 1


def test_a_volume_has_no_recordsize_and_what_has_no_quota_none(make: Make) -> None:
    pools = make()
    pools.run()
    assert pools.values("dataset_properties_info", dataset="tank/vol1", type="volume") == [1]
    assert pools.values("dataset_recordsize_bytes", dataset="tank/vol1") == []
    assert pools.values("dataset_quota_bytes") == [64 * MIB]


def test_a_pool_that_is_gone_has_no_series(make: Make) -> None:
    pools = make()
    pools.run()
    for path in (pools.path / KSTATS / "tank").iterdir():
        path.unlink()
    pools.run()
    assert 'zpool="tank"' not in pools.page
    assert 'zpool="backup"' in pools.page


# -- whose and how many series --


def test_a_layer_is_that_of_its_container(make: Make) -> None:
    pools = make()
    pools.run()
    of_web = {"container": "web", "id": "9f" * 6}
    assert pools.values("dataset_written_bytes_total", **of_web) == [3145728]
    assert pools.values("dataset_used_bytes", **of_web) == [3219456]
    assert pools.values("dataset_used_bytes", dataset=f"tank/docker/{LAYER}", container="web") == [3219456]


def test_a_snapshot_of_containerds_is_that_of_its_container(make: Make) -> None:
    pools = make()
    pools.write(
        "proc/1/mountinfo",
        "50 31 0:50 / /run/containerd/io.containerd.runtime.v2.task/ci/job/rootfs rw - zfs tank/my\\040ctrd/12 rw\n",
    )
    pools.objset("tank/my ctrd/12", writes=1, written=7)
    pools.add(f"{DATASETS} tank", "tank/my ctrd/12\tfilesystem\t98304\t0\t131072\tstandard\toff\t0\n")
    pools.add(f"{SNAPSHOTS} tank", "tank/my ctrd/12@snapshot\t1795574323\t0\ntank/my ctrd/12@x\t1795574323\t0\n")
    pools.run()
    assert pools.values("dataset_written_bytes_total", container="job") == [7]
    assert pools.node.found()["zfs-foreign-snapshots", "tank/my ctrd"].explanation.startswith("1 snapshots of 1 layers")


def test_the_most_active_have_their_own_series_and_the_rest_is_summed(make: Make) -> None:
    pools = make(top=2)
    pools.run()
    own = [f"tank/{name}" for name in ("media", "postgres")]
    assert pools.values("dataset_written_bytes_total", zpool="tank", dataset="other") == [0]
    for dataset in own:
        assert len(pools.values("dataset_written_bytes_total", dataset=dataset)) == 1
    assert len(pools.values("dataset_written_bytes_total", zpool="tank")) == 3
    pools.objset("tank/quota", writes=33, written=2097152 + 1000)
    pools.objset("tank/new", writes=1, written=24)
    pools.run()
    assert pools.values("dataset_written_bytes_total", zpool="tank", dataset="other") == [1024]
    assert pools.values("dataset_writes_total", zpool="tank", dataset="other") == [2]
    assert sum(pools.values("dataset_snapshots", zpool="tank")) == 15
    assert sum(pools.values("dataset_holds", zpool="tank")) == 13
    assert pools.values("dataset_recordsize_bytes", dataset="other") == []


def test_who_has_series_keeps_them_until_another_does_a_quarter_more(make: Make) -> None:
    pools = make(top=1)
    pools.objset("tank/a", writes=1, written=100 * MIB)
    pools.run()
    assert pools.values("dataset_written_bytes_total", dataset="tank/a") == [100 * MIB]
    pools.objset("tank/bb", writes=1, written=124 * MIB)
    pools.run()
    assert pools.values("dataset_written_bytes_total", dataset="tank/bb") == []
    assert pools.values("dataset_written_bytes_total", dataset="other", zpool="tank") == [124 * MIB]
    pools.objset("tank/bb", writes=2, written=126 * MIB)
    pools.run()
    assert pools.values("dataset_written_bytes_total", dataset="tank/bb") == [126 * MIB]
    assert pools.values("dataset_written_bytes_total", dataset="other", zpool="tank") == [126 * MIB]


def test_a_pool_of_the_name_of_the_rest_is_not_taken_for_it(make: Make) -> None:
    pools = make()
    pools.write(f"{KSTATS}/other/state", "ONLINE\n")
    pools.write(f"{KSTATS}/other/objset-0x36", "1 1\nname type data\ndataset_name 7 other\nnwritten 4 5\n")
    pools.run()
    assert pools.values("dataset_written_bytes_total", zpool="other", dataset="other") == [0]
    assert not pools.node.runner.errors["duplicate"]


def test_names_are_anothers_input(make: Make) -> None:
    pools = make()
    name = "tank/a'; rm -rf $(x) \""
    pools.objset(name, writes=1, written=1)
    pools.add(f"{DATASETS} tank", f"{name}\tfilesystem\t1\t0\t131072\tdisabled\toff\t0\n")
    pools.run()
    assert pools.values("dataset_written_bytes_total", dataset=name) == [1]
    assert "'tank/a'\"'\"'; rm -rf $(x) \"'" in pools.found("zfs-sync-disabled").remedy


def test_no_dataset_at_all_is_no_setting() -> None:
    with pytest.raises(ValueError, match="a top of 1 or more"):
        Settings(top=0)


# -- hazards --


def test_datasets_without_sync_are_found_once_with_those_below(make: Make) -> None:
    pools = make()
    row = "{}\tfilesystem\t98304\t0\t131072\tdisabled\toff\t0\n"
    rows = "".join(map(row.format, ("tank/ci", "tank/ci/a", "tank/ci/a/b", "tank/cid")))
    pools.add(f"{DATASETS} tank", rows)
    pools.write("sys/module/zfs/parameters/zfs_txg_timeout", "30\n")
    pools.run()
    found = {target: each for (finding, target), each in pools.node.found().items() if finding == "zfs-sync-disabled"}
    assert set(found) == {"tank/ci", "tank/cid"}
    assert "as have 2 below it" in found["tank/ci"].explanation
    assert "up to 30 seconds" in found["tank/ci"].explanation


def test_snapshots_that_docker_did_not_take_of_its_layers_are_found(make: Make) -> None:
    pools = make()
    pools.run()
    found = pools.found("zfs-foreign-snapshots")
    assert found.target == "tank/docker"
    # those of the parent and of other datasets block nothing
    assert found.explanation.startswith("3 snapshots of 3 layers below tank/docker")
    assert "@weekly" in found.explanation
    text = json.loads((pools.path / "commands.json").read_text())[f"{SNAPSHOTS} tank"][1]
    own = [line for line in text.splitlines() if f"{LAYER}@" not in line and "5f5f@weekly" not in line]
    own = [line for line in own if "init@weekly" not in line]
    pools.answer(f"{SNAPSHOTS} tank", [0, "\n".join(own)])
    assert pools.run(300) == set()


@pytest.mark.parametrize(
    ("name", "tool", "way"),
    [
        ("autosnap_2026-11-25_02:38:43_hourly", "sanoid", "in sanoid.conf"),
        ("zfs-auto-snap_daily-2026-11-25-0238", "zfs-auto-snapshot", "com.sun:auto-snapshot=false tank/docker"),
        ("syncoid_host_2026-11-25:02:38:43", "syncoid", "--exclude-datasets=tank/docker"),
        ("1795574323", "something unknown", "what takes them"),
    ],
)
def test_the_tool_that_took_foreign_snapshots_is_named(make: Make, name: str, tool: str, way: str) -> None:
    pools = make()
    pools.answer(f"{SNAPSHOTS} tank", [0, f"tank/docker/{LAYER}@{name}\t1795574323\t0\n"])
    pools.run()
    assert f"but of {tool};" in pools.found("zfs-foreign-snapshots").explanation
    assert way in pools.found("zfs-foreign-snapshots").remedy


@pytest.mark.parametrize(
    ("tools", "found"),
    [
        ("zfs-2.3.2-1ubuntu1", set()),
        ("zfs-2.2.9-1", {"zfs-version-skew"}),
        ("zfs-2.3.2", set()),
        ("command not found", set()),
    ],
)
def test_tools_of_another_release_are_found(make: Make, tools: str, found: set[str]) -> None:
    pools = make("module-only")
    pools.answer("zfs version", [0, f"{tools}\nzfs-kmod-2.3.2-2~bpo12+2\n"])
    assert pools.run() == found


class Load:
    """Small writes to one dataset of `tank`, and what comes of them."""

    def __init__(self, pools: Pools, record: int) -> None:
        self.pools, self._writes, self._written, self._reached = pools, 0, 0, 0
        pools.answer(f"{DATASETS} tank", [0, f"tank/db\tfilesystem\t1\t0\t{record}\tstandard\toff\t0\n"])
        self.write(0)
        pools.run()

    def write(self, written: int, *, size: int = 4096, amplification: float = 0.0) -> None:
        self._writes += written // size
        self._written += written
        self._reached += int(written * amplification)
        self.pools.objset("tank/db", writes=self._writes, written=self._written)
        self.pools.reached(self._reached)

    def found(self, seconds: float) -> bool:
        return "zfs-recordsize-mismatch" in self.pools.run(seconds)


def test_small_writes_into_large_records_that_cost_much_are_found(make: Make) -> None:
    load = Load(make(), 131072)
    load.write(FLOOR, amplification=27.5)
    assert load.found(WINDOW)
    found = load.pools.found("zfs-recordsize-mismatch")
    assert found.target == "tank/db"
    assert "became 27.5 on its devices" in found.explanation
    assert "5 minutes" in found.explanation
    assert "of 4096 bytes on average into records of 128K" in found.explanation
    assert "zfs set recordsize=4K tank/db" in found.remedy
    assert "new files only" in found.remedy
    # it holds until the next window tells otherwise
    assert load.found(30)
    load.write(FLOOR, amplification=2.0)
    assert not load.found(WINDOW)


@pytest.mark.parametrize(
    ("record", "size", "amplification"),
    [
        (131072, 4096, 7.9),  # it costs little
        (131072, 65536, 27.5),  # the record is not far above
        (16384, 8192, 27.5),
        (4096, 512, 27.5),  # there is no smaller one to be had
    ],
)
def test_what_costs_little_or_fits_is_no_mismatch(make: Make, record: int, size: int, amplification: float) -> None:
    load = Load(make(), record)
    load.write(FLOOR, size=size, amplification=amplification)
    assert not load.found(WINDOW)


def test_a_window_needs_time_and_bytes_and_ends_without_them(make: Make) -> None:
    load = Load(make(), 131072)
    load.write(FLOOR, amplification=27.5)
    assert not load.found(WINDOW - 1)
    assert load.found(1)
    load.write(FLOOR - 4096, amplification=27.5)
    assert load.found(WINDOW)  # too little to tell: what was found stays for now
    assert not load.found(WINDOW_MOST - WINDOW)


def test_the_recommended_size_is_the_next_power_of_two(make: Make) -> None:
    load = Load(make(), 131072)
    load.write(FLOOR, size=5000, amplification=10)
    assert load.found(WINDOW)
    assert "recordsize=8K tank/db" in load.pools.found("zfs-recordsize-mismatch").remedy


def test_a_dataset_with_less_than_most_writes_is_not_blamed(make: Make) -> None:
    pools = make()
    load = Load(pools, 131072)
    load.write(FLOOR, amplification=27.5)
    pools.objset("tank/many", writes=FLOOR // 4096 + 1, written=FLOOR)
    pools.reached(40 * FLOOR)
    assert not load.found(WINDOW)


def test_a_pool_that_is_repaired_is_not_measured(make: Make) -> None:
    load = Load(make(), 131072)
    load.write(FLOOR, amplification=27.5)
    load.pools.write(f"{KSTATS}/tank/state", "DEGRADED\n")
    load.pools.run(WINDOW)
    load.pools.write(f"{KSTATS}/tank/state", "ONLINE\n")
    assert not load.found(1)
    assert not load.found(WINDOW_MOST)


def test_a_pool_on_a_file_is_not_measured(make: Make) -> None:
    pools = make()
    pools.answer("zpool list -vHPL -o name tank", [0, "tank\t1\n\t/dev/mapper/pd0\t1\n\t/srv/disk.img\t1\n"])
    load = Load(pools, 131072)
    load.write(FLOOR, amplification=27.5)
    assert not load.found(WINDOW)
    assert not pools.node.runner.errors


# -- readers --


def test_a_device_is_known_by_its_kernels_name(tmp_path: Path) -> None:
    host = host_of(TREES / "zfs" / "healthy", tmp_path)
    assert blockdevices.kernel_name(host, "/dev/mapper/pd1") == "dm-1"
    assert blockdevices.kernel_name(host, "/dev/mapper/gone") is None
    assert blockdevices.kernel_name(host, "/dev/sda1") == "sda1"
    assert blockdevices.kernel_name(host, "/srv/disk.img") is None


def test_transaction_groups_are_read_by_the_names_of_their_columns() -> None:
    head = b"txg birth state nwritten otime qtime wtime stime\n"
    assert zfs.parse_txgs(head + b"7 1 C 5 1 2 3 4\n8 1 S 0 0 0 0 0\n9 x\n") == [zfs.Txg(7, 5, 1, 2, 3, 4)]
    assert zfs.parse_txgs(b"txg state nwritten\n7 C 5\n") == []
    assert zfs.parse_txgs(b"") == []
    assert zfs.parse_txgs(b"txg " + head + b"7 7 1 C 5 1 2 3 4\n7 1 C 5 1 2 3\n") == [zfs.Txg(7, 5, 1, 2, 3, 4)]


def test_lines_that_make_no_sense_are_passed_over() -> None:
    assert zfs.parse_datasets(b"tank\tfilesystem\n\n") == {}
    assert list(zfs.parse_snapshots(b"tank\t1\t0\ntank@a\t-\t0\ntank@b c\t5\t1\n")) == [
        zfs.Snapshot("tank", "b c", 5, 1)
    ]
    assert zfs.parse_version(b"zfs-kmod-2.3.2\n") is None
    assert zfs.release("no") is None
