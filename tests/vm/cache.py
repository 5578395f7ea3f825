"""What the lab downloads or builds, kept in the user's cache from one session to the next."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def shelf(name: str) -> Path:
    """Return one of our directories in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ullage" / name


def default_cache() -> Path:
    """Return the lab's directory in the user's cache."""
    return shelf("lab")


def keep(shelf: Path, pattern: str, make: Callable[[Path], str]) -> Path:
    """Return the newest directory of a shelf whose name matches; `make` one, which returns its name, if there is none.

    Sessions at the same time make it once. What was cut short is begun anew, and never matches.
    """
    shelf.mkdir(parents=True, exist_ok=True)
    with (shelf / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = list(shelf.glob(pattern))
        if found:
            return max(found, key=lambda path: path.stat().st_mtime)
        unfinished = shelf / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        return unfinished.rename(shelf / make(unfinished))
