"""The agent's own page: its collectors, watermarks, findings, and the standard process metrics.

`ullage_finding` and the watermark families gather what all collectors found, as a family may stand on one page only.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, disable_created_metrics

from agent import __version__
from agent.exposition import Pages, Renderer, make_page
from agent.metric import Family, Kind, LabelSet, Metric, Sample, label
from agent.runner import LevelTable
from agent.scheduler import Worker
from agent.watermark import Reserve, Tier

NAME = "agent"

BUILD_INFO = Metric("ullage_build_info", "The agent's version and its Python.", ("version", "python"), "info")
UP = Metric("ullage_collector_up", "Whether the collector's newest run succeeded (1).", ("collector",))
SUPPORTED = Metric(
    "ullage_collector_supported",
    "Whether this node has what the collector reads (1); reason says what is missing.",
    ("collector", "reason"),
)
DURATION = Metric("ullage_collector_duration_seconds", "How long the newest finished run took.", ("collector",))
LAST_SUCCESS = Metric(
    "ullage_collector_last_success_timestamp_seconds", "When a run last succeeded, Unix time.", ("collector",)
)
OVERDUE = Metric("ullage_collector_overdue", "Whether a run is out for longer than its deadline (1).", ("collector",))
INTERVAL = Metric("ullage_collector_interval_seconds", "How often the collector runs.", ("collector",))
WITHDRAWN = Metric(
    "ullage_collector_page_withdrawn",
    "Whether the collector's page is too old to be shown: its series are absent (1).",
    ("collector",),
)
ERRORS = Metric(
    "ullage_collector_errors_total",
    "Targets that could not be read and runs that failed, by reason.",
    ("collector", "reason"),
    "counter",
)
SERIES = Metric("ullage_collector_series", "Series that the collector's newest page holds.", ("collector",))
SERIES_BUDGET = Metric("ullage_collector_series_budget", "Series that the collector may show.", ("collector",))
SERIES_DROPPED = Metric(
    "ullage_collector_series_dropped_total", "Samples dropped as over the budget of series.", ("collector",), "counter"
)
LEVEL = Metric(
    "ullage_watermark_level", "The tier that holds for a target: 0 is clear, 1 the first.", ("watermark", "target")
)
THRESHOLD = Metric(
    "ullage_watermark_threshold_ratio",
    "Where a tier is raised and cleared; a target is named only where it has levels of its own.",
    ("watermark", "tier", "edge", "target"),
)
RESERVE = Metric(
    "ullage_watermark_reserve_bytes",
    "Available bytes below which the tier holds, whatever the ratio.",
    ("watermark", "tier", "edge", "target"),
)
RESERVE_MINIMUM = Metric(
    "ullage_watermark_reserve_minimum_size_bytes",
    "Size from which on the reserve in bytes concerns a filesystem.",
    ("watermark", "tier", "target"),
)
TRANSITIONS = Metric("ullage_watermark_transitions_total", "Changes of level, up and down.", ("watermark",), "counter")
FINDING = Metric(
    "ullage_finding", "A hazard that holds now (1); the status page has its remedy.", ("finding", "severity", "target")
)
RELOAD_SUCCESSFUL = Metric(
    "ullage_config_last_reload_successful", "Whether the newest load of the configuration succeeded (1)."
)
RELOAD_TIME = Metric(
    "ullage_config_last_reload_success_timestamp_seconds", "When the configuration was last loaded, Unix time."
)

METRICS = (
    *(BUILD_INFO, UP, SUPPORTED, DURATION, LAST_SUCCESS, OVERDUE, INTERVAL, WITHDRAWN, ERRORS, SERIES),
    *(SERIES_BUDGET, SERIES_DROPPED, LEVEL, THRESHOLD, RESERVE, RESERVE_MINIMUM, TRANSITIONS, FINDING),
    *(RELOAD_SUCCESSFUL, RELOAD_TIME),
)


@dataclass(slots=True)
class Reload:
    """How the newest load of the configuration went; `succeeded_at` is Unix time."""

    is_successful: bool = True
    succeeded_at: float = 0.0


class SelfPage:
    """Makes the agent's page. `has_process` adds `process_*` and `python_info`, which a textfile must not carry."""

    def __init__(self, pages: Pages, reload: Reload, *, has_process: bool = True) -> None:
        disable_created_metrics()
        self._pages = pages
        self._reload = reload
        self._renderer = Renderer()
        self._targets: dict[str, tuple[tuple[str, ...], tuple[LabelSet, ...]]] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._process: dict[str, Metric] = {}  # what the registry has, by name
        if has_process:
            ProcessCollector(registry=self._registry)
            PlatformCollector(registry=self._registry)

    def publish(self, workers: Mapping[str, Worker]) -> None:
        """Render the page from the workers' newest outcomes and put it into the store."""
        families: dict[Metric, dict[LabelSet, float]] = {metric: {} for metric in METRICS}
        for sample in self._samples(workers):
            families[sample.metric][sample.labels] = sample.value
        families[LEVEL] = self._levels(workers)
        for sample in self._of_process():
            families.setdefault(sample.metric, {})[sample.labels] = sample.value
        rows = [Family(metric, tuple(values), list(values.values())) for metric, values in families.items()]
        self._pages.put(NAME, make_page(self._renderer, rows))

    def _of_process(self) -> Iterator[Sample]:
        """Yield what the client library knows of the process and its Python; our renderer writes it, being cheaper."""
        for family in self._registry.collect():
            for name, labels, value, *_ in family.samples:
                if name not in self._process:
                    kind: Kind = "counter" if family.type == "counter" else "gauge"
                    self._process[name] = Metric(name, family.documentation, tuple(labels), kind)
                yield self._process[name](value, *labels.values())

    def _levels(self, workers: Mapping[str, Worker]) -> dict[LabelSet, float]:
        """Return the level of each target. Their label sets are kept while the targets are the same."""
        levels: dict[LabelSet, float] = {}
        kept, self._targets = self._targets, {}
        for name, worker in workers.items():
            for table in worker.runner.outcome.levels if self._pages.is_current(name) else ():
                targets, labels = kept.get(table.watermark.name, ((), ()))
                if targets is not table.targets:
                    labels = tuple((table.watermark.name, label(target)) for target in table.targets)
                self._targets[table.watermark.name] = table.targets, labels
                values = [table.raised.get(target, 0) for target in table.targets] if table.raised else repeat(0)
                rows = zip(labels, values, table.readings.ratios, strict=False)
                levels |= {labelset: value for labelset, value, ratio in rows if ratio is not None}
        return levels

    def _samples(self, workers: Mapping[str, Worker]) -> Iterator[Sample]:
        yield BUILD_INFO(1, __version__, platform.python_version())
        yield RELOAD_SUCCESSFUL(int(self._reload.is_successful))
        yield RELOAD_TIME(self._reload.succeeded_at)
        for name, worker in workers.items():
            yield from self._collector(name, worker)

    def _collector(self, name: str, worker: Worker) -> Iterator[Sample]:
        runner, outcome, plan = worker.runner, worker.runner.outcome, worker.runner.plan
        is_overdue = worker.is_overdue
        if outcome.is_supported:
            yield UP(int(outcome.is_up and not is_overdue), name)
        yield SUPPORTED(int(outcome.is_supported), name, label(outcome.reason) if not outcome.is_supported else "")
        yield OVERDUE(int(is_overdue), name)
        yield INTERVAL(plan.interval, name)
        yield WITHDRAWN(int(self._pages.is_withdrawn(name)), name)
        yield SERIES(outcome.series, name)
        yield SERIES_BUDGET(plan.series_budget, name)
        yield SERIES_DROPPED(outcome.dropped, name)
        if worker.is_first_done:
            yield DURATION(outcome.duration, name)
        if outcome.last_success is not None:
            yield LAST_SUCCESS(outcome.last_success, name)
        for reason, count in sorted(runner.errors.items()):
            yield ERRORS(count, name, reason)
        for watermark in plan.watermarks:
            yield TRANSITIONS(runner.transitions[watermark.name], watermark.name)
        if self._pages.is_current(name):
            yield from _overridden(outcome.levels)
            for found in outcome.findings:
                yield FINDING(1, found.finding.id, found.finding.severity, label(found.target))
        for watermark in plan.watermarks:
            yield from _thresholds(watermark.name, watermark.tiers, watermark.reserve, "")


def _overridden(tables: Iterable[LevelTable]) -> Iterator[Sample]:
    for table in tables:
        name = table.watermark.name
        nothing = Reserve(0, 0, 0) if table.watermark.available is not None else None
        for target, override in table.overridden.items():
            # without a reserve of its own, a target would fall back to that of the node
            yield from _thresholds(name, override.tiers, override.reserve or nothing, label(target))


def _thresholds(name: str, tiers: tuple[Tier, ...], reserve: Reserve | None, target: str) -> Iterator[Sample]:
    for tier in tiers:
        yield THRESHOLD(tier.raise_at, name, tier.name, "raise", target)
        yield THRESHOLD(tier.clear_at, name, tier.name, "clear", target)
    if reserve is not None:
        last = tiers[-1].name
        yield RESERVE(reserve.raise_at, name, last, "raise", target)
        yield RESERVE(reserve.clear_at, name, last, "clear", target)
        yield RESERVE_MINIMUM(reserve.minimum_size, name, last, target)
