"""What the collectors of descriptors have in common: their part of the pass over all processes, and whose they are.

See `collectors.processes` for the pass. A container's numbers are absent while one of its processes could not be seen.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.budget import Budget
from agent.collector import Start
from agent.containers import Containers
from agent.host import Host
from agent.metric import LabelSet, Metric, Sample, label
from agent.privileges import Want
from agent.ranking import biggest
from collectors.processes import Processes, Reading

HOST: LabelSet = ("", "", "host", "")  # of processes in no container
OTHER: LabelSet = ("", "", "other", "")
WANTS = (
    Want(
        capabilities=("DAC_READ_SEARCH",),
        lost="the numbers of containers and users with a process that is not root's, and what includes them: those of "
        "the host, and by filesystem",
    ),
    Want(
        capabilities=("SYS_PTRACE",),
        lost="the numbers of containers and users with a process that is not root's, or has capabilities that the "
        "agent has not, and what includes them: those of the host, and by filesystem",
    ),
)
Column = Mapping[LabelSet, int]


def check(cpu_budget: float, top: int) -> None:
    """Refuse, by a ValueError, settings of the pass that make no sense."""
    if not 0 < cpu_budget <= 1 or top < 1:
        raise ValueError("a cpu_budget over 0 and at most 1 (of one core), and a top of 1 or more")


class About(NamedTuple):
    """What a collector tells of the pass."""

    age: Metric
    processes: Metric
    skipped: Metric
    progress: Metric


def about(prefix: str) -> About:
    """Return a collector's own metrics of the pass."""
    return About(
        Metric(f"ullage_{prefix}_age_seconds", "For how long the numbers may have been wrong: since the pass began."),
        Metric(f"ullage_{prefix}_processes", "Processes that the newest pass looked at."),
        Metric(f"ullage_{prefix}_skipped_processes", "Processes that the newest pass did not look at.", ("reason",)),
        Metric(f"ullage_{prefix}_progress_ratio", "How much of the first pass is done; 1 once there are numbers."),
    )


@dataclass(slots=True)
class View:
    """One collector's view of the pass, which it pays for with `share` of a processor."""

    start: Start
    about: About
    share: float
    top: int
    found: Reading | None = None
    _budget: Budget = field(init=False)
    _processes: Processes = field(init=False)
    _containers: Containers = field(init=False)
    _owners: dict[str, LabelSet] = field(default_factory=dict)
    _unknown: set[LabelSet] = field(default_factory=set)
    _shown: list[LabelSet] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Take part in the pass."""
        self._budget = Budget(self.share)
        self._processes = self.start.shared.get(Processes)
        self._containers = Containers(self.start.host, self.start.runtimes)

    def look(self, host: Host) -> Iterator[Sample]:
        """Bring `found` up to date and yield what there is to say of it. What it refused is counted once."""
        now = time.monotonic()
        before = self.found.number if self.found is not None else 0
        self.found = self._processes.reading(host, self._budget, before)
        yield self.about.progress(self._processes.progress())
        if self.found is None:
            return
        if self.found.number != before:
            for refusal in self.found.refusals:
                host.skip(refusal)
        yield self.about.age(max(0.0, now - self.found.began))
        yield self.about.processes(self.found.processes)
        for reason, count in self.found.skipped.items():
            yield self.about.skipped(count, reason)
        self._name(self.found)

    def _name(self, found: Reading) -> None:
        groups = found.groups | found.unknown_groups
        self._containers.retain(groups)
        self._owners = {}
        for group in sorted(groups):
            container = self._containers.lookup(group)
            self._owners[group] = container.labels if container is not None else HOST
        # of a process without a cgroup nobody knows whose it is: it may be anybody's
        self._unknown = {self._owners[group] for group in (groups if "" in groups else found.unknown_groups)}

    def owner(self, group: str) -> LabelSet:
        """Return the labels of the container, or pod, that a cgroup is in; HOST if there is none."""
        return self._owners[group]

    def sums(self, amounts: Iterator[tuple[str, int]]) -> Counter[LabelSet]:
        """Return the sums of what cgroups have, by container; containers with nothing are in it with 0."""
        found: Counter[LabelSet] = Counter(dict.fromkeys(self._owners.values(), 0))
        for group, amount in amounts:
            found[self._owners[group]] += amount
        for labels in self._unknown:
            del found[labels]
        return found

    def by_container(self, weights: Column, columns: Mapping[Metric, Column]) -> Iterator[Sample]:
        """Yield the columns of the host, of the containers with the biggest weights, and the sums of the others."""
        containers = {labels: weight for labels, weight in weights.items() if labels != HOST}
        self._shown = biggest(containers, self.top, self._shown)
        shown = {HOST, *self._shown}
        for metric, column in columns.items():
            for labels in (HOST, *self._shown):
                if labels in column:
                    yield metric(column[labels], *labels)
            rest = [value for labels, value in column.items() if labels not in shown]
            if rest:
                yield metric(sum(rest), *OTHER)

    def name(self, group: str) -> str:
        """Return what a person calls the owner of a cgroup: `shop/web-1/main`, or the path of a host's own cgroup."""
        labels = self._owners[group]
        if labels == HOST:
            return label(group)
        return "/".join(part for part in labels[:3] if part) or labels[3]

    def restart(self, group: str, pid: str) -> str:
        """Return the command that ends a process and begins it anew, as far as it can be told."""
        found = self._containers.lookup(group)
        unit = group.rpartition("/")[2]
        if found is None and unit.endswith(".service") and "/user@" not in group:
            return f"systemctl restart {shlex.quote(unit)}"
        if found is not None and found.pod:
            namespace, pod = shlex.quote(found.namespace), shlex.quote(found.pod)
            return f"kubectl delete pod --namespace {namespace} {pod}"
        if found is not None and found.container and found.runtime in ("docker", "podman"):
            return f"{found.runtime} restart {shlex.quote(found.container)}"
        return f"kill {pid}"
