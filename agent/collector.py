"""Collector: the declaration that each file in `collectors/` ends with, and all that the daemon knows of a subject."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import msgspec

from agent.containers import LABELS, Runtimes
from agent.finding import Finding, Found
from agent.host import Host
from agent.metric import Family, Metric, Sample
from agent.privileges import Want
from agent.watermark import Watermark

Yield = Sample | Family | Found
T = TypeVar("T")


class NoSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of a collector that has none of its own."""


class Running(Protocol):
    """A started collector. `collect` may block; it is called from one thread, and never twice at once."""

    def collect(self, host: Host) -> Iterable[Yield]:
        """Yield what holds now. A HostError that escapes fails the whole run; see `Host.skipping`."""
        ...

    def close(self) -> None:
        """Let go of what is open; called once, after the last `collect` has returned."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RateRatio:
    """A counter against another over the same time, as `ullage doctor` shows it; Prometheus has it from `rules`.

    `top` has all labels of `bottom`. The ratio is undefined while `bottom` grows by less than `floor`.
    """

    name: str
    layer: str
    top: Metric
    bottom: Metric
    floor: float


class Shared:
    """What the collectors of one agent have together: one object of each kind, made when it is first asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[Callable[[], object], object] = {}

    def get(self, make: Callable[[], T]) -> T:
        """Return what `make` made, the same to everybody; it is kept as long as the agent runs."""
        with self._lock:
            if make not in self._made:
                self._made[make] = make()
            return cast("T", self._made[make])


@dataclass(frozen=True, slots=True)
class Fact:
    """A metric whose labels say what this node is: each of its series that is not 0 is one line of the status."""

    title: str
    metric: Metric


@dataclass(frozen=True, slots=True)
class Top:
    """A metric by which the status ranks containers; `unit` is "bytes", or what is counted.

    Raises ValueError unless the metric has the labels of a container.
    """

    title: str
    metric: Metric
    unit: str

    def __post_init__(self) -> None:
        """Refuse what is not of containers."""
        if not set(LABELS) <= set(self.metric.labels):
            message = f"{self.metric.name}: expected the labels {', '.join(LABELS)}"
            raise ValueError(message)


@dataclass(frozen=True, slots=True)
class Start:
    """What a collector is started with. `state` is a directory of its own that outlives the agent, or None."""

    host: Host
    settings: Any  # the Collector's own Struct; it casts
    state: Path | None = None
    runtimes: Runtimes = field(default_factory=Runtimes)
    shared: Shared = field(default_factory=Shared)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """A declaration. `interval` and `deadline` are defaults in seconds; `series_budget` bounds what one run may emit.

    `needs` returns None, or in a few words why this node has nothing for it ("no btrfs is mounted"). It is asked
    before every run and must be cheap; what only a run can tell is raised there as Unsupported. `uevents` are
    subsystems of the kernel's devices, such as `block`: when one of them comes, goes or changes, the collector runs
    before its time. `rules` is a group of Prometheus rules as YAML, for what is no watermark; KEEP_FIRING_FOR and
    RUNBOOK(Alert) in it are replaced by what is configured. `progress` is the metric that says how much of a long work
    is done, from 0 to 1: the status page shows the least of it while it is below 1.
    `facts` and `tops` are what the status tells of the node, and whom it ranks. `wants` are the privileges that it has
    a use for.
    """

    name: str
    summary: str
    start: Callable[[Start], Running]
    metrics: tuple[Metric, ...]
    interval: float = 15.0
    deadline: float = 10.0
    series_budget: int = 10_000
    watermarks: tuple[Watermark, ...] = ()
    findings: tuple[Finding, ...] = ()
    settings: type[msgspec.Struct] = NoSettings
    needs: Callable[[Host], str | None] = lambda _host: None
    uevents: tuple[str, ...] = ()
    rules: str = ""
    rate_ratios: tuple[RateRatio, ...] = ()
    progress: Metric | None = None
    facts: tuple[Fact, ...] = ()
    tops: tuple[Top, ...] = ()
    wants: tuple[Want, ...] = ()

    @property
    def kept(self) -> frozenset[Metric]:
        """The metrics whose newest values are kept beside the page, for the status and for doctor."""
        ratios = (metric for ratio in self.rate_ratios for metric in (ratio.top, ratio.bottom))
        return frozenset((*ratios, *(fact.metric for fact in self.facts), *(top.metric for top in self.tops)))


@dataclass(frozen=True, slots=True)
class _Stateless:
    function: Callable[[Host], Iterable[Yield]]

    def collect(self, host: Host) -> Iterable[Yield]:
        return self.function(host)

    def close(self) -> None:
        """Nothing is open."""


def stateless(function: Callable[[Host], Iterable[Yield]]) -> Callable[[Start], Running]:
    """Return a `start` for a collector that keeps nothing between its runs."""
    return lambda _start: _Stateless(function)
