"""State files: written when there is need, tried again when that fails, and whatever is left of one is no harm."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent import latches, sightings, statefile
from agent.latches import Latches
from agent.sightings import Sightings
from collectors import kernel_counts, layercount, layers, qgroup, volume_events
from collectors.kernel_counts import Counts, Tally
from collectors.volume_events import Kept
from tests.clock import Clock

ROOT = Path(__file__).resolve().parents[2]
Kind = tuple[Callable[[Any], object], Mapping[str, Any]]


def gathered(keeper: statefile.Keeper) -> Mapping[str, Any]:
    return keeper._gather()


def of_latches() -> Mapping[str, Any]:
    made = Latches(None)
    made.update("inodes", {"/": 2, '/a "b"\n\udcff': 1})
    return gathered(made._keeper)


def of_sightings() -> Mapping[str, Any]:
    made = Sightings(None)
    made.update("layers", {("layers-orphaned", "/var/lib/docker/overlay2/é")}, 1795473853.25)
    return gathered(made._keeper)


def of_volumes() -> Mapping[str, Any]:
    return volume_events.encode({"/run/docker.sock": Kept(5, ((5, "create", "\udc80\n"),), ("\udc80\n", '"'))})


# by the module that reads the file: how, and what its like holds
KINDS: dict[str, Kind] = {
    "agent/latches.py": (latches._decode, of_latches()),
    "agent/sightings.py": (sightings._decode, of_sightings()),
    "collectors/kernel_counts.py": (
        kernel_counts._decode,
        kernel_counts.encode(
            Counts(
                *("0b5f7c2e-62c8-4a39-8b0d-6b3a6a0f6f11", 812, 7, 0),
                events={("ext4", "error", "loop0"): Tally(2, 1795473853, 811, b"EXT4-fs error")},
                killed={("default", "web", "nginx", "4f1e"): Tally(1, 1795473853, 810, b"Out of memory")},
            )
        ),
    ),
    "collectors/layercount.py": (
        layercount._decode,
        {"stores": {"/var/lib/docker/overlay2": {"4f1e": [12, 1795473853, 9, 4096, 8, 0], "l": [7, 5, 1, None, 1, 0]}}},
    ),
    "collectors/layers.py": (
        layers._decode,
        {"unknown": {"/var/lib/docker/overlay2": [["4f1e\udc80", 12, 1795473853.5]]}},
    ),
    "collectors/qgroup.py": (qgroup._decode, {"had_quota": {"3f3f2e7c-8cb7-4c7e-9d5e-0a4e3b6f2f11": 1795473853.5}}),
    "collectors/volume_events.py": (volume_events._decode, of_volumes()),
}


@pytest.fixture
def clock() -> Clock:
    return Clock()


def modules_with_state() -> Iterator[str]:
    for package in ("agent", "collectors"):
        for path in (ROOT / package).rglob("*.py"):
            if re.search(r"\bstatefile\.load\(", path.read_text()):
                yield str(path.relative_to(ROOT))


def test_every_kind_of_state_file_is_tried_here() -> None:
    assert sorted(modules_with_state()) == sorted(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_at_any_byte_is_set_aside_and_a_whole_one_is_read(kind: str, tmp_path: Path) -> None:
    decode, data = KINDS[kind]
    path = tmp_path / "state.json"
    statefile.write(path, 1, data)
    whole = path.read_bytes()
    expected = statefile.load(path, 1, decode)
    assert expected
    with capture_logs() as logs:
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            assert statefile.load(path, 1, decode) is None, whole[:length]
            assert path.with_suffix(".damaged").read_bytes() == whole[:length]
            assert not path.exists()
    assert {entry["event"] for entry in logs} == {"state damaged, set aside"}
    path.write_bytes(whole)
    assert statefile.load(path, 1, decode) == expected


def test_what_could_not_be_written_is_tried_again_and_told_once(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "state" / "x.json"
    (tmp_path / "state").write_text("no directory")
    keeper = statefile.Keeper(path, 1, lambda: {"x": 5}, clock)
    keeper.is_dirty = True
    with capture_logs() as logs:
        for _ in range(3):
            keeper.save_if_needed()
        assert [entry["event"] for entry in logs] == ["state not saved"]
        (tmp_path / "state").unlink()
        for _ in range(3):
            keeper.save_if_needed()
    assert [entry["event"] for entry in logs] == ["state not saved", "state saved again"]
    assert statefile.load(path, 1, dict) == {"version": 1, "x": 5}


@pytest.mark.parametrize("step", [-1.0, -3600.0])
def test_a_file_with_times_is_written_anew_after_the_clock_was_set_back(
    tmp_path: Path, clock: Clock, step: float
) -> None:
    path = tmp_path / "x.json"
    keeper = statefile.Keeper(path, 1, lambda: {"at": clock.now}, clock)
    keeper.save()
    keeper.save_if_needed(is_aging=True)
    clock.now += step
    keeper.save_if_needed(is_aging=True)
    assert statefile.load(path, 1, lambda data: data["at"]) == clock.now


def test_levels_outlive_a_restart_after_the_clock_was_set_back(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "watermarks.json"
    first = Latches(path, clock)
    first.update("inodes", {"/": 2})
    first.save_if_needed()
    clock.now -= 3600
    first.update("inodes", {"/": 2})
    first.save_if_needed()
    second = Latches(path, clock)
    second.load()
    assert second.held("inodes") == {"/": 2}
