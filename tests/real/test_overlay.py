"""The overlay collector on real overlay mounts, with real runtimes, and each remedy that it gives."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.collector import Start
from agent.config import load
from agent.containers import Runtimes
from agent.dirents import types
from agent.exposition import Pages
from agent.host import Host
from agent.latches import Latches
from agent.runner import Runner
from collectors.dockerinfo import ASK_EVERY
from collectors.overlay import COLLECTOR, Overlays
from collectors.readers.mountinfo import parse
from collectors.readers.overlay import Layers, parse_options
from tests.real.conftest import Make, run
from tests.real.containerd import containerd
from tests.real.dockerd import Dockerd, deep_archive, dockerd
from tests.refusal import refuse
from tests.settings import setting

pytestmark = [pytest.mark.root, pytest.mark.slow]
NOWHERE = Runtimes((), (), (), (), ())
PARAMETERS = Path("/sys/module/overlay/parameters")
FSOPEN, FSCONFIG, FSMOUNT, MOVE_MOUNT = 430, 431, 432, 429  # of all architectures
SET_STRING, CREATE, EMPTY_PATH = 1, 6, 4
AT_FDCWD = -100
# what overlayfs and the mount table have escapes for, and what they have none for
NAMES = (
    "plain",
    "with space",
    "comma,comma",
    "colon:colon",
    "back\\slash",
    "tab\there",
    "new\nline",
    "\u00fcml\u00e4ut",
)


class Node:
    """The collector at work; its clock goes on with each run, so that each asks Docker anew."""

    def __init__(self, runtimes: Runtimes = NOWHERE) -> None:
        (plan,) = load(None, [COLLECTOR], {}).plans
        self._pages = Pages()
        self._now = 0.0
        self.runner = Runner(plan, Host(), Latches(None), self._pages)
        start = Start(self.runner.host, plan.settings, None, runtimes)
        self.running = Overlays(start, clock=lambda: self._now)

    def run(self) -> set[tuple[str, str]]:
        """Do one run, once Docker has answered; return the findings."""
        for _ in range(2):
            self._now += ASK_EVERY
            self.runner.run(self.running)
            assert self.runner.outcome.is_up, self.runner.outcome.reason
            for informant in self.running._informants:
                informant.close()
        return {(each.finding.id, each.target) for each in self.runner.outcome.findings}

    def remedy(self, name: str) -> str:
        (found,) = [each for each in self.runner.outcome.findings if each.finding.id == name]
        return found.remedy

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        text = b"".join(self._pages.members("text", gzip=False)).decode()
        families = text_string_to_metric_families(text)
        return [(each.labels, each.value) for family in families for each in family.samples if each.name == name]

    def containers(self, name: str) -> dict[str, float]:
        return {labels["container"]: value for labels, value in self.samples(name)}

    def count(self, option: str, value: str) -> float:
        wanted = {"option": option, "value": value}
        return sum(count for labels, count in self.samples("ullage_overlay_mounts") if labels == wanted)


@pytest.fixture
def node(stack: ExitStack) -> Node:
    made = Node()
    stack.callback(made.running.close)
    return made


@pytest.fixture
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Mounts:
    """Makes overlay mounts in a tmpfs of their own."""

    def __init__(self, base: Path, libc: ctypes.CDLL, stack: ExitStack) -> None:
        self.base, self._libc, self._stack = base, libc, stack
        run("mount", "-t", "tmpfs", "scratch", str(base))
        stack.callback(run, "umount", "-l", str(base))

    def directory(self, name: str) -> str:
        (self.base / name).mkdir(exist_ok=True)
        return str(self.base / name)

    def mount(self, name: str, lower: str, options: str = "", upper: str = "") -> str:
        """Mount by mount(2), whose data is a string."""
        point = self.directory(f"{name}-m")
        data = f"lowerdir={lower}"
        data += f",upperdir={upper or self.directory(f'{name}-u')},workdir={self.directory(f'{name}-w')}{options}"
        checked(self._libc.mount(b"overlay", os.fsencode(point), b"overlay", 0, os.fsencode(data)))
        self._stack.callback(subprocess.run, ("umount", "-l", point), check=False, capture_output=True)
        return point

    def add(self, name: str, lowers: list[str]) -> str:
        """Mount by fsconfig(2), layer by layer."""
        syscall, point = self._libc.syscall, self.directory(f"{name}-m")
        context = checked(syscall(FSOPEN, b"overlay", 0))
        try:
            layers = [("lowerdir+", lower) for lower in lowers]
            for key, value in [
                *layers,
                ("upperdir", self.directory(f"{name}-u")),
                ("workdir", self.directory(f"{name}-w")),
            ]:
                checked(syscall(FSCONFIG, context, SET_STRING, key.encode(), os.fsencode(value), 0))
            checked(syscall(FSCONFIG, context, CREATE, None, None, 0))
            mount = checked(syscall(FSMOUNT, context, 0, 0))
            try:
                checked(syscall(MOVE_MOUNT, mount, b"", AT_FDCWD, os.fsencode(point), EMPTY_PATH))
            finally:
                os.close(mount)
        finally:
            os.close(context)
        self._stack.callback(run, "umount", "-l", point)
        return point


@pytest.fixture
def mounts(tmp_path: Path, libc: ctypes.CDLL, need: Callable[..., None], stack: ExitStack) -> Mounts:
    need("mount")
    base = tmp_path / "overlay"
    base.mkdir()
    return Mounts(base, libc, stack)


def layers_at(point: str) -> Layers:
    mounts, malformed = parse(Path("/proc/self/mountinfo").read_bytes())
    assert malformed == 0
    (mount,) = [each for each in mounts if each.mountpoint == point]
    return parse_options(mount.super_options)


def escaped(path: str) -> str:
    """Return a path as overlayfs wants it in a list of layers."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def test_names_of_layers_are_those_that_were_given(mounts: Mounts) -> None:
    lowers = [mounts.directory(name) for name in NAMES]
    upper = mounts.directory("upper,upper")
    point = mounts.mount("escaped", ":".join(map(escaped, lowers)), upper=escaped(upper))
    layers = layers_at(point)
    assert layers.lowers == tuple(lowers)
    assert layers.upper == upper


