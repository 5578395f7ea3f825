"""Volumes told by their directories alone, while what is mounted on one of them does not answer."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.collector import NoSettings, Start
from agent.containers import Runtimes
from agent.host import Host
from agent.metric import Sample
from collectors.volumes import VOLUMES, Volumes
from tests.real.conftest import StuckFs

WAIT = 120.0  # seconds until a test gives up


@pytest.mark.root
@pytest.mark.slow
def test_a_volume_is_counted_without_a_look_at_what_is_mounted_on_it(
    tmp_path: Path, need: Callable[..., None], stack: contextlib.ExitStack
) -> None:
    need("umount", "/dev/fuse")
    for name in ("fine", "stuck"):
        (tmp_path / "volumes" / name).mkdir(parents=True)
    (tmp_path / "volumes/fine/_data").mkdir()
    mounted = StuckFs(tmp_path / "volumes/stuck/_data")
    stack.callback(mounted.close)
    mounted.hang()
    stack.callback(mounted.wake)
    found: list[float] = []

    def run() -> None:
        host = Host()
        runtimes = Runtimes(docker_sockets=(), docker_roots=(str(tmp_path),))
        running = Volumes(Start(host, NoSettings(), None, runtimes))
        samples = [each for each in running.collect(host) if isinstance(each, Sample)]
        found.extend(each.value for each in samples if each.metric is VOLUMES)
        running.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(WAIT)
    assert not thread.is_alive(), "the collector hangs with the mount"
    assert sum(found) == 2
