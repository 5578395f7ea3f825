"""Scrapes of a running agent, one after the other, all the while something is done to it: none may be lost."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator

from tests.agent_process import Agent, agents_own, series

Take = Callable[[str, float], None]


class Scraper:
    """A thread that scrapes every `every` seconds; `take` is given each page and the second of the run."""

    def __init__(self, agent: Agent, every: float, take: Take) -> None:
        self.count = 0
        self.lost: list[str] = []
        self._agent = agent
        self._every = every
        self._take = take
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live, name="scraper")
        self._thread.start()

    def _live(self) -> None:
        while not self._stop.wait(self._every):
            at = time.monotonic() - self._began
            self.count += 1
            try:
                self._take(self._agent.scrape(), at)
            except (OSError, AssertionError, http.client.HTTPException) as error:
                self.lost.append(f"after {at:.1f} s: {error!r}")

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def complaints(agent: Agent, page: str) -> list[str]:
    """Return what no fault of the node's may bring about: a bug of a collector, an exception in the log."""
    found = [f"{value:.0f} errors of the kind 'bug'" for value in series(page, ERRORS, reason="bug")]
    log = agent.log
    return found + ([f"an exception in the log:\n{log[log.index(RAISED) :][:3000]}"] if RAISED in log else [])


ERRORS, RAISED = "ullage_collector_errors_total", "Traceback"


@contextlib.contextmanager
def scraped(agent: Agent, every: float = 0.5, take: Take = lambda _page, _at: None) -> Iterator[Scraper]:
    """Scrape for the time of a block; no scrape may be lost, and nothing that no fault excuses be told."""
    scraper = Scraper(agent, every, take)
    try:
        yield scraper
    finally:
        scraper.close()
    assert scraper.lost == [], (scraper.count, agents_own(agent.scrape()), agent.log[-3000:])
    assert scraper.count > 0
    assert complaints(agent, agent.scrape()) == []
