"""The status: all that this agent knows of its node now, in one document. `/api/v1/status` is it as JSON.

The status page and `ullage doctor` are made of the same document; the doctor can read it from a running agent. Keys are
only ever added to it. Times are Unix time in seconds, ratios are from 0 to 1; what is not known is None. Built of what
is in memory: no file is touched.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from heapq import nlargest
from typing import Literal

import msgspec

from agent.collector import Top
from agent.containers import LABELS
from agent.errors import HostError
from agent.exposition import Pages
from agent.finding import Finding, Severity
from agent.host import Host
from agent.metric import Family, label
from agent.privileges import Lack
from agent.runner import Level, LevelTable, Runner
from agent.scheduler import Worker
from agent.sightings import Sighting, Sightings
from agent.watermark import Tier

TOP = 10  # containers of each ranking
FACTS = 50  # series of each fact
GONE = 100  # findings that are no more
TEXT_LIMIT = 10_000  # characters of an explanation or a remedy
State = Literal["starting", "up", "failing", "overdue", "unsupported"]


class Agent(msgspec.Struct, frozen=True):
    """The agent itself. `config_reloaded` is False while the newest configuration is refused."""

    version: str = ""
    node: str = ""
    started_at: float = 0.0
    config_file: str | None = None
    config_reloaded: bool = True
    ready: bool = False


class Node(msgspec.Struct, frozen=True):
    """The node: `os` is PRETTY_NAME of its os-release."""

    hostname: str | None = None
    kernel: str | None = None
    os: str | None = None
    cgroup: Literal["v1", "v2", "hybrid"] | None = None
    boot_time: float | None = None


class FactStatus(msgspec.Struct, frozen=True):
    """A fact of the node, of a metric's labels: each item is one series that is not 0."""

    title: str
    metric: str
    items: list[dict[str, str]]


class TopItem(msgspec.Struct, frozen=True):
    """One container of a ranking."""

    namespace: str
    pod: str
    container: str
    id: str
    value: float


class TopStatus(msgspec.Struct, frozen=True):
    """The containers that have most of something, the biggest first."""

    title: str
    metric: str
    unit: str
    items: list[TopItem]


class CollectorStatus(msgspec.Struct, frozen=True):
    """How a collector fares. `reason` says why it is not up; `errors` counts targets and runs that failed, by reason.

    `duration_seconds` and `cpu_seconds` are what the newest run took, by the clock and of a CPU in its own thread.
    """

    name: str
    summary: str
    state: State
    reason: str | None = None
    progress: float | None = None
    last_success: float | None = None
    age_seconds: float | None = None
    duration_seconds: float | None = None
    cpu_seconds: float | None = None
    interval_seconds: float = 0.0
    series: int = 0
    series_budget: int = 0
    series_dropped: int = 0
    errors: dict[str, int] = {}
    lacks: list[LackStatus] = []


class LackStatus(msgspec.Struct, frozen=True):
    """What the agent is not allowed, and what a collector cannot tell therefore. Capabilities are without CAP_."""

    lost: str
    capabilities: tuple[str, ...] = ()
    device: str = ""
    mount: str = ""


class TierStatus(msgspec.Struct, frozen=True, rename={"raise_at": "raise", "clear_at": "clear"}):
    """One tier of a watermark, with the levels in force for its target."""

    name: str
    severity: Severity
    raise_at: float
    clear_at: float


class WatermarkStatus(msgspec.Struct, frozen=True):
    """A watermark of one target. `level` 0 is clear; `tier` and `severity` are those that hold, else None."""

    watermark: str
    target: str
    level: int
    tier: str | None
    severity: Severity | None
    ratio: float | None
    tiers: tuple[TierStatus, ...]


class FindingStatus(msgspec.Struct, frozen=True):
    """A finding that the newest run of its collector has found. One that came back within a day is no new one."""

    finding: str
    severity: Severity
    target: str
    explanation: str
    remedy: str
    runbook: str
    first_seen: float
    last_seen: float


class GoneStatus(msgspec.Struct, frozen=True):
    """A finding that was there within the last day and is not any more."""

    finding: str
    severity: Severity
    target: str
    runbook: str
    first_seen: float
    last_seen: float


class Status(msgspec.Struct, frozen=True):
    """The document, made at `time`. The worst watermarks and findings come first; `watermark_targets` are in all."""

    time: float = 0.0
    agent: Agent = Agent()
    node: Node = Node()
    facts: list[FactStatus] = []
    top: list[TopStatus] = []
    collectors: list[CollectorStatus] = []
    watermarks: list[WatermarkStatus] = []
    watermark_targets: int = 0
    findings: list[FindingStatus] = []
    findings_gone: list[GoneStatus] = []


