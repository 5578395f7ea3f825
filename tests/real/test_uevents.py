"""Devices that come and go, as the kernel tells them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.uevents import Uevents
from tests.real.conftest import run

WAIT = 60.0


@pytest.mark.root
def test_a_disk_that_comes_is_told_at_once(tmp_path: Path, need: Callable[..., None]) -> None:
    need("losetup")
    image = tmp_path / "disk.img"
    with open(image, "wb") as file:
        file.truncate(1 << 20)
    told: queue.Queue[str] = queue.Queue()
    threads = threading.active_count()
    listener = Uevents(["block"], told.put)
    try:
        device = run("losetup", "--find", "--show", str(image))
        try:
            assert told.get(timeout=WAIT) == "block"
        finally:
            run("losetup", "--detach", device)
    finally:
        listener.close()
    assert threading.active_count() == threads
