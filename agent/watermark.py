"""Watermark: the ratio of two samples with tiers, each raised at one level and cleared at a lower one.

The same declaration gives the agent's latches, the exported thresholds and the alert rules. `step` is pure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import NamedTuple

from agent.finding import Severity
from agent.metric import Family, LabelSet, Metric, Sum


@dataclass(frozen=True, slots=True)
class Tier:
    """One level of alarm. `raise_at` and `clear_at` are ratios; `hold` is the alert's `for`, in seconds.

    Raises ValueError unless 0 < clear_at < raise_at <= 1.
    """

    name: str
    severity: Severity
    raise_at: float
    clear_at: float
    hold: float = 60.0

    def __post_init__(self) -> None:
        """Refuse a tier without a band."""
        if not 0 < self.clear_at < self.raise_at <= 1:
            message = f"tier {self.name}: expected 0 < clear < raise <= 1, got {self.clear_at} and {self.raise_at}"
            raise ValueError(message)


@dataclass(frozen=True, slots=True)
class Reserve:
    """Bytes that must stay available: below `raise_at` the watermark's last tier holds until `clear_at` is free again.

    It concerns only filesystems of at least `minimum_size` bytes, see `of`.
    """

    raise_at: float
    clear_at: float
    minimum_size: float

    @classmethod
    def of(cls, size: float, tiers: tuple[Tier, ...]) -> Reserve:
        """Return the reserve of `size` bytes; it is cleared at 1.2 times `size`.

        A reserve of 10 GiB would make every filesystem under 10 GiB critical for ever. It therefore concerns only
        those that are so large that it is crossed, up and down, no earlier than the first tier's own levels.
        """
        clear_at = 1.2 * size
        first = tiers[0]
        least = size / max(1e-9, 1 - first.raise_at)
        least = max(least, clear_at / (1 - first.clear_at))
        return cls(size, clear_at, math.ceil(least * (1 - 1e-12)))  # what the division is off by makes no byte more


@dataclass(frozen=True, slots=True)
class Prediction:
    """A warning before a target is full, by its trend; seconds, and ratios from which on a trend matters at all.

    It is raised `raise_within` seconds before, and cleared once full is more than `clear_within` away. `window` is what
    the trend is taken of; a jump within it is none, so it must have grown in both of the last two `recent`. Raises
    ValueError unless there is a band.
    """

    window: float = 3600.0
    recent: float = 900.0
    raise_within: float = 4 * 3600.0
    clear_within: float = 8 * 3600.0
    raise_from: float = 0.50
    clear_below: float = 0.45
    hold: float = 240.0
    severity: Severity = "warning"

    def __post_init__(self) -> None:
        """Refuse a prediction without a band."""
        if not (0 < self.raise_within < self.clear_within and 0 < self.clear_below < self.raise_from < 1):
            message = f"expected 0 < raise_within < clear_within and 0 < clear_below < raise_from < 1, got {self}"
            raise ValueError(message)


@dataclass(frozen=True, slots=True)
class Override:
    """Other tiers (and reserve) for the targets whose name matches the shell pattern `target`."""

    target: str
    tiers: tuple[Tier, ...]
    reserve: Reserve | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermark:
    """A declaration: `used / size` per target, where `where` (a metric and its value) holds.

    Without a `size`, `used` is the ratio itself, as some kernels and drives tell no more.

    `target` names the labels that together name one target; `available` is the metric that a reserve is compared with.
    `prediction` is for what fills up by itself. All metrics carry the same labels. Raises ValueError unless tiers
    are in rising order.
    """

    name: str
    summary: str
    used: Metric | Sum
    size: Metric | Sum | None
    target: LabelSet
    tiers: tuple[Tier, ...]
    where: tuple[Metric, float] | None = None
    available: Metric | None = None
    reserve: Reserve | None = None
    overrides: tuple[Override, ...] = ()
    prediction: Prediction | None = None

    def __post_init__(self) -> None:
        """Refuse tiers out of order, and a reserve with nothing to compare."""
        check_order(self.name, self.tiers)
        for override in self.overrides:
            check_order(self.name, override.tiers)
        if self.reserve is not None and self.available is None:
            message = f"watermark {self.name}: a reserve needs `available`"
            raise ValueError(message)

    @property
    def labels(self) -> LabelSet:
        """The labels of the metrics that this watermark compares."""
        return self.metrics[0].labels

    @property
    def alert(self) -> str:
        """What the names of its alerts begin with: `UllageFilesystemBytes`."""
        return "Ullage" + "".join(part.title() for part in self.name.split("_"))

    @property
    def words(self) -> str:
        """The labels of a target in an alert's description."""
        return ", ".join(f"{name} {{{{ $labels.{name} }}}}" for name in self.labels)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Every metric that this watermark reads."""
        sums = [as_sum(self.used), *([as_sum(self.size)] if self.size is not None else [])]
        found = [metric for each in sums for _, metric in each.terms]
        found += [self.where[0]] if self.where else []
        found += [self.available] if self.available else []
        return tuple(dict.fromkeys(found))

    def targets_of(self, labelsets: Iterable[LabelSet]) -> tuple[str, ...]:
        """Return the targets' names: the values of the `target` labels joined with `/` as PromQL's label_join does."""
        names = self.labels
        places = [names.index(name) for name in self.target]
        return tuple("/".join([labels[place] for place in places]) for labels in labelsets)

    def with_tiers(
        self, tiers: tuple[Tier, ...], reserve: Reserve | None, overrides: tuple[Override, ...]
    ) -> Watermark:
        """Return this watermark with a person's own tiers, reserve and overrides."""
        return replace(self, tiers=tiers, reserve=reserve, overrides=overrides)


