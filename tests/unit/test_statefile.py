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
        statefile.save(tmp_path / "state.json", 1, {"kept": 5})
    assert [each["event"] for each in logs] == ["state not saved"]
    assert load(tmp_path / "state.json") is None


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "state.json").symlink_to("precious")
    statefile.save(tmp_path / "state.json", 1, {"kept": 5})
    assert load(tmp_path / "state.json") == 5
    assert (tmp_path / "precious").read_text() == "precious"
