"""Logging: structlog to standard error, as logfmt or JSON. Events are fixed phrases, facts are fields."""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

# structlog imports rich where it finds it, for tracebacks in colours: 5 MiB that only doctor has a use for
_IS_LOADED = sys.modules.setdefault("rich", None) is not None  # type: ignore[arg-type]  # None stands for "not there"
import structlog  # noqa: E402

if not _IS_LOADED:
    del sys.modules["rich"]

Format = Literal["logfmt", "json"]
FORMATS: tuple[Format, ...] = ("logfmt", "json")
LEVELS = ("debug", "info", "warning", "error")


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
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
