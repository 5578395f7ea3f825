"""The volumes collector on recorded trees, with an API of the test's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.collector import NoSettings, Running, Start
from agent.errors import Denied, Unsupported
from agent.host import Host
from collectors.readers.docker import Event, Volume
from collectors.readers.zpool_events import Snapshot
from collectors.volume_events import Change
from collectors.volumes import COLLECTOR, GROUPS, MISSING_FOR, RACE, Volumes, ask_zpool, races
from tests.trees.node import Node
from tests.trees.tree import TreeCommands
from tests.unit.test_volume_events import Daemon

CORPUS = Path(__file__).resolve().parents[1] / "fuzz" / "corpus"
ROOT = "var/lib/docker"
SECOND = 1_000_000_000


class Machine:
    """A recorded tree whose daemon, clock and ZFS are the test's."""

    def __init__(self, case: str, workplace: Path) -> None:
        self.daemon = Daemon()
        self.daemon.time = 1_795_000_000 * SECOND
        self.clock = 0.0
        self.zpool_events: bytes | None = None
        self.node = Node(COLLECTOR, case, workplace, self.start)
        self.table = self.node.path / "proc/1/mountinfo"

    def start(self, start: Start) -> Running:
        def zpool_events(_host: Host) -> bytes | None:
            return self.zpool_events

        return Volumes(start, lambda _socket: self.daemon, zpool_events, lambda: self.clock, self.daemon.now)

    def connect(self) -> None:
        """Have a socket: the next run finds the daemon."""
        (self.node.path / "run").mkdir()
        (self.node.path / "run/docker.sock").touch()

    def again(self) -> None:
        """Have the events since the last run told."""
        running = self.node.running
        assert isinstance(running, Volumes)
        (feed,) = running._feeds.values()
        feed._follow(self.daemon)

    def run(self) -> set[tuple[str, str]]:
        self.page = self.node.run()
        return set(self.node.found())

    def settled(self) -> set[tuple[str, str]]:
        """Run twice, far enough apart for what is missing to be told."""
        self.run()
        self.clock += MISSING_FOR
        return self.run()

    def unmount(self, name: str) -> None:
        lines = self.table.read_text().splitlines(keepends=True)
        self.table.write_text("".join(line for line in lines if f"/volumes/{name}/_data" not in line))

    def explanation(self, name: str) -> str:
        (found,) = [each for (_, target), each in self.node.found().items() if target == name]
        return found.explanation

    def close(self) -> None:
        self.node.running.close()


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Machine]:
    return lambda case: Machine(case, tmp_path)


Make = Callable[[str], Machine]
SCRATCH = {("volume-mount-missing", "scratch")}
SHARED = {("volume-mount-missing", "shared")}


def test_mounts_that_are_as_their_options_say_are_no_finding(make: Make) -> None:
    assert make("docker").settled() == set()


def test_a_mount_that_is_gone_under_a_container_is_found_until_it_is_back(make: Make) -> None:
    machine = make("docker")
    table = machine.table.read_text()
    machine.unmount("scratch")
    assert machine.run() == set()  # Docker may be about to stop the container
    machine.clock += MISSING_FOR
    assert machine.run() == SCRATCH
    found = machine.node.found()["volume-mount-missing", "scratch"]
    assert "nothing is mounted on its directory" in found.explanation
    assert "docker ps --quiet --filter volume=scratch" in found.remedy
    assert "/var/lib/docker/volumes/scratch/_data" in found.remedy
    machine.table.write_text(table)
    assert machine.run() == set()
    machine.unmount("scratch")
    assert machine.run() == set()


def test_a_volume_that_no_running_container_uses_needs_no_mount(make: Make) -> None:
    machine = make("docker")
    machine.unmount("scratch")
    (cgroup,) = machine.node.path.glob("proc/*/cgroup")
    cgroup.write_text("0::/user.slice\n")  # the process id is somebody else's now
    assert machine.settled() == set()
    cgroup.unlink()
    assert machine.settled() == set()


def test_a_container_that_docker_says_does_not_run_uses_nothing(make: Make) -> None:
    machine = make("docker")
    machine.unmount("scratch")
    assert machine.settled() == SCRATCH
    for path in machine.node.path.glob(f"{ROOT}/containers/*/config.v2.json"):
        config = json.loads(path.read_text())
        config["State"]["Running"] = False
        path.write_text(json.dumps(config))
    assert machine.run() == set()


