"""Counting within a budget, over restarts, and where a layer refuses. Its clocks are the test's own."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent.budget import PAUSE, SLICE
from agent.host import Host
from collectors.layercount import LOOK_AGAIN, Counting
from collectors.layerindex import DOUBTFUL
from collectors.layerwalk import Count
from collectors.stores import Layer, State
from tests.unit.layertree import truth


class Clocks:
    """Processor time goes on with each look at it; the others as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.used = 0.0
        self.step = 0.0
        self.pauses = 0

    def clock(self) -> float:
        return self.now

    def cpu(self) -> float:
        self.used += self.step
        return self.used

    def pause(self, seconds: float) -> None:
        assert seconds == PAUSE
        self.pauses += 1
        self.now += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def counting(clocks: Clocks, state: Path | None = None, share: float = 0.02, most: int = 40_000) -> Counting:
    """Return one to which all was done so long ago that it is in no doubt."""
    return Counting(
        share,
        state,
        wants_mark=False,
        most_entries=most,
        clock=clocks.clock,
        cpu=clocks.cpu,
        pause=clocks.pause,
        now=lambda: time.time_ns() + 2 * DOUBTFUL,
    )


def layer(store: Path, name: str, state: State, files: int = 3, size: int | None = 1) -> Layer:
    """Make a layer with some directories, and as many files in each."""
    path = store / name
    for number in range(5):
        (path / "diff" / str(number)).mkdir(parents=True, exist_ok=True)
        for file in range(files):
            (path / "diff" / str(number) / str(file)).write_bytes(b"x" * 5000)
    found = (path / "diff").stat()
    return Layer(name, state, str(path), "diff", (found.st_ino, found.st_mtime_ns), 2, size=size)


def container(store: Path, name: str, entries: int) -> Layer:
    """Make a container that takes so many entries of an index."""
    made = layer(store, name, "container")
    for number in range(6, entries):
        (store / name / "diff" / str(number)).mkdir()
    return made


def files(counts: Counting, store: Path, *names: str) -> list[int | None]:
    found = [counts.count(str(store), name) for name in names]
    return [count.files if count is not None else None for count in found]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = tmp_path / "store"
    made.mkdir()
    return made


def test_each_state_is_counted_in_its_way(store: Path, clocks: Clocks) -> None:
    found = [
        layer(store, "image", "image"),
        layer(store, "unsized", "image", size=None),
        layer(store, "container", "container"),
        layer(store, "orphan", "orphan"),
        replace(layer(store, "pulled", "incomplete"), is_settled=False),
    ]
    counts = counting(clocks)
    counts.follow(Host(), str(store), found)
    assert counts.progress(str(store)) == 0
    counts.work(Host())
    expected = truth(store / "image", "diff")
    assert counts.count(str(store), "image") == Count(expected.files, None, 0, None)
    for name in ("unsized", "container", "orphan"):
        assert counts.count(str(store), name) == truth(store / name, "diff")
    assert counts.count(str(store), "pulled") is None
    assert counts.progress(str(store)) == 1


def test_the_budget_is_kept_and_the_rest_waits(store: Path, clocks: Clocks) -> None:
    found = [layer(store, f"{number:02}", "image") for number in range(20)]
    clocks.step = 2 * SLICE
    counts = counting(clocks)
    counts.follow(Host(), str(store), found)
    before = clocks.used
    counts.work(Host())
    spent, progress = clocks.used - before, counts.progress(str(store))
    assert 0 < progress < 1
    assert clocks.pauses > 0
    assert spent < 2 * 0.02 * 60  # a look at the clock between two tasks counts for nobody
    counts.work(Host())
    assert counts.progress(str(store)) == progress
    for _ in range(100):
        clocks.now += 30
        counts.work(Host())
    assert counts.progress(str(store)) == 1


