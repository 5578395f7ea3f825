"""The soak itself: the agent with every collector, the churn, and what befalls them by the clock."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.agent_process import AGENT, Agent, running
from tests.e2e.loops import mounted
from tests.faults.conftest import write_config
from tests.real.cgroups import cgroup, memory_root
from tests.real.dockerd import dockerd
from tests.scraper import scraped
from tests.shifted_clock import ShiftedClock
from tests.soak.churn import Churn, Step, cgroups, containers, mounts, qgroups
from tests.soak.verdict import WARM_UP, Point, Verdict, judge, table, thinned

TOOLS = ("dockerd", "docker", "busybox", "mkfs.ext4", "mkfs.btrfs", "btrfs", "losetup", "mount", "gcc")
SCRAPE_EVERY = 1.0  # seconds
RELOAD_EVERY, STEP_EVERY, RESTART_EVERY = 20.0, 35.0, 60.0
HOUR = 3600


@dataclass
class Record:
    """What the agent held at each scrape, and all that happened, by kind."""

    measures: dict[str, list[Point]] = field(
        default_factory=lambda: {name: [] for name in ("memory", "descriptors", "threads", "series")}
    )
    events: Counter[str] = field(default_factory=Counter)
    names: list[Counter[str]] = field(default_factory=list)  # series by metric

    def take(self, agent: Agent, page: str, at: float) -> None:
        """Note what the agent holds after a scrape that has given this page."""
        held = agent.footprint()
        series = [line for line in page.splitlines() if not line.startswith("#")]
        self.names.append(Counter(re.split(r"[{ ]", line, maxsplit=1)[0] for line in series))
        now = {
            "memory": held.memory / 1024,
            "descriptors": held.descriptors,
            "threads": held.threads,
            "series": len(series),
        }
        for name, value in now.items():
            self.measures[name].append((at, value))

    @property
    def verdicts(self) -> list[Verdict]:
        return judge(self.measures)

    def __str__(self) -> str:
        happened = ", ".join(f"{count:,} {what}" for what, count in self.events.items())
        parts = [f"{happened}.\n\n{table(self.verdicts)}"]
        if not all(verdict.is_flat for verdict in self.verdicts):
            parts += [f"{name}: {shape(points)}" for name, points in self.measures.items()]
            grown = self.names[-1] - self.names[round(WARM_UP * len(self.names))]
            parts.append(f"series that are more: {dict(grown.most_common(10))}")
        return "\n".join(parts)


def shape(points: Sequence[Point]) -> str:
    """Return the medians of twenty parts of the time, for a reader who looks for what grows."""
    return " ".join(f"{value:.1f}" for _, value in thinned(points, 20))


@contextlib.contextmanager
def watched(agent: Agent, record: Record) -> Iterator[None]:
    """Scrape for the time of a block and note what the agent holds; no scrape may be lost, no exception logged."""
    with scraped(agent, SCRAPE_EVERY, lambda page, at: record.take(agent, page, at)) as scraper:
        yield
    record.events["scrapes"] = scraper.count


def soak(directory: Path, minutes: float, command: Sequence[str] = AGENT) -> Record:
    """Run the agent among churn for so long; return what it held. The directory's path is short.

    Raises AssertionError when a scrape was lost, an exception logged, or the churn itself failed.
    """
    root = memory_root()
    assert root is not None, "no memory controller is mounted"
    record = Record()
    clock = ShiftedClock(directory)
    configuration = directory / "ullage.yml"
    write_config(configuration)
    with contextlib.ExitStack() as made:
        btrfs = made.enter_context(mounted(directory / "btrfs", 400, "mkfs.btrfs", "-q"))
        store = made.enter_context(mounted(directory / "ext4", 2048, "mkfs.ext4", "-q", "-F"))
        (directory / "docker").mkdir()
        docker = made.enter_context(dockerd(directory / "docker", root=store / "docker"))
        parent = made.enter_context(cgroup(root / f"ullage-soak-{os.getpid()}" / "docker"))
        churn = Churn(
            {
                "cgroups": (cgroups(parent), 0.1),
                "mounts": (mounts(directory), 0.5),
                "qgroups": (qgroups(btrfs), 2.0),
                "containers": (containers(docker), 3.0),
            }
        )
        made.callback(churn.close)
        places = (f"--runtime.docker.socket={docker.socket}", f"--runtime.docker.root={docker.root}")
        agent = made.enter_context(
            running(
                directory,
                f"--config.file={configuration}",
                *places,
                command=command,
                environment=clock.environment,
            )
        )
        agent.wait_until_ready()

        def reload() -> None:
            # changed settings have one collector after the other begin anew
            number = record.events["reloads"]
            name = sorted(("filesystem", "layers", "overlay", "pagecache", "qgroup", "volumes"))[number % 6]
            write_config(configuration, own={name: f"series_budget: {9000 + number}"})
            agent.process.send_signal(signal.SIGHUP)

        def restart() -> None:
            with churn.pause("containers"):
                docker.quit()
                docker.start()
                # they ended with the daemon: the crowd is to stay as big
                for name in docker.docker("ps", "--all", "--quiet").split():
                    docker.docker("start", name)

        steps = {
            "reloads": (reload, RELOAD_EVERY),
            "steps of the clock": (lambda: clock.shift(-HOUR * (record.events["steps of the clock"] % 2)), STEP_EVERY),
            "restarts of dockerd": (restart, RESTART_EVERY),
        }
        with watched(agent, record):
            _befall(record, churn, steps, minutes * 60)
            assert churn.failures == []
            agent.check()
        record.events.update({f"{name} that came and went": count for name, count in churn.counts.items()})
        agent.stop()
    return record


def _befall(record: Record, churn: Churn, steps: Mapping[str, tuple[Step, float]], seconds: float) -> None:
    """Have things happen for so long, each on its interval."""
    now = time.monotonic()
    end, due = now + seconds, {name: now + every for name, (_, every) in steps.items()}
    while (now := time.monotonic()) < end and not churn.failures:
        for name, (step, every) in steps.items():
            if now >= due[name]:
                record.events[name] += 1
                step()
                due[name] += every
        time.sleep(0.1)
