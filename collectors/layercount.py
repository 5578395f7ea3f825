"""The counts of all layers of a node, kept right within a budget of processor time.

An image's layer never changes: it is walked once, and what was found outlives the agent. A container's layer has an
index, see `collectors.layerindex`. All work is done in slices, see `agent.budget`, and nothing is open in the pauses
between them. The disk is asked at idle priority.
"""

from __future__ import annotations

import ctypes
import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from agent import statefile
from agent.beneath import Directories
from agent.budget import Budget
from agent.errors import HostError, Vanished
from agent.fanotify import Fanotify, Handles
from agent.host import Host
from collectors.layerindex import Index, Node, Tree
from collectors.layerwalk import Count, TooMany, Walk
from collectors.stores import Layer

FULL = 0.75  # of an index that layers which had to leave it come back to: all of it is for new ones, and for growth
LOOK_AGAIN = 600.0  # seconds after which a whole layer is read again: files grow, and no directory tells
WALKS_AT_ONCE = 4
STATE = "layers.json"

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_IOPRIO_WHO_PROCESS, _IDLE = 1, 3 << 13  # linux/ioprio.h


class Known(NamedTuple):
    """What a walk found, and when it began, on the monotonic clock (None: before this agent did)."""

    identity: tuple[int, int]
    found: Count
    at: float | None


@dataclass(slots=True)
class Watch:
    """A filesystem with layers, and what tells which directories of it have changed: None for their times only."""

    index: Index
    mark: Fanotify | None = None
    handles: Handles | None = None


@dataclass(slots=True)
class _Store:
    watch: Watch
    device: int
    layers: Mapping[str, Layer] = field(default_factory=dict)
    trees: dict[str, Tree] = field(default_factory=dict)
    walks: dict[str, Walk] = field(default_factory=dict)
    known: dict[str, Known] = field(default_factory=dict)
    # those that the index has no place for are walked again and again instead: what they would take, once that is known
    too_big: dict[str, int | None] = field(default_factory=dict)
    # since when a layer's count may be wrong, or since when it was to be had while there is none
    since: dict[str, float] = field(default_factory=dict)


class _Task(NamedTuple):
    store: _Store
    name: str


