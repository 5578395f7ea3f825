"""One run of one collector: collect, check against the declaration, step the watermarks, render a page."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import structlog

from agent.collector import Collector, Running, Yield
from agent.containers import Runtimes
from agent.errors import ContractError, HostError, Unsupported
from agent.exposition import Pages, Renderer, make_page
from agent.finding import Found
from agent.host import Host
from agent.latches import Latches
from agent.metric import Family, LabelSet, Metric, Sample
from agent.watermark import Evaluator, Override, Reading, Readings, Tier, Watermark, step

FINDING_BUDGET = 1000


@dataclass(frozen=True, slots=True)
class Plan:
    """A collector with the settings that are in force: what its declaration and the configuration make together."""

    collector: Collector
    settings: Any
    interval: float
    deadline: float
    series_budget: int
    watermarks: tuple[Watermark, ...] = ()
    runtimes: Runtimes = field(default_factory=Runtimes)

    @property
    def name(self) -> str:
        """The collector's name."""
        return self.collector.name


@dataclass(frozen=True, slots=True)
class Level:
    """A watermark's state for one target after a run; `tier` is None while it is clear."""

    watermark: Watermark
    target: str
    level: int
    reading: Reading
    tiers: tuple[Tier, ...]

    @property
    def tier(self) -> Tier | None:
        """The tier that holds."""
        return self.tiers[self.level - 1] if self.level else None


