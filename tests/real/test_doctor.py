"""`ullage doctor` on real states of this machine, line by line against the tools that a person would use."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from collectors import ALL
from tests.real.conftest import Make, run
from tests.real.daemon import WAIT
from tests.real.dockerd import dockerd

pytestmark = [pytest.mark.root, pytest.mark.slow]
BAR_LINE = re.compile(r"  (?P<watermark>\w+) +[-#:|]{40} +(?P<percent>[\d.]+)%  (?:(?P<tier>\w+)  )?(?P<target>/.*)")


def doctor(*arguments: str, wrapper: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*wrapper, sys.executable, "-m", "agent", "doctor", "--seconds=1", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=2 * WAIT)


@pytest.fixture
def only(tmp_path: Path) -> Callable[[Path], tuple[str, ...]]:
    """Return the flags with which doctor looks at one mount alone, whatever else this machine has."""

    def flags(mount: Path) -> tuple[str, ...]:
        config = tmp_path / "ullage.yml"
        others = f"^(?!{re.escape(str(mount))}$).*$"
        config.write_text(f"collectors: {{filesystem: {{mount_points_exclude: {json.dumps(others)}}}}}\n")
        switches = [f"--no-collector.{each.name}" for each in ALL if each.name != "filesystem"]
        return (*switches, f"--config.file={config}")

    return flags


def df(mount: Path | str, *columns: str) -> list[int]:
    """Return columns of df, in bytes or inodes."""
    told = run("df", "--block-size=1", f"--output={','.join(columns)}", str(mount)).splitlines()[1]
    return [int(word) for word in told.split()]


def fill(mount: Path, share: float) -> None:
    """Fill a filesystem until so much of what can be used is used."""
    used, available = df(mount, "used", "avail")
    with open(mount / "fill", "ab") as file:
        file.write(b"\0" * int(share * (used + available) - used))
        os.fsync(file.fileno())


def test_the_exit_code_is_that_of_a_real_filesystem_s_state(
    filesystem: Make, only: Callable[[Path], tuple[str, ...]]
) -> None:
    mount = filesystem("ext4", "-m", "0", size=128)
    for share, code, verdict in ((0.5, 0, "clean"), (0.83, 1, "warnings"), (0.93, 2, "critical")):
        fill(mount, share)
        told = doctor(*only(mount))
        assert told.returncode == code, told.stdout + told.stderr
        assert f": {verdict} (two readings" in told.stdout.splitlines()[0]
    (mount / "fill").unlink()
    assert doctor(*only(mount)).returncode == 0
    assert doctor("--from=http://127.0.0.1:1").returncode == 3


def test_each_bar_is_what_df_says(filesystem: Make) -> None:
    mounts = [filesystem("ext4", "-N", "512", size=64), filesystem("xfs", size=320)]
    fill(mounts[0], 0.86)
    for number in range(300):
        (mounts[0] / f"f{number}").touch()
    fill(mounts[1], 0.4)
    lines = [match for line in doctor().stdout.splitlines() if (match := BAR_LINE.fullmatch(line))]
    shown = {(match["watermark"], match["target"]): match for match in lines}
    for mount in mounts:
        used, available, inodes, free = df(mount, "used", "avail", "itotal", "iavail")
        for watermark, ratio in (("filesystem_bytes", used / (used + available)), ("inodes", 1 - free / inodes)):
            match = shown[watermark, str(mount)]
            assert float(match["percent"]) == pytest.approx(100 * ratio, abs=0.2)
            # both have the tiers 80 and 90 %
            assert match["tier"] == ("critical" if ratio >= 0.9 else "warning" if ratio >= 0.8 else None)
    points = set(run("findmnt", "--noheadings", "--list", "--output", "TARGET").splitlines())
    assert {target for _, target in shown} <= points


def test_the_node_is_what_its_own_tools_say() -> None:
    told = json.loads(doctor("--json").stdout)
    assert told["node"]["kernel"] == run("uname", "-r")
    assert told["node"]["hostname"] == run("uname", "-n")
    release = run("sh", "-c", '. /etc/os-release; echo "$PRETTY_NAME"')
    assert told["node"]["os"] == release
    kind = run("stat", "--file-system", "--format=%T", "/sys/fs/cgroup")
    assert (told["node"]["cgroup"] == "v2") is (kind == "cgroup2fs")
    boot = int(re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)[1])  # type: ignore[index]
    assert told["node"]["boot_time"] == boot
    lines = doctor().stdout.splitlines()
    assert any(line.startswith(f"  {release}, Linux {run('uname', '-r')}, cgroup ") for line in lines)


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ull-") as made:  # a socket's path must be short
        yield Path(made)


@pytest.mark.docker
def test_the_runtime_is_what_docker_says(need: Callable[..., None], filesystem: Make, directory: Path) -> None:
    need("dockerd", "docker", "findmnt")
    root = filesystem("ext4", size=256)
    with dockerd(directory, "vfs", root) as daemon:
        daemon.import_image("busybox")
        flags = (f"--runtime.docker.root={root}", f"--runtime.docker.socket={daemon.socket}")
        text, told = doctor(*flags), json.loads(doctor("--json", *flags).stdout)
        version, driver = daemon.docker("info", "--format", "{{.ServerVersion}} {{.Driver}}").split()
        fstype = run("findmnt", "--noheadings", "--output", "FSTYPE", "--mountpoint", str(root))
    (stores,) = [fact["items"] for fact in told["facts"] if fact["metric"] == "ullage_storage_driver_info"]
    assert {
        "runtime": "docker",
        "driver": driver,
        "store": f"{root}/vfs",
        "backing_filesystem": fstype,
        "version": version,
    } in stores
    assert f"Storage drivers: docker {driver} {root}/vfs {fstype} {version}" in text.stdout
    assert f"  warning   vfs-driver-in-use  {root}/vfs\n" in text.stdout
    assert "            $ For Docker: docker save" in text.stdout
    assert text.returncode in (1, 2)


def missing(told: Any) -> set[tuple[str, str]]:
    """Return what collectors are without: collector and capability."""
    return {
        (each["name"], name) for each in told["collectors"] for lack in each["lacks"] for name in lack["capabilities"]
    }


def test_what_a_process_without_rights_is_without_is_told(need: Callable[..., None], tmp_path: Path) -> None:
    need("setpriv", "mount")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    # root without a capability: it may run the same interpreter, wherever that is, and not look where it does not own
    powerless = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")
    status = run(*powerless, "cat", "/proc/self/status")
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    inside = closed / "inside"
    inside.mkdir()
    os.chown(closed, 65534, 65534)
    before = missing(json.loads(doctor("--json", wrapper=powerless).stdout))
    assert ("filesystem", "DAC_READ_SEARCH") not in before
    run("mount", "-t", "tmpfs", "none", str(inside))
    try:
        text, told = doctor(wrapper=powerless), json.loads(doctor("--json", wrapper=powerless).stdout)
        lacked = missing(told)
        assert "up" in {each["state"] for each in told["collectors"] if each["name"] == "filesystem"}
        assert ("filesystem", "DAC_READ_SEARCH") in lacked  # the mount below a closed directory
        refused = {each["name"] for each in told["collectors"] if each["errors"].get("permission")}
        unsupported = {each["name"] for each in told["collectors"] if each["state"] == "unsupported"}
        assert {name for name, _ in lacked} <= refused | unsupported
        assert "               without CAP_DAC_READ_SEARCH: mounts below directories" in text.stdout
        assert re.search(r"^      .*--cap-add DAC_READ_SEARCH", text.stdout, re.MULTILINE)
        assert ("filesystem", "DAC_READ_SEARCH") not in missing(json.loads(doctor("--json").stdout))
    finally:
        run("umount", str(inside))
