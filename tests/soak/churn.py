"""What comes and goes on a node: cgroups, mounts, qgroups, containers, their images and volumes. Crowds stay as big."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.e2e.qgroups import enable
from tests.real.cgroups import Cgroup
from tests.real.dockerd import Dockerd, deep_archive

Step = Callable[[], None]


def run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


class Crowd:
    """So many of a kind: with each step one comes, and the oldest goes. Emptied at the end."""

    def __init__(self, size: int, come: Callable[[int], Step]) -> None:
        self._size = size
        self._come = come
        self._there: deque[Step] = deque()
        self.count = 0

    def step(self) -> None:
        self.count += 1
        self._there.append(self._come(self.count))
        if len(self._there) > self._size:
            self._there.popleft()()

    def close(self) -> None:
        while self._there:
            self._there.popleft()()


def cgroups(parent: Cgroup) -> Crowd:
    def come(number: int) -> Step:
        path = parent.path / f"{number:012x}{os.getpid():052x}"
        path.mkdir()
        return path.rmdir

    return Crowd(50, come)


def mounts(directory: Path) -> Crowd:
    def come(number: int) -> Step:
        place = directory / f"mount-{number}"
        place.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place))

        def go() -> None:
            run("umount", str(place))
            place.rmdir()

        return go

    return Crowd(10, come)


def qgroups(btrfs: Path) -> Crowd:
    enable(btrfs)

    def come(number: int) -> Step:
        place = btrfs / f"subvolume-{number}"
        run("btrfs", "subvolume", "create", str(place))
        run("btrfs", "qgroup", "limit", "10M", str(place))
        command = ["btrfs", "inspect-internal", "rootid", str(place)]
        root = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

        def go() -> None:
            run("btrfs", "subvolume", "delete", "--commit-after", str(place))
            run("btrfs", "subvolume", "sync", str(btrfs), root)
            # newer kernels have done so by themselves
            subprocess.run(["btrfs", "qgroup", "destroy", f"0/{root}", str(btrfs)], check=False, capture_output=True)

        return go

    return Crowd(10, come)


def containers(docker: Dockerd) -> Crowd:
    """Containers that write, each with a volume and an image of its own."""

    def come(number: int) -> Step:
        name = f"soak-{number}"
        docker.docker("load", stdin=deep_archive(name, 2 + number % 3))
        volume = ("--volume", f"{name}:/data")
        script = "for i in 1 2 3 4 5; do echo > /tmp/$i; echo > /data/$i; done; exec sleep 100000"
        docker.docker("run", "--detach", "--network=none", "--name", name, *volume, name, "/bin/sh", "-c", script)

        def go() -> None:
            docker.docker("rm", "--force", name)
            docker.docker("volume", "rm", name)
            docker.docker("image", "rm", name)

        return go

    return Crowd(4, come)


class Churn:
    """Each crowd steps on its own, in a thread; what one raises ends the soak. Under `pause` none steps."""

    def __init__(self, crowds: dict[str, tuple[Crowd, float]]) -> None:
        self.failures: list[str] = []
        self._crowds = crowds
        self._locks = {name: threading.Lock() for name in crowds}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._live, args=(name,), name=name) for name in crowds]
        for thread in self._threads:
            thread.start()

    def _live(self, name: str) -> None:
        crowd, every = self._crowds[name]
        try:
            while not self._stop.wait(every):
                with self._locks[name]:
                    crowd.step()
        except Exception as error:  # noqa: BLE001  told by whoever runs the soak
            self.failures.append(f"{name}: {error!r}")

    @contextlib.contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """Keep a crowd from stepping for the time of a block."""
        with self._locks[name]:
            yield

    @property
    def counts(self) -> dict[str, int]:
        """How often each crowd has stepped."""
        return {name: crowd.count for name, (crowd, _) in self._crowds.items()}

    def close(self) -> None:
        """End the threads, and have all that is there go."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        with contextlib.ExitStack() as left:
            for crowd, _ in self._crowds.values():
                left.callback(crowd.close)
