from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_kernel_has_device_mapper_with_thin_pools() -> None:
    subprocess.run(["modprobe", "dm-thin-pool"], check=True)
    targets = subprocess.run(["dmsetup", "targets"], check=True, capture_output=True, text=True).stdout.split()

    assert {"linear", "thin-pool", "thin"} <= set(targets)


def test_a_process_over_its_cgroups_limit_is_killed(cgroup: Path) -> None:
    (cgroup / "memory.max").write_text("16M")
    script = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); bytearray(64 << 20)"

    done = subprocess.run([sys.executable, "-S", "-c", script, cgroup / "cgroup.procs"], check=False)

    assert done.returncode == -9
    assert "oom_kill 1\n" in (cgroup / "memory.events").read_text()


@pytest.mark.parametrize("resource", ["cpu", "io", "memory"])
def test_a_cgroup_tells_its_pressure(cgroup: Path, resource: str) -> None:
    assert (cgroup / f"{resource}.pressure").read_text().startswith("some avg10=0.00 ")


def test_there_is_an_nvme_drive() -> None:
    written = b"\x5a" * 4096
    with Path("/dev/nvme0n1").open("r+b") as drive:
        drive.write(written)
        os.fsync(drive.fileno())
        drive.seek(0)

        assert drive.read(4096) == written

    assert Path("/sys/class/nvme/nvme0/transport").read_text() == "pcie\n"
    assert Path("/dev/nvme0").is_char_device()


def test_the_nvme_drive_answers_nvme_cli() -> None:
    told = subprocess.run(["nvme", "smart-log", "-o", "json", "/dev/nvme0"], check=True, capture_output=True).stdout

    assert json.loads(told)["percent_used"] == 0


@pytest.mark.parametrize("disk", ["vda", "vdb", "vdc"])
def test_there_are_three_disks(disk: str) -> None:
    assert int(Path(f"/sys/block/{disk}/size").read_text()) * 512 == 3 << 30


def test_the_hosts_root_cannot_be_written(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "virtiofs", "root", tmp_path], check=True)
    try:
        with pytest.raises(OSError, match="Read-only file system"):
            (tmp_path / "etc" / "proof").touch()
    finally:
        subprocess.run(["umount", tmp_path], check=True)
