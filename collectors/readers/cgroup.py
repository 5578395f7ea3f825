"""Files of the memory controller, versions 1 and 2: Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst.

`memory.stat` has a `key value` on each line; new keys may come anywhere. On version 1 the keys `total_…` are of the
whole subtree, as all keys are on version 2. Bytes, but for events.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from operator import itemgetter

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
_PRESSURE = re.compile(rb"^(some|full) .*?\btotal=(\d{1,%d})\b" % _DIGITS, re.MULTILINE)

Row = tuple[int | None, ...]


def stat_parser(keys: tuple[bytes, ...]) -> Callable[[bytes], Row]:
    """Return a parser of memory.stat that gives the values of `keys` in their order, None for one that is absent.

    It remembers where the keys stood in the last file, splits just that part of the next one, and looks for them
    anew when they do not stand there any more.
    """
    first, most = b"", 0  # what the part begins with, and the words in it
    names: Callable[[list[bytes]], object] = itemgetter(*[0] * len(keys))
    values: Callable[[list[bytes]], Iterable[bytes]] = itemgetter(*[0] * len(keys))

    def learn(words: list[bytes], places: dict[bytes, int]) -> None:
        nonlocal first, most, names, values
        start = min(places[key] for key in keys)
        first = b"\n" + words[start] + b" " if start else b""
        most = max(places[key] for key in keys) - start + 2
        names = itemgetter(*[places[key] - start for key in keys])
        values = itemgetter(*[places[key] - start + 1 for key in keys])

    def parse(text: bytes) -> Row:
        words = text[max(0, text.find(first)) :].split(None, most)
        try:
            if names(words) == keys:
                found = values(words)
                digits = b"".join(found)  # one look at all of them: this is where the time goes
                if digits.isdigit() and len(digits) <= _DIGITS * len(keys):
                    return tuple(map(int, found))
        except IndexError:
            pass
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


def _is_number(word: bytes) -> bool:
    return word.isdigit() and len(word) <= _DIGITS
