"""The agent itself: whether its collectors succeed, what they take, and how old their numbers are."""

from __future__ import annotations

from dashboards.layout import Dashboard, Row
from dashboards.panels import Place, Query, Table
from dashboards.promql import NODE

HERE = Place(NODE)
COLLECTOR = "{{instance}} {{collector}}"

HEALTH = Row(
    "Health",
    (
        HERE.number("Agents", "That Prometheus has series of.", Query("count(ullage_build_info)")),
        HERE.number(
            "Collectors that fail",
            "Their last run did not succeed, or is overdue.",
            Query("count(ullage_collector_up == 0) or vector(0)"),
            alarm="warning",
        ),
        HERE.number(
            "Collectors overdue",
            "A run is out for longer than its deadline.",
            Query("count(ullage_collector_overdue == 1) or vector(0)"),
            alarm="warning",
        ),
        HERE.number(
            "Pages withdrawn",
            "Collectors whose series are absent, as their last success is too long ago.",
            Query("count(ullage_collector_page_withdrawn == 1) or vector(0)"),
            alarm="warning",
        ),
        HERE.number(
            "Configurations refused",
            "Agents that go on with the one before.",
            Query("count(ullage_config_last_reload_successful == 0) or vector(0)"),
            alarm="warning",
        ),
        HERE.number(
            "Series dropped",
            "Samples over a collector's budget within an hour.",
            Query("sum(increase(ullage_collector_series_dropped_total[1h])) or vector(0)"),
            alarm="warning",
        ),
        HERE.rows(
            "Collectors",
            "As they are now. What a node has nothing for is not up, and says why.",
            Table(
                ("up", "supported", "last success", "series", "budget"),
                ("short", "short", "dateTimeFromNow", "short", "short"),
            ),
            Query("max by (instance, collector) (ullage_collector_up)"),
            Query("max by (instance, collector, reason) (ullage_collector_supported)"),
            Query("max by (instance, collector) (ullage_collector_last_success_timestamp_seconds) * 1000"),
            Query("max by (instance, collector) (ullage_collector_series)"),
            Query("max by (instance, collector) (ullage_collector_series_budget)"),
        ),
        HERE.rows(
            "Versions",
            "Of the agent and its Python.",
            Table(("agents",), ("short",)),
            Query("count by (version, python) (ullage_build_info)"),
            span=8,
        ),
        HERE.graph(
            "Errors by reason",
            "Targets that could not be read and runs that failed, per second.",
            "ops",
            Query(
                "sum by (collector, reason) (rate(ullage_collector_errors_total[$__rate_interval]))",
                "{{collector}} {{reason}}",
            ),
            span=16,
        ),
    ),
)

COST = Row(
    "What it takes",
    (
        HERE.graph(
            "Duration of runs",
            "Of the newest finished run of each collector.",
            "s",
            Query("topk(10, ullage_collector_duration_seconds)", COLLECTOR),
        ),
        HERE.graph(
            "Duration as part of the interval",
            "Near 1 a collector has no time left.",
            "percentunit",
            Query("topk(10, ullage_collector_duration_seconds / ullage_collector_interval_seconds)", COLLECTOR),
        ),
        HERE.graph(
            "Age of numbers",
            "Time since a collector last succeeded, by Prometheus' clock; after three intervals they are withdrawn.",
            "s",
            Query("topk(10, time() - ullage_collector_last_success_timestamp_seconds)", COLLECTOR),
        ),
        HERE.stacked(
            "Series",
            "By collector, of all chosen nodes.",
            "short",
            Query("sum by (collector) (ullage_collector_series)", "{{collector}}"),
        ),
        HERE.graph(
            "CPU",
            "Of the agent, its helper processes not included.",
            "percentunit",
            Query(
                "rate(process_cpu_seconds_total[$__rate_interval]) and on (instance, job) ullage_build_info",
                "{{instance}}",
            ),
        ),
        HERE.graph(
            "Memory",
            "Resident, of the agent, its helper processes not included.",
            "bytes",
            Query("process_resident_memory_bytes and on (instance, job) ullage_build_info", "{{instance}}"),
        ),
        HERE.graph(
            "Open files",
            "Kept descriptors of cgroups are most of them.",
            "short",
            Query("process_open_fds and on (instance, job) ullage_build_info", "{{instance}}"),
        ),
        HERE.graph(
            "Duration of scrapes",
            "As Prometheus measures it; the agent answers from memory.",
            "s",
            Query("scrape_duration_seconds and on (instance, job) ullage_build_info", "{{instance}}"),
        ),
        HERE.graph(
            "Changes of level",
            "Up and down, within an hour.",
            "short",
            Query("sum by (watermark) (increase(ullage_watermark_transitions_total[1h]))", "{{watermark}}"),
            span=24,
        ),
    ),
)

DASHBOARD = Dashboard(
    uid="ullage-agent",
    title="Ullage / The agent itself",
    description="Whether the numbers of the other dashboards can be relied on, and what they cost.",
    selector=NODE,
    rows=(HEALTH, COST),
)
