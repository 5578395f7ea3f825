"""The whole agent while a mount hangs: every scrape and every page answers, complete but for that mount."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.agent_process import running
from tests.real.conftest import Make, StuckFs

SCRAPES, EVERY = 12, 5.0


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
    with running(tmp_path) as agent:
        page = agent.until(lambda page: value(page, "ullage_filesystem_files", stuckfs.mount) == 100, "the mount")
        complete = series_of(page, tmp_path)
        stuckfs.hang()
        agent.until(lambda page: value(page, "ullage_filesystem_stuck", stuckfs.mount) == 1, "a stuck mount")
        before = agent.footprint()
        (fine / "first").touch()
        seen = set()
        for number in range(SCRAPES):
            text = agent.scrape()
            assert value(text, "ullage_filesystem_stuck", stuckfs.mount) == 1
            assert value(text, "ullage_filesystem_files", stuckfs.mount) is None
            missing = {each for each in complete - series_of(text, tmp_path) if f'"{stuckfs.mount}"' not in each}
            assert missing == set(), number
            assert str(fine) in agent.fetch("/").decode()
            assert str(fine) in agent.fetch("/api/v1/status").decode()
            seen.add(value(text, "ullage_filesystem_files_free", fine))
            (fine / str(number)).touch()
            time.sleep(EVERY)
        assert len(seen) > 3, "the other mounts are fresh"
        after = agent.footprint()
        assert after.threads <= before.threads + 1, (before, after)  # a helper that just starts
        assert abs(after.descriptors - before.descriptors) <= 8, (before, after)  # has its pipes, on both sides
        assert after.processes <= 2, after
        stuckfs.wake()
        agent.until(lambda page: value(page, "ullage_filesystem_files", stuckfs.mount) == 100, "its numbers again")
        agent.stop()
