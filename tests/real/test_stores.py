"""Stores of layers with the daemons that write to them: what is found while they do, and what they leave behind."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from agent.containers import Runtimes
from agent.host import Host
from collectors.containerd_store import SNAPSHOTTER, ContainerdStore
from collectors.containers_store import ContainersStore
from collectors.docker_store import DockerStore
from collectors.readers.mountinfo import parse
from collectors.stored import BrokenLink, Layer, Scan, Store, Unknown
from collectors.stores import find
from tests.real.conftest import Make, run
from tests.real.containerd import Containerd, containerd
from tests.real.daemon import WAIT
from tests.real.dockerd import Dockerd, dockerd

pytestmark = [pytest.mark.root, pytest.mark.slow]
ARCHIVE = 96 << 20  # bytes: seconds of unpacking, where a test wants a daemon in the middle of it


@pytest.fixture
def place() -> Iterator[Path]:
    """Have a directory with a short path: a socket's may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="ullage-") as made:
        yield Path(made)
        assert made not in run("cat", "/proc/self/mountinfo")


@pytest.fixture
def docker(need: Callable[..., None], place: Path) -> Iterator[Dockerd]:
    need("dockerd", "docker", "busybox")
    with dockerd(place) as running:
        yield running


def docker_store(docker: Dockerd, min_age: float = 0.0) -> tuple[Host, DockerStore]:
    host = Host()
    stores = find(
        host, Runtimes(docker_roots=(str(docker.root),), containerd_roots=(), containers_storage_roots=()), {}
    )
    (store,) = [each for each in stores if isinstance(each, DockerStore)]
    assert store.is_live is not False
    store.unknown = Unknown(min_age, apart=0.0)
    store.pid_file = str(docker.pid_file)
    return host, store


def mounted() -> list[str]:
    """Return the directories that overlay mounts use."""
    mounts, _ = parse(Path("/proc/self/mountinfo").read_bytes())
    options = [option for mount in mounts if mount.fstype == "overlay" for option in mount.super_options]
    named = dict.fromkeys(path for option in options for path in option.partition("=")[2].split(":"))
    return [os.path.realpath(path) for path in named if path.startswith("/")]


def states(scan: Scan) -> dict[str, str]:
    return {layer.name: layer.state for layer in scan.layers}


