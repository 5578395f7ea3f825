"""The kernel's settings, changed for the time of a test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def setting(path: str, value: str) -> Iterator[None]:
    """Have a file of /proc/sys or of a module's parameters say this for the time of a block."""
    file = Path(path)
    before = file.read_text()
    file.write_text(f"{value}\n")  # some take no line without its end
    try:
        yield
    finally:
        file.write_text(before)
