"""The state of the watermarks, kept over restarts in one small JSON file.

The alerts' own hysteresis rests in Prometheus on raw ratios; this state serves `ullage_watermark_level`, the status
page and hosts that have no Prometheus.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agent import statefile

TOO_OLD = 3600.0  # seconds, well over statefile.REFRESH; after that a level says nothing about now
_VERSION = 1


class Latches:
    """Levels by watermark and target. Thread-safe. A target that is not seen for an hour loses its level."""

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._levels: dict[str, dict[str, tuple[int, float]]] = {}
        self._keeper = statefile.Keeper(path, _VERSION, self._gather, clock)

    def load(self) -> None:
        """Read the file. One that is too old is ignored; a damaged one is set aside, never fatal."""
        if self._path is None:
            return
        levels = statefile.load(self._path, _VERSION, _decode) or {}
        now = self._clock()
        with self._lock:
            for watermark, targets in levels.items():
                kept = {target: kept for target, kept in targets.items() if 0 <= now - kept[1] < TOO_OLD}
                self._levels[watermark] = kept

    def held(self, watermark: str) -> dict[str, int]:
        """Return the levels over 0 by target."""
        with self._lock:
            return {target: level for target, (level, _) in self._levels.get(watermark, {}).items()}

    def update(self, watermark: str, levels: Mapping[str, int]) -> None:
        """Take the levels of one round, 0 for those now clear. Targets that it did not see keep theirs for an hour."""
        now = self._clock()
        with self._lock:
            before = self._levels.get(watermark, {})
            if not before and not levels:
                return
            after = {target: kept for target, kept in before.items() if now - kept[1] < TOO_OLD}
            after.update({target: (level, now) for target, level in levels.items() if level or target in before})
            after = {target: kept for target, kept in after.items() if kept[0]}
            self._keeper.is_dirty |= {t: k[0] for t, k in after.items()} != {t: k[0] for t, k in before.items()}
            self._levels[watermark] = after

    def save_if_needed(self) -> None:
        """Write the file when a level has changed, or when its times would become too old."""
        with self._lock:
            is_aging = any(self._levels.values())
        self._keeper.save_if_needed(is_aging=is_aging)

    def save(self) -> None:
        """Write the file by atomic rename. Failure is logged; the levels stay in memory."""
        self._keeper.save()

    def _gather(self) -> Mapping[str, Any]:
        with self._lock:
            return {"levels": {watermark: dict(targets) for watermark, targets in self._levels.items()}}


def _decode(data: Any) -> dict[str, dict[str, tuple[int, float]]]:
    return {
        str(watermark): {str(target): (int(level), float(seen)) for target, (level, seen) in targets.items()}
        for watermark, targets in data["levels"].items()
    }
