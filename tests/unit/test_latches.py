from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.latches import TOO_OLD, Latches
from tests.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "watermarks.json"


def test_levels_outlive_a_restart(path: Path, clock: Clock) -> None:
    first = Latches(path, clock)
    first.update("inodes", {"/": 2, "/data": 0})
    first.save_if_needed()
    second = Latches(path, clock)
    second.load()
    assert second.held("inodes")["/"] == 2
    assert "/data" not in second.held("inodes")


def test_levels_that_are_too_old_mean_nothing(path: Path, clock: Clock) -> None:
    first = Latches(path, clock)
    first.update("inodes", {"/": 2})
    first.save()
    clock.now += TOO_OLD
    second = Latches(path, clock)
    second.load()
    assert "/" not in second.held("inodes")


def test_a_clock_that_was_set_back_makes_levels_unknown(path: Path, clock: Clock) -> None:
    first = Latches(path, clock)
    first.update("inodes", {"/": 2})
    first.save()
    clock.now -= 10
    second = Latches(path, clock)
    second.load()
    assert "/" not in second.held("inodes")


def test_long_steady_levels_are_written_again_before_they_are_too_old(path: Path, clock: Clock) -> None:
    first = Latches(path, clock)
    for _ in range(int(3 * TOO_OLD / 60)):
        clock.now += 60
        first.update("inodes", {"/": 1})
        first.save_if_needed()
    second = Latches(path, clock)
    second.load()
    assert second.held("inodes")["/"] == 1


def test_nothing_is_written_while_nothing_changes(path: Path, clock: Clock) -> None:
    latches = Latches(path, clock)
    latches.update("inodes", {"/": 0})
    latches.save_if_needed()
    assert not path.exists()
    latches.update("inodes", {"/": 1})
    latches.save_if_needed()
    written = path.stat().st_ino
    latches.update("inodes", {"/": 1})
    latches.save_if_needed()
    assert path.stat().st_ino == written


def test_a_target_unseen_for_a_while_keeps_its_level_then_loses_it(clock: Clock) -> None:
    latches = Latches(None, clock)
    latches.update("inodes", {"/": 1, "/mnt": 1})
    clock.now += 60
    latches.update("inodes", {"/": 1})
    assert latches.held("inodes")["/mnt"] == 1
    clock.now += TOO_OLD
    latches.update("inodes", {"/": 1})
    assert "/mnt" not in latches.held("inodes")
    assert latches.held("inodes")["/"] == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"version": 2, "levels": {}}',
        b'{"version": 1}',
        b'{"version": 1, "levels": {"inodes": []}}',
        b'{"version": 1, "levels": {"inodes": {"/": 1}}}',
        b'{"version": 1, "levels": {"inodes": {"/": ["x", 1]}}}',
    ],
)
def test_a_damaged_file_is_set_aside_and_not_fatal(path: Path, clock: Clock, content: bytes) -> None:
    path.write_bytes(content)
    latches = Latches(path, clock)
    latches.load()
    assert "/" not in latches.held("inodes")
    assert not path.exists()
    assert path.with_suffix(".damaged").read_bytes() == content


def test_a_directory_that_cannot_be_written_costs_only_the_file(tmp_path: Path, clock: Clock) -> None:
    latches = Latches(tmp_path / "absent" / "watermarks.json", clock)
    latches.load()
    latches.update("inodes", {"/": 1})
    latches.save()
    assert latches.held("inodes")["/"] == 1


def test_the_file_is_plain_json(path: Path, clock: Clock) -> None:
    latches = Latches(path, clock)
    latches.update("inodes", {"/é\udcff": 1})
    latches.save()
    assert json.loads(path.read_bytes())["version"] == 1
