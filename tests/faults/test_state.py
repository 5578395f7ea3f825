"""The state directory full, read-only or damaged, the agent killed at any moment: it serves, and its state is whole."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import pytest

from agent.cli import main
from agent.inotify import Inotify
from collectors import ALL
from tests.agent_process import URL, flags_of, running
from tests.e2e.inodes import Inodes
from tests.e2e.stack import until
from tests.faults.conftest import Config, inode_level
from tests.real.conftest import Make, run
from tests.scraper import scraped

pytestmark = [pytest.mark.root, pytest.mark.slow]

CRITICAL, BAND = 0.92, 0.87  # a critical level, and where it only stays one for those who know of it
SCRAPE = 5.0  # seconds
STATE = "watermarks.json"
Fault = Callable[[Path], contextlib.AbstractContextManager[None]]


def kept(state: Path, mount: Path) -> int | None:
    """Return the level that a state directory has for a mount, None for none; the file must be whole."""
    try:
        text = (state / STATE).read_text()
    except FileNotFoundError:
        return None
    targets = json.loads(text)["levels"].get("inodes", {})
    return int(targets[str(mount)][0]) if str(mount) in targets else None


@contextlib.contextmanager
def full(mount: Path) -> Iterator[None]:
    """ENOSPC for want of inodes: of blocks a filesystem always finds one more."""
    ballast = mount / "ballast"
    ballast.mkdir()
    for number in range(os.statvfs(mount).f_ffree):
        (ballast / str(number)).touch()
    with pytest.raises(OSError, match="No space left"):
        (ballast / "more").touch()
    yield
    shutil.rmtree(ballast)


@contextlib.contextmanager
def read_only(mount: Path) -> Iterator[None]:
    run("mount", "-o", "remount,ro", str(mount))
    yield
    run("mount", "-o", "remount,rw", str(mount))


@pytest.fixture
def watched(filesystem: Make) -> Path:
    """A filesystem whose inodes the agent watches."""
    return filesystem("ext4", "-N", "1024")


@pytest.fixture
def disk(filesystem: Make) -> Path:
    """The one that its state is on."""
    return filesystem("ext4", "-N", "64", size=8)


@pytest.mark.parametrize("fault", [full, read_only])
def test_a_level_that_cannot_be_saved_is_served_and_saved_when_it_can(
    tmp_path: Path, config: Config, watched: Path, disk: Path, fault: Fault
) -> None:
    inodes = Inodes(watched)
    state = disk / "state"
    failure, recovery = (f'event="{event}" path={state / STATE}' for event in ("state not saved", "state saved again"))
    with running(tmp_path, config(), f"--path.state={state}") as agent:
        agent.until(lambda page: inode_level(page, watched) == [0], "a level")
        with scraped(agent):
            with fault(disk):
                inodes.fill(CRITICAL)
                agent.until(lambda page: inode_level(page, watched) == [2], "the level")
                agent.wait_for_log(failure)
                agent.until_fresh()
                assert kept(state, watched) is None
            until(lambda: kept(state, watched) == 2, "the level in the file")
        agent.wait_for_log(recovery)
        assert agent.log.count(failure) == 1
        agent.stop()


@pytest.mark.parametrize("fault", [full, read_only])
def test_the_agent_starts_where_its_state_cannot_be_written(
    tmp_path: Path, config: Config, watched: Path, disk: Path, fault: Fault
) -> None:
    Inodes(watched).fill(CRITICAL)
    state = disk / "state"
    with contextlib.ExitStack() as broken:
        broken.enter_context(fault(disk))
        with running(tmp_path, config(), f"--path.state={state}") as agent:
            agent.until(lambda page: inode_level(page, watched) == [2], "the level")
            agent.wait_for_log(f'event="state cannot be written for now" path={state}')
            broken.close()
            until(lambda: kept(state, watched) == 2, "the level in the file")
            agent.stop()


def test_damaged_state_files_are_set_aside_and_nothing_else_is_lost(tmp_path: Path, config: Config) -> None:
    with running(tmp_path, config()) as agent:
        agent.until_fresh()
        agent.stop()  # which saves
    state = tmp_path / "state"
    files = [path for path in state.rglob("*.json") if path.is_file()]
    assert state / STATE in files
    for path in files:
        path.write_bytes(path.read_bytes()[:-1])
    with running(tmp_path, config()) as agent:
        with scraped(agent):
            agent.until_fresh()
        agent.stop()
    assert not [path for path in files if not path.with_suffix(".damaged").exists()]


# -- killed at any moment --

LIVES, SIDE_BY_SIDE, LIFE = 200, 40, 6.5  # seconds; levels are saved five seconds after a start


def live(log: str, arguments: list[str]) -> None:
    """Be an agent: `ullage run` in a process whose imports are done already, as 200 starts would cost minutes."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.exit(main(arguments))