def test_few_walks_are_under_way_at_once(store: Path, clocks: Clocks) -> None:
    found = [layer(store, f"{number:02}", "image", files=1) for number in range(20)]
    counts = counting(clocks)
    counts.follow(Host(), str(store), found)
    most, clocks.step = 0, 5 * SLICE  # a look at the clock ends a slice, and a few of them the round
    while counts.progress(str(store)) < 1:
        clocks.now += 10
        counts.work(Host())
        walks = counts._stores[str(store)].walks.values()
        most = max(most, sum(walk._todo is not None for walk in walks))
    assert 1 < most <= 4


def test_what_was_counted_outlives_the_agent(store: Path, tmp_path: Path, clocks: Clocks) -> None:
    state = tmp_path / "state"
    found = [layer(store, "image", "image"), layer(store, "container", "container")]
    first = counting(clocks, state)
    first.follow(Host(), str(store), found)
    first.work(Host())
    first.close()
    shutil.rmtree(store / "image" / "diff" / "0")  # nobody does that: it shows what is remembered
    second = counting(clocks, state)
    second.follow(Host(), str(store), found)
    assert files(second, store, "image", "container") == [21, None]
    second.work(Host())
    assert files(second, store, "image", "container") == [21, 21]
    assert second.age(str(store)) == 0


@pytest.mark.parametrize("damage", ["", "{", '{"version": 1}', '{"version": 1, "stores": {"/s": {"a": [1, "x", 2]}}}'])
def test_a_damaged_state_is_counted_anew(store: Path, tmp_path: Path, clocks: Clocks, damage: str) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "layers.json").write_text(damage)
    counts = counting(clocks, state)
    counts.follow(Host(), str(store), [layer(store, "image", "image")])
    counts.work(Host())
    assert files(counts, store, "image") == [21]


def test_another_layer_of_the_same_name_is_counted_anew(store: Path, clocks: Clocks) -> None:
    counts = counting(clocks)
    counts.follow(Host(), str(store), [layer(store, "1", "image")])
    counts.work(Host())
    os.rename(store / "1" / "diff", store / "1" / "old")
    shutil.rmtree(store / "1" / "old")
    counts.follow(Host(), str(store), [layer(store, "1", "image", files=7)])
    assert files(counts, store, "1") == [None]
    counts.work(Host())
    assert files(counts, store, "1") == [41]


def test_a_layer_that_becomes_another_state_is_counted_in_its_way(store: Path, clocks: Clocks) -> None:
    counts = counting(clocks)
    made = layer(store, "1", "container")
    for state in ("container", "orphan", "container", "image"):
        counts.follow(Host(), str(store), [replace(made, state=state)])
        counts.work(Host())
        assert files(counts, store, "1") == [21]


def test_a_container_with_too_many_directories_is_walked_again_and_again(store: Path, clocks: Clocks) -> None:
    counts = counting(clocks, most=8)
    found = [layer(store, name, "container") for name in ("a", "b")]
    counts.follow(Host(), str(store), found)
    counts.work(Host())
    counts.work(Host())
    assert files(counts, store, "a", "b") == [21, 21]
    for name in ("a", "b"):
        (store / name / "diff" / "0" / "new").touch()
    clocks.now += LOOK_AGAIN
    counts.work(Host())
    assert counts.age(str(store)) == LOOK_AGAIN
    counts.follow(Host(), str(store), found)
    counts.work(Host())
    assert files(counts, store, "a", "b") == [22, 22]
    assert counts.age(str(store)) == 0


def in_the_index(counts: Counting, store: Path, names: str) -> str:
    """Return of which containers the next run sees a new file."""
    before = files(counts, store, *names)
    time.sleep(0.02)  # a tick of the filesystem's clock
    for name in names:
        descriptor, _ = tempfile.mkstemp(dir=store / name / "diff" / "0")
        os.close(descriptor)
    counts.work(Host())
    return "".join(
        name for name, old, new in zip(names, before, files(counts, store, *names), strict=True) if old != new
    )


