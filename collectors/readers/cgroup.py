"""Files of the memory controller, versions 1 and 2: Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst.

`memory.stat` has a `key value` on each line; new keys may come anywhere. On version 1 the keys `total_…` are of the
whole subtree, as all keys are on version 2. Bytes, but for events.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from sys import intern

UNLIMITED = 1 << 62  # version 1 says "no limit" by the largest number of pages

# In the order of a row: page cache with tmpfs, tmpfs, inactive, active, dirty, writeback, mapped, refaults, slab.
KEYS_V2 = (
    *(b"file", b"shmem", b"inactive_file", b"active_file", b"file_dirty"),
    *(b"file_writeback", b"file_mapped", b"workingset_refault_file", b"slab_reclaimable"),
)
KEYS_V1 = (  # version 1 does not say what slab can be reclaimed
    *(b"total_cache", b"total_shmem", b"total_inactive_file", b"total_active_file", b"total_dirty"),
    *(b"total_writeback", b"total_mapped_file", b"total_workingset_refault_file"),
)
_OLD_REFAULT = {  # before Linux 5.9
    b"total_workingset_refault_file": b"total_workingset_refault",
    b"workingset_refault_file": b"workingset_refault",
}
_DIGITS = 20  # of a u64; a float cannot hold what has hundreds, nor int() read thousands
_NUMBER = rb"\d{1,%d}" % _DIGITS
# the paths of a process on version 1's memory controller, and on version 2; no name of a cgroup has a newline
_MEMORY = re.compile(rb"^\d+:(?:[^:\n]*,)?memory(?:,[^:\n]*)?:(.*)$", re.MULTILINE)
_UNIFIED = re.compile(rb"^\d+::(.*)$", re.MULTILINE)
_PRESSURE = re.compile(rb"^(some|full) .*?\btotal=(%s)\b" % _NUMBER, re.MULTILINE)

Row = tuple[int | None, ...]


def stat_parser(keys: tuple[bytes, ...]) -> Callable[[bytes], Row]:
    """Return a parser of memory.stat that gives the values of `keys` in their order, None for one that is absent.

    It remembers in which order the lines stood in the last file, matches just that part of the next one, and looks for
    the keys anew when they do not stand there any more.
    """
    first, skipped = b"\n", 1  # what stands before the part
    match = re.compile(b"(?!)").match
    groups: tuple[int, ...] = ()

    def learn(words: list[bytes], places: dict[bytes, int]) -> None:
        nonlocal first, skipped, match, groups
        wanted = sorted(places[key] for key in keys)
        start, end = wanted[0], wanted[-1]
        first, skipped = (b"\n" + words[start] + b" ", 1) if start else (b"", 0)
        lines = (
            re.escape(words[at]) + (b" (%s)\n" % _NUMBER if at in wanted else rb" \d+\n")
            for at in range(start, end + 1, 2)
        )
        match = re.compile(b"".join(lines)).match
        groups = tuple(wanted.index(places[key]) + 1 for key in keys)

    def parse(text: bytes) -> Row:
        found = match(text, text.find(first) + skipped)
        if found is not None:
            return tuple(map(int, found.group(*groups)))
        words = text.split()
        places = {word: at for at, word in enumerate(words[:-1]) if at % 2 == 0}
        if all(key in places for key in keys):
            learn(words, places)
        at_last = [places.get(key, places.get(_OLD_REFAULT.get(key, b""))) for key in keys]
        numbers = (words[at + 1] if at is not None else b"" for at in at_last)
        return tuple(int(number) if _is_number(number) else None for number in numbers)

    return parse


def parse_limit(text: bytes) -> int | None:
    """Return memory.max (`max` or bytes) or memory.limit_in_bytes in bytes; None means no limit. Raises ValueError."""
    text = text.strip()
    if text == b"max":
        return None
    if not _is_number(text):
        raise ValueError(f"expected max or bytes, got {text[:40]!r}")
    limit = int(text)
    return limit if limit < UNLIMITED else None


def parse_pressure(text: bytes) -> dict[str, int]:
    """Return the stall time in microseconds: `some avg10=0.00 avg60=0.00 avg300=0.00 total=12345`, then `full …`."""
    return {kind.decode(): int(total) for kind, total in _PRESSURE.findall(text)}


def parse_numbers(text: bytes) -> dict[str, int]:
    """Return a file of `key value` lines with whole numbers, such as cgroup.stat or /proc/vmstat; others are passed."""
    numbers = {}
    for line in text.splitlines():
        key, _, value = line.partition(b" ")
        value = value.strip()
        if _is_number(value):
            numbers[key.decode("ascii", "replace")] = int(value)
    return numbers


def parse_membership(text: bytes) -> str:
    """Return the path of a process' cgroup by /proc/PID/cgroup: that of version 2, or of version 1's memory controller.

    `0::/system.slice/docker.service`, or a line of each hierarchy of version 1: `4:memory:/docker/148c…`.
    """
    found = _MEMORY.search(text) or _UNIFIED.search(text)
    # each collector that looks at processes keeps it: one text for all of them
    return intern(found[1].decode("utf-8", "surrogateescape")) if found is not None else "/"


def _is_number(word: bytes) -> bool:
    return word.isdigit() and len(word) <= _DIGITS
