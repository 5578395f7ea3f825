"""The types of directory entries as the kernel gives them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.dirents import types
from agent.errors import Vanished

DIRECTORY, FILE, LINK = 4, 8, 10


def test_entries_come_with_their_types_and_without_dots(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / os.fsdecode(b"\xff\n"))
    assert types(str(tmp_path)) == {b"directory": DIRECTORY, b"file": FILE, b"link": LINK, b"\xff\n": 1}


def test_an_empty_directory_has_none(tmp_path: Path) -> None:
    assert types(str(tmp_path)) == {}


def test_of_many_the_first_are_enough(tmp_path: Path) -> None:
    for number in range(3000):
        (tmp_path / f"{number:0200}").touch()
    found = types(str(tmp_path))
    assert 0 < len(found) < 3000
    assert set(found.values()) == {FILE}


def test_what_is_no_directory_is_typed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in ("gone", "file"):
        with pytest.raises(Vanished):
            types(str(tmp_path / path))


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    types(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before
