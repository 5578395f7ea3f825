"""Cases for `promtool test rules`, made from a watermark's declaration: what must fire, and what must not.

A timeline is a list of (ratio, minutes); None is a scrape gap, STALE what Prometheus writes when a target goes away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from agent.metric import Metric
from agent.rules import KEEP_FIRING_FOR, alert_name
from agent.watermark import Tier, Watermark
from collectors import filesystem, inotify, pagecache, qgroup, thinpool, writeamp

STALE = -1.0
UNITS = 10_000_000_000_000  # the size of a target: large enough that no reserve matters
Values = Callable[[float], Mapping[Metric, float]]
Timeline = Sequence[tuple[float | None, int]]


def inode_values(ratio: float) -> Mapping[Metric, float]:
    """Return the samples of a filesystem whose inodes are used to a ratio."""
    used = round(UNITS * ratio)
    return {filesystem.FILES: UNITS, filesystem.FILES_FREE: UNITS - used, filesystem.READONLY: 0}


def byte_values(ratio: float) -> Mapping[Metric, float]:
    """Return the samples of a filesystem whose bytes are used to a ratio; a tenth of it is reserved for root."""
    used = round(UNITS * ratio)
    return {
        filesystem.SIZE: UNITS * 1.1,
        filesystem.FREE: UNITS * 1.1 - used,
        filesystem.AVAILABLE: UNITS - used,
        filesystem.READONLY: 0,
    }


def cache_values(ratio: float) -> Mapping[Metric, float]:
    """Return the samples of a container whose page cache fills its limit to a ratio."""
    return {pagecache.FILL.metrics[0]: round(UNITS * ratio), pagecache.FILL.metrics[1]: UNITS}


def referenced_values(ratio: float) -> Mapping[Metric, float]:
    """Return the samples of a qgroup whose referenced bytes fill their limit to a ratio."""
    return {qgroup.REFERENCED: round(UNITS * ratio), qgroup.REFERENCED_LIMIT: UNITS}


def exclusive_values(ratio: float) -> Mapping[Metric, float]:
    """Return the samples of a qgroup whose exclusive bytes fill their limit to a ratio."""
    return {qgroup.EXCLUSIVE: round(UNITS * ratio), qgroup.EXCLUSIVE_LIMIT: UNITS}


def thin_metadata_values(ratio: float) -> Mapping[Metric, float]:
    """Return the samples of a thin pool whose metadata is used to a ratio."""
    return {thinpool.METADATA_USED: round(UNITS * ratio), thinpool.METADATA: UNITS}


def thin_data_values(ratio: float) -> Mapping[Metric, float]:
    """Return the samples of a thin pool whose data is used to a ratio."""
    return {thinpool.DATA_USED: round(UNITS * ratio), thinpool.DATA: UNITS}


def wear_values(ratio: float) -> Mapping[Metric, float]:
    """Return the samples of a drive whose endurance is used to a ratio."""
    return {writeamp.USED: round(ratio, 6)}


def instances_values(ratio: float) -> Mapping[Metric, float]:
    """Return the samples of a user who has inotify instances to a ratio of the limit."""
    return {inotify.INSTANCES: round(UNITS * ratio), inotify.INSTANCES_LIMIT: UNITS}


def watches_values(ratio: float) -> Mapping[Metric, float]:
    """Return the samples of a user who has inotify watches to a ratio of the limit."""
    return {inotify.WATCHES: round(UNITS * ratio), inotify.WATCHES_LIMIT: UNITS}


VALUES: dict[str, Values] = {
    "inodes": inode_values,
    "filesystem_bytes": byte_values,
    "page_cache": cache_values,
    "qgroup_referenced": referenced_values,
    "qgroup_exclusive": exclusive_values,
    "thin_metadata": thin_metadata_values,
    "thin_data": thin_data_values,
    "drive_wear": wear_values,
    "inotify_instances": instances_values,
    "inotify_watches": watches_values,
}


def labels_of(watermark: Watermark, target: str) -> dict[str, str]:
    """Return the labels of a test's target, which is the value of the last of its watermark's target labels."""
    fixed = {"device": "/dev/sdb", "fstype": "ext4", "namespace": "shop", "pod": "web-1", "container": "main"}
    fixed |= {"model": "ACME", "uuid": "5baa8140-b4ea-4744-b119-4c12e1b9efc2", "path": "/data", "id": "0123456789ab"}
    fixed |= {"userns": "4026531837"}
    return {name: target if name == watermark.target[-1] else fixed[name] for name in watermark.labels}


def target_name(watermark: Watermark, target: str) -> str:
    """Return a test's target as the label `target` has it."""
    return watermark.targets_of([tuple(labels_of(watermark, target).values())])[0]


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a test: its levels as (tier, edge) to ratio, and those of single targets."""

    name: str
    levels: Mapping[tuple[str, str], float]
    overrides: Mapping[str, Mapping[tuple[str, str], float]]


def levels(tiers: Sequence[Tier], shift: float = 0.0) -> dict[tuple[str, str], float]:
    """Return tiers as a node exports them, all lower by `shift`."""
    both = {(tier.name, "raise"): tier.raise_at - shift for tier in tiers}
    return both | {(tier.name, "clear"): tier.clear_at - shift for tier in tiers}


def threshold_series(watermark: Watermark, node: Node, minutes: int) -> list[dict[str, str]]:
    """Return the input series of a node's thresholds and reserves."""
    series = []
    for target, wanted in {"": node.levels, **node.overrides}.items():
        named = f', target="{target_name(watermark, target)}"' if target else ""
        for (tier, edge), ratio in wanted.items():
            labels = f'watermark="{watermark.name}", tier="{tier}", edge="{edge}"{named}, instance="{node.name}"'
            series.append(
                {"series": f"ullage_watermark_threshold_ratio{{{labels}}}", "values": f"{ratio:.6g}x{minutes}"}
            )
    if watermark.reserve is not None:
        last = f'watermark="{watermark.name}", tier="{watermark.tiers[-1].name}"'
        reserve = watermark.reserve
        for edge, size in (("raise", reserve.raise_at), ("clear", reserve.clear_at)):
            labels = f'{last}, edge="{edge}", instance="{node.name}"'
            series.append({"series": f"ullage_watermark_reserve_bytes{{{labels}}}", "values": f"{size:.0f}x{minutes}"})
        name = f'ullage_watermark_reserve_minimum_size_bytes{{{last}, instance="{node.name}"}}'
        series.append({"series": name, "values": f"{reserve.minimum_size:.0f}x{minutes}"})
    return series


