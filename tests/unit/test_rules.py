"""The generated rules, as promtool judges them, and against the step function in Python."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import collectors
from agent.config import HOLD_MOST
from agent.metric import Metric
from agent.rules import KEEP_FIRING_FOR, alert_name, generate
from agent.units import Seconds
from agent.watermark import Reading, Reserve, Tier, Watermark, step
from collectors import filesystem
from tests.generate import ROOT
from tests.prometheus import installed, newest
from tests.promtool_cases import Node, levels, sample_series, threshold_series
from tests.unit.test_contract import trees

WATERMARKS = tuple(watermark for collector in collectors.ALL for watermark in collector.watermarks)
RULES = ROOT / "deploy" / "rules"
GROUPS = yaml.safe_load((RULES / "ullage.rules.yml").read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
GIB = 1 << 30
SIZE = 100 * GIB
VERSIONS = pytest.mark.parametrize(
    "find", [installed, pytest.param(newest, marks=pytest.mark.slow)], ids=["installed", "newest"]
)


def promtool(*arguments: str, find: Callable[[str], str] = installed) -> str:
    """Run promtool; return what it has to complain about, nothing when it is content."""
    done = subprocess.run([find("promtool"), *arguments], check=False, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@VERSIONS
def test_the_rules_are_valid(find: Callable[[str], str]) -> None:
    assert promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES / "ullage.rules.yml"), find=find) == ""


@pytest.mark.slow
@VERSIONS
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group["name"])
def test_every_case_of_a_group_holds(group: dict[str, Any], find: Callable[[str], str], tmp_path: Path) -> None:
    # its own group alone: promtool evaluates every rule of a file for each minute of each case
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [group]}))
    name = group["name"].removeprefix("ullage-").replace("-", "_")
    cases = yaml.safe_load((RULES / "tests" / f"{name}.yml").read_text())
    assert cases["rule_files"] == ["../ullage.rules.yml"]
    (tmp_path / "cases.yml").write_text(yaml.safe_dump(cases | {"rule_files": ["rules.yml"]}, sort_keys=False))
    assert promtool("test", "rules", str(tmp_path / "cases.yml"), find=find) == ""


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_severity_words_and_a_runbook(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in {"info", "warning", "critical"}
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    page = alert["annotations"]["runbook_url"].rpartition("/")[2].partition("#")[0]
    assert page == f"{name}.md"
    text = (ROOT / "docs" / "runbooks" / page).read_text()
    assert f"# {name}\n" in text
    for heading in ("Meaning", "Impact", "Diagnosis", "Mitigation"):
        _, _, section = text.partition(f"\n## {heading}\n")
        assert len(section.partition("\n## ")[0].strip()) > 40, heading


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group["name"])
def test_every_alert_has_cases_that_fire_it_and_cases_that_do_not(group: dict[str, Any]) -> None:
    name = group["name"].removeprefix("ullage-").replace("-", "_")
    cases = yaml.safe_load((RULES / "tests" / f"{name}.yml").read_text())["tests"]
    for alert in (rule["alert"] for rule in group["rules"] if "alert" in rule):
        checks = [
            bool(check["exp_samples"])
            for case in cases
            for check in case["promql_expr_test"]
            if f'alertname="{alert}", alertstate="firing"' in check["expr"]
        ]
        assert set(checks) == {True, False}, alert


def test_every_runbook_is_that_of_an_alert() -> None:
    assert {path.stem for path in (ROOT / "docs" / "runbooks").iterdir()} == set(ALERTS)


def test_every_alert_goes_on_while_what_it_is_about_comes_and_goes() -> None:
    for name, alert in ALERTS.items():
        assert alert["keep_firing_for"] == str(Seconds(KEEP_FIRING_FOR)), name
        assert Seconds.parse(alert["for"]) <= HOLD_MOST, name


@pytest.mark.parametrize("watermark", WATERMARKS, ids=lambda watermark: watermark.name)
def test_every_tier_has_its_alert(watermark: Watermark) -> None:
    for tier in watermark.tiers:
        labels = ALERTS[alert_name(watermark, tier)]["labels"]
        assert labels == {"severity": tier.severity, "tier": tier.name, "watermark": watermark.name}


def test_a_cleared_or_missing_target_never_breaks_a_rule(tmp_path: Path) -> None:
    """Two filesystems at one mount point, as while a disk is replaced, and two agents on one node."""
    watermark = filesystem.INODES
    minutes = 10
    node = Node("node-1", levels(watermark.tiers), {"/data": levels(watermark.tiers, 0.1)})
    series = threshold_series(watermark, node, minutes)
    for device in ("/dev/sdb", "/dev/sdc"):
        for each in sample_series(watermark, "node-1", "/data", [(0.95, minutes)], values_of_inodes):
            series.append(each | {"series": each["series"].replace("/dev/sdb", device)})
    doubled = [each | {"series": each["series"].replace("{", '{pod="agent-2", ')} for each in series]
    (tmp_path / "rules.yml").write_text(generate(WATERMARKS))
    name = alert_name(watermark, watermark.tiers[-1])
    test = {
        "interval": "1m",
        "input_series": series + doubled,
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}})',
                "eval_time": "9m",
                "exp_samples": [{"labels": "{}", "value": 4}],
            }
        ],
    }
    assert run(tmp_path, [test]) == ""


def values_of_inodes(ratio: float) -> Mapping[Metric, float]:
    return {filesystem.FILES: 1000, filesystem.FILES_FREE: 1000 - round(1000 * ratio), filesystem.READONLY: 0}


def run(directory: Path, tests: list[dict[str, Any]]) -> str:
    path = directory / "test.yml"
    path.write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}))
    return promtool("test", "rules", str(path))


LEVELS = st.sampled_from([0.0, 0.5, 0.7, 0.749, 0.75, 0.76, 0.79, 0.8, 0.81, 0.849, 0.85, 0.87, 0.899, 0.9, 0.95, 1.0])
TIERS = (Tier("warning", "warning", 0.8, 0.75, 0.0), Tier("critical", "critical", 0.9, 0.85, 0.0))
PLAIN = filesystem.INODES.with_tiers(TIERS, None, ())
# with 12 GiB of 100 the reserve is between the two tiers, so that it matters
RESERVED = filesystem.BYTES.with_tiers(TIERS, Reserve(12 * GIB, 14.4 * GIB, 60 * GIB), ())


def values_of_bytes(ratio: float) -> Mapping[Metric, float]:
    left = SIZE - round(SIZE * ratio)
    return {filesystem.SIZE: SIZE, filesystem.FREE: left, filesystem.AVAILABLE: left, filesystem.READONLY: 0}


@settings(max_examples=8)
@given(timelines=st.lists(st.lists(LEVELS, min_size=12, max_size=12), min_size=12, max_size=12))
def test_promql_and_the_step_function_agree_at_every_step(
    tmp_path_factory: pytest.TempPathFactory, timelines: list[list[float]]
) -> None:
    directory = tmp_path_factory.mktemp("agree")
    (directory / "rules.yml").write_text(generate([PLAIN, RESERVED], keep_firing_for=0.0))
    minutes = len(timelines[0])
    node = Node("node-1", levels(TIERS), {})
    series = threshold_series(PLAIN, node, minutes) + threshold_series(RESERVED, node, minutes)
    firing: dict[tuple[str, int], list[str]] = {
        (alert_name(w, tier), minute): [] for w in (PLAIN, RESERVED) for tier in TIERS for minute in range(minutes)
    }
    for number, timeline in enumerate(timelines):
        target = f"/data/{number}"
        steps = [(ratio, 1) for ratio in timeline]
        series += sample_series(PLAIN, "node-1", target, steps, values_of_inodes)
        series += sample_series(RESERVED, "node-1", target, steps, values_of_bytes)
        for watermark in (PLAIN, RESERVED):
            level = 0
            for minute, ratio in enumerate(timeline):
                reading = Reading(ratio, SIZE, SIZE - round(SIZE * ratio))
                level = step(level, reading, TIERS, watermark.reserve)
                for tier in TIERS[:level]:
                    firing[alert_name(watermark, tier), minute].append(target)
    checks = [
        {
            "expr": f'count by (target) (ALERTS{{alertname="{alert}", alertstate="firing"}})',
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": f'{{target="{target}"}}', "value": 1} for target in targets],
        }
        for (alert, minute), targets in firing.items()
    ]
    assert run(directory, [{"interval": "1m", "input_series": series, "promql_expr_test": checks}]) == ""


def scraped() -> list[dict[str, str]]:
    """Return whole scrapes as input series: each tree of each collector with the agent's own page, as instances."""
    series = []
    for collector in collectors.ALL:
        for tree in trees(collector):
            own = [line for line in AGENT_PAGE.format(collector=collector.name).splitlines() if line]
            instance = f"{collector.name}/{tree.name}"
            for watermark in collector.watermarks:
                series += threshold_series(watermark, Node(instance, levels(watermark.tiers), {}), 10)
            # promtool's notation takes U+FFFD for bytes that are no UTF-8
            text = (tree / "expected.prom").read_text().replace("\ufffd", "?")
            lines = [line for line in text.split("\n") if line and line[:1] != "#"]
            for line in own + lines:
                name, _, value = line.rpartition(" ")
                name, _, labels = name.rstrip("}").partition("{")
                labels = ",".join(filter(None, [f'instance="{instance}"', 'job="ullage"', labels]))
                series.append({"series": f"{name}{{{labels}}}", "values": f"{value}x10"})
    return series


AGENT_PAGE = """
up 1
ullage_build_info{{version="1",python="3"}} 1
ullage_config_last_reload_successful 1
ullage_collector_up{{collector="{collector}"}} 1
ullage_collector_overdue{{collector="{collector}"}} 0
ullage_collector_page_withdrawn{{collector="{collector}"}} 0
ullage_collector_series_dropped_total{{collector="{collector}"}} 0
ullage_finding{{finding="x",severity="warning",target="/"}} 1
"""


def test_no_rule_fails_on_a_whole_golden_scrape(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text((RULES / "ullage.rules.yml").read_text())
    number = sum(len(trees(collector)) for collector in collectors.ALL)
    check = {"expr": "count(up)", "eval_time": "9m", "exp_samples": [{"labels": "{}", "value": number}]}
    assert run(tmp_path, [{"interval": "1m", "input_series": scraped(), "promql_expr_test": [check]}]) == ""
