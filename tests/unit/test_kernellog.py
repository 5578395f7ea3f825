"""What the collector makes of the kernel's log from run to run, over restarts and boots, and what a person is told."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.collector import Running, Start
from agent.config import load as load_config
from agent.errors import ConfigError
from agent.statefile import write
from collectors import identities, kernel_counts, kernellog
from collectors.kernel_counts import VERSION, Counts, Tally, encode, load
from collectors.kernellog import COLLECTOR, KernelLog, Settings
from tests.trees.node import Node

BOOT = 1793127709
NOW = BOOT + 1500.0  # a minute after the recorded log's end
LAST = 136  # the number of its last record
HUNGRY = 'container="hungry",id="60ca562972f6",namespace="",pod=""'


class Clock:
    """The time since boot, and of the day."""

    def __init__(self) -> None:
        self.seconds = 1500.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> float:
        return BOOT + self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., Node]


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Make:
    """Put an agent to work on a copy of a tree; `state` outlives it."""

    def made(case: str = "node", *, keeps: bool = False, settings: Settings | None = None) -> Node:
        def start(given: Start) -> Running:
            state = tmp_path / "state" if keeps else None
            return KernelLog(replace(given, settings=settings or given.settings, state=state), clock, clock.now)

        return Node(COLLECTOR, case, tmp_path, start)

    return made


def value(page: str, series: str) -> float | None:
    """Return the value of a series as the page writes it, None if it is not there."""
    found = re.search(rf"^{re.escape(series)} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else None


def events(page: str, subsystem: str, event: str, device: str = "") -> float | None:
    return value(page, f'ullage_kernel_events_total{{device="{device}",event="{event}",subsystem="{subsystem}"}}')


def ignored(page: str) -> float | None:
    return value(page, "ullage_kernel_log_ignored_total")


def overruns(page: str) -> float | None:
    return value(page, "ullage_kernel_log_overruns_total")


def tell(node: Node, *lines: str, number: int = LAST + 1, priority: int = 3, at: float = 1490.0) -> int:
    """Write lines into the log; return the number of the next."""
    with open(node.path / "dev/kmsg", "a") as log:
        log.writelines(f"{priority},{number + place},{int(at * 1e6)},-;{line}\n" for place, line in enumerate(lines))
    return number + len(lines)


def victim(cgroup: str, pid: int = 5, name: str = "a") -> str:
    """Return the line that tells whose process will be killed for memory."""
    where = f"oom_memcg={cgroup},task_memcg={cgroup}"
    return f"oom-kill:constraint=X,nodemask=(null),cpuset=/,mems_allowed=0,{where},task={name},pid={pid},uid=0"


BATCH = hashlib.sha256(b"batch").hexdigest()  # the container of the tree debian-10
ERROR = "EXT4-fs error (device sdx): ext4_lookup:1785: inode #2: comm ls: deleted inode referenced"


def test_what_comes_between_two_runs_is_added(make: Make) -> None:
    node = make()
    assert events(node.run(), "ext4", "error", "loop0") == 1
    tell(node, ERROR, ERROR)
    page = node.run()
    assert (events(page, "ext4", "error", "loop0"), events(page, "ext4", "error", "sdx")) == (1, 2)
    assert events(node.run(), "ext4", "error", "sdx") == 2


def test_a_gap_in_the_numbers_is_what_was_overwritten(make: Make) -> None:
    node = make()
    assert overruns(node.run()) == 0
    tell(node, ERROR, number=LAST + 101)
    page = node.run()
    assert (overruns(page), events(page, "ext4", "error", "sdx")) == (100, 1)


@pytest.mark.parametrize("priority", [8, 11, 30, 191, 2047])
def test_lines_of_others_than_the_kernel_are_ignored(priority: int, make: Make) -> None:
    node = make()
    before = node.run()
    tell(node, ERROR, "Out of memory: Killed process 1 (init) total-vm:1kB", priority=priority)
    after = node.run()
    assert (ignored(before), ignored(after)) == (3, 5)
    assert [line for line in after.splitlines() if "ignored" not in line] == [
        line for line in before.splitlines() if "ignored" not in line
    ]


def test_the_log_of_a_whole_boot_is_counted_the_same_by_each_agent(make: Make) -> None:
    assert make().run() == make().run()


def test_the_rest_of_a_log_is_not_counted_but_what_follows_it_is(make: Make) -> None:
    node = make("rotated")
    page = node.run()
    assert (events(page, "ext4", "error", "loop0"), ignored(page)) == (0, 0)
    tell(node, "EXT4-fs error (device loop0): more", number=1_000_000)
    assert events(node.run(), "ext4", "error", "loop0") == 1


def test_counts_and_the_place_in_the_log_outlive_the_agent(make: Make) -> None:
    first = make(keeps=True)
    before = first.run()
    first.running.close()
    second = make(keeps=True)
    number = tell(second, ERROR, number=LAST + 6)
    page = second.run()
    assert events(page, "ext4", "error", "loop0") == 1
    assert events(page, "ext4", "error", "sdx") == 1
    assert (overruns(page), ignored(page)) == (5, ignored(before))
    assert value(page, f"ullage_container_oom_kills_total{{{HUNGRY}}}") == 1
    tell(second, ERROR, number=number)
    assert events(second.run(), "ext4", "error", "sdx") == 2


def test_an_agent_that_was_killed_is_followed_by_one_that_counts_nothing_twice(make: Make, clock: Clock) -> None:
    killed = make(keeps=True)
    killed.run()  # keeps what it knows
    tell(killed, ERROR)
    clock.seconds += 1
    killed.run()  # too soon to keep it again
    next_one = make(keeps=True)
    tell(next_one, ERROR)
    assert events(next_one.run(), "ext4", "error", "sdx") == 1


def test_state_is_kept_each_minute_and_only_when_there_is_something_new(
    make: Make, clock: Clock, tmp_path: Path
) -> None:
    node = make(keeps=True)
    node.run()
    file = tmp_path / "state" / "kernellog.json"
    file.unlink()
    clock.seconds += 100
    node.run()
    assert not file.exists()
    tell(node, ERROR)
    node.run()
    assert file.exists()


def test_state_that_could_not_be_written_is_written_a_minute_later(make: Make, clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no directory")
    node = make(keeps=True)
    with capture_logs() as logs:
        node.run()
        (tmp_path / "state").unlink()
        clock.seconds += 100
        node.run()
    assert [each["event"] for each in logs if "saved" in each["event"]] == ["state not saved", "state saved again"]
    assert load(tmp_path / "state" / "kernellog.json") is not None


def test_another_boot_counts_from_nothing(make: Make, tmp_path: Path) -> None:
    first = make(keeps=True)
    first.run()
    first.running.close()
    second = make("rotated", keeps=True)
    (second.path / "proc/sys/kernel/random/boot_id").write_text("5d9e\n")
    page = second.run()
    assert (events(page, "ext4", "error", "loop0"), events(page, "xfs", "shutdown", "loop0")) == (1, None)
    assert overruns(page) == 124824 + 5  # what this boot has said and nobody has read
    second.running.close()
    kept = load(tmp_path / "state" / "kernellog.json")
    assert kept is not None
    assert kept.boot == "5d9e"


@pytest.mark.parametrize("text", ["{", '{"version": 1}', '{"version": 1, "boot": "x", "sequence": 1, "ignored": 0}'])
def test_damaged_state_is_set_aside(text: str, make: Make, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "kernellog.json").write_text(text)
    with capture_logs() as logs:
        assert events(make(keeps=True).run(), "ext4", "error", "loop0") == 1
    assert "state damaged, set aside" in [entry["event"] for entry in logs]


def test_labels_of_the_wrong_number_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "kernellog.json"
    write(path, VERSION, encode(Counts("boot", 1, events={("ext4", "error"): Tally(1, 1, 1, b"x")})))
    with capture_logs():
        assert load(path) is None


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    counts = Counts(
        "boot", 7, 1, 2, {("ext4", "error", "sdx"): Tally(3, 4, 5, b"a message\\x0a")}, {("", "", "a", "b"): Tally()}
    )
    write(tmp_path / "kernellog.json", VERSION, encode(counts))
    assert load(tmp_path / "kernellog.json") == counts


def test_a_run_reads_no_more_than_it_may(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernellog, "BUFFER", 64)  # a file gives what fits, the kernel one record
    node = make(settings=Settings(lines=10))
    records = (f"3,{number},1000,-;EXT4-fs error (device sdx): ".ljust(63, "x") for number in range(35))
    (node.path / "dev/kmsg").write_text("\n".join(records) + "\n")
    assert [events(node.run(), "ext4", "error", "sdx") for _ in range(5)] == [10, 20, 30, 35, 35]


def test_a_kind_of_event_beyond_the_bound_is_other(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_counts, "MOST_EVENTS", 10)
    node = make()
    node.run()
    tell(node, *(f"EXT4-fs error (device sd{letter}): x" for letter in "abc"))
    page = node.run()
    assert events(page, "ext4", "error", "other") == 3
    assert events(page, "ext4", "error", "sda") is None


# -- times --


def test_a_line_of_the_last_round_is_no_older_than_the_round(make: Make, clock: Clock) -> None:
    node = make()
    node.run()
    clock.seconds += 100
    tell(node, ERROR, at=3.0)  # the machine was suspended: the log's clock stood still
    series = 'ullage_kernel_event_last_timestamp_seconds{device="sdx",event="error",subsystem="ext4"}'
    assert value(node.run(), series) == BOOT + 1500
    tell(node, ERROR, at=99_999.0, number=LAST + 2)
    assert value(node.run(), series) == BOOT + 1600


def test_without_the_time_of_boot_old_lines_have_no_time(make: Make) -> None:
    node = make()
    (node.path / "proc/stat").write_text("cpu 1\n")
    page = node.run()
    assert events(page, "ext4", "error", "loop0") == 1
    assert "ullage_kernel_event_last_timestamp_seconds{" not in page
    assert node.runner.errors == {"malformed": 1}
    assert not node.found()


# -- containers --


def test_a_container_whose_files_are_gone_has_the_name_that_it_had(make: Make, clock: Clock) -> None:
    node = make("sources")
    (node.path / "dev/kmsg").write_text("6,0,1,-;Linux version 6.12\n")
    node.run()
    for path in (node.path / "run", node.path / "var"):
        path.rename(path.with_name(path.name + "-gone"))
    clock.seconds += identities.LOOK_EVERY  # a look does not find the names, and keeps those that were known
    (node.path / "sys/fs/cgroup/kubepods.slice").rename(node.path / "sys/gone")
    cgroup = next((node.path / "sys/gone").rglob("*aaaa.scope")).relative_to(node.path / "sys/gone")
    tell(
        node,
        victim(f"/kubepods.slice/{cgroup}", 4711),
        "Memory cgroup out of memory: Killed process 4711 (java) total-vm:26852kB",
        number=1,
    )
    labels = 'container="app",id="aaaaaaaaaaaa",namespace="shop",pod="cart-0"'
    assert value(node.run(), f"ullage_container_oom_kills_total{{{labels}}}") == 1


def test_an_unknown_container_is_told_by_its_id(make: Make) -> None:
    node = make()
    node.run()
    tell(
        node,
        victim(f"/docker/{'c' * 64}"),
        "Memory cgroup out of memory: Killed process 5 (a) total-vm:1kB",
    )
    labels = 'container="",id="cccccccccccc",namespace="",pod=""'
    assert value(node.run(), f"ullage_container_oom_kills_total{{{labels}}}") == 1


def test_a_kill_in_what_a_container_made_is_its_own_whatever_it_is_called(make: Make) -> None:
    node = make()
    node.run()
    own, other = "60ca562972f634d4105a8765b997374076a5d6f2c4dd62ca080c0fe701c0c675", "c" * 64
    number = LAST + 1
    for cgroup in (
        f"/docker/{own}/docker/{other}",
        f"/docker/{own}/x/libpod-conmon-{other}",
        f"/docker/{own}/pod{'d' * 32}",
    ):
        number = tell(
            node,
            victim(cgroup, name="a,task=b"),
            "Memory cgroup out of memory: Killed process 5 (a,task=b) total-vm:1kB",
            number=number,
        )
    page = node.run()
    assert value(page, f"ullage_container_oom_kills_total{{{HUNGRY}}}") == 4
    assert page.count("ullage_container_oom_kills_total{") == 1


def test_what_is_in_a_container_that_nobody_knows_may_be_known(make: Make) -> None:
    node = make()
    node.run()
    known = "60ca562972f634d4105a8765b997374076a5d6f2c4dd62ca080c0fe701c0c675"  # on a node of kind
    tell(
        node,
        victim(f"/docker/{'c' * 64}/docker/{known}"),
        "Memory cgroup out of memory: Killed process 5 (a) total-vm:1kB",
    )
    assert value(node.run(), f"ullage_container_oom_kills_total{{{HUNGRY}}}") == 2


@pytest.mark.parametrize("cgroup", ["/", "/system.slice/cron.service", "/../../docker", f"/kubepods/pod{'d' * 32}"])
def test_a_kill_outside_of_containers_is_no_containers(cgroup: str, make: Make) -> None:
    node = make()
    before = node.run()
    tell(
        node,
        victim(cgroup),
        "Memory cgroup out of memory: Killed process 5 (a) total-vm:1kB",
    )
    page = node.run()
    assert events(page, "memory", "cgroup_oom_kill") == 2
    assert page.count("ullage_container_oom_kills_total{") == before.count("ullage_container_oom_kills_total{")


def test_up_to_linux_5_0_a_kill_is_why_the_line_before_it_says_and_whose_the_one_before_that(make: Make) -> None:
    node = make("debian-10")
    before = node.run()
    number = tell(
        node,
        "Killed process 7 (a) total-vm:1kB",  # another one of the group
        "Out of memory: Kill process 5 (a) score 9 or sacrifice child",
        "Killed process 6 (a) total-vm:1kB",
        number=22,
        at=60.1,
    )
    page = node.run()
    batch = 'ullage_container_oom_kills_total{container="batch",id="4bb24efc9641",namespace="shop",pod="cart-1"}'
    assert (value(before, batch), value(page, batch)) == (3, 4)
    assert (events(page, "memory", "cgroup_oom_kill"), events(page, "memory", "oom_kill")) == (6, 1)
    tell(node, "Memory cgroup out of memory: Kill process 8 (a) score 9 or sacrifice child", number=number, at=60.2)
    number = tell(node, "Killed process 8 (a) total-vm:1kB", number=number + 1, at=60.3)
    page = node.run()
    assert (events(page, "memory", "cgroup_oom_kill"), value(page, batch)) == (7, 4)
    tell(  # Linux 5.0 has the line of later ones already
        node,
        victim(f"/kubepods/pod{'d' * 32}/{BATCH}", 9),
        "Memory cgroup out of memory: Kill process 9 (a) score 9 or sacrifice child",
        "Killed process 9 (a) total-vm:1kB",
        number=number,
        at=60.4,
    )
    assert value(node.run(), batch) == 5


def test_a_kill_without_the_line_that_tells_whose_it_is_is_nobodys(make: Make) -> None:
    node = make()
    node.run()
    number = tell(node, "Memory cgroup out of memory: Killed process 9999 (a) total-vm:1kB")
    cgroup = f"/docker/{'c' * 64}"
    number = tell(node, f"Tasks in {cgroup} are going to be killed due to memory.oom.group set", number=number)
    tell(node, "Memory cgroup out of memory: Killed process 9 (a) total-vm:1kB", number=number, at=1491.5)
    page = node.run()
    assert events(page, "memory", "cgroup_oom_kill") == 3
    assert value(page, f"ullage_container_oom_kills_total{{{HUNGRY}}}") == 1
    assert 'id="cccccccccccc"' not in page


def test_no_more_containers_have_series_than_the_bound_and_old_ones_make_room(
    make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_counts, "MOST_KILLED", 3)
    node = make()
    node.run()

    def kill(letters: str, number: int) -> str:
        for letter in letters:
            oom = victim(f"/docker/{letter * 64}")
            lines = oom, "Memory cgroup out of memory: Killed process 5 (a) total-vm:1kB"
            number = tell(node, *lines, number=number, at=clock.seconds)
        return node.run()

    page = kill("abcdef", LAST + 1)
    assert re.findall(r'oom_kills_total{.*id="(.)', page) == ["6", "a", "b"]
    assert events(page, "memory", "cgroup_oom_kill") == 7
    clock.seconds += kernel_counts.FORGOTTEN_AFTER + 100
    assert re.findall(r'oom_kills_total{.*id="(.)', node.run()) == ["6", "a", "b"]
    assert re.findall(r'oom_kills_total{.*id="(.)', kill("c", LAST + 13)) == ["c"]


# -- findings --


def test_faults_are_told_for_an_hour_after_their_last_line(make: Make, clock: Clock) -> None:
    node = make()
    node.run()
    told = {
        ("filesystem-shut-down", "loop0"),
        ("filesystem-errors", "loop0"),
        ("drive-errors", "loop0"),
        ("container-oom-kill", "hungry"),
        ("drop-caches-process", "cleaner"),
    }
    assert set(node.found()) == told
    clock.seconds = 1435 + 3599
    node.run()
    assert ("container-oom-kill", "hungry") in node.found()
    clock.seconds = 1435 + 3601
    node.run()
    assert node.found() == {}
    tell(node, "EXT4-fs (sdx): Remounting filesystem read-only")
    node.run()
    assert set(node.found()) == {("filesystem-shut-down", "sdx")}


def test_a_finding_says_what_the_kernel_said_last_and_how_to_look(make: Make) -> None:
    node = make()
    node.run()
    found = node.found()["filesystem-shut-down", "loop0"]  # ext4 first, then XFS was on the same device
    assert found.explanation == (
        "The kernel stopped writing to the xfs on loop0 1 minutes ago: XFS (loop0): Log I/O Error (0x6) detected at "
        "xfs_fs_goingdown+0x63/0xb0 (fs/xfs/xfs_fsops.c:475).  Shutting down filesystem."
    )
    assert "umount /dev/loop0; xfs_repair -n /dev/loop0" in found.remedy
    assert "btrfs check --readonly --check-data-csum /dev/loop0" in node.found()["filesystem-errors", "loop0"].remedy
    assert "lsblk --inverse /dev/loop0" in node.found()["drive-errors", "loop0"].remedy
    assert (
        "docker update --memory SIZE --memory-swap SIZE 60ca562972f6"
        in node.found()["container-oom-kill", "hungry"].remedy
    )


def test_what_other_collectors_tell_by_state_is_no_finding(make: Make, clock: Clock) -> None:
    clock.seconds = 100
    node = make("sources")
    node.run()
    targets = {(finding, target) for finding, target in node.found() if finding != "container-oom-kill"}
    assert targets == {
        *(("filesystem-shut-down", device) for device in ("dm-0", "sdb1", "dm-3", "dm-4", "dm-5")),
        *(("filesystem-errors", device) for device in ("dm-0", "sdb1", "dm-3", "sdc")),
        *(("drive-errors", device) for device in ("nvme0", "nvme0n1", "sda", "sdd", "sde", "dm-0")),
    }
    assert "smartctl --all /dev/nvme0" in node.found()["drive-errors", "nvme0"].remedy


def test_a_device_name_that_is_a_command_is_quoted(make: Make) -> None:
    node = make()
    node.run()
    tell(node, "EXT4-fs error (device $(reboot)x): y")
    node.run()
    assert "umount '/dev/$(reboot'" in node.found()["filesystem-errors", "$(reboot"].remedy


# -- what a node may lack --


def test_without_the_device_it_is_unsupported_with_the_reason(make: Make) -> None:
    node = make()
    (node.path / "dev/kmsg").unlink()
    assert node.run() == ""
    assert not node.runner.outcome.is_supported
    assert "/dev/kmsg" in node.runner.outcome.reason


def test_a_log_that_fails_is_an_error_and_read_again(make: Make) -> None:
    node = make()
    log = node.path / "dev/kmsg"
    log.rename(node.path / "kept")
    log.mkdir()
    node.run()
    assert node.runner.errors == {"failed": 1}
    log.rmdir()
    (node.path / "kept").rename(log)
    assert events(node.run(), "ext4", "error", "loop0") == 1


@pytest.mark.parametrize("settings", [{"lines": 0}, {"hold": "0s"}, {"hold": "an hour"}, {"line": 1}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "ullage.yml"
    file.write_text(f"collectors: {{kernellog: {settings}}}\n")
    with pytest.raises(ConfigError, match=r"collectors\.kernellog"):
        load_config(str(file), [COLLECTOR], {})
