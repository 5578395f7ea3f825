"""Whose forms each tree has, as origins.yml says: kernel, distribution, runtime, and how they came to us."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

TREES = Path(__file__).resolve().parent


class Origin(msgspec.Struct, forbid_unknown_fields=True):
    """Whose forms a tree has."""

    kernel: str
    distribution: str
    how: Literal["recorded", "described"]
    runtime: str = ""


ORIGINS = msgspec.yaml.decode((TREES / "origins.yml").read_bytes(), type=dict[str, dict[str, Origin]])
