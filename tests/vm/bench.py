"""Runs a benchmark inside the lab's machine: `python -m tests.vm.bench cgroups`, for cgroup v2."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.vm.kernel import default_cache, obtain
from tests.vm.machine import Machine

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 1800.0


def main(names: list[str]) -> None:
    cache = default_cache()
    with Machine(obtain(cache), visible=[ROOT, Path(sys.prefix), cache]) as machine:
        command = [sys.executable, "-m", "tests.bench", *names]
        print(machine.run(["sh", "-c", '"$@" 2>&1 || true', "sh", *command], timeout=SECONDS, cwd=str(ROOT)))


if __name__ == "__main__":
    main(sys.argv[1:])
