"""Run benchmarks and print their ratios; exits with 1 when a goal is missed or a result is void."""

from __future__ import annotations

import sys
import time

from agent import log
from tests.bench import (
    agent,
    cgroups,
    filesystem,
    kernellog,
    layers,
    memory,
    processes,
    qgroups,
    rendering,
    scrape,
)

ALL = {
    "rendering": rendering.run,
    "scrape": scrape.run,
    "filesystem": filesystem.run,
    "cgroups": cgroups.run,
    "qgroups": qgroups.run,
    "layers": layers.run,
    "kernellog": kernellog.run,
    "processes": processes.run,
    "memory": memory.run,
    "agent": agent.run,
}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in ALL]
    if unknown:
        print(f"no benchmark is called {unknown[0]}; there are: {', '.join(ALL)}", file=sys.stderr)
        return 2
    log.configure("error")
    is_good = True
    for name in names or ALL:
        began = time.monotonic()
        for result in ALL[name]():
            print(result, flush=True)
            is_good &= result.verdict == "met"
        print(f"-- {name} took {time.monotonic() - began:.0f} s", flush=True)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
