"""Layers of a real dockerd and a real containerd, counted beside find(1) and du(1)."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from docker import APIClient

from agent.collector import Start
from agent.containers import Runtimes
from agent.finding import Found
from agent.host import Host
from agent.metric import Sample
from collectors.layers import Layers, Settings
from tests.real.conftest import Make
from tests.real.containerd import Containerd, containerd
from tests.real.dockerd import Dockerd, dockerd

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.slow]
HOUR = 3600.0


class Node:
    """The collector on these roots; its clocks go on by an interval with each run, and by more if the test says."""

    def __init__(self, runtimes: Runtimes, state: Path | None = None, *, fanotify: bool = True) -> None:
        self.host = Host()
        self.late = 0.0
        settings = Settings(cpu_budget=1.0, fanotify=fanotify)
        self.running = Layers(
            Start(self.host, settings, state, runtimes),
            clock=lambda: time.monotonic() + self.late,
            now=lambda: time.time() + self.late,
        )
        self.samples: dict[tuple[str, ...], float] = {}
        self.found: dict[str, Found] = {}

    def run(self) -> None:
        self.samples, self.found = {}, {}
        for each in self.running.collect(self.host):
            if isinstance(each, Sample):
                self.samples[each.metric.name, *each.labels] = each.value
            elif isinstance(each, Found):
                self.found[each.finding.id] = each
        assert set(self.host.errors) <= {"vanished"}, [
            str(each) for each in self.host.first_errors
        ]  # what is removed while it is looked at

    def of(self, name: str, *labels: str) -> dict[str, float]:
        """Return a metric's values by the last of their labels, of the series that begin with these labels."""
        name = f"ullage_{name}"
        return {
            key[-1]: value
            for key, value in self.samples.items()
            if key[0] == name and key[1 : 1 + len(labels)] == labels
        }

    def writable(self) -> dict[str, float]:
        """Return the inodes of writable layers by the containers' names."""
        return {key[3]: value for key, value in self.samples.items() if key[0] == "ullage_container_writable_files"}


@pytest.fixture
def directory() -> Iterator[Path]:
    # a short path: a socket's may have 107 characters
    with tempfile.TemporaryDirectory(prefix="ullage-") as made:
        yield Path(made)


@pytest.fixture
def docker(directory: Path, filesystem: Make, need: Callable[..., None]) -> Iterator[Dockerd]:
    need("dockerd", "docker", "busybox")
    with dockerd(directory, root=filesystem("ext4", size=512)) as made:
        made.import_image("busybox")
        yield made


def of_docker(docker: Dockerd, **settings: Any) -> Node:
    runtimes = Runtimes(
        docker_roots=(str(docker.root),),
        docker_sockets=(str(docker.socket),),
        containerd_roots=(),
        containerd_states=(),
        containers_storage_roots=(),
    )
    return Node(runtimes, **settings)


def found_in(path: Path) -> int:
    return len(subprocess.run(["find", str(path)], check=True, capture_output=True).stdout.splitlines())


def upper(docker: Dockerd, container: str) -> Path:
    layer = (docker.root / f"image/overlay2/layerdb/mounts/{container}/mount-id").read_text()
    return docker.root / "overlay2" / layer / "diff"


def inodes(path: Path) -> int:
    """Return what du says of a directory, and one for each that something is mounted on: these du leaves out."""
    done = subprocess.run(["du", "--inodes", "-xs", str(path)], check=True, capture_output=True, text=True)
    points = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return int(done.stdout.split()[0]) + sum(point.startswith(f"{path}/") for point in points)


WRITE = "mkdir /data /tmp/x; for i in 1 2 3 4 5 6 7 8 9; do echo > /data/$i; done; sleep 1000"


