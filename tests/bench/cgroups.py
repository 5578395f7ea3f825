"""A sweep of 4,000 cgroups, against C programs that only read the same files."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.collector import Start
from agent.exposition import Pages
from agent.host import Host
from agent.latches import Latches
from agent.runner import Plan, Runner
from collectors.cgroups import layout
from collectors.pagecache import COLLECTOR, PageCache, Settings
from tests.bench.measure import Result, own_cpu, rounds, spent

CGROUPS = int(os.environ.get("ULLAGE_BENCH_CGROUPS", "4000"))  # the lab's emulated processor is content with fewer
FEW, IN_POD = 200, 20
SWEEPS = 5
BUSY = 16  # cgroups with a process at work, on version 2
UPDATES = 1000
HERE = Path(__file__).parent


@contextlib.contextmanager
def cgroups(root: Path, count: int) -> Iterator[list[Path]]:
    """Have so many cgroups with the names of containers in pods; removed by their own paths."""
    made: list[Path] = []

    def make(path: Path) -> Path:
        control = path.parent / "cgroup.subtree_control"
        if control.exists():
            control.write_text("+memory")
        path.mkdir()
        made.append(path)
        return path

    try:
        kubepods = make(make(root / f"ullage-bench-{os.getpid()}-{uuid.uuid4()}") / "kubepods")
        containers = []
        for _ in range(count // IN_POD):
            pod = make(kubepods / f"pod{uuid.uuid4()}")
            containers += [make(pod / os.urandom(32).hex()) for _ in range(IN_POD)]
        yield containers
    finally:
        for path in reversed(made):
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a cgroup, also where a process that was killed has not quite left it."""
    end = time.monotonic() + 60
    while True:
        try:
            return path.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def busy(paths: list[Path]) -> Iterator[None]:
    """Have a process in each of these cgroups that makes and drops page cache, so that their numbers move."""
    work = "head -c 1000000 /dev/zero > /dev/shm/$$; rm -f /dev/shm/$$; sleep 0.1"
    script = f'echo $$ > "$0"/cgroup.procs; while :; do {work}; done'
    processes = [subprocess.Popen(["sh", "-c", script, str(path)]) for path in paths]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
            Path(f"/dev/shm/{process.pid}").unlink(missing_ok=True)
        time.sleep(0.5)  # a child of the shell may outlive it for the length of its sleep


class Sweeper:
    """The collector, of which single parts can be run."""

    def __init__(self) -> None:
        self.host = Host()
        self.settings = Settings(kept_descriptors=2 * CGROUPS)
        self.collector = PageCache(Start(self.host, self.settings))
        list(self.collector.collect(self.host))

    def sweep(self) -> None:
        for _ in range(SWEEPS):
            self.collector._sweep(self.host, "container")

    def update(self) -> None:
        for _ in range(UPDATES):
            self.collector._tree.update(self.collector._clock())


def compile_c(name: str, directory: str) -> str:
    target = f"{directory}/{name}"
    subprocess.run(["gcc", "-O2", "-o", target, str(HERE / f"{name}.c")], check=True)
    return target


def run() -> Iterator[Result]:
    found = layout(Host())
    if os.geteuid() != 0 or shutil.which("gcc") is None or found is None:
        print("cgroups: skipped, needs root, gcc and a memory controller")
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 3 * CGROUPS)), hard))
    root = Path("/" + found.root)
    at_work = BUSY if found.is_v2 else 0
    with tempfile.TemporaryDirectory() as directory, cgroups(root, CGROUPS) as containers, busy(containers[:at_work]):
        listing = f"{directory}/list"
        Path(listing).write_text("".join(f"{path}/memory.stat\n" for path in containers))

        def c_sweep(program: str) -> Callable[[], float]:
            command = [compile_c(program, directory), listing, str(SWEEPS)]
            return lambda: float(subprocess.run(command, check=True, capture_output=True).stdout) / SWEEPS

        opened, kept = c_sweep("sweep_open"), c_sweep("sweep_kept")
        sweeper = Sweeper()

        def ours() -> float:
            return spent(sweeper.sweep, own_cpu) / SWEEPS

        values, detail = rounds(ours, opened)
        yield Result(f"sweep of {CGROUPS:,} cgroups, against C open/read/close", values, 0.75, detail=detail)
        values, detail = rounds(ours, kept)
        yield Result(f"sweep of {CGROUPS:,} cgroups, against C kept descriptors", values, 1.35, detail=detail)
        updates = [spent(sweeper.update, own_cpu) / UPDATES * 1e6 for _ in range(9)]
        yield Result(f"discovery in an unchanged tree of {CGROUPS:,}", updates, 20.0, "us")
        sweeper.collector.close()
        values, detail = rounds(whole(), kept)
        yield Result("whole pagecache collector, page and gzip included, against C", values, 3.0, detail=detail)
        with cgroups(root, FEW) as few:
            yield growth(containers, few)


def whole() -> Callable[[], float]:
    """Return what one run of the collector costs, down to a compressed page."""
    settings = Settings(kept_descriptors=2 * CGROUPS)
    pages = Pages()
    pages.members("text", gzip=True)  # from now on each page is compressed, as after a first scrape
    plan = Plan(COLLECTOR, settings, 15.0, 10.0, COLLECTOR.series_budget, COLLECTOR.watermarks)
    runner = Runner(plan, Host(), Latches(None), pages)
    running = COLLECTOR.start(Start(runner.host, settings))

    def once() -> float:
        cost = spent(lambda: runner.run(running), own_cpu)
        assert runner.outcome.is_up, runner.outcome.reason
        return cost

    return once


def growth(many: list[Path], few: list[Path]) -> Result:
    """Compare the cost per cgroup of many with that of few, read in the same way."""
    sweeper = Sweeper()
    tree = sweeper.collector._tree.groups["container"]
    groups = dict(tree)

    def cost(paths: list[Path]) -> float:
        wanted = {str(path) for path in paths}
        root = "/" + sweeper.collector._layout.root
        tree.clear()
        tree.update({path: group for path, group in groups.items() if root + path in wanted})
        repeats = len(many) // len(paths)

        def sweep() -> None:
            for _ in range(repeats):
                sweeper.sweep()

        return spent(sweep, own_cpu) / repeats / len(paths)

    values, _ = rounds(lambda: cost(many), lambda: cost(few))
    tree.clear()
    tree.update(groups)
    sweeper.collector.close()
    return Result(f"cost per cgroup at {CGROUPS:,}, against that at {FEW}", values, 1.3)
