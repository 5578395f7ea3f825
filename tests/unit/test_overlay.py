"""The overlay collector on recorded trees, with a Docker daemon, types of entries and a clock of the test's own."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.collector import NoSettings, Running, Start
from agent.errors import Denied, Failed, Stuck, Unsupported
from agent.host import Host
from collectors.dockerinfo import ASK_EVERY, RETRY_EVERY, Informant
from collectors.overlay import COLLECTOR, Overlays
from collectors.rootfs import MISSING_FOR
from tests.trees.node import Node
from tests.unit.test_volume_events import Daemon

ROOT = "var/lib/docker"
INFO = {
    "DockerRootDir": "/var/lib/docker",
    "Driver": "overlay2",
    "DriverStatus": [["Backing Filesystem", "extfs"], ["Native Overlay Diff", "true"]],
    "ServerVersion": "20.10.24+dfsg1",
}
CONTAINERD = INFO | {
    "Driver": "overlayfs",
    "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
    "ServerVersion": "29.0.0",
}


class Informer(Daemon):
    """A daemon that tells of itself, refuses to, or hangs until `wake` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.told: Any = INFO
        self.asked = 0
        self.wake = threading.Event()
        self.wake.set()

    def version(self) -> Any:
        return {"Components": [{"Name": "containerd", "Version": "1.7.27"}]}

    def info(self) -> Any:
        self.asked += 1
        self.wake.wait(60)
        if isinstance(self.told, Exception):
            raise self.told
        return self.told


class Machine:
    """A recorded tree; `types` are those of all directories, the real ones if it is None."""

    def __init__(self, case: str, workplace: Path) -> None:
        self.daemon = Informer()
        self.clock = 0.0
        self.types: dict[bytes, int] | None = None
        self.node = Node(COLLECTOR, case, workplace, self.start)
        self.path = self.node.path
        self.table = self.path / "proc/1/mountinfo"

    def start(self, start: Start) -> Running:
        made = Overlays(start, lambda _socket: self.daemon, clock=lambda: self.clock)
        read = made.types.read

        def types(path: str) -> Mapping[bytes, int]:
            return read(path) if self.types is None else self.types

        made.types.read = types
        return made

    def connect(self) -> None:
        """Have a socket: the next run finds the daemon."""
        (self.path / "run").mkdir(exist_ok=True)
        (self.path / "run/docker.sock").touch()

    def run(self) -> set[tuple[str, str]]:
        self.page = self.node.run()
        return {(name, target.rpartition("/")[2]) for name, target in self.node.found()}

    def settled(self) -> set[tuple[str, str]]:
        """Run twice, far enough apart for what is missing to be told."""
        self.run()
        self.clock += MISSING_FOR
        return self.run()

    def found(self, name: str) -> list[str]:
        """Return the targets of a finding."""
        return [target for found, target in self.node.found() if found == name]

    def texts(self, name: str) -> tuple[str, str]:
        (found,) = [each for (each_name, _), each in self.node.found().items() if each_name == name]
        return found.explanation, found.remedy

    def sample(self, start: str) -> float:
        (line,) = [line for line in self.page.splitlines() if line.startswith(start)]
        return float(line.rpartition(" ")[2])

    def edit(self, old: str, new: str) -> None:
        text = self.table.read_text()
        assert old in text
        self.table.write_text(text.replace(old, new))

    def write(self, path: str, text: str) -> None:
        (self.path / path).parent.mkdir(parents=True, exist_ok=True)
        (self.path / path).write_text(text)

    def parameter(self, **values: str) -> None:
        for name, value in values.items():
            self.write(f"sys/module/overlay/parameters/{name}", value + "\n")


Make = Callable[[str], Machine]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Machine] = []

    def make_one(case: str) -> Machine:
        made.append(Machine(case, tmp_path))
        return made[-1]

    yield make_one
    for each in made:
        each.daemon.wake.set()
        each.node.running.close()


# mounts


