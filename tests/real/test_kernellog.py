"""The kernel's own lines of real faults, and lines that others forge, in the series of the collector."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.containers import Runtimes
from collectors import kernellog
from collectors.readers import kmsg
from tests.real.conftest import Make, damage, run
from tests.real.dockerd import Dockerd
from tests.real.kernellog import WAIT, Agent, log_end
from tests.settings import setting

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture
def agent() -> Iterator[Agent]:
    made = Agent()
    try:
        yield made
    finally:
        made.running.close()


def device_of(mount: Path) -> str:
    """Return the kernel's name of the device that is mounted there."""
    return run("findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", str(mount)).removeprefix("/dev/")


def test_an_ext4_error_and_its_remedy(filesystem: Make, need: Callable[..., None], agent: Agent) -> None:
    need("e2fsck")
    mount = filesystem("ext4", options="errors=remount-ro")
    device = device_of(mount)
    assert not agent.risen("ext4", "error", device)
    began = time.time()
    Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("ullage")
    agent.until("ext4", "error", device)
    agent.until("ext4", "remount_read_only", device)
    told = agent.read("ullage_kernel_event_last_timestamp_seconds")["ext4", "error", device]
    assert int(began) - 2 <= told <= time.time()
    assert f"EXT4-fs error (device {device})" in agent.found("filesystem-errors", device).explanation
    remedy = agent.found("filesystem-shut-down", device).remedy.partition(" then: ")[2]
    assert agent.found("filesystem-errors", device).remedy.partition(" then: ")[2] == remedy
    assert remedy == f"umount /dev/{device}; e2fsck -f /dev/{device}"
    checked = subprocess.run(remedy.replace("-f", "-fy"), shell=True, check=False, capture_output=True, text=True)
    assert checked.returncode in (0, 1), checked.stdout + checked.stderr
    run("mount", f"/dev/{device}", str(mount))
    (mount / "file").write_text("works again")
    agent.expect_end("filesystem-shut-down", device)


def test_an_xfs_shutdown_and_its_remedy(filesystem: Make, need: Callable[..., None], agent: Agent) -> None:
    need("xfs_io", "xfs_repair")
    mount = filesystem("xfs", size=512)
    device = device_of(mount)
    (mount / "file").write_text("before")
    run("xfs_io", "-x", "-c", "shutdown", str(mount))
    agent.until("xfs", "shutdown", device)
    assert agent.risen("xfs", "shutdown", device) == 1
    remedy = agent.found("filesystem-shut-down", device).remedy.partition(" then: ")[2]
    run("umount", str(mount))
    run("mount", f"/dev/{device}", str(mount))  # replays its log
    subprocess.run(remedy, shell=True, check=True, capture_output=True)
    run("mount", f"/dev/{device}", str(mount))
    (mount / "file").write_text("works again")
    agent.expect_end("filesystem-shut-down", device)


def test_damaged_data_on_btrfs_and_what_its_remedy_shows(
    filesystem: Make, need: Callable[..., None], agent: Agent
) -> None:
    need("btrfs")
    mount = filesystem("btrfs", "-m", "single", size=256)
    device = device_of(mount)
    pattern = os.urandom(4096)
    (mount / "file").write_bytes(pattern * 16)
    run("umount", str(mount))
    damage(next(mount.parent.glob("btrfs-*.img")), pattern)
    Path("/proc/sys/vm/drop_caches").write_text("1")
    run("mount", f"/dev/{device}", str(mount))
    with contextlib.suppress(OSError):
        (mount / "file").read_bytes()
    agent.until("btrfs", "checksum_error", device)
    agent.until("btrfs", "device_error", device)
    assert "csum failed" in agent.found("filesystem-errors", device).explanation
    umount, check = agent.found("filesystem-errors", device).remedy.partition(" then: ")[2].split("; ", 1)
    check = check.partition("   #")[0]
    run("sh", "-ec", umount)
    shown = subprocess.run(check, shell=True, check=False, capture_output=True, text=True)
    assert shown.returncode != 0, shown
    assert " csum 0x" in shown.stdout + shown.stderr
    run("mount", f"/dev/{device}", str(mount))
    (mount / "file").write_bytes(pattern * 16)  # restored
    run("sh", "-ec", umount)
    run("sh", "-ec", check)
    run("mount", f"/dev/{device}", str(mount))
    agent.expect_end("filesystem-errors", device)


