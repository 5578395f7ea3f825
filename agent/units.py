"""Durations and sizes as people write them: `90s`, `5m`, `1h30m`; `10GiB`, `512MiB`, `10GB`, `4096`."""

from __future__ import annotations

import re

_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kKMGTP]i?B|B|)")
_POWERS = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


class Seconds(float):
    """A duration in seconds, written as `90s`, `5m` or `1h30m` in the configuration."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> Seconds:
        """Return the duration; raises ValueError saying what was expected."""
        if isinstance(value, str):
            parts = list(_DURATION.finditer(value))
            if parts and "".join(part.group() for part in parts) == value:
                return cls(sum(float(part["number"]) * _SECONDS[part["unit"]] for part in parts))
        message = "a duration with its unit, such as 15s, 5m or 1h30m"
        raise ValueError(message)

    def __str__(self) -> str:
        """Return the duration as Prometheus writes it."""
        left, text = round(self * 1000), ""
        for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
            count, left = divmod(left, size)
            text += f"{count}{unit}" if count else ""
        return text or "0s"


class Size(int):
    """A number of bytes, written as `10GiB`, `10GB` or `4096` in the configuration."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> Size:
        """Return the size; raises ValueError saying what was expected."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
            unit = match["unit"]
            power = _POWERS.get(unit[:1], 0)
            return cls(float(match["number"]) * (1024 if "i" in unit else 1000) ** power)
        message = "a size in bytes, such as 10GiB, 512MiB or 4096"
        raise ValueError(message)
