"""Deleted files that somebody still holds open: their inodes and space are used, and no directory shows them.

Source: /proc/PID/fd and fdinfo (man 5 proc), stat(2) of the descriptor: no link is left (`st_nlink` 0), space by
`st_blocks` of 512 bytes; see `collectors.processes`. /proc/sys/fs/file-nr (man 5 proc_sys_fs). Files in memory (memfd,
tmpfs, System V shared memory, aio) hold no disk and do not count; nor do those on remote and FUSE filesystems, which
may hang, and on an overlay those that are open for reading alone, as they may be an image's own. A file that several
processes hold counts once, for one of them. Files that are only mapped, such as old libraries, are not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from agent.collector import Collector, Start, Top, Yield
from agent.containers import LABELS as CONTAINER
from agent.errors import Malformed
from agent.finding import Finding, Found
from agent.host import Host
from agent.metric import LabelSet, Metric, Sample
from agent.units import Size
from collectors.descriptors import HOST, WANTS, View, about, check
from collectors.processes import Held, Reading

FILE_NR = "proc/sys/fs/file-nr"
MIB = 1 << 20
FILESYSTEM = ("device", "mountpoint", "fstype")

FILES = Metric("ullage_deleted_open_files", "Deleted files on local disks that a container holds open.", CONTAINER)
BYTES = Metric("ullage_deleted_open_bytes", "Bytes allocated by deleted files that a container holds open.", CONTAINER)
ON_FILES = Metric(
    "ullage_filesystem_deleted_open_files", "Deleted files of a filesystem that somebody holds open.", FILESYSTEM
)
ON_BYTES = Metric(
    "ullage_filesystem_deleted_open_bytes", "Bytes allocated by deleted files that somebody holds open.", FILESYSTEM
)
PASSED = Metric("ullage_open_files_skipped_files", "Deleted files that the newest pass did not judge.", ("reason",))
LOOKED_AT = Metric("ullage_open_files_descriptors", "Descriptors that the newest pass looked at.")
HANDLES = Metric("ullage_file_handles", "Open files of the whole node (file-nr).")
HANDLES_LIMIT = Metric("ullage_file_handles_limit", "Open files that the whole node may have (file-max).")
ABOUT = about("open_files")

HELD = Finding(
    "deleted-files-held",
    "warning",
    "{target} holds {count} deleted files open, {size} in all. The largest: {path} with {largest}, by process {pid}. "
    "Their space is free only when they are closed.",
    "{restart}   # or have the program open its files anew, as `postrotate` of logrotate does for logs",
)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the pass may cost (of one core), how many containers have series, from how many bytes held is a finding."""

    cpu_budget: float = 0.01
    top: int = 100
    held: Size = Size(1 << 30)

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        check(self.cpu_budget, self.top)


@dataclass(slots=True)
class OpenFiles:
    """The running collector."""

    start: Start
    _view: View = field(init=False)

    def __post_init__(self) -> None:
        """Take part in the pass over all processes."""
        settings: Settings = self.start.settings
        self._view = View(self.start, ABOUT, settings.cpu_budget, settings.top)

    def close(self) -> None:
        """Nothing is open."""

    def collect(self, host: Host) -> Iterator[Yield]:
        """Tell what the newest pass has found."""
        with host.skipping():
            yield from _handles(host)
        yield from self._view.look(host)
        found = self._view.found
        if found is None:
            return
        yield LOOKED_AT(found.descriptors)
        for reason, count in found.skipped_files.items():
            yield PASSED(count, reason)
        held = found.held.values()
        sizes = self._view.sums((each.group, each.bytes) for each in held)
        files = self._view.sums((each.group, 1) for each in held)
        yield from self._view.by_container(sizes, {BYTES: sizes, FILES: files})
        yield from _filesystems(found)
        yield from self._findings(found)

    def _findings(self, found: Reading) -> Iterator[Found]:
        """Yield who holds too much: a container, or a cgroup of the host's own."""
        holders: dict[str, list[Held]] = {}
        for each in found.held.values():
            labels = self._view.owner(each.group)
            holders.setdefault(each.group if labels == HOST else "\0".join(labels), []).append(each)
        for held in holders.values():
            total = sum(each.bytes for each in held)
            if total >= self.start.settings.held:
                largest = max(held, key=lambda each: each.bytes)
                yield HELD(
                    self._view.name(largest.group),
                    count=len(held),
                    size=_size(total),
                    path=largest.path,
                    largest=_size(largest.bytes),
                    pid=largest.pid,
                    restart=self._view.restart(largest.group, largest.pid),
                )


def _filesystems(found: Reading) -> Iterator[Sample]:
    """Yield the sums by filesystem; none while somebody could not be seen, as they would be too small."""
    if found.unknown_groups:
        return
    files: Counter[LabelSet] = Counter()
    sizes: Counter[LabelSet] = Counter()
    for each in found.held.values():
        files[each.filesystem] += 1
        sizes[each.filesystem] += each.bytes
    for labels, count in sorted(files.items()):
        yield ON_FILES(count, *labels)
        yield ON_BYTES(sizes[labels], *labels)


def _handles(host: Host) -> Iterator[Sample]:
    """Yield what `9312 0 9223372036854775807` says: allocated, always 0 since Linux 2.6, at most."""
    words = host.read(FILE_NR).split()
    if len(words) != 3 or not all(word.isdigit() and len(word) <= 20 for word in words):  # noqa: PLR2004
        raise Malformed(FILE_NR, f"expected three numbers, got {words!r}"[:100])
    yield HANDLES(int(words[0]))
    yield HANDLES_LIMIT(int(words[2]))


def _size(size: int) -> str:
    return f"{size / MIB:.1f} MiB"


def _needs(host: Host) -> str | None:
    return None if host.exists(FILE_NR) else "/proc is not the host's"


COLLECTOR = Collector(
    name="openfiles",
    summary="Deleted files that are still held open, by whom and on which filesystem; file handles of the node.",
    start=OpenFiles,
    interval=60.0,
    deadline=25.0,
    metrics=(BYTES, FILES, ON_BYTES, ON_FILES, PASSED, LOOKED_AT, HANDLES, HANDLES_LIMIT, *ABOUT),
    findings=(HELD,),
    settings=Settings,
    needs=_needs,
    progress=ABOUT.progress,
    tops=(Top("Deleted files held", BYTES, "bytes"),),
    wants=WANTS,
)
