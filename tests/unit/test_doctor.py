"""What doctor says, from a collector of which the test holds the reins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.collector import Collector, RateRatio, Start, Yield
from agent.daemon import Options
from agent.doctor import EXIT, examine, show
from agent.errors import Failed
from agent.finding import Finding
from agent.host import Host
from agent.metric import Metric
from agent.watermark import Tier, Watermark

USED, SIZE = Metric("ullage_used_bytes", "X.", ("name",)), Metric("ullage_size_bytes", "X.", ("name",))
TOP = Metric("ullage_top_total", "X.", ("name", "drive"), "counter")
BOTTOM = Metric("ullage_bottom_total", "X.", ("name",), "counter")
LEVEL = Watermark(
    name="level",
    summary="X.",
    used=USED,
    size=SIZE,
    target=("name",),
    tiers=(Tier("warning", "warning", 0.8, 0.7), Tier("critical", "critical", 0.9, 0.85)),
)
FOUND = {each: Finding(f"found-{each}", each, "{target} is bad.", "mend {target}") for each in ("info", "critical")}


def collector(*rounds: Iterable[Yield] | Exception, needs: str | None = None) -> Collector:
    """Return a collector that gives one round after the other, the last one for ever."""
    left = list(rounds)

    class Running:
        def collect(self, _host: Host) -> Iterator[Yield]:
            given = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(given, Exception):
                raise given
            yield from given

        def close(self) -> None:
            pass

    def start(_start: Start) -> Running:
        return Running()

    return Collector(
        name="one",
        summary="X.",
        start=start,
        metrics=(USED, SIZE, TOP, BOTTOM),
        watermarks=(LEVEL,),
        findings=tuple(FOUND.values()),
        needs=lambda _host: needs,
        rate_ratios=(RateRatio(name="amplification", layer="one", top=TOP, bottom=BOTTOM, floor=100),),
    )


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ([USED(10, "a"), SIZE(100, "a")], "clean"),
        ([USED(85, "a"), SIZE(100, "a")], "warnings"),
        ([USED(95, "a"), SIZE(100, "a")], "critical"),
        ([FOUND["info"]("b")], "clean"),
        ([USED(85, "a"), SIZE(100, "a"), FOUND["critical"]("b")], "critical"),
        (Failed("x", "broken"), "unknown"),
    ],
)
def test_the_verdict_is_that_of_the_worst(given: Any, verdict: str) -> None:
    report = examine(Options(), [collector(given)], 0.01)
    assert report.verdict == verdict
    assert EXIT[report.verdict] == ["clean", "warnings", "critical", "unknown"].index(verdict)


def test_what_this_node_has_nothing_for_is_told_and_no_fault() -> None:
    report = examine(Options(), [collector([], needs="no such thing")], 0.01)
    assert report.verdict == "clean"
    assert [(ran.state, ran.reason) for ran in report.collectors] == [("unsupported", "no such thing")]


def test_a_ratio_is_that_of_the_growth_between_the_two_readings() -> None:
    first = [TOP(1000, "a", "sda"), BOTTOM(500, "a"), TOP(5, "b", ""), BOTTOM(5, "b"), TOP(1, "gone", "")]
    second = [TOP(1600, "a", "sda"), BOTTOM(700, "a"), TOP(900, "b", ""), BOTTOM(104, "b"), TOP(9, "new", "")]
    report = examine(Options(), [collector(first, second)], 0.01)
    assert [(each.target, each.ratio) for each in report.ratios] == [("a", 3.0), ("b", None)]
    assert report.as_dict()["ratios"]


def test_a_person_sees_all_of_it_and_nothing_that_moves_the_cursor() -> None:
    hostile = "evil\x1b[2J\nname"
    samples: list[Yield] = [USED(95, hostile), SIZE(100, hostile), FOUND["critical"](hostile)]
    lines = list(show(examine(Options(), [collector(samples)], 0.01)))
    text = "\n".join(lines)
    assert all(line.isprintable() for line in lines)
    assert "found-critical" in text
    assert "95.0%  critical" in text
    assert "$ mend evil" in text
    (bar,) = [line.split()[1] for line in lines if "95.0%" in line]
    assert len(bar) == 40
    assert bar.count("|") == bar.count(":") == 2


def test_no_state_is_changed(tmp_path: Path) -> None:
    examine(Options(state=tmp_path), [collector([USED(95, "a"), SIZE(100, "a")])], 0.01)
    assert list(tmp_path.iterdir()) == []
