"""The collector of the kernel's log at work on this machine's."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from agent.collector import Start
from agent.config import load
from agent.containers import Runtimes
from agent.exposition import Pages
from agent.finding import Found
from agent.host import Host
from agent.latches import Latches
from agent.runner import Runner
from collectors import kernellog

WAIT = 120.0  # seconds
Key = tuple[str, ...]


class Agent:
    """The collector at work on this node's log; counts are compared with those at its start."""

    def __init__(self, state: Path | None = None, runtimes: Runtimes | None = None, lines: int = 10_000) -> None:
        (plan,) = load(None, [kernellog.COLLECTOR], {}).plans
        plan = replace(plan, settings=kernellog.Settings(lines=lines))
        self._pages = Pages()
        self.runner = Runner(plan, Host(), Latches(None), self._pages)
        start = Start(self.runner.host, plan.settings, state, runtimes or Runtimes())
        self.running = kernellog.KernelLog(start)
        self.before = self.read("ullage_kernel_events_total")

    def read(self, name: str) -> dict[Key, float]:
        """Do one run; return a metric's values by its labels."""
        self.runner.run(self.running)
        assert self.runner.outcome.is_up, self.runner.outcome.reason
        text = b"".join(self._pages.members("text", gzip=False)).decode()
        return {
            tuple(sample.labels[each] for each in labels): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
            for labels in [next(m.labels for m in kernellog.COLLECTOR.metrics if m.name == name)]
        }

    def number(self, name: str) -> float:
        """Do one run; return the value of a metric without labels."""
        return self.read(name)[()]

    def risen(self, *key: str) -> float:
        """Do one run; return how much an event's count has risen since the start."""
        return self.read("ullage_kernel_events_total").get(key, 0) - self.before.get(key, 0)

    def until(self, *key: str) -> None:
        """Run until an event's count has risen."""
        end = time.monotonic() + WAIT
        while not self.risen(*key):
            assert time.monotonic() < end, f"no {key}; the log's end:\n{log_end()}"
            time.sleep(0.1)

    def found(self, finding: str, target: str) -> Found:
        """Return a finding of the last run."""
        found = {(each.finding.id, each.target): each for each in self.runner.outcome.findings}
        assert (finding, target) in found, list(found)
        return found[finding, target]

    def expect_end(self, finding: str, target: str) -> None:
        """Expect that an hour without another such line ends a finding."""
        self.running.now = lambda: time.time() + kernellog.Settings().hold
        self.read("ullage_kernel_events_total")
        assert (finding, target) not in {(each.finding.id, each.target) for each in self.runner.outcome.findings}


def log_end() -> str:
    """Return the last of the kernel's lines."""
    return "\n".join(subprocess.run(["dmesg"], check=True, capture_output=True, text=True).stdout.splitlines()[-30:])
