"""Scheduler: each collector in a thread of its own, on its interval; a stuck one stops no other.

Devices that come or go ask for a run before its time, so that nobody waits for the interval to see them.

Threads, as every call we make blocks and none can be cancelled. A thread that hangs in the kernel is its collector's
only one: no second run starts while the first is out, and when the kernel lets go the same thread goes on.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from agent.collector import Running, Shared, Start
from agent.errors import HostError
from agent.exposition import Pages
from agent.host import Host
from agent.latches import Latches
from agent.runner import Plan, Runner
from agent.uevents import Uevents

RETRY = 60.0  # seconds before a collector that could not be started is tried again
WAIT = 0.5  # seconds between looks whether one that waits for its predecessor is still wanted
BURST = 1.0  # seconds from a wake to its run at least: devices come and go in bursts
BURST_FACTOR = 10.0  # and so many times what the run before it took: no storm of events makes it cost a core


def phase(node: str, name: str, interval: float) -> float:
    """Return a collector's place within its interval: stable for a node, spread over a fleet of them."""
    digest = hashlib.blake2b(f"{node}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64 * interval


class Worker:
    """One collector's thread. `is_first_done` is set when its first run has ended, well or not.

    `predecessor` is whom it waits for, None for nobody.
    """

    def __init__(
        self, runner: Runner, start: Start, offset: float, told: Callable[[], None], ended: Callable[[str], None]
    ) -> None:
        self.runner = runner
        self.is_first_done = False
        self._start = start
        self._offset = offset
        self._told = told
        self._ended = ended
        self._since: float | None = None
        self._stop = threading.Event()
        self._woken = threading.Event()
        self._is_hurried = False
        self.predecessor: Worker | None = None
        self.thread = threading.Thread(target=self._live, name=f"collector-{runner.plan.name}", daemon=True)

    @property
    def is_overdue(self) -> bool:
        """Whether a run is out for longer than its deadline: while it waits for a predecessor, that one's."""
        if (before := self.predecessor) is not None:
            return before.is_overdue
        since = self._since
        return since is not None and time.monotonic() - since > self.runner.plan.deadline

    @property
    def is_settled(self) -> bool:
        """Whether nobody needs to wait for this collector's first page any longer."""
        return self.is_first_done or self.is_overdue

    def begin(self, predecessor: Worker | None = None) -> None:
        """Start the thread; it waits until a predecessor of the same collector, and those before it, have ended."""
        self.predecessor = predecessor
        self.thread.start()

    def stop(self) -> None:
        """Ask the thread to end after the run that is out, if any."""
        self._stop.set()
        self._woken.set()

    def wake(self, *, at_once: bool = False) -> None:
        """Ask for a run before its time, from any thread; a burst of wakes is one run, unless it is to be at once."""
        self._is_hurried = at_once
        self._woken.set()

    def _live(self) -> None:
        while (before := self.predecessor) is not None:
            before.thread.join(WAIT)
            if not before.thread.is_alive():
                self.predecessor = before.predecessor  # of one that was stopped while it waited
            elif self._stop.is_set():
                return
        running = None
        while not self._stop.is_set() and running is None:
            running = self._try_start()
            if running is None and self._stop.wait(RETRY):
                return
        if running is None:
            return
        try:
            while not self._stop.is_set():
                self._run_once(running)
                if self._woken.wait(self._until_next()):
                    if not self._is_hurried:
                        self._stop.wait(max(BURST, BURST_FACTOR * self.runner.outcome.duration))
                    self._woken.clear()
        finally:
            running.close()
            self._ended(self.runner.plan.name)

    def _try_start(self) -> Running | None:
        self._since = time.monotonic()
        try:
            return self.runner.plan.collector.start(self._start)
        except Exception as error:  # noqa: BLE001  a bug in one collector must not stop the others
            self.runner.fail_start(error)
            self.is_first_done = True
            self._told()
            return None
        finally:
            self._since = None

    def _run_once(self, running: Running) -> None:
        self._since = time.monotonic()
        try:
            self.runner.run(running)
        finally:
            self._since = None
            self.is_first_done = True
            self._told()

    def _until_next(self) -> float:
        interval = self.runner.plan.interval
        return interval - (time.monotonic() - self._offset) % interval


class Scheduler:
    """All workers by name. `changed` is set whenever a run has ended."""

    def __init__(self, host: Host, latches: Latches, pages: Pages, node: str, state: Path | None) -> None:
        self.changed = threading.Event()
        self.workers: Mapping[str, Worker] = {}
        self._host = host
        self._latches = latches
        self._pages = pages
        self._node = node
        self._state = state
        self._shared = Shared()
        self._overdue: set[str] = set()
        self._uevents: Uevents | None = None
        self._log = structlog.get_logger()

    def apply(self, plans: Sequence[Plan]) -> None:
        """Make the workers those of `plans`: unchanged ones go on untouched, changed ones are restarted.

        A changed collector's page stays until its successor's is there; a removed one's is withdrawn.
        """
        workers = {}
        for plan in plans:
            old = self.workers.get(plan.name)
            workers[plan.name] = old if old is not None and old.runner.plan == plan else self._replace(old, plan)
        gone = [worker for name, worker in self.workers.items() if name not in workers]
        self.workers = workers
        self._listen()
        for worker in gone:
            worker.stop()
            self._pages.drop(worker.runner.plan.name)
        self.changed.set()

    def _listen(self) -> None:
        """Have the kernel tell of the devices that some collector wants to know of."""
        wanted = {subsystem for each in self.workers.values() for subsystem in each.runner.plan.collector.uevents}
        if self._uevents is not None and self._uevents.subsystems != wanted:
            self._uevents.close()
            self._uevents = None
        if self._uevents is None and wanted:
            try:
                self._uevents = Uevents(wanted, self._wake)
            except HostError as error:
                self._log.warning("devices that come and go are seen with the next run only", reason=str(error))

    def _wake(self, subsystem: str) -> None:
        for worker in self.workers.values():
            if subsystem in worker.runner.plan.collector.uevents:
                worker.wake()

    def _replace(self, old: Worker | None, plan: Plan) -> Worker:
        runner = Runner(plan, self._host, self._latches, self._pages)
        state = self._state / plan.name if self._state is not None else None
        worker = Worker(
            runner,
            Start(runner.host, plan.settings, state, plan.runtimes, self._shared),
            phase(self._node, plan.name, plan.interval),
            self.changed.set,
            self._withdraw_removed,
        )
        if old is not None:
            runner.errors.update(old.runner.errors)
            runner.transitions.update(old.runner.transitions)
            runner.outcome = old.runner.outcome
            old.stop()
        worker.begin(old)
        return worker

    def _withdraw_removed(self, name: str) -> None:
        if name not in self.workers:  # its last run may have ended after it was removed
            self._pages.drop(name)

    @property
    def is_ready(self) -> bool:
        """Whether the first round is complete: every collector has run, failed, or is overdue."""
        return all(worker.is_settled for worker in self.workers.values())

    def tell_overdue(self) -> None:
        """Log, once per change, which collectors are overdue or no longer so."""
        overdue = {name for name, worker in self.workers.items() if worker.is_overdue}
        for name in sorted(overdue - self._overdue):
            self._log.warning("collector overdue", collector=name, deadline=self.workers[name].runner.plan.deadline)
        for name in sorted(self._overdue - overdue):
            self._log.info("collector no longer overdue", collector=name)
        self._overdue = overdue

    def stop(self, within: float) -> None:
        """Ask all workers to end and wait for them, `within` seconds in all; threads stuck in the kernel are left."""
        if self._uevents is not None:
            self._uevents.close()
            self._uevents = None
        for worker in self.workers.values():
            worker.stop()
        deadline = time.monotonic() + within
        for worker in self.workers.values():
            worker.thread.join(max(0.0, deadline - time.monotonic()))
