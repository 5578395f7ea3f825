"""A small JSON file that outlives the agent: written by atomic rename, and a damaged one is set aside, never fatal."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import structlog

LIMIT = 16 << 20  # bytes
T = TypeVar("T")


def load(path: Path, version: int, decode: Callable[[Any], T]) -> T | None:
    """Return what `decode` makes of the file's object, None where there is none, or none of this version.

    `decode` may raise what a JSON of another shape makes it raise.
    """
    log = structlog.get_logger()
    try:
        with open(path, "rb") as file:
            return decode(_checked(file.read(LIMIT + 1), version))
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("state unreadable", path=str(path), error=error.strerror)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
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


def save(path: Path, version: int, data: Mapping[str, Any]) -> None:
    """Write the file. Failure is logged; what it would have held stays in memory."""
    text = json.dumps({"version": version, **data}, sort_keys=True)
    temporary = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        structlog.get_logger().warning("state not saved", path=str(path), error=error.strerror)