@pytest.fixture
def need_adding(libc: ctypes.CDLL) -> None:
    """Skip where layers cannot be set one by one, before Linux 6.8; in CI that is a failure."""
    context = checked(libc.syscall(FSOPEN, b"overlay", 0))
    try:
        if libc.syscall(FSCONFIG, context, SET_STRING, b"lowerdir+", b"/", 0) < 0:
            refuse("this kernel does not know lowerdir+")
    finally:
        os.close(context)


@pytest.mark.usefixtures("need_adding")
def test_names_of_layers_that_were_set_one_by_one_too(mounts: Mounts) -> None:
    lowers = [mounts.directory(name) for name in NAMES]
    point = mounts.add("added", lowers)
    assert layers_at(point).lowers == tuple(lowers)
    assert layers_at(point).data_bytes is None


@pytest.mark.usefixtures("need_adding")
def test_450_layers_are_read_to_the_last(mounts: Mounts) -> None:
    lowers = [mounts.directory(f"{number:060}") for number in range(450)]
    point = mounts.add("many", lowers)
    assert layers_at(point).lowers == tuple(lowers)
    assert layers_at(point).upper == str(mounts.base / "many-u")


@pytest.mark.parametrize(
    ("options", "option", "value"),
    [
        (",metacopy=on", "metacopy", "on"),
        (",metacopy=on", "redirect_dir", "on"),
        (",redirect_dir=on", "redirect_dir", "on"),
        (",redirect_dir=nofollow", "redirect_dir", "nofollow"),
        (",index=on", "index", "on"),
        (",volatile", "volatile", "on"),
        (",userxattr", "userxattr", "on"),
        (",userxattr", "redirect_dir", "nofollow"),
    ],
)
def test_an_option_in_force_is_counted(mounts: Mounts, node: Node, options: str, option: str, value: str) -> None:
    lower = mounts.directory("lower")
    mounts.mount("default", lower)
    node.run()
    before = node.count(option, value)
    mounts.mount("other", lower, options)
    node.run()
    assert node.count(option, value) == before + 1


def test_the_parameters_are_those_of_the_module(mounts: Mounts, node: Node) -> None:
    mounts.mount("default", mounts.directory("lower"))
    node.run()
    shown = {labels["parameter"]: value for labels, value in node.samples("ullage_overlay_module_parameter")}
    words = {path.name: path.read_text().strip() for path in PARAMETERS.iterdir()}
    assert shown == {name: {"Y": 1, "N": 0}[word] if word in "YN" else int(word) for name, word in words.items()}


