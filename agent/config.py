"""The configuration file: YAML, decoded into what the scheduler needs; unknown keys are refused.

It holds what can be reloaded: collectors, watermarks, rules. Where things are (addresses, paths) are flags, as in
Prometheus. Every error names the file, the key, the value and what was expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from agent.collector import Collector
from agent.containers import Runtimes
from agent.errors import ConfigError
from agent.rules import RUNBOOK_URL
from agent.runner import Plan
from agent.units import Seconds, Size
from agent.watermark import Override, Reserve, Tier, Watermark
from agent.yamlfile import At, read

HOLD_MOST = 240.0  # seconds; below the five minutes for which Prometheus still finds the last ALERTS
KEEP_FIRING_FOR = Seconds(300)

SECTIONS = ("collectors", "watermarks", "rules", "runtime")  # the chart's schema has them too
RUNTIME_KEYS = {
    "docker": {"socket": "docker_sockets", "root": "docker_roots"},
    "containerd": {"root": "containerd_roots", "state": "containerd_states"},
    "containers-storage": {"root": "containers_storage_roots"},
}


class CollectorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every collector can be told; its own settings stand beside these keys."""

    enabled: bool = True
    interval: Seconds | None = None
    deadline: Seconds | None = None
    series_budget: int | None = None


class TierConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"raise_at": "raise"}):
    """One tier's levels (ratios from 0 to 1) and the alert's `for`."""

    raise_at: float | None = None
    clear: float | None = None
    hold: Seconds | None = msgspec.field(default=None, name="for")


class OverrideConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Other levels for the targets whose name matches a shell pattern."""

    target: str
    tiers: dict[str, Any] = {}
    reserve: Size | None = None


class WatermarkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A watermark's levels for this node, and for some of its targets."""

    tiers: dict[str, Any] = {}
    reserve: Size | None = None
    overrides: tuple[Any, ...] = ()


class RulesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `ullage rules` prints."""

    keep_firing_for: Seconds = KEEP_FIRING_FOR
    runbook_url: str = RUNBOOK_URL


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration: one plan per collector that shall run, the rules, where runtimes are."""

    plans: tuple[Plan, ...]
    rules: RulesConfig
    runtimes: Runtimes
    file: str | None = None

    @property
    def watermarks(self) -> tuple[Watermark, ...]:
        """Every watermark with the levels in force."""
        return tuple(watermark for plan in self.plans for watermark in plan.watermarks)


def load(
    file: str | None,
    collectors: Sequence[Collector],
    switches: Mapping[str, bool],
    runtimes: Mapping[str, tuple[str, ...]] | None = None,
) -> Config:
    """Return the configuration of `file` (None: no file), with what the command line says applied.

    That is `--[no-]collector.NAME` as `switches`, and the places of runtimes by field of Runtimes.
    """
    if file is None:
        return _build("", {}, collectors, switches, runtimes or {})
    data = read(file)
    return _build(file, {} if data is None else data, collectors, switches, runtimes or {})


def _build(
    file: str,
    data: Any,
    collectors: Sequence[Collector],
    switches: Mapping[str, bool],
    runtimes: Mapping[str, tuple[str, ...]],
) -> Config:
    at = At(file)
    sections = at.mapping(data)
    at.known(sections, SECTIONS)
    places = msgspec.structs.replace(_runtimes(At(file, "runtime"), sections.get("runtime")), **runtimes)
    rules = _rules(At(file, "rules"), sections.get("rules"))
    by_name = {collector.name: collector for collector in collectors}
    chosen = At(file, "collectors").mapping(sections.get("collectors"))
    At(file, "collectors").known(chosen, by_name)
    levels = At(file, "watermarks").mapping(sections.get("watermarks"))
    At(file, "watermarks").known(levels, [w.name for c in collectors for w in c.watermarks])
    plans = []
    for collector in collectors:
        plan, is_enabled = _plan(
            At(file, f"collectors.{collector.name}"), collector, chosen.get(collector.name), levels
        )
        if switches.get(collector.name, is_enabled):
            plans.append(replace(plan, runtimes=places))
    return Config(tuple(plans), rules, places, file or None)


def _runtimes(at: At, data: Any) -> Runtimes:
    """Return where the runtimes are: `{docker: {socket: [/run/docker.sock]}}` names the field `docker_sockets`."""
    mapping = at.mapping(data)
    at.known(mapping, RUNTIME_KEYS)
    given = {}
    for runtime, keys in RUNTIME_KEYS.items():
        below = at.below(runtime)
        places = below.mapping(mapping.get(runtime))
        below.known(places, keys)
        for key, field in keys.items():
            if key in places:
                value = places[key]
                if not isinstance(value, list) or not all(isinstance(each, str) and each[:1] == "/" for each in value):
                    raise below.below(key).error(value, "a list of absolute paths")
                given[field] = tuple(value)
    return Runtimes(**given)


