"""The prober with its real helper process; mounts that really hang are in tests/real."""

from __future__ import annotations

import os
import resource
import select
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import Failed, HostError, Stuck, Vanished
from agent.host import Host, Inode, Space
from agent.probe import HelperProber

Answers = list[Space | HostError]


@pytest.fixture
def prober() -> Iterator[HelperProber]:
    made = HelperProber(deadline=0.1)
    yield made
    made.close()


def measure(prober: HelperProber, *paths: str) -> Answers:
    return prober.measure(Host().points(paths))


def helper_of(prober: HelperProber) -> int:
    assert prober.pid is not None
    return prober.pid


def fixed(space: Space | HostError) -> tuple[int, ...]:
    """Return the numbers that do not change while others write."""
    assert isinstance(space, Space), space
    return space.io_size, space.block_size, space.blocks, space.files, space.flags, space.name_max


def test_answers_are_those_of_statvfs_in_the_order_of_the_paths(prober: HelperProber) -> None:
    paths = ["/", "/proc", "/dev", "/"]
    found = [os.statvfs(path) for path in paths]
    expected = [(it.f_bsize, it.f_frsize, it.f_blocks, it.f_files, it.f_flag, it.f_namemax) for it in found]
    assert [fixed(answer) for answer in measure(prober, *paths)] == expected