def archive(size: int) -> bytes:
    """Return an archive of many files."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for number in range(size >> 16):
            entry = tarfile.TarInfo(f"d{number % 40}/f{number}")
            entry.size = 1 << 16
            tar.addfile(entry, io.BytesIO(bytes(1 << 16)))
    return made.getvalue()


@pytest.mark.docker
def test_docker_has_the_layers_that_it_shows(docker: Dockerd) -> None:
    docker.import_image("busybox")
    container = docker.run("web", "echo hello > /new; sleep 1000")
    docker.docker("commit", "web", "more")
    host, store = docker_store(docker)
    scan = store.scan(host, mounted(), time.time())
    by_path = {layer.path: layer for layer in scan.layers}
    for image in ("busybox", "more"):
        upper = docker.docker("image", "inspect", "--format", "{{.GraphDriver.Data.UpperDir}}", image)
        assert by_path[os.path.dirname(upper)].state == "image"
    upper = docker.docker("inspect", "--format", "{{.GraphDriver.Data.UpperDir}}", "web")
    lowers = docker.docker("inspect", "--format", "{{.GraphDriver.Data.LowerDir}}", "web").split(":")
    found = by_path[os.path.dirname(upper)]
    assert (found.state, found.container, found.lowers) == ("container", container, len(lowers))
    assert sorted(states(scan).values()) == ["container", "container", "image", "image"]
    assert scan.links == {"live": 4, "dangling": 0, "missing": 0, "empty": 0}
    # extras, with what is in the subdirectories and the store's own two, are all that there is
    inside = sum(
        int(run("du", "--inodes", "--summarize", entry.path).split()[0])
        for layer in scan.layers
        for entry in os.scandir(layer.path)
        if entry.is_dir(follow_symlinks=False) and entry.name != "merged"
    )
    everything = int(run("du", "--one-file-system", "--inodes", "--summarize", store.path).split()[0])
    assert everything == 2 + len(scan.layers) + inside + sum(layer.extras for layer in scan.layers)
    assert host.errors == {}


@pytest.mark.docker
def test_an_import_that_was_killed_leaves_an_orphan(docker: Dockerd) -> None:
    docker.import_image("busybox")
    host, store = docker_store(docker)
    before = states(store.scan(host, mounted(), time.time()))
    content = archive(ARCHIVE)
    command = ["docker", "-H", f"unix://{docker.socket}", "import", "-", "big"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as client:
        assert client.stdin is not None
        feeder = threading.Thread(target=feed, args=(client.stdin, content), daemon=True)
        feeder.start()
        end = time.monotonic() + WAIT
        while states(store.scan(host, mounted(), time.time())).keys() == before.keys():
            assert time.monotonic() < end
        docker.kill()
        feeder.join(WAIT)
    docker.start()
    docker.docker("system", "prune", "--all", "--force")
    scan = until_two_scans(host, store)
    (orphan,) = [layer for layer in scan.layers if layer.state == "orphan"]
    assert orphan.name not in before
    assert orphan.extras == 2  # its link, and the link to it
    assert len(scan.write_sets) == 1
    assert (scan.broken, scan.litter) == ((), ())
    assert set(host.errors) <= {"vanished"}


def feed(pipe: io.BufferedWriter | object, content: bytes) -> None:
    try:
        pipe.write(content)  # type: ignore[union-attr]  # a pipe of Popen
        pipe.close()  # type: ignore[union-attr]
    except BrokenPipeError:
        pass


def until_two_scans(host: Host, store: Store) -> Scan:
    store.scan(host, mounted(), time.time())
    return store.scan(host, mounted(), time.time())


@pytest.mark.docker
def test_while_docker_imports_nothing_is_an_orphan(docker: Dockerd) -> None:
    docker.import_image("busybox")
    host, store = docker_store(docker, min_age=1.0)  # shorter than the import is
    content = archive(ARCHIVE)
    seen: set[str] = set()
    problems: list[object] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            scan = store.scan(host, mounted(), time.time())
            seen.update(states(scan).values())
            problems.extend([*scan.broken, *scan.litter])

    looking = threading.Thread(target=look)
    looking.start()
    try:
        command = ["docker", "-H", f"unix://{docker.socket}", "import", "-", "big"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as client:
            assert client.stdin is not None
            for start in range(0, len(content), len(content) // 8):
                client.stdin.write(content[start : start + len(content) // 8])
                client.stdin.flush()
                time.sleep(0.6)
            client.stdin.close()
        assert client.returncode == 0
        for _ in range(3):  # containers come and go
            docker.run("short", "sleep 1000")
            docker.docker("rm", "--force", "short")
        docker.docker("rmi", "big")
    finally:
        is_over.set()
        looking.join(WAIT)
    assert seen - {"removing"} == {"image", "incomplete", "container"}
    assert problems == []
    assert set(host.errors) <= {"vanished"}  # what Docker removes between two looks of one scan


@pytest.mark.docker
def test_a_removed_link_names_the_container_that_fails(docker: Dockerd) -> None:
    docker.import_image("busybox")
    container = docker.run("web", "sleep 1000")
    host, store = docker_store(docker)
    (base,) = [layer for layer in store.scan(host, mounted(), time.time()).layers if layer.state == "image"]
    link = (Path(base.path) / "link").read_text()
    (Path(store.path) / "l" / link).unlink()
    (Path(store.path) / "l" / "LITTER").symlink_to("../0f84/diff")
    scan = store.scan(host, mounted(), time.time())
    assert scan.broken == (BrokenLink(base.name, link, "missing", (container,), 1),)
    assert (scan.litter, scan.links["dangling"]) == (("LITTER",), 1)
    # and so it is
    docker.docker("stop", "--time", "0", "web")
    with pytest.raises(AssertionError, match="no such file or directory"):
        docker.docker("start", "web")
    with pytest.raises(AssertionError, match="no such file or directory"):
        docker.run("new", "sleep 1000")
    (Path(store.path) / "l" / link).symlink_to(f"../{base.name}/diff")
    docker.docker("start", "web")
    assert store.scan(host, mounted(), time.time()).broken == ()


@pytest.mark.docker
def test_what_docker_could_not_remove_is_being_removed(docker: Dockerd) -> None:
    docker.import_image("busybox")
    host, store = docker_store(docker)
    (base,) = store.scan(host, mounted(), time.time()).layers
    pinned = Path(base.path) / "diff" / "pinned"
    pinned.touch()
    run("chattr", "+i", str(pinned))
    try:
        with pytest.raises(AssertionError):
            docker.docker("rmi", "busybox")
        assert states(until_two_scans(host, store)) == {base.name: "removing"}
    finally:
        run("chattr", "-i", str(pinned))


@pytest.mark.docker
def test_layers_of_buildkit_are_never_orphans(docker: Dockerd, tmp_path: Path, need: Callable[..., None]) -> None:
    need("/usr/bin/docker")
    docker.import_image("busybox")
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY new /new\nRUN cat /new > /other\n")
    (tmp_path / "new").write_text("hello")
    # Debian's client has BuildKit's part in it, others have it in a plugin
    build = [
        "/usr/bin/docker",
        "-H",
        f"unix://{docker.socket}",
        "build",
        "--network=none",
        "--tag",
        "built",
        str(tmp_path),
    ]
    done = subprocess.run(build, env={**os.environ, "DOCKER_BUILDKIT": "1"}, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    host, store = docker_store(docker)
    found = states(until_two_scans(host, store))
    assert set(found.values()) == {"image", "build"}
    docker.docker("rmi", "built")
    docker.docker("builder", "prune", "--all", "--force")
    assert set(states(until_two_scans(host, store)).values()) <= {"image", "build", "removing"}
    assert set(host.errors) <= {"vanished"}


@pytest.fixture
def running(need: Callable[..., None], filesystem: Make, place: Path) -> Iterator[Containerd]:
    need("containerd", "ctr", "busybox")
    root = filesystem("ext4", size=256)
    with containerd(place, root) as made:
        yield made


def snapshots(containerd: Containerd) -> dict[str, tuple[str, str]]:
    """Return the kinds and parents of containerd's snapshots by their names, as it tells them."""
    lines = containerd.ctr("snapshots", "ls").splitlines()[1:]
    return {(words := line.split())[0]: (words[-1].lower(), words[1] if len(words) > 2 else "") for line in lines}


