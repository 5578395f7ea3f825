"""Trees that change at random, against a look at every inode. With the mark: tests/real/test_layer_count.py."""

from __future__ import annotations

import os
import shutil
import time
import tracemalloc
from pathlib import Path

import pytest

from agent import beneath
from agent.beneath import Directories
from agent.errors import Failed, Vanished
from agent.fanotify import Handles
from collectors import layerwalk
from collectors.layerindex import DOUBTFUL, Index, Tree
from collectors.layerwalk import Count, TooMany, Walk
from tests.unit.layertree import Churn, truth


def never() -> bool:
    return False


def always() -> bool:
    return True


def update(tree: Tree) -> Count:
    """Bring a tree up to date by the times of its directories."""
    tree.check_times()
    assert tree.work(Directories(), never)
    assert tree.count is not None
    return tree.count


def later() -> int:
    """Return a time at which nothing that was done before is in doubt."""
    return time.time_ns() + 2 * DOUBTFUL


def wait_a_tick() -> None:
    """Let the filesystem's clock go on: a change has another time than what was before."""
    time.sleep(0.02)


def inodes(count: Count) -> tuple[int, int]:
    return count.files, count.content_files


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    path = tmp_path / "layer"
    for name in ("diff/usr/bin", "diff/etc", "work/work"):
        (path / name).mkdir(parents=True)
    for name in ("link", "lower", "diff/usr/bin/sh", "diff/usr/bin/ls", "diff/etc/passwd"):
        (path / name).write_bytes(b"x" * 5000)
    return path


@pytest.mark.parametrize("seed", range(12))
def test_a_tree_that_changes_at_random_is_always_right(tmp_path: Path, seed: int) -> None:
    churn = Churn(tmp_path / "layer", seed)
    churn.change(30)
    index = Index()
    tree = Tree(str(churn.layer), "diff", index, None)
    for changes in (0, 1, 3, 20) * 4:
        churn.change(changes)
        found, expected = update(tree), truth(churn.layer, "diff")
        assert inodes(found) == inodes(expected)
        walk = Walk(str(churn.layer), "diff")
        assert walk.work(Directories(), never) == expected
        assert walk.entries == index.size
        assert Walk(str(churn.layer)).work(Directories(), never) == Count(expected.files, None, 0, None)
    tree.close()
    assert (index.size, index.by_handle) == (0, {})


def test_a_count_in_slices_is_the_same(layer: Path) -> None:
    for content in ("diff", ""):
        walk, turns, found = Walk(str(layer), content), 0, None
        while found is None:
            found, turns = walk.work(Directories(), always), turns + 1
        assert turns > 1
        assert found == Walk(str(layer), content).work(Directories(), never)
    tree, turns = Tree(str(layer), "diff", Index(), None), 1
    while not tree.work(Directories(), always):
        turns += 1
    assert turns > 1
    assert tree.count == truth(layer, "diff")


def test_a_walk_goes_on_when_directories_go(layer: Path) -> None:
    (layer / "diff/usr/bin/below").mkdir()
    for slices in range(4):  # of five
        (layer / "diff/usr/bin/below").mkdir(parents=True, exist_ok=True)
        walk = Walk(str(layer), "diff")
        for _ in range(slices):
            assert walk.work(Directories(), always) is None
        shutil.rmtree(layer / "diff/usr")
        count = walk.work(Directories(), never)
        assert count is not None
        assert count.files >= truth(layer, "diff").files
    shutil.rmtree(layer)
    with pytest.raises(Vanished):
        Walk(str(layer), "diff").work(Directories(), never)


def link(place: Path, files: int, names: int) -> None:
    """Make files with so many names, each name of one in a directory of its own."""
    for name in range(names):
        (place / str(name)).mkdir(parents=True)
        for file in range(files):
            if name:
                os.link(place / "0" / str(file), place / str(name) / str(file))
            else:
                os.mknod(place / "0" / str(file))
    for file in range(3):
        (place / "0" / str(file)).write_bytes(b"x" * 3000 * file)


