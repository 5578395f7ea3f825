"""The soak's verdict on numbers: a leak below noise is found, and what only swings, fills or shrinks is flat."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest

from tests.soak.verdict import LIMITS, WARM_UP, Point, judge, slope, table, thinned


def points(value: Callable[[float], float], seconds: int = 300) -> list[Point]:
    return [(float(second), value(float(second))) for second in range(seconds)]


def verdict(measure: str, values: Sequence[Point]) -> bool:
    (judged,) = judge({measure: values})
    return judged.is_flat


LEVEL = {"memory": 40.0, "descriptors": 60.0, "threads": 16.0, "series": 2000.0}
LEAK = {"memory": 2.0, "descriptors": 5.0, "threads": 2.0, "series": 60.0}  # over what follows the warm-up


@pytest.mark.parametrize("measure", LIMITS)
def test_a_leak_is_found_below_noise_and_what_only_swings_is_flat(measure: str) -> None:
    chance = random.Random(measure)
    level, leak = LEVEL[measure], LEAK[measure]

    def noisy(_second: float) -> float:
        wild = level / 2 if chance.random() < 0.1 else 0.0  # a scan that holds more for a while
        return level + wild + chance.gauss(0, level / 50)

    assert verdict(measure, points(noisy))
    assert verdict(measure, points(lambda second: level + leak * math.sin(second / 7)))
    assert not verdict(measure, points(lambda second: noisy(second) + leak * second / (300 * (1 - WARM_UP))))


@pytest.mark.parametrize("measure", LIMITS)
def test_what_fills_during_the_warm_up_or_shrinks_is_flat(measure: str) -> None:
    level = LEVEL[measure]
    assert verdict(measure, points(lambda second: level * min(1.0, 0.5 + second / 120)))
    assert verdict(measure, points(lambda second: level * (1 - second / 1000)))


def test_the_slope_is_the_median_of_all_pairs() -> None:
    assert slope([(0, 1), (1, 3), (2, 5), (3, 7), (4, 100)]) == 2


def test_a_long_series_is_judged_by_medians_of_its_parts() -> None:
    thin = thinned([(float(second), 5.0) for second in range(10_000)])
    assert len(thin) == 240
    assert {value for _, value in thin} == {5.0}


def test_too_little_is_no_verdict() -> None:
    with pytest.raises(ValueError, match="too few"):
        judge({"memory": [(0.0, 1.0), (1.0, 1.0)]})


def test_the_table_says_what_grows() -> None:
    text = table(judge({"threads": points(lambda second: second)}))
    assert "| threads |" in text
    assert text.endswith("| GROWS |")
