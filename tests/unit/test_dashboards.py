"""The dashboards: as the SDK's types and Grafana's grid want them, and of series that there are."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

import collectors
from agent.metric import Metric
from agent.watermark import Watermark
from collectors import inotify, layers, openfiles, pagecache, zfs
from dashboards.generate import DASHBOARDS
from dashboards.promql import FLEET, ratio, within
from tests.generate import ROOT
from tests.prometheus import installed
from tests.promql import VARIABLES, complaints, declared

TEXTS = {name: (ROOT / "dashboards" / f"{name}.json").read_text() for name in DASHBOARDS}
LOADED: dict[str, dict[str, Any]] = {name: json.loads(text) for name, text in TEXTS.items()}
EACH = pytest.mark.parametrize("name", DASHBOARDS)
WATERMARKS = pytest.mark.parametrize(
    "watermark",
    [watermark for collector in collectors.ALL for watermark in collector.watermarks],
    ids=lambda watermark: watermark.name,
)
OURS_ONLY = ("step", "titleFormat", "textFormat")  # of an annotation; Grafana has them, the SDK's type has not


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in LOADED[name]["panels"] if panel["type"] != "row"]


@EACH
def test_it_is_what_the_sdk_makes_of_it(name: str) -> None:
    register_default_plugins()
    expected = json.loads(TEXTS[name])
    for annotation in expected["annotations"]["list"]:
        for key in OURS_ONLY:
            del annotation[key]
    decoded = Dashboard.from_json(json.loads(TEXTS[name]))
    assert json.loads(json.dumps(decoded, cls=JSONEncoder)) == expected


@EACH
def test_no_panel_lies_over_another_or_outside_the_grid(name: str) -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in LOADED[name]["panels"]]
    for title, place in places:
        assert place["x"] >= 0, title
        assert place["x"] + place["w"] <= 24, title
    for (title, one), (other_title, other) in itertools.combinations(places, 2):
        is_beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        is_above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert is_beside or is_above, (title, other_title)


@EACH
def test_every_panel_says_what_it_is(name: str) -> None:
    numbers = [panel["id"] for panel in LOADED[name]["panels"]]
    assert len(numbers) == len(set(numbers))
    titles = [panel["title"] for panel in panels(name)]
    assert len(titles) == len(set(titles))
    for panel in panels(name):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert panel["targets"], panel["title"]


@EACH
def test_every_expression_parses_and_names_what_is_declared(name: str) -> None:
    for panel in panels(name):
        for target in panel["targets"]:
            assert complaints(target["expr"], target["legendFormat"]) == [], (panel["title"], target["expr"])
    for annotation in LOADED[name]["annotations"]["list"]:
        assert complaints(annotation["expr"], annotation["titleFormat"] + annotation["textFormat"]) == []


@EACH
def test_every_series_is_restricted_by_the_variables_that_there_are(name: str) -> None:
    variables = {variable["name"] for variable in LOADED[name]["templating"]["list"]} - {"datasource"}
    assert {"cluster", "job"} <= variables
    for panel in panels(name):
        for target in panel["targets"]:
            series = len(re.findall(r"(?<![\w:])(?:ullage[_:]|up\b|ALERTS|process_|scrape_)", target["expr"]))
            for variable in variables:
                left_out = target["expr"].count("ullage_watermark_") if variable == "namespace" else 0
                assert target["expr"].count(f'=~"${variable}"') == series - left_out, (panel["title"], variable)
            assert set(re.findall(r'=~"\$(\w+)"', target["expr"])) <= variables, panel["title"]
    for variable in LOADED[name]["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]  # no match fails the test
            assert complaints(metric) == []
            assert label in declared()[metric.partition("{")[0]] | {"cluster", "job", "instance"}


@EACH
def test_every_link_leads_somewhere(name: str) -> None:
    uids = {dashboard["uid"] for dashboard in LOADED.values()}
    links = re.findall(r'"url": "([^"]+)"', TEXTS[name])
    assert links
    for link in links:
        board = re.match(r"/d/([\w-]+)\?var-node=\$\{__value\.raw\}&", link)
        if board is not None:
            assert board[1] in uids
            continue
        page = re.match(
            r"https://github\.com/ullage/ullage/blob/main/(docs/[^#$]+?)/?(?:#?\$\{__value\.raw\}(?:\.md)?)?$", link
        )
        assert page is not None, link
        assert (ROOT / page[1]).exists(), link


@EACH
def test_a_link_to_another_dashboard_takes_along_what_is_chosen(name: str) -> None:
    variables = {board["uid"]: {each["name"] for each in board["templating"]["list"]} for board in LOADED.values()}
    for address, query in re.findall(r'"url": "/d/([\w-]+)\?([^"]+)"', TEXTS[name]):
        given = set(re.findall(r"var-(\w+)=", query))
        taken = re.findall(r"\$\{(\w+):queryparam\}", query)
        assert sorted(taken) == sorted((variables[LOADED[name]["uid"]] & variables[address]) - given)
        assert "${__url_time_range}" in query.split("&")


def test_every_dashboard_has_an_address_of_its_own() -> None:
    assert len({dashboard["uid"] for dashboard in LOADED.values()}) == len(LOADED)
    assert all(len(dashboard["uid"]) <= 40 for dashboard in LOADED.values())


@WATERMARKS
def test_every_metric_of_a_watermark_is_shown_against_its_thresholds(watermark: Watermark) -> None:
    shown = [target["expr"] for name in DASHBOARDS for panel in panels(name) for target in panel["targets"]]
    for tier in watermark.tiers:
        for edge in ("raise", "clear"):
            line = f'watermark="{watermark.name}", tier="{tier.name}", edge="{edge}"'
            assert any(line in expression for expression in shown), (tier.name, edge)


@WATERMARKS
def test_the_fleet_shows_the_fullest_of_each_watermark(watermark: Watermark) -> None:
    fullest = within(f"topk(10, {ratio(watermark)})", FLEET)
    found = [panel for panel in panels("fleet") if panel["targets"][0]["expr"] == fullest]
    assert [panel["type"] for panel in found] == ["bargauge"]
    steps = found[0]["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert {step["value"] for step in steps[1:]} <= {tier.raise_at for tier in watermark.tiers}


def judge(directory: Path, given: dict[str, Any], tests: list[dict[str, Any]]) -> None:
    """Have promtool evaluate expressions on series."""
    test = {"interval": "1m", **given, "promql_expr_test": tests}
    (directory / "test.yml").write_text(yaml.safe_dump({"rule_files": [], "tests": [test]}))
    command = [installed("promtool"), "test", "rules", str(directory / "test.yml")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("points", [120, 300, 900])  # seconds from one to the next: Grafana's, by what is shown
@pytest.mark.parametrize("scrape", [15, 30, 60, 120])
def test_every_change_of_a_level_is_annotated(scrape: int, points: int, tmp_path: Path) -> None:
    (annotation,) = LOADED["fleet"]["annotations"]["list"]
    step = int(annotation["step"].removesuffix("s"))
    # grafana/pkg/promlib/models/query.go: calculateRateInterval
    interval = max(points + step, 4 * step)
    expression = annotation["expr"].replace("$__rate_interval", f"{interval}s")
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    phases = 2 * points // scrape + 1  # all that a change can have between two points
    most = phases + 2 * interval // scrape
    series = {f"raised-{at}": [at * ["0"], (most - at) * ["1"]] for at in range(1, phases + 1)}
    series |= {f"cleared-{at}": [at * ["2"], (most - at) * ["0"]] for at in range(1, phases + 1)}
    changed = len(series)
    series |= {"steady": [most * ["1"]], "new": [phases * ["_"], (most - phases) * ["1"]]}
    gap = scrape // 5 - 2
    given = {
        "interval": "5s",  # and no scrape at a round time, at which the points are
        "input_series": [
            {
                "series": f'ullage_watermark_level{{target="{name}"}}',
                "values": " ".join(f"_ {value}{gap * ' _'}" for values in parts for value in values),
            }
            for name, parts in series.items()
        ],
    }
    seen = {
        "expr": f"count(count_over_time(({expression})[{most * scrape}s:{points}s]))",
        "eval_time": f"{most * scrape}s",
        "exp_samples": [{"labels": "{}", "value": changed}],
    }
    judge(tmp_path, given, [seen])


# metrics with a sum of what has no series of its own; the first have one of the host too
OF_PROCESSES = {inotify.CONTAINER_WATCHES, inotify.CONTAINER_INSTANCES, inotify.BLIND, openfiles.BYTES, openfiles.FILES}
SUMMED = {
    "container": {
        *OF_PROCESSES,
        inotify.STALE,
        *pagecache.STATS["container"],
        layers.WRITABLE_FILES,
        layers.WRITABLE_BYTES,
    },
    "dataset": {*zfs.COUNTED, zfs.BACKLOG, zfs.SNAPSHOT_USED},
}
# panels that show it as well, and why
WITH_THE_REST = {
    ("containers", "By namespace"): "it adds up, and says so",
    ("containers", "Changes that nobody sees"): "a hazard is not left out because its container is small",
}


def names(expression: str, metrics: Iterable[Metric]) -> bool:
    return any(re.search(rf"\b{metric.name}\b", expression) for metric in metrics)


def ranked() -> list[tuple[str, str]]:
    """Return the label by which they rank, and the expressions of panels that show the biggest of something."""
    found = {
        (label, target["expr"])
        for name in DASHBOARDS
        for panel in panels(name)
        for target in panel["targets"]
        for label, metrics in SUMMED.items()
        if "topk" in target["expr"] and names(target["expr"], metrics)
        if (name, panel["title"]) not in WITH_THE_REST
    }
    return sorted(found)


@pytest.mark.parametrize(("label", "expression"), ranked())
def test_a_sum_of_what_is_small_is_not_ranked(label: str, expression: str, tmp_path: Path) -> None:
    rest = '{container="other", id=""}' if label == "container" else '{dataset="other"}'
    single = {
        "container": ['{container="other", id="1"}', '{container="", id="2"}', '{container="", pod="a", id="3"}'],
        "dataset": ['{dataset="tank", id="1"}', '{dataset="tank/other", id="2"}'],
    }[label]
    if names(expression, OF_PROCESSES):
        single += ['{container="host", id=""}', '{container="", pod="b", id=""}']
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    metrics = [metric.name for metric in SUMMED[label]]
    series = {
        f"{name}{labels}": "0+1x10" for name in (*metrics, pagecache.LIMITS["container"].name) for labels in single
    }
    series |= {f"{name}{rest}": "0+9x10" for name in metrics}
    series |= {f"rest{rest}": "1x10"} | {f"single{labels}": "1x10" for labels in single}
    samples: dict[str, list[dict[str, Any]]] = {"rest": [], "single": [{"labels": "{}", "value": len(single)}]}
    tests = [
        {
            "expr": f"count(({expression}) and on (container, pod, id, dataset) {name})",
            "eval_time": "10m",
            "exp_samples": expected,
        }
        for name, expected in samples.items()
    ]
    judge(tmp_path, {"input_series": [{"series": key, "values": value} for key, value in series.items()]}, tests)


def rules() -> list[tuple[str, str]]:
    groups = yaml.safe_load((ROOT / "deploy" / "rules" / "ullage.rules.yml").read_text())["groups"]
    return [(rule.get("alert") or rule["record"], rule["expr"]) for group in groups for rule in group["rules"]]


def test_every_rule_parses_and_names_what_is_declared() -> None:
    for name, expression in rules():
        assert complaints(expression) == [], name


def test_what_is_not_declared_is_complained_of() -> None:
    assert complaints("ullage_walks") == ["ullage_walks is not declared"]
    assert complaints('ullage_filesystem_files{pool="x"}') == ["ullage_filesystem_files has no label pool"]
    assert complaints("sum by (pool) (ullage_filesystem_files)") == ["no series has the label pool"]
    assert complaints("ullage_filesystem_files", "{{pool}}") == ["no series has the label pool"]
    assert complaints('rate(ullage_drop_caches_total{color="x"}[5m])') == [
        "ullage_drop_caches_total has no label color"
    ]
    assert complaints("sum(ullage_filesystem_files")[0].startswith("does not parse")