def sample_series(
    watermark: Watermark, instance: str, target: str, timeline: Timeline, values: Values
) -> list[dict[str, str]]:
    """Return the input series of one target's metrics over a timeline, a sample a minute."""
    written: dict[Metric, list[str]] = {metric: [] for metric in values(0.0)}
    for ratio, minutes in timeline:
        for metric in written:
            if ratio is None:
                written[metric] += ["_"] * minutes
            elif ratio == STALE:
                written[metric] += ["stale"] + ["_"] * (minutes - 1)
            else:
                written[metric] += [f"{values(ratio)[metric]:.17g}"] * minutes
    labels = labels_of(watermark, target) | {"instance": instance}
    text = ", ".join(f'{name}="{value}"' for name, value in labels.items())
    return [{"series": f"{metric.name}{{{text}}}", "values": " ".join(points)} for metric, points in written.items()]


def length(timeline: Timeline) -> int:
    """Return a timeline's minutes."""
    return sum(minutes for _, minutes in timeline)


def is_firing(alert: str, minute: int, instances: Sequence[str]) -> dict[str, Any]:
    """Return the check that an alert fires at a minute for just these instances."""
    samples = [{"labels": f'{{instance="{name}"}}', "value": 1} for name in instances]
    expression = f'count by (instance) (ALERTS{{alertname="{alert}", alertstate="firing"}})'
    return {"expr": expression, "eval_time": f"{minute}m", "exp_samples": samples}


