"""The configuration file: YAML, decoded into what the scheduler needs; unknown keys are refused.

It holds what can be reloaded: collectors, watermarks, rules. Where things are (addresses, paths) are flags, as in
Prometheus. Every error names the file, the key, the value and what was expected.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import yaml

from agent.collector import Collector
from agent.errors import ConfigError
from agent.runner import Plan
from agent.units import Seconds, Size
from agent.watermark import Override, Reserve, Tier, Watermark

T = TypeVar("T")
RUNBOOK_URL = "https://github.com/ullage/ullage/blob/main/docs/runbooks/{alert}.md"
KEEP_FIRING_FOR = Seconds(300)

# msgspec's messages: "Expected `float`, got `str` - at `$.raise`"; "[...]" stands for some key of a mapping
_MESSAGE = re.compile(r"^(?P<what>.*?)(?: - at (?:key in )?`\$\.?(?P<path>.*?)(?:\[\.\.\.\].*)?`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<key>.*)`", re.DOTALL)
_WORDS = {
    "float": "a number",
    "int": "a whole number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
}
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`", re.DOTALL)


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
    """The whole configuration: one plan per collector that shall run, and the rules."""

    plans: tuple[Plan, ...]
    rules: RulesConfig
    file: str | None = None

    @property
    def watermarks(self) -> tuple[Watermark, ...]:
        """Every watermark with the levels in force."""
        return tuple(watermark for plan in self.plans for watermark in plan.watermarks)


def load(file: str | None, collectors: Sequence[Collector], switches: Mapping[str, bool]) -> Config:
    """Return the configuration of `file` (None: no file), with the command line's `--[no-]collector.NAME` applied."""
    if file is None:
        return _build("", {}, collectors, switches)
    try:
        with open(file, "rb") as stream:
            data = yaml.load(stream, Loader=_Loader)  # noqa: S506  a SafeLoader that also refuses doubled keys
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8: {error}") from error
    return _build(file, {} if data is None else data, collectors, switches)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice: YAML forbids it, and PyYAML would take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice, again in line {line}")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _build(file: str, data: Any, collectors: Sequence[Collector], switches: Mapping[str, bool]) -> Config:
    at = _At(file, "")
    sections = at.mapping(data)
    at.known(sections, ("collectors", "watermarks", "rules"))
    rules = _rules(_At(file, "rules"), sections.get("rules"))
    by_name = {collector.name: collector for collector in collectors}
    chosen = _At(file, "collectors").mapping(sections.get("collectors"))
    _At(file, "collectors").known(chosen, by_name)
    levels = _At(file, "watermarks").mapping(sections.get("watermarks"))
    _At(file, "watermarks").known(levels, [w.name for c in collectors for w in c.watermarks])
    plans = []
    for collector in collectors:
        plan, is_enabled = _plan(
            _At(file, f"collectors.{collector.name}"), collector, chosen.get(collector.name), levels
        )
        if switches.get(collector.name, is_enabled):
            plans.append(plan)
    return Config(tuple(plans), rules, file or None)


def _rules(at: _At, data: Any) -> RulesConfig:
    rules = at.convert(at.mapping(data), RulesConfig)
    try:
        rules.runbook_url.format(alert="X")
    except (KeyError, IndexError, ValueError) as error:
        raise at.below("runbook_url").error(rules.runbook_url, "a URL whose only field is {alert}") from error
    return rules


def _plan(at: _At, collector: Collector, data: Any, levels: Mapping[str, Any]) -> tuple[Plan, bool]:
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
        _watermark(_At(at.file, f"watermarks.{watermark.name}"), watermark, levels.get(watermark.name))
        for watermark in collector.watermarks
    )
    return Plan(collector, settings, float(interval), float(deadline), budget, watermarks), common.enabled


def _watermark(at: _At, watermark: Watermark, data: Any) -> Watermark:
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


