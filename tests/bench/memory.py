"""Resident memory of the running agent, its helper process included."""

from __future__ import annotations

import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator

import psutil

from tests.bench.measure import Result, free_port, process, wait_for

MIB = 1 << 20
AGENT = "import sys; {}; from agent.cli import main; sys.exit(main(sys.argv[1:]))"
SETTLE = 12.0  # seconds: more than one interval of each collector


def measure(preamble: str) -> tuple[float, str]:
    """Return the MiB of the agent with its helper, and both in words; the helper's shared pages count once."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ullage-bench-") as state:
        flags = ["run", f"--web.listen-address=127.0.0.1:{port}", f"--path.state={state}"]
        with process([sys.executable, "-c", AGENT.format(preamble), *flags]) as agent:
            wait_for(f"http://127.0.0.1:{port}/-/ready")
            end = time.monotonic() + SETTLE
            while time.monotonic() < end:
                request = urllib.request.Request(
                    f"http://127.0.0.1:{port}/metrics", headers={"Accept-Encoding": "gzip"}
                )
                urllib.request.urlopen(request, timeout=10).read()
                time.sleep(0.5)
            own = psutil.Process(agent.pid)
            helpers = sum(child.memory_full_info().uss for child in own.children(recursive=True)) / MIB
            alone = own.memory_info().rss / MIB
    return alone + helpers, f"agent {alone:.1f} MiB resident, helper process {helpers:.1f} MiB of its own"


def run() -> Iterator[Result]:
    for name, preamble, goal in (("without", "pass", 40.0), ("with", "import docker", 48.0)):
        total, detail = measure(preamble)
        yield Result(f"resident memory {name} the Docker SDK loaded", [total], goal, "MiB", detail)
