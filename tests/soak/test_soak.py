"""A leak planted in a real agent makes the soak's verdict fail."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.agent_process import running
from tests.faults.conftest import write_config
from tests.soak.soak import Record, watched
from tests.soak.verdict import LIMITS

SHORT = 40  # seconds
PLANTED = (sys.executable, "-m", "tests.soak.planted")


@pytest.mark.slow
def test_an_agent_that_leaks_is_found_out(tmp_path: Path) -> None:
    write_config(tmp_path / "ullage.yml")
    record = Record()
    with running(tmp_path, f"--config.file={tmp_path / 'ullage.yml'}", command=PLANTED) as agent:
        agent.wait_until_ready()
        with watched(agent, record):
            time.sleep(SHORT)
    assert {verdict.measure for verdict in record.verdicts if not verdict.is_flat} == set(LIMITS), str(record)
