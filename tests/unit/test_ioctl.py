"""The helper process for ioctls: real ioctls on files, and helpers that are stopped or killed under way."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import Denied, Failed, HostError, Stuck, Vanished
from agent.host import Host
from agent.ioctl import HelperIoctls

FIONREAD = 0x541B  # asm-generic/ioctls.h: bytes that wait to be read, of a regular file those to its end


@pytest.fixture
def ioctls() -> Iterator[HelperIoctls]:
    made = HelperIoctls(deadline=0.3)
    yield made
    made.close()


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "name with\nnewline"
    path.write_bytes(b"x" * 1234)
    return str(path)


def size_of(ioctls: HelperIoctls, file: str, subject: str = "file") -> int:
    (size,) = struct.unpack("=i", ioctls.ask(file, FIONREAD, bytes(4), subject))
    return int(size)


def test_the_answer_is_the_kernels(ioctls: HelperIoctls, file: str) -> None:
    with open(file, "rb") as opened:
        direct = fcntl.ioctl(opened, FIONREAD, bytes(4))
    assert ioctls.ask(file, FIONREAD, bytes(4), "file") == direct == struct.pack("=i", 1234)


def test_large_buffers_go_both_ways_whole(ioctls: HelperIoctls, file: str) -> None:
    buffer = bytes(4) + b"kept" + bytes(1 << 20)
    answer = ioctls.ask(file, FIONREAD, buffer, "file")
    assert answer[4:] == buffer[4:]


def test_thousands_of_open_files_do_not_matter(ioctls: HelperIoctls, file: str) -> None:
    kept: list[int] = []
    try:
        while not kept or kept[-1] < 1024:
            kept.append(os.open(file, os.O_RDONLY))
    except OSError as error:
        pytest.skip(f"needs more than 1024 descriptors: {error}")
    else:
        assert size_of(ioctls, file) == 1234
    finally:
        for descriptor in kept:
            os.close(descriptor)


def test_refusals_are_typed_and_named_after_the_subject(ioctls: HelperIoctls, tmp_path: Path, file: str) -> None:
    with pytest.raises(Vanished, match="pool"):
        ioctls.ask(str(tmp_path / "absent"), FIONREAD, bytes(4), "pool")
    with pytest.raises(HostError, match="pool"):
        ioctls.ask(file, 0xC138FD02, bytes(400), "pool")
    assert not isinstance(Denied("pool"), Stuck)
    assert size_of(ioctls, file) == 1234


def test_one_helper_serves_all(ioctls: HelperIoctls, file: str) -> None:
    size_of(ioctls, file)
    first = ioctls.pid
    size_of(ioctls, file)
    assert ioctls.pid == first


def test_a_helper_that_somebody_killed_costs_no_answer(ioctls: HelperIoctls, file: str) -> None:
    size_of(ioctls, file)
    assert ioctls.pid is not None
    os.kill(ioctls.pid, signal.SIGKILL)
    assert size_of(ioctls, file) == 1234


def test_what_does_not_answer_is_stuck_and_costs_itself_only(ioctls: HelperIoctls, file: str) -> None:
    size_of(ioctls, file)
    assert ioctls.pid is not None
    os.kill(ioctls.pid, signal.SIGSTOP)
    with pytest.raises(Stuck, match="sick"):
        size_of(ioctls, file, "sick")
    assert size_of(ioctls, file, "sound") == 1234


def test_a_subject_whose_helper_cannot_be_killed_is_not_asked_until_the_kernel_lets_go(
    ioctls: HelperIoctls, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size_of(ioctls, file)
    helper = ioctls._helper
    assert helper is not None
    os.kill(helper.process.pid, signal.SIGSTOP)
    with monkeypatch.context() as patched:
        # a stopped process stands for one in state D: only the kernel can make one that SIGKILL does not end
        patched.setattr(helper.process, "kill", lambda: None)
        with pytest.raises(Stuck):
            size_of(ioctls, file, "sick")
    with pytest.raises(Stuck, match="cannot be killed"):
        size_of(ioctls, file, "sick")
    assert size_of(ioctls, file, "sound") == 1234
    helper.process.kill()
    helper.process.wait()
    assert size_of(ioctls, file, "sick") == 1234


def test_helpers_that_cannot_be_killed_are_bounded(file: str) -> None:
    ioctls = HelperIoctls(unkillable=0)
    with pytest.raises(Failed, match="too many"):
        size_of(ioctls, file)
    ioctls.close()


def test_closing_does_not_wait_and_nothing_is_started_after(file: str) -> None:
    ioctls = HelperIoctls(deadline=30)
    size_of(ioctls, file)
    assert ioctls.pid is not None
    os.kill(ioctls.pid, signal.SIGSTOP)
    outcome: list[BaseException] = []

    def ask() -> None:
        try:
            size_of(ioctls, file)
        except HostError as error:
            outcome.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.1)
    ioctls.close()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(outcome[0], Failed)
    with pytest.raises(Failed, match="stops"):
        size_of(ioctls, file)


def test_a_host_without_ioctls_refuses(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="no ioctls"):
        Host(rootfs=str(tmp_path)).ioctl("/file", FIONREAD, bytes(4))


def test_a_host_asks_at_its_own_root(ioctls: HelperIoctls, file: str) -> None:
    directory, _, name = file.rpartition("/")
    host = Host(rootfs=directory, ioctls=ioctls).session()
    assert host.ioctl(f"/{name}", FIONREAD, bytes(4)) == struct.pack("=i", 1234)
