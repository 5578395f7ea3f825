"""Logging: structlog to standard error, as logfmt or JSON. Events are fixed phrases, facts are fields."""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

from agent.plain import plain

# structlog imports rich where it finds it, for tracebacks in colours: 5 MiB that only doctor has a use for
_IS_LOADED = sys.modules.setdefault("rich", None) is not None  # type: ignore[arg-type]  # None stands for "not there"
import structlog  # noqa: E402

if not _IS_LOADED:
    del sys.modules["rich"]

Format = Literal["logfmt", "json"]
FORMATS: tuple[Format, ...] = ("logfmt", "json")
LEVELS = ("debug", "info", "warning", "error")
_HARMLESS = bool | int | float | None


def configure(level: str = "info", form: Format = "logfmt", stream: TextIO | None = None) -> None:
    """Set up logging for the whole process."""
    last: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "event"], drop_missing=True, bool_as_flag=False
        )
    )
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.add_log_level,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            _show_plainly,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )


def _show_plainly(_logger: object, _level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Show what is not printable as escapes: names in it are a container's, and somebody reads it at a terminal.

    The ends of an exception's lines are left to the renderers, which escape them too.
    """
    return {key: value if isinstance(value, _HARMLESS) else _plain_lines(str(value)) for key, value in event.items()}


def _plain_lines(text: str) -> str:
    return "\n".join(map(plain, text.split("\n")))
