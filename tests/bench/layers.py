"""Counting 300 layers with a million inodes, against `du --inodes` on the same directory."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import statistics
import subprocess
import tempfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from agent.host import Host
from collectors.layercount import Counting
from collectors.stores import Layer
from tests.bench.measure import Result, own_cpu, rounds, spent

LAYERS, DIRECTORIES, INODES = 300, 74_437, 1_000_000
WRITABLE = LAYERS // 20  # 5 % of the inodes are in containers
COLD_ROUNDS = 3  # du takes ten seconds for each
MIB = 1 << 20


@contextlib.contextmanager
def filesystem(directory: Path) -> Iterator[Path]:
    """Have an ext4 on a loop device for the time of a block."""
    image, mount = directory / "image", directory / "mount"
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(3 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-N", str(INODES + 300_000), str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def fill(layers: Iterable[str]) -> None:
    """Make what is in these of the layers: directories with eight others in them, and files in all."""
    in_each = DIRECTORIES // LAYERS
    files, owed = (INODES - DIRECTORIES) / DIRECTORIES, 0.0
    for layer in layers:
        directories = [layer]
        os.makedirs(layer, exist_ok=True)
        for place in range(in_each - 2):
            directories.append(f"{directories[place // 8]}/d{place:03}")
            os.mkdir(directories[-1])
        for directory in directories:
            owed += files
            for place in range(int(owed)):
                os.close(os.open(f"{directory}/file-{place:03}.txt", os.O_CREAT | os.O_WRONLY))
            owed -= int(owed)


def layers(store: Path) -> list[Layer]:
    found = []
    for number, path in enumerate(sorted(store.iterdir())):
        status = (path / "diff").stat()
        identity = status.st_ino, status.st_mtime_ns
        state = "container" if number < WRITABLE else "image"
        found.append(Layer(path.name, state, str(path), "diff", identity, 0, size=1))  # type: ignore[arg-type]
    return found


def slab() -> int:
    """Return the KiB of the kernel's own caches."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("SReclaimable:", "SUnreclaim:")))


def forget() -> None:
    """Drop dentries and inodes: nothing has been counted yet."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


class Du:
    """`du --inodes`, its processor time, and what it said last."""

    def __init__(self, store: Path) -> None:
        self._command = ["du", "--inodes", "-s", str(store)]
        self.inodes = 0

    def __call__(self) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(self._command, check=True, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.inodes = int(done.stdout.split()[0])
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


class Ours:
    """The counting of these layers, without its pauses and its budget's end."""

    def __init__(self, store: Path, *, wants_mark: bool = True) -> None:
        self._store = str(store)
        self._host = Host()
        self._layers = layers(store)
        self.counting = Counting(1000.0, wants_mark=wants_mark, pause=lambda _: None)
        self.counting.follow(self._host, self._store, self._layers)

    def update(self) -> float:
        return spent(lambda: self.counting.work(self._host), own_cpu)

    def inodes(self) -> int:
        """Return what du should say: the store's own directory, and that of each layer, are in it."""
        counts = [self.counting.count(self._store, layer.name) for layer in self._layers]
        return 1 + sum(1 + count.files for count in counts if count is not None)

    def writable(self) -> list[str]:
        return [place for layer in self._layers[:WRITABLE] for place, _, _ in os.walk(f"{layer.path}/diff")]


def expect_equal(ours: Ours, du: Du) -> None:
    ours.update()
    du()
    assert ours.inodes() == du.inodes, (ours.inodes(), du.inodes)


def first(store: Path, du: Du) -> Iterator[Result]:
    """Count all for the first time, when nothing of it has been looked at: in turn with du."""
    slabs: list[tuple[int, int]] = []

    def cold(action: Callable[[], float]) -> tuple[float, int]:
        forget()
        before = slab()
        return action(), slab() - before

    costs = []
    warm: list[float] = []
    for _ in range(COLD_ROUNDS):
        theirs, their_slab = cold(du)
        their_warm = du()
        ours = Ours(store)
        mine, my_slab = cold(ours.update)
        expect_equal(ours, du)
        ours.counting.close()
        again = Ours(store)
        warm.append(again.update() / their_warm)
        again.counting.close()
        costs.append((mine, theirs))
        slabs.append((my_slab, their_slab))
    values = [mine / theirs for mine, theirs in costs]
    detail = f"medians {statistics.median(mine for mine, _ in costs):.2f} s and "
    detail += f"{statistics.median(theirs for _, theirs in costs):.2f} s of CPU; "
    detail += f"{statistics.median(warm):.2f} if all of it is in the kernel's cache already"
    yield Result(f"first count of {du.inodes:,} inodes, against du --inodes", values, 0.45, detail=detail)
    mine, theirs = (statistics.median(column) / 1024 for column in zip(*slabs, strict=True))
    detail = f"medians {mine:.0f} MiB and {theirs:.0f} MiB"
    yield Result("slab that the first count leaves", [a / b for a, b in slabs], 1 / 8, detail=detail)


def steady(store: Path, du: Du) -> Iterator[Result]:
    """Keep the counts right while nothing changes, and while some directories do."""
    ours = Ours(store)
    ours.update()
    places = ours.writable()
    chance = random.Random(1)
    for dirty, goal in ((0, 1 / 1000), (100, 1 / 100), (1000, 1 / 25)):
        made: list[str] = []

        def round_of(dirty: int = dirty, made: list[str] = made) -> float:
            made += [f"{place}/made-{len(made)}" for place in chance.sample(places, dirty)]
            for path in made[-dirty:] if dirty else ():
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            repeats = 1 if dirty else 100  # one alone is too short to be measured
            return sum(ours.update() for _ in range(repeats)) / repeats

        values, detail = rounds(round_of, du, 5)
        expect_equal(ours, du)
        yield Result(f"recount with {dirty:,} changed directories, by the mark", values, goal, detail=detail)
        for path in made:
            os.unlink(path)
        ours.update()
    ours.counting.close()
    by_times = Ours(store, wants_mark=False)
    by_times.update()
    values, detail = rounds(by_times.update, du, 5)
    expect_equal(by_times, du)
    yield Result("recount without the mark, 5 % of the inodes writable", values, 1 / 100, detail=detail)
    by_times.counting.close()


def memory(store: Path) -> Iterator[Result]:
    """Weigh what stays, all counts and the index of the containers' directories, and the most while it is counted."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    ours = Ours(store)
    ours.update()
    size, most = (each - before for each in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    ours.counting.close()
    yield Result("memory of the index", [size / MIB], 15.0, "MiB")
    yield Result("the most while all is counted for the first time", [most / MIB], 15.0, "MiB")


def run() -> Iterator[Result]:
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        print("layers: skipped, needs root and mkfs.ext4")
        return
    with tempfile.TemporaryDirectory() as directory, filesystem(Path(directory)) as mount:
        store = mount / "store"
        fill(f"{store}/{number:04}/diff" for number in range(LAYERS))
        du = Du(store)
        yield from first(store, du)
        yield from steady(store, du)
        yield from memory(store)
