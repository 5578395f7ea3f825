"""A real containerd with everything of its own in two directories; ended, with all that it started, by its own ids."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.real.daemon import WAIT, Daemon
from tests.real.dockerd import root_archive


class Containerd(Daemon):
    """The daemon, and `ctr` against it."""

    def __init__(self, directory: Path, root: Path, plugins: str) -> None:
        self.root, self.state = root, directory / "state"
        self.socket = self.state / "containerd.sock"
        self._log = directory / "containerd.log"
        config = directory / "config.toml"
        # the part for Kubernetes wants networks, and starts nothing here
        config.write_text(f'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n{plugins}')
        self._command = [
            *("containerd", "--config", str(config), "--address", str(self.socket)),
            *("--root", str(self.root), "--state", str(self.state)),
        ]
        self._tasks: list[str] = []

    def start(self) -> None:
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + WAIT
        while self._ctr("version").returncode:
            assert self.process.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < end, self._log.read_text()[-3000:]
            time.sleep(0.1)

    def _ctr(self, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        command = ["ctr", "--address", str(self.socket), *arguments]
        return subprocess.run(command, check=False, capture_output=True, input=stdin, timeout=WAIT)

    def ctr(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Run `ctr`; return what it prints."""
        done = self._ctr(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def import_image(self, name: str, layer: bytes = b"") -> None:
        """Make an image of busybox alone, in the form of `docker save`; or one of a layer, which is unpacked."""
        unpacking = [] if layer else ["--no-unpack"]
        layer = layer or root_archive()
        layers = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}
        config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": layers}
        manifest = [
            {"Config": "config.json", "RepoTags": [f"docker.io/library/{name}:latest"], "Layers": ["layer.tar"]}
        ]
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for path, content in (
                ("config.json", json.dumps(config).encode()),
                ("layer.tar", layer),
                ("manifest.json", json.dumps(manifest).encode()),
            ):
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        self.ctr("images", "import", *unpacking, "-", stdin=archive.getvalue())

    def run(self, name: str, snapshotter: str, image: str, script: str) -> None:
        """Start a container."""
        reference = f"docker.io/library/{image}:latest"
        self._tasks.append(name)
        self.ctr("run", "--detach", "--snapshotter", snapshotter, reference, name, "/bin/sh", "-c", script)

    def stop(self) -> None:
        """End all containers, the daemon, and what they left mounted."""
        self.wake()
        for name in self._tasks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._ctr("task", "rm", "--force", name)
                self._ctr("container", "rm", name)
        self.end()
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in sorted((each for each in mounts if each.startswith(f"{self.state}/")), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)


@contextlib.contextmanager
def containerd(directory: Path, root: Path, plugins: str = "") -> Iterator[Containerd]:
    """Have a containerd for the time of a block; containers and images are in `root`. The directory's path is short.

    `plugins` is the part of its configuration about them.
    """
    made = Containerd(directory, root, plugins)
    try:
        made.start()
        yield made
    finally:
        made.stop()