def _rules(at: At, data: Any) -> RulesConfig:
    rules = at.convert(at.mapping(data), RulesConfig)
    try:
        rules.runbook_url.format(alert="X")
    except (KeyError, IndexError, ValueError) as error:
        raise at.below("runbook_url").error(rules.runbook_url, "a URL whose only field is {alert}") from error
    return rules


def _plan(at: At, collector: Collector, data: Any, levels: Mapping[str, Any]) -> tuple[Plan, bool]:
    mapping = at.mapping(data)
    common_keys = CollectorConfig.__struct_encode_fields__
    own_keys = collector.settings.__struct_encode_fields__
    at.known(mapping, (*common_keys, *own_keys))
    common = at.convert({key: mapping[key] for key in mapping if key in common_keys}, CollectorConfig)
    settings = at.convert({key: mapping[key] for key in mapping if key in own_keys}, collector.settings)
    interval = collector.interval if common.interval is None else common.interval
    if not 1 <= interval <= 86400:  # noqa: PLR2004
        raise at.below("interval").error(str(common.interval), "a duration from 1s to 1d")
    deadline = min(collector.deadline, interval) if common.deadline is None else common.deadline
    if not 0 < deadline <= interval:
        raise at.below("deadline").error(str(common.deadline), f"a duration up to the interval, {Seconds(interval)}")
    budget = collector.series_budget if common.series_budget is None else common.series_budget
    if budget < 1:
        raise at.below("series_budget").error(budget, "a number of series, 1 or more")
    watermarks = tuple(
        _watermark(At(at.file, f"watermarks.{watermark.name}"), watermark, levels.get(watermark.name))
        for watermark in collector.watermarks
    )
    return Plan(collector, settings, float(interval), float(deadline), budget, watermarks), common.enabled


def _watermark(at: At, watermark: Watermark, data: Any) -> Watermark:
    config = at.convert(at.mapping(data), WatermarkConfig)
    tiers = _tiers(at, watermark.tiers, config.tiers)
    reserve = _reserve(at, watermark, config.reserve, tiers)
    overrides = []
    for position, entry in enumerate(config.overrides):
        below = at.below(f"overrides[{position}]")
        override = below.convert(below.mapping(entry), OverrideConfig)
        own = _tiers(below, tiers, override.tiers)
        wanted = config.reserve if override.reserve is None else override.reserve
        overrides.append(Override(override.target, own, _reserve(below, watermark, wanted, own)))
    try:
        return watermark.with_tiers(tiers, reserve, tuple(overrides))
    except ValueError as error:
        raise ConfigError(f"{at.place('tiers')}: {error}") from error


def _tiers(at: At, tiers: tuple[Tier, ...], data: Mapping[str, Any]) -> tuple[Tier, ...]:
    at.below("tiers").known(data, [tier.name for tier in tiers])
    made = []
    for tier in tiers:
        below = at.below(f"tiers.{tier.name}")
        config = below.convert(below.mapping(data.get(tier.name)), TierConfig)
        raise_at = tier.raise_at if config.raise_at is None else config.raise_at
        clear_at = tier.clear_at if config.clear is None else config.clear
        hold = tier.hold if config.hold is None else float(config.hold)
        if config.hold is not None and hold > HOLD_MOST:
            wanted = (
                f"a duration up to {Seconds(HOLD_MOST)}: a longer one loses its hysteresis when Prometheus restarts"
            )
            raise below.below("for").error(str(config.hold), wanted)
        try:
            made.append(Tier(tier.name, tier.severity, raise_at, clear_at, hold))
        except ValueError as error:
            wanted = "ratios with 0 < clear < raise <= 1"
            raise below.error({"raise": raise_at, "clear": clear_at}, wanted) from error
    return tuple(made)


def _reserve(at: At, watermark: Watermark, size: Size | None, tiers: tuple[Tier, ...]) -> Reserve | None:
    if watermark.available is None:
        if size is not None:
            raise at.below("reserve").error(int(size), f"no reserve: the watermark {watermark.name} has none")
        return None
    if size is None:
        return Reserve.of(watermark.reserve.raise_at, tiers) if watermark.reserve is not None else None
    return Reserve.of(size, tiers) if size else None
