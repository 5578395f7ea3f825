"""Node: a copy of a recorded tree with one collector at work on it, to be changed between two runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agent.collector import Collector, Running, Start
from agent.config import load
from agent.exposition import Pages
from agent.finding import Found
from agent.latches import Latches
from agent.runner import Runner
from tests.trees.tree import host_of

TREES = Path(__file__).resolve().parent


class Node:
    """`path` is the host's root; `start` may give the collector a clock of the test's own."""

    def __init__(
        self,
        collector: Collector,
        case: str,
        workplace: Path,
        start: Callable[[Start], Running] | None = None,
    ) -> None:
        host = host_of(TREES / collector.name / case, workplace)
        self.path = Path(host.rootfs)
        (plan,) = load(None, [collector], {}).plans
        self.pages = Pages()
        self.runner = Runner(plan, host, Latches(None), self.pages)
        self.running = (start or collector.start)(Start(self.runner.host, plan.settings))

    def run(self) -> str:
        """Do one run; return the page."""
        self.runner.run(self.running)
        assert "bug" not in self.runner.errors, self.runner.outcome.reason
        return b"".join(self.pages.members("text", gzip=False)).decode()

    def found(self) -> dict[tuple[str, str], Found]:
        """Return the findings of the last run by their id and target."""
        return {(each.finding.id, each.target): each for each in self.runner.outcome.findings}
