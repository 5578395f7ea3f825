"""Room for what the processes of many containers have, of which none can take what the others need."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple


class Bound(NamedTuple):
    """How many things are kept in all; how many of one container; of how many each container is sure.

    Each is sure of so many as long as half of all lasts, which is for as many containers as it is times in there.
    """

    most: int
    share: int
    sure: int


class Room:
    """What is left of a bound. The half that is not for the first few of each is for all, up to their shares."""

    def __init__(self, bound: Bound) -> None:
        self._bound = bound
        self._for_first = bound.most // 2
        self._for_all = bound.most - self._for_first
        self._has: Counter[str] = Counter()

    def take(self, container: str) -> bool:
        """Take a place for a container's next thing; return whether there was one."""
        has = self._has[container]
        if has < self._bound.sure and self._for_first:
            self._for_first -= 1
        elif has < self._bound.share and self._for_all:
            self._for_all -= 1
        else:
            return False
        self._has[container] = has + 1
        return True

    def give_back(self, container: str) -> None:
        """Give back the place that a container took last."""
        self._has[container] -= 1
        if self._has[container] < self._bound.sure:
            self._for_first += 1
        else:
            self._for_all += 1
