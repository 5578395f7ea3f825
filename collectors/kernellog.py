"""What the kernel says in its log of filesystems, drives, thin pools, processes killed for memory, dropped caches.

Source: /dev/kmsg, see collectors.readers.kmsg; what is an event is a closed table, collectors.readers.kernel_events.
Counts are those since boot, as far as the log goes back when the agent first sees it, and are kept over its restarts.
Traps: a log is no state. A line may be lost (the kernel overwrites the oldest, and holds some kinds back when they come
too fast), and what it told may be mended since: states are what `filesystem`, `thinpool` and `zfs` say. Others than the
kernel write into the log as well; what they write is counted, never believed. Times are those of the clock of the log,
which stands still while the machine is suspended; a line that came since the last run is as old as that at most.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from agent import statefile
from agent.collector import Collector, Start, Yield
from agent.containers import LABELS as CONTAINER
from agent.errors import Denied, Malformed, Unsupported, from_os
from agent.finding import Finding, Found
from agent.host import Host
from agent.metric import Metric, label
from agent.privileges import Want
from agent.units import Seconds
from collectors.identities import Identities
from collectors.kernel_counts import MESSAGE, VERSION, Counts, Tally, encode, load
from collectors.readers import kernel_events, kmsg
from collectors.readers.kernel_events import OOM_KILL, Choice, Event, Hit, Kill, Victim

LOG = "dev/kmsg"
ABSENT = "there is no /dev/kmsg: a container sees it only with the node's devices"
REFUSED = (
    "/dev/kmsg may not be read: it takes CAP_SYSLOG where kernel.dmesg_restrict is 1, and in a container that it may "
    "open the device"
)
BUFFER = 1 << 16  # bytes; the kernel refuses to read a record that does not fit, they have 8 KiB at most
SAVE_EVERY = 60.0  # seconds
GROUP_KILL = 1_000_000  # microseconds that the killing of a whole cgroup takes at most

EVENT = ("subsystem", "event", "device")
EVENTS = Metric("ullage_kernel_events_total", "Events that the kernel told in its log since boot.", EVENT, "counter")
LAST = Metric("ullage_kernel_event_last_timestamp_seconds", "When the kernel told such an event last.", EVENT)
IGNORED = Metric(
    "ullage_kernel_log_ignored_total",
    "Lines of the kernel's log that are not the kernel's own: anybody who may write there can make them.",
    kind="counter",
)
OVERRUNS = Metric(
    "ullage_kernel_log_overruns_total",
    "Lines of the kernel's log that were overwritten before they were read.",
    kind="counter",
)
KILLED = Metric(
    "ullage_container_oom_kills_total",
    "Processes of a container that the kernel killed for memory, by its log.",
    CONTAINER,
    "counter",
)

STOPPED = Finding(
    "filesystem-shut-down",
    "critical",
    "The kernel stopped writing to the {fstype} on {target} {ago} minutes ago: {message}",
    "journalctl --dmesg --grep {name} shows what came before. Stop what uses it, then: {check}",
)
DAMAGED = Finding(
    "filesystem-errors",
    "warning",
    "The kernel found an error in the {fstype} on {target}, the last one {ago} minutes ago: {message}",
    "journalctl --dmesg --grep {name} shows all of them. Have a backup, stop what uses it, then: {check}",
)
FAILING = Finding(
    "drive-errors",
    "warning",
    "A read or write of {target} failed, the last one {ago} minutes ago: {message}",
    "{look}. Have a backup of what is on it; a drive whose errors go on is to be replaced.",
)
STARVED = Finding(
    "container-oom-kill",
    "info",
    "The kernel killed a process of {target} for memory, the last one {ago} minutes ago: {message}",
    "Raise its limit (docker update --memory SIZE --memory-swap SIZE {container}, or resources.limits.memory in "
    "Kubernetes), or find what grows: what its processes have, or files in tmpfs (ullage_container_shmem_bytes).",
)
DROPPER = Finding(
    "drop-caches-process",
    "info",
    "The process {target} wrote to /proc/sys/vm/drop_caches {ago} minutes ago, which takes from all containers of the "
    "node what is cached for them: {message}",
    "Find what starts it and remove it: grep -rs drop_caches /etc/cron* /var/spool/cron /etc/systemd/system "
    "/usr/local /opt. Bound one container's cache by its memory limit, or by a write to its memory.reclaim.",
)

FILESYSTEMS = ("ext4", "xfs", "btrfs")
WRITES_STOPPED = ("remount_read_only", "journal_abort", "shutdown", "forced_read_only", "transaction_abort")
# collectors that know the state tell it better: btrfs' devices, a thin pool without space
TOLD_BY_STATE = (("btrfs", "device_error"), ("btrfs", "no_space"), ("block", "no_space"))
DROPPED = ("memory", "drop_caches", "")
CHECKS = {
    "ext4": "umount {path}; e2fsck -f {path}",
    "xfs": "umount {path}; xfs_repair -n {path}   # without -n it repairs; mount it once before, to replay its log",
    "btrfs": "umount {path}; btrfs check --readonly --check-data-csum {path}   # it mends nothing: files whose data do "
    "not match are to be restored",
}

MANY = 10
RULES = f"""\
- name: ullage-kernel-log
  rules:
    - alert: UllageKernelErrorsContinue
      expr: |
        sum without (subsystem, event) (
          increase({EVENTS.name}{{subsystem=~"ext4|xfs|btrfs|block|nvme"}}[15m])
        ) >= {MANY}
      for: 2m
      keep_firing_for: KEEP_FIRING_FOR
      labels: {{severity: critical}}
      annotations:
        summary: 'The kernel told {{{{ $value | humanize }}}} errors of {{{{ $labels.device }}}} within 15 minutes'
        description: 'Filesystem or drive, on {{{{ $labels.instance }}}}. It fires at {MANY}, until fewer.'
        runbook_url: 'RUNBOOK(UllageKernelErrorsContinue)'
    - alert: UllageKernelLogOverruns
      expr: |
        increase({OVERRUNS.name}[15m]) > 0
      for: 2m
      keep_firing_for: KEEP_FIRING_FOR
      labels: {{severity: warning}}
      annotations:
        summary: '{{{{ $value | humanize }}}} lines of the kernel log on {{{{ $labels.instance }}}} were never read'
        description: 'They came faster than they were read: events of the last 15 minutes may not be counted.'
        runbook_url: 'RUNBOOK(UllageKernelLogOverruns)'