def test_a_deep_chain_is_found_and_how_to_make_it_flat(make: Make) -> None:
    machine = make("docker")
    machine.run()
    assert len(machine.found("overlay-deep-chain")) == 1
    explanation, remedy = machine.texts("overlay-deep-chain")
    assert "The container deep stands on 113 layers" in explanation
    assert "docker export deep | docker import --change 'CMD [\"COMMAND\"]' - NAME" in remedy


def test_109_layers_are_no_finding_yet_and_110_are(make: Make) -> None:
    machine = make("docker")
    line = next(line for line in machine.table.read_text().splitlines() if "lowerdir=l/" in line)
    layers = line.partition("lowerdir=")[2].partition(",")[0]
    machine.edit(layers, ":".join(layers.split(":")[:109]))
    machine.run()
    assert machine.found("overlay-deep-chain") == []
    machine.edit(":".join(layers.split(":")[:109]), ":".join(layers.split(":")[:110]))
    machine.run()
    assert len(machine.found("overlay-deep-chain")) == 1


def test_an_upper_of_two_mounts_is_found_and_a_bind_of_one_is_none(make: Make) -> None:
    machine = make("options")
    machine.run()
    assert machine.found("overlay-shared-upper") == ["/srv/overlay/u-plain"]
    explanation, remedy = machine.texts("overlay-shared-upper")
    assert "2 overlay mounts at once (/srv/overlay/m-plain, /srv/overlay/m-again)" in explanation
    assert "umount /srv/overlay/m-again" in remedy
    text = machine.table.read_text()
    machine.table.write_text("".join(line for line in text.splitlines(keepends=True) if "/m-again " not in line))
    machine.run()
    assert machine.found("overlay-shared-upper") == []


def test_an_upper_of_two_mounts_is_found_by_whatever_path_it_goes(make: Make) -> None:
    machine = make("options")
    (machine.path / "srv/link").symlink_to("overlay")
    machine.edit("/srv/overlay/u-plain,workdir=/srv/overlay/w-again", "/srv/link/u-plain,workdir=/srv/overlay/w-again")
    machine.run()
    assert machine.found("overlay-shared-upper") == ["/srv/overlay/u-plain"]
    (machine.path / "srv/link").unlink()
    (machine.path / "srv/bound/u-plain").mkdir(parents=True)
    machine.edit("/srv/link/u-plain", "/srv/bound/u-plain")
    machine.run()
    assert machine.found("overlay-shared-upper") == []
    machine.table.write_text(machine.table.read_text() + "900 27 0:102 / /srv/bound rw - tmpfs scratch rw\n")
    machine.run()
    assert machine.found("overlay-shared-upper") == ["/srv/overlay/u-plain"]


def test_equal_paths_that_are_nothing_here_are_those_of_other_roots(make: Make) -> None:
    machine = make("options")
    shutil.rmtree(machine.path / "srv/overlay/u-plain")
    machine.run()
    assert machine.found("overlay-shared-upper") == []


@pytest.mark.parametrize(
    ("option", "follow", "lost"),
    [
        ("metacopy=on", "Y", "cannot be read"),
        ("redirect_dir=on,metacopy=on", "Y", "cannot be read"),
        ("redirect_dir=on", "N", "cannot be opened"),
    ],
)
def test_what_docker_mounted_with_an_option_that_is_off_now_is_found(
    make: Make, option: str, follow: str, lost: str
) -> None:
    machine = make("docker")
    machine.parameter(redirect_always_follow=follow)
    machine.run()
    assert machine.found("overlay-metacopy-redirect") == []
    text = machine.table.read_text()
    machine.table.write_text(text.replace("/work\n", f"/work,{option}\n", 1))
    machine.run()
    (target,) = machine.found("overlay-metacopy-redirect")
    assert target.startswith("/var/lib/docker/overlay2/")
    explanation, remedy = machine.texts("overlay-metacopy-redirect")
    assert lost in explanation
    name = "metacopy" if "metacopy" in option else "redirect_dir"
    assert f"echo Y > /sys/module/overlay/parameters/{name}" in remedy