def build(  # noqa: PLR0913  all that there is to tell of
    agent: Agent,
    node: Node,
    workers: Mapping[str, Worker],
    pages: Pages,
    sightings: Sightings,
    *,
    lacking: Mapping[str, Iterable[Lack]],
    runbook_url: str,
    most: int | None = None,
) -> Status:
    """Return the status, with the `most` fullest watermark targets (None: all of them).

    Numbers whose page is withdrawn as too old are left out. Findings stay, as their `last_seen` says how old they are.
    """
    now = time.time()
    current = [worker.runner for name, worker in workers.items() if pages.is_current(name)]
    rows = _rows(current)
    return Status(
        time=now,
        agent=agent,
        node=node,
        facts=list(_facts(current)),
        top=list(_tops(current)),
        collectors=[_collector(worker, lacking.get(name, ()), now) for name, worker in workers.items()],
        watermarks=_watermarks(rows, most),
        watermark_targets=len(rows),
        findings=_findings(workers, sightings, runbook_url),
        findings_gone=_gone(workers, sightings, runbook_url),
    )


def state_of(worker: Worker) -> State:
    """Return how a collector fares, in one word."""
    outcome = worker.runner.outcome
    if worker.is_overdue:
        return "overdue"
    if not worker.is_first_done:
        return "starting"
    if not outcome.is_supported:
        return "unsupported"
    return "up" if outcome.is_up else "failing"


def runbook_of(finding: Finding, url: str) -> str:
    """Return where a finding's runbook is; `url` is that of an alert's, with the field {alert}."""
    page = url.format(alert=finding.alert)
    return page if "#" in page else f"{page}#{finding.id}"


def _text(text: str) -> str:
    """Return a text as JSON can hold it: names from the kernel may be bytes that are no UTF-8."""
    return label(text, TEXT_LIMIT)


def _collector(worker: Worker, lacking: Iterable[Lack], now: float) -> CollectorStatus:
    runner, outcome, state = worker.runner, worker.runner.outcome, state_of(worker)
    has_run = worker.is_first_done and outcome.is_supported
    return CollectorStatus(
        name=runner.plan.name,
        summary=runner.plan.collector.summary,
        state=state,
        reason=_text(outcome.reason) or None,
        progress=outcome.progress,
        last_success=outcome.last_success,
        age_seconds=None if outcome.last_success is None else max(0.0, now - outcome.last_success),
        duration_seconds=outcome.duration if has_run else None,
        cpu_seconds=outcome.cpu if has_run else None,
        interval_seconds=runner.plan.interval,
        series=outcome.series,
        series_budget=runner.plan.series_budget,
        series_dropped=outcome.dropped,
        errors=dict(runner.errors),
        lacks=list(_lacks(runner, lacking)),
    )


def _lacks(runner: Runner, lacking: Iterable[Lack]) -> Iterator[LackStatus]:
    """Yield what the collector wants and has not got, if it has met with that."""
    outcome, is_refused = runner.outcome, bool(runner.errors["permission"])
    for each in lacking:
        is_felt = outcome.is_supported and (is_refused or bool(each.device))
        if outcome.reason in each.want.reasons if each.want.reasons else is_felt:
            yield LackStatus(each.want.lost, each.capabilities, each.device)
    if runner.errors["unreachable"]:
        yield LackStatus("what lies where the agent's container does not show the host's mounts", mount="/host")


# -- facts and rankings --


def _facts(runners: Iterable[Runner]) -> Iterator[FactStatus]:
    for runner in runners:
        families = runner.outcome.families
        for fact in runner.plan.collector.facts:
            family = families.get(fact.metric)
            if family is not None:
                held = [labels for labels, value in zip(family.labelsets, family.values, strict=True) if value]
                items = [dict(zip(fact.metric.labels, labels, strict=True)) for labels in held[:FACTS]]
                if items:
                    yield FactStatus(fact.title, fact.metric.name, items)


def _tops(runners: Iterable[Runner]) -> Iterator[TopStatus]:
    for runner in runners:
        families = runner.outcome.families
        for top in runner.plan.collector.tops:
            family = families.get(top.metric)
            if family is not None and (items := list(_biggest(top, family))):
                yield TopStatus(top.title, top.metric.name, top.unit, items)


def _biggest(top: Top, family: Family) -> Iterator[TopItem]:
    places = [top.metric.labels.index(name) for name in LABELS]
    *_, of_id = places
    each = ((value, labels) for labels, value in zip(family.labelsets, family.values, strict=True) if labels[of_id])
    for value, labels in nlargest(TOP, each):  # the sum of those without series of their own has no id
        namespace, pod, container, number = (labels[place] for place in places)
        yield TopItem(namespace, pod, container, number, value)


# -- watermarks --

_Row = tuple[int, float, LevelTable, int]  # how severe the tier that holds is, the ratio, and where they are from
_RANKS: Mapping[Severity, int] = {"info": 1, "warning": 2, "critical": 3}


def _rows(runners: Iterable[Runner]) -> list[_Row]:
    """Return every watermark's targets. Cheap, as there may be tens of thousands: few of them are shown."""
    return [
        (_rank(table.level(row).tier) if target in table.raised else 0, ratio, table, row)
        for runner in runners
        for table in runner.outcome.levels
        for row, target, ratio in table.rows()
    ]


