"""`python -m tests.soak.planted run …`: the agent with one more collector, which leaks a little of all in every run."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import collectors
from agent.collector import Collector, Start, Yield
from agent.host import Host
from agent.metric import Metric

MEMORY, SERIES = 256 << 10, 20  # bytes, and series, in a run

LEAKED = Metric("ullage_planted", "A series that is one of more and more.", ("number",))


class Leak:
    """The running collector."""

    def __init__(self, _start: Start) -> None:
        self._memory: list[bytes] = []
        self._descriptors: list[int] = []
        self._series = 0

    def collect(self, _host: Host) -> Iterator[Yield]:
        """Hold more than before."""
        self._memory.append(os.urandom(MEMORY))
        self._descriptors.append(os.open(os.devnull, os.O_RDONLY))
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        self._series += SERIES
        for number in range(self._series):
            yield LEAKED(1, str(number))

    def close(self) -> None:
        """Let go of nothing."""


COLLECTOR = Collector(
    name="planted", summary="Leaks.", start=Leak, interval=1.0, deadline=1.0, metrics=(LEAKED,), series_budget=100_000
)

if __name__ == "__main__":
    collectors.ALL = (*collectors.ALL, COLLECTOR)
    from agent.cli import main  # which takes the table as it is then

    sys.exit(main())
