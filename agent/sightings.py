"""When each finding was first and last seen, kept over restarts in one small JSON file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from heapq import nlargest
from pathlib import Path
from typing import Any, NamedTuple

from agent import statefile

KEEP = 86_400.0  # seconds for which a finding that is no more is remembered
GONE = 100  # of those, for each collector
_VERSION = 1

Key = tuple[str, str]  # the finding's id and its target


class Sighting(NamedTuple):
    """Unix times. `first` may be after `last` where the clock was set back in between."""

    first: float
    last: float


class Sightings:
    """Sightings by collector, finding and target. Thread-safe. One that comes back in time keeps its first sight."""

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, dict[Key, Sighting]] = {}
        self._held: dict[str, AbstractSet[Key]] = {}
        self._keeper = statefile.Keeper(path, _VERSION, self._gather, clock)

    def load(self) -> None:
        """Read the file. What is too old in it is forgotten; a damaged one is set aside, never fatal."""
        loaded = statefile.load(self._path, _VERSION, _decode) if self._path is not None else None
        now = self._clock()
        with self._lock:
            for collector, seen in (loaded or {}).items():
                self._seen[collector] = {key: each for key, each in seen.items() if now - each.last < KEEP}

    def of(self, collector: str) -> Mapping[Key, Sighting]:
        """Return the sightings of a collector's findings: of those that hold, and of those that were there."""
        with self._lock:
            return self._seen.get(collector, {})

    def update(self, collector: str, held: AbstractSet[Key], now: float) -> None:
        """Take what a run has found and so holds; `now` is when it ended."""
        with self._lock:
            before = self._seen.get(collector, {})
            # a clock that was set far back or forth says nothing about how old the others are
            gone = [key for key, each in before.items() if key not in held and abs(now - each.last) < KEEP]
            kept = nlargest(GONE, gone, key=lambda key: before[key].last)
            self._seen[collector] = {key: before[key] for key in kept} | {
                key: Sighting(before[key].first if key in before else now, now) for key in held
            }
            self._keeper.is_dirty |= held != self._held.get(collector, set())
            self._held[collector] = held

    def save_if_needed(self) -> None:
        """Write the file when a finding has come or gone, or when its times would become too old."""
        self._keeper.save_if_needed(is_aging=any(self._held.values()))

    def save(self) -> None:
        """Write the file by atomic rename. Failure is logged; the sightings stay in memory."""
        self._keeper.save()

    def _gather(self) -> Mapping[str, Any]:
        with self._lock:
            seen = dict(self._seen)
        return {
            "findings": {
                collector: [[*key, *each] for key, each in kept.items()] for collector, kept in seen.items() if kept
            }
        }


def _decode(data: Any) -> dict[str, dict[Key, Sighting]]:
    return {
        str(collector): {
            (str(finding), str(target)): Sighting(float(first), float(last)) for finding, target, first, last in kept
        }
        for collector, kept in data["findings"].items()
    }