def test_redirects_that_are_followed_anyway_are_no_hazard(make: Make) -> None:
    machine = make("docker")
    machine.edit("/work\n", "/work,redirect_dir=on\n")
    machine.run()
    assert machine.found("overlay-metacopy-redirect") == []


def test_metacopy_by_the_parameter_as_it_still_is_is_no_hazard(make: Make) -> None:
    machine = make("docker")
    machine.parameter(metacopy="Y")
    machine.edit("/work\n", "/work,redirect_dir=on\n")  # as 6.18 shows it
    machine.run()
    assert machine.found("overlay-metacopy-redirect") == []


def test_containers_of_one_store_with_and_without_metacopy_are_found(make: Make) -> None:
    machine = make("cri-o")
    machine.run()
    assert machine.found("overlay-metacopy-redirect") == ["/var/lib/containers/storage/overlay metacopy"]
    machine.edit(",redirect_dir=on,metacopy=on,volatile", "")
    machine.run()
    assert machine.found("overlay-metacopy-redirect") == []


def test_a_native_diff_that_the_module_takes_from_docker_is_found(make: Make) -> None:
    machine = make("docker")
    machine.daemon.told = INFO | {"DriverStatus": [["Native Overlay Diff", "false"]]}
    machine.connect()
    machine.run()
    assert machine.found("overlay-metacopy-redirect") == []  # the module is not why
    machine.parameter(redirect_dir="Y")
    machine.run()
    assert machine.found("overlay-metacopy-redirect") == ["/var/lib/docker/overlay2"]
    assert "echo N > /sys/module/overlay/parameters/redirect_dir" in machine.texts("overlay-metacopy-redirect")[1]


def test_a_container_that_nobody_names_has_its_id(make: Make) -> None:
    machine = make("docker")
    shutil.rmtree(machine.path / ROOT / "containers")
    machine.run()
    assert 'ullage_container_overlay_lowers{container="",id="b3be0f8999d1",namespace="",pod=""} 2' in machine.page


def test_a_mount_that_is_no_containers_root_has_no_series_of_one(make: Make) -> None:
    machine = make("cri-o")
    shutil.rmtree(machine.path / "var/lib/containers/storage/overlay-containers")
    machine.run()
    assert "ullage_container_overlay_lowers" not in machine.page
    assert 'ullage_overlay_mounts{option="metacopy",value="on"} 1' in machine.page


def test_an_upper_elsewhere_is_on_that_filesystem(make: Make) -> None:
    machine = make("docker")
    machine.table.write_text(
        machine.table.read_text() + "900 42 8:1 / /var/lib/docker/overlay2 rw - xfs /dev/sda1 rw\n"
    )
    # it hides the overlay mounts below it, which are mounts all the same
    machine.run()
    assert 'fstype="xfs",id="b3be0f8999d1",mountpoint="/var/lib/docker/overlay2"' in machine.page


# stores


def test_a_filesystem_without_types_is_found_where_overlays_are(make: Make) -> None:
    machine = make("docker")
    machine.types = {b"l": 0, b"x": 0}
    machine.run()
    assert machine.sample("ullage_filesystem_d_type_supported") == 0
    assert machine.found("overlay-no-dtype") == ["/"]
    explanation, remedy = machine.texts("overlay-no-dtype")
    assert "(overlay2) lies on / (ext4)" in explanation
    assert "tune2fs -O filetype /dev/vda; e2fsck -fy /dev/vda" in remedy


def test_a_filesystem_without_types_is_no_hazard_for_copies(make: Make) -> None:
    machine = make("docker-vfs")
    machine.types = {b"dir": 0}
    machine.run()
    assert machine.sample("ullage_filesystem_d_type_supported") == 0
    assert machine.found("overlay-no-dtype") == []


def test_where_no_entry_tells_nothing_is_said_of_types(make: Make) -> None:
    machine = make("docker")
    machine.types = {}
    machine.run()
    assert "d_type_supported" not in machine.page
    assert "ullage_storage_driver_info" in machine.page