def tier_cases(watermark: Watermark, tier: Tier, values: Values) -> list[dict[str, Any]]:
    """Return the cases of one tier."""
    alert, band = alert_name(watermark, tier), (tier.raise_at + tier.clear_at) / 2
    hold, keep = int(tier.hold // 60), int(KEEP_FIRING_FOR // 60)
    low, below = tier.clear_at / 2, tier.clear_at - 0.001
    up = hold + 3

    def case(name: str, timeline: Timeline, checks: Mapping[int, bool]) -> dict[str, Any]:
        return {
            "name": f"{alert}: {name}",
            "interval": "1m",
            "input_series": [
                *threshold_series(watermark, Node("node-1", levels(watermark.tiers), {}), length(timeline)),
                *sample_series(watermark, "node-1", "/data", timeline, values),
            ],
            "promql_expr_test": [
                is_firing(alert, minute, ["node-1"] if is_wanted else []) for minute, is_wanted in checks.items()
            ],
        }

    risen: Timeline = [(low, 5), (tier.raise_at, up)]
    now = length(risen)
    cases = [
        case("raised at raise, after `for`", [*risen], {4: False, 5 + hold - 1: False, 5 + hold + 1: True}),
        case("never raised in the band", [(low, 5), (band, 60), (tier.raise_at - 0.001, 30)], {30: False, 94: False}),
        case(
            "a peak shorter than `for` does not latch",
            [(low, 5), (tier.raise_at, hold), (band, 30)],
            {20: False, 34: False},
        ),
        case(
            "held in the band, resolved below clear, not raised again in the band",
            [*risen, (band, 60), (tier.clear_at, 60), (below, keep + 3), (band, 60)],
            {now: True, now + 59: True, now + 119: True, now + 120 + keep + 2: False, now + 120 + keep + 60: False},
        ),
        case(
            "a scrape gap in the band",
            [*risen, (band, 20), (None, 4), (band, 30)],
            {now + 19: True, now + 22: True, now + 25: True, now + 53: True},
        ),
        case(
            "a restart of the agent in the band",
            [*risen, (band, 20), (STALE, 3), (band, 30)],
            {now + 19: True, now + 21: True, now + 24: True, now + 52: True},
        ),
        case(
            "resolved when its target is gone",
            [*risen, (band, 20), (STALE, 30)],
            {now + 19: True, now + 20 + keep + 3: False, now + 45: False},
        ),
    ]
    shift = 0.3
    own = Node("node-2", levels(watermark.tiers, shift), {})
    other = Node("node-1", levels(watermark.tiers), {"/scratch": levels(watermark.tiers, shift)})
    timeline: Timeline = [(low - shift, 5), (tier.raise_at - shift, up), (band - shift, 30), (below - shift, keep + 3)]
    minutes = length(timeline)
    checks = {5 + up: True, 5 + up + 29: True, minutes - 1: False}
    cases.append(
        {
            "name": f"{alert}: a node with levels of its own, and a target with levels of its own",
            "interval": "1m",
            "input_series": [
                *threshold_series(watermark, own, minutes),
                *threshold_series(watermark, other, minutes),
                *(
                    each
                    for node in (own, other)
                    for each in sample_series(watermark, node.name, "/data", timeline, values)
                ),
                *sample_series(watermark, "node-1", "/scratch", timeline, values),
            ],
            "promql_expr_test": [
                {
                    "expr": f'count by (instance, target) (ALERTS{{alertname="{alert}", alertstate="firing"}})',
                    "eval_time": f"{minute}m",
                    "exp_samples": [
                        {"labels": f'{{instance="{instance}", target="{target_name(watermark, target)}"}}', "value": 1}
                        for instance, target in (("node-1", "/scratch"), ("node-2", "/data"))
                        if is_wanted
                    ],
                }
                for minute, is_wanted in checks.items()
            ],
        }
    )
    return cases


def reserve_case(watermark: Watermark) -> dict[str, Any]:
    """Return the case of a reserve: a filesystem of 60 GiB with so many GiB available, and a small one."""
    tier = watermark.tiers[-1]
    alert, gib = alert_name(watermark, tier), 1 << 30

    def at(size: int) -> Values:
        def values(available: float) -> Mapping[Metric, float]:
            left = available * gib
            return {
                filesystem.SIZE: size * gib,
                filesystem.FREE: left,
                filesystem.AVAILABLE: left,
                filesystem.READONLY: 0,
            }

        return values

    timeline: Timeline = [(10.5, 5), (9.5, 5), (11.5, 30), (12.5, 9)]
    small: Timeline = [(5, length(timeline))]
    node = Node("node-1", levels(watermark.tiers), {})
    return {
        "name": f"{alert}: the reserve in bytes, on a large filesystem only",
        "interval": "1m",
        "input_series": [
            *threshold_series(watermark, node, length(timeline)),
            *sample_series(watermark, "node-1", "/data", timeline, at(60)),
            *sample_series(watermark, "node-1", "/small", small, at(10)),
        ],
        "promql_expr_test": [
            {
                "expr": f'count by (target) (ALERTS{{alertname="{alert}", alertstate="firing"}})',
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": '{target="/data"}', "value": 1}] if is_wanted else [],
            }
            for minute, is_wanted in {4: False, 8: True, 39: True, 48: False}.items()
        ],
    }


def read_only_case(watermark: Watermark, values: Values) -> dict[str, Any]:
    """Return the case of a full filesystem on which nothing can be written anyway."""

    def read_only(ratio: float) -> Mapping[Metric, float]:
        return {**values(ratio), filesystem.READONLY: 1}

    node = Node("node-1", levels(watermark.tiers), {})
    return {
        "name": f"{watermark.name}: a read-only filesystem raises nothing",
        "interval": "1m",
        "input_series": [
            *threshold_series(watermark, node, 30),
            *sample_series(watermark, "node-1", "/data", [(1.0, 30)], read_only),
        ],
        "promql_expr_test": [is_firing(alert_name(watermark, tier), 29, []) for tier in watermark.tiers],
    }


def cases(watermark: Watermark, trends: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the test file of one watermark, with the cases of its prediction if it has one."""
    values = VALUES[watermark.name]
    tests = [case for tier in watermark.tiers for case in tier_cases(watermark, tier, values)]
    tests += [read_only_case(watermark, values)] if watermark.where is not None else []
    tests += [reserve_case(watermark)] if watermark.reserve is not None else []
    return file_of([*tests, *trends])


def file_of(tests: Sequence[Mapping[str, Any]]) -> str:
    """Return a file for `promtool test rules`."""
    body = {"rule_files": ["../ullage.rules.yml"], "evaluation_interval": "1m", "tests": list(tests)}
    text: str = yaml.safe_dump(body, sort_keys=False, width=1_000_000)
    return "# Written by `make generate`; do not edit. Run: promtool test rules deploy/rules/tests/*.yml\n" + text
