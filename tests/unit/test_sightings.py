"""First and last sights of findings, over restarts and steps of the clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.sightings import GONE, KEEP, Sighting, Sightings
from agent.statefile import REFRESH
from tests.clock import Clock

A, B = ("orphan-layers", "/a"), ("orphan-layers", "/b")


@pytest.fixture
def clock() -> Clock:
    return Clock(1_700_000_000.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "findings.json"


def restarted(path: Path, clock: Clock) -> Sightings:
    made = Sightings(path, clock)
    made.load()
    return made


def test_the_first_sight_stays_and_the_last_one_follows(clock: Clock) -> None:
    sightings, began = Sightings(None, clock), clock.now
    for _ in range(3):
        sightings.update("layers", {A}, clock.now)
        clock.now += 30
    assert sightings.of("layers") == {A: Sighting(began, began + 60)}
    assert sightings.of("overlay") == {}


def test_what_is_gone_is_remembered_for_a_day(clock: Clock) -> None:
    sightings, began = Sightings(None, clock), clock.now
    sightings.update("layers", {A, B}, clock.now)
    clock.now += 30
    sightings.update("layers", {B}, clock.now)
    assert sightings.of("layers")[A] == Sighting(began, began)
    clock.now += KEEP
    sightings.update("layers", {B}, clock.now)
    assert sightings.of("layers") == {B: Sighting(began, clock.now)}


def test_what_comes_back_within_a_day_is_no_new_one(clock: Clock) -> None:
    sightings, began = Sightings(None, clock), clock.now
    sightings.update("layers", {A}, clock.now)
    sightings.update("layers", set(), clock.now)
    clock.now += 60
    sightings.update("layers", {A}, clock.now)
    assert sightings.of("layers") == {A: Sighting(began, clock.now)}


def test_those_that_are_gone_are_bounded_and_the_newest_stay(clock: Clock) -> None:
    sightings = Sightings(None, clock)
    for number in range(3 * GONE):
        sightings.update("layers", {("orphan-layers", str(number))}, clock.now)
        clock.now += 1
    kept = {int(target) for _, target in sightings.of("layers")}
    assert kept == set(range(2 * GONE - 1, 3 * GONE))


def test_the_first_sight_outlives_a_restart(path: Path, clock: Clock) -> None:
    before, began = Sightings(path, clock), clock.now
    before.update("layers", {A}, clock.now)
    before.save_if_needed()
    clock.now += 60
    after = restarted(path, clock)
    after.update("layers", {A}, clock.now)
    assert after.of("layers") == {A: Sighting(began, clock.now)}


def test_a_finding_of_a_week_ago_is_a_new_one(path: Path, clock: Clock) -> None:
    Sightings(path, clock).save()
    before = Sightings(path, clock)
    before.update("layers", {A}, clock.now)
    before.save()
    clock.now += 7 * KEEP
    after = restarted(path, clock)
    after.update("layers", {A}, clock.now)
    assert after.of("layers") == {A: Sighting(clock.now, clock.now)}


@pytest.mark.parametrize("step", [-3600.0, -10 * 365 * KEEP])
def test_a_clock_that_was_set_back_costs_no_first_sight_of_what_still_holds(
    path: Path, clock: Clock, step: float
) -> None:
    before, began = Sightings(path, clock), clock.now
    before.update("layers", {A, B}, clock.now)
    before.save()
    clock.now += step
    after = restarted(path, clock)
    after.update("layers", {A}, clock.now)
    assert after.of("layers")[A] == Sighting(began, clock.now)
    clock.now = began + 60
    after.update("layers", {A}, clock.now)
    assert after.of("layers")[A] == Sighting(began, clock.now)


def test_what_is_gone_is_forgotten_though_its_time_is_far_ahead(clock: Clock) -> None:
    sightings = Sightings(None, clock)
    sightings.update("layers", {A}, clock.now)
    clock.now -= 2 * KEEP
    sightings.update("layers", set(), clock.now)
    assert sightings.of("layers") == {}


def test_the_file_is_written_when_something_comes_or_goes_and_before_it_is_old(path: Path, clock: Clock) -> None:
    sightings = Sightings(path, clock)
    sightings.update("layers", set(), clock.now)
    sightings.save_if_needed()
    assert not path.exists()
    for found, wait, is_written in (
        ([A], 0, True),
        ([A], 0, False),
        ([], 0, True),
        ([A], 0, True),
        ([A], REFRESH + 1, True),
    ):
        path.unlink(missing_ok=True)
        clock.now += wait
        sightings.update("layers", set(found), clock.now)
        sightings.save_if_needed()
        assert path.exists() == is_written, (found, wait)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"version": 2, "findings": {}}',
        b'{"version": 1}',
        b'{"version": 1, "findings": {"layers": 1}}',
        b'{"version": 1, "findings": {"layers": [["a", "b", "x", 1]]}}',
        b'{"version": 1, "findings": {"layers": [["a", "b", 1]]}}',
    ],
)
def test_a_damaged_file_is_set_aside_and_not_fatal(path: Path, clock: Clock, content: bytes) -> None:
    path.write_bytes(content)
    sightings = restarted(path, clock)
    assert sightings.of("layers") == {}
    assert path.with_suffix(".damaged").read_bytes() == content
    sightings.update("layers", {A}, clock.now)
    sightings.save_if_needed()
    assert restarted(path, clock).of("layers") == {A: Sighting(clock.now, clock.now)}
