"""The system's time is set back by an hour, and forth again, under the running agent."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent_process import Agent, by_collector, running
from tests.e2e.inodes import Inodes
from tests.faults.conftest import Config, inode_level
from tests.real.conftest import Make
from tests.scraper import scraped
from tests.shifted_clock import ShiftedClock

pytestmark = [pytest.mark.root, pytest.mark.slow]

HOUR = 3600


def saved_at(state: Path, mount: Path) -> float:
    """Return the time beside a level in the file that outlives the agent, 0 for none."""
    try:
        return float(json.loads((state / "watermarks.json").read_text())["levels"]["inodes"][str(mount)][1])
    except (FileNotFoundError, KeyError):
        return 0


def hour_of(agent: Agent) -> int:
    """Return by how many hours the agent's clock differs from ours."""
    return round((by_collector(agent.scrape(), "last_success_timestamp_seconds")["filesystem"] - time.time()) / HOUR)


def test_a_clock_set_back_and_forth_makes_nothing_stale_and_forgets_no_level(
    tmp_path: Path, config: Config, filesystem: Make, need: Callable[..., None]
) -> None:
    need("gcc")
    mount = filesystem("ext4", "-N", "1024")
    inodes = Inodes(mount)
    clock = ShiftedClock(tmp_path)
    inodes.fill(0.92)
    with running(tmp_path, config(), environment=clock.environment) as agent:
        agent.until(lambda page: inode_level(page, mount) == [2], "the level")
        inodes.fill(0.87)  # in the band: only who was there knows that it is critical
        with scraped(agent):
            for hours in (-1, 0):
                clock.shift(hours * HOUR)
                page = agent.until_fresh()
                assert hour_of(agent) == hours
                assert inode_level(page, mount) == [2]
                assert [name for name, is_up in by_collector(page, "up").items() if not is_up] == []
                assert not any(by_collector(page, "page_withdrawn").values())
            clock.shift(-HOUR)
            end = time.monotonic() + 120
            while not 0 < saved_at(tmp_path / "state", mount) < time.time() - HOUR / 2:
                assert time.monotonic() < end, "no level saved with the new time"
                time.sleep(0.2)
    # killed; at the next start the time is still an hour behind
    with running(tmp_path, config(), environment=clock.environment) as agent:
        page = agent.until(lambda page: inode_level(page, mount), "a level")
        assert hour_of(agent) == -1
        assert inode_level(page, mount) == [2]
        agent.stop()