def test_a_shared_upper_is_found_until_the_remedy_is_done(mounts: Mounts, node: Node) -> None:
    lower, upper = mounts.directory("lower"), mounts.directory("upper")
    mounts.mount("one", lower, upper=upper)
    assert ("overlay-shared-upper", upper) not in node.run()
    (mounts.base / "link").symlink_to(upper)
    mounts.mount("two", lower, upper=str(mounts.base / "link"))
    assert ("overlay-shared-upper", upper) in node.run()
    run("sh", "-c", node.remedy("overlay-shared-upper").partition(": ")[2])
    assert ("overlay-shared-upper", upper) not in node.run()


def test_what_was_written_with_metacopy_cannot_be_read_without(mounts: Mounts) -> None:
    """The hazard itself, that `overlay-metacopy-redirect` tells of."""
    lower = Path(mounts.directory("lower"))
    (lower / "file").write_text("content")
    (lower / "directory").mkdir()
    upper = mounts.directory("upper")
    point = mounts.mount("on", str(lower), ",metacopy=on", upper)
    (Path(point) / "file").chmod(0o600)
    (Path(point) / "directory").rename(Path(point) / "renamed")
    run("umount", point)
    point = mounts.mount("off", str(lower), upper=upper)
    with pytest.raises(PermissionError):
        (Path(point) / "file").read_text()
    run("umount", point)
    point = mounts.mount("nofollow", str(lower), ",redirect_dir=nofollow", upper)
    with pytest.raises(PermissionError):
        os.listdir(Path(point) / "renamed")


# d_type


@pytest.mark.parametrize(("kind", "flags"), [("ext4", ()), ("xfs", ("-m", "crc=1")), ("btrfs", ())])
def test_common_filesystems_keep_types(filesystem: Make, kind: str, flags: tuple[str, ...]) -> None:
    mount = filesystem(kind, *flags, size=320)
    (mount / "directory").mkdir()
    (mount / "file").touch()
    found = types(str(mount))
    assert (found[b"directory"], found[b"file"]) == (4, 8)


def test_a_filesystem_without_types_is_found_until_the_remedy_is_done(
    filesystem: Make, stack: ExitStack, libc: ctypes.CDLL, need: Callable[..., None]
) -> None:
    need("tune2fs", "e2fsck")
    mount = filesystem("ext4", "-O", "^filetype")
    root = mount / "containerd"
    store = root / "io.containerd.snapshotter.v1.overlayfs"
    for name in ("lower", "upper", "work", "merged"):
        (store / name).mkdir(parents=True)
    (store / "metadata.db").touch()
    (store / "lower/file").touch()
    node = Node(Runtimes((), (), (str(root),), (), ()))
    stack.callback(node.running.close)
    assert ("overlay-no-dtype", str(mount)) in node.run()
    assert node.samples("ullage_filesystem_d_type_supported") == [({"mountpoint": str(mount)}, 0)]
    # what it does: the mount succeeds, and a file that was removed is listed still
    data = f"lowerdir={store}/lower,upperdir={store}/upper,workdir={store}/work"
    checked(libc.mount(b"overlay", os.fsencode(store / "merged"), b"overlay", 0, os.fsencode(data)))
    try:
        (store / "merged/file").unlink()
        assert os.listdir(store / "merged") == ["file"]
        assert not (store / "merged/file").exists()
    finally:
        run("umount", str(store / "merged"))
    remedy = node.remedy("overlay-no-dtype").partition("For ext4: ")[2].partition("   #")[0]
    run("sh", "-c", remedy)
    assert ("overlay-no-dtype", str(mount)) not in node.run()
    assert node.samples("ullage_filesystem_d_type_supported") == [({"mountpoint": str(mount)}, 1)]


# Docker


@pytest.fixture
def directory(need: Callable[..., None]) -> Iterator[Path]:
    need("dockerd", "docker", "busybox")
    # a short path: a socket's may have 107 characters
    with tempfile.TemporaryDirectory(prefix="ullage-docker-") as made:
        yield Path(made)
        assert made not in run("cat", "/proc/self/mountinfo")


def node_of(docker: Dockerd, stack: ExitStack) -> Node:
    made = Node(Runtimes((str(docker.socket),), (str(docker.root),), (), (), ()))
    stack.callback(made.running.close)
    return made


def obey(docker: Dockerd, remedy: str) -> str:
    """Do what a remedy says, with this daemon."""
    return run("env", f"DOCKER_HOST=unix://{docker.socket}", "sh", "-c", remedy)


