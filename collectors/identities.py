"""Whose a cgroup is, or was: names outlive a container, of which the kernel's log may tell when it is gone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress

from agent.containers import Containers, Runtimes, containers_on
from agent.errors import Vanished
from agent.host import Host
from agent.metric import LabelSet
from collectors.cgroups import LONGEST, MOST, layout

LOOK_EVERY = 30.0  # seconds between looks which containers there are
REMEMBERED_FOR = 600.0  # seconds after a container was seen last


class Identities:
    """The labels of containers and pods by their cgroup; `look` must be called now and then."""

    def __init__(self, host: Host, runtimes: Runtimes) -> None:
        self._containers = Containers(host, runtimes)
        self._looked_at = float("-inf")
        self._seen: dict[str, tuple[LabelSet, float]] = {}  # names by the whole id, those seen last at the end

    def look(self, host: Host, now: float) -> None:
        """See which containers there are, if some time has gone by."""
        if now - self._looked_at < LOOK_EVERY:
            return
        self._looked_at = now
        found = layout(host)
        paths = list(_paths(host, found.root, self._containers)) if found is not None else []
        for path in paths:
            place = self._containers.place(path)
            known = self._containers.lookup(path) if place is not None and place.id else None
            if known is not None and known.is_named:
                self._seen.pop(known.id, None)
                self._seen[known.id] = known.labels, now
        self._containers.retain(paths)
        newest = list(self._seen.items())[-MOST:]
        self._seen = {key: each for key, each in newest if now - each[1] <= REMEMBERED_FOR}

    def labels(self, path: str) -> LabelSet | None:
        """Return the labels of a container, or a pod, that is or was in a cgroup; None if that is nobody's.

        Whoever may make cgroups in a container may name them as they like: the outermost container counts that somebody
        knows. One that nobody knows may be the node's own (kind), with all of the node's containers in it.
        """
        for outer in containers_on(path):
            found = self._containers.lookup(outer)
            if found is not None and not found.is_named and found.id in self._seen:
                return self._seen[found.id][0]
            if found is not None and any(found.labels[:-1]):
                return found.labels
        found = self._containers.lookup(path)
        return found.labels if found is not None and any(found.labels) else None


def _paths(host: Host, root: str, containers: Containers) -> Iterator[str]:
    """Yield all cgroups that are no container's own children, what is near first."""
    todo, left = deque([""]), MOST
    while todo:
        path = todo.popleft()
        with host.skipping(), suppress(Vanished):
            for name, is_directory in host.entries(root + path).items():
                below = f"{path}/{name}"
                if is_directory and len(below) <= LONGEST:
                    left -= 1
                    if left < 0:
                        return
                    yield below
                    place = containers.place(below)
                    if place is None or not place.id:
                        todo.append(below)
