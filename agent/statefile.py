"""A small JSON file that outlives the agent: written by atomic rename, and a damaged one is set aside, never fatal.

A command that only looks around runs beside an agent whose files these are: it changes none of them, see `untouched`.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import structlog

from agent.files import open_regular

LIMIT = 16 << 20  # bytes
REFRESH = 600.0  # seconds between writes of a file whose times must not grow old, when nothing else changes
T = TypeVar("T")
_is_untouched = threading.Event()


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Have this process change no state file for the time of a block, whichever thread would."""
    _is_untouched.set()
    try:
        yield
    finally:
        _is_untouched.clear()


def load(path: Path, version: int, decode: Callable[[Any], T]) -> T | None:
    """Return what `decode` makes of the file's object, None where there is none, or none of this version.

    `decode` may raise what a JSON of another shape makes it raise.
    """
    log = structlog.get_logger()
    try:
        with open(open_regular(str(path)), "rb") as file:
            return decode(_checked(file.read(LIMIT + 1), version))
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("state unreadable", path=str(path), error=error.strerror)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        if _is_untouched.is_set():
            log.warning("state damaged", path=str(path), error=str(error)[:500])
            return None
        aside = path.with_suffix(".damaged")
        with contextlib.suppress(OSError):
            os.replace(path, aside)
        log.warning("state damaged, set aside", path=str(aside), error=str(error)[:500])
    return None


def _checked(text: bytes, version: int) -> Any:
    if len(text) > LIMIT:
        raise ValueError(f"more than {LIMIT} bytes")
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("version") != version:
        raise ValueError(f"expected an object of version {version}")
    return data


def write(path: Path, version: int, data: Mapping[str, Any]) -> None:
    """Write the file by atomic rename; raises OSError."""
    text = json.dumps({"version": version, **data}, sort_keys=True)
    temporary = path.with_suffix(".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, "w", encoding="utf-8", opener=_open_own) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _open_own(path: str, flags: int) -> int:
    """Open a file to write, none behind a link, and no pipe that nobody reads."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


class Keeper:
    """Writes a state file when there is need: `is_dirty` is set by whoever changes what `gather` returns.

    `gather` returns what the file is to hold; it is called from the thread that writes. No path: nothing is written.
    What could not be written is tried again whenever there might be need.
    """

    def __init__(
        self,
        path: Path | None,
        version: int,
        gather: Callable[[], Mapping[str, Any]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.is_dirty = False
        self._path = path
        self._version = version
        self._gather = gather
        self._clock = clock
        self._saved_at = clock()
        self._is_failing = False

    def save_if_needed(self, *, is_aging: bool = False) -> None:
        """Write after a change; every ten minutes too while what the file holds would become too old (`is_aging`)."""
        # after a clock was set back the times in the file lie ahead, and mean nothing to the next agent
        is_old = not 0 <= self._clock() - self._saved_at <= REFRESH
        if self.is_dirty or (is_aging and is_old):
            self.save()

    def save(self) -> None:
        """Write by atomic rename. Failure is logged once, until it is over."""
        if self._path is None or _is_untouched.is_set():
            return
        self.is_dirty = False  # before the look: a change during it may be in the file or not, and is written again
        self._saved_at = self._clock()
        log = structlog.get_logger()
        try:
            write(self._path, self._version, self._gather())
        except OSError as error:
            self.is_dirty = True
            if not self._is_failing:
                log.warning("state not saved", path=str(self._path), error=error.strerror)
            self._is_failing = True
        else:
            if self._is_failing:
                log.info("state saved again", path=str(self._path))
            self._is_failing = False