@pytest.mark.parametrize("fanotify", [True, False])
def test_containers_count_as_find_counts_and_the_whole_as_du(docker: Dockerd, *, fanotify: bool) -> None:
    node = of_docker(docker, fanotify=fanotify)
    first, second = docker.run("first", WRITE), docker.run("second", "sleep 1000")
    node.run()
    store = f"{docker.root}/overlay2"
    for round_ in range(4):
        docker.docker("exec", "first", "/bin/sh", "-c", f"echo > /data/new-{round_}; echo > /tmp/x/{round_}")
        node.run()
        expected = {"first": found_in(upper(docker, first)), "second": found_in(upper(docker, second))}
        assert node.writable() == expected
        assert sum(node.of("layers_files", store).values()) + 2 == inodes(Path(store))  # itself, and l/
        if round_ == 1:
            docker.docker("stop", "--time", "0", "second")  # a stopped one counts on
    assert expected["first"] > 15
    assert node.of("layers", store) == {
        **dict.fromkeys(("build", "orphan", "removing", "incomplete"), 0),
        "image": 1,
        "container": 4,
    }
    assert node.of("layers_links", store) == {"live": 5, "dangling": 0, "missing": 0, "empty": 0}
    assert node.of("layers_count_progress_ratio", store) == {store: 1}
    assert {key[3]: value for key, value in node.samples.items() if key[0] == "ullage_container_layers"} == {
        "first": 2,
        "second": 2,
    }
    assert node.found == {}
    docker.docker("rm", "--force", "first")
    node.run()
    assert list(node.writable()) == ["second"]


def test_bytes_are_those_of_du(docker: Dockerd) -> None:
    container = docker.run("first", "dd if=/dev/urandom of=/file bs=1M count=20; sync; sleep 1000")
    path = upper(docker, container)
    end = time.monotonic() + 120
    while not (path / "file").exists() or (path / "file").stat().st_blocks < 40_000:
        assert time.monotonic() < end
        time.sleep(0.1)
    node = of_docker(docker)
    node.run()
    done = subprocess.run(["du", "-s", "--block-size=1", str(path)], check=True, capture_output=True, text=True)
    (size,) = [value for key, value in node.samples.items() if key[0] == "ullage_container_writable_bytes"]
    assert size == int(done.stdout.split()[0])
    sizes = [int(each.read_text()) for each in docker.root.glob("image/overlay2/layerdb/sha256/*/size")]
    assert node.of("layers_bytes", f"{docker.root}/overlay2")["image"] == sum(sizes)


def test_an_orphan_of_a_killed_import_is_found_and_its_remedy_removes_it(docker: Dockerd, directory: Path) -> None:
    archive = directory / "big.tar"
    with open(directory / "random", "wb") as file:
        file.writelines(os.urandom(1 << 20) for _ in range(100))
    subprocess.run(["tar", "-C", str(directory), "-cf", str(archive), "random"], check=True)
    node, layers = of_docker(docker), docker.root / "overlay2"
    known = set(os.listdir(layers))
    command = ["docker", "-H", f"unix://{docker.socket}", "import", str(archive), "big"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
        while not (docker.root / "image/overlay2/layerdb/tmp").exists() or set(os.listdir(layers)) == known:
            time.sleep(0.001)
        node.run()
        assert node.of("layers", str(layers))["incomplete"] == 1
        assert "orphan-layers" not in node.found
        docker.kill()
        client.kill()
    docker.start()
    (orphan,) = set(os.listdir(layers)) - known
    node.run()
    assert "orphan-layers" not in node.found
    node.late = 25 * HOUR  # nobody knows when this daemon was started: its file is not in the usual place
    node.run()
    node.late += 60
    node.run()
    assert node.of("layers", str(layers))["orphan"] == 1
    finding = node.found["orphan-layers"]
    assert orphan in finding.explanation
    assert node.of("layers_files", str(layers))["orphan"] == inodes(layers / orphan) + 1  # and its link
    subprocess.run(node.found["layer-import-interrupted"].remedy, shell=True, check=True, capture_output=True)
    # what the remedy says, word by word
    commands = finding.remedy.split("   #")[0], finding.remedy.split("stopped: ")[1].split(";")[0]
    assert subprocess.run(commands[0], shell=True, check=False, capture_output=True).stdout == b""
    docker.quit()
    subprocess.run(commands[1], shell=True, check=True)
    docker.start()
    docker.run("after", "sleep 1000")
    node.late += 600
    node.run()
    assert node.of("layers", str(layers))["orphan"] == 0
    assert "orphan-layers" not in node.found


def test_a_lost_link_names_who_will_fail_and_its_remedy_mends_it(docker: Dockerd) -> None:
    docker.run("victim", "sleep 1000")
    docker.docker("stop", "--time", "0", "victim")
    node, links = of_docker(docker), docker.root / "overlay2" / "l"
    node.run()
    assert node.found == {}
    (image,) = [
        path for path in docker.root.glob("overlay2/*") if (path / "link").exists() and not (path / "lower").exists()
    ]
    (links / (image / "link").read_text()).unlink()
    (links / ("L" * 26)).symlink_to("../nowhere/diff")
    node.run()
    assert set(node.found) == {"layer-link-broken", "layer-link-litter"}
    finding = node.found["layer-link-broken"]
    assert finding.finding.severity == "critical"
    assert "the container victim" in finding.explanation
    assert node.of("layers_links", f"{docker.root}/overlay2") == {"live": 2, "dangling": 1, "missing": 1, "empty": 0}
    with pytest.raises(AssertionError, match="no such file or directory"):
        docker.docker("start", "victim")
    subprocess.run(finding.remedy.split("   #")[0], shell=True, check=True)
    docker.docker("start", "victim")
    litter = node.found["layer-link-litter"].remedy.split("   #")[0]
    assert (
        subprocess.run(litter, shell=True, check=True, capture_output=True, text=True).stdout == f"{links}/{'L' * 26}\n"
    )
    subprocess.run(f"{litter} -delete", shell=True, check=True)
    node.run()
    assert node.found == {}


def test_containers_and_images_are_removed_while_a_scan_runs(docker: Dockerd) -> None:
    """200 containers, as many layers. Every tenth was started, with a volume mounted in it, and becomes an image.

    To start and commit all of them takes minutes; 200 times something is unmounted in a layer under a scan in
    tests/real/test_layer_count.py.
    """
    node = of_docker(docker)
    stop = threading.Event()
    failures: list[BaseException] = []
    counted: set[str] = set()

    def scan() -> None:
        try:
            while not stop.is_set():
                node.late += HOUR  # so that it reads all of it again
                node.run()
                counted.update(node.writable())
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=scan)
    thread.start()
    client = APIClient(base_url=f"unix://{docker.socket}")
    command = ["/bin/sh", "-c", "echo > /volume/x; echo > /y"]
    try:
        for number in range(200):
            made = client.create_container(
                "busybox", command, name=f"c{number}", volumes=["/volume"], network_disabled=True
            )["Id"]
            for directory in range(10):
                (upper(docker, made) / f"{directory}").mkdir()
            if number % 10 == 0:
                client.start(made)
                assert client.wait(made)["StatusCode"] == 0
                client.commit(made, f"image{number}")
            client.remove_container(made, v=True, force=number % 2 == 0)
            if number % 10 == 0:
                client.remove_image(f"image{number}")
    finally:
        stop.set()
        thread.join()
        client.close()
    assert failures == []
    assert len(counted) > 50, counted


