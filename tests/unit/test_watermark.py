from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.metric import Family, Metric
from agent.watermark import Evaluator, Override, Prediction, Reading, Reserve, Tier, Watermark, step

GIB = 1 << 30
WARNING = Tier("warning", "warning", 0.80, 0.75)
CRITICAL = Tier("critical", "critical", 0.90, 0.85)
TIERS = (WARNING, CRITICAL)
FILES = Metric("ullage_x_files", "Files.", ("mountpoint",))
FREE = Metric("ullage_x_files_free", "Free.", ("mountpoint",))
READONLY = Metric("ullage_x_readonly", "Read-only.", ("mountpoint",))


def walk(ratios: list[float]) -> list[int]:
    level, levels = 0, []
    for ratio in ratios:
        level = step(level, Reading(ratio), TIERS)
        levels.append(level)
    return levels


def test_a_level_is_raised_at_raise_held_through_the_band_and_cleared_below_clear() -> None:
    assert walk([0.7, 0.79, 0.80, 0.76, 0.75, 0.7499, 0.79]) == [0, 0, 1, 1, 1, 0, 0]


def test_a_jump_goes_over_tiers_both_ways() -> None:
    assert walk([0.95, 0.86, 0.85, 0.849, 0.2, 0.95, 0.1]) == [2, 2, 2, 1, 0, 2, 0]


@given(st.lists(st.floats(0, 1.2)))
def test_a_level_never_changes_inside_a_band(ratios: list[float]) -> None:
    level = 0
    for ratio in ratios:
        after = step(level, Reading(ratio), TIERS)
        if after > level:
            assert ratio >= TIERS[after - 1].raise_at
        if after < level:
            assert ratio < TIERS[level - 1].clear_at
        level = after


def test_a_reserve_is_critical_whatever_the_ratio_and_clears_later() -> None:
    reserve = Reserve.of(10 * GIB, TIERS)

    def at(level: int, available: float, size: float = 60.0) -> int:
        reading = Reading(1 - available / size, size * GIB, available * GIB)
        return step(level, reading, TIERS, reserve)

    assert at(0, 10.1) == 1
    assert at(1, 9.9) == 2
    assert at(2, 11.9) == 2
    assert at(2, 12.1) == 1


def test_a_reserve_does_not_concern_small_filesystems() -> None:
    reserve = Reserve.of(10 * GIB, TIERS)
    assert step(0, Reading(0.1, 5 * GIB, 4 * GIB), TIERS, reserve) == 0


@example(size=37, first=0.7685392991650134, band=0.001)
@given(size=st.integers(1, 10**16), first=st.floats(0.1, 0.98), band=st.floats(0.001, 0.09))
def test_a_reserve_is_never_crossed_before_the_first_tier(size: int, first: float, band: float) -> None:
    tiers = (Tier("warning", "warning", first, first - band), Tier("critical", "critical", 1.0, 0.999))
    reserve = Reserve.of(size, tiers)
    for available in (reserve.raise_at, reserve.clear_at):
        ratio = 1 - available / reserve.minimum_size
        edge = tiers[0].raise_at if available == reserve.raise_at else tiers[0].clear_at
        assert ratio >= edge - 1e-9


@pytest.mark.parametrize(("up", "down"), [(0.8, 0.8), (0.8, 0.9), (1.1, 0.9), (0.8, 0.0), (0.8, -0.1)])
def test_a_tier_without_a_band_is_refused(up: float, down: float) -> None:
    with pytest.raises(ValueError, match="expected 0 < clear < raise <= 1"):
        Tier("warning", "warning", up, down)


@pytest.mark.parametrize(
    "make_it",
    [
        lambda: Prediction(raise_within=8 * 3600.0),
        lambda: Prediction(raise_within=0.0),
        lambda: Prediction(clear_below=0.5),
        lambda: Prediction(raise_from=1.0),
    ],
)
def test_a_prediction_without_a_band_is_refused(make_it: Callable[[], Prediction]) -> None:
    with pytest.raises(ValueError, match="expected 0 < raise_within < clear_within"):
        make_it()


def make(**changes: object) -> Watermark:
    given_: dict[str, object] = {
        "name": "x",
        "summary": "X.",
        "used": FILES - FREE,
        "size": FILES,
        "target": ("mountpoint",),
        "tiers": TIERS,
        "where": (READONLY, 0.0),
    }
    return Watermark(**(given_ | changes))  # type: ignore[arg-type]  # a test's shorthand


def test_tiers_out_of_order_are_refused_in_watermarks_and_overrides() -> None:
    with pytest.raises(ValueError, match="tier warning must be over tier critical"):
        make(tiers=(CRITICAL, WARNING))
    with pytest.raises(ValueError, match="must be over"):
        make(overrides=(Override("/", (CRITICAL, WARNING)),))
    with pytest.raises(ValueError, match="at least one tier"):
        make(tiers=())
    with pytest.raises(ValueError, match="needs `available`"):
        make(reserve=Reserve.of(1, TIERS))


def families(values: dict[Metric, dict[str, float]]) -> dict[Metric, Family]:
    return {m: Family(m, tuple((target,) for target in rows), list(rows.values())) for m, rows in values.items()}


def test_a_ratio_needs_every_sample_a_size_and_the_condition() -> None:
    evaluator = Evaluator(make())
    read = evaluator.read(
        families(
            {
                FILES: {"a": 10, "b": 0, "c": 10, "d": 10},
                FREE: {"d": 1, "a": 4, "b": 0},
                READONLY: {"a": 0, "b": 0, "c": 0, "d": 1},
            }
        )
    )
    assert {target: read.at(row) for row, target in enumerate(evaluator.targets)} == {
        "a": Reading(0.6, 10.0),
        "b": None,
        "d": None,
    }
    assert evaluator.read(families({FILES: {"a": 1}})).ratios == []
    assert evaluator.targets == ()


ROWS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 100), max_size=6)


@given(st.lists(st.tuples(ROWS, ROWS, ROWS), min_size=1, max_size=5))
def test_an_evaluator_that_is_used_again_reads_what_a_new_one_reads(
    rounds: list[tuple[dict[str, float], dict[str, float], dict[str, float]]],
) -> None:
    used = Evaluator(make())
    for files, free, readonly in rounds:
        given_ = families({FILES: files, FREE: free, READONLY: readonly})
        for _ in range(2):  # the second time with the very same label sets
            new = Evaluator(make())
            assert used.read(given_) == new.read(given_)
            assert used.targets == new.targets
            for target, ratio in zip(new.targets, new.read(given_).ratios, strict=True):
                is_read = readonly[target] == 0 and files[target] > 0
                expected = (files[target] - free[target]) / files[target] if is_read else None
                assert ratio == expected


def test_the_first_override_that_matches_has_the_last_word() -> None:
    one, two = Override("/data/*", TIERS), Override("/*", TIERS)
    evaluator = Evaluator(make(overrides=(one, two)))
    rows: dict[str, float] = {"/data/1": 1, "/": 1, "/x": 1}
    evaluator.read(families({FILES: rows, FREE: rows, READONLY: dict.fromkeys(rows, 0)}))
    assert evaluator.overridden == {"/data/1": one, "/": two, "/x": two}


def test_a_sum_reads_as_promql() -> None:
    assert (FILES - FREE + READONLY).promql() == "(ullage_x_files - ullage_x_files_free + ullage_x_readonly)"
    assert (FILES + FREE - READONLY).promql() == "(ullage_x_files + ullage_x_files_free - ullage_x_readonly)"