@pytest.mark.parametrize(
    ("mount", "problem"),
    [
        ("0:44 / {} rw - ext4 /dev/sdb rw", "ext4 of /dev/sdb is mounted on its directory instead of tmpfs of tmpfs"),
        ("0:44 / {} rw - tmpfs other rw", "tmpfs of other is mounted on its directory instead of tmpfs of tmpfs"),
    ],
)
def test_another_filesystem_than_the_options_say_is_found(make: Make, mount: str, problem: str) -> None:
    machine = make("docker")
    machine.unmount("scratch")
    with machine.table.open("a") as file:
        file.write(f"900 65 {mount.format('/var/lib/docker/volumes/scratch/_data')}\n")
    assert machine.settled() == SCRATCH
    assert problem in machine.explanation("scratch")


def bind(machine: Machine, device: str, root: str, *others: str) -> None:
    """Have the volume `shared` bound from `device` by its options, and show `root` by the mount table."""
    options = {"MountType": "none", "MountOpts": "bind", "MountDevice": device}
    (machine.node.path / ROOT / "volumes/shared/opts.json").write_text(json.dumps(options))
    machine.unmount("shared")
    with machine.table.open("a") as file:
        for line in (*others, f"900 65 {root.format('/var/lib/docker/volumes/shared/_data')}"):
            file.write(f"{line}\n")


def test_a_bind_of_another_directory_is_found(make: Make) -> None:
    machine = make("docker")
    bind(machine, "/srv/shared", "254:0 /srv/other {} rw - ext4 /dev/vda rw")
    assert machine.settled() == SHARED
    assert "/srv/other of /dev/vda is mounted on its directory instead of /srv/shared" in machine.explanation("shared")


def test_a_bind_of_a_directory_that_was_removed_is_found(make: Make) -> None:
    machine = make("docker")
    bind(machine, "/srv/shared", "254:0 /srv/shared//deleted {} rw - ext4 /dev/vda rw")
    assert machine.settled() == SHARED


def test_a_bind_from_below_another_mount_and_from_a_subvolume_is_right(make: Make) -> None:
    machine = make("docker")
    other = "899 27 0:50 /@data /data rw - btrfs /dev/sdb rw"
    bind(machine, "/data/x/../in/", "0:50 /@data/in {} rw - btrfs /dev/sdb rw", other)
    assert machine.settled() == set()


def test_a_bind_from_a_whole_mount_is_right(make: Make) -> None:
    machine = make("docker")
    bind(machine, "/data", "0:50 / {} rw - xfs /dev/sdb rw", "899 27 0:50 / /data rw - xfs /dev/sdb rw")
    assert machine.settled() == set()


def test_a_bind_through_a_link_is_right(make: Make) -> None:
    machine = make("docker")
    (machine.node.path / "srv").mkdir()
    (machine.node.path / "srv/link").symlink_to("/srv/shared")
    bind(machine, "/srv/link", "254:0 /srv/shared {} rw - ext4 /dev/vda rw")
    assert machine.settled() == set()


def test_no_bind_is_judged_by_a_look_that_may_hang(make: Make) -> None:
    machine = make("docker")
    (machine.node.path / "net").mkdir()
    other = "899 27 0:51 / /net rw - nfs4 server:/ rw"
    bind(machine, "/net/link", "254:0 /srv/shared {} rw - ext4 /dev/vda rw", other)
    assert machine.settled() == set()
    assert not machine.node.runner.errors["stuck"]


@pytest.mark.parametrize(
    ("kind", "device", "mounted"),
    [
        ("nfs", ":/export/data", "nfs4 :/export/data"),
        ("nfs", "server:/export/", "nfs server:/export"),
        ("cifs", "//server/share", "smb3 //server/share"),
        ("fuse", "sshfs#x", "fuse.sshfs sshfs#x"),
        ("ext4", "/dev/disk/by-label/x", "ext4 /dev/sdb1"),
        ("tmpfs", "", "tmpfs none"),
    ],
)
def test_what_the_kernel_calls_otherwise_is_the_same(make: Make, kind: str, device: str, mounted: str) -> None:
    machine = make("docker")
    (machine.node.path / "dev/disk/by-label").mkdir(parents=True)
    (machine.node.path / "dev/disk/by-label/x").symlink_to("../../sdb1")
    options = {"MountType": kind, "MountOpts": "rw", "MountDevice": device}
    (machine.node.path / ROOT / "volumes/scratch/opts.json").write_text(json.dumps(options))
    machine.unmount("scratch")
    with machine.table.open("a") as file:
        file.write(f"900 65 0:60 / /var/lib/docker/volumes/scratch/_data rw - {mounted} rw\n")
    assert machine.settled() == set()