class Counting:
    """Counts the layers that it was told of last. For one thread. `share` is that of one processor."""

    def __init__(  # noqa: PLR0913  three clocks and a pause are a test's to replace
        self,
        share: float,
        state: Path | None = None,
        *,
        wants_mark: bool = True,
        most_entries: int = 40_000,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
        pause: Callable[[float], None] = time.sleep,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._state = state / STATE if state is not None else None
        self._wants_mark = wants_mark
        self._most_entries = most_entries
        self._clock = clock
        self._now = now
        self._budget = Budget(share, clock=clock, cpu=cpu, pause=pause)
        self._round = clock()  # the newest
        self._directories = Directories()
        self._watches: dict[int, Watch] = {}
        self._stores: dict[str, _Store] = {}
        self._kept = statefile.load(self._state, 1, _decode) or {} if self._state is not None else {}
        self._keeper = statefile.Keeper(self._state, 1, self._gather)
        self._is_idle = False
        self._log = structlog.get_logger()

    # -- what shall be counted --

    def follow(self, host: Host, path: str, layers: Iterable[Layer]) -> None:
        """Count these layers of a store from now on. Raises a HostError if its directory is not to be had."""
        device = host.device(path)
        store = self._stores.get(path)
        if store is None or store.device != device or store.watch is not self._watches.get(device):
            for tree in store.trees.values() if store is not None else ():
                tree.close()
            known = store.known if store is not None else self._kept.get(path, {})
            since = store.since if store is not None else {}
            store = self._stores[path] = _Store(self._watch(host, path, device), device, known=dict(known), since=since)
        now = self._clock()
        store.layers = {layer.name: layer for layer in layers}
        # not when its tree or walk was made: one that fails gets another again and again, and never a count
        store.since = {name: store.since.get(name, now) for name, layer in store.layers.items() if layer.is_settled}
        for name in store.trees.keys() - store.layers.keys():
            store.trees.pop(name).close()
        store.walks = {name: walk for name, walk in store.walks.items() if name in store.layers}
        store.known = {name: known for name, known in store.known.items() if name in store.layers}
        store.too_big = {name: need for name, need in store.too_big.items() if _has_tree(store.layers.get(name))}
        self._take_back(host, store)
        for layer in store.layers.values():
            self._plan(host, store, layer)

    def is_lost(self, host: Host, path: str) -> bool:
        """Return whether a store is to be followed anew, as another filesystem is mounted there."""
        store = self._stores.get(path)
        if store is None or store.watch is not self._watches.get(store.device):
            return True
        try:
            return host.device(path) != store.device
        except HostError:
            return True

    def keep_only(self, paths: Iterable[str]) -> None:
        """Forget all other stores."""
        for path in [path for path in self._stores if path not in set(paths)]:
            for tree in self._stores.pop(path).trees.values():
                tree.close()
            self._keeper.is_dirty = True
        used = {store.device for store in self._stores.values()}
        for device in [device for device in self._watches if device not in used]:
            self._unwatch(device)

    def _plan(self, host: Host, store: _Store, layer: Layer) -> None:
        """Have a layer counted in the way that fits it, unless it is."""
        name = layer.name
        known = store.known.get(name)
        if known is not None and _is_another(layer, known.identity):
            known = None
            del store.known[name]
            store.walks.pop(name, None)
            if layer.is_settled:
                store.since[name] = self._clock()
        if _has_tree(layer) and name not in store.too_big:
            if name not in store.trees:
                self._plant(host, store, layer)
            return
        if name in store.trees:
            store.trees.pop(name).close()
        is_old = known is None or (_may_change(layer) and self._clock() - (known.at or -LOOK_AGAIN) >= LOOK_AGAIN)
        if is_old and layer.is_settled and name not in store.walks:
            store.walks[name] = _walk(host, layer)

    def _plant(self, host: Host, store: _Store, layer: Layer, expected: int = 0) -> None:
        """Have a layer kept in the index."""
        watch = store.watch
        tree = store.trees[layer.name] = Tree(host.real(layer.path), layer.content, watch.index, watch.handles)
        tree.expected = expected
        store.walks.pop(layer.name, None)

    def _take_back(self, host: Host, store: _Store) -> None:
        """Have layers in the index again that had to leave it, those that need least first, as far as there is room.

        One that has come back does not have to go before a quarter of the index has been taken by others, or by it.
        """
        taken = sum(max(tree.size, tree.expected) for _, _, tree in self._trees(store.watch))
        known = [(need, name) for name, need in store.too_big.items() if need is not None]
        for need, name in sorted(known):
            taken += need
            if taken > store.watch.index.most * FULL:
                break
            self._log.info("a layer is in the index again", path=store.layers[name].path)
            del store.too_big[name]
            self._plant(host, store, store.layers[name], need)

    def _trees(self, watch: Watch) -> list[tuple[_Store, str, Tree]]:
        """Return all that is in an index."""
        stores = [store for store in self._stores.values() if store.watch is watch]
        return [(store, name, tree) for store in stores for name, tree in store.trees.items()]

    def _watch(self, host: Host, path: str, device: int) -> Watch:
        if device not in self._watches:
            index = Index(most=self._most_entries, clock=self._now)
            mark = None
            if self._wants_mark:
                try:
                    mark = Fanotify(host.real(path))
                except HostError as error:
                    self._log.info("changes are found by the times of directories", path=path, reason=error.detail)
            self._watches[device] = Watch(index, mark, Handles() if mark is not None else None)
        return self._watches[device]

    def _unwatch(self, device: int) -> None:
        watch = self._watches.pop(device)
        if watch.mark is not None:
            watch.mark.close()

    # -- counting --

    def work(self, host: Host) -> None:
        """Bring the counts up to date, as far as the budget goes. Layers that refuse are told to the host."""
        self._be_idle()
        now = self._round = self._clock()
        self._budget.begin()
        for device in list(self._watches):
            self._drain(device, now)
        tasks = self._tasks()
        while self._budget.goes_on() and tasks:
            task = tasks.popleft()
            if not self._step(host, task, now, self._budget.is_slice_over):
                # a walk remembers inodes: few of them are under way at once
                tasks.insert(len(tasks) if task.name in task.store.trees else WALKS_AT_ONCE - 1, task)
        self._keeper.save_if_needed()

    def _be_idle(self) -> None:
        """Let the disk serve everybody else first: this thread is the collector's own."""
        number = _IOPRIO_SET.get(platform.machine())
        if not self._is_idle and number is not None:
            ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, 0, _IDLE)
        self._is_idle = True

    def _drain(self, device: int, now: float) -> None:
        """Have everything read again that has changed."""
        watch = self._watches[device]
        told = self._told(watch)
        if told is None:  # whatever is mounted there now: begin anew with the next scan
            self._unwatch(device)
            return
        changed, is_all = told
        trees = self._trees(watch)
        for _, _, tree in trees:
            if not tree.reading_since:
                tree.reading_since = tree.told_at = now
            # after an overflow of the queue the times of all directories are compared. That is no guess: a ctime cannot
            # be set back, and none is kept of a directory that changed within a second before it was read. What is
            # only written into a file is told by neither, and changes no number of inodes
            tree.hear(now, is_all=is_all)
        for handle in changed:
            node: Node | None = watch.index.by_handle.get(handle)
            if node is not None:
                node.tree.mark(node)
        for store, name, tree in trees:
            if not tree.due:
                store.since[name] = tree.told_at
            if now - tree.reading_since >= LOOK_AGAIN:
                tree.reading_since = now
                tree.read_all()

    def _told(self, watch: Watch) -> tuple[set[bytes], bool] | None:
        """Return what the mark tells, and whether that is all; None if the mark is gone."""
        if watch.mark is None:
            return set(), False
        try:
            told = watch.mark.read()
            return told if watch.mark.is_whole() else None
        except HostError as error:
            self._log.warning("the mark on a filesystem fails", reason=str(error))
            return None

    def _tasks(self) -> deque[_Task]:
        """Return what is to be done: containers first, those with the least to do before the others."""
        trees: list[tuple[int, _Task]] = []
        walks: list[_Task] = []
        for store in self._stores.values():
            trees += [(tree.due, _Task(store, name)) for name, tree in store.trees.items() if tree.due]
            walks += [_Task(store, name) for name in store.walks]
        trees.sort(key=lambda each: each[0])
        return deque([task for _, task in trees] + walks)

    def _step(self, host: Host, task: _Task, now: float, is_over: Callable[[], bool]) -> bool:
        """Do a slice of a task; return whether it is at its end."""
        store, name = task
        try:
            if name in store.trees:
                return self._step_tree(store, name, is_over)
            return self._step_walk(store, name, now, is_over)
        except TooMany as error:
            self._make_room(host, task, error.more)
            return False
        except HostError as error:
            if not isinstance(error, Vanished):
                host.skip(error)
            if name in store.trees:
                store.trees.pop(name).close()
            store.walks.pop(name, None)
            return True

    def _make_room(self, host: Host, task: _Task, more: int) -> None:
        """Have the layer that takes most of an index walked from now on, be it the one that needs `more`, or another.

        The one that found no room is often small, and the last one to come.
        """
        mine = task.store.trees[task.name]
        trees = self._trees(task.store.watch)
        store, name, tree = max(trees, key=lambda each: each[2].size + (more if each[2] is mine else 0))
        self._log.info("a layer is too large for the index", path=tree.path, entries=tree.size)
        store.trees.pop(name).close()
        if tree.count is not None:
            store.known[name] = Known(store.layers[name].identity, tree.count, store.since[name])
        store.too_big[name] = None
        store.walks[name] = _walk(host, store.layers[name])

    def _step_tree(self, store: _Store, name: str, is_over: Callable[[], bool]) -> bool:
        tree = store.trees[name]
        if not tree.work(self._directories, is_over):
            return False
        store.since[name], tree.read_at = tree.told_at, tree.reading_since
        tree.expected = 0
        store.known.pop(name, None)
        return True

    def _step_walk(self, store: _Store, name: str, now: float, is_over: Callable[[], bool]) -> bool:
        walk = store.walks[name]
        walk.began = now if walk.began is None else walk.began
        count = walk.work(self._directories, is_over)
        if count is None:
            return False
        del store.walks[name]
        if name in store.too_big:
            store.too_big[name] = walk.entries
        store.known[name] = Known(store.layers[name].identity, count, walk.began)
        store.since[name] = walk.began
        self._keeper.is_dirty = True
        return True

    # -- what is known --

    def count(self, path: str, name: str) -> Count | None:
        """Return a layer's count, None while there is none."""
        store = self._stores.get(path)
        if store is None:
            return None
        tree, known = store.trees.get(name), store.known.get(name)
        if tree is not None and tree.count is not None:
            return tree.count
        if known is None or (tree is not None and known.at is None):  # that was another agent's, who knows when
            return None
        return known.found

    def progress(self, path: str) -> float:
        """Return the part of a store's layers that has been counted, of those that shall be."""
        store = self._stores.get(path)
        wanted = [name for name, layer in store.layers.items() if layer.is_settled] if store is not None else []
        counted = sum(self.count(path, name) is not None for name in wanted)
        return counted / len(wanted) if wanted else 1.0

    def age(self, path: str) -> float | None:
        """Return for how many seconds the oldest count of a store may have been wrong, or has been missing.

        None where there is nothing to be counted.
        """
        store = self._stores.get(path)
        if store is None or not store.since:
            return None
        since = [
            at for name, at in store.since.items() if _may_change(store.layers[name]) or self.count(path, name) is None
        ]
        return max((self._round - at for at in since), default=0.0)

    def bytes_age(self, path: str) -> float | None:
        """Return for how many seconds the oldest bytes of a store's containers have been known, None for none."""
        store = self._stores.get(path)
        if store is None:
            return None
        since = [tree.read_at for tree in store.trees.values() if tree.count is not None]
        since += [known.at for name, known in store.known.items() if name in store.too_big and known.at is not None]
        return max((self._round - at for at in since), default=None)

    def close(self) -> None:
        """Keep what was found, and let go of the marks."""
        self._keeper.save()
        for device in list(self._watches):
            self._unwatch(device)

    def _gather(self) -> Mapping[str, Any]:
        return {
            "stores": {
                path: {name: [*known.identity, *known.found] for name, known in store.known.items()}
                for path, store in self._stores.items()
            }
        }