@dataclass
class Lives:
    """One agent after another on one state directory, each killed; in all of them a mount's level is critical."""

    directory: Path
    mount: Path
    arguments: list[str]
    chance: random.Random
    half_written: int = 0
    confirmed: int = 0
    damage: list[str] = field(default_factory=list)

    def live(self, number: int) -> None:
        """Have one life: of the odd ones the end comes while the state is written."""
        log = self.directory / f"agent-{number}.log"
        log.touch()
        process = multiprocessing.get_context("forkserver").Process(target=live, args=(str(log), self.arguments))
        state = self.directory / "state"
        watch = Inotify()
        try:
            watch.add(str(state))
            process.start()
            end = time.monotonic() + (2 * LIFE if number % 2 else self.chance.uniform(0, LIFE))
            is_confirmed = False
            while time.monotonic() < end:
                is_confirmed = is_confirmed or self._confirm(log)
                if number % 2 and any(event.name == "watermarks.new" for event in watch.read()):
                    time.sleep(self.chance.uniform(0, 0.002))
                    break
                time.sleep(0.001 if number % 2 else 0.05)
        finally:
            process.kill()
            process.join()
            watch.close()
        self.half_written += (state / "watermarks.new").exists()
        self.confirmed += is_confirmed
        if kept(state, self.mount) != 2 or any(state.rglob("*.damaged")):
            self.damage.append(f"life {number}: {sorted(state.rglob('*'))}\n{log.read_text()[-2000:]}")

    def _confirm(self, log: Path) -> bool:
        """Return whether the agent serves the level by now; it must be the one that was kept."""
        match = URL.search(log.read_text())
        if match is None:
            return False
        with contextlib.suppress(OSError), urlopen(f"{match[1].rstrip('/')}/metrics", timeout=SCRAPE) as answer:
            levels = inode_level(answer.read().decode(), self.mount)
            if levels not in ([], [2]):
                self.damage.append(f"the level is {levels}:\n{log.read_text()[-2000:]}")
            return bool(levels)
        return False


def test_200_kills_at_any_moment_leave_every_level_right(tmp_path: Path, filesystem: Make) -> None:
    steady, restless = filesystem("ext4", "-N", "1024"), filesystem("ext4", "-N", "1024")
    inodes, noise = Inodes(steady), Inodes(restless)
    inodes.fill(CRITICAL)
    (tmp_path / "ullage.yml").write_text(
        f'collectors: {{filesystem: {{interval: 1s, mount_points_include: "^({steady}|{restless})$"}}}}\n'
    )
    others = [f"--no-collector.{each.name}" for each in ALL if each.name != "filesystem"]
    arguments = [f"--config.file={tmp_path / 'ullage.yml'}", *others]
    with running(tmp_path, *arguments) as agent:
        agent.until(lambda page: inode_level(page, steady) == [2], "the level")
        until(lambda: kept(tmp_path / "state", steady) == 2, "the level in the file")
        agent.stop()
    inodes.fill(BAND)
    all_lives = []
    for number in range(SIDE_BY_SIDE):
        directory = tmp_path / str(number)
        directory.mkdir()
        shutil.copytree(tmp_path / "state", directory / "state")
        lives = Lives(directory, steady, [*flags_of(directory), *arguments], random.Random(number))
        all_lives.append(lives)
    multiprocessing.get_context("forkserver").set_forkserver_preload(["agent.cli", "agent.daemon"])
    stop = threading.Event()

    def be_restless() -> None:
        while not stop.wait(0.7):
            noise.fill(CRITICAL)
            stop.wait(0.7)
            noise.fill(0.3)

    with ThreadPoolExecutor(SIDE_BY_SIDE + 1) as pool:
        restlessness = pool.submit(be_restless)

        def live_all(lives: Lives) -> None:
            for number in range(LIVES // SIDE_BY_SIDE):
                lives.live(number)

        try:
            list(pool.map(live_all, all_lives))
        finally:
            stop.set()
        restlessness.result()
    assert [each for lives in all_lives for each in lives.damage] == []
    assert sum(lives.half_written for lives in all_lives) > 0, "some were killed while they wrote"
    assert sum(lives.confirmed for lives in all_lives) > 0, "some had time to tell the level"
    with running(all_lives[0].directory, *arguments) as agent:
        assert inode_level(agent.until(lambda page: inode_level(page, steady), "a level"), steady) == [2]
        agent.stop()