def _tiers(at: _At, tiers: tuple[Tier, ...], data: Mapping[str, Any]) -> tuple[Tier, ...]:
    at.below("tiers").known(data, [tier.name for tier in tiers])
    made = []
    for tier in tiers:
        below = at.below(f"tiers.{tier.name}")
        config = below.convert(below.mapping(data.get(tier.name)), TierConfig)
        raise_at = tier.raise_at if config.raise_at is None else config.raise_at
        clear_at = tier.clear_at if config.clear is None else config.clear
        hold = tier.hold if config.hold is None else float(config.hold)
        try:
            made.append(Tier(tier.name, tier.severity, raise_at, clear_at, hold))
        except ValueError as error:
            wanted = "ratios with 0 < clear < raise <= 1"
            raise below.error({"raise": raise_at, "clear": clear_at}, wanted) from error
    return tuple(made)


def _reserve(at: _At, watermark: Watermark, size: Size | None, tiers: tuple[Tier, ...]) -> Reserve | None:
    if watermark.available is None:
        if size is not None:
            raise at.below("reserve").error(int(size), f"no reserve: the watermark {watermark.name} has none")
        return None
    if size is None:
        return Reserve.of(watermark.reserve.raise_at, tiers) if watermark.reserve is not None else None
    return Reserve.of(size, tiers) if size else None


def _decode(kind: type, value: Any) -> Any:
    parse: Callable[[object], Any] = kind.parse  # type: ignore[attr-defined]  # Seconds and Size are all there are
    return parse(value)


@dataclass(frozen=True, slots=True)
class _At:
    """A place in a file, for error messages."""

    file: str
    key: str

    def below(self, key: str) -> _At:
        return _At(self.file, f"{self.key}.{key}" if self.key else key)

    def place(self, key: str = "") -> str:
        path = self.below(key).key if key else self.key
        return ": ".join(part for part in (self.file, path) if part)

    def error(self, value: Any, expected: str) -> ConfigError:
        return ConfigError(f"{self.place()}: {_shown(value)}: expected {expected}")

    def mapping(self, data: Any) -> dict[str, Any]:
        """Return a mapping with string keys; an empty section is an empty mapping."""
        if data is None:
            return {}
        if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
            raise self.error(data, "a mapping of keys to values")
        return data

    def known(self, keys: Iterable[str], allowed: Iterable[str]) -> None:
        """Refuse a key that is not allowed, with the nearest that is."""
        allowed = sorted(allowed)
        for key in keys:
            if key not in allowed:
                near = difflib.get_close_matches(key, allowed, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"expected one of: {', '.join(allowed)}"
                raise ConfigError(f"{self.place(key)}: unknown key; {hint}")

    def convert(self, data: Any, kind: type[T]) -> T:
        """Return `data` as the struct `kind`, or raise a ConfigError that names what is wrong."""
        try:
            return msgspec.convert(data, kind, dec_hook=_decode)
        except msgspec.ValidationError as error:
            raise self._explained(error, data, kind) from error

    def _explained(self, error: msgspec.ValidationError, data: Any, kind: type) -> ConfigError:
        match = _MESSAGE.match(str(error))
        assert match is not None
        what, path = match["what"], (match["path"] or "")
        at = self.below(path) if path else self
        if unknown := _UNKNOWN.match(what):
            at.known([unknown["key"]], kind.__struct_encode_fields__)  # type: ignore[attr-defined]  # all are Structs
        return at.error(_follow(data, path), _expected(what))


def _expected(what: str) -> str:
    """Return msgspec's complaint in the words of a person who writes YAML."""
    if missing := _MISSING.match(what):
        return f"the key {missing['key']!r}"
    what = what.removeprefix("Expected ").replace("`", "").replace(" | null", "")
    wanted, comma, got = what.partition(", got ")
    return _WORDS.get(wanted, wanted) + (comma + _WORDS.get(got, got) if comma else "")


def _follow(data: Any, path: str) -> Any:
    for name, position in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            data = data[int(position)] if position else data[name]
        except (KeyError, IndexError, TypeError):
            return data
    return data


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."  # noqa: PLR2004
