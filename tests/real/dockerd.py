"""A real dockerd with everything of its own in one directory; ended, with all that it started, by its own ids."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.real.daemon import WAIT, Daemon


def root_archive() -> bytes:
    """Return a root filesystem with busybox alone, as an archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for directory in ("bin", "tmp", "proc", "sys", "dev", "etc"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add("/bin/busybox", "bin/busybox")
        for tool in ("sh", "cat", "dd", "sleep", "sync"):
            link = tarfile.TarInfo(f"bin/{tool}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return archive.getvalue()


def deep_archive(name: str, layers: int) -> bytes:
    """Return an image of busybox with so many layers, in the form of `docker save`."""
    contents = [root_archive()]
    for number in range(layers - 1):
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            tar.addfile(tarfile.TarInfo(f"{name}-{number}"))
        contents.append(layer.getvalue())
    ids = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in contents]
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": ids}}
    names = [f"{number}/layer.tar" for number in range(layers)]
    manifest = [{"Config": "config.json", "RepoTags": [f"{name}:latest"], "Layers": names}]
    files = dict(zip(names, contents, strict=True))
    files |= {"config.json": json.dumps(config).encode(), "manifest.json": json.dumps(manifest).encode()}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


class Dockerd(Daemon):
    """The daemon, and the docker command line against it."""

    def __init__(
        self, directory: Path, storage_driver: str, root: Path | None, options: Iterable[str], containerd: Path | None
    ) -> None:
        self.root = root or directory / "root"
        self._exec_root = directory / "exec"
        self.socket = directory / "docker.sock"
        self.pid_file = directory / "dockerd.pid"
        self._directory = directory
        self._log = directory / "dockerd.log"
        self._command = [
            "dockerd",
            *("--data-root", str(self.root), "--exec-root", str(self._exec_root), "--host", f"unix://{self.socket}"),
            *("--pidfile", str(self.pid_file), "--storage-driver", storage_driver),
            *("--iptables=false", "--ip6tables=false", "--bridge=none", "--exec-opt", "native.cgroupdriver=cgroupfs"),
            *(f"--storage-opt={option}" for option in options),
            *([f"--containerd={containerd}"] if containerd is not None else []),
        ]

    def start(self) -> None:
        with open(self._log, "ab") as log:
            # in a session of its own: a terminal's Ctrl-C is for who started us
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + WAIT
        while subprocess.run(
            ["docker", "-H", f"unix://{self.socket}", "info"], check=False, capture_output=True
        ).returncode:
            assert self.process.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < end, self._log.read_text()[-3000:]
            time.sleep(0.1)

    def docker(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Run the docker command line; return what it prints."""
        command = ["docker", "-H", f"unix://{self.socket}", *arguments]
        done = subprocess.run(command, check=False, capture_output=True, input=stdin, timeout=WAIT)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def import_image(self, name: str) -> None:
        """Make an image of busybox alone."""
        self.docker("import", "-", name, stdin=root_archive())

    def run(self, name: str, script: str) -> str:
        """Start a container and return its id."""
        return self.docker("run", "--detach", "--network=none", "--name", name, "busybox", "/bin/sh", "-c", script)

    def kill(self) -> None:
        """End the daemon, and the containerd that goes with it, in the middle of all they do; `start` begins anew."""
        super().kill()
        self._end_left()
        # where process 1 waits for nobody the containerd stays a zombie, which the next daemon takes for a running one
        (self._exec_root / "containerd/containerd.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        """End all containers, the daemon, and what they left mounted."""
        self.wake()
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            for container in self.docker("ps", "--all", "--quiet").split():
                self.docker("rm", "--force", container)
        self.end()
        self._end_left()
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in sorted(
            (each for each in mounts if each.startswith((f"{self._directory}/", f"{self.root}/"))), reverse=True
        ):
            subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)

    def _end_left(self) -> None:
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _left(self) -> list[int]:
        """Return the processes that were started with our directory in their command line."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                with contextlib.suppress(OSError):
                    arguments = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                    if any(argument.startswith(os.fsencode(f"{self._exec_root}/")) for argument in arguments):
                        found.append(int(name))
        return found


@contextlib.contextmanager
def dockerd(
    directory: Path,
    storage_driver: str = "overlay2",
    root: Path | None = None,
    options: Iterable[str] = (),
    containerd: Path | None = None,
) -> Iterator[Dockerd]:
    """Have a dockerd for the time of a block. The directory's path must be short: a socket's may have 107 characters.

    `root` is where containers and images are, if not in that directory; `options` are the storage driver's;
    `containerd` is the socket of one that runs already.
    """
    made = Dockerd(directory, storage_driver, root, options, containerd)
    try:
        made.start()
        yield made
    finally:
        made.stop()