def test_the_largest_leaves_a_full_index_and_comes_back_when_there_is_room(store: Path, clocks: Clocks) -> None:
    found = {"x": container(store, "x", 12), "a": container(store, "a", 6)}
    counts = counting(clocks, most=20)

    def follow() -> list[int | None]:
        clocks.now += LOOK_AGAIN
        counts.follow(Host(), str(store), found.values())
        told = files(counts, store, *found)
        for _ in range(2):
            counts.work(Host())
        return told

    follow()
    assert in_the_index(counts, store, "xa") == "xa"
    found["b"] = container(store, "b", 6)
    follow()
    assert in_the_index(counts, store, "xab") == "ab"
    follow()
    before = files(counts, store, "x", "a")
    del found["b"]
    assert follow() == before
    assert in_the_index(counts, store, "xa") == "a"  # there is room for it, but only just
    before = files(counts, store, "x", "a")
    del found["a"]
    assert follow() == before[:1]  # it keeps its count until there is another
    assert in_the_index(counts, store, "x") == "x"
    assert counts.age(str(store)) == 0
    assert counts.bytes_age(str(store)) == 0


def test_those_that_come_back_to_an_index_count_before_they_are_read(store: Path, clocks: Clocks) -> None:
    """Or all of them would come at once, to be put out again."""
    sizes = {"p": 12, "q": 12, "r": 10, "s": 9, "t": 11}
    found = {name: container(store, name, size) for name, size in sizes.items()}
    counts = counting(clocks, most=40)
    for names in ("pqr", "pqrs", "pqrst", "pqrst"):
        counts.follow(Host(), str(store), [found[name] for name in names])
        counts.work(Host())
        counts.work(Host())
    assert in_the_index(counts, store, "pqrst") == "rst"
    for expected in ("pt", "pt"):
        clocks.now += LOOK_AGAIN
        for _ in range(2):
            counts.follow(Host(), str(store), [found[name] for name in "pqt"])
        counts.work(Host())
        assert in_the_index(counts, store, "pqt") == expected


def test_what_no_index_has_place_for_drives_nobody_out(store: Path, clocks: Clocks) -> None:
    found = [container(store, name, entries) for name, entries in (("a", 6), ("b", 22), ("c", 6))]
    counts = counting(clocks, most=20)
    for _ in range(3):
        counts.follow(Host(), str(store), found)
        counts.work(Host())
    assert files(counts, store, "a", "b", "c") == [21, 21 + 16, 21]
    assert in_the_index(counts, store, "abc") == "ac"


def test_a_container_with_very_many_hard_links_is_counted(store: Path, clocks: Clocks) -> None:
    """As pnpm and `cp -al` make them. By the ten thousand: tests/real/test_layer_count.py."""
    found = [layer(store, name, "container") for name in ("a", "b")]
    for name in ("files", "links"):
        (store / "a" / "diff" / name).mkdir()
    for number in range(200):
        os.mknod(store / "a" / "diff" / "files" / str(number))
        os.link(store / "a" / "diff" / "files" / str(number), store / "a" / "diff" / "links" / str(number))
    counts, host = counting(clocks, most=300), Host()
    counts.follow(host, str(store), found)
    counts.work(host)
    assert counts.count(str(store), "a") == truth(store / "a", "diff")
    assert files(counts, store, "a", "b") == [21 + 2 + 200, 21]
    assert counts.progress(str(store)) == 1
    assert host.errors == {}


def test_what_is_walked_again_and_again_keeps_its_count_meanwhile(store: Path, clocks: Clocks) -> None:
    counts = counting(clocks, most=3)
    counts.follow(Host(), str(store), [layer(store, "a", "container")])
    counts.work(Host())
    (store / "a" / "diff" / "new").touch()  # which changes the time of its content
    counts.follow(Host(), str(store), [layer(store, "a", "container")])
    assert files(counts, store, "a") == [21]
    clocks.now += LOOK_AGAIN
    counts.follow(Host(), str(store), [layer(store, "a", "container")])
    counts.work(Host())
    assert files(counts, store, "a") == [22]


