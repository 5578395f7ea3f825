r"""What the kernel's own lines say of storage and memory: a closed table. What is not in it is no event.

Source: Linux 3.10 to 6.18 (fs/ext4/super.c, fs/jbd2/journal.c, fs/xfs/, fs/btrfs/messages.c, fs/overlayfs/,
drivers/md/dm-thin.c, drivers/nvme/host/, block/blk-core.c, fs/buffer.c, mm/oom_kill.c, fs/drop_caches.c), OpenZFS 2.
Each pattern is held against the start of a message. Many lines begin with a process's own name, up to 15 characters
that anybody chooses, and go on with the kernel's words, and then with the name of a file or a cgroup that the same
people choose: `comm[pid]: segfault at … in file[…]`. So no pattern passes over what it does not know: a device's name
ends at a space, a bracket or a sign of a list, and nothing is looked for further on in a line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

Rules = tuple[tuple[str, re.Pattern[bytes]], ...]


class Event(NamedTuple):
    """Something that happened. `device` is the kernel's name, such as `dm-4`, a ZFS pool, or empty."""

    subsystem: str
    event: str
    device: bytes = b""


class Victim(NamedTuple):
    """The process that will be killed for memory and its cgroup; `pid` is None where nobody says which one of it."""

    pid: int | None
    cgroup: bytes


class Kill(NamedTuple):
    """A process that was killed for memory: by a cgroup's limit, or because the node had none left.

    `event` is None up to Linux 5.0, where a line before it says why; see Choice.
    """

    event: Event | None
    pid: int


class Choice(NamedTuple):
    """Why the process of the next Kill is killed: a line up to Linux 5.0. A child of who is named may be taken instead.

    Who is killed is of the Hit before it, where that is told: the kernel holds some back when many are killed.
    """

    event: Event


class Hit(NamedTuple):
    """The cgroup of who is killed by a cgroup's limit: a line up to Linux 4.20. A Choice comes after it."""

    cgroup: bytes


OOM_KILL = Event("memory", "oom_kill")


def _rules(*rules: tuple[str, str]) -> Rules:
    return tuple((event, re.compile(pattern.encode(), re.DOTALL)) for event, pattern in rules)


_DEVICE = r"(?P<device>[^\s:,=)\[\]]{1,64})"
_EXT4 = rf"EXT4-fs \({_DEVICE}\): "
_XFS = rf"XFS \({_DEVICE}\): "
# xfs_do_force_shutdown: up to Linux 5.11 `Log I/O Error Detected.  Shutting down filesystem`, 5.12 and 5.13
# `Log I/O error (0x2) detected at …`, since then `Log I/O Error (0x2) detected at …`
_XFS_SHUTDOWN = (
    r"(?:(?:(?:Log |Metadata )?I/O [Ee]rror|Corruption of (?:in-memory data|on-disk metadata)|Block device removal)"
    r"(?: [Dd]etected\.| \(0x)"
    # since 5.14 the reason has a line of its own behind this one
    r"|(?:All device paths lost|User initiated shutdown (?:\(0x[0-9a-f]{1,8}\) )?received)\. +Shutting down filesystem"
    r"|Filesystem has been shut down)"
)
_BTRFS = r"BTRFS:? (?:critical|error|warning|info) \(device (?P<device>[^ :)]{1,64})[^)]{0,32}\):? "
_BTRFS_BAD = r"BTRFS:? (?:critical|error) \(device (?P<device>[^ :)]{1,64})[^)]{0,32}\)"
_THIN = r"device-mapper: thin: \d+:(?P<minor>\d+): "
_BLOCK = r"(?:blk_update_request: |print_req_error: |end_request: )?"
_OF_DEVICE = rf" error, dev {_DEVICE}, sector \d"
_BUFFER = rf"Buffer I/O error on dev(?:ice)? {_DEVICE}, logical block \d+"
_NVME = r"nvme (?P<device>nvme\d+): "

