"""Real memory cgroups with the names of containers, and processes in them; version 1 and 2 alike."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from agent.collector import Start
from agent.host import Host
from agent.metric import Family
from collectors.cgroups import layout
from collectors.pagecache import LIMIT_EVERY, PageCache, Settings
from tests.real.daemon import WAIT

MIB = 1 << 20


def memory_root() -> Path | None:
    """Return where the memory controller is mounted on this machine."""
    found = layout(Host())
    return Path("/" + found.root) if found is not None else None


class Cgroup:
    """A cgroup below others that it makes where they are missing; removed by its own path."""

    def __init__(self, path: Path, controller: str) -> None:
        self.path = path
        self._made: list[Path] = []
        for each in [*reversed(path.parents), path]:
            if not each.exists():
                # on version 2 a controller must be handed down level by level
                control = each.parent / "cgroup.subtree_control"
                if control.exists():
                    control.write_text(f"+{controller}")
                each.mkdir()
                self._made.append(each)

    def run(self, script: str, *arguments: str) -> None:
        """Run a shell script inside."""
        inside = f"echo $$ > {self.path}/cgroup.procs && {script}"
        subprocess.run(["sh", "-ec", inside, "sh", *arguments], check=True, timeout=120)

    def remove(self) -> None:
        """Remove what was made, but for parents that another cgroup is still in."""
        for each in reversed(self._made):
            end = time.monotonic() + WAIT
            while not any(inner.is_dir() for inner in each.iterdir()):
                try:
                    each.rmdir()
                    break
                except OSError:  # the last tasks leave a moment after their processes' end
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.02)


@contextlib.contextmanager
def cgroup(path: Path, controller: str = "memory") -> Iterator[Cgroup]:
    """Have a cgroup for the time of a block, in a hierarchy with this controller."""
    made = Cgroup(path, controller)
    try:
        yield made
    finally:
        made.remove()


class Sweep:
    """The collector at work on the real tree; its clock goes on, so that each run looks at limits as well."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.host = Host()
        self._now = 1000.0
        self.running = PageCache(Start(self.host, settings or Settings(top=10_000)), lambda: self._now)

    def read(self) -> dict[str, dict[str, float]]:
        """Do one run; return the values by metric, its prefix left out, and the container's short id."""
        self._now += LIMIT_EVERY
        found: dict[str, dict[str, float]] = {}
        for item in self.running.collect(self.host):
            if isinstance(item, Family) and item.metric.name.startswith("ullage_container_"):
                name = item.metric.name.removeprefix("ullage_container_")
                found[name] = {labels[3]: value for labels, value in zip(item.labelsets, item.values, strict=True)}
        return found


def cold_file(path: Path, size: int) -> Path:
    """Write a file whose pages are not in memory when this returns."""
    with open(path, "wb") as file:
        file.writelines(os.urandom(MIB) for _ in range(size // MIB))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path
