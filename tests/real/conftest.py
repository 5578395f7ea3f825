"""Real filesystems on loop devices, each taken down by its own id whatever a test does."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real.dockerd import Dockerd, dockerd
from tests.refusal import refuse

Make = Callable[..., Path]


def run(*command: str) -> str:
    """Run a command that must succeed; return what it prints."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout.strip()


def damage(image: Path, pattern: bytes) -> None:
    """Change what a disk holds of a file, below the filesystem."""
    with open(image, "r+b") as file:
        place = file.read().find(pattern)
        assert place > 0
        file.seek(place)
        file.write(b"damaged!")
        file.flush()
        os.fsync(file.fileno())


@pytest.fixture
def need() -> Callable[..., None]:
    """Skip with the reason where root, a tool or a device is missing; in CI that is a failure."""

    def check(*tools: str) -> None:
        missing = [tool for tool in tools if not (os.path.exists(tool) if "/" in tool else shutil.which(tool))]
        reason = "needs root" if os.geteuid() != 0 else f"not found: {', '.join(missing)}" if missing else ""
        if reason:
            refuse(reason)

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
        if self._process.stdout.readline() != b"mounted\n":
            self._end()
            pytest.fail("FUSE does not mount")

    def hang(self) -> None:
        """Read no more questions: whoever asks can be killed."""
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def keep(self) -> None:
        """Read what statvfs asks without an answer: whoever asks cannot be killed."""
        self._process.send_signal(signal.SIGUSR1)

    def give(self) -> None:
        self._process.send_signal(signal.SIGUSR2)

    def _end(self) -> None:
        self._process.kill()  # its end aborts all that is open
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def close(self) -> None:
        self._end()
        run("umount", "-l", str(self.mount))


MakeStuck = Callable[[], StuckFs]


@pytest.fixture
def make_stuckfs(tmp_path: Path, need: Callable[..., None], stack: contextlib.ExitStack) -> MakeStuck:
    """Mount FUSE filesystems that can hang."""

    def make() -> StuckFs:
        need("umount", "/dev/fuse")
        made = StuckFs(tmp_path / f"stuck-{len(list(tmp_path.glob('stuck-*')))}")
        stack.callback(made.close)
        return made

    return make


@pytest.fixture
def stuckfs(make_stuckfs: MakeStuck) -> StuckFs:
    """A mounted FUSE filesystem that can hang."""
    return make_stuckfs()


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    # a short path: a socket's may have 107 characters
    with tempfile.TemporaryDirectory(prefix="ullage-docker-") as made:
        yield Path(made)


@pytest.fixture
def docker(directory: Path, need: Callable[..., None]) -> Iterator[Dockerd]:
    need("dockerd", "docker", "busybox")
    with dockerd(directory) as made:
        made.import_image("busybox")
        yield made