def test_a_file_that_grows_is_seen_after_ten_minutes(store: Path, clocks: Clocks) -> None:
    counts = counting(clocks)
    counts.follow(Host(), str(store), [layer(store, "1", "container")])
    counts.work(Host())
    before = counts.count(str(store), "1")
    with open(store / "1" / "diff" / "0" / "0", "ab") as file:
        file.write(b"x" * 1_000_000)
    assert before is not None
    clocks.now += 30
    counts.work(Host())
    assert counts.count(str(store), "1") == before
    clocks.now += LOOK_AGAIN
    counts.work(Host())
    after = counts.count(str(store), "1")
    assert after == truth(store / "1", "diff")
    assert (after.bytes or 0) > (before.bytes or 0)
    assert counts.bytes_age(str(store)) == 0


def test_what_is_removed_is_forgotten(store: Path, clocks: Clocks) -> None:
    counts = counting(clocks)
    found = [layer(store, name, "container") for name in ("a", "b")]
    counts.follow(Host(), str(store), found)
    counts.work(Host())
    shutil.rmtree(store / "a")
    host = Host()
    counts.work(host)
    assert files(counts, store, "a", "b") == [None, 21]
    assert host.errors == {}
    counts.keep_only([])
    assert files(counts, store, "b") == [None]
    assert counts.age(str(store)) is None


def test_a_layer_that_refuses_is_told_and_has_no_count(store: Path, clocks: Clocks) -> None:
    counts = counting(clocks)
    found = [layer(store, "a", "image"), layer(store, "b", "image")]
    shutil.rmtree(store / "a" / "diff")
    (store / "a" / "diff").symlink_to(store)
    (store / "a").rename(store / "c")
    (store / "a").symlink_to("c")  # a root that is a link is not followed
    host = Host()
    counts.follow(host, str(store), found)
    counts.work(host)
    assert files(counts, store, "a", "b") == [None, 21]
    assert counts.progress(str(store)) == 0.5


@pytest.mark.parametrize("state", ["image", "container"])
def test_what_is_never_counted_grows_old(store: Path, clocks: Clocks, state: State) -> None:
    counts = counting(clocks)
    found = [layer(store, "a", state), layer(store, "b", "image")]
    (store / "a").rename(store / "c")
    (store / "a").symlink_to("c")
    host = Host()
    for number in range(4):
        counts.follow(host, str(store), found)  # with a new try each time
        counts.work(host)
        assert files(counts, store, "a", "b") == [None, 21]
        assert counts.age(str(store)) == number * LOOK_AGAIN
        clocks.now += LOOK_AGAIN
    (store / "a").unlink()
    (store / "c").rename(store / "a")
    counts.follow(host, str(store), found)
    counts.work(host)
    assert counts.age(str(store)) == 0


def test_a_count_that_is_lost_is_missing_since_then(store: Path, clocks: Clocks) -> None:
    counts, host = counting(clocks), Host()
    found = [layer(store, "a", "container")]
    for _ in range(3):
        counts.follow(host, str(store), found)
        counts.work(host)
        clocks.now += 100
    (store / "a").rename(store / "c")
    (store / "a").symlink_to("c")
    counts.work(host)
    assert files(counts, store, "a") == [None]
    assert counts.age(str(store)) == 100


def test_a_count_is_as_old_as_its_walk_s_beginning(store: Path, clocks: Clocks) -> None:
    counts = counting(clocks)
    counts.follow(Host(), str(store), [layer(store, "a", "build")])
    clocks.step = 50 * SLICE  # with a share of 0.02 a slice is paid for after minutes
    ages: list[float] = []
    for _ in range(20):
        counts.work(Host())
        ages.append(counts.age(str(store)) or 0)
        if counts.progress(str(store)) == 1:
            break
        clocks.now += 30
    assert len(ages) > 3
    assert ages == pytest.approx([30 * number for number in range(len(ages))], abs=1)
