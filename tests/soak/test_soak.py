"""The soak's short form, and that a leak planted in a real agent makes its verdict fail."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent_process import running
from tests.faults.conftest import write_config
from tests.real.conftest import need
from tests.soak.soak import TOOLS, Record, soak, watched
from tests.soak.verdict import LIMITS

__all__ = ["need"]

MINUTES = 5
SHORT = 40  # seconds
PLANTED = (sys.executable, "-m", "tests.soak.planted")


@pytest.mark.root
@pytest.mark.docker
@pytest.mark.slow
def test_five_minutes_of_churn_lose_no_scrape_and_leave_all_flat(need: Callable[..., None]) -> None:
    need(*TOOLS)
    with tempfile.TemporaryDirectory(prefix="ullage-") as directory:
        record = soak(Path(directory), MINUTES)
    print(record)
    assert all(record.events.values()), record.events
    assert [verdict.measure for verdict in record.verdicts if not verdict.is_flat] == [], str(record)


@pytest.mark.slow
def test_an_agent_that_leaks_is_found_out(tmp_path: Path) -> None:
    write_config(tmp_path / "ullage.yml")
    record = Record()
    with running(tmp_path, f"--config.file={tmp_path / 'ullage.yml'}", command=PLANTED) as agent:
        agent.wait_until_ready()
        with watched(agent, record):
            time.sleep(SHORT)
    assert {verdict.measure for verdict in record.verdicts if not verdict.is_flat} == set(LIMITS), str(record)
