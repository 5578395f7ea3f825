"""PromQL as panels have it: selectors for the dashboard's variables, put in by one function.

A panel's expression names plain series, `rate(ullage_drop_caches_total[5m])`; `within` adds what restricts it to what
the reader has chosen. A node is a target's `instance`, which every scrape has; our examples for Kubernetes make it the
node's name. A variable whose label nobody sets matches all, as `.*` does.

The sum of the containers that have no series of their own, `container="other"`, is no container. It has no id, so that
`id!=""` leaves it out; `single` does where others have none either.
"""

from __future__ import annotations

import re

from agent.watermark import Watermark, as_sum

FLEET = 'cluster=~"$cluster", job=~"$job"'
NODE = f'{FLEET}, instance=~"$node"'
NAMESPACE = f'{NODE}, namespace=~"$namespace"'
RUNBOOKS = "https://github.com/ullage/ullage/blob/main/docs/runbooks"
FINDINGS = "https://github.com/ullage/ullage/blob/main/docs/findings.md"

_SERIES = re.compile(r"\b(?P<name>ullage[_:][a-z0-9_:]+|up|ALERTS|(?:process|scrape|python)_[a-z_]+)\b(?P<brace>\{)?")


def within(expression: str, selector: str) -> str:
    """Return an expression whose series are all restricted by a selector; what has no namespace is not by that."""

    def add(match: re.Match[str]) -> str:
        wanted = NODE if selector == NAMESPACE and match["name"].startswith("ullage_watermark_") else selector
        return f"{match['name']}{{{wanted}" + (", " if match["brace"] else "}")

    return _SERIES.sub(add, expression)


def single(name: str) -> str:
    """Return a metric's series without that sum, but with those of the host, and of a container called `other`."""
    return f'{name} unless {name}{{container="other", id=""}}'


def ratio(watermark: Watermark) -> str:
    """Return a watermark's ratio from the series that it is declared with; no rule must be loaded for it."""
    used = as_sum(watermark.used).promql()
    text = used if watermark.size is None else f"{used} / ({as_sum(watermark.size).promql()} > 0)"
    if watermark.where is not None:
        metric, value = watermark.where
        text = f"{text} and {metric.name} == {value:g}"
    return text


def threshold(watermark: Watermark, tier: str, edge: str) -> str:
    """Return where a tier of a watermark is raised or cleared, as nodes export it; the lowest, if they differ."""
    name = f'watermark="{watermark.name}", tier="{tier}", edge="{edge}", target=""'
    return f"min(ullage_watermark_threshold_ratio{{{name}}})"