def test_a_filesystem_that_we_do_not_reach_is_not_told_of(make: Make) -> None:
    machine = make("docker")
    machine.types = {b"x": 0}
    machine.table.write_text(machine.table.read_text() + "900 42 8:1 / /var/lib/docker rw - xfs /dev/sda1 rw\n")
    machine.run()
    assert "d_type_supported" not in machine.page
    assert machine.node.runner.errors == {"unreachable": 1}
    own = machine.path / "proc/self/mountinfo"
    own.write_text(own.read_text() + f"900 42 8:1 / {machine.path}/var/lib/docker rw - xfs /dev/sda1 rw\n")
    machine.run()
    assert machine.sample("ullage_filesystem_d_type_supported") == 0


def test_vfs_is_found_while_it_has_layers(make: Make) -> None:
    machine = make("docker-vfs")
    assert machine.run() == {("vfs-driver-in-use", "vfs")}
    assert "docker image ls --format '{{.Repository}}:{{.Tag}}'" in machine.texts("vfs-driver-in-use")[1]
    shutil.rmtree(machine.path / ROOT / "image/vfs/layerdb")
    assert machine.run() == set()


def test_the_native_snapshotter_is_found_while_it_has_snapshots(make: Make) -> None:
    machine = make("containerd")
    assert machine.run() == set()
    machine.write("var/lib/containerd/io.containerd.snapshotter.v1.native/metadata.db", "")
    assert machine.run() == {("vfs-driver-in-use", "io.containerd.snapshotter.v1.native")}


def test_what_is_left_of_another_driver_is_told_on_the_daemons_word_alone(make: Make) -> None:
    machine = make("docker")
    (machine.path / ROOT / "image/vfs/layerdb/sha256").mkdir(parents=True)
    machine.run()
    assert 'driver="overlay2"' in machine.page  # the other one is empty
    for name, size in (("a", "1048576"), ("b", "524288")):
        machine.write(f"{ROOT}/image/vfs/layerdb/sha256/{name}/size", size)
    machine.run()
    assert 'driver="overlay2"' in machine.page  # containers are mounted there
    assert machine.found("stale-driver-residue") == []
    machine.connect()
    machine.run()
    assert machine.found("stale-driver-residue") == ["/var/lib/docker/vfs"]
    explanation, remedy = machine.texts("stale-driver-residue")
    assert "holds 2 layers of Docker's storage driver vfs, 1.5 MiB by Docker's own count" in explanation
    assert "docker info --format '{{.Driver}}' says overlay2" in remedy
    assert "rm -r /var/lib/docker/image/vfs /var/lib/docker/vfs" in remedy


def test_two_drivers_without_a_word_and_without_mounts_are_no_driver(make: Make) -> None:
    machine = make("docker-vfs")
    machine.write(f"{ROOT}/image/overlay2/layerdb/sha256/a/size", "1")
    assert machine.run() == set()
    assert "ullage_storage_driver_info" not in machine.page


@pytest.mark.parametrize(
    ("config", "is_used"),
    [
        ("{}", True),
        ('{"storage-driver": "vfs"}', True),
        ('{"storage-driver": "overlay2"}', False),
        ('{"features": {"containerd-snapshotter": true}}', False),
        ('{"features": {"containerd-snapshotter": false}}', True),
    ],
)
def test_a_driver_that_the_configuration_rules_out_is_not_in_use(config: str, *, is_used: bool, make: Make) -> None:
    machine = make("docker-vfs")
    machine.write("etc/docker/daemon.json", config)
    machine.run()
    assert ('ullage_storage_driver_info{backing_filesystem="ext4",driver="vfs"' in machine.page) == is_used


def test_the_store_of_containerd_is_dockers_when_it_says_so(make: Make) -> None:
    machine = make("docker")
    machine.daemon.told = CONTAINERD
    store = f"{ROOT}/containerd/daemon/io.containerd.snapshotter.v1.overlayfs"
    machine.write(f"{store}/metadata.db", "")
    machine.connect()
    machine.run()
    assert f'driver="overlayfs",runtime="docker",store="/{store}",version="29.0.0"' in machine.page
    assert machine.found("stale-driver-residue") == ["/var/lib/docker/overlay2"]
    assert machine.found("daemon-options-unknown") == []  # nobody reads them then


