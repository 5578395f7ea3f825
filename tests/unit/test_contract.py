"""What must hold for every collector, so that nobody has to remember it."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import collectors
from agent import selfmetrics
from agent.collector import Collector, Start
from agent.config import load
from agent.exposition import Pages
from agent.host import Host
from agent.latches import Latches
from agent.runner import Runner
from tests.trees.tree import host_of

ROOT = Path(__file__).resolve().parents[2]
TREES = ROOT / "tests" / "trees"
NAME = re.compile(r"ullage_[a-z][a-z0-9_]*")
FORBIDDEN_UNITS = ("_percent", "_kib", "_kb", "_mb", "_mib", "_milliseconds", "_minutes")
# d_type is the kernel's word (man 2 getdents); promtool takes the d for days
KNOWN_TO_PROMTOOL = {"ullage_filesystem_d_type_supported metric names should not contain abbreviated units"}
# what no single look at a tree can show: it needs time, changes, or the real thing; and the test that makes it
FOUND_ELSEWHERE = {
    "orphan-layers": "real/test_layers.py",
    "layer-link-broken": "real/test_layers.py",
    "layer-import-interrupted": "real/test_layers.py",
    "overlay-no-dtype": "real/test_overlay.py",
    "stale-driver-residue": "real/test_overlay.py",
    "rootfs-not-mounted": "real/test_overlay.py",
    "page-cache-pollution": "unit/test_pagecache.py",
    "drop-caches-in-use": "unit/test_pagecache.py",
    "slab-dominated": "unit/test_pagecache.py",
    "qgroup-inconsistent": "real/test_qgroup.py",
    "qgroups-disappeared": "real/test_qgroup.py",
    "thin-pool-no-autoextend": "vm/guest/test_thinpool.py",
    "thin-pool-held-root": "unit/test_thinpool.py",
    "volume-mount-missing": "real/test_volumes.py",
    "volume-snapshot-race": "vm/guest/test_volumes.py",
    "filesystem-shut-down": "unit/test_kernellog.py",
    "filesystem-errors": "unit/test_kernellog.py",
    "drive-errors": "unit/test_kernellog.py",
    "container-oom-kill": "unit/test_kernellog.py",
    "drop-caches-process": "unit/test_kernellog.py",
    "zfs-recordsize-mismatch": "vm/guest/test_zfs.py",
    "zfs-sync-disabled": "unit/test_zfs.py",
    "zfs-version-skew": "vm/guest/test_zfs.py",
}
Run = Callable[[Collector, Path], Runner]
ALL = pytest.mark.parametrize("collector", collectors.ALL, ids=lambda collector: collector.name)


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """Have a place on tmpfs for trees: what files take on the disk is the same everywhere then."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        yield Path(place)


def trees(collector: Collector) -> list[Path]:
    return sorted(path for path in (TREES / collector.name).iterdir() if path.is_dir())


@pytest.fixture
def run() -> Iterator[Run]:
    with workplace() as place:
        yield lambda collector, tree: run_once(collector, host_of(tree, place))


def run_once(collector: Collector, host: Host) -> Runner:
    (plan,) = load(None, [collector], {}).plans
    pages = Pages()
    runner = Runner(plan, host, Latches(None), pages)
    running = collector.start(Start(runner.host, plan.settings))
    try:
        runner.run(running)
    finally:
        running.close()
    return runner


def page(runner: Runner) -> str:
    return b"".join(runner._pages.members("text", gzip=False)).decode()


def emitted(text: str) -> set[str]:
    return {re.split(r"[{ ]", line, maxsplit=1)[0] for line in text.splitlines() if not line.startswith("#")}


@ALL
def test_name_module_and_row_agree(collector: Collector) -> None:
    module = __import__(f"collectors.{collector.name}", fromlist=["COLLECTOR"])
    assert module.COLLECTOR is collector
    assert module.__doc__


@ALL
def test_names_units_and_help_are_legal(collector: Collector) -> None:
    for metric in collector.metrics:
        assert NAME.fullmatch(metric.name), metric.name
        assert not metric.name.endswith(FORBIDDEN_UNITS), metric.name
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric.name
        assert (metric.kind == "info") == metric.name.endswith("_info"), metric.name
        assert metric.help.endswith("."), metric.help
        assert "node" not in metric.labels, metric.name


def test_no_metric_watermark_or_finding_has_two_homes() -> None:
    names = [metric.name for metric in selfmetrics.METRICS]
    names += [metric.name for collector in collectors.ALL for metric in collector.metrics]
    names += [watermark.name for collector in collectors.ALL for watermark in collector.watermarks]
    names += [finding.id for collector in collectors.ALL for finding in collector.findings]
    assert len(names) == len(set(names))