@dataclass(frozen=True, slots=True)
class LevelTable:
    """A watermark's state for all its targets after a run. `raised` has the levels over 0 only."""

    watermark: Watermark
    targets: tuple[str, ...]
    readings: Readings
    raised: Mapping[str, int]
    overridden: Mapping[str, Override]

    def __iter__(self) -> Iterator[Level]:
        """Yield the level of each target once."""
        return (self.level(row) for row, _, _ in self.rows())

    def rows(self) -> Iterator[tuple[int, str, float]]:
        """Yield the row, the name and the ratio of each target once, where it has a ratio."""
        told = set()
        for row, (target, ratio) in enumerate(zip(self.targets, self.readings.ratios, strict=True)):
            if ratio is not None and target not in told:
                told.add(target)
                yield row, target, ratio

    def level(self, row: int) -> Level:
        """Return the level of a target that has a ratio."""
        target, reading = self.targets[row], self.readings.at(row)
        assert reading is not None
        override = self.overridden.get(target)
        tiers = override.tiers if override is not None else self.watermark.tiers
        return Level(self.watermark, target, self.raised.get(target, 0), reading, tiers)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the newest finished run left. `last_success` is epoch seconds; `reason` says why it is not up.

    `duration` and `cpu` are seconds that it took, by the clock and of a CPU in its own thread. `progress` is that of a
    long work, from 0 to 1, where the collector has one. `families` are those that the declaration names for the status.
    """

    is_up: bool = False
    is_supported: bool = True
    reason: str = ""
    duration: float = 0.0
    cpu: float = 0.0
    last_success: float | None = None
    series: int = 0
    dropped: int = 0
    levels: tuple[LevelTable, ...] = ()
    findings: tuple[Found, ...] = ()
    progress: float | None = None
    families: Mapping[Metric, Family] = field(default_factory=dict)

    @property
    def is_conclusive(self) -> bool:
        """Whether what is not among its findings does not hold: it ran well, or there is nothing to run on."""
        return self.is_up or not self.is_supported


@dataclass(slots=True)
class _Gathered:
    """The samples of one run by metric, in the order of their first appearance."""

    budget: int
    series: int = 0
    dropped: int = 0
    by_metric: dict[Metric, dict[LabelSet, float]] = field(default_factory=dict)
    families: dict[Metric, Family] = field(default_factory=dict)
    findings: dict[tuple[str, str], Found] = field(default_factory=dict)


class Runner:
    """Runs one collector again and again; the scheduler's thread calls `run`, anyone may read `outcome`."""

    def __init__(
        self, plan: Plan, host: Host, latches: Latches, pages: Pages, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.plan = plan
        self.host = host.session()
        self.outcome = Outcome()
        self.transitions: Counter[str] = Counter()
        self._latches = latches
        self._pages = pages
        self._clock = clock
        self._renderer = Renderer()
        self._evaluators = [Evaluator(watermark) for watermark in plan.watermarks]
        self._checked: dict[Metric, Sequence[LabelSet]] = {}
        self._labelsets: dict[Metric, Sequence[LabelSet]] = {}
        self._declared = {metric: len(metric.labels) for metric in plan.collector.metrics}
        self._findings = set(plan.collector.findings)
        self._kept = plan.collector.kept
        self._told = ""
        self._cpu_began = 0.0
        self._log = structlog.get_logger().bind(collector=plan.name)

    @property
    def errors(self) -> Counter[str]:
        """Errors so far by reason, of single targets and of whole runs."""
        return self.host.errors

    def run(self, running: Running) -> None:
        """Do one run and publish what it gave. A failure keeps the old page until that is too old."""
        began, self._cpu_began = self._clock(), time.thread_time()
        lack = self.plan.collector.needs(self.host)
        if lack is not None:
            self._withdraw(lack)
            return
        try:
            gathered = self._gather(running.collect(self.host))
        except Unsupported as error:
            self._withdraw(str(error))
        except HostError as error:
            self._fail(began, error.reason, str(error))
        except Exception as error:  # noqa: BLE001  a bug in one collector must not stop the others
            self._fail(began, "bug", repr(error), exc_info=True)
        else:
            self._publish(began, gathered)
        for refused in self.host.first_errors:
            self._log.warning("target skipped", reason=refused.reason, path=refused.path, detail=refused.detail)
        self.host.first_errors.clear()

    def _withdraw(self, lack: str) -> None:
        self._pages.drop(self.plan.name)
        self.outcome = Outcome(is_supported=False, reason=lack)
        self._tell("collector has nothing to read", reason=lack)

    def fail_start(self, error: Exception) -> None:
        """Record that the collector could not even be started."""
        self._cpu_began = time.thread_time()
        self._fail(self._clock(), error.reason if isinstance(error, HostError) else "bug", repr(error), exc_info=True)

    def _fail(self, began: float, reason: str, detail: str, **extra: Any) -> None:
        self.errors[reason] += 1
        before = self.outcome
        self.outcome = Outcome(
            reason=detail,
            duration=self._clock() - began,
            cpu=time.thread_time() - self._cpu_began,
            last_success=before.last_success,
            series=before.series,
            dropped=before.dropped,
            levels=before.levels,
            findings=before.findings,
            families=before.families,
        )
        self._tell("collector failed", level="error", reason=reason, detail=detail, **extra)

    def _publish(self, began: float, gathered: _Gathered) -> None:
        families = [
            Family(m, self._kept_labels(m, values), [*values.values()]) for m, values in gathered.by_metric.items()
        ]
        families += gathered.families.values()
        page = make_page(self._renderer, families, began, 3 * self.plan.interval)
        levels = self._step(families)
        self._pages.put(self.plan.name, page)
        self.outcome = Outcome(
            is_up=True,
            duration=self._clock() - began,
            cpu=time.thread_time() - self._cpu_began,
            last_success=time.time(),
            series=page.series,
            dropped=self.outcome.dropped + gathered.dropped,
            levels=levels,
            findings=tuple(gathered.findings.values()),
            progress=self._progress(gathered),
            families={family.metric: family for family in families if family.metric in self._kept},
        )
        if gathered.dropped:
            self._tell("series over budget dropped", level="warning", budget=self.plan.series_budget)
        else:
            self._tell("collector up")

    def _kept_labels(self, metric: Metric, values: Mapping[LabelSet, float]) -> Sequence[LabelSet]:
        """Return the label sets, the same object as in the last run where they are equal: that saves work on them."""
        labelsets = tuple(values)
        if self._labelsets.get(metric) != labelsets:
            self._labelsets[metric] = labelsets
        return self._labelsets[metric]

    def _progress(self, gathered: _Gathered) -> float | None:
        metric = self.plan.collector.progress
        return min(gathered.by_metric.get(metric, {}).values(), default=None) if metric is not None else None

    def _tell(self, event: str, level: str = "info", **facts: Any) -> None:
        """Log a change of state once, not each round."""
        if event + facts.get("reason", "") != self._told:
            self._told = event + facts.get("reason", "")
            getattr(self._log, level)(event, **facts)

    def _gather(self, yielded: Iterable[Yield]) -> _Gathered:
        gathered = _Gathered(self.plan.series_budget)
        for item in yielded:
            if isinstance(item, Sample):
                self._take_sample(gathered, item)
            elif isinstance(item, Family):
                self._take_family(gathered, item)
            else:
                self._take_finding(gathered, item)
        return gathered

    def _take_sample(self, gathered: _Gathered, sample: Sample) -> None:
        metric, labels, value = sample
        if self._declared.get(metric) != len(labels) or metric in gathered.families:
            raise ContractError(f"{metric.name}{labels}: " + self._complaint(metric))
        values = gathered.by_metric.setdefault(metric, {})
        if labels in values:
            self.errors["duplicate"] += 1
            return
        if gathered.series >= gathered.budget:
            gathered.dropped += 1
            return
        values[labels] = value
        gathered.series += 1

    def _take_family(self, gathered: _Gathered, family: Family) -> None:
        metric, labelsets, values = family
        if metric not in self._declared or metric in gathered.families or metric in gathered.by_metric:
            raise ContractError(f"{metric.name}: " + self._complaint(metric))
        if len(labelsets) != len(values):
            raise ContractError(f"{metric.name}: {len(labelsets)} label sets, {len(values)} values")
        if self._checked.get(metric) is not labelsets:
            width = self._declared[metric]
            if {*map(len, labelsets)} - {width}:
                raise ContractError(f"{metric.name}: label sets of the wrong length")
            if len(set(labelsets)) == len(labelsets):
                self._checked[metric] = labelsets
            else:  # the first of each is kept
                firsts = dict(zip(reversed(labelsets), reversed(values), strict=True))
                self.errors["duplicate"] += len(labelsets) - len(firsts)
                labelsets, values = tuple(firsts), list(firsts.values())
                family = Family(metric, labelsets, values)
        room = gathered.budget - gathered.series
        if len(values) > room:
            gathered.dropped += len(values) - room
            family = Family(metric, tuple(islice(labelsets, room)), list(islice(values, room)))
        gathered.series += len(family.values)
        gathered.families[metric] = family

    def _complaint(self, metric: Metric) -> str:
        return "yielded twice" if metric in self._declared else "not declared, or with other labels"

    def _take_finding(self, gathered: _Gathered, found: Found) -> None:
        if found.finding not in self._findings:
            raise ContractError(f"finding {found.finding.id}: not declared")
        if len(gathered.findings) < FINDING_BUDGET:
            gathered.findings[found.finding.id, found.target] = found
        else:
            gathered.dropped += 1

    def _step(self, families: Sequence[Family]) -> tuple[LevelTable, ...]:
        by_metric = {family.metric: family for family in families}
        return tuple(self._step_one(each, by_metric) for each in self._evaluators)

    def _step_one(self, evaluator: Evaluator, families: Mapping[Metric, Family]) -> LevelTable:
        watermark = evaluator.watermark
        readings = evaluator.read(families)
        held = self._latches.held(watermark.name)
        first = watermark.tiers[0].raise_at
        levels: dict[str, int] = {}
        for row, (target, ratio) in enumerate(zip(evaluator.targets, readings.ratios, strict=True)):
            # the cheap test first: all but a few targets are far below the first tier
            if ratio is None or (ratio < first and target not in held and target not in evaluator.overridden):
                continue
            reading = readings.at(row)
            assert reading is not None
            override = evaluator.overridden.get(target, watermark)
            level = step(held.get(target, 0), reading, override.tiers, override.reserve)
            levels[target] = max(level, levels.get(target, 0))
        for target, level in levels.items():
            if level != held.get(target, 0):
                self.transitions[watermark.name] += 1
                self._log.info(
                    "watermark level changed",
                    watermark=watermark.name,
                    target=target,
                    before=held.get(target, 0),
                    after=level,
                )
        self._latches.update(watermark.name, levels)
        raised = {target: level for target, level in levels.items() if level}
        return LevelTable(watermark, evaluator.targets, readings, raised, evaluator.overridden)