def test_reads_of_a_drive_that_fail(filesystem: Make, agent: Agent) -> None:
    mount = filesystem("ext4")
    device = device_of(mount)
    image = next(mount.parent.glob("ext4-*.img"))
    os.truncate(image, 32 << 20)  # the device believes that it is larger
    Path("/proc/sys/vm/drop_caches").write_text("1")
    descriptor = os.open(f"/dev/{device}", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(descriptor, 4096, 48 << 20)
    finally:
        os.close(descriptor)
        os.truncate(image, 64 << 20)
    agent.until("block", "io_error", device)
    found = agent.found("drive-errors", device)
    assert f"I/O error on dev {device}," in found.explanation or f"I/O error, dev {device}," in found.explanation
    assert device in run(*found.remedy.partition(" shows ")[0].split())


def test_dropped_caches_and_who_dropped_them(agent: Agent) -> None:
    subprocess.run(["/bin/sh", "-c", "printf cleaner > /proc/self/comm; echo 1 > /proc/sys/vm/drop_caches"], check=True)
    agent.until("memory", "drop_caches", "")
    text = agent.found("drop-caches-process", "cleaner").explanation
    assert re.search(r"cleaner \(\d+\): drop_caches: 1$", text), text


def test_the_counts_go_on_where_they_were_over_a_restart(filesystem: Make, tmp_path: Path) -> None:
    device = device_of(filesystem("ext4"))
    trigger = Path(f"/sys/fs/ext4/{device}/trigger_fs_error")
    key = "ext4", "error", device
    first = Agent(tmp_path / "state")
    trigger.write_text("one")
    first.until(*key)
    first.running.close()
    trigger.write_text("between the two")
    second = Agent(tmp_path / "state")
    assert second.before[key] - first.before.get(key, 0) == 2
    trigger.write_text("three")
    second.until(*key)
    assert second.risen(*key) == 1
    second.running.close()
    killed = Agent(tmp_path / "state")  # reads what came after the last writing, and dies without one
    trigger.write_text("four")
    killed.until(*key)
    last = Agent(tmp_path / "state")
    assert last.before[key] - first.before.get(key, 0) == 4
    for made in (killed, last):
        made.running.close()


# -- what others write --


# a line without an end could be continued: the kernel shows it with the next one
FORGED = (
    b"EXT4-fs error (device sda1): ext4_find_entry:1455: inode #2: comm ls: reading directory lblock 0\n",
    b"<0>EXT4-fs error (device sda1): as the kernel's own\n",
    b"<2048>XFS (sda1): User initiated shutdown received.  Shutting down filesystem.\n",
    b"nothing\n6,1,1,-;I/O error, dev sda, sector 1 op 0x0:(READ)\n",
    # these two would make a container's kill
    b"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/docker/%s,"
    b"task_memcg=/docker/%s,task=init,pid=1,uid=0\n" % (2 * (b"f" * 64,)),
    b"Memory cgroup out of memory: Killed process 1 (init) total-vm:1kB\n",
    b"nothing\nMemory cgroup out of memory: Killed process 1 (init) total-vm:1kB\n",
    b"Out of memory: Killed process 1 (init) total-vm:1kB\n",
    b"sh (1): drop_caches: 3\n",
)


@pytest.fixture
def unlimited() -> Iterator[None]:
    """Let processes write into the log as fast as they like, as an administrator may."""
    with setting("/proc/sys/kernel/printk_devkmsg", "on"):
        yield


@pytest.fixture
def log() -> Iterator[int]:
    descriptor = os.open("/dev/kmsg", os.O_WRONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


Witness = Callable[[bytes], int]


@pytest.fixture
def witness() -> Iterator[Witness]:
    """Return how many of the kernel's own lines have had a text in them since the test began, read beside the agent."""
    descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(descriptor, 0, os.SEEK_END)
    own: list[bytes] = []

    def count(text: bytes) -> int:
        with contextlib.suppress(BlockingIOError):
            while True:
                with contextlib.suppress(BrokenPipeError):
                    record = os.read(descriptor, kernellog.BUFFER)
                    if int(record.partition(b",")[0]) < 8:
                        own.append(record)
        return sum(text in record for record in own)

    yield count
    os.close(descriptor)


def expect_nothing_of_it(agent: Agent, witness: Witness) -> None:
    """Expect that nothing forged is counted; others may drop caches or be killed meanwhile, which the kernel tells."""
    events = agent.read("ullage_kernel_events_total")
    risen = {key: count - agent.before.get(key, 0) for key, count in events.items()}
    killed = agent.read("ullage_container_oom_kills_total")
    assert [key for key, count in risen.items() if "sda" in key[2] and count] == []
    for event, text in (("drop_caches", b"): drop_caches: "), ("kill", b"Killed process ")):
        assert sum(count for key, count in risen.items() if event in key[1]) <= witness(text), event
    assert [key for key in killed if key[3] == "f" * 12] == []


@pytest.mark.usefixtures("unlimited")
def test_forged_lines_raise_nothing_but_the_count_of_ignored_ones(witness: Witness, agent: Agent, log: int) -> None:
    ignored = agent.number("ullage_kernel_log_ignored_total")
    for _ in range(10):
        for line in FORGED:
            os.write(log, line)
    assert agent.number("ullage_kernel_log_ignored_total") - ignored >= 10 * len(FORGED)
    expect_nothing_of_it(agent, witness)


@pytest.mark.usefixtures("unlimited")
def test_a_storm_is_read_in_bounded_parts_and_what_is_lost_is_counted(log: int) -> None:
    lines = 500
    agent = Agent(lines=lines)
    end = time.monotonic() + WAIT
    while agent.running._drained_at == 0:  # what is in the log already
        assert time.monotonic() < end, "the log has no end"
        agent.read("ullage_kernel_log_ignored_total")
    ignored = agent.number("ullage_kernel_log_ignored_total")
    overruns = agent.number("ullage_kernel_log_overruns_total")
    for number in range(2 * lines):
        os.write(log, b"storm %d\n" % number)
    assert agent.number("ullage_kernel_log_ignored_total") - ignored <= lines
    storm = 40_000  # more than the kernel keeps
    for number in range(storm):
        os.write(log, b"storm %d of the second kind, which is longer than the first\n" % number)
    before = agent.running._drained_at
    while agent.running._drained_at == before:
        assert time.monotonic() < end, "the storm has no end"
        agent.read("ullage_kernel_log_ignored_total")
    taken = agent.number("ullage_kernel_log_ignored_total") - ignored
    lost = agent.number("ullage_kernel_log_overruns_total") - overruns
    assert lost > 0
    assert taken + lost >= 2 * lines + storm
    agent.running.close()


# -- containers --


def runtimes_of(docker: Dockerd) -> Runtimes:
    return Runtimes(
        docker_roots=(str(docker.root),), docker_sockets=(), containerd_states=(), containers_storage_roots=()
    )


def start(docker: Dockerd, name: str, *options: str, script: str) -> str:
    """Start a container of 16 MiB and return its id."""
    limits = "--memory=16m", "--memory-swap=16m", "--network=none"
    return docker.docker("run", "--detach", *limits, *options, "--name", name, "busybox", "/bin/sh", "-c", script)


GROW = "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done"


@pytest.mark.docker
@pytest.mark.parametrize("name", ["sh", "a,task=b,pid=1"])
def test_a_process_killed_for_memory_is_its_containers(name: str, docker: Dockerd) -> None:
    agent = Agent(runtimes=runtimes_of(docker))
    container = start(docker, "hungry", script=f"printf {name} > /proc/self/comm; {GROW}")
    agent.until("memory", "cgroup_oom_kill", "")
    key = "", "", "hungry", container[:12]
    killed = agent.read("ullage_container_oom_kills_total")
    assert killed[key] >= 1, killed
    found = agent.found("container-oom-kill", "hungry")
    assert "Killed process" in found.explanation
    assert f"docker update --memory SIZE --memory-swap SIZE {container[:12]}" in found.remedy
    docker.docker("update", "--memory=64m", "--memory-swap=64m", container[:12])
    agent.expect_end("container-oom-kill", "hungry")
    agent.running.close()


@pytest.mark.docker
def test_a_container_that_is_gone_when_its_line_is_read_has_its_name(docker: Dockerd) -> None:
    agent = Agent(runtimes=runtimes_of(docker))
    agent.running.clock = lambda: time.monotonic() + 1000  # the next run looks which containers there are
    # removed with all its files as soon as it ends
    container = start(docker, "brief", "--rm", script=f"while ! [ -e /tmp/go ]; do sleep 0.1; done; {GROW}")
    agent.read("ullage_container_oom_kills_total")
    docker.docker("exec", "brief", "/bin/sh", "-c", "echo > /tmp/go")
    end = time.monotonic() + WAIT
    while (docker.root / "containers" / container).exists():
        assert time.monotonic() < end, f"the container is not removed; the log's end:\n{log_end()}"
        time.sleep(0.1)
    agent.until("memory", "cgroup_oom_kill", "")
    killed = agent.read("ullage_container_oom_kills_total")
    assert killed.get(("", "", "brief", container[:12]), 0) >= 1, killed
    agent.running.close()


@pytest.mark.docker
@pytest.mark.usefixtures("unlimited")
def test_a_container_that_floods_the_log_raises_nothing_but_the_count_of_ignored_lines(
    witness: Witness, docker: Dockerd
) -> None:
    agent = Agent(runtimes=runtimes_of(docker))
    ignored = agent.number("ullage_kernel_log_ignored_total")
    for place, line in enumerate(FORGED):
        (docker.root.parent / f"forged-{place}").write_bytes(line)
    forged = f"{docker.root.parent}:/forged:ro"
    write = "for n in 1 2 3 4 5 6 7 8 9 10; do for f in /forged/forged-*; do cat $f > /dev/kmsg; done; done"
    docker.docker(
        *("run", "--rm", "--network=none", "--device=/dev/kmsg", "--volume", forged),
        *("busybox", "/bin/sh", "-c", write),
    )
    assert agent.number("ullage_kernel_log_ignored_total") - ignored >= 10 * len(FORGED)
    expect_nothing_of_it(agent, witness)
    agent.running.close()


def test_a_log_that_may_not_be_opened_is_told() -> None:
    script = (
        "from agent.host import Host; from agent.collector import Start; from agent.errors import Unsupported\n"
        "from collectors.kernellog import KernelLog, Settings\n"
        "try:\n list(KernelLog(Start(Host(), Settings())).collect(Host()))\n print('read')\n"
        "except Unsupported as error:\n print(error)"
    )
    drop = ("setpriv", "--bounding-set=-syslog,-sys_admin", "--inh-caps=-syslog,-sys_admin")
    with setting("/proc/sys/kernel/dmesg_restrict", "1"):
        told = run(*drop, sys.executable, "-c", script)
    assert "CAP_SYSLOG" in told


def test_every_record_of_this_kernel_is_one() -> None:
    descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    seen = 0
    try:
        with contextlib.suppress(BlockingIOError):
            while True:
                with contextlib.suppress(BrokenPipeError):
                    records, malformed = kmsg.parse(os.read(descriptor, kernellog.BUFFER))
                    assert (len(records), malformed) == (1, 0)
                    seen += 1
    finally:
        os.close(descriptor)
    assert seen
