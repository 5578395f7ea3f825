"""The whole agent while a mount hangs: every scrape and every page answers, complete but for that mount."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.real.conftest import Make, StuckFs

SCRAPES, EVERY = 12, 5.0
URL = re.compile(r"url=(http://\S+)")


class Agent:
    """The agent as a process of its own, with its default configuration."""

    def __init__(self, directory: Path) -> None:
        log = directory / "agent.log"
        flags = ["--web.listen-address=127.0.0.1:0", f"--path.state={directory / 'state'}"]
        with open(log, "w") as stderr:
            self.process = subprocess.Popen([sys.executable, "-m", "agent", "run", *flags], stderr=stderr)
        end = time.monotonic() + 120
        while not (match := URL.search(log.read_text())):
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        self._url = match[1].rstrip("/")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self._url + path, timeout=EVERY) as answer:
            text: str = answer.read().decode()
            return text

    def scrape(self) -> str:
        return self.get("/metrics")

    def footprint(self) -> tuple[int, int, int]:
        """Return the numbers of its threads, descriptors and child processes."""
        process = psutil.Process(self.process.pid)
        return process.num_threads(), process.num_fds(), len(process.children())

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(10) == 0


def value(text: str, name: str, mount: Path) -> float | None:
    match = re.search(rf'^{name}\{{[^}}]*mountpoint="{mount}"[^}}]*\}} (\S+)$', text, re.MULTILINE)
    return float(match[1]) if match else None


def series_of(text: str, ours: Path) -> set[str]:
    """Return the series of mounts; those of other tests that run on this machine may come and go."""
    series = {line.rpartition(" ")[0] for line in text.splitlines() if "mountpoint=" in line}
    return {each for each in series if str(ours) in each or str(ours.parent.parent.parent) not in each}


@pytest.mark.root
@pytest.mark.slow
def test_12_of_12_scrapes_answer_while_a_mount_hangs_and_its_numbers_return(
    filesystem: Make, stuckfs: StuckFs, tmp_path: Path
) -> None:
    fine = filesystem("ext4")
    agent = Agent(tmp_path)
    try:
        while value(agent.scrape(), "ullage_filesystem_files", stuckfs.mount) != 100:
            time.sleep(0.1)
        complete = series_of(agent.scrape(), tmp_path)
        stuckfs.hang()
        while value(agent.scrape(), "ullage_filesystem_stuck", stuckfs.mount) != 1:
            time.sleep(0.5)
        threads, descriptors, _ = agent.footprint()
        (fine / "first").touch()
        seen = set()
        for number in range(SCRAPES):
            text = agent.scrape()
            assert value(text, "ullage_filesystem_stuck", stuckfs.mount) == 1
            assert value(text, "ullage_filesystem_files", stuckfs.mount) is None
            missing = {each for each in complete - series_of(text, tmp_path) if f'"{stuckfs.mount}"' not in each}
            assert missing == set(), number
            assert str(fine) in agent.get("/")
            assert str(fine) in agent.get("/api/v1/status")
            seen.add(value(text, "ullage_filesystem_files_free", fine))
            (fine / str(number)).touch()
            time.sleep(EVERY)
        assert len(seen) > 3, "the other mounts are fresh"
        after = agent.footprint()
        assert (after[0], abs(after[1] - descriptors)) <= (threads, 4)  # a helper that just starts has its pipes
        assert after[2] <= 1
        stuckfs.wake()
        while value(agent.scrape(), "ullage_filesystem_files", stuckfs.mount) != 100:
            time.sleep(0.5)
    finally:
        agent.close()
