"""OpenZFS: kstats below /proc/spl/kstat/zfs, and the machine-readable output of its commands.

Sources: module/zfs/dataset_kstats.c and spa_stats.c of OpenZFS; zpool-list(8). A named kstat has a line of numbers, a
line `name type data`, then a line for each value; a string may hold spaces.
"""

from __future__ import annotations

from typing import NamedTuple

_HEAD, _DIGITS = 2, 20


class Objset(NamedTuple):
    """What was asked of one dataset while it is mounted, in bytes and calls; None is what this version does not say."""

    dataset: str
    writes: int | None
    written: int | None
    reads: int | None
    read: int | None
    unlinks: int | None
    unlinked: int | None


def parse_kstat(text: bytes) -> dict[str, str]:
    """Return the values of a named kstat by their names: `nwritten                        4    16384000`."""
    found = {}
    for line in text.decode("utf-8", "surrogateescape").split("\n")[_HEAD:]:
        words = line.split(None, 2)
        if len(words) == _HEAD + 1:
            found[words[0]] = words[2]
    return found


def parse_objset(text: bytes) -> Objset | None:
    """Return a dataset's counters; None if it does not even say its name."""
    values = parse_kstat(text)
    name = values.get("dataset_name")
    if not name:
        return None
    keys = "writes", "nwritten", "reads", "nread", "nunlinks", "nunlinked"
    return Objset(name, *(number(values.get(key, "")) for key in keys))


def parse_leaves(text: bytes) -> list[str]:
    r"""Return the paths of the devices in `zpool list -vHPL`: `\t/dev/vda1\t3220176896\t...`, below mirrors too."""
    paths = []
    for line in text.decode("utf-8", "surrogateescape").splitlines():
        first = line.lstrip("\t").partition("\t")[0]
        if line.startswith("\t") and first.startswith("/"):
            paths.append(first)
    return paths


def number(word: str) -> int | None:
    """Return a counter's value, None if it is none."""
    return int(word) if word.isascii() and word.isdigit() and len(word) <= _DIGITS else None
