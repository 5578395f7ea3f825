"""OpenZFS: kstats below /proc/spl/kstat/zfs, and the machine-readable output of its commands.

Sources: module/zfs/dataset_kstats.c and spa_stats.c of OpenZFS; zpool-list(8), zfs-list(8). A named kstat has a line of
numbers, a line `name type data`, then a line for each value; a string may hold spaces, as may a dataset's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_HEAD, _DIGITS = 2, 20
_RELEASE = re.compile(r"\d{1,4}\.\d{1,4}\.\d{1,4}", re.ASCII)

DATASET_COLUMNS = "name,type,used,usedbysnapshots,recordsize,sync,compression,quota"
SNAPSHOT_COLUMNS = "name,creation,userrefs"


class Objset(NamedTuple):
    """What was asked of one dataset while it is mounted, in bytes and calls; None is what this version does not say."""

    dataset: str
    writes: int | None
    written: int | None
    reads: int | None
    read: int | None
    unlinks: int | None
    unlinked: int | None


class Txg(NamedTuple):
    """A transaction group that is on disk: bytes that it wrote, and nanoseconds that it spent in each state."""

    number: int
    written: int
    opened: int
    quiesced: int
    waited: int
    synced: int


class Dataset(NamedTuple):
    """A dataset's properties, sizes in bytes; None is what it has not: a volume's recordsize, a quota."""

    kind: str
    used: int | None
    used_by_snapshots: int | None
    recordsize: int | None
    sync: str
    compression: str
    quota: int | None


class Snapshot(NamedTuple):
    """A snapshot, when it was made in seconds of the epoch, and how many hold it."""

    dataset: str
    name: str
    created: int
    holds: int


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


def parse_txgs(text: bytes) -> list[Txg]:
    """Return the committed transaction groups that the kernel remembers, oldest first.

    `44  49642387994  C  0  0  356352  0  45  260356590  21822  116304  48204588`, by the names in the first line.
    """
    names, *lines = text.decode("ascii", "replace").splitlines() or [""]
    columns = names.split()
    places = {name: place for place, name in enumerate(columns)}
    keys = "txg", "nwritten", "otime", "qtime", "wtime", "stime"
    if not places.keys() >= {"state", *keys}:
        return []
    found = []
    for words in map(str.split, lines):
        if len(words) == len(columns) and words[places["state"]] == "C":
            numbers = [each for key in keys if (each := number(words[places[key]])) is not None]
            if len(numbers) == len(keys):
                found.append(Txg(*numbers))
    return found


def parse_datasets(text: bytes) -> dict[str, Dataset]:
    r"""Return the properties of each dataset in `zfs list -Hp -o DATASET_COLUMNS`.

    `tank/db\tfilesystem\t19750912\t2785280\t16384\tstandard\toff\t0`; a quota of 0 is none.
    """
    found = {}
    for words in _rows(text, DATASET_COLUMNS):
        name, kind, used, held, recordsize, sync, compression, quota = words
        sizes = number(used), number(held), number(recordsize)
        found[name] = Dataset(kind, *sizes, sync, compression, number(quota) or None)
    return found


def parse_snapshots(text: bytes) -> Iterator[Snapshot]:
    r"""Yield each snapshot in `zfs list -Hp -t snapshot -o SNAPSHOT_COLUMNS`: `tank/db@daily-1\t1795574322\t2`."""
    for whole, creation, userrefs in _rows(text, SNAPSHOT_COLUMNS):
        dataset, at, name = whole.partition("@")
        created, holds = number(creation), number(userrefs)
        if at and created is not None and holds is not None:
            yield Snapshot(dataset, name, created, holds)


def _rows(text: bytes, columns: str) -> Iterator[list[str]]:
    count = columns.count(",") + 1
    for line in text.decode("utf-8", "surrogateescape").split("\n"):
        words = line.split("\t")
        if len(words) == count and words[0]:
            yield words


def parse_version(text: bytes) -> str | None:
    """Return the version of the tools in `zfs version`: `zfs-2.3.2-2`; the module's is the line `zfs-kmod-2.3.2-2`."""
    for line in text.decode("ascii", "replace").splitlines():
        if line.startswith("zfs-") and not line.startswith("zfs-kmod-"):
            return line.removeprefix("zfs-").strip()
    return None


def release(version: str) -> str | None:
    """Return OpenZFS' own version without what a distribution adds to it: `2.3.2` of `2.3.2-2~bpo12+2`."""
    match = _RELEASE.search(version)
    return match[0] if match else None


def number(word: str) -> int | None:
    """Return a counter's value, None if it is none."""
    return int(word) if word.isascii() and word.isdigit() and len(word) <= _DIGITS else None