def test_a_system_containerd_that_docker_uses_is_told_once(make: Make) -> None:
    machine = make("containerd")
    machine.daemon.told = CONTAINERD
    machine.connect()
    machine.run()
    lines = [line for line in machine.page.splitlines() if line.startswith("ullage_storage_driver_info")]
    assert len(lines) == 1
    assert 'runtime="docker"' in lines[0]


@pytest.mark.parametrize(
    ("also", "version"),
    [
        ((), "1.7.27"),
        (("run/k3s/containerd/containerd.sock",), ""),
        ((f"{ROOT}/containerd/daemon/io.containerd.metadata.v1.bolt/meta.db",), ""),
    ],
    ids=["one", "two", "docker has its own"],
)
def test_the_version_of_containerd_is_dockers_word_where_it_can_mean_no_other(
    also: tuple[str, ...], version: str, make: Make
) -> None:
    machine = make("containerd")
    for path in ("run/containerd/containerd.sock", *also):
        machine.write(path, "")
    machine.connect()
    machine.run()
    (line,) = [line for line in machine.page.splitlines() if 'runtime="containerd"' in line]
    assert f'version="{version}"' in line


def test_the_data_root_is_where_the_configuration_says(make: Make) -> None:
    machine = make("docker-vfs")
    (machine.path / "data").mkdir()
    (machine.path / ROOT).rename(machine.path / "data/docker")
    machine.write("etc/docker/daemon.json", '{"data-root": "/data/docker"}')
    assert machine.run() == {("vfs-driver-in-use", "vfs")}
    assert 'store="/data/docker/vfs"' in machine.page


def test_the_data_root_is_where_docker_says(make: Make) -> None:
    machine = make("docker-vfs")
    (machine.path / "data").mkdir()
    (machine.path / ROOT).rename(machine.path / "data/docker")
    machine.daemon.told = INFO | {"DockerRootDir": "/data/docker", "Driver": "vfs"}
    machine.connect()
    assert machine.run() == {("vfs-driver-in-use", "vfs")}
    assert 'store="/data/docker/vfs"' in machine.page


def test_podman_behind_dockers_socket_is_not_taken_for_docker(make: Make) -> None:
    machine = make("cri-o")
    machine.daemon.told = INFO | {
        "DockerRootDir": "/var/lib/containers/storage",
        "Driver": "overlay",
        "ServerVersion": "4.3.1",
    }
    machine.connect()
    machine.run()
    (line,) = [line for line in machine.page.splitlines() if line.startswith("ullage_storage_driver_info")]
    assert 'driver="overlay",runtime="containers_storage"' in line
    assert 'version="4.3.1"' in line


def test_two_mounts_at_one_point_are_two(make: Make) -> None:
    machine = make("docker")
    (line,) = [line for line in machine.table.read_text().splitlines() if "lowerdir=/var" in line]
    words = line.split(" ")
    words[:3] = "900", words[0], "0:900"
    machine.table.write_text(machine.table.read_text() + " ".join(words) + "\n")
    machine.run()
    assert 'ullage_overlay_mounts{option="metacopy",value="off"} 3' in machine.page
    assert machine.node.runner.errors == {}


# Docker's options


def test_options_that_stop_docker_are_found(make: Make) -> None:
    machine = make("docker")
    machine.run()
    assert machine.found("daemon-options-unknown") == [
        "/etc/docker/daemon.json overlay2.override_kernel_check",
        "/etc/docker/daemon.json overlay2.min_space",
        "/etc/docker/daemon.json overlay2.hysteresis",
    ]
    machine.connect()
    machine.run()  # Docker 20.10 takes the first one
    assert machine.found("daemon-options-unknown") == [
        "/etc/docker/daemon.json overlay2.min_space",
        "/etc/docker/daemon.json overlay2.hysteresis",
    ]