def test_files_are_told_as_stat_tells_them(prober: HelperProber, tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b") as file:
        file.write(bytes(10_000))
        file.flush()
        os.fsync(file.fileno())
        os.unlink(file.name)
        host = Host(prober=prober)
        link = f"proc/{os.getpid()}/fd/{file.fileno()}"
        inode, gone, directory = host.inodes([link, str(tmp_path / "file"), "/etc"])
        found = os.fstat(file.fileno())
    assert inode == (found.st_mode, found.st_dev, found.st_ino, 0, found.st_blocks)
    assert isinstance(gone, Vanished)
    assert isinstance(directory, Inode)
    assert directory.number == os.stat("/etc").st_ino


def test_a_path_below_a_root_is_looked_at_through_no_link_but_the_roots_own(
    prober: HelperProber, tmp_path: Path
) -> None:
    (tmp_path / "real/in").mkdir(parents=True)
    (tmp_path / "real/in/file").write_text("x")
    (tmp_path / "real/link").symlink_to("in")
    (tmp_path / "root").symlink_to("real")
    host = Host(prober=prober, rootfs=f"{tmp_path}/root")
    file, behind, link, gone, below, root = host.entries_at(
        "/", ["/in/file", "/link/file", "/link", "/in/none", "/in/file/x", "/"]
    )
    assert isinstance(file, Inode)
    assert file.number == os.stat(tmp_path / "real/in/file").st_ino
    assert isinstance(behind, Failed)
    assert behind.path == f"{tmp_path}/root/link/file"
    assert isinstance(link, Inode)
    assert stat.S_ISLNK(link.mode)
    assert isinstance(gone, Vanished)
    assert isinstance(below, Vanished)
    assert isinstance(root, Inode)
    assert root.number == os.stat(tmp_path / "real").st_ino


def test_nothing_asked_gives_nothing(prober: HelperProber) -> None:
    assert measure(prober) == []


def test_a_path_that_is_refused_is_a_typed_error_with_its_name_and_costs_itself_only(
    prober: HelperProber, tmp_path: Path
) -> None:
    absent, too_long = str(tmp_path / "absent"), "/" + "x" * 300
    good, gone, refused, last = measure(prober, "/", absent, too_long, "/")
    assert isinstance(good, Space)
    assert isinstance(last, Space)
    assert isinstance(gone, Vanished)
    assert isinstance(refused, Failed)
    assert (gone.path, refused.path) == (absent, too_long)


@pytest.mark.parametrize("name", ["new\nline", " ", "\udcff\udcfe", "☃", "x" * 255, "-I", "s/../y"])
def test_any_name_can_be_measured(prober: HelperProber, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir(parents=True)
    (answer,) = measure(prober, str(path))
    assert isinstance(answer, Space)


def test_more_paths_than_one_request_holds_are_measured_in_order(prober: HelperProber) -> None:
    paths = ["/" + "./" * (number % 1900) for number in range(3000)]
    paths[1234] = "/absent"
    answers = measure(prober, *paths)
    assert [number for number, answer in enumerate(answers) if not isinstance(answer, Space)] == [1234]


def test_one_helper_serves_all_rounds(prober: HelperProber) -> None:
    measure(prober, "/")
    first = prober.pid
    measure(prober, "/", "/proc")
    assert prober.pid == first


def test_a_helper_that_somebody_killed_costs_no_answer(prober: HelperProber) -> None:
    measure(prober, "/")
    first = helper_of(prober)
    os.kill(first, signal.SIGKILL)
    assert all(isinstance(answer, Space) for answer in measure(prober, "/", "/proc"))
    assert prober.pid != first


def test_a_helper_that_does_not_answer_is_replaced_and_only_the_path_it_was_at_is_stuck(prober: HelperProber) -> None:
    measure(prober, "/")
    os.kill(helper_of(prober), signal.SIGSTOP)
    assert [type(answer) for answer in measure(prober, "/proc", "/", "/dev")] == [Stuck, Space, Space]
    assert [type(answer) for answer in measure(prober, "/proc", "/", "/dev")] == [Space, Space, Space]


def test_the_suspects_of_one_caller_are_not_forgotten_when_another_asks_for_other_paths(prober: HelperProber) -> None:
    measure(prober, "/")
    os.kill(helper_of(prober), signal.SIGSTOP)
    measure(prober, "/proc")
    measure(prober, "/")
    os.kill(helper_of(prober), signal.SIGSTOP)
    # the suspect is asked last: it is "/" that meets the helper that hangs
    assert [type(answer) for answer in measure(prober, "/proc", "/")] == [Space, Stuck]


def test_rounds_in_which_helpers_are_lost_leave_nothing_behind(prober: HelperProber) -> None:
    def footprint() -> tuple[int, int, int]:
        children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
        return threading.active_count(), len(os.listdir("/proc/self/fd")), len(children)

    measure(prober, "/")
    before = footprint()
    for number in range(10):
        os.kill(helper_of(prober), signal.SIGSTOP if number % 2 else signal.SIGKILL)
        measure(prober, "/", "/proc")
    assert footprint() == before


def test_threads_may_measure_at_once(prober: HelperProber) -> None:
    wrong: list[Answers] = []

    def work(count: int) -> None:
        for _ in range(50):
            answers = measure(prober, *["/"] * count, "/absent")
            if [type(answer) for answer in answers] != [Space] * count + [Vanished]:
                wrong.append(answers)

    threads = [threading.Thread(target=work, args=(count,)) for count in (1, 2, 30, 400)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_closing_does_not_wait_for_a_path_that_hangs() -> None:
    prober = HelperProber(deadline=3600)
    measure(prober, "/")
    helper = helper_of(prober)
    os.kill(helper, signal.SIGSTOP)
    answers: list[Answers] = []
    thread = threading.Thread(target=lambda: answers.append(measure(prober, "/")), daemon=True)
    thread.start()
    prober.close()
    thread.join(30)
    assert [type(answer) for answer in answers[0]] == [Failed]
    assert prober.pid is None
    assert not Path(f"/proc/{helper}").exists()


def test_nothing_is_started_once_closed(prober: HelperProber) -> None:
    prober.close()
    (answer,) = measure(prober, "/")
    assert isinstance(answer, Failed)
    assert prober.pid is None


def test_a_helper_that_cannot_be_started_is_a_refusal_not_a_bug(prober: HelperProber) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")), hard))
    try:
        with pytest.raises(HostError):
            measure(prober, "/")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (answer,) = measure(prober, "/")
    assert isinstance(answer, Space)


@pytest.mark.parametrize("stopped", [False, True], ids=["idle", "hanging"])
def test_the_helper_ends_with_an_agent_that_is_killed(*, stopped: bool) -> None:
    script = """
import os, signal, sys
from agent.host import Host
from agent.probe import HelperProber
prober = HelperProber()
prober.measure(Host().points(["/"]))
print(prober.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        helper = os.pidfd_open(int(agent.stdout.readline()))
        try:
            if stopped:
                signal.pidfd_send_signal(helper, signal.SIGSTOP)
            agent.kill()
            agent.wait()
            ended, _, _ = select.select([helper], [], [], 30)
            assert ended
        finally:
            os.close(helper)
