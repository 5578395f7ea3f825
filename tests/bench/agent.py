"""The whole agent, every collector at its default interval, on a node that grows; against node_exporter and C.

The C floor is what it costs to read the same files once: memory.stat of each cgroup by a kept descriptor, the space of
each mount, and of each process its stat, cgroup and io; of a qgroup with a limit its files in sysfs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from agent.host import Host
from collectors.cgroups import layout
from tests.bench import qgroups
from tests.bench.cgroups import compile_c
from tests.bench.measure import Result, cpu_of, free_port, process, wait_for
from tests.bench.node import Node

TOOLS = ("prometheus-node-exporter", "mkfs.ext4", "mkfs.btrfs", "btrfs", "losetup", "gcc")
MIB = 1 << 20
SCRAPE_EVERY = 15.0  # seconds
SETTLE = 62.0  # seconds: each collector has seen what is new
WINDOW = 60.0  # seconds: a whole number of all intervals
START = 31.0  # seconds: each collector but those of processes has run, some twice
AFTER_COUNT = 10.0  # seconds: what was counted is written down
COUNTED_WITHIN = 300.0
SCRAPES = 200
SWEEPS = 20
TOP = 1000  # containers with series of their own, all of them; 200 are the default
CONFIG = f"collectors: {{pagecache: {{top: {TOP}}}}}\n"
STEPS = (1, 1, 2)  # quarters of the node that it grows by


@dataclass(frozen=True, slots=True)
class Spent:
    """What a process and its helpers have spent so far: seconds of CPU, switches, bytes read from disks."""

    user: float
    system: float
    helpers: float
    switches: int
    read: int

    @classmethod
    def of(cls, pid: int) -> Spent:
        own = psutil.Process(pid)
        helpers = own.children(recursive=True)
        user, system, *_ = own.cpu_times()
        scale = cpu_of(pid) / max(0.01, user + system)  # the two are told in ticks, their sum is not
        return cls(
            user * scale,
            system * scale,
            sum(cpu_of(helper.pid) for helper in helpers),
            sum(map(switches_of, Path(f"/proc/{pid}/task").iterdir())),
            sum(each.io_counters().read_bytes for each in (own, *helpers)),
        )

    def since(self, before: Spent, per: float) -> Spent:
        """Return what was spent in a time, as what it makes in a minute; bytes are not."""
        each = 60.0 / per
        return Spent(
            (self.user - before.user) * each,
            (self.system - before.system) * each,
            (self.helpers - before.helpers) * each,
            round((self.switches - before.switches) * each),
            self.read - before.read,
        )

    @property
    def cpu(self) -> float:
        return self.user + self.system + self.helpers

    def __str__(self) -> str:
        text = f"{self.cpu * 1e3:.0f} ms of CPU a minute ({self.user * 1e3:.0f} user, {self.system * 1e3:.0f} system"
        text += f", {self.helpers * 1e3:.0f} in helpers)" if self.helpers else ")"
        return f"{text}, {self.switches:,} context switches, {self.read:,} bytes read from disks"


def switches_of(task: Path) -> int:
    try:
        lines = (task / "status").read_text().splitlines()
    except OSError:  # a thread that has ended
        return 0
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


def size_of(pid: int) -> str:
    own = psutil.Process(pid)
    memory = own.memory_full_info()
    helpers = sum(child.memory_full_info().uss for child in own.children(recursive=True))
    text = f"{memory.rss / MIB:.1f} MiB resident, {memory.pss / MIB:.1f} proportional"
    text += f", helpers {helpers / MIB:.1f} of their own" if helpers else ""
    return f"{text}; {own.num_fds():,} descriptors, {own.num_threads()} threads"


def fetch(port: int) -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        body: bytes = answer.read()
        return body


def samples(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return [line for line in answer.read().decode().splitlines() if not line.startswith("#")]


@contextlib.contextmanager
def scraping(*ports: int) -> Iterator[None]:
    """Scrape as Prometheus does."""
    has_ended = threading.Event()

    def scrape() -> None:
        while not has_ended.wait(SCRAPE_EVERY):
            for port in ports:
                fetch(port)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()


def wait_until_counted(port: int, layers: int) -> None:
    """Wait until each of the layers, the newest among them, has been counted once."""
    end = time.monotonic() + COUNTED_WITHIN
    while True:
        lines = samples(port)
        told = [line.split()[-1] for line in lines if line.startswith("ullage_layers_count_progress_ratio")]
        seen = sum(int(line.split()[-1]) for line in lines if line.startswith("ullage_layers{"))
        if seen == layers and told and min(map(float, told)) == 1.0:
            return
        assert time.monotonic() < end, f"layers are not counted: {told}, {seen} of {layers} seen"
        time.sleep(2)


def floor(node: Node, directory: Path) -> float:
    """Return the CPU seconds a minute that C takes for the same reads."""
    found = layout(Host())
    assert found is not None
    limited = [path for path in qgroups.files(node.btrfs) if int(path.split("/")[-2].split("_")[1]) % 10 == 6]
    reads: Sequence[tuple[str, list[str], int]] = (
        ("sweep_kept", [f"{path}/memory.stat" for path in node.containers], 4),
        ("sweep_statvfs", node.mounts, 6),
        ("sweep_open", [f"/proc/{pid}/{name}" for pid in node.processes for name in ("stat", "cgroup", "io")], 1),
        ("sweep_open", limited, 2),
    )
    total = 0.0
    for program, paths, times in reads:
        listing = directory / "list"
        listing.write_text("".join(f"{path}\n" for path in paths))
        command = [compile_c(program, str(directory)), str(listing), str(SWEEPS)]
        total += float(subprocess.run(command, check=True, capture_output=True).stdout) / SWEEPS * times
    return total


def scrape_cost(port: int, pid: int) -> tuple[float, int]:
    """Return the milliseconds of CPU of a scrape, and what all of them read from disks."""
    before = Spent.of(pid)
    for _ in range(SCRAPES):
        fetch(port)
    spent = Spent.of(pid).since(before, 60.0)
    return spent.cpu / SCRAPES * 1e3, spent.read


def without_layers(node: Node, config: Path, directory: Path) -> Result:
    port = free_port()
    command = [*agent(port, config, directory / "other"), *node.flags, "--no-collector.layers"]
    with process(command) as started, scraping(port):
        wait_for(f"http://127.0.0.1:{port}/-/ready")
        fetch(port)
        time.sleep(START)
        size = psutil.Process(started.pid).memory_info().rss / MIB
        return Result("resident memory without the index of layers", [size], 40.0, "MiB", size_of(started.pid))


def agent(port: int, config: Path, state: Path) -> list[str]:
    flags = f"--web.listen-address=127.0.0.1:{port}", f"--config.file={config}", f"--path.state={state}"
    return [sys.executable, "-m", "agent", "run", *flags]


def run() -> Iterator[Result]:
    if os.geteuid() != 0 or any(shutil.which(tool) is None for tool in TOOLS) or layout(Host()) is None:
        print(f"agent: skipped, needs root, a memory controller, {', '.join(TOOLS)}")
        return
    ports = free_port(), free_port()
    theirs = ["prometheus-node-exporter", f"--web.listen-address=127.0.0.1:{ports[1]}"]
    costs: list[tuple[int, Spent]] = []
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = directory / "ullage.yml"
        config.write_text(CONFIG)
        node = Node(directory, stack)
        node.grow(STEPS[0])
        own = stack.enter_context(process([*agent(ports[0], config, directory / "state"), *node.flags])).pid
        other = stack.enter_context(process(theirs)).pid
        for port, path in zip(ports, ("/-/ready", "/metrics"), strict=True):
            wait_for(f"http://127.0.0.1:{port}{path}")
        stack.enter_context(scraping(*ports))
        for place, quarters in enumerate(STEPS):
            if place:
                node.grow(quarters)
            grown = time.monotonic()
            wait_until_counted(ports[0], node.layers)
            time.sleep(max(AFTER_COUNT, grown + SETTLE - time.monotonic()))
            before, their_before, began = Spent.of(own), Spent.of(other), time.monotonic()
            time.sleep(WINDOW)
            took = time.monotonic() - began
            spent, theirs_spent = Spent.of(own).since(before, took), Spent.of(other).since(their_before, took)
            series = len(samples(ports[0]))
            costs.append((len(node.containers), spent))
            print(
                f"{len(node.containers):,} cgroups and processes, {len(node.mounts)} mounts, {node.qgroups:,} qgroups, "
                f"{series:,} samples: {spent}",
                flush=True,
            )
        detail = f"{size_of(own)}\n    node_exporter: {theirs_spent}; {size_of(other)}\n    "
        detail += f"C that reads the same: {floor(node, directory) * 1e3:.0f} ms of CPU a minute"
        yield Result("the whole agent, of one core", [spent.cpu / 60 * 100], 0.5, "%", detail)
        yield Result("the whole agent, against node_exporter", [spent.cpu / theirs_spent.cpu], 1.0)
        (few, at_few), *_, (many, at_many) = costs
        growth = at_many.cpu / at_few.cpu / (many / few)
        yield Result(f"its cost for each cgroup, mount, qgroup at {many:,}, against that at {few}", [growth], 1.1)
        size = psutil.Process(own).memory_info().rss / MIB
        yield Result("resident memory with the index of a million inodes", [size], 55.0, "MiB")
        cost, read = scrape_cost(ports[0], own)
        yield Result(f"a scrape of {series:,} samples, gzip", [cost], 2.0, "ms of CPU")
        yield Result(f"bytes that {SCRAPES} scrapes read from disks", [float(read)], 0.0)
        yield without_layers(node, config, directory)