@ALL
def test_what_is_declared_is_emitted_by_some_tree_and_nothing_else(collector: Collector, run: Run) -> None:
    seen: set[str] = set()
    for tree in trees(collector):
        seen |= emitted(page(run(collector, tree)))
    assert seen == {metric.name for metric in collector.metrics}


@ALL
def test_every_finding_is_found_in_some_tree_or_has_a_test_of_its_own(collector: Collector, run: Run) -> None:
    declared = {finding.id for finding in collector.findings}
    found = {each.finding.id for tree in trees(collector) for each in run(collector, tree).outcome.findings}
    elsewhere = declared & FOUND_ELSEWHERE.keys()
    assert found | elsewhere == declared
    assert not found & elsewhere, "some tree has it now"
    for number in elsewhere:
        assert number in (ROOT / "tests" / FOUND_ELSEWHERE[number]).read_text(), number


@ALL
def test_what_the_status_tells_is_declared(collector: Collector) -> None:
    assert collector.kept <= set(collector.metrics)


def test_no_finding_that_is_found_elsewhere_is_undeclared() -> None:
    assert FOUND_ELSEWHERE.keys() <= {finding.id for collector in collectors.ALL for finding in collector.findings}


@ALL
def test_every_finding_says_what_it_is_and_has_its_place_in_docs_and_runbook(collector: Collector) -> None:
    sections = (ROOT / "docs" / "findings.md").read_text().split("\n## ")
    for finding in collector.findings:
        assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", finding.id), finding.id
        assert finding.severity in ("info", "warning", "critical"), finding.id
        assert finding.explanation.strip(), finding.id
        assert finding.remedy.strip(), finding.id
        (section,) = (each for each in sections if each.startswith(f"`{finding.id}`\n"))
        assert f"Collector `{collector.name}`, severity {finding.severity}." in section
        assert f"(runbooks/{finding.alert}.md#{finding.id})" in section
        runbook = (ROOT / "docs" / "runbooks" / f"{finding.alert}.md").read_text()
        assert f"\n### `{finding.id}`\n" in runbook  # of which GitHub makes the anchor


@ALL
def test_an_empty_root_yields_nothing_and_raises_nothing(collector: Collector, run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    runner = run(collector, tmp_path / "empty")
    assert page(runner) == ""
    assert "bug" not in runner.errors


@ALL
def test_no_container_has_more_than_50_series(collector: Collector, run: Run) -> None:
    for tree in trees(collector):
        ids = re.findall(r'[{,]id="([^"]+)"', page(run(collector, tree)))
        assert max(map(ids.count, ids), default=0) <= 50


@ALL
def test_two_runs_on_one_tree_give_equal_bytes(collector: Collector, run: Run) -> None:
    for tree in trees(collector):
        assert page(run(collector, tree)) == page(run(collector, tree))


@ALL
def test_every_tree_says_where_it_is_from_and_gives_what_it_should(collector: Collector, run: Run) -> None:
    for tree in trees(collector):
        assert (tree / "why.md").read_text().strip(), tree
        assert page(run(collector, tree)) == (tree / "expected.prom").read_text(), tree


@ALL
def test_no_tree_is_a_bug(collector: Collector, run: Run) -> None:
    for tree in trees(collector):
        assert "bug" not in run(collector, tree).errors, tree


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@ALL
def test_promtool_finds_nothing_to_say(collector: Collector, run: Run) -> None:
    for tree in trees(collector):
        text = page(run(collector, tree))
        if text:
            checked = subprocess.run(
                ["promtool", "check", "metrics"], check=False, input=text, capture_output=True, text=True
            )
            said = set((checked.stdout + checked.stderr).splitlines())
            assert said <= KNOWN_TO_PROMTOOL, tree
            assert (checked.returncode == 0) == (not said), tree


@ALL
def test_everything_declared_is_in_the_docs(collector: Collector) -> None:
    metrics, watermarks = (ROOT / "docs" / name for name in ("metrics.md", "watermarks.md"))
    for metric in collector.metrics:
        assert f"`{metric.name}`" in metrics.read_text(), metric.name
    for watermark in collector.watermarks:
        assert f"`{watermark.name}`" in watermarks.read_text(), watermark.name


def test_the_agents_own_metrics_are_in_the_docs() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    for metric in selfmetrics.METRICS:
        assert f"`{metric.name}`" in text, metric.name