RULES: Mapping[str, Rules] = {
    "ext4": _rules(
        ("error", rf"EXT4-fs error \(device {_DEVICE}\)"),
        ("remount_read_only", _EXT4 + r"Remounting filesystem read-only"),
        # an internal journal is its filesystem's device and an inode: loop5-8
        ("journal_abort", r"(?:JBD2: )?Aborting journal on device (?P<device>dm-\d+|[^\s-]{1,64})(?:-\d+)?\."),
        ("io_error", _EXT4 + r"(?:I/O error|previous I/O error)"),
        ("data_loss", _EXT4 + r"(?:This should not happen!! Data will be lost|Delayed block allocation failed)"),
        ("shutdown", _EXT4 + r"shut down requested"),
    ),
    "xfs": _rules(
        ("shutdown", _XFS + _XFS_SHUTDOWN),
        ("corruption", _XFS + r"(?:Metadata (?:corruption|CRC error) detected|Corruption detected|Internal error)"),
        ("io_error", _XFS + r"(?:metadata|log) I/O error"),
    ),
    "btrfs": _rules(
        # nothing is looked for further on in a line: there may be names of files
        ("forced_read_only", _BTRFS + r"forced readonly"),
        ("transaction_abort", _BTRFS + r"Transaction aborted"),
        ("checksum_error", _BTRFS + r"(?:csum failed|checksum (?:error|verify failed)|bad (?:tree block|csum))"),
        ("device_error", _BTRFS + r"bdev (?:/dev/)?(?P<bdev>\S{1,64}) errs: wr \d"),
        ("device_error", r"BTRFS: bdev (?:/dev/)?(?P<device>\S{1,64}) errs: wr \d"),
        ("no_space", _BTRFS + r"in \w+:\d+: errno=-28"),
        ("error", _BTRFS_BAD),
    ),
    "overlayfs": _rules(
        ("no_d_type", r"overlayfs: upper fs needs to support d_type"),
        ("in_use", r"overlayfs: (?:upperdir|workdir) is in-use as upperdir/workdir of another mount"),
        ("overlapping", r"overlayfs: overlapping \w+ path"),
        ("conflicting_options", r"overlayfs: conflicting options: "),
        ("incompatible_feature", r"overlayfs: overlay with incompat feature "),
        ("not_verified", r"overlayfs: failed to verify (?:origin|upper|index|fh)"),
        ("refused", r"overlayfs: refusing to follow "),
    ),
    "dm_thin": _rules(
        ("low_data", _THIN + r"reached low water mark for data device"),
        ("low_metadata", _THIN + r"reached low water mark for metadata device"),
        ("no_space", _THIN + r"no free (?:data|metadata) space available"),
        ("mode_write", _THIN + r"switching pool to write mode"),
        ("mode_out_of_data_space", _THIN + r"switching pool to out-of-data-space"),
        ("mode_read_only", _THIN + r"switching pool to read-only mode"),
        ("mode_fail", _THIN + r"switching pool to fail mode"),
        ("metadata_error", _THIN + r"(?:metadata operation '|aborting current metadata transaction)"),
        ("metadata_error", r"device-mapper: space map (?:metadata|common): unable to allocate new metadata block"),
    ),
    "zfs": _rules(
        (
            "suspended",
            # the characters that a pool's name may have
            r"WARNING: Pool '(?P<device>[A-Za-z][\w.: -]{0,255})' has encountered an uncorrectable I/O failure",
        ),
        ("panic", r"PANIC at \w+\.c:\d+:\w+\(\)"),
    ),
    "nvme": _rules(
        ("controller_down", _NVME + r"controller is down; will reset"),
        # `I/O 5 QID 3 timeout`, of newer kernels `I/O tag 5 (1005) opcode 0x1 (I/O Cmd) QID 3 timeout`
        ("timeout", _NVME + r"I/O (?:tag )?\d+ (?:\([\w/ -]{1,40}\) |opcode 0x[0-9a-f]+ ){0,3}QID \d+ timeout"),
        ("removed", _NVME + r"(?:Removing after probe failure|Disabling device after reset failure)"),
    ),
    "block": _rules(
        ("io_error", _BLOCK + "I/O" + _OF_DEVICE),
        ("medium_error", _BLOCK + "critical medium" + _OF_DEVICE),
        ("target_error", _BLOCK + "critical target" + _OF_DEVICE),
        ("no_space", _BLOCK + "critical space allocation" + _OF_DEVICE),
        ("transport_error", _BLOCK + "recoverable transport" + _OF_DEVICE),
        ("timeout", _BLOCK + "timeout" + _OF_DEVICE),
        ("protection_error", _BLOCK + "protection" + _OF_DEVICE),
        ("lost_write", _BUFFER + ", lost "),
        ("lost_write", rf"lost page write due to I/O error on {_DEVICE}"),
        ("buffer_error", _BUFFER + r"(?:, async page read|\Z)"),
    ),
}
_START = re.compile(
    rb"(?P<ext4>EXT4-fs |JBD2: Abort|Aborting journal )"
    rb"|(?P<xfs>XFS \()"
    rb"|(?P<btrfs>BTRFS)"
    rb"|(?P<overlayfs>overlayfs: )"
    rb"|(?P<dm_thin>device-mapper: )"
    rb"|(?P<zfs>WARNING: Pool '|PANIC at )"
    rb"|(?P<nvme>nvme nvme)"
    rb"|(?P<block>I/O error, dev |blk_update_request: |print_req_error: |end_request: |Buffer I/O error |"
    rb"lost page write |critical |recoverable transport |timeout error, |protection error, )"
    rb"|(?P<memory>oom-kill:|Tasks? in /|Memory cgroup out of memory: |Out of memory|Killed process )"
)
_COMM = rb"(?:\\x[0-9a-f]{2}|[^\\]){0,15}"  # bytes, some of them escaped
# `oom-kill:…,cpuset=a,mems_allowed=0,oom_memcg=/docker/b,task_memcg=/docker/b,task=c,pid=1,uid=0`; where the node has
# no memory left `…,mems_allowed=0,global_oom,task_memcg=/docker/b,task=…`. All names may have all of these words in
# them, so: the first path is the kernel's, as a cpuset is told without the way to it; who is over a limit is in the
# cgroup that has it, or below; a path ends as early as the 15 bytes behind it allow. What that cuts off was made by who
# is killed.
_VICTIM = re.compile(
    rb"oom-kill:(?:(?!,oom_memcg=/|,global_oom,task_memcg=/).)*"
    rb"(?:,oom_memcg=(?P<limit>/.*?),task_memcg=(?P<inside>(?P=limit).*?)|,global_oom,task_memcg=(?P<anywhere>/.*?))"
    rb",task=%s,pid=(?P<pid>\d{1,10}),uid=-?\d{1,10}" % _COMM,  # the kernel writes large numbers of users as negative
    re.DOTALL,
)
_GROUP = re.compile(rb"Tasks in (/.*) are going to be killed due to memory\.oom\.group set", re.DOTALL)
_HIT = re.compile(rb"Task in (/.*?) killed as a result of limit of /", re.DOTALL)
_KILLED = re.compile(
    rb"(?:(?P<cgroup>Memory cgroup out of memory: )|(?P<node>Out of memory(?: \([a-z_]+\))?: ))?"
    rb"Kill(?P<done>ed)? process (?P<pid>\d{1,10})"
)
_DROPPED = re.compile(rb"(?P<name>%s) \(\d{1,10}\): drop_caches: (?P<value>\d+)" % _COMM, re.DOTALL)