def test_docker_tells_volumes_of_plugins_too(make: Make) -> None:
    machine = make("docker")
    machine.connect()
    for name in ("a", "b"):
        machine.daemon.there[name] = {"Name": name, "Driver": "local", "Mountpoint": f"/{ROOT}/volumes/{name}/_data"}
    machine.daemon.there["far"] = {"Name": "far", "Driver": "rexray/ebs", "Mountpoint": ""}
    machine.run()
    assert 'ullage_volumes{driver="local",filesystem="ext4"} 2\n' in machine.page
    assert 'ullage_volumes{driver="rexray/ebs",filesystem=""} 1\n' in machine.page
    assert "ullage_volume_events_connected 1\n" in machine.page
    machine.close()


def test_the_daemons_own_root_is_learnt_from_its_volumes(make: Make) -> None:
    machine = make("docker")
    elsewhere = machine.node.path / "elsewhere"
    (machine.node.path / ROOT).rename(elsewhere)
    machine.table.write_text(machine.table.read_text().replace("/var/lib/docker", "/elsewhere"))
    machine.unmount("scratch")
    machine.connect()
    options = {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}
    point = "/elsewhere/volumes/scratch/_data"
    machine.daemon.there["scratch"] = {"Name": "scratch", "Driver": "local", "Mountpoint": point, "Options": options}
    assert machine.settled() == SCRATCH
    machine.close()


def test_names_are_an_attackers_input(make: Make) -> None:
    machine = make("docker")
    name = "a; rm -rf {x}\n\"'$(id)\\"
    volumes = machine.node.path / ROOT / "volumes"
    (volumes / "scratch").rename(volumes / name)
    machine.unmount("scratch")
    for path in machine.node.path.glob(f"{ROOT}/containers/*/config.v2.json"):
        path.write_text(path.read_text().replace('"scratch"', json.dumps(name)))
    assert machine.settled() == {("volume-mount-missing", name)}
    (found,) = machine.node.found().values()
    assert """volume='a; rm -rf {x}\n"'"'"'$(id)\\'""" in found.remedy


def test_series_are_bounded_and_their_sum_stays_right(make: Make) -> None:
    machine = make("docker")
    machine.connect()
    for number in range(500):
        machine.daemon.there[f"v{number}"] = {"Name": f"v{number}", "Driver": f"d{number}", "Mountpoint": ""}
    machine.run()
    values = [int(line.rpartition(" ")[2]) for line in machine.page.splitlines() if line.startswith("ullage_volumes{")]
    assert (len(values), sum(values)) == (GROUPS, 500)
    machine.close()


def test_without_docker_it_says_so_and_is_silent(make: Make) -> None:
    machine = make("docker")
    (machine.node.path / ROOT).rename(machine.node.path / "elsewhere")
    assert machine.run() == set()
    assert machine.page == ""
    reason = machine.node.runner.outcome.reason
    assert reason == "there is neither Docker's socket nor its directory of volumes"
    assert not machine.node.runner.errors


class ForRootAlone(Host):
    """Lists no directory."""

    def names(self, path: str) -> list[str]:
        raise Denied(path)


def test_without_root_it_says_so(make: Make) -> None:
    machine = make("docker")
    root = str(machine.node.path)
    host = ForRootAlone(f"{root}/proc", f"{root}/sys", root, f"{root}/dev")
    with pytest.raises(Unsupported, match="for root alone"):
        list(machine.node.running.collect(host))


def change(time: int, action: Any = "destroy", name: str = "db") -> Change:
    return Change(Event(time, action, name), Volume(name, "local"))


def test_races_are_pairs_on_one_dataset_within_half_a_second() -> None:
    first, second = Snapshot(10 * SECOND, "tank/db@a"), Snapshot(10 * SECOND + RACE, "tank/db@b")
    parent = Snapshot(10 * SECOND, "tank@a")
    near, far = change(10 * SECOND), change(10 * SECOND - 1)
    found = races([first, second, parent], [(near, "tank/db"), (far, "tank/db"), (near, "tank/other")])
    assert [(race.change, race.snapshot) for race in found] == [(near, first), (near, second), (far, first)]