@pytest.mark.docker
def test_containers_of_docker_and_its_driver(directory: Path, stack: ExitStack) -> None:
    with dockerd(directory) as docker:
        docker.import_image("busybox")
        docker.run("web", "exec sleep 1000")
        node = node_of(docker, stack)
        assert node.run() == set()
        assert node.containers("ullage_container_overlay_lowers") == {"web": 2}
        (point,) = [line.split()[4] for line in run("cat", "/proc/self/mountinfo").splitlines() if "/merged " in line]
        mounted = layers_at(point)
        assert mounted.data_bytes is not None
        expected = {"web": pytest.approx(mounted.data_bytes / os.sysconf("SC_PAGESIZE"))}
        assert node.containers("ullage_container_overlay_mount_data_ratio") == expected
        ((driver, _),) = node.samples("ullage_storage_driver_info")
        version = docker.docker("version", "--format", "{{.Server.Version}}")
        fstype = run("findmnt", "--noheadings", "--first-only", "--output", "FSTYPE", "--target", str(directory))
        assert driver == {
            "runtime": "docker",
            "driver": "overlay2",
            "store": f"{docker.root}/overlay2",
            "backing_filesystem": fstype,
            "version": version,
        }
        ((upper, _),) = node.samples("ullage_container_overlay_upper_info")
        assert upper["fstype"] == fstype
        docker.hang()
        assert node.run() == set()
        assert node.samples("ullage_storage_driver_info") == [(driver, 1)]
        docker.wake()


@pytest.mark.docker
def test_a_deep_image_is_found_until_it_is_made_flat(directory: Path, stack: ExitStack) -> None:
    with dockerd(directory) as docker:
        docker.docker("load", stdin=deep_archive("deep", 112))
        run_it = ("run", "--detach", "--network=none", "--name")
        docker.docker(*run_it, "deep", "deep", "/bin/sh", "-c", "exec sleep 1000")
        node = node_of(docker, stack)
        ((name, target),) = node.run()
        assert (name, target.endswith("/merged")) == ("overlay-deep-chain", True)
        assert node.containers("ullage_container_overlay_lowers") == {"deep": 113}  # and Docker's own layer
        # Docker mounted it by relative paths, and its upper is known all the same
        assert layers_at(target).lowers[0].startswith("l/")
        ((upper, _),) = node.samples("ullage_container_overlay_upper_info")
        assert upper["container"] == "deep"
        command = node.remedy("overlay-deep-chain").partition("as it is: ")[2]
        obey(docker, command.replace("NAME", "flat").replace("COMMAND", "/bin/sh"))
        docker.docker(*run_it, "flat", "flat", "/bin/sh", "-c", "exec sleep 1000")
        docker.docker("rm", "--force", "deep")
        assert node.run() == set()
        assert node.containers("ullage_container_overlay_lowers") == {"flat": 2}


@pytest.mark.docker
def test_a_root_unmounted_under_a_container_is_found_until_it_is_started_anew(
    directory: Path, stack: ExitStack
) -> None:
    with dockerd(directory) as docker:
        docker.import_image("busybox")
        for name in ("web", "lost"):
            docker.run(name, "exec sleep 1000")
        node = node_of(docker, stack)
        assert node.run() == set()
        point = docker.docker("inspect", "--format", "{{.GraphDriver.Data.MergedDir}}", "lost")
        run("umount", "-l", point)
        assert node.run() == {("rootfs-not-mounted", point)}
        assert docker.docker("exec", "lost", "/bin/cat", "/proc/1/comm") == "sleep"  # it goes on
        with pytest.raises(AssertionError, match="Could not find the file"):
            docker.docker("cp", "lost:/bin/busybox", "-")
        obey(docker, node.remedy("rootfs-not-mounted").partition(": ")[2])
        assert node.run() == set()


@pytest.mark.docker
@pytest.mark.parametrize("option", ["overlay2.min_space=10GB", "overlay2.hysteresis=5"])
def test_the_options_that_are_found_do_stop_docker(directory: Path, option: str) -> None:
    name = option.partition("=")[0]
    with pytest.raises(AssertionError, match=f"unknown option {name}"), dockerd(directory, options=[option]):
        pass


