"""20,000 real memory cgroups of containers: series, memory and descriptors are bounded, and others are served."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.agent_process import Agent, running
from tests.e2e.stack import until
from tests.real.cgroups import memory_root

pytestmark = [pytest.mark.root, pytest.mark.slow]

CGROUPS = 20_000
TOP, KEPT = 200, 1024  # the collector's defaults
GROWTH = 24 << 20  # bytes, what is known of those that are looked at


@pytest.fixture
def parent(need: Callable[..., None]) -> Iterator[Path]:
    need()
    root = memory_root()
    assert root is not None
    made = root / "ullage-many"
    made.mkdir()
    if (made / "cgroup.subtree_control").exists():
        (made / "cgroup.subtree_control").write_text("+memory")
    yield made
    for each in made.iterdir():
        if each.is_dir():
            each.rmdir()
    made.rmdir()


def samples(text: str, family: str) -> dict[tuple[str, ...], float]:
    for each in text_string_to_metric_families(text):
        if each.name == family:
            return {tuple(sample.labels.values()): sample.value for sample in each.samples}
    return {}


def runs(started: Agent, collector: str) -> float:
    """Return when the collector's newest run ended."""
    return samples(started.scrape(), "ullage_collector_last_success_timestamp_seconds")[collector,]


def wait_for_runs(started: Agent, count: int) -> None:
    for _ in range(count):
        before = runs(started, "pagecache")
        until(lambda seen=before: runs(started, "pagecache") > seen, "pagecache has run")  # type: ignore[misc]


def test_20000_cgroups_cost_no_more_than_is_allowed(parent: Path, tmp_path: Path) -> None:
    with running(tmp_path) as started:
        until(lambda: ("pagecache",) in samples(started.scrape(), "ullage_collector_up"), "pagecache is there")
        before = started.footprint()
        for number in range(CGROUPS):
            (parent / hashlib.sha256(b"%d" % number).hexdigest()).mkdir()
        wait_for_runs(started, 3)
        text = started.scrape()
        series = samples(text, "ullage_container_page_cache_bytes")
        assert len(series) == TOP
        assert not any("other" in key for key in series), "not all are looked at: their sum would be too small"
        assert samples(text, "ullage_collector_errors")["pagecache", "failed"] > 0
        for family in ("ullage_collector_up", "ullage_collector_overdue"):
            assert samples(text, family)["pagecache",] == (family == "ullage_collector_up")
        assert samples(text, "ullage_collector_up")["filesystem",] == 1
        after = started.footprint()
        assert after.descriptors - before.descriptors <= KEPT + 8  # a helper that just starts has its pipes
        assert 1024 * (after.memory - before.memory) <= GROWTH
        assert re.search(r"level=error", started.log) is None
