"""Every collector on damaged trees: a result or a counted error comes, whatever the files and the ioctls say."""

from __future__ import annotations

import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

import collectors
from agent.collector import Collector, Start
from agent.config import load
from agent.errors import HostError
from agent.exposition import Pages
from agent.host import Host, Ioctls, Points, Prober, Space
from agent.latches import Latches
from agent.runner import Runner
from tests.fuzz.damage import DAMAGES, HOSTILE, cut, double, flip, insert, replace
from tests.trees.tree import host_of

pytestmark = pytest.mark.slow

TREES = Path(__file__).resolve().parents[1] / "trees"


def trees(collector: Collector) -> list[Path]:
    return sorted(path for path in (TREES / collector.name).iterdir() if path.is_dir())


def files_of(tree: Path) -> list[Path]:
    """Return the node's own files: what lies at a tree's top is the test's, as is what keeps a directory in git."""
    files = (path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink())
    return [path for path in files if path.parent != tree and path.name != ".keep"]


CASES = [
    pytest.param(collector, tree, id=f"{collector.name}-{tree.name}")
    for collector in collectors.ALL
    for tree in trees(collector)
]


class Damage(NamedTuple):
    """What is done to one file: `kind` is the place in DAMAGES, or one of two that take the file away."""

    file: int
    kind: int
    seed: int

    def do(self, path: Path) -> None:
        if self.kind < len(DAMAGES):
            path.write_bytes(DAMAGES[self.kind](path.read_bytes(), random.Random(self.seed)))
            return
        path.unlink()
        if self.kind == len(DAMAGES):
            path.mkdir()


def damages(most: int) -> st.SearchStrategy[list[Damage]]:
    numbers = st.integers(0, 10_000), st.integers(0, len(DAMAGES) + 1), st.integers(0, 2**32)
    return st.lists(st.builds(Damage, *numbers), min_size=1, max_size=most, unique_by=lambda each: each.file)


class HostileIoctls:
    """Damages the answers of a tree."""

    def __init__(self, tree: Ioctls) -> None:
        self._tree = tree
        self.chance: random.Random | None = None

    def ask(self, path: str, number: int, buffer: bytes, subject: str, pointers: Mapping[int, int]) -> bytes:
        answer = self._tree.ask(path, number, buffer, subject, pointers)
        if self.chance is None:
            return answer
        return self.chance.choice((cut, insert, flip, flip, double, replace))(answer, self.chance)

    def close(self) -> None:
        self._tree.close()


class HostileProber:
    """Gives a tree's mounts numbers that no honest filesystem has."""

    def __init__(self, tree: Prober) -> None:
        self._tree = tree
        self.chance: random.Random | None = None

    def measure(self, points: Points) -> list[Space | HostError]:
        return [self._damaged(answer) for answer in self._tree.measure(points)]

    def _damaged(self, answer: Space | HostError) -> Space | HostError:
        if self.chance is None or isinstance(answer, HostError):
            return answer
        return Space(*(self.chance.choice((number, number, 0, 1, 2**64 - 1)) for number in answer))

    def close(self) -> None:
        self._tree.close()


class Node:
    """A copy of a tree, and the collector's runs on it."""

    def __init__(self, collector: Collector, tree: Path, workplace: Path) -> None:
        self.collector = collector
        host = host_of(tree, workplace)
        assert host.ioctls is not None
        assert host.prober is not None
        self.ioctls, self.prober = HostileIoctls(host.ioctls), HostileProber(host.prober)
        self.host = Host(host.procfs, host.sysfs, host.rootfs, host.dev, self.prober, ioctls=self.ioctls)
        root = Path(host.rootfs)
        self.files = files_of(root)
        self.sound = {path: path.read_bytes() for path in self.files}

    @contextmanager
    def damaged(self, damages: Sequence[Damage], seed: int = 0) -> Iterator[None]:
        """Damage files, and with a seed what ioctls and statvfs answer, for the time of the context."""
        chosen = {self.files[each.file % len(self.files)]: each for each in damages} if self.files else {}
        for path, damage in chosen.items():
            damage.do(path)
        if seed:
            self.ioctls.chance, self.prober.chance = random.Random(seed), random.Random(seed)
        try:
            yield
        finally:
            self.ioctls.chance = self.prober.chance = None
            for path in chosen:
                if path.is_dir():
                    shutil.rmtree(path)
                path.write_bytes(self.sound[path])

    @contextmanager
    def running(self) -> Iterator[Callable[[], None]]:
        """Start the collector; give what runs it once and checks what came."""
        (plan,) = load(None, [self.collector], {}).plans
        pages = Pages()
        runner = Runner(plan, self.host, Latches(None), pages)
        running = self.collector.start(Start(runner.host, plan.settings))

        def run() -> None:
            before = runner.errors.total()
            runner.run(running)
            assert runner.errors["bug"] == 0, runner.outcome.reason
            came = runner.outcome.is_up or not runner.outcome.is_supported
            assert came or runner.errors.total() > before
            text = b"".join(pages.members("text", gzip=False)).decode()
            for family in text_string_to_metric_families(text):
                assert family.samples

        try:
            yield run
        finally:
            running.close()


few = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,  # the same in every run of the tests
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with capture_logs():
        yield


every_tree = pytest.mark.parametrize(("collector", "tree"), CASES)


def kinds() -> Iterator[tuple[Collector, Path, str]]:
    """Yield each collector's kinds of files once, by their names, with the first tree that has one."""
    for collector in collectors.ALL:
        seen: set[str] = set()
        for tree in trees(collector):
            names = {path.name for path in files_of(tree)} - seen
            yield from ((collector, tree, name) for name in sorted(names))
            seen |= names


@pytest.mark.parametrize(("collector", "tree", "name"), list(kinds()), ids=lambda each: getattr(each, "name", each))
def test_no_text_in_a_file_is_a_bug(collector: Collector, tree: Path, name: str, tmp_path: Path) -> None:
    node = Node(collector, tree, tmp_path)
    with node.running() as run_again:
        for text in HOSTILE:
            for path in node.files:
                path.write_bytes(text if path.name == name else node.sound[path])
            with node.running() as run:
                run()
            run_again()


@every_tree
def test_damaged_files_are_no_bug(collector: Collector, tree: Path, tmp_path: Path) -> None:
    node = Node(collector, tree, tmp_path)

    @few
    @given(damages(8))
    def damage(chosen: list[Damage]) -> None:
        with node.damaged(chosen), node.running() as run:
            run()

    damage()


@every_tree
def test_damage_while_the_agent_runs_is_no_bug(collector: Collector, tree: Path, tmp_path: Path) -> None:
    node = Node(collector, tree, tmp_path)

    @few
    @given(damages(8), st.integers(1, 2**32))
    def damage(chosen: list[Damage], seed: int) -> None:
        with node.running() as run:
            run()
            with node.damaged(chosen, seed):
                run()
            run()

    damage()


@every_tree
def test_strange_answers_of_ioctls_and_statvfs_are_no_bug(collector: Collector, tree: Path, tmp_path: Path) -> None:
    node = Node(collector, tree, tmp_path)

    @few
    @given(st.integers(1, 2**32))
    def damage(seed: int) -> None:
        with node.damaged((), seed), node.running() as run:
            run()

    damage()


def make_socket(path: Path) -> None:
    """Make a socket, wherever: an address may have 107 characters."""
    place = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{place}/{path.name}")
    os.close(place)


def make_sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


PLACED: Mapping[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": make_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "way out": lambda path: path.symlink_to("/proc/self/root"),
    "sparse": make_sparse,
}


@pytest.mark.parametrize("placed", PLACED)
@every_tree
def test_nothing_in_the_place_of_a_file_or_directory_is_a_bug(
    collector: Collector, tree: Path, placed: str, tmp_path: Path
) -> None:
    """Below the root filesystem; no descriptor is open afterwards."""
    node = Node(collector, tree, tmp_path)
    root = Path(node.host.rootfs)
    others = [root / name for name in ("proc", "sys", "dev", "drives")]  # the kernel's, and the test's
    places = [path for path in root.rglob("*") if not any(path.is_relative_to(each) for each in others)]
    places = [path for path in places if not path.is_symlink() and (path.parent != root or path.is_dir())]
    descriptors = os.listdir("/proc/self/fd")
    with node.running() as run_again:
        run_again()
        for path in places:
            path.rename(tmp_path / "aside")
            PLACED[placed](path)
            with node.running() as run:
                run()
            run_again()
            path.unlink()
            (tmp_path / "aside").rename(path)
    assert os.listdir("/proc/self/fd") == descriptors