def _rank(tier: Tier | None) -> int:
    return _RANKS[tier.severity] if tier is not None else 0


def _badness(row: _Row) -> tuple[int, float]:
    return row[:2]


def _watermarks(rows: list[_Row], most: int | None) -> list[WatermarkStatus]:
    chosen = sorted(rows, key=_badness, reverse=True) if most is None else nlargest(most, rows, key=_badness)
    made: dict[tuple[Tier, ...], tuple[TierStatus, ...]] = {}
    return [_watermark(table.level(row), made) for _, _, table, row in chosen]


def _watermark(level: Level, made: dict[tuple[Tier, ...], tuple[TierStatus, ...]]) -> WatermarkStatus:
    tiers = made.get(level.tiers)
    if tiers is None:
        tiers = tuple(TierStatus(each.name, each.severity, each.raise_at, each.clear_at) for each in level.tiers)
        made[level.tiers] = tiers
    tier = level.tier
    return WatermarkStatus(
        watermark=level.watermark.name,
        target=label(level.target),
        level=level.level,
        tier=tier.name if tier else None,
        severity=tier.severity if tier else None,
        ratio=level.reading.ratio,
        tiers=tiers,
    )


# -- findings --


def _findings(workers: Mapping[str, Worker], sightings: Sightings, url: str) -> list[FindingStatus]:
    made = []
    for name, worker in workers.items():
        outcome, seen = worker.runner.outcome, sightings.of(name)
        last = outcome.last_success or 0.0  # what has found something has succeeded
        for found in outcome.findings:
            number, target = found.key
            first = seen.get((number, target), Sighting(last, last)).first
            made.append(
                FindingStatus(
                    finding=number,
                    severity=found.finding.severity,
                    target=target,
                    explanation=_text(found.explanation),
                    remedy=_text(found.remedy),
                    runbook=runbook_of(found.finding, url),
                    first_seen=min(first, last),  # the clock may have been set back
                    last_seen=last,
                )
            )
    return sorted(made, key=lambda each: (-_RANKS[each.severity], each.finding, each.target))


def _gone(workers: Mapping[str, Worker], sightings: Sightings, url: str) -> list[GoneStatus]:
    made = []
    for name, worker in workers.items():
        outcome = worker.runner.outcome
        if not outcome.is_conclusive:
            continue  # what a collector that has not run yet, or fails, would find is not known
        held = {found.key for found in outcome.findings}
        declared = {finding.id: finding for finding in worker.runner.plan.collector.findings}
        for (number, target), seen in sightings.of(name).items():
            finding = declared.get(number)  # one of an older version may be declared no more
            if finding is not None and (number, target) not in held:
                runbook = runbook_of(finding, url)
                first = min(seen.first, seen.last)
                made.append(GoneStatus(finding.id, finding.severity, target, runbook, first, seen.last))
    return nlargest(GONE, made, key=lambda each: each.last_seen)


# -- the node --


def read_node(host: Host) -> Node:
    """Return what this node is. It reads files, one of them on the root filesystem: not for an answer's time."""
    return Node(
        hostname=_hostname(host),
        kernel=_read(host, "proc/sys/kernel/osrelease"),
        os=_os(host),
        cgroup=_cgroup(host),
        boot_time=_boot_time(host),
    )


def _read(host: Host, path: str) -> str | None:
    try:
        return host.read(host.resolve(path)).decode("utf-8", "replace").strip() or None
    except HostError:
        return None


def _hostname(host: Host) -> str | None:
    """Return the host's own name: in a container, uname(2) tells that of the container."""
    return (_read(host, "etc/hostname") if host.rootfs else None) or os.uname().nodename


def _os(host: Host) -> str | None:
    """Return PRETTY_NAME of os-release(5): `PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"`, quoted as in a shell."""
    text = _read(host, "etc/os-release") or _read(host, "usr/lib/os-release") or ""
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            with contextlib.suppress(ValueError):  # quotes that do not end
                return " ".join(shlex.split(value)) or None
    return None


def _cgroup(host: Host) -> Literal["v1", "v2", "hybrid"] | None:
    """Return which cgroup hierarchies are mounted; hybrid is v1 with a v2 beside it, at either of systemd's places."""
    root = "sys/fs/cgroup"
    if host.exists(f"{root}/cgroup.controllers"):
        return "v2"
    if any(host.exists(f"{root}/{place}/cgroup.controllers") for place in ("unified", "systemd")):
        return "hybrid"
    return "v1" if host.glob(f"{root}/*/cgroup.procs") else None


def _boot_time(host: Host) -> float | None:
    """Return `btime 1700000000` of /proc/stat."""
    for line in (_read(host, "proc/stat") or "").splitlines():
        key, _, value = line.partition(" ")
        if key == "btime" and value.isdecimal():
            return float(value)
    return None
