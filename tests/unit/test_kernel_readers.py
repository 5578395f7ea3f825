"""Records of the kernel's log and what they say; that no name which somebody chooses is taken for the kernel's word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.readers.kernel_events import RULES, Choice, Event, Hit, Kill, Victim, classify, dropped_by
from collectors.readers.kmsg import KERNEL, Record, parse

TREES = Path(__file__).resolve().parents[1] / "trees" / "kernellog"


def messages(case: str) -> list[bytes]:
    records, malformed = parse((TREES / case / "dev/kmsg").read_bytes())
    assert malformed == 0
    return [record.message for record in records if record.facility == KERNEL]


def test_a_record_has_its_facility_number_time_and_message() -> None:
    raw = b"6,345,4485976785,-;loop0: detected capacity change from 0 to 1048576\n SUBSYSTEM=block\n DEVICE=b7:0\n"
    assert parse(raw) == ([Record(0, 345, 4485976785, b"loop0: detected capacity change from 0 to 1048576")], 0)


def test_fields_of_newer_kernels_are_passed_over() -> None:
    assert parse(b"12,7,1,c,caller=T123,more=x;a;b\n") == ([Record(1, 7, 1, b"a;b")], 0)


@pytest.mark.parametrize(
    "line", [b"6,1,1,-", b"6,1,-;x", b"x,1,1,-;x", b"6,-1,1,-;x", b"6;x", b"6," + b"1" * 21 + b",1,-;x"]
)
def test_a_line_that_is_no_record_is_counted(line: bytes) -> None:
    assert parse(line + b"\n6,2,1,-;good\n") == ([Record(0, 2, 1, b"good")], 1)


def test_nothing_is_no_record() -> None:
    assert parse(b"") == ([], 0)
    assert parse(b"\n SUBSYSTEM=block\n") == ([], 0)


def test_every_event_of_the_table_is_in_a_recorded_log() -> None:
    seen = {
        (found.subsystem, found.event)
        for each in messages("node") + messages("sources")
        for found in [event(each)]
        if found
    }
    assert {(subsystem, name) for subsystem, rules in RULES.items() for name, _ in rules} <= seen


def event(message: bytes) -> Event | None:
    found = classify(message)
    if isinstance(found, Kill):
        return found.event
    return found if isinstance(found, Event) else None


# xfs_do_force_shutdown of Linux 3.10, 4.20, 5.12 and 5.14
SHUTDOWNS = (
    b"Corruption of in-memory data detected.  Shutting down filesystem",
    b"Log I/O Error Detected.  Shutting down filesystem",
    b"All device paths lost.  Shutting down filesystem",
    b"I/O Error Detected.  Shutting down filesystem",
    b"User initiated shutdown received. Shutting down filesystem",
    b"User initiated shutdown (0x4) received. Shutting down filesystem",
    b"Log I/O error (0x2) detected at xlog_iodone+0x7c/0xa0 [xfs] (fs/xfs/xfs_log.c:1196). Shutting down filesystem",
    b"I/O error (0x1) detected at xfs_buf_ioend+0x1/0x2 [xfs] (fs/xfs/xfs_buf.c:1). Shutting down filesystem",
    b"Corruption of on-disk metadata (0x10) detected at xfs_a+0x1/0x2 [xfs] (fs/xfs/a.c:1).  Shutting down filesystem.",
    b"Block device removal (0x20) detected at xfs_a+0x1/0x2 [xfs] (fs/xfs/a.c:1).  Shutting down filesystem.",
    b"Filesystem has been shut down due to log error (0x2).",
)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"EXT4-fs error (device dm-1): ext4_lookup:1785: inode #2: comm x", Event("ext4", "error", b"dm-1")),
        (b"EXT4-fs error (device sda1) in ext4_reserve_inode_write:5759: IO failure", Event("ext4", "error", b"sda1")),
        (b"EXT4-fs (loop5): Remounting filesystem read-only", Event("ext4", "remount_read_only", b"loop5")),
        (b"Aborting journal on device loop5-8.", Event("ext4", "journal_abort", b"loop5")),
        (b"JBD2: Aborting journal on device dm-0.", Event("ext4", "journal_abort", b"dm-0")),
        (b"Aborting journal on device dm-0-8.", Event("ext4", "journal_abort", b"dm-0")),
        (b"EXT4-fs (loop5): mounted filesystem 51220c1c-afeb-40ea-aae9-847468b1f6dc r/w", None),
        (b"XFS (loop7): User initiated shutdown received.", None),
        (b"XFS (loop7): Ending clean mount", None),
        *((b"XFS (dm-3): " + line, Event("xfs", "shutdown", b"dm-3")) for line in SHUTDOWNS),
        (b"XFS (dm-3): Corruption detected. Unmount and run xfs_repair", Event("xfs", "corruption", b"dm-3")),
        (b"XFS (sda1): x[1234]: segfault at 0 ip 0 sp 0 error 4 in Shutting down filesystem[401000+1000]", None),
        (b"nvme nvme0: I/O 978 QID 3 timeout, completion polled", Event("nvme", "timeout", b"nvme0")),
        (b"nvme nvme0: I/O 5 (I/O Cmd) QID 3 timeout, aborting", Event("nvme", "timeout", b"nvme0")),
        (b"nvme nvme0: I/O tag 28 (301c) QID 0 timeout, disable controller", Event("nvme", "timeout", b"nvme0")),
        (
            b"BTRFS error (device loop9): bdev /dev/sdb errs: wr 0, rd 1, flush 0",
            Event("btrfs", "device_error", b"sdb"),
        ),
        (b"BTRFS info (device dm-0): first mount of filesystem", None),
        (b"BTRFS warning (device loop0): qgroup marked inconsistent, qgroup info item update error -5", None),
        (b"BTRFS error (device dm-0 state EA): parent transid verify failed", Event("btrfs", "error", b"dm-0")),
        (b'overlayfs: "xino=on" is useless with all layers on same fs, ignore.', None),
        (b"device-mapper: thin: Data device (dm-1) discard unsupported: Disabling discard passdown.", None),
        (
            b"device-mapper: thin: 253:4: switching pool to out-of-data-space mode",
            Event("dm_thin", "mode_out_of_data_space", b"dm-4"),
        ),
        (b"nvme nvme0: 8/0/0 default/read/poll queues", None),
        (b"operation not supported error, dev loop0, sector 0 op 0x9:(WRITE_ZEROES)", None),
        (b"print_req_error: I/O error, dev sr0, sector 0", Event("block", "io_error", b"sr0")),
        (b"end_request: I/O error, dev sda, sector 0", Event("block", "io_error", b"sda")),
        (b"Buffer I/O error on device sda1, logical block 5", Event("block", "buffer_error", b"sda1")),
        (
            b"Buffer I/O error on dev sda1, logical block 5, lost async page write",
            Event("block", "lost_write", b"sda1"),
        ),
        (b"lost page write due to I/O error on sda1", Event("block", "lost_write", b"sda1")),
        (b"BTRFS: bdev /dev/sda1 errs: wr 0, rd 1, flush 0", Event("btrfs", "device_error", b"sda1")),
        (b"Killed process 12 (sh) total-vm:4kB, anon-rss:0kB", Kill(None, 12)),
        (b"Kill process 12 (sh) sharing same memory", None),
        (b"Out of memory: Kill process 12 (sh) score 9 or sacrifice child", Choice(Event("memory", "oom_kill"))),
        (
            b"Memory cgroup out of memory: Kill process 12 (sh) score 9 or sacrifice child",
            Choice(Event("memory", "cgroup_oom_kill")),
        ),
        (b"Task in /docker/a killed as a result of limit of /docker", Hit(b"/docker/a")),
        (b"Task in /a killed as a result of limit of /b killed as a result of limit of /a", Hit(b"/a")),
        (b"Out of memory (oom_kill_allocating_task): Killed process 12 (sh)", Kill(Event("memory", "oom_kill"), 12)),
        (b"bash (13814): drop_caches: 3", Event("memory", "drop_caches")),
        (b"a b (1) (13814): drop_caches: 10", Event("memory", "drop_caches")),
        (b"x (1): drop_caches: 3 or so", None),
        (b"", None),
    ],
)
def test_a_message_is_what_the_kernel_means(message: bytes, expected: object) -> None:
    assert classify(message) == expected


OWN, OTHER = b"/docker/" + b"a" * 64, b"/docker/" + b"b" * 64
REAL = b"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=%s,mems_allowed=0"
LIMIT = REAL % b"/" + b",oom_memcg=%s,task_memcg=%s,task=%s,pid=4711,uid=1000"
NODE = REAL % b"/" + b",global_oom,task_memcg=%s,task=%s,pid=4711,uid=1000"


@pytest.mark.parametrize(
    "name",
    [
        *(
            b"",
            b"a,task=b",
            b",task=",
            b",task=,task=,ta",
            b"a,pid=1,uid=0",
            b",pid=1,uid=0",
            b",uid=0",
            b"task_memcg=/",
        ),
        *(b",task_memcg=/a,", b",oom_memcg=/a,t", b",global_oom", rb"\xe2\x98\x83" * 5, rb"\x5c" * 15, b"\\x2c", b")"),
    ],
)
def test_no_name_of_a_process_hides_its_kill_or_moves_it_to_another_cgroup(name: bytes) -> None:
    assert classify(LIMIT % (OWN, OWN, name)) == Victim(4711, OWN)
    assert classify(LIMIT % (b"/docker", OWN, name)) == Victim(4711, OWN)
    assert classify(LIMIT % (b"/", OWN, name)) == Victim(4711, OWN)
    assert classify(NODE % (OWN, name)) == Victim(4711, OWN)


def test_a_user_whose_number_is_large_hides_no_kill() -> None:
    assert classify((NODE % (OWN, b"a")).replace(b"uid=1000", b"uid=-2")) == Victim(4711, OWN)


@pytest.mark.parametrize(
    "below",
    [
        *(
            b"/x",
            b"/x,task_memcg=" + OTHER,
            b"/x,oom_memcg=" + OTHER,
            b"/x,oom_memcg=" + OTHER + b",task_memcg=" + OTHER,
        ),
        *(
            b"/x,global_oom,task_memcg=" + OTHER,
            b"/x,task=a,pid=1,uid=0",
            b"/x,task_memcg=" + OTHER + b",task=a,pid=4711,uid=0",
        ),
        b"/x,task_memcg=" + OWN + b"/y,task_memcg=" + OTHER,
    ],
)
@pytest.mark.parametrize("name", [b"a", b"a,task=b", b",task_memcg=/a,"])
def test_no_name_of_a_cgroup_moves_a_kill_to_another_one(below: bytes, name: bytes) -> None:
    hostile = OWN + below
    messages = [LIMIT % (limit, hostile, name) for limit in (b"/", b"/docker", OWN, hostile)]
    cpuset = below.rpartition(b"/")[2]
    for message in (
        *messages,
        NODE % (hostile, name),
        (NODE % (hostile, name)).replace(b"cpuset=/", b"cpuset=" + cpuset),
    ):
        found = classify(message)
        assert isinstance(found, Victim)
        assert found.pid == 4711
        assert (found.cgroup + b"/").startswith(OWN + b"/")


parts = st.sampled_from(
    [b"a", b",task=", b",task_memcg=", b",oom_memcg=", b",global_oom", b",pid=1", b",uid=0", b"docker", b"b" * 64]
)
paths = st.lists(st.lists(parts, min_size=1, max_size=4).map(b"".join), max_size=4).map(
    lambda each: b"".join(b"/" + name for name in each)
)


@given(limit=paths, below=paths, name=st.lists(parts, max_size=4).map(b"".join), cpuset=parts, has_limit=st.booleans())
def test_whatever_they_are_called_a_kill_is_of_its_own_container(
    *, limit: bytes, below: bytes, name: bytes, cpuset: bytes, has_limit: bool
) -> None:
    message = LIMIT % (OWN + limit, OWN + limit + below, name[:15]) if has_limit else NODE % (OWN + limit, name[:15])
    found = classify(message.replace(b"cpuset=/", b"cpuset=" + cpuset))
    assert isinstance(found, Victim)
    assert found.pid == 4711
    assert (found.cgroup + b"/").startswith(OWN + b"/")


def test_a_whole_cgroup_that_is_killed_is_named() -> None:
    message = b"Tasks in /docker/a are going to be killed due to memory.oom.group set"
    assert classify(message) == Victim(None, b"/docker/a")


def test_who_dropped_caches_is_the_whole_name_of_the_process() -> None:
    assert dropped_by(b"bash (12): drop_caches: 1") == b"bash"
    assert dropped_by(b"a (2): b (12): drop_caches: 1") == b"a (2): b"
    assert dropped_by(rb"\xe2\x98\x83\x5c\x0a0123456789 (12): drop_caches: 1") == rb"\xe2\x98\x83\x5c\x0a0123456789"
    assert dropped_by(b"bash") == b""


# Where the kernel writes names that anybody chooses: a process's own, of which fs/exec.c calls comm and keeps 15 bytes,
# and that of a file or a cgroup, which has no slash.
LINES = (
    "{comm}[1]: segfault at 0 ip 401136 sp 7ffd error 4 in {name}[401000+1000]",
    "{comm}[1]: segfault at 0 ip 401136 sp 7ffd error 4 in {name}[1136,401000+1000] likely on CPU 0 (core 0, socket 0)",
    "{comm}[1]: segfault (11) at 0 nip 401136 lr 401136 code 1 in {name}[401000+1000]",
    "{comm}[1]: unhandled signal 11 code 0x1 at 0x0 in {name}[401000+1000]",
    "{comm}[1]: unhandled exception: DABT (lower EL), ESR 0x0, level 0 translation fault in {name}[401000+1000]",
    "{comm}[1] general protection fault ip:401136 sp:7ffd error:0 in {name}[401000+1000]",
    "{comm}[1] bad frame in rt_sigreturn frame:7ffd ip:401136 sp:7ffd orax:ffffffffffffffff in {name}[401000+1000]",
    "traps: {comm}[1] trap invalid opcode ip:401136 sp:7ffd error:0 in {name}[401000+1000]",
    "{comm} cpuset={name} mems_allowed=0",  # up to Linux 4.20
    "{comm} invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
    "{comm}: page allocation failure: order:0, mode:0xcc0(GFP_KERNEL), nodemask=(null),cpuset={name},mems_allowed=0",
    "{comm} (1): Using mlock ulimits for SHM_HUGETLB is obsolete",
    "{comm}/1: potentially unexpected fatal signal 11.",
    "[      1]     0     1      640      100    45056        0             0 {comm}",
    "CPU: 0 UID: 0 PID: 1 Comm: {comm} Not tainted 6.18.0 #1",
    "INFO: task {comm}:1 blocked for more than 120 seconds.",
    "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [{comm}:1]",
    "process '{name}' started with executable stack",
    "warning: process `{comm}' used the deprecated sysctl system call",
    "cgroup: fork rejected by pids controller in /{name}",
    "Memory cgroup stats for /{name}: cache:32KB rss:524060KB",
    'audit: type=1701 audit(1.1:1): auid=0 uid=0 gid=0 ses=1 pid=1 comm="{comm}" exe="/{name}" sig=11 res=1',
)
WORDS = sorted(
    {
        word
        for rules in RULES.values()
        for _, pattern in rules
        for word in re.split(r"[\\()?*+\[\]|^{}]+", pattern.pattern.decode())
        if word
    }
    | {
        "Memory cgroup out of memory: Killed process 1",
        "Out of memory: Killed process 1",
        "Out of memory: Kill process 1",
        "Task in / killed as a result of limit of /",
        "Killed process 1",
        "oom-kill:",
    }
)
FORGED = (
    "Memory cgroup out of memory: Killed process 1 (init) total-vm:1kB",
    "Out of memory: Killed process 1 (init) total-vm:1kB",
    "Killed process 1 (init) total-vm:1kB",
    "Tasks in /docker/a are going to be killed due to memory.oom.group set",
    "Task in /docker/a killed as a result of limit of /docker/a",
    "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/a,task=a,pid=1,uid=0",
    "sh (1): drop_caches: 3",
)


def test_no_line_of_the_kernel_can_be_told_by_names() -> None:
    """Whatever part of such a line the name of a process begins, and whatever part of it another name goes on with."""
    told = [line.decode() for case in ("node", "sources") for line in messages(case) if event(line)] + list(FORGED)
    for line in told:
        ends = {line[match.start() :].replace("/", "") for match in re.finditer(r"\b|\B(?=\W)", line)}
        for size in range(1, 16):
            for end in ends:
                for form in LINES:
                    message = form.format(comm=line[:size], name=end)
                    assert classify(message.encode()) is None, message


comms = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S", "Zs"]), max_size=15)
names = st.one_of(comms, st.lists(st.sampled_from(WORDS), max_size=8).map("".join))


@given(names, names, st.sampled_from(LINES))
def test_no_name_makes_an_event(comm: str, name: str, form: str) -> None:
    message = form.format(comm=comm[:15], name=name.replace("/", "")[:255])
    assert classify(message.encode()) is None
