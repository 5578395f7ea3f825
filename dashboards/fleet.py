"""All nodes: the fullest of each watermark, what is full soon, findings by kind, and nodes without data."""

from __future__ import annotations

import collectors
from agent.watermark import Watermark
from dashboards.layout import Dashboard, Row
from dashboards.panels import Panel, Place, Query, Table
from dashboards.promql import FINDINGS, FLEET, RUNBOOKS, ratio

HERE = Place(FLEET)
SOON = 172_800  # seconds
# what a link does not name is chosen anew there
CHOSEN = "${datasource:queryparam}&${cluster:queryparam}&${job:queryparam}&${__url_time_range}"
TO_NODE = {"instance": ("This node", f"/d/ullage-node?var-node=${{__value.raw}}&{CHOSEN}")}
OURS = "count by (job) (present_over_time(ullage_build_info[1h]))"
DOWN = f"up == 0 and on (job) {OURS}"
# by watermark, as one that is missing ends `make generate`: a title, and the legend behind the node
WORDS = {
    "inodes": ("Inodes", "{{mountpoint}}"),
    "filesystem_bytes": ("Bytes of filesystems", "{{mountpoint}}"),
    "inotify_instances": ("inotify instances of users", "{{userns}} {{uid}}"),
    "inotify_watches": ("inotify watches of users", "{{userns}} {{uid}}"),
    "page_cache": ("Page cache of memory limits", "{{namespace}}/{{pod}} {{container}}"),
    "qgroup_referenced": ("Btrfs qgroups, referenced", "{{container}} {{qgroup}}"),
    "qgroup_exclusive": ("Btrfs qgroups, exclusive", "{{container}} {{qgroup}}"),
    "thin_metadata": ("Metadata of thin pools", "{{pool}}"),
    "thin_data": ("Data of thin pools", "{{pool}}"),
    "drive_wear": ("Wear of drives", "{{device}}"),
}
WATERMARKS = tuple(watermark for collector in collectors.ALL for watermark in collector.watermarks)


def _alerts(severity: str) -> Query:
    firing = f'ALERTS{{alertname=~"Ullage.+", alertstate="firing", severity="{severity}"}}'
    return Query(f"count({firing}) or vector(0)")


def _findings(severity: str) -> Query:
    return Query(f'count(ullage_finding{{severity="{severity}"}}) or vector(0)')


def _fullest(watermark: Watermark) -> Panel:
    title, legend = WORDS[watermark.name]
    description = f"{watermark.summary} The ten fullest of all nodes; colours by the levels that we ship."
    query = Query(f"topk(10, {ratio(watermark)})", f"{{{{instance}}}} {legend}")
    return HERE.bars(title, description, query, watermark)


def _soon() -> Query:
    predicted = [watermark for watermark in WATERMARKS if watermark.prediction is not None]
    return Query(
        "\nor\n".join(
            f"label_replace(min by (instance, target) (ullage:{watermark.name}:time_to_full_seconds < {SOON}),"
            f' "watermark", "{watermark.name}", "", "")'
            for watermark in predicted
        )
    )


DASHBOARD = Dashboard(
    uid="ullage-fleet",
    title="Ullage / Fleet",
    description="How far the container storage of all nodes is from full.",
    selector=FLEET,
    rows=(
        Row(
            "Now",
            (
                HERE.number(
                    "Nodes with data", "Agents that Prometheus has series of.", Query("count(ullage_build_info)")
                ),
                HERE.number(
                    "Nodes without data",
                    "Targets of our jobs that cannot be scraped.",
                    Query(f"count({DOWN}) or vector(0)"),
                    alarm="warning",
                ),
                HERE.number("Critical alerts", "Alerts of ours that fire.", _alerts("critical"), alarm="critical"),
                HERE.number("Warnings", "Alerts of ours that fire.", _alerts("warning"), alarm="warning"),
                HERE.number("Critical findings", "Hazards that hold now.", _findings("critical"), alarm="critical"),
                HERE.number("Findings to look at", "Hazards that hold now.", _findings("warning"), alarm="warning"),
            ),
        ),
        Row("The fullest", tuple(_fullest(each) for each in WATERMARKS)),
        Row(
            "Full soon",
            (
                HERE.rows(
                    "Full within two days, by the trend of an hour",
                    "Recorded by our rules. What fills faster than it is emptied; a trend that ends says nothing.",
                    Table(("full in",), ("s",), links=TO_NODE),
                    _soon(),
                ),
            ),
        ),
        Row(
            "Findings",
            (
                HERE.rows(
                    "Findings by kind",
                    "Hazards that are no level, and on how many targets of all nodes each holds.",
                    Table(
                        ("targets",),
                        ("short",),
                        links={"finding": ("What it is, and its remedy", FINDINGS + "#${__value.raw}")},
                    ),
                    Query("count by (finding, severity) (ullage_finding)"),
                    span=12,
                ),
                HERE.graph(
                    "Findings over time",
                    "On how many targets of all nodes each kind held.",
                    "short",
                    Query("count by (finding) (ullage_finding)", "{{finding}}"),
                ),
            ),
        ),
        Row(
            "Without data",
            (
                HERE.rows(
                    "Nodes",
                    "Targets that cannot be scraped, of jobs that served our series within the last hour.",
                    Table(("up",), ("short",), links=TO_NODE),
                    Query(f"min by (instance) ({DOWN})"),
                    span=8,
                ),
                HERE.rows(
                    "Collectors that fail",
                    "Their last run did not succeed; a node that has nothing for a collector is not among them.",
                    Table(("up",), ("short",), links=TO_NODE),
                    Query("min by (instance, collector) (ullage_collector_up == 0)"),
                    span=8,
                ),
                HERE.rows(
                    "Pages withdrawn",
                    "Collectors whose series are absent, as their last success is too long ago.",
                    Table(("withdrawn",), ("short",), links=TO_NODE),
                    Query("max by (instance, collector) (ullage_collector_page_withdrawn == 1)"),
                    span=8,
                ),
            ),
        ),
        Row(
            "Alerts",
            (
                HERE.rows(
                    "Alerts that fire or will",
                    "Of ours, on all nodes. The link is the alert's runbook.",
                    Table(
                        ("holds",),
                        ("short",),
                        links={"alertname": ("Runbook", RUNBOOKS + "/${__value.raw}.md"), **TO_NODE},
                    ),
                    Query(
                        "max by (alertname, alertstate, severity, instance, target, finding, collector) "
                        '(ALERTS{alertname=~"Ullage.+"})'
                    ),
                ),
            ),
        ),
    ),
)
