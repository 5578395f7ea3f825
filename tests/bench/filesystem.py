"""The filesystem collector per added mount, against node_exporter's; our helper process included."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agent.collector import Start
from agent.config import load
from agent.exposition import Pages
from agent.host import Host
from agent.latches import Latches
from agent.probe import HelperProber
from agent.runner import Runner
from collectors import filesystem
from tests.bench.measure import Result, cpu_of, free_port, own_cpu, process, rounds, spent, wait_for

MOUNTS = 200
RUNS = 30


@contextlib.contextmanager
def mounts(root: Path, count: int = MOUNTS) -> Iterator[list[str]]:
    """Have so many more tmpfs mounts for the time of a block."""
    points = [str(root / f"mount-{number}") for number in range(count)]
    made = []
    try:
        for point in points:
            os.makedirs(point, exist_ok=True)
            subprocess.run(["mount", "-i", "-t", "tmpfs", "-o", "size=64k", "bench", point], check=True)
            made.append(point)
        yield made
    finally:
        if made:
            subprocess.run(["umount", "-l", *made], check=True)


def scrape(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for _ in range(RUNS):
        connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.read()
    connection.close()


def run() -> Iterator[Result]:
    if os.geteuid() != 0 or shutil.which("prometheus-node-exporter") is None:
        print("filesystem collector: skipped, needs root and prometheus-node-exporter")
        return
    port, root = free_port(), Path(tempfile.mkdtemp(prefix="ullage-bench-"))
    node_exporter = [
        "prometheus-node-exporter",
        *("--collector.disable-defaults", "--collector.filesystem", f"--web.listen-address=127.0.0.1:{port}"),
        "--web.disable-exporter-metrics",
    ]
    prober = HelperProber()
    pages = Pages()
    pages.members("text", gzip=True)  # from now on each page is compressed, as after a first scrape
    (plan,) = load(None, [filesystem.COLLECTOR], {}).plans
    runner = Runner(plan, Host(prober=prober), Latches(None), pages)
    collector = plan.collector.start(Start(runner.host, plan.settings))

    def collect() -> None:
        for _ in range(RUNS):
            runner.run(collector)
            assert b"".join(pages.members("text", gzip=True))

    def ours() -> float:
        return spent(collect, own_cpu, lambda: cpu_of(prober.pid or 0)) / RUNS

    collect()
    try:
        with process(node_exporter) as theirs_process:
            wait_for(f"http://127.0.0.1:{port}/metrics")

            def theirs() -> float:
                return spent(lambda: scrape(port), lambda: cpu_of(theirs_process.pid)) / RUNS

            def added(measure: object) -> float:
                assert callable(measure)
                without = measure()
                with mounts(root):
                    measure()
                    return float((measure() - without) / MOUNTS)

            values, detail = rounds(lambda: added(ours), lambda: added(theirs))
        yield Result("filesystem collector per added mount, against node_exporter", values, 1 / 4, detail=detail)
    finally:
        collector.close()
        prober.close()
        shutil.rmtree(root, ignore_errors=True)
