"""The host's own programs: what they say, that they end, and what happens when they do not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.command import HostCommands
from agent.errors import Stuck, Vanished
from agent.host import Host


@pytest.fixture
def commands() -> Iterator[HostCommands]:
    made = HostCommands()
    yield made
    made.close()


def test_exit_code_and_output_are_the_programs(commands: HostCommands) -> None:
    assert commands.run("", ["sh", "-c", "echo said; exit 3"], 10, "sh") == (3, b"said\n")
    assert Host(commands=commands).command("sh", "-c", "echo $LC_ALL", deadline=10) == (0, b"C\n")


def test_a_program_that_is_not_there_has_vanished(commands: HostCommands) -> None:
    with pytest.raises(Vanished, match="zpool"):
        commands.run("", ["no-such-program"], 10, "zpool")


def test_a_program_that_does_not_end_is_killed_and_its_subject_stuck(commands: HostCommands) -> None:
    with pytest.raises(Stuck, match="pool"):
        commands.run("", ["sleep", "600"], 0.05, "pool")
    process = commands._running["pool"]
    assert process.wait(10) < 0
    assert commands.run("", ["true"], 10, "pool") == (0, b"")


def test_a_program_that_cannot_be_killed_is_not_started_again(
    commands: HostCommands, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        # only the kernel can make one that SIGKILL does not end
        patched.setattr(subprocess.Popen, "kill", lambda _self: None)
        with pytest.raises(Stuck, match="did not end"):
            commands.run("", ["sleep", "600"], 0.05, "pool")
    with pytest.raises(Stuck, match="cannot be killed"):
        commands.run("", ["true"], 10, "pool")
    assert commands.run("", ["true"], 10, "another") == (0, b"")
    commands.close()
    commands._running["pool"].wait(10)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_programs_are_the_hosts_own_where_its_root_is_not_ours(commands: HostCommands, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        pytest.skip("needs busybox-static")
    (tmp_path / "bin" / "busybox").write_bytes(busybox.read_bytes())
    (tmp_path / "bin" / "busybox").chmod(0o755)
    host = Host(rootfs=str(tmp_path), commands=commands)
    assert host.command("/bin/busybox", "ls", "/", deadline=10) == (0, b"bin\n")
    with pytest.raises(Vanished, match="not to be had on the host"):
        host.command("zpool", deadline=10)
