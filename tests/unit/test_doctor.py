"""What doctor says, from a collector of which the test holds the reins."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from agent.collector import Collector, Fact, RateRatio, Start, Yield
from agent.daemon import Options
from agent.doctor import BAR, CLEAR_MOST, EXIT, FINDINGS_MOST, Report, examine, judge, print_report
from agent.errors import Denied, Failed, HostError, Unreachable, Unsupported
from agent.finding import Finding
from agent.host import Host
from agent.metric import Metric
from agent.privileges import Want
from agent.status import (
    Agent,
    CollectorStatus,
    FactStatus,
    FindingStatus,
    LackStatus,
    Node,
    Status,
    TierStatus,
    WatermarkStatus,
)
from agent.watermark import Tier, Watermark
from collectors import ALL

USED, SIZE = Metric("ullage_used_bytes", "X.", ("name",)), Metric("ullage_size_bytes", "X.", ("name",))
TOP = Metric("ullage_top_total", "X.", ("name", "drive"), "counter")
BOTTOM = Metric("ullage_bottom_total", "X.", ("name",), "counter")
DRIVER = Metric("ullage_driver_info", "X.", ("runtime", "driver"), "info")
LEVEL = Watermark(
    name="level",
    summary="X.",
    used=USED,
    size=SIZE,
    target=("name",),
    tiers=(Tier("warning", "warning", 0.8, 0.7), Tier("critical", "critical", 0.9, 0.85)),
)
FOUND = {each: Finding(f"found-{each}", each, "{target} is bad.", "mend {target}") for each in ("info", "critical")}
READY = Agent(ready=True)
EVIL = "evil\x1b[2J\n\u202ename"


def collector(
    *rounds: Iterable[Yield | HostError] | Exception,
    needs: str | None = None,
    name: str = "one",
    wants: tuple[Want, ...] = (),
) -> Collector:
    """Return a collector that gives one round after the other, the last one for ever."""
    left = list(rounds)

    class Running:
        def collect(self, host: Host) -> Iterator[Yield]:
            given = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(given, Exception):
                raise given
            for each in given:
                if isinstance(each, HostError):
                    host.skip(each)
                else:
                    yield each

        def close(self) -> None:
            pass

    def start(_start: Start) -> Running:
        return Running()

    return Collector(
        name=name,
        summary="X.",
        start=start,
        metrics=(USED, SIZE, TOP, BOTTOM, DRIVER),
        watermarks=(LEVEL,) if name == "one" else (),
        findings=tuple(FOUND.values()) if name == "one" else (),
        needs=lambda _host: needs,
        rate_ratios=(RateRatio(name="amplification", layer="one", top=TOP, bottom=BOTTOM, floor=100),),
        facts=(Fact("Drivers", DRIVER),),
        wants=wants,
    )


def printed(report: Report, *, terminal: bool = False, width: int = 100) -> str:
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=terminal, width=width, markup=False, highlight=False, emoji=False, color_system=None
    )
    print_report(report, console)
    return file.getvalue()


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ([[USED(10, "a"), SIZE(100, "a")]], "clean"),
        ([[USED(85, "a"), SIZE(100, "a")]], "warnings"),
        ([[USED(95, "a"), SIZE(100, "a")]], "critical"),
        ([[FOUND["info"]("b")]], "clean"),
        ([[USED(85, "a"), SIZE(100, "a"), FOUND["critical"]("b")]], "critical"),
        ([Failed("x", "broken")], "unknown"),
        ([[USED(95, "a"), SIZE(100, "a")], Failed("x", "broken")], "critical"),  # what was seen is not hidden
    ],
)
def test_the_verdict_is_that_of_the_worst(given: Sequence[Any], verdict: str) -> None:
    report = examine(Options(), [collector(*given)], 0.01)
    assert report.verdict == verdict
    assert EXIT[report.verdict] == ["clean", "warnings", "critical", "unknown"].index(verdict)


@pytest.mark.parametrize(
    ("states", "agent", "severities", "verdict"),
    [
        (["up", "unsupported"], READY, [], "clean"),
        (["up"], Agent(), [], "unknown"),
        (["starting"], READY, [], "unknown"),
        (["overdue"], READY, ["critical"], "critical"),
        (["failing"], READY, ["info"], "unknown"),
        (["failing"], READY, ["warning"], "warnings"),
        ([], READY, [], "unknown"),
    ],
)
def test_a_collector_that_cannot_look_hides_nothing_that_others_saw(
    states: Sequence[Any],
    agent: Agent,
    severities: Sequence[Any],
    verdict: str,
) -> None:
    status = Status(
        agent=agent,
        collectors=[CollectorStatus(name="x", summary="X.", state=state) for state in states],
        findings=[FindingStatus("f", severity, "t", "e", "r", "u", 0.0, 0.0) for severity in severities],
    )
    assert judge(status) == verdict


def test_what_this_node_has_nothing_for_is_told_and_no_fault() -> None:
    report = examine(Options(), [collector([], needs="no such thing")], 0.01)
    assert report.verdict == "clean"
    assert "  one          unsupported  no such thing\n" in printed(report)


def test_a_ratio_is_that_of_the_growth_between_the_two_readings() -> None:
    first = [TOP(1000, "a", "sda"), BOTTOM(500, "a"), TOP(5, "b", ""), BOTTOM(5, "b"), TOP(1, "gone", "")]
    second = [TOP(1600, "a", "sda"), BOTTOM(700, "a"), TOP(900, "b", ""), BOTTOM(104, "b"), TOP(9, "new", "")]
    report = examine(Options(), [collector(first, second)], 0.01)
    assert [(each.target, each.ratio) for each in report.ratios] == [("a", 3.0), ("b", None)]
    text = printed(report)
    assert "  one          a: 3.00\n" in text
    assert "  one          b: too little was written to tell\n" in text


def test_json_is_the_status_document_and_the_verdict() -> None:
    samples: list[Yield] = [USED(95, "a"), SIZE(100, "a"), DRIVER(1, "docker", "overlay2"), FOUND["info"]("b")]
    report = examine(Options(), [collector(samples)], 0.01)
    document = json.loads(report.as_json())
    assert msgspec.convert(document, Status) == report.status
    assert (document["verdict"], document["ratios"], document["seconds"]) == ("critical", [], report.seconds)
    assert document["facts"][0]["items"] == [{"runtime": "docker", "driver": "overlay2"}]


def test_without_a_terminal_each_thing_is_a_line_to_be_searched() -> None:
    samples: list[Yield] = [
        *(USED(95, EVIL), SIZE(100, EVIL), DRIVER(1, "docker", "overlay2")),
        FOUND["critical"](EVIL + "x" * 300),
    ]
    text = printed(examine(Options(), [collector(samples)], 0.01))
    lines = text.splitlines()
    assert all(line.isprintable() and not line.endswith(" ") for line in lines)
    assert "  Drivers: docker overlay2" in lines
    assert any(line.startswith("  critical  found-critical  evil") for line in lines)
    assert any(line.startswith("            $ mend evil") and line.endswith("x" * 300) for line in lines)
    (bar,) = [line.split()[1] for line in lines if "95.0%  critical" in line]
    assert (len(bar), bar.count("|"), bar.count(":")) == (40, 2, 2)


def test_at_a_terminal_words_are_wrapped_and_remedies_are_whole() -> None:
    finding = Finding("long", "critical", "word " * 60, "command " * 60)
    status = Status(
        findings=[FindingStatus("long", "critical", "t", finding.explanation, finding.remedy, "u", 0.0, 0.0)]
    )
    text = printed(Report(status, "critical"), terminal=True, width=60)
    assert "$ " + "command " * 59 in text
    assert max(len(line) for line in text.splitlines() if "word" in line) <= 60
    assert "\n            word word" in text


SYSADMIN = Want(capabilities=("SYS_ADMIN",), lost="the names")


@pytest.mark.parametrize(
    ("given", "want", "told"),
    [
        ([Denied("x")], SYSADMIN, True),
        ([], SYSADMIN, False),  # it was not missed
        (Unsupported("no device"), SYSADMIN, False),
        (Unsupported("not allowed"), Want(capabilities=("SYS_ADMIN",), lost="all", reasons=("not allowed",)), True),
        (Unsupported("no device"), Want(capabilities=("SYS_ADMIN",), lost="all", reasons=("not allowed",)), False),
        ([], Want(device="/dev/ullage-none", there="proc/self", lost="wear"), True),
        ([], Want(device="/dev/ullage-none", there="proc/ullage-none", lost="wear"), False),
        ([], Want(device="/dev/null", lost="wear"), False),
    ],
)
def test_what_is_lacked_is_told_where_it_is_felt(tmp_path: Path, given: Any, want: Want, told: bool) -> None:  # noqa: FBT001
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("Name:\tx\nCapEff:\t0000000000000000\n")
    report = examine(Options(procfs=str(tmp_path)), [collector(given, wants=(want,))], 0.01)
    text = printed(report)
    assert (f": {want.lost}" in text) is told
    if told and want.capabilities:
        assert f"               without CAP_SYS_ADMIN: {want.lost}\n" in text
        assert "    Docker:\n      --cap-add SYS_ADMIN\n" in text
        assert "    Kubernetes:\n      securityContext: {capabilities: {add: [SYS_ADMIN]}}\n" in text
        assert "      [Service]\n      CapabilityBoundingSet=CAP_SYS_ADMIN\n      AmbientCap" in text
    if told and want.device:
        assert "    Docker:\n      --device /dev/ullage-none\n" in text
        assert "systemd" not in text


def test_all_that_a_root_may_is_not_lacked(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("CapEff:\t000001ffffffffff\n")
    report = examine(Options(procfs=str(tmp_path)), [collector([Denied("x")], wants=(SYSADMIN,))], 0.01)
    assert report.status.collectors[0].lacks == []


def test_mounts_that_are_not_shown_are_told() -> None:
    report = examine(Options(), [collector([Unreachable("x")])], 0.01)
    assert "without the host's mounts below /host" in printed(report)


def hostile() -> Status:
    """Return what an agent that means no good might say."""
    huge = 1e308
    tiers = (TierStatus(EVIL, "critical", huge, -huge), TierStatus(EVIL, "info", -1.0, 0.5))
    level = WatermarkStatus(EVIL, EVIL, 1, EVIL, "critical", huge, tiers)
    finding = FindingStatus(EVIL, "critical", EVIL, EVIL, EVIL, EVIL, -huge, huge)
    return Status(
        time=huge,
        agent=Agent(version=EVIL, node=EVIL),
        node=Node(hostname=EVIL, kernel=EVIL, os=EVIL, boot_time=-huge),
        facts=[FactStatus(EVIL, EVIL, [{EVIL: EVIL}] * 1000)],
        collectors=[
            CollectorStatus(EVIL, EVIL, "up", EVIL, errors={EVIL: -1}, lacks=[LackStatus(EVIL, (EVIL,), EVIL, EVIL)])
        ],
        watermarks=[
            level,
            *(WatermarkStatus("", "", 0, None, None, ratio, tiers) for ratio in (None, -1.0)),
            *[WatermarkStatus("clear", "t", 0, None, None, 0.1, ())] * 1000,
        ],
        watermark_targets=1 << 70,
        findings=[finding] * 1000,
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_whatever_an_agent_says_does_nothing_to_a_terminal(terminal: bool) -> None:  # noqa: FBT001
    text = printed(Report(hostile(), "critical"), terminal=terminal)
    assert all(line.isprintable() for line in text.split("\n"))
    assert text.count("found") < 10 * FINDINGS_MOST
    assert text.count("clear  ") <= CLEAR_MOST
    assert len(text) < 1_000_000


@pytest.mark.parametrize(
    ("ratio", "filled"), [(0.0, 0), (0.5, 20), (1.0, 40), (1.5, 40), (-1.0, 0), (None, 0), (1e308, 40)]
)
def test_a_bar_is_as_full_as_its_target(ratio: float | None, filled: int) -> None:
    status = Status(watermarks=[WatermarkStatus("w", "t", 0, None, None, ratio, ())])
    (bar,) = [line.split()[1] for line in printed(Report(status, "clean")).splitlines() if line.startswith("  w ")]
    assert (bar.count("#"), len(bar)) == (filled, BAR)


def test_what_is_waited_for_is_told() -> None:
    told: list[str] = []
    examine(Options(), [collector([])], 0.2, told.append)
    assert any(text.startswith("second reading in ") for text in told)


def test_no_state_is_changed(tmp_path: Path) -> None:
    state, root = tmp_path / "state", tmp_path / "root"
    for directory in (state, root, *(state / each.name for each in ALL)):
        directory.mkdir()
    (state / "layers" / "layers.json").write_text("damaged")
    options = Options(state=state, rootfs=str(root), procfs=str(root), sysfs=str(root))
    examine(options, [*ALL, collector([USED(95, "a"), SIZE(100, "a")])], 0.01)
    assert [path for path in state.rglob("*") if not path.is_dir()] == [state / "layers" / "layers.json"]


def test_who_may_not_look_everywhere_calls_nothing_clean() -> None:
    one = CollectorStatus("one", "X.", "up", lacks=[LackStatus("much", ("SYS_ADMIN",))])
    assert judge(Status(agent=READY, collectors=[one])) == "unknown"
    assert judge(Status(agent=READY, collectors=[msgspec.structs.replace(one, lacks=[])])) == "clean"
