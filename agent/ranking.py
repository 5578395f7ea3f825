"""Who has a series of its own where there are too many for all: the biggest, and the same ones from round to round."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from heapq import nlargest
from typing import TypeVar

T = TypeVar("T")
BIGGER = 1.25  # who is in stays until another is so much bigger


def biggest(sizes: Mapping[T, float], most: int, before: Collection[T]) -> list[T]:
    """Return the biggest in the order of `sizes`; `before` is what the last round returned."""
    if len(sizes) <= most:
        return list(sizes)
    stay = set(before)
    chosen = set(nlargest(most, sizes, key=lambda each: sizes[each] * (BIGGER if each in stay else 1)))
    return [each for each in sizes if each in chosen]