"""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many lines are read in one run at most, and for how long after its line a finding holds."""

    lines: int = 10_000
    hold: Seconds = Seconds(3600.0)

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if self.lines < 1 or self.hold <= 0:
            raise ValueError("1 or more lines, and to hold for more than 0 seconds")


@dataclass(slots=True)
class KernelLog:
    """The running collector. `now` is the time in seconds after the epoch."""

    start: Start
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time
    _identities: Identities = field(init=False)
    _keeper: statefile.Keeper = field(init=False)
    _saved_at: float = float("-inf")
    _descriptor: int = -1
    _kept: Counts | None = None  # by the agent before us
    _counts: Counts | None = None
    _is_past: bool = False  # lines that an agent before us may have counted
    _drained_at: float = 0.0
    _boot_time: int | None = None
    _victim: tuple[Victim, int] | None = None  # and when, in the log's microseconds
    _hit: bytes = b""
    _why: Event = OOM_KILL

    def __post_init__(self) -> None:
        """Prepare the names of containers, and the file that outlives us."""
        self._identities = Identities(self.start.host, self.start.runtimes)
        path = self.start.state / "kernellog.json" if self.start.state is not None else None
        self._keeper = statefile.Keeper(path, VERSION, self._gather)
        self._kept = load(path) if path is not None else None

    def close(self) -> None:
        """Keep the counts, and let go of the log."""
        self._save()
        self._let_go()

    def collect(self, host: Host) -> Iterator[Yield]:
        """Read what the kernel has said since the last run, then tell what it has said since boot."""
        self._open(host)
        counts = self._counts = self._counts or self._begin(host)
        self._identities.look(host, self.clock())
        self._boot_time = None
        for record in self._read(host):
            self._take(host, counts, record)
        now = self.now()
        if self.clock() - self._saved_at >= SAVE_EVERY:
            self._save()
        yield IGNORED(counts.ignored)
        yield OVERRUNS(counts.overruns)
        for key, tally in counts.events.items():
            yield EVENTS(tally.count, *key)
            if tally.last:
                yield LAST(tally.last, *key)
        for container, tally in counts.killed.items():
            yield KILLED(tally.count, *container)
        yield from _findings(counts, now, self.start.settings.hold)

    def _open(self, host: Host) -> None:
        if self._descriptor >= 0:
            return
        try:
            self._descriptor = host.open(LOG)
        except Denied as error:
            raise Unsupported(REFUSED) from error

    def _let_go(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _begin(self, host: Host) -> Counts:
        """Return the counts to go on from: those kept in this boot, else none."""
        boot = host.read("proc/sys/kernel/random/boot_id").decode("ascii", "replace").strip()
        if self._kept is None:
            return Counts(boot)
        # what a new boot has told was counted by nobody
        return self._kept if self._kept.boot == boot else Counts(boot, 0)

    def _read(self, host: Host) -> Iterator[kmsg.Record]:
        """Yield the records since the last run, as many as one run may take."""
        for _ in range(self.start.settings.lines):
            try:
                raw = os.read(self._descriptor, BUFFER)
            except BlockingIOError:
                raw = b""
            except BrokenPipeError:  # overwritten before it was read; the next record's number tells how many
                continue
            except OSError as error:
                self._let_go()
                raise from_os(LOG, error) from error
            if not raw:
                self._drained_at = self.now()
                self._is_past = False
                return
            records, malformed = kmsg.parse(raw)
            for _ in range(malformed):
                host.skip(Malformed(LOG, "expected a record of the kernel's log"))
            yield from records

    def _take(self, host: Host, counts: Counts, record: kmsg.Record) -> None:
        if counts.sequence is None:
            # The whole log since boot is what an agent before us has counted too, if there was one. Of a part nobody
            # knows that: to count it would be an increase that never was.
            self._is_past = record.sequence > 0
            counts.sequence = record.sequence
        if record.sequence < counts.sequence:
            return
        counts.overruns += record.sequence - counts.sequence
        counts.sequence = record.sequence + 1
        self._keeper.is_dirty = True
        if record.facility != kmsg.KERNEL:
            counts.ignored += int(not self._is_past)
            return
        self._classify(host, counts, record)

    def _classify(self, host: Host, counts: Counts, record: kmsg.Record) -> None:
        """Count what the kernel says; of a kill for memory it says in several lines why it is, and whose."""
        found = kernel_events.classify(record.message)
        if isinstance(found, Hit):
            self._hit = found.cgroup
        elif isinstance(found, Choice):
            self._why = found.event
            if self._hit:
                self._victim = Victim(None, self._hit), record.microseconds
            elif self._victim is not None and self._victim[0].pid is None:
                self._victim = None  # that of the kill before this one
            self._hit = b""
        elif isinstance(found, Victim):
            self._victim = found, record.microseconds
        else:
            if isinstance(found, Kill):
                self._blame(host, counts, record, found.pid)
                found = found.event or self._why
            if found is not None:
                tally = counts.event(found.subsystem, found.event, label(found.device))
                self._add(host, tally, record)

    def _blame(self, host: Host, counts: Counts, record: kmsg.Record, pid: int) -> None:
        """Count a killed process for its container, if the lines before have told its cgroup."""
        if self._victim is None:
            return
        victim, told_at = self._victim
        is_named = victim.pid == pid if victim.pid is not None else record.microseconds - told_at <= GROUP_KILL
        if not is_named:  # the kernel holds lines back when many processes are killed
            return
        labels = self._identities.labels(os.fsdecode(victim.cgroup))
        tally = counts.kill(labels, self.now()) if labels is not None else None
        if tally is not None:
            self._add(host, tally, record)

    def _add(self, host: Host, tally: Tally, record: kmsg.Record) -> None:
        tally.add(int(not self._is_past), self._time(host, record), record.sequence, record.message)

    def _time(self, host: Host, record: kmsg.Record) -> int:
        """Return when a record was made, in seconds after the epoch; 0 if nothing tells."""
        if self._boot_time is None:
            self._boot_time = 0
            with host.skipping():
                self._boot_time = _boot_time(host)
        if not self._boot_time:
            return int(self._drained_at)
        told = self._boot_time + record.microseconds // 1_000_000
        return int(max(self._drained_at, min(told, self.now())))

    def _save(self) -> None:
        if self._keeper.is_dirty and not self._is_past:
            self._saved_at = self.clock()
            self._keeper.save()

    def _gather(self) -> Mapping[str, Any]:
        return encode(self._counts) if self._counts is not None else {}


def _boot_time(host: Host) -> int:
    """Return when the machine booted by the clock as it is now, from the `btime` of /proc/stat."""
    for line in host.read("proc/stat").splitlines():
        name, _, value = line.partition(b" ")
        if name == b"btime" and value.isdigit():
            return int(value[:20])
    raise Malformed("proc/stat", "expected a line btime")


def _findings(counts: Counts, now: float, hold: float) -> Iterator[Found]:
    recent = {key: each for key, each in counts.events.items() if now - each.last < hold}
    groups: dict[tuple[Finding, str], dict[str, list[Tally]]] = {}
    for (subsystem, event, device), tally in recent.items():
        finding = _finding(subsystem, event)
        if finding is not None:
            groups.setdefault((finding, device), {}).setdefault(subsystem, []).append(tally)
    for (finding, device), subsystems in groups.items():
        # a device that has been made anew may have another filesystem
        subsystem = max(subsystems, key=lambda each: _newest(subsystems[each]).sequence)
        yield finding(device, **_words(subsystems[subsystem], now), **_remedies(subsystem, device))
    if DROPPED in recent:
        tally = recent[DROPPED]
        yield DROPPER(label(kernel_events.dropped_by(tally.message)), **_words([tally], now))
    for container, tally in counts.killed.items():
        if now - tally.last < hold:
            name = "/".join(part for part in container[:3] if part) or container[3]
            yield STARVED(name, **_words([tally], now), container=shlex.quote(container[3] or name))


def _finding(subsystem: str, event: str) -> Finding | None:
    if (subsystem, event) in TOLD_BY_STATE:
        return None
    if subsystem in FILESYSTEMS:
        return STOPPED if event in WRITES_STOPPED else DAMAGED
    if subsystem in ("block", "nvme"):
        return FAILING
    return None


def _newest(tallies: Iterable[Tally]) -> Tally:
    return max(tallies, key=lambda each: each.sequence)


def _words(tallies: Iterable[Tally], now: float) -> Mapping[str, object]:
    newest = _newest(tallies)
    return {"ago": max(0, int((now - newest.last) / 60)), "message": label(newest.message, MESSAGE)}


def _remedies(subsystem: str, device: str) -> Mapping[str, str]:
    path, name = shlex.quote(f"/dev/{device}"), shlex.quote(device)
    is_nvme = subsystem == "nvme"
    look = (
        f"smartctl --all {path} tells its health" if is_nvme else f"lsblk --inverse {path} shows what drives it is on"
    )
    check = CHECKS.get(subsystem, "").format(path=path)
    return {"fstype": subsystem, "name": name, "check": check, "look": look}


def _lack(host: Host) -> str | None:
    if not host.exists(LOG):
        return ABSENT
    return None


COLLECTOR = Collector(
    name="kernellog",
    summary="What the kernel tells in its log: errors of filesystems and drives, processes killed for memory.",
    start=KernelLog,
    interval=5.0,
    deadline=5.0,
    series_budget=3000,
    metrics=(EVENTS, LAST, IGNORED, OVERRUNS, KILLED),
    findings=(STOPPED, DAMAGED, FAILING, STARVED, DROPPER),
    settings=Settings,
    needs=_lack,
    rules=RULES,
    wants=(
        Want(
            capabilities=("SYSLOG",),
            device="/dev/kmsg",
            lost="all of it (the capability is needed where `kernel.dmesg_restrict` is 1)",
            reasons=(REFUSED, ABSENT),
        ),
    ),
)
