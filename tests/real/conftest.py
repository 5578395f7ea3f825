"""Real filesystems on loop devices, each taken down by its own id whatever a test does."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Make = Callable[..., Path]


def run(*command: str) -> str:
    """Run a command that must succeed; return what it prints."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout.strip()


@pytest.fixture
def need() -> Callable[..., None]:
    """Skip with the reason where root or a tool is missing; in CI that is a failure."""

    def check(*tools: str) -> None:
        missing = [tool for tool in tools if shutil.which(tool) is None]
        reason = "needs root" if os.geteuid() != 0 else f"not found: {', '.join(missing)}" if missing else ""
        if reason and os.environ.get("CI") == "true":
            pytest.fail(reason)
        if reason:
            pytest.skip(reason)

    return check


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """What a test sets up is taken down in reverse order."""
    with contextlib.ExitStack() as made:
        yield made


@pytest.fixture
def filesystem(tmp_path: Path, need: Callable[..., None], stack: contextlib.ExitStack) -> Make:
    """Make and mount a filesystem: `filesystem("ext4", "-N", "1024", size=64, options="errors=remount-ro")`."""

    def make(kind: str, *flags: str, size: int = 64, options: str = "defaults") -> Path:
        need(f"mkfs.{kind}", "losetup", "mount")
        number = len(list(tmp_path.glob("*.img")))
        image, mount = tmp_path / f"{kind}-{number}.img", tmp_path / f"{kind}-{number}"
        mount.mkdir()
        with open(image, "wb") as file:
            file.truncate(size << 20)
        run(f"mkfs.{kind}", "-q", "-F" if kind == "ext4" else "-f", *flags, str(image))
        device = run("losetup", "--find", "--show", str(image))
        stack.callback(run, "losetup", "--detach", device)
        run("mount", "-o", options, device, str(mount))
        stack.callback(run, "umount", "-l", str(mount))
        return mount

    return make


class StuckFs:
    """A FUSE filesystem in a process of its own, which can be stopped and continued."""

    def __init__(self, mount: Path) -> None:
        self.mount = mount
        mount.mkdir()
        script = str(Path(__file__).with_name("stuckfs.py"))
        self._process = subprocess.Popen([sys.executable, script, str(mount)], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"mounted\n"

    def hang(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self._process.kill()  # its end aborts all that is open
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        run("umount", "-l", str(self.mount))


@pytest.fixture
def stuckfs(tmp_path: Path, need: Callable[..., None]) -> Iterator[StuckFs]:
    """A mounted FUSE filesystem that can hang."""
    need("umount")
    made = StuckFs(tmp_path / "stuck")
    try:
        yield made
    finally:
        made.close()
