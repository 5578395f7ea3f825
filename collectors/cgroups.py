"""How cgroups are mounted, and where the memory controller is."""

from __future__ import annotations

from dataclasses import dataclass

from agent.host import Host

CGROUPS, UNIFIED, MEMORY = "sys/fs/cgroup", "sys/fs/cgroup/unified", "sys/fs/cgroup/memory"
MOST, LONGEST = 8_000, 1_024  # cgroups that are looked at, characters of a path: bounds on memory


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the memory controller is, which version, and where PSI files are, if anywhere."""

    root: str
    is_v2: bool
    pressure_root: str | None


def layout(host: Host) -> Layout | None:
    """Return how cgroups are mounted; in a hybrid tree memory is version 1, but PSI is on the version 2 side."""
    if host.exists(f"{CGROUPS}/cgroup.controllers"):
        return Layout(CGROUPS, is_v2=True, pressure_root=CGROUPS)
    if host.exists(f"{MEMORY}/memory.stat"):
        return Layout(
            MEMORY, is_v2=False, pressure_root=UNIFIED if host.exists(f"{UNIFIED}/cgroup.controllers") else None
        )
    return None


def cut(path: str) -> str:
    """Return a cgroup's path; of one that is longer than anybody needs, that of one above it, whose container it is."""
    return path if len(path) <= LONGEST else path[: LONGEST + 1].rpartition("/")[0]
