from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pytest

from agent.collector import Collector, Start, Yield
from agent.exposition import Pages
from agent.host import Host
from agent.latches import Latches
from agent.metric import Metric
from agent.runner import Plan
from agent.scheduler import Scheduler, phase

WAIT = 60.0  # seconds until a test gives up; nothing is asserted about time
X = Metric("ullage_x", "X.", ("who",))


class Probe:
    """A collector of which the test holds the reins: each run waits until the test lets it go."""

    def __init__(self, name: str, *, is_held: bool = False) -> None:
        self.name = name
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.closed = threading.Event()
        self.runs = 0
        self.at_once = 0
        self.most_at_once = 0
        self.metric = Metric(f"ullage_{name}", "X.")
        if not is_held:
            self.gate.set()

    def collect(self, _host: Host) -> Iterable[Yield]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.entered.set()
        assert self.gate.wait(WAIT)
        self.runs += 1
        self.at_once -= 1
        return [self.metric(self.runs)]

    def close(self) -> None:
        self.closed.set()

    def plan(
        self, interval: float = 0.02, deadline: float = 0.01, settings: object = None, uevents: tuple[str, ...] = ()
    ) -> Plan:
        collector = Collector(
            name=self.name, summary="X.", start=lambda _start: self, metrics=(self.metric,), uevents=uevents
        )
        return Plan(collector, settings, interval, deadline, 10)


@contextmanager
def scheduler() -> Iterator[tuple[Scheduler, Pages]]:
    pages = Pages()
    made = Scheduler(Host(), Latches(None), pages, "node", None)
    try:
        yield made, pages
    finally:
        made.stop(WAIT)


def until(scheduler: Scheduler, condition: Callable[[], bool]) -> None:
    for _ in range(int(WAIT / 0.01)):
        if condition():
            return
        scheduler.changed.wait(0.01)
        scheduler.changed.clear()
    pytest.fail("not so within time")


def test_a_stuck_collector_stops_no_other_and_comes_back_by_itself() -> None:
    stuck, fine = Probe("stuck", is_held=True), Probe("fine")
    with scheduler() as (made, pages):
        made.apply([stuck.plan(), fine.plan()])
        until(made, lambda: fine.runs >= 5 and made.workers["stuck"].is_overdue)
        assert stuck.runs == 0
        assert not pages.is_current("stuck")
        assert made.is_ready
        stuck.gate.set()
        until(made, lambda: stuck.runs >= 2 and not made.workers["stuck"].is_overdue)
        assert stuck.most_at_once == 1


def test_no_thread_is_left_behind() -> None:
    before = threading.active_count()
    probes = [Probe(f"x{number}") for number in range(8)]
    with scheduler() as (made, _):
        made.apply([probe.plan() for probe in probes])
        until(made, lambda: all(probe.runs >= 3 for probe in probes))
        for round_ in range(20):
            made.apply([probe.plan(settings=round_) for probe in probes])
    until(made, lambda: threading.active_count() == before)
    assert all(probe.closed.is_set() for probe in probes)


def test_a_changed_plan_waits_for_the_run_that_is_out() -> None:
    probe = Probe("x", is_held=True)
    with scheduler() as (made, _):
        made.apply([probe.plan()])
        assert probe.entered.wait(WAIT)
        made.apply([probe.plan(settings="other")])
        probe.gate.set()
        until(made, lambda: probe.runs >= 3)
        assert probe.most_at_once == 1


def test_a_plan_that_changes_while_its_collector_is_stuck_hides_nothing_and_leaves_one_thread() -> None:
    stuck = Probe("held_up", is_held=True)

    def threads() -> int:
        return [thread.name for thread in threading.enumerate()].count("collector-held_up")

    with scheduler() as (made, _):
        made.apply([stuck.plan()])
        until(made, lambda: made.workers["held_up"].is_overdue)
        for number in range(5):
            made.apply([stuck.plan(settings=number)])
            assert made.workers["held_up"].is_overdue
            assert made.is_ready
        until(made, lambda: threads() == 2)  # the one that is stuck, and its newest successor
        assert made.workers["held_up"].is_overdue
        stuck.gate.set()
        until(made, lambda: stuck.runs >= 3 and not made.workers["held_up"].is_overdue)
        assert stuck.most_at_once == 1


def test_an_unchanged_plan_goes_on_untouched_and_a_removed_one_is_withdrawn() -> None:
    kept, gone = Probe("kept"), Probe("gone")
    plan = kept.plan(interval=60, deadline=60)
    with scheduler() as (made, pages):
        made.apply([plan, gone.plan()])
        until(made, lambda: kept.runs == 1 and pages.is_current("gone"))
        made.apply([plan])
        assert set(made.workers) == {"kept"}
        assert gone.closed.wait(WAIT)
        assert kept.runs == 1


def test_ready_means_that_each_has_had_its_first_run() -> None:
    probe = Probe("x", is_held=True)
    with scheduler() as (made, _):
        made.apply([probe.plan(interval=60, deadline=60)])
        assert probe.entered.wait(WAIT)
        assert not made.is_ready
        probe.gate.set()
        until(made, lambda: made.is_ready)


def test_a_collector_that_cannot_start_is_failing_and_holds_up_nobody() -> None:
    def start(_start: Start) -> Probe:
        message = "no such device"
        raise OSError(message)

    fine = Probe("fine")
    broken = Plan(Collector(name="broken", summary="X.", start=start, metrics=()), None, 1.0, 1.0, 10)
    with scheduler() as (made, _):
        made.apply([broken, fine.plan()])
        until(made, lambda: fine.runs >= 1 and made.is_ready)
        runner = made.workers["broken"].runner
        assert not runner.outcome.is_up
        assert runner.errors == {"bug": 1}


def test_a_device_that_comes_brings_a_run_before_its_time_to_those_who_asked() -> None:
    asked, other = Probe("asked"), Probe("other")
    with scheduler() as (made, _):
        made.apply([asked.plan(interval=3600, uevents=("ullage-test",)), other.plan(interval=3600)])
        until(made, lambda: asked.runs == other.runs == 1)
        for _ in range(100):  # a burst
            made._wake("ullage-test")
            made._wake("another")
        until(made, lambda: asked.runs >= 2)
        made._wake("ullage-test")
        until(made, lambda: asked.runs >= 3)
        assert (asked.runs, other.runs) == (3, 1)


def test_phases_are_stable_and_spread() -> None:
    phases = [phase(f"node-{number}", "filesystem", 10.0) for number in range(1000)]
    assert phases == [phase(f"node-{number}", "filesystem", 10.0) for number in range(1000)]
    counts = [sum(start <= place < start + 1 for place in phases) for start in range(10)]
    assert min(counts) > 50
