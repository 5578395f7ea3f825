"""Logging: structlog to standard error, as logfmt or JSON. Events are fixed phrases, facts are fields."""

from __future__ import annotations

import logging
import sys
from types import ModuleType
from typing import Literal, TextIO

from agent.plain import plain

# What structlog imports and only others have a use for: rich for tracebacks in colours where it finds it, 5 MiB, and
# asyncio for methods that are coroutines, 2 MiB. None stands for "not there".
_STAND_INS: dict[str, ModuleType | None] = {"rich": None, "asyncio": ModuleType("asyncio")}
_ABSENT = _STAND_INS.keys() - sys.modules.keys()
sys.modules |= {name: _STAND_INS[name] for name in _ABSENT}  # type: ignore[misc]
import structlog  # noqa: E402

for _name in _ABSENT:
    del sys.modules[_name]

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