def zpool_event(time: int, name: str) -> bytes:
    text = (CORPUS / "zpool_events/snapshots.txt").read_text().split("\n\n")[0]
    stamp = f"time = 0x{time // SECOND:x} 0x{time % SECOND:x} "
    return text.replace("time = 0x6b04c9ac 0x51740a3 ", stamp).replace("tank/r128k@s1", name).encode() + b"\n\n"


def test_a_snapshot_that_races_with_a_destroy_is_told_once_and_for_a_while(make: Make) -> None:
    machine = make("zfs")
    machine.connect()
    machine.daemon.there["db"] = {"Name": "db", "Driver": "local", "Mountpoint": "/d/zfs/volumes/db/_data"}
    assert machine.run() == set()
    machine.daemon.destroy("db")
    machine.again()
    at = machine.daemon.time
    snapshot = "dpool/docker@zfs-auto-snap_hourly-2026-11-25-0300"
    machine.zpool_events = (
        zpool_event(at - 20_000_000, snapshot)
        + zpool_event(at - 20_000_000, "dpool@zfs-auto-snap_hourly-2026-11-25-0300")
        + zpool_event(at - 2 * SECOND, "dpool/docker@early")
    )
    expected = {("volume-snapshot-race", f"db {snapshot}")}
    for _ in range(3):
        assert machine.run() == expected
    (found,) = machine.node.found().values()
    assert "was taken 20 ms before the volume db was destroyed" in found.explanation
    assert "zfs hold ullage dpool/docker@before-change" in found.remedy
    assert f"zfs hold ullage {snapshot}" in found.remedy
    machine.daemon.time += 601 * SECOND
    assert machine.run() == set()
    machine.close()


def test_the_hosts_own_zpool_is_asked_and_may_fail(make: Make) -> None:
    machine = make("zfs")
    machine.connect()
    running = machine.node.running
    assert isinstance(running, Volumes)
    running.zpool_events = ask_zpool
    machine.run()
    machine.daemon.create("db")
    machine.daemon.there["db"]["Mountpoint"] = "/d/zfs/volumes/db/_data"
    machine.again()
    assert machine.run() == set()
    assert set(machine.node.runner.errors) == {"vanished"}  # there is no zpool
    text = zpool_event(machine.daemon.time, "dpool/docker@s").decode()
    for code, expected in ((1, set()), (0, {("volume-snapshot-race", "db dpool/docker@s")})):
        answers = {"zpool events -v -H": [code, text]}
        (machine.node.path / "commands.json").write_text(json.dumps(answers))
        machine.node.runner.host.commands = TreeCommands(machine.node.path)
        assert machine.run() == expected
    machine.close()


def test_a_volume_that_is_a_dataset_of_its_own_is_known_by_its_options(make: Make) -> None:
    machine = make("zfs")
    machine.connect()
    machine.run()
    options = {"type": "zfs", "device": "dpool/ds"}
    machine.daemon.create("ds")
    machine.daemon.there["ds"]["Options"] = options
    machine.again()
    machine.zpool_events = zpool_event(machine.daemon.time, "dpool/ds@s") + zpool_event(machine.daemon.time, "dpool@s")
    assert machine.run() == {("volume-snapshot-race", "ds dpool/ds@s")}
    machine.close()


def test_zfs_is_not_asked_for_volumes_that_lie_elsewhere(make: Make) -> None:
    machine = make("docker")
    machine.connect()
    machine.run()
    machine.daemon.create("db")
    machine.again()
    asked = []
    running = machine.node.running
    assert isinstance(running, Volumes)
    running.zpool_events = lambda _host: asked.append(1) or b""  # type: ignore[func-returns-value]
    machine.run()
    assert asked == []
    machine.close()


def test_the_state_outlives_the_agent(tmp_path: Path, make: Make) -> None:
    machine = make("docker")
    machine.connect()
    host = machine.node.runner.host
    start = Start(host, NoSettings(), tmp_path / "state")
    machine.node.running = machine.start(start)
    machine.daemon.create("a")
    machine.run()
    machine.close()
    machine.daemon.destroy("a")
    machine.daemon.create("b")
    machine.node.running = machine.start(start)
    machine.run()
    assert 'ullage_volume_events_total{action="destroy"} 1\n' in machine.page
    assert 'ullage_volume_events_total{action="create"} 1\n' in machine.page
    assert "ullage_volume_events_missed_total 0\n" in machine.page
    machine.close()
