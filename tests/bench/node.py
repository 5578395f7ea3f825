"""A node to measure a whole agent on: cgroups with a process in each, layers full of inodes, mounts, qgroups.

It grows by quarters, so that one agent is seen at several sizes, and something changes on it all the time.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from agent.host import Host
from collectors.cgroups import layout
from tests.bench import cgroups, filesystem, layers, qgroups
from tests.unit.storetrees import DockerTree

CGROUPS, IMAGES, CONTAINERS, MOUNTS, QGROUPS = 250, 71, 2, 125, 500  # in a quarter
BUSY = 4  # cgroups of a quarter in which something happens
CHAIN = 10  # layers of an image
IDLE = 'echo $$ > "$0"/cgroup.procs; exec sleep 1000000'
AT_WORK = 'echo $$ > "$0"/cgroup.procs; while :; do sleep 1; done'
NAMES = ("pod.namespace", "pod.name", "container.name")


class Node:
    """What was made of it so far; all of it goes when the stack is closed."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        found = layout(Host())
        assert found is not None, "no memory controller"
        self.directory = directory
        self.containers: list[Path] = []
        self.processes: list[int] = []
        self.mounts: list[str] = []
        self.layers = self.qgroups = 0
        self._stack = stack
        self._root = Path("/" + found.root)
        (directory / "layers").mkdir()
        (directory / "btrfs").mkdir()
        self.docker = DockerTree(stack.enter_context(layers.filesystem(directory / "layers")) / "docker")
        self.btrfs = stack.enter_context(qgroups.btrfs(directory / "btrfs", 0))
        self._names = directory / "names"
        self._quarters = 0
        self._writable: list[Path] = []
        stack.enter_context(self._life())

    @property
    def flags(self) -> list[str]:
        """Where an agent finds the runtimes."""
        return [f"--runtime.docker.root={self.docker.root}", f"--runtime.containers-storage.root={self._names}"]

    def grow(self, quarters: int) -> None:
        """Make so many quarters of the node more."""
        for _ in range(quarters):
            self._grow()

    def _grow(self) -> None:
        number, self._quarters = self._quarters, self._quarters + 1
        made = self._stack.enter_context(cgroups.cgroups(self._root, CGROUPS))
        for place, path in enumerate(made):
            self._name(path, number, place)
            script = AT_WORK if place < BUSY else IDLE
            self.processes.append(self._stack.enter_context(living(["sh", "-c", script, str(path)])))
        self.containers += made
        root = self.directory / f"mounts-{number}"
        self.mounts += self._stack.enter_context(filesystem.mounts(root, MOUNTS))
        contents, parent = [], ""
        for place in range(IMAGES):
            parent = self.docker.image(f"{number}-{place}", parent if place % CHAIN else "")
            contents.append(parent)
        for place in range(CONTAINERS):
            _, mount = self.docker.container(f"{number}-{place}", parent)
            contents += [mount, f"{mount}-init"]
            self._writable.append(self.docker.path / mount / "diff")
        layers.fill(f"{self.docker.path}/{name}/diff" for name in contents)
        self.layers += len(contents)
        qgroups.make_subvolumes(self.btrfs, range(number * QGROUPS, (number + 1) * QGROUPS))
        self.qgroups += QGROUPS
        qgroups.command("btrfs", "quota", "rescan", "-w", str(self.btrfs))

    def _name(self, path: Path, number: int, place: int) -> None:
        """Keep a container's names where CRI-O does."""
        data = self._names / "overlay-containers" / path.name / "userdata"
        data.mkdir(parents=True)
        values = f"team-{place % 20}", f"service-{number}-{place}-5d4f7c9b8d-x7k2p", f"app-{place % 7}"
        notes = {f"io.kubernetes.{name}": value for name, value in zip(NAMES, values, strict=True)}
        linux = {"cgroupsPath": f"/kubepods/burstable/pod{path.name[:32]}/crio-{path.name}"}
        (data / "config.json").write_text(json.dumps({"annotations": notes, "linux": linux}))

    @contextlib.contextmanager
    def _life(self) -> Iterator[None]:
        """Write a little here and there, once a second."""
        has_ended = threading.Event()

        def live() -> None:
            turn = 0
            while not has_ended.wait(1.0):
                turn += 1
                places = [*self.mounts[turn % 100 :: 100], *map(str, self._writable), *self._subvolumes(turn)]
                for place in places:
                    with open(f"{place}/written", "ab") as file:
                        file.write(bytes(4096))

        thread = threading.Thread(target=live)
        thread.start()
        try:
            yield
        finally:
            has_ended.set()
            thread.join()

    def _subvolumes(self, turn: int) -> list[str]:
        return [f"{self.btrfs}/subvolume-{number}" for number in range(turn % 100, self.qgroups, 100)]


@contextlib.contextmanager
def living(command: list[str]) -> Iterator[int]:
    """Have a process for the time of a block, of which its id is given; what it has started ends with it."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield process.pid
    finally:
        os.killpg(process.pid, 9)
        process.wait()
