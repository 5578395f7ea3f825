"""Counting layers on real filesystems, with the kernel's mark, beside whatever containers and runtimes do there."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.beneath import Directories
from agent.errors import HostError
from agent.fanotify import Fanotify, Handles
from agent.host import Host
from collectors.layercount import Counting
from collectors.layerindex import DOUBTFUL, Index, Tree
from collectors.layerwalk import Count, Walk
from collectors.stores import Layer
from tests.real.conftest import Make, run
from tests.unit.layertree import Churn, truth

pytestmark = [pytest.mark.root, pytest.mark.slow]


class Marked:
    """A tree that the mark keeps right."""

    def __init__(self, filesystem: Path, layer: Path) -> None:
        self.mark = Fanotify(str(filesystem))
        self.index = Index()
        self.tree = Tree(str(layer), "diff", self.index, Handles())

    def update(self) -> Count:
        changed, is_all = self.mark.read()
        assert is_all
        for handle in changed & self.index.by_handle.keys():
            self.tree.mark(self.index.by_handle[handle])
        assert self.tree.work(Directories(), lambda: False)
        assert self.tree.count is not None
        return self.tree.count


def inodes(count: Count) -> tuple[int, int]:
    return count.files, count.content_files


@pytest.fixture
def marked(stack: contextlib.ExitStack) -> Callable[[Path, Path], Marked]:
    def make(filesystem: Path, layer: Path) -> Marked:
        made = Marked(filesystem, layer)
        stack.callback(made.mark.close)
        return made

    return make


Mark = Callable[[Path, Path], Marked]


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_what_the_mark_tells_is_enough(filesystem: Make, marked: Mark, kind: str) -> None:
    mount = filesystem(kind, size=320 if kind == "xfs" else 128)
    for seed in range(15):
        churn = Churn(mount / f"layer-{seed}", seed)
        churn.change(30)
        tree = marked(mount, churn.layer)
        for changes in (0, 1, 3, 20) * 6:
            churn.change(changes)
            assert inodes(tree.update()) == inodes(truth(churn.layer, "diff"))


@contextlib.contextmanager
def overlay(layer: Path, lower: Path, merged: Path) -> Iterator[None]:
    options = f"lowerdir={lower},upperdir={layer}/diff,workdir={layer}/work"
    run("mount", "-t", "overlay", "overlay", "-o", options, str(merged))
    try:
        yield
    finally:
        run("umount", str(merged))


def test_changes_through_an_overlay_are_told_for_the_upper_directory(filesystem: Make, marked: Mark) -> None:
    mount = filesystem("ext4")
    layer, lower, merged = mount / "layer", mount / "lower", mount / "merged"
    for path in (layer / "diff", layer / "work", lower / "etc", merged):
        path.mkdir(parents=True)
    for number in range(20):
        (lower / "etc" / str(number)).touch()
    with overlay(layer, lower, merged):
        tree = marked(mount, layer)
        assert inodes(tree.update()) == inodes(truth(layer, "diff"))
        chance = random.Random(1)
        for number in range(20):
            (merged / "etc" / str(number)).unlink() if number % 2 else (merged / "etc" / str(number)).write_text("x")
            (merged / f"new-{number}" / "below").mkdir(parents=True)
            if chance.randrange(2):
                (merged / f"new-{number}").rename(merged / "etc" / f"moved-{number}")
            assert inodes(tree.update()) == inodes(truth(layer, "diff"))
        assert tree.update().content_files > 40


def test_what_is_mounted_in_a_layer_is_not_counted(filesystem: Make, marked: Mark, stack: contextlib.ExitStack) -> None:
    mount = filesystem("ext4")
    layer = mount / "layer"
    (layer / "diff" / "volume").mkdir(parents=True)
    (layer / "diff" / "file").touch()
    expected = inodes(truth(layer, "diff"))
    run("mount", "-t", "tmpfs", "none", str(layer / "diff" / "volume"))
    stack.callback(run, "umount", str(layer / "diff" / "volume"))
    for number in range(10):
        (layer / "diff" / "volume" / str(number)).mkdir()
    for has_openat2 in (True, False):
        for content in ("diff", ""):
            count = Walk(str(layer), content).work(Directories(has_openat2=has_openat2), lambda: False)
            assert count is not None
            assert count.files == expected[0]
    assert inodes(marked(mount, layer).update()) == expected


def test_the_mark_keeps_nobody_from_unmounting_and_tells_that_it_is_gone(
    tmp_path: Path, need: Callable[..., None]
) -> None:
    need("mount")
    run("mount", "-t", "tmpfs", "none", str(tmp_path))
    mark = Fanotify(str(tmp_path))
    assert mark.is_whole()
    run("umount", str(tmp_path))
    assert not mark.is_whole()
    mark.close()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_directory_whose_time_is_set_back_is_read_again(filesystem: Make, kind: str) -> None:
    """By tar and rsync as by us; without the mark, so that the times of directories are all there is."""
    mount = filesystem(kind, size=320 if kind == "xfs" else 128)
    layer, archive = mount / "c1", mount / "archive.tar"
    fill(layer, 3, 3)
    (mount / "from" / "0").mkdir(parents=True)
    (mount / "from" / "0" / "unpacked").touch()
    run("tar", "-C", str(mount / "from"), "--mtime=@0", "-cf", str(archive), "0")
    for number in range(3):
        os.utime(layer / "diff" / str(number), (0, 0))
    time.sleep(DOUBTFUL / 1e9 + 0.1)
    tree = Tree(str(layer), "diff", Index(), None)

    def count() -> tuple[int, int]:
        tree.check_times()
        assert tree.work(Directories(), lambda: False)
        assert tree.count is not None
        return inodes(tree.count)

    assert count() == (13, 13)
    run("tar", "-C", str(layer / "diff"), "-xf", str(archive))
    (layer / "diff" / "1" / "new").touch()
    shutil.rmtree(layer / "diff" / "2")
    (layer / "diff" / "2").mkdir()
    for number in range(3):
        os.utime(layer / "diff" / str(number), (0, 0))
    assert (layer / "diff" / "0").stat().st_mtime == 0
    assert count() == inodes(truth(layer, "diff")) == (12, 12)


def test_more_changes_than_the_queue_holds_are_counted_exactly(filesystem: Make, marked: Mark) -> None:
    """Each in a directory of its own, so that no two are one event, and with its time set back."""
    mount = filesystem("ext4", "-N", "50000", size=128)
    layer = mount / "c1"
    fill(layer, 17_000, 0)
    places = [f"{layer}/diff/{number}" for number in range(17_000)]
    for place in places:
        os.utime(place, (0, 0))
    # later than all of that: no time is in doubt
    counting, host = Counting(1000.0, pause=lambda _: None, now=lambda: time.time_ns() + 2 * DOUBTFUL), Host()
    counting.follow(host, str(mount), layers_of(mount))
    counting.work(host)
    witness = marked(mount, layer).mark
    for place in places:
        os.mknod(f"{place}/new")
        os.utime(place, (0, 0))
    shutil.rmtree(places[7])
    assert not witness.read()[1]
    counting.work(host)
    count = counting.count(str(mount), "c1")
    counting.close()
    assert count is not None
    assert inodes(count) == inodes(truth(layer, "diff")) == (2 * 17_000 - 1, 2 * 17_000 - 1)


def test_tens_of_thousands_of_hard_links_are_counted_as_find_and_du_count(filesystem: Make) -> None:
    """As `cp -al` makes them, and pnpm: more than the index has place for, and than are remembered in one pass."""
    mount = filesystem("ext4", "-N", "40000", size=128)
    layer = mount / "c1"
    fill(layer, 25, 1000)
    for name in ("0", "1"):
        (layer / "diff" / name / "0").write_bytes(b"x" * 100_000)
    run("cp", "-al", str(layer / "diff"), str(layer / "copy"))
    run("mv", str(layer / "copy"), str(layer / "diff" / "copy"))
    counting, host = Counting(1000.0, pause=lambda _: None), Host()
    counting.follow(host, str(mount), layers_of(mount))
    counting.work(host)
    count = counting.count(str(mount), "c1")
    counting.close()
    assert count == Walk(str(layer), "diff", 100_000).work(Directories(), lambda: False)
    assert host.errors == {}
    assert count is not None
    assert inodes(count) == (25_000 + 2 * 26, 25_000 + 2 * 26)
    assert count.content_files == int(run("du", "--inodes", "-s", str(layer / "diff")).split()[0])
    assert count.content_bytes == int(run("du", "-B1", "-s", str(layer / "diff")).split()[0])


def layers_of(store: Path) -> list[Layer]:
    found = []
    for path in store.iterdir():
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(path / "diff")
            state = "container" if path.name.startswith("c") else "image"
            identity = status.st_ino, status.st_mtime_ns
            found.append(Layer(path.name, state, str(path), "diff", identity, 0))  # type: ignore[arg-type]
    return found


def fill(layer: Path, directories: int, files: int) -> None:
    for number in range(directories):
        (layer / "diff" / str(number)).mkdir(parents=True)
        for other in range(files):
            (layer / "diff" / str(number) / str(other)).touch()


def test_nobody_is_kept_from_removing_or_unmounting_while_a_scan_runs(filesystem: Make) -> None:
    """200 times: a layer with what is mounted in it goes, and at last the whole filesystem, all under a busy scan."""
    mount = filesystem("ext4", "-N", "20000", size=128)
    stop = threading.Event()
    failures: list[BaseException] = []
    counted: set[str] = set()
    went: set[str] = set()  # while they were to be counted
    host = Host()

    def scan() -> None:
        counting = Counting(1000.0, pause=lambda _: None)
        try:
            while not stop.is_set():
                layers = layers_of(mount)
                counting.follow(host, str(mount), layers)
                counting.work(host)
                for layer in layers:
                    if counting.count(str(mount), layer.name) is not None:
                        counted.add(layer.name)
                    else:
                        went.add(layer.name)
        except BaseException as error:
            failures.append(error)
            raise
        finally:
            counting.close()

    thread = threading.Thread(target=scan)
    thread.start()
    try:
        for number in range(200):
            layer = mount / f"{'ci'[number % 2]}{number}"
            fill(layer, 10, 5)
            volume, merged = layer / "diff" / "volume", layer / "merged"
            volume.mkdir()
            merged.mkdir()
            (layer / "work").mkdir()
            run("mount", "-t", "tmpfs", "none", str(volume))
            options = f"lowerdir={mount}/lost+found,upperdir={layer}/diff,workdir={layer}/work"
            run("mount", "-t", "overlay", "overlay", "-o", options, str(merged))
            (merged / "written").touch()
            run("umount", str(merged))
            run("umount", str(volume))
            shutil.rmtree(layer)
    finally:
        stop.set()
        thread.join()
    assert failures == []
    assert host.errors == {}
    # so that the scan has been in them, and has not been through before they went, nor come too late
    assert len(counted) > 100
    assert len(went) > 5


def test_a_filesystem_is_unmounted_and_mounted_again_under_a_scan(filesystem: Make) -> None:
    mount = filesystem("ext4")
    fill(mount / "c1", 3, 3)
    device = run("findmnt", "-no", "SOURCE", str(mount))
    counting, host = Counting(1.0, pause=lambda _: None), Host()
    for number in range(3):
        counting.follow(host, str(mount), layers_of(mount))
        counting.work(host)
        assert not counting.is_lost(host, str(mount))
        count = counting.count(str(mount), "c1")
        assert count is not None
        assert count.content_files == 13 + number
        run("umount", str(mount))
        run("mount", device, str(mount))
        (mount / "c1" / "diff" / f"new-{number}").touch()
        counting.work(host)
        assert counting.is_lost(host, str(mount))
    counting.close()


def test_a_directory_that_is_swapped_for_a_link_leads_nowhere(filesystem: Make, tmp_path: Path) -> None:
    """All the time, while it is walked: what lies outside is never counted."""
    mount = filesystem("ext4")
    layer, outside = mount / "c1", tmp_path / "outside"
    fill(layer, 30, 3)
    for number in range(1000):
        (outside / str(number)).mkdir(parents=True)
    most = truth(layer, "diff").files + 30
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for number in range(30):
                path = layer / "diff" / str(number)
                path.rename(mount / "aside")
                path.symlink_to(outside)
                path.unlink()
                (mount / "aside").rename(path)

    thread = threading.Thread(target=swap)
    thread.start()
    counting, host = Counting(1000.0, pause=lambda _: None), Host()
    try:
        for _ in range(300):
            counting.follow(host, str(mount), layers_of(mount))
            counting.work(host)
            count = counting.count(str(mount), "c1")
            assert count is None or count.files <= most
            with contextlib.suppress(HostError):
                walked = Walk(str(layer), "diff").work(Directories(), lambda: False)
                assert walked is not None
                assert walked.files <= most
    finally:
        stop.set()
        thread.join()
    counting.work(host)
    count = counting.count(str(mount), "c1")
    counting.close()
    assert count is not None
    assert inodes(count) == inodes(truth(layer, "diff"))


def test_names_of_all_kinds_in_a_layer(filesystem: Make, marked: Mark) -> None:
    mount = filesystem("ext4")
    layer = mount / "layer"
    place = os.fsencode(layer / "diff")
    os.makedirs(place)
    for name in (b"new\nline", b"\xff\xfe\xed", b'"quotes\\', b"\xe2\x80\xae", b"n" * 255):
        os.mkdir(place + b"/" + name)
        os.symlink(b".", place + b"/" + name + b"/" + b"loop")
        os.mkfifo(place + b"/" + name + b"/" + name)
        os.mknod(place + b"/" + name + b"/null", 0o600 | 0o020000, os.makedev(1, 3))
    deep = os.open(place, os.O_RDONLY)
    for _ in range(60):  # 6,000 bytes of path
        os.mkdir(b"d" * 100, dir_fd=deep)
        below = os.open(b"d" * 100, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(os.open(b"file", os.O_CREAT | os.O_WRONLY, dir_fd=deep))
    os.close(deep)
    expected = int(
        subprocess.run(
            ["find", str(layer / "diff"), "-printf", "x"], check=True, capture_output=True, text=True
        ).stdout.count("x")
    )
    assert marked(mount, layer).update().content_files == expected == 1 + 5 * 4 + 61
    run("rm", "-r", str(layer))  # shutil's needs a path for each
