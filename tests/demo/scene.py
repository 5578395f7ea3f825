"""The demonstration's scene: an ext4 with few inodes and a btrfs with limits, which fill and empty like tides.

With Docker on the machine, a dockerd of its own on that btrfs runs two containers with limits, and another one with the
overlay2 driver a container that makes files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.inodes import Inodes
from tests.e2e.loops import mounted
from tests.e2e.qgroups import Subvolume, enable
from tests.e2e.stack import Receiver, Stack
from tests.generate import ROOT
from tests.real.dockerd import Dockerd, dockerd

TOOLS = ("prometheus", "prometheus-alertmanager", "mkfs.ext4", "mkfs.btrfs", "btrfs", "losetup")
DOCKER = ("dockerd", "docker", "busybox")
CYCLE = 240.0  # seconds from empty to full to empty
LOW, HIGH = 0.30, 0.97
EXAMPLE = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
CONFIG = """
collectors:
  filesystem: {interval: 2s}
  pagecache: {interval: 2s}
  qgroup: {interval: 2s}
  writeamp: {interval: 2s}
  layers: {interval: 2s}
rules: {keep_firing_for: 5s}
"""
# what containers do: write a file of so many MiB, read it, write it anew; make empty files, 5,000 at most
WORK = "while true; do dd if=/dev/zero of=/tmp/x bs=1M count=%d; sync; sleep 20; dd if=/tmp/x of=/dev/null bs=1M; done"

FILES = "i=0; while true; do i=$((i + 1)); : > /tmp/$((i % 5000)); if [ $((i % 40)) = 0 ]; then sleep 1; fi; done"


def lack() -> str:
    """Return what this machine lacks for the demonstration, or nothing."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"not found: {', '.join(missing)}; apt-get install prometheus prometheus-alertmanager btrfs-progs"
    return "" if os.geteuid() == 0 else "it mounts filesystems, which needs root"


def level(seconds: float, offset: float = 0.0) -> float:
    """Return how full something is after so many seconds: a triangle between low and high; `offset` is a part of it."""
    place = (seconds / CYCLE + offset) % 1.0
    return LOW + (HIGH - LOW) * (1 - abs(2 * place - 1))


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that runs. `pager` and `team` are who the example for Alertmanager tells."""

    stack: Stack
    pager: Receiver
    team: Receiver
    ext4: Path
    btrfs: Path
    has_containers: bool
    tides: Sequence[Callable[[float], None]]

    def play(self, until: Callable[[], bool], told: Callable[[str], None]) -> None:
        """Let the tides run until a condition holds, and say what each receiver is told."""
        begun, seen = time.monotonic(), {"pager": 0, "team": 0}
        last: dict[tuple[str, ...], str] = {}  # a group that changes is told as a whole
        while not until():
            for tide in self.tides:
                tide(time.monotonic() - begun)
            for name, receiver in (("pager", self.pager), ("team", self.team)):
                for status, alert, labels in receiver.notifications[seen[name] :]:
                    seen[name] += 1
                    who = (name, *sorted(labels.values()))
                    if last.get(who) != status:
                        told(f"{time.strftime('%H:%M:%S')}  {name}: {status} {alert} {labels.get('target', '')}")
                    last[who] = status
            time.sleep(1)


@contextlib.contextmanager
def scene(others: dict[str, str] | None = None) -> Iterator[Scene]:
    """Have everything for the time of a block; nothing of it is left. `others` are more nodes for Prometheus."""
    with contextlib.ExitStack() as made:
        directory = Path(made.enter_context(tempfile.TemporaryDirectory(prefix="ullage-demo-")))
        ext4 = made.enter_context(mounted(directory / "ext4", 64, "mkfs.ext4", "-q", "-F", "-N", "1024"))
        btrfs = made.enter_context(mounted(directory / "btrfs", 2048, "mkfs.btrfs", "-q"))
        enable(btrfs)
        inodes = Inodes(ext4)
        subvolumes = [Subvolume(btrfs, f"limited-{number}", is_exclusive=number == 2) for number in range(3)]
        config = CONFIG
        has_containers = all(shutil.which(tool) for tool in DOCKER)
        if has_containers:
            images = made.enter_context(mounted(directory / "images", 512, "mkfs.ext4", "-q", "-F"))
            for name in ("a", "b"):
                (directory / name).mkdir()
            quotas = made.enter_context(dockerd(directory / "a", "btrfs", btrfs / "docker"))
            layers = made.enter_context(dockerd(directory / "b", "overlay2", images / "docker"))
            _start_containers(quotas, layers)
            roots, sockets = f"{quotas.root}, {layers.root}", f"{quotas.socket}, {layers.socket}"
            config += f"runtime: {{docker: {{root: [{roots}], socket: [{sockets}]}}}}\n"
        receivers = Receiver(), Receiver()
        for receiver in receivers:
            made.callback(receiver.close)
        stack = Stack(directory, config, _alertmanager(*receivers), is_hurried=True, others=others)
        made.callback(stack.close)
        stack.start()
        tides = [lambda seconds: inodes.fill(level(seconds)), *(_tide(*each) for each in enumerate(subvolumes))]
        yield Scene(stack, *receivers, ext4, btrfs, has_containers, tides)


def _tide(number: int, subvolume: Subvolume) -> Callable[[float], None]:
    return lambda seconds: subvolume.fill(round(100 * level(seconds, number / 3)))


def _start_containers(quotas: Dockerd, layers: Dockerd) -> None:
    for docker in (quotas, layers):
        docker.import_image("busybox")
    quotas.docker("volume", "create", "data")
    for name, size, limit in (("web", 60, "64m"), ("database", 225, "256m")):
        options = ("--detach", "--network=none", "--memory", limit, "--storage-opt", "size=256M", "--name", name)
        quotas.docker("run", *options, "busybox", "/bin/sh", "-c", WORK % size)
    layers.run("sessions", FILES)


def _alertmanager(pager: Receiver, team: Receiver) -> str:
    """Return the example for Alertmanager with our receivers, which are told soon."""
    text = EXAMPLE.read_text().replace("group_wait: 30s", "group_wait: 2s").replace("group_wait: 10s", "group_wait: 1s")
    text = text.replace("group_interval: 5m", "group_interval: 5s")
    text = text.replace("http://pager.example.org/alerts", pager.url)
    return text.replace("http://team.example.org/alerts", team.url)