def test_containerd_is_read_while_it_writes(running: Containerd) -> None:
    running.import_image("busybox")
    running.run("web", "overlayfs", "busybox", "sleep 1000")
    (parent,) = [name for name, (kind, _) in snapshots(running).items() if kind == "committed"]
    host = Host()
    path = f"{running.root}/{SNAPSHOTTER}"
    store = ContainerdStore(str(running.root), path, unknown=Unknown(min_age=0.0, apart=0.0))
    is_over = threading.Event()
    counts: list[int] = []
    wrong: list[str] = []

    def look() -> None:
        while not is_over.is_set():
            scan = store.scan(host, mounted(), time.time())
            known = [layer for layer in scan.layers if layer.state in ("image", "container")]
            counts.append(len(known))
            # what is there from the beginning to the end is always what it is
            wrong.extend(
                f"{layer.name} {layer.state}"
                for layer in scan.layers
                if (layer.name, layer.state) not in (("1", "image"), ("2", "container")) and layer.name in ("1", "2")
            )

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for number in range(40):
            running.ctr("snapshots", "prepare", f"s{number}", parent)
            if number % 2:
                running.ctr("snapshots", "commit", f"c{number}", f"s{number}")
            if number % 3 == 0:
                running.ctr("snapshots", "rm", f"c{number}" if number % 2 else f"s{number}")
            if number % 10 == 0:
                running.import_image(f"image{number}")
                running.ctr("images", "rm", f"docker.io/library/image{number}:latest")
    finally:
        is_over.set()
        looking.join(WAIT)
    assert wrong == []
    assert len(counts) > 40
    assert set(host.errors) <= {"vanished"}
    told = snapshots(running)
    end = time.monotonic() + WAIT
    while (known := store._snapshots(host)) is None or len(known) != len(told):  # containerd removes in its own time
        assert time.monotonic() < end
        time.sleep(0.1)
    scan = store.scan(host, mounted(), time.time())
    assert {each.name: each.kind for each in known.values()} == {name: kind for name, (kind, _) in told.items()}
    names = {each.key: each.name for each in known.values()}
    assert {each.name: names.get(each.parent, "") for each in known.values()} == {
        name: above for name, (_, above) in told.items()
    }
    assert {layer.name for layer in scan.layers} >= known.keys()
    (web,) = [layer for layer in scan.layers if layer.container == "web"]
    mounts = [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"upperdir={web.path}/fs" in line
    ]
    assert (len(mounts), web.lowers) == (1, 1)
    (base,) = [layer for layer in scan.layers if known[layer.name].name == parent]
    inodes = int(run("du", "--inodes", "--summarize", f"{base.path}/fs").split()[0])
    used = int(run("du", "--block-size=1", "--summarize", f"{base.path}/fs").split()[0])
    assert (known[base.name].inodes, base.size) == (inodes, used)


