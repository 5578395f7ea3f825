"""What this node has to say of itself, for a person at a terminal: every collector runs twice, and is judged.

The same collectors, watermarks and findings that the daemon serves. Two readings give what one cannot: rates, and so
how much of what was written became more on its way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from agent.collector import Collector, RateRatio
from agent.daemon import Engine, Options
from agent.plain import plain
from agent.runner import Level
from agent.scheduler import Worker

Verdict = Literal["clean", "warnings", "critical", "unknown"]
EXIT: Mapping[Verdict, int] = {"clean": 0, "warnings": 1, "critical": 2, "unknown": 3}
BAR = 40  # characters
_POLL = 0.05
_SEVERITIES = ("critical", "warning", "info")


@dataclass(frozen=True, slots=True)
class Ran:
    """How a collector fared; `reason` says why it is not up."""

    collector: str
    state: Literal["up", "unsupported", "failing", "overdue"]
    reason: str
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class Filled:
    """A watermark's target, how full it is, and the tier that holds, if any."""

    watermark: str
    target: str
    ratio: float
    tier: str
    severity: str
    tiers: list[tuple[str, float, float]]  # name, raise, clear


@dataclass(frozen=True, slots=True)
class Hazard:
    """A finding that holds."""

    finding: str
    severity: str
    target: str
    explanation: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Ratio:
    """A rate over a rate between the two readings; None where too little happened to tell."""

    name: str
    layer: str
    target: str
    ratio: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """All that doctor has to say."""

    node: str
    seconds: float
    verdict: Verdict
    collectors: list[Ran]
    watermarks: list[Filled]
    findings: list[Hazard]
    ratios: list[Ratio]

    def as_dict(self) -> dict[str, object]:
        """Return the report as JSON has it."""
        return asdict(self)


def examine(options: Options, collectors: Sequence[Collector], seconds: float) -> Report:
    """Run every collector twice, so many seconds apart, and judge what they found. Raises ConfigError."""
    node = os.uname().nodename
    engine = Engine(options, options.load(collectors), node, has_process=False)
    try:
        workers = engine.scheduler.workers
        while not engine.scheduler.is_ready:
            time.sleep(_POLL)
        first, began = _readings(workers), time.monotonic()
        time.sleep(seconds)
        before = {name: worker.runner.outcome for name, worker in workers.items()}
        for worker in workers.values():
            worker.wake(at_once=True)
        while any(worker.runner.outcome is before[name] and not worker.is_overdue for name, worker in workers.items()):
            time.sleep(_POLL)
        elapsed = time.monotonic() - began
        ratios = list(_ratios(first, _readings(workers)))
        return _judge(node, elapsed, workers, ratios)
    finally:
        engine.stop(saves=False)


_Readings = Mapping[RateRatio, tuple[Mapping[tuple[str, ...], float], Mapping[tuple[str, ...], float]]]


def _readings(workers: Mapping[str, Worker]) -> _Readings:
    """Return for each ratio the values of its two counters by the labels of the lower one."""
    found = {}
    for worker in workers.values():
        for ratio in worker.runner.plan.collector.rate_ratios:
            places = [ratio.top.labels.index(name) for name in ratio.bottom.labels]
            families = worker.runner.outcome.families
            top, bottom = families.get(ratio.top), families.get(ratio.bottom)
            uppers = zip(top.labelsets, top.values, strict=True) if top else ()
            lowers = zip(bottom.labelsets, bottom.values, strict=True) if bottom else ()
            found[ratio] = {tuple(labels[at] for at in places): value for labels, value in uppers}, dict(lowers)
    return found


def _ratios(first: _Readings, second: _Readings) -> Iterator[Ratio]:
    for ratio, (tops, bottoms) in second.items():
        tops_before, bottoms_before = first.get(ratio, ({}, {}))
        for labels, top in tops.items():
            if labels in bottoms and labels in tops_before and labels in bottoms_before:
                above, below = top - tops_before[labels], bottoms[labels] - bottoms_before[labels]
                target = " ".join(value for value in labels if value and value != ratio.layer)
                yield Ratio(ratio.name, ratio.layer, target, above / below if below >= ratio.floor else None)


def _judge(node: str, seconds: float, workers: Mapping[str, Worker], ratios: list[Ratio]) -> Report:
    ran, levels, hazards = [], [], []
    for name, worker in sorted(workers.items()):
        outcome = worker.runner.outcome
        state: Literal["up", "unsupported", "failing", "overdue"] = "up" if outcome.is_up else "failing"
        state = "overdue" if worker.is_overdue else state if outcome.is_supported else "unsupported"
        ran.append(Ran(name, state, outcome.reason, dict(worker.runner.errors)))
        levels += [_filled(level) for table in outcome.levels for level in table]
        hazards += [
            Hazard(found.finding.id, found.finding.severity, found.target, found.explanation, found.remedy)
            for found in outcome.findings
        ]
    hazards.sort(key=lambda each: (_SEVERITIES.index(each.severity), each.finding, each.target))
    severities = {level.severity for level in levels} | {hazard.severity for hazard in hazards}
    verdict: Verdict = "critical" if "critical" in severities else "warnings" if "warning" in severities else "clean"
    if verdict == "clean" and any(each.state in ("failing", "overdue") for each in ran):
        verdict = "unknown"
    return Report(node, round(seconds, 1), verdict, ran, levels, hazards, ratios)


def _filled(level: Level) -> Filled:
    tier = level.tier
    name, severity = (tier.name, tier.severity) if tier else ("", "")
    tiers = [(each.name, each.raise_at, each.clear_at) for each in level.tiers]
    return Filled(level.watermark.name, level.target, level.reading.ratio, name, severity, tiers)


def show(report: Report) -> Iterator[str]:
    """Yield the report's lines. What containers control is shown with its control characters escaped."""
    yield f"{plain(report.node)}: {report.verdict} (two readings, {report.seconds:g} s apart)"
    yield ""
    yield "Collectors"
    for each in report.collectors:
        errors = ", ".join(f"{count} {reason}" for reason, count in sorted(each.errors.items()))
        told = "; ".join(filter(None, (each.reason, errors and f"skipped: {errors}")))
        yield f"  {each.collector:<12} {each.state:<12} {plain(told)}".rstrip()
    if report.watermarks:
        yield ""
        yield "Watermarks (| raise, : clear)"
        for level in sorted(report.watermarks, key=lambda each: (each.watermark, -each.ratio)):
            tier = f"  {level.tier}" if level.tier else ""
            yield f"  {level.watermark:<18} {_bar(level)} {level.ratio:>6.1%}{tier}  {plain(level.target)}"
    if report.ratios:
        yield ""
        yield "Amplification between the readings"
        for ratio in report.ratios:
            value = "too little was written to tell" if ratio.ratio is None else f"{ratio.ratio:.2f}"
            yield f"  {ratio.layer:<12} {plain(ratio.target)}: {value}"
    yield ""
    yield "Findings" if report.findings else "No findings."
    for hazard in report.findings:
        yield f"  {hazard.severity:<9} {hazard.finding}  {plain(hazard.target)}"
        yield f"            {plain(hazard.explanation)}"
        yield f"            $ {plain(hazard.remedy)}"


def _bar(level: Filled) -> str:
    filled = min(BAR, round(level.ratio * BAR))
    bar = ["#"] * filled + ["-"] * (BAR - filled)
    for _, high, low in level.tiers:
        bar[min(BAR - 1, int(low * BAR))] = ":"
        bar[min(BAR - 1, int(high * BAR))] = "|"
    return "".join(bar)