def _has_tree(layer: Layer | None) -> bool:
    """Return whether a layer is one that an index keeps right."""
    return layer is not None and layer.state == "container" and layer.is_settled


def _may_change(layer: Layer) -> bool:
    """Return whether a layer that is walked is one of those that are written to."""
    return layer.state in ("container", "build")


def _is_another(layer: Layer, identity: tuple[int, int]) -> bool:
    """Return whether a layer's directory is not the one that was counted. That of one in use has another time often."""
    return layer.identity[0] != identity[0] if _may_change(layer) else layer.identity != identity


def _walk(host: Host, layer: Layer) -> Walk:
    """Return a count of a layer; its files are looked at where nobody has recorded their bytes."""
    is_known = layer.state == "image" and layer.size is not None
    return Walk(host.real(layer.path), "" if is_known else layer.content)


def _decode(data: Any) -> dict[str, dict[str, Known]]:
    return {
        str(path): {str(name): _decode_known(row) for name, row in layers.items()}
        for path, layers in data["stores"].items()
    }


def _decode_known(row: Sequence[Any]) -> Known:
    inode, changed, *count = row
    files, size, content_files, content_size = count
    if not all(isinstance(each, int) for each in (inode, changed, files, content_files)):
        raise TypeError("expected numbers")
    return Known((inode, changed), Count(files, size, content_files, content_size), None)