@pytest.mark.parametrize(
    "config",
    [
        '{"storage-driver": "overlay2", "storage-opts": ["overlay2.size=10G"]}',
        '{"features": {"containerd-snapshotter": true}, "storage-opts": ["overlay2.min_space=10GB"]}',
        '{"storage-opts": "overlay2.min_space=10GB"}',
        "{}",
    ],
)
def test_options_that_stop_nothing_are_not_found(make: Make, config: str) -> None:
    machine = make("docker")
    machine.write("etc/docker/daemon.json", config)
    machine.run()
    assert machine.found("daemon-options-unknown") == []


def test_a_configuration_that_is_none_is_an_error_of_its_own(make: Make) -> None:
    machine = make("docker")
    machine.write("etc/docker/daemon.json", "{")
    machine.run()
    assert machine.node.runner.errors["malformed"] == 1
    assert "ullage_container_overlay_lowers" in machine.page


# roots that are not mounted


def lost(machine: Machine) -> list[str]:
    return machine.found("rootfs-not-mounted")


def test_a_root_that_is_gone_under_a_running_container_is_found_after_a_while(make: Make) -> None:
    machine = make("docker")
    machine.run()
    assert lost(machine) == []  # Docker may be about to note that it has ended
    machine.settled()
    assert len(lost(machine)) == 1
    explanation, remedy = machine.texts("rootfs-not-mounted")
    assert explanation.startswith("The container lost runs, but its root is not mounted at /var/lib/docker/overlay2/")
    assert remedy.endswith(": docker stop lost; docker start lost")


def test_a_container_whose_process_is_somebody_elses_does_not_run(make: Make) -> None:
    machine = make("docker")
    for path in machine.path.glob("proc/*/cgroup"):
        path.write_text("0::/user.slice\n")
    machine.settled()
    assert lost(machine) == []


def test_a_daemon_whose_mounts_the_node_does_not_see_is_not_judged_by_them(make: Make) -> None:
    machine = make("docker")
    whole = machine.table.read_text()
    hidden = [line for line in whole.splitlines(keepends=True) if "/merged " not in line]
    machine.table.write_text("".join(hidden))
    machine.settled()
    assert lost(machine) == []
    machine.write("run/docker.pid", "77")
    machine.settled()
    assert lost(machine) == []  # it has ended, or its table cannot be read
    machine.write("proc/77/mountinfo", whole)
    machine.settled()
    assert len(lost(machine)) == 1


def test_a_task_of_containerd_without_its_root_is_found(make: Make) -> None:
    machine = make("containerd")
    text = machine.table.read_text()
    machine.table.write_text("".join(line for line in text.splitlines(keepends=True) if "/plain/rootfs " not in line))
    machine.settled()
    assert lost(machine) == ["/run/containerd/io.containerd.runtime.v2.task/default/plain/rootfs"]
    _, remedy = machine.texts("rootfs-not-mounted")
    command = "ctr --namespace default task rm --force plain && ctr --namespace default task start --detach plain"
    assert command in remedy


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("shim-binary-path", "/usr/bin/containerd-shim-kata-v2"),
        ("config.json", '{"root": {"path": "/somewhere/else"}}'),
        ("init.pid", "99999999"),
    ],
)
def test_a_task_whose_root_is_elsewhere_is_not_missing_it(make: Make, name: str, text: str) -> None:
    machine = make("containerd")
    table = machine.table.read_text()
    machine.table.write_text("".join(line for line in table.splitlines(keepends=True) if "/plain/rootfs " not in line))
    machine.write(f"run/containerd/io.containerd.runtime.v2.task/default/plain/{name}", text)
    machine.settled()
    assert lost(machine) == []


def test_dockers_tasks_have_their_roots_elsewhere(make: Make) -> None:
    machine = make("containerd")
    base = machine.path / "run/containerd/io.containerd.runtime.v2.task"
    (base / "default").rename(base / "moby")
    machine.edit("/default/plain/", "/gone/plain/")
    machine.settled()
    assert lost(machine) == []


# questions to Docker


