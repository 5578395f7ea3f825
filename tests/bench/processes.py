"""A pass over the descriptors of some thousand processes, against `find` on the same links."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agent.budget import Budget
from agent.host import Host
from agent.probe import HelperProber
from collectors.processes import Processes
from tests.bench.measure import Result, own_cpu, rounds, spent

PROCESSES, DESCRIPTORS = 2_000, 10
CROWD = Path(__file__).parents[1] / "real" / "crowd.c"


def find() -> float:
    """Have find(1) read the link of every descriptor of the machine; return the CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["sh", "-c", "find /proc/[0-9]*/fd -lname '*(deleted)' -o -lname anon_inode:inotify"]
    subprocess.run(command, check=False, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run() -> Iterator[Result]:
    if os.geteuid() != 0 or shutil.which("gcc") is None:
        print("processes: skipped, needs root and gcc")
        return
    prober = HelperProber()
    host, looked = Host(prober=prober), 0

    def ours() -> float:
        nonlocal looked
        processes = Processes()
        cost = spent(lambda: processes.reading(host, Budget(1000.0, pause=lambda _: None), 0), own_cpu)
        reading = processes.reading(host, Budget(1000.0), 0)
        assert reading is not None
        looked = reading.descriptors
        return cost

    with tempfile.TemporaryDirectory() as directory:
        crowd = f"{directory}/crowd"
        subprocess.run(["gcc", "-O1", "-static", "-o", crowd, str(CROWD)], check=True)
        command = [crowd, str(PROCESSES), str(DESCRIPTORS)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as made:
            assert made.stdout is not None
            made.stdout.readline()
            values, detail = rounds(ours, find, 5)
            made.communicate()
    prober.close()
    yield Result(f"a pass over {looked:,} descriptors, against find on their links", values, 1.5, detail=detail)
