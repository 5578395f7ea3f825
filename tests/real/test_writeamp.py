"""The writeamp collector on real filesystems and loop devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.collector import Start
from agent.containers import Runtimes
from agent.host import Host
from agent.metric import Sample
from collectors import writeamp
from tests.real.conftest import Make, run
from tests.real.dockerd import dockerd

pytestmark = pytest.mark.root
MIB = 1 << 20


class Node:
    """The collector at work."""

    def __init__(self, runtimes: Runtimes | None = None) -> None:
        self.host = Host()
        self._running = writeamp.COLLECTOR.start(Start(self.host, writeamp.Settings(), runtimes=runtimes or Runtimes()))

    def read(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Do one run."""
        samples = [each for each in self._running.collect(self.host) if isinstance(each, Sample)]
        return {
            (each.metric.name, frozenset(zip(each.metric.labels, each.labels, strict=True))): each.value
            for each in samples
        }

    def written(self, container: str) -> float:
        """Do one run; return what a container has written, 0 if it is not known."""
        name = writeamp.PROCESSES.name
        samples = self.read().items()
        return next(
            (value for (metric, labels), value in samples if metric == name and ("container", container) in labels), 0
        )

    def layer(self, device: str) -> tuple[float, float]:
        """Do one run; return what was asked of a filesystem and what reached its device."""
        found: dict[str, float] = {}
        for (name, labels), value in self.read().items():
            if ("device", device) in labels and ("layer", "filesystem") in labels:
                found[name] = value
        return found[writeamp.WRITTEN.name], found[writeamp.REACHED.name]


def device_of(mount: Path) -> str:
    return run("findmnt", "--noheadings", "--output", "SOURCE", str(mount)).removeprefix("/dev/")


def test_large_sequential_writes_on_xfs_are_not_amplified(filesystem: Make, need: Callable[..., None]) -> None:
    need("findmnt")
    mount = filesystem("xfs", size=400)
    node, device = Node(), device_of(mount)
    run("sync", "-f", str(mount))
    asked, reached = node.layer(device)
    with open(mount / "file", "wb") as file:
        file.writelines(os.urandom(MIB) for _ in range(128))
        file.flush()
        os.fsync(file.fileno())
    run("sync", "-f", str(mount))
    asked_after, reached_after = node.layer(device)
    assert asked_after - asked == 128 * MIB
    assert (reached_after - reached) / (asked_after - asked) == pytest.approx(1, abs=0.05)


def test_small_synchronous_writes_on_xfs_are(filesystem: Make, need: Callable[..., None]) -> None:
    need("findmnt")
    mount = filesystem("xfs", size=400)
    node, device = Node(), device_of(mount)
    asked, reached = node.layer(device)
    descriptor = os.open(mount / "file", os.O_WRONLY | os.O_CREAT | os.O_SYNC)
    for number in range(200):
        os.pwrite(descriptor, b"x" * 100, number * 100)
    os.close(descriptor)
    asked_after, reached_after = node.layer(device)
    assert asked_after - asked == 200 * 100
    assert (reached_after - reached) / (asked_after - asked) > 10


def test_loop_devices_and_their_partitions_are_no_disks(tmp_path: Path, need: Callable[..., None]) -> None:
    need("losetup")
    image = tmp_path / "disk.img"
    table = bytearray(512)  # one partition of 8 MiB behind the first MiB
    table[446:462] = bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (16384).to_bytes(4, "little")
    table[510:] = b"\x55\xaa"
    with open(image, "wb") as file:
        file.write(table)
        file.truncate(16 * MIB)
    device = run("losetup", "--find", "--show", "--partscan", str(image))
    try:
        disks = {dict(labels)["device"] for name, labels in Node().read() if name == writeamp.DEVICE.name}
        assert disks
        assert not {disk for disk in disks if disk.startswith(("loop", "dm-", "md"))}
        assert all(os.path.exists(f"/sys/block/{disk}/device") for disk in disks)
    finally:
        run("losetup", "--detach", device)


def test_doctor_tells_the_amplification_between_its_two_readings(filesystem: Make, need: Callable[..., None]) -> None:
    need("findmnt")
    mount = filesystem("xfs", size=400)
    device = device_of(mount)
    command = [sys.executable, "-m", "agent", "doctor", "--seconds", "3", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as doctor:
        assert doctor.stdout is not None
        until = time.monotonic() + 60
        number = 0
        while doctor.poll() is None and time.monotonic() < until:  # it is not told when the first reading is over
            number += 1
            with open(mount / str(number % 8), "wb") as file:
                file.write(os.urandom(16 * MIB))
                file.flush()
                os.fsync(file.fileno())
        report = json.loads(doctor.stdout.read())
    (found,) = [each for each in report["ratios"] if each["target"].endswith(f"xfs {device}")]
    assert found["ratio"] == pytest.approx(1, abs=0.3)


@pytest.mark.docker
def test_what_a_containers_processes_write_is_their_containers(filesystem: Make, need: Callable[..., None]) -> None:
    need("dockerd", "docker", "busybox")
    with tempfile.TemporaryDirectory() as short, dockerd(Path(short), root=filesystem("ext4", size=300)) as docker:
        docker.import_image("busybox")
        script = (
            "while [ ! -e /go ]; do sleep 0.1; done; i=0; while [ $i -lt 8 ]; do i=$((i + 1)); "
            "dd if=/dev/zero of=/file$i bs=64k count=128 conv=fsync; sleep 1; done; : > /done; exec sleep 600"
        )
        writer, idler = docker.run("writer", script), docker.run("idler", "exec sleep 600")
        node = Node(runtimes=Runtimes(docker_roots=(str(docker.root),)))
        node.read()
        docker.docker("exec", writer, "/bin/sh", "-c", ": > /go")
        done, seen = Path(docker.docker("inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", writer)) / "done", set()
        until = time.monotonic() + 60
        while not done.exists() and time.monotonic() < until:
            seen.add(node.written("writer"))  # the writer is a child, of which the shell takes over what it wrote
        assert len(seen) > 2
        assert 64 * MIB <= node.written("writer") < 65 * MIB
        assert node.written("idler") < MIB
        assert idler