class Reading(NamedTuple):
    """A target's ratio now, the size it is a ratio of, and what is available where a reserve is compared."""

    ratio: float
    size: float = 0.0
    available: float | None = None


class Readings(NamedTuple):
    """The readings of many targets, in columns. A ratio is None where `where` does not hold or the size is 0."""

    ratios: Sequence[float | None]
    sizes: Sequence[float]
    available: Sequence[float] | None

    def at(self, row: int) -> Reading | None:
        """Return the reading of one target."""
        ratio = self.ratios[row]
        if ratio is None:
            return None
        return Reading(ratio, self.sizes[row], self.available[row] if self.available is not None else None)


def check_order(name: str, tiers: tuple[Tier, ...]) -> None:
    """Raise ValueError unless there is a tier and each is over the one before it, at both edges."""
    if not tiers:
        message = f"watermark {name}: at least one tier is needed"
        raise ValueError(message)
    for low, high in itertools.pairwise(tiers):
        if not (low.raise_at < high.raise_at and low.clear_at < high.clear_at):
            message = f"watermark {name}: tier {high.name} must be over tier {low.name}, both in raise and in clear"
            raise ValueError(message)


def as_sum(terms: Metric | Sum) -> Sum:
    """Return a lone metric as a sum of one term."""
    return Sum(((1, terms),)) if isinstance(terms, Metric) else terms


class Evaluator:
    """Reads a watermark's ratios from the families of a run, for thousands of targets in little time.

    Which rows of which families belong together is worked out only when a family comes with another `labelsets`
    object than in the round before.
    """

    def __init__(self, watermark: Watermark) -> None:
        self.watermark = watermark
        self._seen: list[Sequence[LabelSet]] = []
        self._rows: dict[Metric, list[int] | None] = {}
        self.targets: tuple[str, ...] = ()
        self.overridden: dict[str, Override] = {}

    def read(self, families: Mapping[Metric, Family]) -> Readings:
        """Return the readings of `targets`; a target is what has a sample of every metric that the watermark reads."""
        watermark = self.watermark
        found = [families.get(metric) for metric in watermark.metrics]
        if any(family is None or not family.values for family in found):
            self._seen, self.targets = [], ()
            return Readings([], [], None)
        present = [family for family in found if family is not None]
        if len(self._seen) != len(present) or any(
            seen is not family.labelsets for seen, family in zip(self._seen, present, strict=True)
        ):
            self._match(present)
        columns = {family.metric: self._column(family) for family in present}
        tops = _add(as_sum(watermark.used), columns)
        bottoms = _add(as_sum(watermark.size), columns) if watermark.size is not None else [1.0] * len(tops)
        if watermark.where is None:
            ratios = [top / bottom if bottom > 0 else None for top, bottom in zip(tops, bottoms, strict=True)]
        else:
            metric, expected = watermark.where
            ratios = [
                top / bottom if bottom > 0 and hold == expected else None
                for top, bottom, hold in zip(tops, bottoms, columns[metric], strict=True)
            ]
        return Readings(ratios, bottoms, columns[watermark.available] if watermark.available is not None else None)

    def _column(self, family: Family) -> Sequence[float]:
        rows = self._rows[family.metric]
        values = family.values
        return values if rows is None else [values[row] for row in rows]

    def _match(self, families: Sequence[Family]) -> None:
        self._seen = [family.labelsets for family in families]
        common = self._seen[0]
        if any(labelsets != common for labelsets in self._seen):
            others = [set(labelsets) for labelsets in self._seen[1:]]
            common = tuple(labels for labels in common if all(labels in other for other in others))
        self._rows = {family.metric: _rows_of(common, family.labelsets) for family in families}
        self.targets = self.watermark.targets_of(common)
        self.overridden = {}
        for override in reversed(self.watermark.overrides):  # the first that matches has the last word
            matching = (target for target in self.targets if fnmatchcase(target, override.target))
            self.overridden.update(dict.fromkeys(matching, override))


def _rows_of(chosen: Sequence[LabelSet], labelsets: Sequence[LabelSet]) -> list[int] | None:
    """Return where each of the chosen stands; None if they are all, in their order."""
    if chosen == labelsets:
        return None
    places = {labels: row for row, labels in enumerate(labelsets)}
    return [places[labels] for labels in chosen]


def _add(terms: Sum, columns: Mapping[Metric, Sequence[float]]) -> Sequence[float]:
    (_, first), *rest = terms.terms
    total = columns[first]
    for sign, metric in rest:
        column = columns[metric]
        if sign > 0:
            total = [a + b for a, b in zip(total, column, strict=True)]
        else:
            total = [a - b for a, b in zip(total, column, strict=True)]
    return total


def step(level: int, reading: Reading, tiers: tuple[Tier, ...], reserve: Reserve | None = None) -> int:
    """Return the next level, 0 being clear: the highest tier that is raised now, or was and is not cleared yet.

    The alert rules say the same in PromQL; a property test compares the two.
    """
    for position in range(len(tiers), 0, -1):
        tier = tiers[position - 1]
        held = level >= position
        if reading.ratio >= (tier.clear_at if held else tier.raise_at):
            return position
        if reserve is not None and position == len(tiers) and _is_short(reading, reserve, held=held):
            return position
    return 0


def _is_short(reading: Reading, reserve: Reserve, *, held: bool) -> bool:
    if reading.available is None or reading.size < reserve.minimum_size:
        return False
    return reading.available < (reserve.clear_at if held else reserve.raise_at)