def ask(informant: Informant, host: Host) -> Any:
    found = informant.ask(host)
    if informant._thread is not None:
        informant._thread.join(30)
    return found


def test_docker_is_asked_every_few_minutes(make: Make) -> None:
    machine = make("docker")
    machine.run()
    assert machine.daemon.asked == 0
    machine.connect()
    machine.run()
    assert 'version="20.10.24+dfsg1"' in machine.page
    machine.clock += ASK_EVERY - 1
    machine.run()
    assert machine.daemon.asked == 1
    machine.clock += 1
    machine.run()
    assert machine.daemon.asked == 2


def test_a_new_daemon_is_asked_at_once(make: Make) -> None:
    machine = make("docker")
    machine.connect()
    machine.run()
    machine.write("run/docker.pid", "77")
    machine.daemon.told = INFO | {"Driver": "vfs"}
    machine.run()
    assert 'driver="vfs"' in machine.page
    (machine.path / "run/docker.sock").unlink()
    machine.run()
    assert 'version=""' in machine.page


def test_one_that_hangs_blocks_no_run_and_is_what_it_was(tmp_path: Path) -> None:
    host, daemon, now = Host(rootfs=str(tmp_path)), Informer(), [0.0]
    (tmp_path / "docker.sock").touch()
    informant = Informant("/docker.sock", lambda _socket: daemon, lambda: now[0])
    known = ask(informant, host)
    assert known.driver == "overlay2"
    daemon.wake.clear()
    now[0] = ASK_EVERY
    assert informant.ask(host) == known
    assert informant.ask(host) == known
    assert daemon.asked == 2
    daemon.told = Stuck("docker.sock", "does not answer")
    daemon.wake.set()
    assert ask(informant, host) == known
    assert ask(informant, host) == known
    assert host.errors == {"stuck": 1}
    now[0] += RETRY_EVERY
    daemon.told = INFO | {"Driver": "vfs"}
    ask(informant, host)
    assert ask(informant, host).driver == "vfs"
    informant.close()


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (Denied("docker.sock"), "permission"),
        (Failed("docker.sock"), "failed"),
        ([], "malformed"),
        ({"Driver": "overlay2"}, "malformed"),
        (INFO | {"DockerRootDir": "relative"}, "malformed"),
    ],
)
def test_one_that_refuses_is_not_known(tmp_path: Path, told: object, reason: str) -> None:
    host, daemon, now = Host(rootfs=str(tmp_path)), Informer(), [0.0]
    (tmp_path / "docker.sock").touch()
    informant = Informant("/docker.sock", lambda _socket: daemon, lambda: now[0])
    ask(informant, host)
    daemon.told, now[0] = told, ASK_EVERY
    ask(informant, host)
    assert informant.ask(host) is None
    assert host.errors == {reason: 1}
    informant.close()


def test_what_one_said_that_is_gone_meanwhile_counts_for_nothing(tmp_path: Path) -> None:
    host, daemon = Host(rootfs=str(tmp_path)), Informer()
    (tmp_path / "docker.sock").touch()
    informant = Informant("/docker.sock", lambda _socket: daemon, lambda: 0.0, first=0.0)
    daemon.wake.clear()
    assert informant.ask(host) is None
    (tmp_path / "docker.sock").unlink()
    assert informant.ask(host) is None
    daemon.wake.set()
    assert ask(informant, host) is None
    assert informant.ask(host) is None
    informant.close()


def test_a_node_without_any_of_it_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/mountinfo").write_text("22 27 0:21 / / rw - ext4 /dev/sda rw\n")
    host = Host(f"{tmp_path}/proc", f"{tmp_path}/sys", str(tmp_path))
    running = Overlays(Start(host, NoSettings()))
    with pytest.raises(Unsupported):
        list(running.collect(host))
    running.close()


def test_a_table_that_cannot_be_read_costs_the_mounts_alone(make: Make) -> None:
    machine = make("docker")
    machine.table.unlink()
    machine.run()
    assert "ullage_storage_driver_info" in machine.page
    assert "ullage_overlay_mounts" not in machine.page