@pytest.mark.parametrize("memory", [1 << 20, 2000, 400])
def test_what_cannot_be_remembered_at_once_is_counted_in_several_passes(
    layer: Path, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr(beneath, "_SEEN_MOST", 10)
    for name in ("_SEEN_MOST", "_SET_MOST"):
        monkeypatch.setattr(layerwalk, name, 10)
    link(layer / "diff/links", 200, 3)
    os.link(layer / "diff/links/0/7", layer / "work" / "work" / "7")
    os.link(layer / "lower", layer / "work/lower")
    expected = truth(layer, "diff")
    assert Walk(str(layer), "diff", memory).work(Directories(), never) == expected
    assert Walk(str(layer), "", memory).work(Directories(), never) == Count(expected.files, None, 0, None)
    walk, found = Walk(str(layer), "diff", memory), None
    while found is None:
        found = walk.work(Directories(), always)
    assert found == expected


def test_hard_links_take_no_more_memory_than_they_may(layer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layerwalk, "_SEEN_MOST", 100)
    link(layer / "diff/links", 2000, 2)
    walk = Walk(str(layer), "diff")
    tracemalloc.start()
    count = walk.work(Directories(), never)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == truth(layer, "diff")
    assert most < 500_000


def test_what_lies_directly_in_the_layer_is_not_counted(layer: Path) -> None:
    assert inodes(update(Tree(str(layer), "diff", Index(), None))) == (9, 7)


def test_a_second_name_makes_no_second_inode(layer: Path) -> None:
    tree = Tree(str(layer), "diff", Index(), None)
    before = update(tree)
    os.link(layer / "diff/usr/bin/sh", layer / "diff/etc/sh")  # only one of its two directories has changed
    assert update(tree) == before
    os.link(layer / "diff/usr/bin/sh", layer / "work/work/sh")
    assert update(tree) == before
    (layer / "diff/usr/bin/sh").unlink()
    (layer / "diff/etc/sh").unlink()
    assert inodes(update(tree)) == (before.files, before.content_files - 1)


def test_a_name_outside_the_layer_is_found_out_once(layer: Path, tmp_path: Path) -> None:
    tree = Tree(str(layer), "diff", Index(), None)
    before = update(tree)
    os.link(layer / "diff/usr/bin/sh", tmp_path / "outside")
    (layer / "diff/usr/bin/new").touch()
    assert inodes(update(tree)) == (before.files + 1, before.content_files + 1)
    assert tree.due == 0


def test_a_growing_file_is_seen_when_all_is_read_again(layer: Path) -> None:
    tree = Tree(str(layer), "diff", Index(clock=later), None)
    before = update(tree)
    with open(layer / "diff/etc/passwd", "ab") as file:
        file.write(b"y" * 100_000)
    assert update(tree) == before
    tree.read_all()
    assert update(tree) == truth(layer, "diff")


def test_a_change_is_seen_though_the_directory_s_time_was_set_back(layer: Path) -> None:
    """As `tar` does that unpacks a reproducible archive over another, and `rsync -a`."""
    tree = Tree(str(layer), "diff", Index(clock=later), None)
    for place in ("diff/etc", "diff/usr", "diff/usr/bin"):
        os.utime(layer / place, ns=(0, 0))
    before = update(tree)
    wait_a_tick()
    (layer / "diff/etc/new").touch()
    (layer / "diff/usr/share").mkdir()
    shutil.rmtree(layer / "diff/usr/bin")
    (layer / "diff/usr/bin").mkdir()  # often with the inode of the one before
    for place in ("diff/etc", "diff/usr", "diff/usr/bin"):
        os.utime(layer / place, ns=(0, 0))
    assert inodes(update(tree)) == (before.files, before.content_files)
    assert update(tree) == truth(layer, "diff")


def test_a_change_behind_a_look_at_the_times_is_in_doubt_until_the_next_one(layer: Path) -> None:
    """As when the kernel's queue overflows twice, and between the two a part of the directories has been compared."""
    tree = Tree(str(layer), "diff", Index(clock=later), None)
    before = update(tree)
    wait_a_tick()
    tree.hear(1.0, is_all=False)
    assert not tree.work(Directories(), always)  # the top's subdirectories have been compared
    (layer / "diff/new").touch()
    tree.hear(2.0, is_all=False)
    assert tree.work(Directories(), never)
    assert (tree.count, tree.told_at) == (before, 1.0)
    tree.hear(3.0, is_all=True)
    assert tree.work(Directories(), never)
    assert (tree.count, tree.told_at) == (truth(layer, "diff"), 3.0)
    tree.hear(4.0, is_all=True)
    assert (tree.due, tree.told_at) == (0, 4.0)


def test_a_directory_swapped_for_a_link_counts_as_a_link(layer: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for number in range(10):
        (outside / str(number)).mkdir(parents=True)
    tree = Tree(str(layer), "diff", Index(), None)
    update(tree)
    shutil.rmtree(layer / "diff/usr/bin")
    (layer / "diff/usr/bin").symlink_to(outside)
    assert inodes(update(tree)) == (7, 5)


@pytest.mark.parametrize("has_handles", [True, False])
def test_more_directories_than_an_index_may_have_leave_nothing_in_it(layer: Path, *, has_handles: bool) -> None:
    index = Index(most=3)
    tree = Tree(str(layer), "diff", index, Handles() if has_handles else None)
    with pytest.raises(TooMany):
        tree.work(Directories(), never)
    tree.close()
    assert (index.size, index.by_handle) == (0, {})


def test_names_of_files_with_several_take_their_place_in_an_index(layer: Path) -> None:
    link(layer / "diff/links", 100, 3)
    index = Index()
    tree = Tree(str(layer), "diff", index, None)
    update(tree)
    assert index.size == 10 + 300
    shutil.rmtree(layer / "diff/links/2")
    update(tree)
    assert index.size == 9 + 200
    tree.close()
    assert index.size == 0
    for most in (99, 200):
        few = Tree(str(layer), "diff", Index(most=most), None)
        with pytest.raises(TooMany):
            few.work(Directories(), never)


def test_a_directory_of_too_many_directories_has_no_count(layer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (layerwalk, beneath):
        monkeypatch.setattr(module, "DIRECTORIES_MOST", 10)
    for number in range(20):
        (layer / "diff" / "usr" / str(number)).mkdir()
    for content in ("diff", ""):
        with pytest.raises(Failed, match="more than 10 directories"):
            Walk(str(layer), content).work(Directories(), never)


def test_the_content_alone_may_be_absent(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    assert update(Tree(str(tmp_path), "diff", Index(), None)) == truth(tmp_path, "diff")
    shutil.rmtree(tmp_path / "work")
    assert inodes(update(Tree(str(tmp_path), "diff", Index(), None))) == (0, 0)
