"""PromQL against what is declared: the metrics that an expression names, and the labels that they can have."""

from __future__ import annotations

import re
from collections.abc import Mapping

import promql_parser as parser

import collectors
from agent import selfmetrics

TARGET = frozenset({"job", "instance", "cluster", "node"})  # what a scrape may add
STANDARD = {
    name: frozenset[str]()
    for name in (
        *("up", "scrape_duration_seconds", "process_cpu_seconds_total", "process_resident_memory_bytes"),
        "process_open_fds",
    )
}
AMPLIFICATION = frozenset({"layer", "window", "source", "device", "drive", "model"})
VARIABLES = {"$__rate_interval": "5m", "$cluster": ".*", "$job": ".*", "$node": ".*", "$namespace": ".*"}


def declared() -> Mapping[str, frozenset[str]]:
    """Return the labels of every series that there may be, by name: metrics, recorded ones, Prometheus' own."""
    known = dict(STANDARD)
    for metric in selfmetrics.METRICS:
        known[metric.name] = frozenset(metric.labels)
    for collector in collectors.ALL:
        known |= {metric.name: frozenset(metric.labels) for metric in collector.metrics}
        for watermark in collector.watermarks:
            ratio, prefix = frozenset(watermark.labels) | {"target"}, f"ullage:{watermark.name}:"
            known |= {prefix + name: ratio for name in ("ratio", "available_bytes", "time_to_full_seconds")}
            names = ("threshold_ratio", "reserve_bytes", "size_with_reserve_bytes")
            known |= {prefix + name: ratio | {"tier", "edge"} for name in names}
    known["ullage:write_amplification:ratio"] = AMPLIFICATION
    everything = frozenset[str]().union(*known.values())
    return known | {"ALERTS": everything | {"alertname", "alertstate", "severity", "tier", "watermark"}}


def complaints(expression: str, legend: str = "") -> list[str]:
    """Return what is wrong with an expression, with Grafana's variables in it or not: nothing, if all is well."""
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    try:
        parsed = parser.parse(expression)
    except ValueError as error:
        return [f"does not parse: {error}"]
    known, found, named, available = declared(), [], set(re.findall(r"\{\{(\w+)\}\}", legend)), set(TARGET)

    def look(node: parser.Expr) -> bool:
        if isinstance(node, parser.VectorSelector):
            labels = known.get(node.name or "")
            if labels is None:
                found.append(f"{node.name} is not declared")
            else:
                available.update(labels)
                wanted = {matcher.name for matcher in node.matchers.matchers} - labels - TARGET
                found.extend(f"{node.name} has no label {label}" for label in sorted(wanted))
        named.update(_kept(node))
        available.update(_made(node))
        return True

    parser.walk(parsed, look)
    return found + [f"no series has the label {label}" for label in sorted(named - available)]


def _kept(node: parser.Expr) -> list[str]:
    """Return the labels that an aggregation keeps, or that two sides are matched by."""
    if isinstance(node, parser.AggregateExpr) and node.modifier is not None:
        return node.modifier.labels if node.modifier.type == parser.AggModifierType.By else []
    if isinstance(node, parser.BinaryExpr) and node.modifier is not None and node.modifier.matching is not None:
        matching = node.modifier.matching
        return matching.labels if matching.type == parser.LabelModifierType.Include else []
    return []


def _made(node: parser.Expr) -> list[str]:
    """Return the label that a function makes."""
    if isinstance(node, parser.Call) and node.func.name in {"label_replace", "label_join"}:
        name = node.args[1]
        return [name.val] if isinstance(name, parser.StringLiteral) else []
    return []