def of_containerd(made: Containerd) -> Node:
    return Node(
        Runtimes(
            docker_roots=(),
            docker_sockets=(),
            containerd_roots=(str(made.root),),
            containerd_states=(str(made.state),),
            containers_storage_roots=(),
        )
    )


def test_containerd_is_counted_while_it_writes(directory: Path, filesystem: Make, need: Callable[..., None]) -> None:
    need("containerd", "ctr", "runc", "busybox")
    root = filesystem("ext4", size=256)
    with containerd(directory, root) as made:
        made.import_image("busybox")
        made.run("first", "overlayfs", "busybox", WRITE)
        node = of_containerd(made)
        store = root / "io.containerd.snapshotter.v1.overlayfs"
        stop = threading.Event()

        def work() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                made.ctr("images", "tag", "docker.io/library/busybox:latest", f"other:{number}")
                made.ctr("images", "rm", f"other:{number}")

        thread = threading.Thread(target=work)
        thread.start()
        try:
            for _ in range(30):
                node.run()
        finally:
            stop.set()
            thread.join()
        node.run()
        (path,) = [each for each in store.glob("snapshots/*/fs") if (each / "data").exists()]
        assert node.writable() == {"first": found_in(path)}
        assert node.of("layers", str(store))["image"] == 1
        assert sum(node.of("layers_files", str(store)).values()) + 1 == inodes(store / "snapshots")
        (store / "snapshots" / "999" / "fs").mkdir(parents=True)  # as a crash leaves it
        node.run()
        assert "orphan-layers" not in node.found
        node.late += HOUR + 60
        node.run()
        assert "999" in node.found["orphan-layers"].explanation
        for command in node.found["orphan-layers"].remedy.split("   #")[0].split(" && "):
            made.ctr(*command.split()[1:])
        end = time.monotonic() + 120
        while (store / "snapshots" / "999").exists():
            assert time.monotonic() < end
            time.sleep(0.1)
        node.late += HOUR
        node.run()
        assert "orphan-layers" not in node.found
