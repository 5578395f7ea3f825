"""Cases for `promtool test rules` of predictions: trends of a ratio, a sample a minute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent.predictions import alert_name
from agent.watermark import Watermark
from tests.promtool_cases import STALE, Timeline, Values, is_firing, length, sample_series


def rising(start: float, per_hour: float, minutes: int) -> list[tuple[float, int]]:
    """Return a timeline that begins at a ratio and rises so much an hour."""
    return [(start + per_hour * minute / 60, 1) for minute in range(minutes)]


def trend_cases(watermark: Watermark, values: Values) -> list[dict[str, Any]]:
    """Return the cases of a watermark's prediction, as `agent.watermark.Prediction` has it by default."""
    if watermark.prediction is None:
        return []
    alert = alert_name(watermark)

    def case(name: str, timeline: Timeline, checks: Mapping[int, bool]) -> dict[str, Any]:
        return {
            "name": f"{alert}: {name}",
            "interval": "1m",
            "input_series": sample_series(watermark, "node-1", "/data", timeline, values),
            "promql_expr_test": [
                is_firing(alert, minute, ["node-1"] if is_wanted else []) for minute, is_wanted in checks.items()
            ],
        }

    # full in 1.1 hours at the end
    fast = [(0.3, 60), *rising(0.3, 0.3, 75)]
    # on from there: full in 4.8 hours at the end
    slow = rising(0.675, 0.05, 100)
    now, later = length(fast), length(fast) + length(slow)
    shorter: Sequence[tuple[float, int]] = [(0.52, 60), *rising(0.52, 0.24, 61)]
    return [
        case("raised four hours before it is full", shorter, {59: False, 80: False, 120: True}),
        case("never raised in the band", rising(0.6, 0.05, 180), {60: False, 120: False, 179: False}),
        case(
            "held in the band, resolved without a trend, not raised again in the band",
            [*fast, *slow, (0.758, 120), *rising(0.758, 0.05, 45)],
            {now - 1: True, now + 60: True, later - 1: True, later + 119: False, later + 160: False},
        ),
        case(
            "never raised while less than half is used", [(0.05, 60), *rising(0.05, 0.3, 80)], {100: False, 139: False}
        ),
        case(
            "a jump is no trend",
            [(0.4, 70), (0.7, 60)],
            {73: False, 76: False, 80: False, 86: False, 91: False, 100: False, 129: False},
        ),
        case("a new target has no trend yet", rising(0.6, 0.5, 30), {10: False, 20: False, 29: False}),
        case(
            "a scrape gap and a restart of the agent in the band",
            [*fast, *slow[:40], (None, 4), *slow[44:60], (STALE, 3), *slow[63:]],
            {now + 39: True, now + 42: True, now + 45: True, now + 61: True, now + 64: True, later - 1: True},
        ),
        case("resolved when its target is gone", [*fast, (STALE, 30)], {now - 1: True, now + 29: False}),
    ]
