"""What `ullage doctor --advise` tells of real Docker daemons, against Docker's own word and what the node does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.real.conftest import Make, run
from tests.real.containerd import containerd
from tests.real.daemon import WAIT
from tests.real.dockerd import Dockerd, dockerd

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.slow]


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ull-") as made:  # a socket's path must be short
        yield Path(made)


def advise(root: Path, socket: Path, *flags: str) -> tuple[int, Any]:
    command = [sys.executable, "-m", "agent", "doctor", "--advise", "--json"]
    command += [f"--runtime.docker.root={root}", f"--runtime.docker.socket={socket}", *flags]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=WAIT)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def of(told: Any, driver: str) -> Any:
    (found,) = [each for each in told["drivers"] if (each["driver"], each["runtime"]) == (driver, "docker")]
    return found


def takes_a_limit(daemon: Dockerd) -> bool:
    """Return whether Docker makes a container with a limit."""
    daemon.import_image("busybox")
    command = ["docker", "-H", f"unix://{daemon.socket}", "create", "--network=none", "--storage-opt", "size=50m"]
    done = subprocess.run([*command, "busybox", "/bin/sh"], check=False, capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 0 or "storage-opt" in done.stderr.lower(), done.stderr
    return done.returncode == 0


class Case(NamedTuple):
    """A filesystem and a driver on it. `is_limited` None: Docker switches the quota on itself, or has none."""

    kind: str
    driver: str
    code: int = 0
    options: str = "defaults"
    is_limited: bool | None = None


@pytest.mark.parametrize(
    "case",
    [
        Case("ext4", "overlay2", is_limited=False),
        Case("xfs", "overlay2", is_limited=False),
        Case("xfs", "overlay2", options="prjquota"),
        Case("btrfs", "btrfs"),
        Case("ext4", "vfs", code=1),
    ],
    ids=lambda case: f"{case.driver}-{case.kind}-{case.options}",
)
def test_the_advice_is_what_docker_and_the_node_say(
    need: Callable[..., None], filesystem: Make, directory: Path, case: Case
) -> None:
    need("dockerd", "docker", "findmnt")
    options, is_limited = case.options, case.is_limited
    if options == "prjquota":  # a kernel may be built without XFS' quota: then nothing limits a container
        filesystem("xfs", size=512)  # its module is there now
        is_limited = os.path.exists("/proc/fs/xfs/xqm")
        options = options if is_limited else "defaults"
    root = filesystem(case.kind, size=512, options=options)
    with dockerd(directory, case.driver, root) as daemon:
        exit_code, told = advise(root, daemon.socket)
        assert daemon.docker("info", "--format", "{{.Driver}}") == case.driver
        assert told["node"]["docker"] == daemon.docker("info", "--format", "{{.ServerVersion}}")
        used = [
            each["driver"] for each in told["drivers"] if (each["verdict"], each["runtime"]) == ("in use", "docker")
        ]
        assert used == [case.driver]
        place = told["node"]["places"]["docker"]
        shown = run("findmnt", "--noheadings", "--output", "FSTYPE,SOURCE", "--mountpoint", str(root)).split()
        assert [place["filesystem"], place["device"]] == shown[:2]
        if is_limited is not None:
            assert takes_a_limit(daemon) is is_limited
            assert of(told, case.driver)["limit"].startswith("none") is not is_limited
    assert exit_code == case.code
    assert told["node"]["kernel"] == run("uname", "-r")
    registered = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    for name in ("overlay", "btrfs"):
        if name in registered:
            assert told["node"]["has"][name] == "yes"


def test_the_version_of_containerd_is_told_by_the_docker_that_uses_it(
    need: Callable[..., None], filesystem: Make, directory: Path
) -> None:
    need("dockerd", "docker", "containerd", "ctr")
    root = filesystem("ext4", size=256)
    for name in ("c", "d"):
        (directory / name).mkdir()
    with (
        containerd(directory / "c", root / "containerd") as beneath,
        dockerd(directory / "d", "overlay2", root / "docker", containerd=beneath.socket) as daemon,
    ):
        roots = [f"--runtime.containerd.root={beneath.root}", f"--runtime.containerd.state={beneath.state}"]
        _, told = advise(daemon.root, daemon.socket, *roots)
        _, unknown = advise(daemon.root, daemon.socket)
        _, server = beneath.ctr("version").split("Server:")
        (version,) = [line.split()[1] for line in server.splitlines() if line.split()[:1] == ["Version:"]]
    assert (told["node"]["containerd"], unknown["node"]["containerd"]) == (version, "")


def test_what_is_not_here_docker_does_not_start_with(
    need: Callable[..., None], filesystem: Make, directory: Path
) -> None:
    need("dockerd", "docker")
    root = filesystem("ext4", "-O", "^filetype", size=128)
    _, told = advise(root, directory / "docker.sock")
    for driver in ("overlay2", "btrfs", "zfs"):
        assert of(told, driver)["verdict"] == "not here"
        with pytest.raises(AssertionError, match="failed to start daemon"), dockerd(directory, driver, root):
            pass
    assert "d_type" in " ".join(of(told, "overlay2")["reasons"])