@pytest.mark.docker
def test_vfs_is_found_until_docker_is_on_overlay2_and_what_is_left_until_it_is_removed(
    directory: Path, stack: ExitStack
) -> None:
    with dockerd(directory, "vfs") as docker:
        docker.import_image("busybox")
        node = node_of(docker, stack)
        assert node.run() == {("vfs-driver-in-use", f"{docker.root}/vfs")}
        remedy = node.remedy("vfs-driver-in-use").partition("For Docker: ")[2].partition("   #")[0]
        save, _, _, load_it = remedy.split("; ")
        obey(docker, f"cd {directory}; {save}")
    with dockerd(directory) as docker:
        node = node_of(docker, stack)
        obey(docker, f"cd {directory}; {load_it}")
        assert docker.docker("image", "ls", "--format", "{{.Repository}}") == "busybox"
        assert node.run() == {("stale-driver-residue", f"{docker.root}/vfs")}
        remedy = node.remedy("stale-driver-residue")
        command, says, _ = remedy.removeprefix("Make sure that ").partition(" says ")
        assert says
        assert obey(docker, command) == "overlay2"
        docker.run("web", "exec sleep 1000")
        obey(docker, remedy.partition("Then: ")[2])
        assert node.run() == set()
        docker.quit()
        docker.start()
        assert docker.docker("image", "ls", "--format", "{{.Repository}}") == "busybox"


@pytest.fixture
def parameter(need: Callable[..., None], stack: ExitStack) -> Callable[[str, str], None]:
    """Set a parameter of the overlay module, which is all the machine's, until the test ends."""
    need("mount")

    def set_it(name: str, value: str) -> None:
        stack.enter_context(setting(str(PARAMETERS / name), value))

    return set_it


@pytest.mark.docker
def test_a_container_written_with_metacopy_is_found_when_the_module_has_it_off(
    directory: Path, stack: ExitStack, parameter: Callable[[str, str], None]
) -> None:
    with dockerd(directory) as docker:
        docker.import_image("busybox")
        parameter("metacopy", "Y")
        docker.run("web", "exec sleep 1000")
        docker.docker("exec", "web", "/bin/busybox", "chmod", "700", "/bin/busybox")
        node = node_of(docker, stack)
        assert node.run() == set()
        parameter("metacopy", "N")
        ((name, _),) = node.run()
        assert name == "overlay-metacopy-redirect"
        remedy = node.remedy("overlay-metacopy-redirect").partition("again, ")[2].partition(";")[0]
        docker.docker("stop", "web")
        with pytest.raises(AssertionError, match=r"[Pp]ermi|no such file"):
            docker.docker("start", "web")
        run("sh", "-c", remedy)
        docker.docker("start", "web")
        assert node.run() == set()


@pytest.mark.docker
def test_a_native_diff_that_the_module_takes_is_found_until_the_remedy_is_done(
    directory: Path, stack: ExitStack, parameter: Callable[[str, str], None]
) -> None:
    parameter("redirect_dir", "Y")
    with dockerd(directory) as docker:
        node = node_of(docker, stack)
        assert node.run() == {("overlay-metacopy-redirect", f"{docker.root}/overlay2")}
        remedy = node.remedy("overlay-metacopy-redirect").partition("written: ")[2]
        command, restart, _ = remedy.partition("; systemctl restart docker")
        assert restart
        run("sh", "-c", command)
        docker.quit()
        docker.start()
        assert node.run() == set()


# containerd


def test_containers_of_containerd_and_a_task_without_its_root(stack: ExitStack, need: Callable[..., None]) -> None:
    need("containerd", "ctr", "busybox")
    with tempfile.TemporaryDirectory(prefix="ullage-ctr-") as short:
        root = Path(short) / "root"
        with containerd(Path(short), root) as made:
            node = Node(Runtimes((), (), (str(root),), (str(made.state),), ()))
            stack.callback(node.running.close)
            made.import_image("busybox")
            made.run("one", "overlayfs", "busybox", "exec sleep 1000")
            assert node.run() == set()
            assert node.containers("ullage_container_overlay_lowers") == {"one": 1}
            (driver,) = [labels for labels, _ in node.samples("ullage_storage_driver_info")]
            store = f"{root}/io.containerd.snapshotter.v1.overlayfs"
            assert (driver["runtime"], driver["driver"], driver["store"]) == ("containerd", "overlayfs", store)
            point = f"{made.state}/io.containerd.runtime.v2.task/default/one/rootfs"
            run("umount", "-l", point)
            assert node.run() == {("rootfs-not-mounted", point)}
            for command in node.remedy("rootfs-not-mounted").partition(": ")[2].partition("   #")[0].split(" && "):
                made.ctr(*shlex.split(command)[1:])
            assert node.run() == set()
            made.run("two", "native", "busybox", "exec sleep 1000")
            native = f"{root}/io.containerd.snapshotter.v1.native"
            assert node.run() == {("vfs-driver-in-use", native)}
