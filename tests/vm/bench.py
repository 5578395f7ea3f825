"""Runs a benchmark inside the lab's machine: `python -m tests.vm.bench cgroups`, for cgroup v2."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.vm.cache import default_cache
from tests.vm.kernel import obtain
from tests.vm.machine import Machine

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 1800.0
CGROUPS = "600"  # the processor is emulated


def main(names: list[str]) -> None:
    cache = default_cache()
    with Machine(obtain(cache), visible=[ROOT, Path(sys.prefix), cache]) as machine:
        command = [sys.executable, "-m", "tests.bench", *names]
        shell = ["sh", "-c", '"$@" 2>&1 || true', "sh", *command]
        print(machine.run(shell, timeout=SECONDS, cwd=str(ROOT), env={"ULLAGE_BENCH_CGROUPS": CGROUPS}))


if __name__ == "__main__":
    main(sys.argv[1:])