def classify(message: bytes) -> Event | Victim | Kill | Choice | Hit | None:
    """Return what a message of the kernel says, None for all that is not in the table."""
    start = _START.match(message)
    if start is None:
        if b"): drop_caches: " in message and _DROPPED.fullmatch(message):
            return Event("memory", "drop_caches")
        return None
    subsystem = start.lastgroup or ""
    if subsystem == "memory":
        return _memory(message)
    for event, pattern in RULES[subsystem]:
        if match := pattern.match(message):
            found = match.groupdict()
            if "minor" in found:
                return Event(subsystem, event, b"dm-" + found["minor"])
            return Event(subsystem, event, found.get("bdev") or found.get("device") or b"")
    return None


def _memory(message: bytes) -> Victim | Kill | Choice | Hit | None:
    if match := _VICTIM.fullmatch(message):
        return Victim(int(match["pid"]), match["inside"] or match["anywhere"])
    if match := _GROUP.fullmatch(message):
        return Victim(None, match[1])
    if match := _HIT.match(message):
        return Hit(match[1])
    if match := _KILLED.match(message):
        event = OOM_KILL if match["node"] else Event("memory", "cgroup_oom_kill") if match["cgroup"] else None
        if match["done"]:
            return Kill(event, int(match["pid"]))
        return Choice(event) if event is not None else None  # who shares its memory is killed as well
    return None


def dropped_by(message: bytes) -> bytes:
    """Return the name of the process that wrote to drop_caches, of a line that says so; it may be any text."""
    match = _DROPPED.fullmatch(message)
    return match["name"] if match else b""
