"""How every benchmark here measures: CPU time (user + system) of processes, in interleaved rounds, as ratios."""

from __future__ import annotations

import contextlib
import signal
import socket
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

ROUNDS = 9
SPREAD_LIMIT = 0.25


@dataclass(frozen=True, slots=True)
class Result:
    """A finished benchmark: ratios of its rounds, or one plain number in `unit`, beside its goal."""

    name: str
    values: Sequence[float]
    goal: float
    unit: str = ""
    detail: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.values) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.values, n=4)
        return low, high

    @property
    def is_void(self) -> bool:
        low, high = self.quartiles
        return high - low > SPREAD_LIMIT * abs(self.median)

    @property
    def verdict(self) -> str:
        if self.is_void:
            return "VOID: spread over 25 %"
        return "met" if self.median <= self.goal else "MISSED"

    def __str__(self) -> str:
        low, high = self.quartiles
        unit = f" {self.unit}" if self.unit else ""
        spread = f" [{show(low)} to {show(high)}]" if len(self.values) > 1 else ""
        text = f"{self.name:<58} {show(self.median)}{spread}{unit}; goal at most {show(self.goal)}: {self.verdict}"
        return text + (f"\n    {self.detail}" if self.detail else "")


def show(value: float) -> str:
    """Return a small ratio as a fraction of one, which is how goals are written."""
    return f"1/{1 / value:.0f}" if 0 < value < 0.2 else f"{value:.3g}"


def own_cpu() -> float:
    """Return the CPU seconds of this process."""
    return time.process_time()


def cpu_of(pid: int) -> float:
    """Return the CPU seconds (user + system, all threads) of a process, by its CPU clock (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def spent(action: Callable[[], object], *clocks: Callable[[], float]) -> float:
    """Return the CPU seconds that `action` cost on all clocks together."""
    before = sum(clock() for clock in clocks)
    action()
    return sum(clock() for clock in clocks) - before


def rounds(ours: Callable[[], float], theirs: Callable[[], float], count: int = ROUNDS) -> tuple[list[float], str]:
    """Return each round's ratio of the two costs, measured in turn, and the median costs in words."""
    ours()
    theirs()
    costs = []
    for number in range(count):
        if number % 2:
            other = theirs()
            mine = ours()
        else:
            mine = ours()
            other = theirs()
        costs.append((mine, other))
    mine, other = (statistics.median(column) for column in zip(*costs, strict=True))
    return [a / b for a, b in costs], f"medians {mine * 1e3:.3g} ms and {other * 1e3:.3g} ms of CPU"


@contextlib.contextmanager
def process(command: Sequence[str], **kwargs: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command for the time of a block; it is ended by its own id."""
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **kwargs)  # type: ignore[call-overload]
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(5)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(url: str, seconds: float = 30.0) -> None:
    """Wait until a URL answers with 200."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            if time.monotonic() > end:
                raise
        time.sleep(0.05)
