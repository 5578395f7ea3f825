from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest
from structlog.testing import capture_logs

from agent.collector import Collector, Fact, Yield, stateless
from agent.errors import Denied, Unsupported, Vanished
from agent.exposition import Pages
from agent.finding import Finding
from agent.host import Host
from agent.latches import Latches
from agent.metric import Family, Metric
from agent.runner import Plan, Runner
from agent.watermark import Override, Tier, Watermark

USED = Metric("ullage_x_used_bytes", "Used.", ("target",))
SIZE = Metric("ullage_x_size_bytes", "Size.", ("target",))
OTHER = Metric("ullage_x_other", "Not declared.", ("target",))
LOOSE = Finding("x-loose", "warning", "{target} has {count} loose ends.", "tie {target}")
TIERS = (Tier("warning", "warning", 0.8, 0.75), Tier("critical", "critical", 0.9, 0.85))
FILL = Watermark(name="fill", summary="Fill.", used=USED, size=SIZE, target=("target",), tiers=TIERS)

Collect = Callable[[Host], Iterable[Yield]]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A runner whose collector yields what the test says next."""

    def __init__(self, watermark: Watermark = FILL, budget: int = 1000, needs: str | None = None) -> None:
        self.clock = Clock()
        self.pages = Pages(self.clock)
        self.latches = Latches(None)
        self.next: Collect = lambda _host: ()
        self.needs = needs
        collector = Collector(
            name="x",
            summary="X.",
            start=stateless(lambda host: self.next(host)),  # noqa: PLW0108  `next` changes
            metrics=(USED, SIZE),
            watermarks=(watermark,),
            findings=(LOOSE,),
            facts=(Fact("Sizes", SIZE),),
            needs=lambda _host: self.needs,
        )
        plan = Plan(collector, None, 10.0, 5.0, budget, (watermark,))
        self.runner = Runner(plan, Host(), self.latches, self.pages, self.clock)

    def run(self, *yielded: Yield) -> None:
        self.run_with(lambda _host: yielded)

    def run_with(self, collect: Collect) -> None:
        self.next = collect
        self.runner.run(self.runner.plan.collector.start(None))  # type: ignore[arg-type]  # stateless ignores it

    @property
    def page(self) -> str:
        return b"".join(self.pages.members("text", gzip=False)).decode()

    @property
    def levels(self) -> dict[str, int]:
        return {level.target: level.level for table in self.runner.outcome.levels for level in table}


def test_only_what_the_status_tells_is_kept_beside_the_page() -> None:
    bench = Bench()
    bench.run(USED(1, "a"), SIZE(10, "a"))
    assert bench.runner.outcome.families == {SIZE: Family(SIZE, (("a",),), [10])}
    bench.needs = "nothing here"
    bench.run()
    assert bench.runner.outcome.families == {}


def test_samples_and_families_make_one_page() -> None:
    bench = Bench()
    bench.run(USED(1, "a"), SIZE(10, "a"), USED(2, "b"))
    assert [line for line in bench.page.splitlines() if not line.startswith("#")] == [
        'ullage_x_used_bytes{target="a"} 1',
        'ullage_x_used_bytes{target="b"} 2',
        'ullage_x_size_bytes{target="a"} 10',
    ]
    assert bench.runner.outcome.series == 3
    bench.run(Family(USED, (("a",), ("b",)), [3, 4]))
    assert 'ullage_x_used_bytes{target="b"} 4\n' in bench.page
    assert "size" not in bench.page


def test_levels_follow_samples_and_families_alike() -> None:
    bench = Bench()
    for ratio, level in ((0.5, 0), (0.85, 1), (0.76, 1), (0.95, 2), (0.86, 2), (0.1, 0)):
        bench.run(USED(ratio * 100, "a"), SIZE(100, "a"))
        assert bench.levels == {"a": level}
        bench.run(Family(USED, (("a",),), [ratio * 100]), Family(SIZE, (("a",),), [100]))
        assert bench.levels == {"a": level}
    assert bench.runner.transitions["fill"] == 3


def test_an_override_has_its_own_tiers_for_targets_that_match() -> None:
    override = Override("/data*", (Tier("warning", "warning", 0.95, 0.9), Tier("critical", "critical", 0.99, 0.98)))
    bench = Bench(FILL.with_tiers(TIERS, None, (override,)))
    bench.run(USED(92, "/data/1"), SIZE(100, "/data/1"), USED(92, "/"), SIZE(100, "/"))
    assert bench.levels == {"/data/1": 0, "/": 2}


@pytest.mark.parametrize(
    ("collect", "reason"),
    [
        (lambda _host: [OTHER(1, "a")], "bug"),
        (lambda _host: [USED(1)], "bug"),
        (lambda _host: [USED(1, "a", "b")], "bug"),
        (lambda _host: [Family(OTHER, (("a",),), [1])], "bug"),
        (lambda _host: [Family(USED, (("a",),), [1, 2])], "bug"),
        (lambda _host: [Family(USED, (("a", "b"),), [1])], "bug"),
        (lambda _host: [USED(1, "a"), Family(USED, (("b",),), [1])], "bug"),
        (lambda _host: [Finding("y", "info", "", "")("a")], "bug"),
        (lambda _host: 1 / 0, "bug"),
        (lambda host: [USED(host.read_int("proc/absent"), "a")], "vanished"),
    ],
)
def test_a_run_that_fails_is_counted_and_keeps_the_page(collect: Collect, reason: str) -> None:
    bench = Bench()
    bench.run(USED(1, "a"))
    kept = bench.page
    bench.run_with(collect)
    assert bench.page == kept
    assert not bench.runner.outcome.is_up
    assert bench.runner.errors == {reason: 1}
    bench.clock.now += 31
    assert bench.page == ""
    bench.run(USED(2, "a"))
    assert bench.runner.outcome.is_up
    assert 'used_bytes{target="a"} 2' in bench.page


def test_a_sample_that_is_yielded_twice_costs_the_second_only() -> None:
    bench = Bench()
    bench.run(USED(1, "a"), USED(2, "a"), USED(3, "b"))
    assert 'used_bytes{target="a"} 1\n' in bench.page
    assert 'used_bytes{target="b"} 3\n' in bench.page
    assert bench.runner.errors == {"duplicate": 1}


def test_label_sets_that_stand_twice_in_a_family_cost_the_second_only() -> None:
    bench = Bench()
    for _ in range(2):
        bench.run(Family(USED, (("a",), ("b",), ("a",)), [1, 2, 3]))
        assert 'used_bytes{target="a"} 1\n' in bench.page
        assert 'used_bytes{target="b"} 2\n' in bench.page
        assert bench.runner.outcome.series == 2
    assert bench.runner.errors == {"duplicate": 2}


def test_series_over_the_budget_are_dropped_and_counted() -> None:
    bench = Bench(budget=3)
    bench.run(USED(1, "a"), USED(2, "b"), Family(SIZE, (("a",), ("b",)), [1, 2]))
    assert bench.runner.outcome.series == 3
    assert bench.runner.outcome.dropped == 1
    assert 'size_bytes{target="a"} 1\n' in bench.page
    assert 'size_bytes{target="b"}' not in bench.page
    bench.run(USED(1, "a"), USED(2, "b"), USED(3, "c"), USED(4, "d"))
    assert 'used_bytes{target="d"}' not in bench.page
    assert bench.runner.outcome.dropped == 2


def test_a_target_that_refuses_costs_itself_and_is_logged_once() -> None:
    def collect(host: Host) -> Iterator[Yield]:
        for target in ("a", "b", "c"):
            with host.skipping():
                if target == "b":
                    raise Denied("/proc/b")
                yield USED(1, target)

    bench = Bench()
    with capture_logs() as logs:
        bench.run_with(collect)
        bench.run_with(collect)
    assert bench.runner.outcome.series == 2
    assert bench.runner.errors == {"permission": 2}
    assert [entry["path"] for entry in logs if entry["event"] == "target skipped"] == ["/proc/b"]


def test_a_state_is_logged_when_it_changes_only() -> None:
    def fail(_host: Host) -> Iterable[Yield]:
        raise Vanished("/x")

    bench = Bench()
    with capture_logs() as logs:
        for collect in (fail, fail, lambda _host: (), lambda _host: (), fail):
            bench.run_with(collect)
    assert [entry["event"] for entry in logs] == ["collector failed", "collector up", "collector failed"]


def test_findings_are_told_with_their_words() -> None:
    bench = Bench()
    bench.run(LOOSE("a", count=3), LOOSE("a", count=3))
    found = bench.runner.outcome.findings
    assert [(f.target, f.explanation, f.remedy) for f in found] == [("a", "a has 3 loose ends.", "tie a")]


def test_what_a_node_does_not_have_is_no_error() -> None:
    bench = Bench()
    bench.run(USED(1, "a"))
    bench.needs = "no x is mounted"
    bench.run(USED(1, "a"))
    assert bench.page == ""
    assert not bench.runner.outcome.is_supported
    assert bench.runner.outcome.reason == "no x is mounted"
    assert not bench.runner.errors
    bench.needs = None
    bench.run(USED(1, "a"))
    assert bench.runner.outcome.is_supported
    assert bench.page


def test_what_only_a_run_can_tell_to_be_lacking_is_no_error_either() -> None:
    bench = Bench()

    def collect(_host: Host) -> Iterator[Yield]:
        raise Unsupported("there is no x")
        yield USED(1, "a")

    bench.run(USED(1, "a"))
    bench.run_with(collect)
    assert bench.page == ""
    assert (bench.runner.outcome.is_supported, bench.runner.outcome.reason) == (False, "there is no x")
    assert not bench.runner.errors