def test_what_containerd_unpacks_is_incomplete_until_it_is_an_image(running: Containerd) -> None:
    running.import_image("busybox")
    running.run("web", "overlayfs", "busybox", "sleep 1000")
    host = Host()
    store = ContainerdStore(str(running.root), f"{running.root}/{SNAPSHOTTER}", unknown=Unknown(min_age=5.0, apart=0.0))
    unpacking = threading.Thread(target=running.import_image, args=("big", archive(ARCHIVE // 2)))
    unpacking.start()
    seen: list[tuple[str, bool]] = []
    while unpacking.is_alive():
        scan = store.scan(host, mounted(), time.time())
        seen += [(layer.state, layer.is_settled) for layer in scan.layers if layer.name not in ("1", "2")]
    scan = store.scan(host, mounted(), time.time())
    (done,) = [layer for layer in scan.layers if layer.name not in ("1", "2")]
    assert (done.state, done.is_settled) == ("image", True)
    assert ("incomplete", False) in seen
    assert set(seen) <= {("incomplete", False), ("image", True)}


def test_a_snapshot_that_containerd_does_not_know_is_an_orphan(running: Containerd) -> None:
    running.import_image("busybox")
    running.run("web", "overlayfs", "busybox", "sleep 1000")
    host = Host()
    store = ContainerdStore(str(running.root), f"{running.root}/{SNAPSHOTTER}", unknown=Unknown(min_age=0.0, apart=0.0))
    shutil.copytree(f"{store.path}/snapshots/2", f"{store.path}/snapshots/99")
    scan = until_two_scans(host, store)
    assert states(scan) == {"1": "image", "2": "container", "99": "orphan"}


class ContainersStorage:
    """A store of containers/storage, with its own tool on it."""

    def __init__(self, graph: Path, run_root: Path) -> None:
        self.graph, self.run_root = graph, run_root
        self.command = ["containers-storage", "-g", str(graph), "-R", str(run_root), "-s", "overlay"]

    def __call__(self, *arguments: str) -> str:
        """Run the tool; return the first word that it prints."""
        return (run(*self.command, *arguments).split() or [""])[0]

    def find(self) -> tuple[Host, ContainersStore]:
        host = Host()
        roots = str(self.graph), str(self.run_root)
        found = find(host, Runtimes(docker_roots=(), containerd_roots=(), containers_storage_roots=roots), {})
        (store,) = [each for each in found if isinstance(each, ContainersStore) and each.root == roots[0]]
        store.unknown = Unknown(min_age=0.0, apart=0.0)
        return host, store


@pytest.fixture
def storage(need: Callable[..., None], filesystem: Make, tmp_path: Path) -> Iterator[ContainersStorage]:
    need("containers-storage")
    graph = filesystem("ext4", size=256) / "graph"
    yield ContainersStorage(graph, tmp_path / "run")
    # it mounts its directory of layers on itself
    subprocess.run(["umount", str(graph / "overlay")], check=False, capture_output=True)


def test_layers_of_containers_storage(storage: ContainersStorage, tmp_path: Path) -> None:
    content = tmp_path / "content.tar"
    content.write_bytes(archive(4 << 20))
    base = storage("create-layer")
    storage("applydiff", "-f", str(content), base)
    top = storage("create-layer", base)
    image = storage("create-image", top)
    container = storage("create-container", image)
    host, store = storage.find()
    scan = store.scan(host, mounted(), time.time())
    by_name = {layer.name: layer for layer in scan.layers}
    assert {by_name[base].state, by_name[top].state} == {"image"}
    assert by_name[base].size == content.stat().st_size
    (writable,) = [layer for layer in scan.layers if layer.state == "container"]
    assert (writable.container, writable.lowers, len(scan.layers)) == (container, 2, 3)
    assert scan.links == {"live": 3, "dangling": 0, "missing": 0, "empty": 0}

    shutil.copytree(f"{store.path}/{top}", f"{store.path}/{'0f' * 32}")
    (Path(store.path) / "l" / (Path(store.path) / base / "link").read_text()).unlink()
    scan = until_two_scans(host, store)
    assert states(scan) == states_of(by_name.values()) | {"0f" * 32: "orphan"}
    assert (scan.broken, scan.links["missing"]) == ((), 1)
    storage("mount", container)  # which makes the link anew
    try:
        assert store.scan(host, mounted(), time.time()).links["missing"] == 0
    finally:
        storage("unmount", container)
    assert host.errors == {}


def test_a_layer_that_was_interrupted_is_incomplete(storage: ContainersStorage) -> None:
    storage("layers")
    host, store = storage.find()
    command = [*storage.command, "import-layer"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as tool:
        assert tool.stdin is not None
        tool.stdin.write(archive(8 << 20))
        tool.stdin.flush()
        end = time.monotonic() + WAIT
        while not any(each.stat().st_nlink > 2 for each in Path(store.path).glob("*/diff")):  # it has begun
            assert time.monotonic() < end
            time.sleep(0.01)
        tool.kill()
        tool.stdin.close()
    assert list(states(until_two_scans(host, store)).values()) == ["incomplete"]


def states_of(layers: Iterable[Layer]) -> dict[str, str]:
    return {layer.name: layer.state for layer in layers}
