"""The machine's own clock is set back by an hour under the running agent; only the lab's machine may be treated so."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent_process import by_collector, running
from tests.scraper import scraped

HOUR = 3600


def shift(seconds: int) -> None:
    """Set the clock so many seconds on from now."""
    subprocess.run(["date", "-s", f"@{time.time() + seconds:.3f}"], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def clock() -> Iterator[None]:
    """The clock is right again after the test, by the clock that nobody can set."""
    began, monotonic = time.time(), time.monotonic()
    yield
    shift(round(began + time.monotonic() - monotonic - time.time()))


@pytest.mark.usefixtures("clock")
@pytest.mark.vm(deadline=600)
def test_the_clock_of_the_machine_is_set_back_under_the_agent(tmp_path: Path) -> None:
    path = tmp_path / "ullage.yml"
    path.write_text("collectors: {filesystem: {interval: 2s}, pagecache: {interval: 2s}}\n")
    with running(tmp_path, f"--config.file={path}") as agent:
        agent.wait_until_ready()
        watched = ["filesystem", "pagecache"]
        agent.until_fresh(watched)
        with scraped(agent):
            for seconds in (-HOUR, HOUR):
                shift(seconds)
                page = agent.until_fresh(watched)
                told = by_collector(page, "last_success_timestamp_seconds")
                assert all(abs(told[name] - time.time()) < HOUR / 2 for name in watched), told
                assert not any(by_collector(page, "page_withdrawn").values())
                assert all(by_collector(page, "up").values())
        agent.stop()
