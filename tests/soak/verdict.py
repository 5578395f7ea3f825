"""Whether what a process holds is flat: the slope of each measure, and how much it grew by it.

Theil-Sen's slope, the median of the slopes of all pairs of points, does not mind a quarter of them being wild: a scan
that holds memory for a while, a helper that is just replaced. What comes before the warm-up's end is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

WARM_UP = 0.5  # of the whole time: until then caches fill, which takes minutes
POINTS = 240  # medians of so many parts of the time: pairs are the square of it


@dataclass(frozen=True, slots=True)
class Limit:
    """How much a measure may grow from the warm-up's end on: so much, or so much of its median if that is more."""

    unit: str
    growth: float
    ratio: float = 0.0


LIMITS: Mapping[str, Limit] = {
    "memory": Limit("MiB", 1.0, 0.03),
    "descriptors": Limit("", 3.0),
    "threads": Limit("", 1.0),
    "series": Limit("", 10.0, 0.02),
}

Point = tuple[float, float]  # second, value


@dataclass(frozen=True, slots=True)
class Verdict:
    """One measure over one soak; `slope` is for an hour, `growth` over the time after the warm-up."""

    measure: str
    median: float
    slope: float
    growth: float
    most: float
    unit: str

    @property
    def is_flat(self) -> bool:
        """Whether it grew by no more than it may. What shrinks is flat."""
        return self.growth <= self.most


def slope(points: Sequence[Point]) -> float:
    """Return Theil-Sen's slope; times must differ."""
    return statistics.median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2))


def thinned(points: Sequence[Point], count: int = POINTS) -> list[Point]:
    """Return the medians of so many equal parts of a long series of points, in order."""
    if len(points) <= count:
        return list(points)
    edges = [round(number * len(points) / count) for number in range(count + 1)]
    parts = [points[begin:end] for begin, end in pairwise(edges)]
    return [(statistics.median(x for x, _ in part), statistics.median(y for _, y in part)) for part in parts]


def judge(measures: Mapping[str, Sequence[Point]]) -> list[Verdict]:
    """Return a verdict for each measure, by the limits of its name. Raises ValueError when there is too little."""
    verdicts = []
    for name, points in measures.items():
        limit = LIMITS[name]
        begin = points[0][0] + WARM_UP * (points[-1][0] - points[0][0]) if points else 0.0
        warm = thinned([point for point in points if point[0] >= begin])
        if len(warm) < 10:
            raise ValueError(f"{name}: {len(warm)} points after the warm-up are too few")
        median = statistics.median(value for _, value in warm)
        by_second = slope(warm)
        growth = by_second * (warm[-1][0] - warm[0][0])
        verdicts.append(
            Verdict(name, median, 3600 * by_second, growth, max(limit.growth, limit.ratio * median), limit.unit)
        )
    return verdicts


def table(verdicts: Sequence[Verdict]) -> str:
    """Return the verdicts as a table of Markdown."""
    lines = [
        "| measure | median | slope per hour | growth | limit | verdict |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for each in verdicts:
        unit = f" {each.unit}" if each.unit else ""
        numbers = (f"{value:,.1f}{unit}" for value in (each.median, each.slope, each.growth, each.most))
        lines.append(f"| {each.measure} | {' | '.join(numbers)} | {'flat' if each.is_flat else 'GROWS'} |")
    return "\n".join(lines)
