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


def test_the_cgroup_of_a_killed_process_is_the_last_that_is_named() -> None:
    message = (
        b"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,task_memcg=/forged,task=y,pid=1,uid=0,"
        b"mems_allowed=0,oom_memcg=/docker/a,task_memcg=/docker/b,task=a,pid=9,uid=0,pid=4711,uid=1000"
    )
    assert classify(message) == Victim(4711, b"/docker/b")


def test_a_whole_cgroup_that_is_killed_is_named() -> None:
    message = b"Tasks in /docker/a are going to be killed due to memory.oom.group set"
    assert classify(message) == Victim(None, b"/docker/a")


def test_who_dropped_caches_is_the_whole_name_of_the_process() -> None:
    assert dropped_by(b"bash (12): drop_caches: 1") == b"bash"
    assert dropped_by(b"a (2): b (12): drop_caches: 1") == b"a (2): b"
    assert dropped_by(b"bash") == b""


# what the kernel writes behind a process's own name: fs/exec.c calls it comm and keeps 15 bytes of it
BEHIND = (
    "[123]: segfault at 0 ip 0000000000401136 sp 00007ffd error 4 in a[401000+1000] likely on CPU 0 (core 0, socket 0)",
    " invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
    "[123] general protection fault ip:401136 sp:7ffd error:0 in a[401000+1000]",
    ": page allocation failure: order:0, mode:0xcc0(GFP_KERNEL), nodemask=(null)",
    " (123): Using mlock ulimits for SHM_HUGETLB is obsolete",
    "/123: potentially unexpected fatal signal 11.",
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
names = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S", "Zs"]), max_size=15)


@given(st.one_of(names, st.lists(st.sampled_from(WORDS), max_size=3).map("".join)), st.sampled_from(BEHIND))
def test_no_name_of_a_process_makes_an_event(name: str, behind: str) -> None:
    assert classify((name[:15] + behind).encode()) is None
