"""What the kernel's log has told since boot, kept over restarts of the agent together with the place in the log.

The two are written together: an agent that is killed reads again what came after the last writing, and counts nothing
twice. What the kernel has overwritten meanwhile is a gap in the records' numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent import statefile
from agent.metric import LabelSet, label

VERSION = 1
MOST_EVENTS = 1000  # kinds of events by device, and
MOST_KILLED = 200  # containers, with series of their own
MESSAGE = 300  # bytes of a message that are kept
FORGOTTEN_AFTER = 86_400  # seconds after its last kill that a container makes room for another


@dataclass(slots=True)
class Tally:
    """How often something happened, and of the last time: when (seconds after the epoch, 0 if unknown), its record.

    The message is as the log has it, cut: what is told of it goes through `label`.
    """

    count: int = 0
    last: int = 0
    sequence: int = 0
    message: bytes = b""

    def add(self, count: int, time: int, sequence: int, message: bytes) -> None:
        """Note that it happened again."""
        self.count += count
        self.last = time
        self.sequence = sequence
        self.message = message[:MESSAGE]


@dataclass(slots=True)
class Counts:
    """The counts of one boot. `sequence` is the number of the next record, None before the first."""

    boot: str
    sequence: int | None = None
    ignored: int = 0
    overruns: int = 0
    events: dict[LabelSet, Tally] = field(default_factory=dict)
    killed: dict[LabelSet, Tally] = field(default_factory=dict)

    def event(self, subsystem: str, event: str, device: str) -> Tally:
        """Return the tally of one kind of event; devices beyond a bound are one, `other`."""
        key = subsystem, event, device
        if key not in self.events and len(self.events) >= MOST_EVENTS:
            key = subsystem, event, "other"
        return self.events.setdefault(key, Tally())

    def kill(self, container: LabelSet, now: float) -> Tally | None:
        """Return the tally of a container's killed processes; None while there are too many that are no day old."""
        if container not in self.killed and len(self.killed) >= MOST_KILLED:
            self.killed = {key: each for key, each in self.killed.items() if now - each.last <= FORGOTTEN_AFTER}
            if len(self.killed) >= MOST_KILLED:
                return None
        return self.killed.setdefault(container, Tally())


def load(path: Path) -> Counts | None:
    """Return what the last agent knew."""
    return statefile.load(path, VERSION, _decode)


def _decode(data: Any) -> Counts:
    return Counts(
        str(data["boot"]),
        int(data["sequence"]),
        int(data["ignored"]),
        int(data["overruns"]),
        _tallies(data["events"], 3),
        _tallies(data["killed"], 4),
    )


def _tallies(rows: Iterable[Any], width: int) -> dict[LabelSet, Tally]:
    found = {}
    for labels, count, last, sequence, message in rows:
        key = tuple(map(str, labels))
        if len(key) != width:
            raise ValueError(f"expected {width} labels, got {key!r}")
        found[key] = Tally(int(count), int(last), int(sequence), str(message).encode())
    return found


def encode(counts: Counts) -> Mapping[str, Any]:
    """Return what the next agent is to know."""
    return {
        "boot": counts.boot,
        "sequence": counts.sequence,
        "ignored": counts.ignored,
        "overruns": counts.overruns,
        "events": _rows(counts.events),
        "killed": _rows(counts.killed),
    }


def _rows(tallies: Mapping[LabelSet, Tally]) -> list[Any]:
    return [[key, each.count, each.last, each.sequence, label(each.message, MESSAGE)] for key, each in tallies.items()]
