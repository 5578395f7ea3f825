"""What the followers of Docker's events know after gaps: the volumes, the events, and how many nobody told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.dockerapi import Api
from agent.errors import Failed, Stuck, Vanished
from agent.statefile import LIMIT, write
from collectors.volume_events import REMEMBERED, VERSION, Feed, Kept, encode, load

SOCKET = "/run/docker.sock"
RING = 256


class Daemon:
    """A daemon as its API shows it; `ring` is what it remembers, `late` are events that no replay before them tells."""

    def __init__(self) -> None:
        self.time = 1_000
        self.there: dict[str, dict[str, Any]] = {}
        self.ring: list[dict[str, Any]] = []
        self.late: list[dict[str, Any]] = []
        self.refusal: Exception | None = None
        self.asked_since: list[int] = []
        self.is_closed = threading.Event()

    def now(self) -> int:
        return self.time

    def tell(self, action: str, name: str) -> dict[str, Any]:
        self.time += 10
        event = {"Type": "volume", "Action": action, "timeNano": self.time}
        event["Actor"] = {"ID": name, "Attributes": {"driver": "local"}}
        self.ring = [*self.ring, event][-RING:]
        return event

    def create(self, name: str) -> None:
        self.there[name] = {"Name": name, "Driver": "local", "Mountpoint": f"/d/volumes/{name}/_data"}
        self.tell("create", name)

    def destroy(self, name: str) -> None:
        del self.there[name]
        self.tell("destroy", name)

    def forget(self) -> None:
        """Restart: the memory of events is lost."""
        self.ring = []

    # the API

    def _answer(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    def info(self) -> Any:
        self._answer()
        return {}

    def version(self) -> Any:
        return {}

    def volumes(self) -> list[Any]:
        self._answer()
        self.time += 1
        return list(self.there.values())

    def volume(self, name: str) -> Any:
        self._answer()
        if name not in self.there:
            raise Vanished(name)
        return self.there[name]

    def volume_events(self, since: int, until: int | None = None) -> Iterator[Any]:
        self._answer()
        self.asked_since.append(since)
        told = [event for event in self.ring if event["timeNano"] >= since]
        yield from (event for event in told if until is None or event["timeNano"] <= until)
        if until is not None:
            self.ring += self.late
            self.late = []

    def close(self) -> None:
        self.is_closed.set()


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


def follow(daemon: Daemon, kept: Kept | None = None) -> Feed:
    """Return a feed that has listed the volumes once."""
    feed = Feed(SOCKET, lambda _socket: daemon, kept, daemon.now, settle=0)
    feed._sync(daemon)
    return feed


def names(feed: Feed) -> set[str]:
    volumes = feed.view().volumes
    assert volumes is not None
    return set(volumes)


def counts(feed: Feed) -> dict[str, int]:
    return dict(feed.view().counts)


def test_what_was_before_the_first_list_is_neither_told_nor_missed(daemon: Daemon) -> None:
    daemon.create("old")
    daemon.create("gone")
    daemon.destroy("gone")
    daemon.time += 1
    feed = follow(daemon)
    assert names(feed) == {"old"}
    assert (counts(feed), feed.view().missed) == ({}, 0)


def test_events_as_they_come_are_counted_once_and_the_new_volume_is_described(daemon: Daemon) -> None:
    feed = follow(daemon)
    daemon.create("a")
    daemon.tell("mount", "a")
    for _ in range(3):  # each new connection tells the last ones again
        feed._follow(daemon)
        feed._sync(daemon)
    assert counts(feed) == {"create": 1, "mount": 1}
    assert feed.view().missed == 0
    volumes = feed.view().volumes
    assert volumes is not None
    assert volumes["a"].mountpoint == "/d/volumes/a/_data"


def test_each_connection_asks_from_the_last_event_on(daemon: Daemon) -> None:
    feed = follow(daemon)
    daemon.create("a")
    last = daemon.time
    feed._follow(daemon)
    daemon.time += 100
    feed._sync(daemon)
    assert daemon.asked_since[-1] == last


def test_a_gap_that_the_ring_still_tells_misses_nothing(daemon: Daemon) -> None:
    feed = follow(daemon)
    daemon.create("kept")
    daemon.create("short")
    daemon.destroy("short")
    feed._sync(daemon)
    assert names(feed) == {"kept"}
    assert counts(feed) == {"create": 2, "destroy": 1}
    assert feed.view().missed == 0


def test_what_came_and_went_while_the_daemon_restarted_is_missed(daemon: Daemon) -> None:
    daemon.create("old")
    daemon.time += 1
    feed = follow(daemon)
    daemon.create("new")
    daemon.destroy("old")
    daemon.forget()
    feed._sync(daemon)
    assert names(feed) == {"new"}
    assert (counts(feed), feed.view().missed) == ({}, 2)
    feed._sync(daemon)
    assert feed.view().missed == 2


def test_a_volume_that_the_ring_knows_only_the_end_of_is_missed_once(daemon: Daemon) -> None:
    feed = follow(daemon)
    daemon.create("a")
    daemon.forget()
    daemon.destroy("a")
    feed._sync(daemon)
    assert names(feed) == set()
    assert (counts(feed), feed.view().missed) == ({"destroy": 1}, 1)


def test_more_events_than_the_ring_holds_are_made_good_by_the_list(daemon: Daemon) -> None:
    feed = follow(daemon)
    for number in range(RING + 50):
        daemon.create(f"v{number}")
    feed._sync(daemon)
    assert names(feed) == set(daemon.there)
    assert (counts(feed), feed.view().missed) == ({"create": RING}, 50)


def test_an_event_a_little_after_its_volume_is_not_missed(daemon: Daemon) -> None:
    feed = follow(daemon)
    daemon.create("a")
    daemon.late = [daemon.ring.pop()]
    feed._sync(daemon)
    assert (counts(feed), feed.view().missed) == ({"create": 1}, 0)


def test_what_happens_between_the_list_and_its_events_is_known_by_the_event(daemon: Daemon) -> None:
    daemon.create("going")
    daemon.time += 1
    feed = follow(daemon)

    class Slow:
        def volumes(self) -> list[Any]:
            listed = daemon.volumes()
            daemon.destroy("going")
            daemon.create("coming")
            return listed

        info, version, volume = daemon.info, daemon.version, daemon.volume
        volume_events, close = daemon.volume_events, daemon.close

    feed._sync(Slow())
    assert names(feed) == {"coming"}
    assert (counts(feed), feed.view().missed) == ({"create": 1, "destroy": 1}, 0)


def test_a_create_of_what_is_there_is_no_new_volume(daemon: Daemon) -> None:
    daemon.create("a")
    daemon.time += 1
    feed = follow(daemon)
    daemon.tell("create", "a")  # as Docker tells with each container that uses it
    feed._follow(daemon)
    assert counts(feed) == {"create": 1}
    assert feed.view().changes == ()


def test_over_a_restart_of_the_agent_events_are_told_or_missed(daemon: Daemon, tmp_path: Path) -> None:
    for name in ("a", "b"):
        daemon.create(name)
    daemon.time += 1
    feed = follow(daemon)
    daemon.create("c")
    feed._follow(daemon)
    kept = feed.to_keep()
    assert kept is not None
    write(tmp_path / "state" / "volumes.json", VERSION, encode({SOCKET: kept}))
    daemon.destroy("a")
    daemon.forget()
    daemon.create("d")
    after = follow(daemon, load(tmp_path / "state" / "volumes.json")[SOCKET])
    assert names(after) == {"b", "c", "d"}
    assert (counts(after), after.view().missed) == ({"create": 1}, 1)


def test_the_last_event_before_a_restart_of_the_agent_is_not_told_twice(daemon: Daemon) -> None:
    feed = follow(daemon)
    daemon.create("a")
    feed._follow(daemon)
    after = follow(daemon, feed.to_keep())
    assert (counts(after), after.view().missed) == ({}, 0)


def test_without_the_names_nothing_is_guessed_over_a_restart_of_the_agent(daemon: Daemon) -> None:
    since = daemon.time
    daemon.create("a")
    daemon.create("b")
    daemon.destroy("b")
    after = follow(daemon, Kept(since, (), None))
    assert names(after) == {"a"}
    assert (counts(after), after.view().missed) == ({"create": 2, "destroy": 1}, 0)


def test_a_clock_that_was_set_back_is_not_waited_for(daemon: Daemon) -> None:
    feed = follow(daemon, Kept(10**9, (), ()))
    daemon.create("a")
    feed._sync(daemon)
    assert all(since <= daemon.time for since in daemon.asked_since)
    assert feed.view().missed == 0


def test_strange_answers_cost_themselves_only(daemon: Daemon) -> None:
    feed = follow(daemon)
    daemon.create("a")
    daemon.ring.insert(0, {"Type": "volume", "timeNano": daemon.time})
    daemon.there["odd"] = {"Name": 5}
    feed._sync(daemon)
    assert names(feed) == {"a"}
    assert {error.reason for error in feed.take_errors()} == {"malformed"}
    assert feed.take_errors() == []


def test_what_is_remembered_is_bounded(daemon: Daemon) -> None:
    feed = follow(daemon)
    for number in range(2 * REMEMBERED):
        daemon.tell("mount", f"v{number}")
        feed._follow(daemon)
    assert len(feed._seen) == REMEMBERED
    assert counts(feed) == {"mount": 2 * REMEMBERED}


@pytest.mark.parametrize("refusal", [Failed(SOCKET, "connection refused"), Stuck(SOCKET, "does not answer")])
def test_a_daemon_that_refuses_is_told_and_tried_again_in_one_thread(daemon: Daemon, refusal: Exception) -> None:
    def refuse(_socket: str) -> Api:
        raise refusal

    feed = Feed(SOCKET, refuse, None, daemon.now)
    feed.begin()
    assert feed.is_settled.wait(30)
    feed.end()
    assert not feed._thread.is_alive()
    assert [error.reason for error in feed.take_errors()] == [getattr(refusal, "reason", "")]
    view = feed.view()
    assert (view.is_connected, view.volumes) == (False, None)
    assert feed.to_keep() is None


def test_the_end_closes_the_stream(daemon: Daemon) -> None:
    feed = Feed(SOCKET, lambda _socket: daemon, None, daemon.now)
    feed.begin()
    assert feed.is_settled.wait(30)
    assert feed.view().is_connected
    feed.end()
    assert daemon.is_closed.is_set()
    assert not feed._thread.is_alive()


DAMAGED = [
    "",
    "{",
    "[]",
    '{"version": 2, "daemons": {}}',
    '{"version": 1, "daemons": {"s": {"since": "x", "seen": [], "names": []}}}',
    '{"version": 1, "daemons": {"s": {"since": 1, "seen": [[1]], "names": []}}}',
    '{"version": 1, "daemons": {"s": 7}}',
    " " * (LIMIT + 1),
]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_state_is_set_aside(text: str, tmp_path: Path) -> None:
    path = tmp_path / "volumes.json"
    path.write_text(text)
    with capture_logs() as logs:
        assert load(path) == {}
    assert [entry["event"] for entry in logs] == ["state damaged, set aside"]
    assert path.with_suffix(".damaged").read_text() == text
    assert not path.exists()


def test_names_that_are_no_text_can_be_kept(tmp_path: Path) -> None:
    kept = {SOCKET: Kept(5, ((5, "create", "\udc80\n"),), ("\udc80\n", '"'))}
    write(tmp_path / "volumes.json", VERSION, encode(kept))
    assert load(tmp_path / "volumes.json") == kept
    assert json.loads((tmp_path / "volumes.json").read_text())["version"] == 1
