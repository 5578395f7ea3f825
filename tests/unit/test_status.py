"""The status document, from collectors of which the test holds the reins."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from agent.collector import Collector, Fact, Top, Yield, stateless
from agent.containers import LABELS
from agent.daemon import Engine, Options
from agent.errors import Failed, Unsupported
from agent.finding import Finding
from agent.host import Host
from agent.metric import Family, Metric
from agent.status import TOP, Status, read_node
from agent.watermark import Tier, Watermark

WAIT = 60.0  # seconds until a test gives up; nothing is asserted about time
USED, SIZE = Metric("ullage_used_bytes", "X.", ("name",)), Metric("ullage_size_bytes", "X.", ("name",))
CACHE = Metric("ullage_cache_bytes", "X.", LABELS)
DRIVER = Metric("ullage_driver_info", "X.", ("runtime", "driver"), "info")
LEVEL = Watermark(
    name="level",
    summary="X.",
    used=USED,
    size=SIZE,
    target=("name",),
    tiers=(Tier("warning", "warning", 0.8, 0.7), Tier("critical", "critical", 0.9, 0.85)),
)
LOOSE = Finding("loose", "warning", "{target} is loose.", "tie {target}")
BROKEN = Finding("broken", "critical", "{target} is broken.", "mend {target}")
Collect = Callable[[], Iterable[Yield]]


def collector(collect: Collect, name: str = "one") -> Collector:
    return Collector(
        name=name,
        summary="X.",
        start=stateless(lambda _host: collect()),
        metrics=(USED, SIZE, CACHE, DRIVER),
        watermarks=(LEVEL,),
        findings=(LOOSE, BROKEN),
        facts=(Fact("Drivers", DRIVER),),
        tops=(Top("Cache", CACHE, "bytes"),),
    )


def fail() -> Iterable[Yield]:
    raise Failed("x", "broken")


class Bench:
    """An engine with one collector; `next` is what it yields, and `run` lets it."""

    def __init__(self, state: Path | None, first: Collect) -> None:
        self.next = first
        self._collector = collector(lambda: self.next())  # noqa: PLW0108  `next` changes
        options = Options(state=state)
        self.engine = Engine(options, options.load([self._collector]), "n1", has_process=False)

    def run(self, collect: Collect) -> Status:
        (worker,) = self.engine.scheduler.workers.values()
        self._until(lambda: worker.is_first_done)
        before, self.next = worker.runner.outcome, collect
        worker.wake(at_once=True)
        self._until(lambda: worker.runner.outcome is not before)
        self.engine.publish()
        return self.engine.status()

    def _until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT
        while not condition():
            assert time.monotonic() < end, "the collector has not run in time"
            time.sleep(0.002)


@contextmanager
def running(state: Path | None = None, first: Collect = lambda: ()) -> Iterator[Bench]:
    bench = Bench(state, first)
    try:
        yield bench
    finally:
        bench.engine.stop()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with running() as made:
        yield made


def test_the_document_survives_json(bench: Bench) -> None:
    status = bench.run(
        lambda: [
            USED(95, "a"),
            SIZE(100, "a"),
            CACHE(7, "shop", "web", "main", "ca97"),
            DRIVER(1, "docker", "overlay2"),
            LOOSE("b"),
        ]
    )
    assert msgspec.json.decode(msgspec.json.encode(status), type=Status) == status
    assert msgspec.json.decode(msgspec.json.encode(status))["watermarks"][0]["tiers"][0] == {
        "name": "warning",
        "severity": "warning",
        "raise": 0.8,
        "clear": 0.7,
    }


def test_facts_are_the_labels_of_series_that_are_not_0(bench: Bench) -> None:
    status = bench.run(lambda: [DRIVER(1, "docker", "overlay2"), DRIVER(0, "podman", "vfs")])
    (fact,) = status.facts
    assert (fact.title, fact.metric) == ("Drivers", "ullage_driver_info")
    assert fact.items == [{"runtime": "docker", "driver": "overlay2"}]


def test_a_ranking_has_the_biggest_containers_and_not_the_sum_of_the_others(bench: Bench) -> None:
    labelsets = [("shop", "web", "main", str(number)) for number in range(1, 30)]
    family = Family(CACHE, [*labelsets, ("", "", "other", "")], [*map(float, range(1, 30)), 1e9])
    (top,) = bench.run(lambda: [family]).top
    assert (top.title, top.metric, top.unit) == ("Cache", "ullage_cache_bytes", "bytes")
    assert [(item.id, item.value) for item in top.items] == [(str(n), n) for n in range(29, 29 - TOP, -1)]
    assert (top.items[0].namespace, top.items[0].pod, top.items[0].container) == ("shop", "web", "main")


def test_a_ranking_is_of_containers() -> None:
    with pytest.raises(ValueError, match="ullage_used_bytes: expected the labels namespace, pod, container, id"):
        Top("Used", USED, "bytes")


def test_the_worst_watermarks_come_first_and_only_as_many_as_are_asked_for(bench: Bench) -> None:
    ratios = {"low": 10, "critical": 91, "warning": 85, "high": 79}
    status = bench.run(lambda: [s for name, used in ratios.items() for s in (USED(used, name), SIZE(100, name))])
    assert [(each.target, each.tier, each.ratio) for each in status.watermarks] == [
        ("critical", "critical", 0.91),
        ("warning", "warning", 0.85),
        ("high", None, 0.79),
        ("low", None, 0.1),
    ]
    assert bench.engine.status(2).watermarks == status.watermarks[:2]
    assert bench.engine.status(2).watermark_targets == 4


def test_findings_have_their_times_and_a_runbook_and_the_worst_comes_first(bench: Bench) -> None:
    began = time.time()
    loose, broken = reversed(bench.run(lambda: [LOOSE("a"), BROKEN("b")]).findings)
    assert (broken.finding, broken.severity, broken.target) == ("broken", "critical", "b")
    assert (loose.explanation, loose.remedy) == ("a is loose.", "tie a")
    assert loose.runbook.endswith("/docs/runbooks/UllageFindingWarning.md#loose")
    assert began <= loose.first_seen <= loose.last_seen <= time.time()
    again = bench.run(lambda: [LOOSE("a")])
    (held,) = again.findings
    assert held.first_seen == loose.first_seen
    assert held.last_seen > loose.last_seen
    (gone,) = again.findings_gone
    assert (gone.finding, gone.severity, gone.target, gone.runbook) == ("broken", "critical", "b", broken.runbook)
    assert gone.last_seen <= held.last_seen


def test_a_run_that_fails_does_not_end_a_finding(bench: Bench) -> None:
    def lack() -> Iterable[Yield]:
        raise Unsupported("nothing here")

    (before,) = bench.run(lambda: [LOOSE("a")]).findings
    status = bench.run(fail)
    assert [(each.finding, each.last_seen) for each in status.findings] == [("loose", before.last_seen)]
    assert status.findings_gone == []
    assert (status.collectors[0].state, status.collectors[0].reason) == ("failing", "x: broken")
    status = bench.run(lack)
    assert [each.finding for each in status.findings_gone] == ["loose"]
    assert (status.findings, status.collectors[0].state) == ([], "unsupported")


def test_first_sights_outlive_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as bench:
        (before,) = bench.run(lambda: [LOOSE("a")]).findings
    with running(tmp_path, fail) as bench:
        assert bench.engine.status().findings_gone == [], "nothing is gone before the collector has run"
        (after,) = bench.run(lambda: [LOOSE("a")]).findings
    assert (after.first_seen, after.last_seen > before.last_seen) == (before.first_seen, True)


def test_numbers_of_a_withdrawn_page_are_left_out(bench: Bench) -> None:
    status = bench.run(lambda: [USED(95, "a"), SIZE(100, "a"), DRIVER(1, "docker", "overlay2"), LOOSE("b")])
    assert status.watermarks
    assert status.facts
    bench.engine.pages.drop("one")
    status = bench.engine.status()
    assert (status.watermarks, status.watermark_targets, status.facts, status.top) == ([], 0, [], [])
    assert [each.finding for each in status.findings] == ["loose"]


def test_names_that_are_no_utf8_do_not_break_it(bench: Bench) -> None:
    evil = os.fsdecode(b"/mnt/\xff")
    status = bench.run(lambda: [USED(95, evil), SIZE(100, evil), LOOSE(evil)])
    body = msgspec.json.encode(status)
    assert body.count("/mnt/\ufffd".encode()) == 4  # of the watermark, and in the finding's three texts


def test_collectors_tell_what_they_cost(bench: Bench) -> None:
    (shown,) = bench.run(lambda: [USED(sum(range(10**6)), "a")]).collectors
    assert (shown.name, shown.state, shown.series, shown.interval_seconds) == ("one", "up", 1, 15.0)
    assert shown.cpu_seconds is not None
    assert shown.duration_seconds is not None
    assert shown.cpu_seconds > 0
    assert shown.duration_seconds > 0


def tree(root: Path, files: dict[str, str]) -> Host:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Host(str(root / "proc"), str(root / "sys"), str(root), str(root / "dev"))


def test_the_node_is_told_by_its_files(tmp_path: Path) -> None:
    host = tree(
        tmp_path,
        {
            "etc/hostname": "n1\n",
            "usr/lib/os-release": 'NAME="Debian GNU/Linux"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
            "proc/sys/kernel/osrelease": "6.1.0-18-amd64\n",
            "proc/stat": "cpu  1 2\nbtime 1700000000\n",
            "sys/fs/cgroup/cgroup.controllers": "cpu\n",
        },
    )
    (tmp_path / "etc/os-release").symlink_to("../usr/lib/os-release")
    node = read_node(host)
    assert (node.hostname, node.kernel, node.os) == ("n1", "6.1.0-18-amd64", "Debian GNU/Linux 12 (bookworm)")
    assert (node.cgroup, node.boot_time) == ("v2", 1_700_000_000.0)


@pytest.mark.parametrize(
    ("files", "version"),
    [
        (["cgroup.controllers"], "v2"),
        (["memory/cgroup.procs", "unified/cgroup.controllers"], "hybrid"),
        (["memory/cgroup.procs", "systemd/cgroup.procs", "unified/cgroup.procs"], "v1"),
        ([], None),
    ],
)
def test_cgroup_versions(tmp_path: Path, files: list[str], version: str | None) -> None:
    assert read_node(tree(tmp_path, {f"sys/fs/cgroup/{name}": "" for name in files})).cgroup == version


@pytest.mark.parametrize("text", ["", "PRETTY_NAME=", 'PRETTY_NAME="x', "btime x", "NAME=x"])
def test_what_is_malformed_is_not_known(tmp_path: Path, text: str) -> None:
    node = read_node(tree(tmp_path, {"etc/os-release": text, "proc/stat": text}))
    assert (node.os, node.boot_time, node.kernel) == (None, None, None)
