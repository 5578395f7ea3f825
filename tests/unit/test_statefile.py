"""The state's file where something else lies in its place: nothing hangs, and the state is kept in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent import statefile

FORMS: list[Callable[[Path], object]] = [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")]


def load(path: Path) -> Any:
    return statefile.load(path, 1, lambda data: data["kept"])


def save(path: Path) -> None:
    statefile.Keeper(path, 1, lambda: {"kept": 5}).save()


@pytest.mark.parametrize("make", FORMS)
def test_what_is_no_file_is_not_read(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "state.json")
    with capture_logs() as logs:
        assert load(tmp_path / "state.json") is None
    assert [(each["event"], each["error"]) for each in logs] == [("state unreadable", "is not a regular file")]


@pytest.mark.parametrize("make", FORMS)
def test_what_is_no_file_is_not_written_to(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "state.new")
    with capture_logs() as logs:
        save(tmp_path / "state.json")
    assert [each["event"] for each in logs] == ["state not saved"]
    assert load(tmp_path / "state.json") is None


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "state.json").symlink_to("precious")
    save(tmp_path / "state.json")
    assert load(tmp_path / "state.json") == 5
    assert (tmp_path / "precious").read_text() == "precious"
